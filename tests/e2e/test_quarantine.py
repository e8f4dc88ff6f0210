"""A node that an operator took from its tenant: shut out at once, and in the pool again only when
the simulator finds nothing on it and nobody who reaches it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from judgement import peers
from running_platform import PlatformHandle, Tenant, ok, running_platform
from site_files import PlatformWish

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(900)

SECRET = "what the tenant of this node alone may know"


@dataclass
class Story:
    """What was seen, in the order in which it happened. ``taken`` is the node."""

    taken: str
    reach_with_tenant: frozenset[str] = frozenset()
    reach_in_quarantine: frozenset[str] = frozenset()
    after_release: dict[str, Any] = field(default_factory=dict[str, Any])
    left_after_release: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    cleaning: dict[str, Any] = field(default_factory=dict[str, Any])
    moves: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    states: list[str] = field(default_factory=list[str])
    truth: dict[str, Any] = field(default_factory=dict[str, Any])
    left: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    reach_at_end: frozenset[str] = frozenset()
    usage: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


async def _reached(platform: PlatformHandle, node: str) -> frozenset[str]:
    reach = await platform.sim.reachability()
    return peers(reach, "ethernet", node) | peers(reach, "infiniband", node)


async def _node(platform: PlatformHandle, name: str) -> dict[str, Any]:
    return ok(await platform.operator.get(f"/v1/nodes/{name}"))


async def _live(platform: PlatformHandle, tenant: Tenant) -> Story:
    operation = await platform.order(tenant, "line", "h100-8", 3)
    await platform.wait(operation)
    cluster = await platform.cluster(tenant, "line")
    story = Story(cluster["nodes"][0]["name"])
    taken = story.taken
    await platform.sim.secret(taken, SECRET)
    story.reach_with_tenant = await _reached(platform, taken)
    reason = {"reason": "it behaves oddly"}
    ok(await platform.operator.post(f"/v1/nodes/{taken}/quarantine", json=reason))

    async def shut_out() -> bool:
        story.reach_in_quarantine = await _reached(platform, taken)
        return not story.reach_in_quarantine

    await platform.until(shut_out)
    await platform.wait(await platform.release(tenant, "line"))
    story.after_release = await _node(platform, taken)
    story.left_after_release = await platform.sim.find(SECRET)
    before = len(await platform.sim.log(kind="port_moved"))
    order = ok(await platform.operator.post(f"/v1/nodes/{taken}/release-quarantine"))
    story.cleaning = await platform.wait(order)
    story.moves = (await platform.sim.log(kind="port_moved"))[before:]
    story.states = [(await _node(platform, taken))["state"]]
    story.truth = (await platform.sim.hosts())[taken]
    story.left = await platform.sim.find(SECRET)
    story.reach_at_end = await _reached(platform, taken)
    return story


@pytest.fixture(scope="module")
async def story() -> AsyncIterator[Story]:
    """A node's way from its tenant through quarantine to the pool."""
    async with running_platform(PlatformWish(nodes=4)) as platform:
        await platform.apply_site()
        yield await _live(platform, await platform.tenant("red", {"h100-8": 4}))


def test_quarantine_closes_the_ports_of_a_node_while_its_tenant_has_it(story: Story) -> None:
    assert len(story.reach_with_tenant) == 2
    assert story.reach_in_quarantine == frozenset()


def test_a_release_leaves_a_node_in_quarantine_there_unerased(story: Story) -> None:
    assert story.after_release["state"] == "quarantine"
    assert {place["host"] for place in story.left_after_release} == {story.taken}


def test_it_is_cleaned_in_a_network_of_its_own(story: Story) -> None:
    steps = {step["name"]: step["state"] for step in story.cleaning["steps"]}
    assert steps["network.seclude@1"] == "done"
    assert story.moves, "its port was opened for the agent and closed again"


def test_it_is_in_the_pool_only_erased_and_isolated(story: Story) -> None:
    assert story.states == ["available"]
    assert story.left == []
    assert story.truth["power"] == "Off"
    assert story.truth["ssh_keys_on_disk"] == []
    assert story.reach_at_end == frozenset()
