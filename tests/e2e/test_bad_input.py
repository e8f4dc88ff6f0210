"""Bad input and bad moments: one clear answer with the next step each, nothing left half done."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from running_platform import KILL_SETTINGS, PlatformHandle, Tenant, brief, ok, running_platform
from site_files import FLEET, PlatformWish

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(900)

NODES, HELD, CORDONED = 8, 2, 1
FREE = NODES - HELD - CORDONED
PLENTY = 100


@dataclass(frozen=True)
class Scene:
    """A small site: red holds two nodes, one is cordoned, the rest is free."""

    platform: PlatformHandle
    red: Tenant
    blue: Tenant


@pytest.fixture(scope="module")
async def scene() -> AsyncIterator[Scene]:
    """The scene, made once; every test leaves it as it found it."""
    async with running_platform(PlatformWish(nodes=NODES, environment=KILL_SETTINGS)) as platform:
        await platform.apply_site()
        red = await platform.tenant("red", {"h100-8": PLENTY})
        blue = await platform.tenant("blue", {"h100-8": PLENTY})
        await platform.wait(await platform.order(red, "mine", "h100-8", HELD))
        free = next(node for node in await platform.nodes() if node["state"] == "available")
        ok(
            await platform.operator.post(
                f"/v1/nodes/{free['id']}/cordon", json={"reason": "a fan rattles"}
            )
        )

        async def known() -> bool:
            refusal = await _order(platform, blue, count=PLENTY)
            return refusal.json().get("free") == FREE

        # Placement learns of the cordon by an event.
        await platform.until(known)
        yield Scene(platform, red, blue)


async def _order(
    platform: PlatformHandle,
    tenant: Tenant,
    *,
    name: str = "wish",
    node_type: str = "h100-8",
    count: int = 1,
    project: str | None = None,
) -> httpx.Response:
    return await tenant.http.post(
        f"/v1/projects/{project or tenant.project_id}/clusters",
        json={
            "name": name,
            "ssh_keys": [] if project else ["key"],
            "pools": [{"node_type": node_type, "count": count}],
        },
    )


def _problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document, which must say what happened and what to do."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"].endswith(f"/{kind}"), problem
    assert problem["detail"], problem
    assert problem["next_step"], problem
    return problem


async def _left_behind(platform: PlatformHandle) -> dict[str, int]:
    """Rows that a refused order could have left half done."""
    async with platform.database() as database:
        return {
            table: await database.fetchval(f"SELECT count(*) FROM {table}")
            for table in (
                "clusters.cluster",
                "clusters.operation",
                "clusters.idempotency",
                "orchestrator.allocation",
                "orchestrator.claim",
            )
        } | {"quota": await database.fetchval("SELECT sum(nodes) FROM orchestrator.quota_usage")}


async def test_more_nodes_than_free_says_how_many_and_why_the_others_are_not(scene: Scene) -> None:
    before = await _left_behind(scene.platform)
    problem = _problem(await _order(scene.platform, scene.blue, count=NODES), 409, "capacity")
    assert (problem["wanted"], problem["free"], problem["missing"]) == (NODES, FREE, NODES - FREE)
    assert problem["not_free"] == {"held by other orders": HELD, "cordoned": CORDONED}
    assert "red" not in problem["detail"]
    assert await _left_behind(scene.platform) == before


async def test_an_unknown_node_type_is_refused_with_the_known_ones(scene: Scene) -> None:
    before = await _left_behind(scene.platform)
    answer = await _order(scene.platform, scene.blue, node_type="h200-8")
    problem = _problem(answer, 422, "unknown-node-type")
    assert "h100-8" in problem["next_step"]
    assert await _left_behind(scene.platform) == before


async def test_an_order_without_quota_is_refused_with_limit_and_use(scene: Scene) -> None:
    green = await scene.platform.tenant("green", {})
    before = await _left_behind(scene.platform)
    problem = _problem(await _order(scene.platform, green), 409, "quota")
    assert (problem["limit"], problem["used"], problem["wanted"]) == (0, 0, 1)
    assert await _left_behind(scene.platform) == before


async def test_a_clusters_name_can_be_taken_once_in_a_project(scene: Scene) -> None:
    before = await _left_behind(scene.platform)
    _problem(await _order(scene.platform, scene.red, name="mine"), 409, "name-taken")
    assert await _left_behind(scene.platform) == before


async def test_another_tenants_token_finds_nothing(scene: Scene) -> None:
    path = f"/v1/projects/{scene.red.project_id}/clusters"
    for answer in (
        await scene.blue.http.get(f"{path}/mine"),
        await scene.blue.http.delete(f"{path}/mine"),
        await scene.blue.http.get(path),
        await scene.blue.http.get(f"/v1/projects/{scene.red.project_id}"),
        await _order(scene.platform, scene.blue, project=scene.red.project_id),
    ):
        _problem(answer, 404, "not-found")
    assert (await scene.platform.cluster(scene.red, "mine"))["state"] == "ready"


async def test_the_program_refuses_another_tenants_cluster_in_two_lines(scene: Scene) -> None:
    said = await scene.platform.cli(
        "cluster", "show", "mine", token=scene.blue.token, project=scene.red.project_id
    )
    assert said.exit_code == 4
    assert said.err.startswith("error: ")
    assert "\nnext: " in said.err


async def test_the_program_tells_an_order_too_large_with_what_to_do(scene: Scene) -> None:
    options = ("--nodes", str(NODES), "--type", "h100-8")
    said = await scene.platform.cli(
        "cluster", "create", "big", *options, token=scene.blue.token, project=scene.blue.project_id
    )
    assert said.exit_code == 1
    assert f"{FREE} are free" in said.err
    assert f"{HELD} held by other orders" in said.err
    assert "\nnext: " in said.err


async def test_a_malformed_site_is_refused_with_line_and_key(scene: Scene) -> None:
    broken = scene.platform.layout.root / "broken.yaml"
    text = scene.platform.layout.site_file.read_text()
    broken.write_text(text.replace("vendor: dell", "vendor: del", 1))
    line = next(n for n, one in enumerate(broken.read_text().split("\n"), 1) if "del," in one + ",")
    said = await scene.platform.cli("site", "apply", str(broken))
    assert said.exit_code != 0
    assert f"broken.yaml:{line}:" in said.err
    assert "did you mean dell?" in said.err


async def test_the_api_refuses_a_malformed_site_and_keeps_the_old_one(scene: Scene) -> None:
    name = scene.platform.document.name
    answer = await scene.platform.operator.put(f"/v1/sites/{name}", json={"name": name})
    problem = _problem(answer, 422, answer.json()["type"].rpartition("/")[2])
    assert "region" in json.dumps(problem)
    assert len(await scene.platform.nodes()) == NODES


async def test_a_wrong_fleet_list_is_refused_with_line_and_column(scene: Scene) -> None:
    root = scene.platform.layout.root
    header, first, second, *_ = FLEET.read_text().splitlines()
    (root / "fleet.csv").write_text("\n".join([header, first.replace("64000", "many"), second]))
    target = root / "fleet.yaml"
    said = await scene.platform.cli("site", "import", str(root / "fleet.csv"), "-o", str(target))
    assert said.exit_code != 0
    assert "fleet.csv:2:" in said.err
    assert "cpu_milli" in said.err
    assert not target.exists()


async def test_a_site_of_another_tenants_making_is_refused(scene: Scene) -> None:
    answer = await scene.blue.http.put("/v1/sites/demo", json={})
    assert answer.status_code in {403, 404}, answer.text


async def test_a_database_that_is_down_is_told_and_recovers(scene: Scene) -> None:
    platform = scene.platform
    path = f"/v1/projects/{scene.red.project_id}/clusters/mine"
    with platform.supervisor_paused():
        pid = platform.kill("postgres")

        async def refused() -> bool:
            return (await scene.red.http.get(path)).status_code == 503

        await platform.until(refused)
        problem = _problem(await scene.red.http.get(path), 503, "store-unavailable")
        assert problem["retryable"] is True
        said = await platform.cli(
            "cluster", "show", "mine", token=scene.red.token, project=scene.red.project_id
        )
        assert said.exit_code == 5
        assert "\nnext: " in said.err
    await platform.until_healthy(other_than=pid)
    assert (await platform.cluster(scene.red, "mine"))["state"] == "ready"


async def test_an_order_is_accepted_and_done_later_while_temporal_is_down(scene: Scene) -> None:
    platform = scene.platform
    with platform.supervisor_paused():
        pid = platform.kill("temporal")
        operation = await platform.order(scene.blue, "patient", "h100-8", 1)
    await platform.until_healthy(other_than=pid)
    await platform.wait(operation)
    await platform.wait(await platform.release(scene.blue, "patient"))


@pytest.mark.parametrize(
    ("held_by", "committed"),
    [
        ("orchestrator.quota_usage", "clusters.idempotency"),
        ("clusters.cluster", "orchestrator.allocation"),
    ],
    ids=["before the reservation", "after the reservation"],
)
async def test_a_gateway_that_dies_before_its_answer_and_a_repeat_make_one_order(
    scene: Scene, held_by: str, committed: str
) -> None:
    platform, key = scene.platform, f"once-{committed}"
    before = await _left_behind(platform)
    async with platform.database() as lock:
        # The lock of the table that the next transaction writes stops the gateway between two.
        await lock.execute(f"BEGIN; LOCK TABLE {held_by} IN SHARE ROW EXCLUSIVE MODE")
        first = asyncio.create_task(
            scene.blue.http.post(
                f"/v1/projects/{scene.blue.project_id}/clusters",
                json={"name": "once", "pools": [{"node_type": "h100-8", "count": 2}]},
                headers={"Idempotency-Key": key},
            )
        )

        async def is_committed() -> bool:
            async with platform.database() as database:
                count = await database.fetchval(f"SELECT count(*) FROM {committed}")
            return count > before[committed]

        await platform.until(is_committed)
        pid = platform.kill("gateway")
        with pytest.raises(httpx.TransportError):
            await first
    await platform.until_healthy(other_than=pid)
    path = f"/v1/projects/{scene.blue.project_id}/clusters"
    body = {"name": "once", "pools": [{"node_type": "h100-8", "count": 2}]}
    repeats = [await platform.repeated(scene.blue.http, "POST", path, body, key) for _ in range(2)]
    assert repeats[0]["id"] == repeats[1]["id"], brief(repeats[0])
    await platform.wait(repeats[0])
    after = await _left_behind(platform)
    grown = {table: count - before[table] for table, count in after.items()}
    assert grown["clusters.cluster"] == grown["clusters.operation"] == 1
    assert grown["orchestrator.allocation"] == grown["quota"] == 2
    await platform.wait(await platform.release(scene.blue, "once"))
