"""Operations and allocations over HTTP: who sees what, and what may be done when."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, update

from dflare.kit import trace_tables
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import advance, copy_events
from dflare.kit.ids import new_id
from dflare.kit.operations import NewOperation, change_operation, create_operation, lock_operation
from dflare.kit.plan import OperationState
from dflare.services.auth.contract import Principal, ProjectRef
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.orchestrator import api
from dflare.services.orchestrator.contract import PoolWish, Wishes
from dflare.services.orchestrator.projections import OperationsProjection
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.service import OrchestratorService
from dflare.services.orchestrator.tables import KIT, Node, QuotaLimit, Site
from stores import drop_database
from tenancy import (
    BLUE,
    MEMBER,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
    Tenancy,
    application,
    client,
    migrated_database,
)


@dataclass
class Desk:
    """The API over two schemas: clusters holds operations, orchestrator lists them."""

    database: Database
    calls: Callable[[Principal], httpx.AsyncClient]
    site_id: str = field(default_factory=lambda: new_id("site"))

    @property
    def service(self) -> OrchestratorService:
        return OrchestratorService(self.database, SystemClock())

    async def declare(self, nodes: int) -> None:
        async with self.database.transaction("orchestrator") as session:
            session.add(Site(site_id=self.site_id, name="berlin", node_types=["g8"], version=1))
            session.add(QuotaLimit(project_id=RED.id, node_type="g8", nodes=100, version=1))
            session.add_all(
                Node(
                    node_id=f"node_{number}",
                    site_id=self.site_id,
                    name=f"n{number}",
                    node_type="g8",
                    state="available",
                )
                for number in range(nodes)
            )

    async def order(self, project: ProjectRef = RED, *, reserve: int = 0) -> str:
        operation_id, cluster_id = new_id("op"), new_id("clu")
        targets: list[str] = []
        if reserve:
            wishes = Wishes(
                organization_id=project.organization_id,
                project_id=project.id,
                site_id=self.site_id,
                cluster_id=cluster_id,
                pools=(PoolWish(pool="main", node_type="g8", count=reserve),),
            )
            reservation = await self.service.reserve(operation_id, wishes)
            targets = [placed.node_id for placed in reservation.placed]
        async with self.database.transaction("clusters") as session:
            await create_operation(
                session,
                CLUSTERS,
                NewOperation(
                    id=operation_id,
                    kind="create_cluster",
                    organization_id=project.organization_id,
                    project_id=project.id,
                    site_id=self.site_id,
                    resource_kind="cluster",
                    resource_id=cluster_id,
                    plan=SAGAS["create_cluster"],
                    targets=targets,
                    created_by="user_red",
                    trace={},
                ),
                datetime.now(UTC),
            )
        return operation_id

    async def move(self, operation_id: str, *states: OperationState) -> None:
        async with self.database.transaction("clusters") as session:
            row = await lock_operation(session, CLUSTERS, operation_id)
            for state in states:
                row = await change_operation(session, CLUSTERS, row, datetime.now(UTC), state=state)

    async def set_step(self, operation_id: str, index: int, state: str) -> None:
        step = CLUSTERS.operation_step
        async with self.database.transaction("clusters") as session:
            await session.execute(
                update(step)
                .where(step.c.operation_id == operation_id, step.c.index == index)
                .values(state=state)
            )

    async def project(self) -> None:
        while await copy_events(self.database, CLUSTERS):
            pass
        while await advance(self.database, OperationsProjection()):
            pass

    async def get(self, caller: Principal, path: str) -> httpx.Response:
        async with self.calls(caller) as http:
            return await http.get(path)

    async def post(self, caller: Principal, path: str) -> httpx.Response:
        async with self.calls(caller) as http:
            return await http.post(path)

    async def row(self, operation_id: str) -> Any:
        table = CLUSTERS.operation
        async with self.database.transaction("clusters") as session:
            query = select(table).where(table.c.id == operation_id)
            return (await session.execute(query)).mappings().one()


@pytest.fixture
async def desk(postgres_url: str) -> AsyncIterator[Desk]:
    url = await migrated_database(postgres_url, "trace", "clusters", "orchestrator")
    database = Database(url, application="test-operations")
    tenancy = Tenancy()
    kits = {"orchestrator": KIT, "clusters": CLUSTERS}
    service = OrchestratorService(database, SystemClock())
    app = application(tenancy, lambda principal: api.router(service, kits, tenancy, principal))
    desk = Desk(database, lambda caller: client(app, caller))
    await desk.declare(4)
    yield desk
    await database.dispose()
    drop_database(url)


async def test_an_operation_is_read_at_once_by_those_who_may_and_by_nobody_else(
    desk: Desk,
) -> None:
    operation = await desk.order()

    answer = await desk.get(VIEWER, f"/operations/{operation}")
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"1"'
    assert (answer.json()["state"], answer.json()["service"]) == ("pending", "clusters")
    assert [step["name"] for step in answer.json()["steps"]][:2] == [
        "clusters.begin@1",
        "orchestrator.confirm@1",
    ]
    assert (await desk.get(STRANGER, f"/operations/{operation}")).status_code == 404
    assert (await desk.get(OPERATOR, "/operations/op_none")).status_code == 404


async def test_a_list_holds_what_the_caller_may_read_newest_first_in_pages(desk: Desk) -> None:
    red = [await desk.order() for _ in range(5)]
    blue = await desk.order(BLUE)
    await desk.move(red[2], OperationState.RUNNING)
    await desk.project()

    first = (await desk.get(VIEWER, "/operations?limit=3")).json()
    second = (await desk.get(VIEWER, f"/operations?limit=3&cursor={first['next_cursor']}")).json()
    seen = [one["id"] for one in first["items"] + second["items"]]
    assert seen == sorted(red, reverse=True)
    assert second["next_cursor"] is None
    running = (await desk.get(VIEWER, "/operations?state=running")).json()["items"]
    assert [one["id"] for one in running] == [red[2]]
    assert len((await desk.get(OPERATOR, "/operations")).json()["items"]) == 6
    mine = (await desk.get(STRANGER, "/operations")).json()["items"]
    assert [one["id"] for one in mine] == [blue]
    of_project = await desk.get(STRANGER, f"/operations?project={RED.id}")
    assert of_project.status_code == 404


async def test_cancelling_needs_the_right_and_an_operation_that_can_be_undone(desk: Desk) -> None:
    operation = await desk.order()
    path = f"/operations/{operation}/cancel"
    assert (await desk.post(STRANGER, path)).status_code == 404
    assert (await desk.post(VIEWER, path)).status_code == 403
    answer = await desk.post(MEMBER, path)
    assert (answer.status_code, answer.json()["cancel_requested"]) == (202, True)

    committed = await desk.order()
    await desk.move(committed, OperationState.RUNNING)
    commit = SAGAS["create_cluster"].commit_index
    assert commit is not None
    await desk.set_step(committed, commit, "running")
    refused = await desk.post(MEMBER, f"/operations/{committed}/cancel")
    assert refused.status_code == 409
    assert refused.json()["type"].endswith("/too-late")


async def test_a_failed_order_is_retried_with_nodes_reserved_anew(desk: Desk) -> None:
    operation = await desk.order(reserve=3)
    path = f"/operations/{operation}/retry"
    assert (await desk.post(MEMBER, path)).status_code == 409
    await desk.move(operation, OperationState.UNDOING, OperationState.FAILED)
    assert (await desk.post(VIEWER, path)).status_code == 403

    answer = await desk.post(MEMBER, path)

    assert answer.status_code == 202, answer.text
    assert (answer.json()["state"], answer.json()["attempt"]) == ("pending", 2)
    row = await desk.row(operation)
    assert (row["generation"], len(row["targets"]), row["position"]) == (2, 3, 0)


async def test_only_an_operator_resumes_what_needs_one(desk: Desk) -> None:
    operation = await desk.order()
    path = f"/operations/{operation}/resume"
    assert (await desk.post(OPERATOR, path)).status_code == 409
    await desk.move(operation, OperationState.RUNNING, OperationState.NEEDS_OPERATOR)
    assert (await desk.post(MEMBER, path)).status_code == 403
    answer = await desk.post(OPERATOR, path)
    assert (answer.status_code, answer.json()["state"]) == (202, "running")


async def test_an_undo_that_needs_an_operator_is_resumed_as_an_undo(desk: Desk) -> None:
    operation = await desk.order()
    await desk.move(operation, OperationState.UNDOING, OperationState.NEEDS_OPERATOR)
    await desk.set_step(operation, 3, "needs_operator")
    await desk.set_step(operation, 1, "undone")

    answer = await desk.post(OPERATOR, f"/operations/{operation}/resume")

    assert answer.json()["state"] == "undoing"
    assert (await desk.row(operation))["position"] == 3


async def test_a_trace_is_the_tree_of_what_was_done(desk: Desk) -> None:
    operation = await desk.order()
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def span(name: str, parent: str | None, offset_s: float) -> dict[str, Any]:
        return {
            "span_id": name,
            "trace_id": "t",
            "parent_id": parent,
            "operation_id": operation,
            "process": "worker",
            "name": name,
            "started_at": start + timedelta(seconds=offset_s),
            "ended_at": start + timedelta(seconds=offset_s + 0.5),
            "error": None,
            "attributes": {},
        }

    async with desk.database.transaction("trace") as session:
        await session.execute(
            insert(trace_tables.span),
            [
                span("redfish", "step", 2),
                span("api", "browser", 0),
                span("step", "api", 1),
            ],
        )
    answer = await desk.get(VIEWER, f"/operations/{operation}/trace")

    (root,) = answer.json()["spans"]
    assert (root["name"], root["duration_ms"]) == ("api", 500)
    assert root["children"][0]["name"] == "step"
    assert root["children"][0]["children"][0]["name"] == "redfish"
    assert (await desk.get(STRANGER, f"/operations/{operation}/trace")).status_code == 404


async def test_allocations_are_seen_within_the_scope(desk: Desk) -> None:
    await desk.order(reserve=2)
    mine = (await desk.get(VIEWER, "/allocations")).json()["items"]
    assert {(one["state"], one["pool"]) for one in mine} == {("held", "main")}
    assert len(mine) == 2
    assert (await desk.get(STRANGER, "/allocations")).json()["items"] == []
    assert (await desk.get(VIEWER, "/allocations?state=ended")).json()["items"] == []
