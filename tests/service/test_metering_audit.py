"""Promises of the audit of the usage ledger: it finds every kind of fault and nothing else."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text

from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.services.auth.contract import Principal, Role, RoleBinding
from dflare.services.metering import api_audits
from dflare.services.metering.activities import LedgerProjection
from dflare.services.metering.contract import AuditFound
from dflare.services.metering.domain_audits import AuditState, audited_since
from dflare.services.metering.reconciler import UsageAuditor
from dflare.services.metering.service_audits import AuditService
from dflare.services.metering.settings import MeteringSettings
from dflare.services.metering.tables import KIT, UsageAudit, UsageFinding
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from dflare.services.orchestrator.domain import allocation_facts
from dflare.services.orchestrator.service_usage import AllocationUsage
from dflare.services.orchestrator.tables import Allocation
from stores import drop_database
from tenancy import MEMBER, NOW, OPERATOR, RED, Tenancy, application, client, migrated_database

AUDITOR = Principal("user_audit", "user", "audit", bindings=(RoleBinding(Role.AUDITOR),))
MONTH = datetime(2026, 11, 1, tzinfo=UTC)
RUN, LIST = "/audits/usage:run", "/audits/usage"


@dataclass
class SettlingClock(ManualClock):
    """A clock that lets something happen at each sleep."""

    happenings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    slept: int = 0

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        await super().sleep(seconds)
        if self.happenings:
            await self.happenings.pop(0)()


@dataclass
class Books:
    """Allocations of orchestrator, the ledger that follows them, and who audits both."""

    database: Database
    clock: SettlingClock
    clients: dict[str, httpx.AsyncClient]

    def auditor(self, page: int = 500) -> UsageAuditor:
        records = AllocationUsage(self.database)
        return UsageAuditor(self.database, self.clock, records, MeteringSettings(), page=page)

    async def allocate(
        self, number: int, start: datetime | None, end: datetime | None, node: int | None = None
    ) -> AllocationFacts:
        """An allocation that was handed over at ``start``, where it was."""
        state = AllocationState.ENDED if end else AllocationState.CONFIRMED
        row = Allocation(
            id=f"alloc_{number:03}",
            version=3,
            state=state,
            node_id=f"node_{node or number}",
            node_name=f"n{node or number}",
            node_type="g8",
            gpus=8,
            site_id="site_1",
            organization_id=RED.organization_id,
            project_id=RED.id,
            cluster_id="clu_1",
            pool="default",
            slot=number,
            reserved_by="op_1",
            operation_id="op_1",
            epoch=1,
            since=NOW,
            usage_from=start,
            usage_to=end,
            created_at=NOW,
        )
        facts = allocation_facts(row)
        async with self.database.transaction("orchestrator") as session:
            session.add(row)
        return facts

    async def follow(self, *allocations: AllocationFacts) -> None:
        """Fold the events of allocations into the ledger."""
        entries = [
            FeedEntry(
                1,
                "orchestrator",
                "evt",
                "allocation.changed",
                None,
                None,
                None,
                "allocation",
                one.allocation_id,
                one.version,
                None,
                NOW,
                one.model_dump(mode="json"),
            )
            for one in allocations
        ]
        async with self.database.transaction("metering") as session:
            await LedgerProjection().apply(session, entries)

    async def corrupt(self, *statements: str) -> None:
        async with self.database.across() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def audits(self) -> list[UsageAudit]:
        async with self.database.transaction("metering") as session:
            return list((await session.scalars(select(UsageAudit).order_by(UsageAudit.id))).all())

    async def findings(self) -> list[UsageFinding]:
        async with self.database.transaction("metering") as session:
            query = select(UsageFinding).order_by(UsageFinding.audit_id, UsageFinding.number)
            return list((await session.scalars(query)).all())

    async def told(self) -> list[Any]:
        async with self.database.transaction("metering") as session:
            query = select(KIT.event).where(KIT.event.c.type == "metering.audit_found")
            return list((await session.execute(query)).mappings().all())


@pytest.fixture
async def books(postgres_url: str) -> AsyncIterator[Books]:
    """Six allocations as they come to be, in a ledger that is right."""
    url = await migrated_database(postgres_url, "metering", "orchestrator")
    database = Database(url, application="test-audit")
    tenancy, clock = Tenancy(), SettlingClock(NOW)
    tenancy.callers[AUDITOR.subject] = AUDITOR
    service = AuditService(database, clock, tenancy)
    app = application(tenancy, lambda principal: api_audits.router(service, principal))
    async with AsyncExitStack() as stack:
        clients = {
            caller.subject: await stack.enter_async_context(client(app, caller))
            for caller in (OPERATOR, AUDITOR, MEMBER)
        }
        books = Books(database, clock, clients)
        hour = timedelta(hours=1)
        await books.follow(
            await books.allocate(1, MONTH + hour, MONTH + 3 * hour),
            # The same node again from the very moment on that it was given back.
            await books.allocate(2, MONTH + 3 * hour, None, node=1),
            # Undone after its hand-over: an interval without length, amid another one's.
            await books.allocate(3, MONTH + 4 * hour, MONTH + 4 * hour, node=1),
            await books.allocate(4, None, None),
            # Over before the audited time.
            await books.allocate(5, MONTH - 9 * hour, MONTH - 8 * hour),
            await books.allocate(6, MONTH - hour, MONTH + hour),
        )
        yield books
    await database.dispose()
    drop_database(url)


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_a_ledger_that_is_as_the_allocations_is_clean(books: Books, page: int) -> None:
    assert await books.auditor(page).work()
    (audit,) = await books.audits()
    assert (audit.state, audit.findings, audit.deadline) == (AuditState.CLEAN, 0, None)
    assert (audit.allocations, audit.entries) == (4, 4)
    assert (audit.usage_since, audit.day) == (MONTH, NOW.date())
    assert await books.told() == []
    assert books.clock.slept == 0, "nothing had to be looked at again"


def changed(allocation: str, what: str, table: str = "metering.ledger_entry") -> str:
    key = "id" if table == "orchestrator.allocation" else "allocation_id"
    return f"UPDATE {table} SET {what} WHERE {key} = '{allocation}'"


INVENTED = (
    "INSERT INTO metering.ledger_entry SELECT (jsonb_populate_record(entry, "
    """'{"allocation_id": "alloc_099", "node_id": "node_9"}')).*"""
    " FROM metering.ledger_entry AS entry WHERE allocation_id = 'alloc_001'"
)
UNDONE = changed("alloc_001", "usage_from = NULL, usage_to = NULL", "orchestrator.allocation")
INJECTED: dict[str, tuple[str, str, list[str]]] = {
    "lost": ("DELETE FROM metering.ledger_entry WHERE allocation_id = 'alloc_001'", "missing", []),
    "invented": (INVENTED, "extra", []),
    "never handed over": (UNDONE, "extra", []),
    "longer by a microsecond": (
        changed("alloc_006", "usage_to = usage_to + interval '1 microsecond'"),
        "differs",
        ["usage_to"],
    ),
    "begun too early": (
        changed("alloc_006", "usage_from = usage_from - interval '1 hour'"),
        "differs",
        ["usage_from"],
    ),
    "ended though it runs": (changed("alloc_002", "usage_to = now()"), "differs", ["usage_to"]),
    "running though it ended": (changed("alloc_006", "usage_to = NULL"), "differs", ["usage_to"]),
    "moved out of the audited time": (
        changed("alloc_006", "usage_from = '2020-01-01', usage_to = '2020-01-02'"),
        "differs",
        ["usage_from", "usage_to"],
    ),
    "another tenant's": (
        changed("alloc_001", "project_id = 'proj_blue', organization_id = 'org_blue'"),
        "differs",
        ["organization_id", "project_id"],
    ),
    "another price": (
        changed("alloc_001", "node_type = 'g1', gpus = 1"),
        "differs",
        ["node_type", "gpus"],
    ),
}


@pytest.mark.parametrize(
    ("statement", "kind", "fields"), list(INJECTED.values()), ids=list(INJECTED)
)
async def test_every_fault_of_the_ledger_is_one_finding(
    books: Books, statement: str, kind: str, fields: list[str]
) -> None:
    await books.corrupt(statement)
    assert await books.auditor(page=2).work()
    (audit,) = await books.audits()
    (found,) = await books.findings()
    assert (audit.state, audit.findings, found.kind) == (AuditState.FOUND, 1, kind)
    assert found.allocation_id in statement
    assert found.detail.get("fields", []) == fields
    (event,) = await books.told()
    assert AuditFound.model_validate(event["data"]).kinds == {kind: 1}
    assert (event["organization_id"], event["project_id"]) == (None, None)


async def test_two_intervals_that_bill_a_node_twice_are_found_though_both_sides_agree(
    books: Books,
) -> None:
    longer = "usage_to = usage_to + interval '1 second'"
    await books.corrupt(
        changed("alloc_001", longer), changed("alloc_001", longer, "orchestrator.allocation")
    )
    await books.auditor().work()
    (found,) = await books.findings()
    assert (found.kind, found.allocation_id, found.node_id) == ("overlap", "alloc_002", "node_1")
    assert found.detail["earlier"]["allocation_id"] == "alloc_001"
    assert found.detail["earlier"]["usage_to"] == "2026-11-01T03:00:01+00:00"


async def test_a_ledger_that_is_a_little_behind_is_waited_for(books: Books) -> None:
    late = await books.allocate(7, NOW, None)

    async def arrives() -> None:
        await books.follow(late)

    async def nothing_yet() -> None:
        assert await books.findings() == []

    books.clock.happenings = [nothing_yet, arrives]
    await books.auditor().work()
    (audit,) = await books.audits()
    assert (audit.state, books.clock.slept) == (AuditState.CLEAN, 2)


async def test_all_that_is_found_is_counted_and_a_bounded_part_kept(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dflare.services.metering.reconciler.MOST_FINDINGS", 2)
    await books.corrupt("DELETE FROM metering.ledger_entry")
    await books.auditor().work()
    (audit,) = await books.audits()
    assert (audit.findings, audit.entries) == (4, 0)
    assert [found.number for found in await books.findings()] == [1, 2]


async def test_a_day_has_one_audit_however_many_workers_look(books: Books) -> None:
    first, second = books.auditor(), books.auditor()
    assert [await first.work(), await second.work(), await first.work()] == [True, False, False]
    books.clock.at += timedelta(days=1)
    assert [await second.work(), await first.work()] == [True, False]
    days = [audit.day for audit in await books.audits()]
    assert days == [NOW.date(), NOW.date() + timedelta(days=1)]


@pytest.mark.parametrize(
    ("day", "since"),
    [
        (date(2026, 11, 2), date(2026, 11, 1)),
        (date(2026, 11, 1), date(2026, 10, 1)),
        (date(2027, 1, 1), date(2026, 12, 1)),
    ],
)
def test_the_first_of_a_month_audits_the_whole_month_before(day: date, since: date) -> None:
    assert audited_since(day) == since


class Lost(AllocationUsage):
    """Allocations that cannot be read."""

    async def handed_over(self, *_: Any) -> Any:
        raise ConnectionError("orchestrator does not answer")


async def test_an_audit_that_fails_waits_with_its_reason_and_is_done_again(books: Books) -> None:
    failing = books.auditor()
    failing.records = Lost(books.database)
    with pytest.raises(ConnectionError):
        await failing.work()
    (audit,) = await books.audits()
    assert (audit.state, audit.deadline) == (AuditState.REQUESTED, None)
    assert "does not answer" in audit.reason
    assert await books.auditor().work()
    (audit,) = await books.audits()
    assert (audit.state, audit.reason) == (AuditState.CLEAN, "")


async def test_an_audit_of_a_lost_worker_is_taken_over_and_its_late_conclusion_is_not_counted(
    books: Books,
) -> None:
    await books.corrupt("DELETE FROM metering.ledger_entry WHERE allocation_id = 'alloc_001'")
    deadline_s = MeteringSettings().audit_deadline_s

    async def another_takes_over() -> None:
        assert not await books.auditor().work(), "it is still being done"
        books.clock.at += timedelta(seconds=deadline_s)
        assert await books.auditor().work()

    books.clock.happenings = [another_takes_over]
    assert await books.auditor().work()
    (audit,) = await books.audits()
    assert (audit.state, audit.findings) == (AuditState.FOUND, 1)
    assert len(await books.findings()) == 1
    assert len(await books.told()) == 1


async def test_an_operator_asks_for_an_audit_and_reads_what_it_found(books: Books) -> None:
    operator = books.clients[OPERATOR.subject]
    await books.corrupt("DELETE FROM metering.ledger_entry")
    asked = await operator.post(RUN, json={"usage_since": (MONTH - timedelta(days=9)).isoformat()})
    assert (asked.status_code, asked.json()["state"], asked.json()["day"]) == (
        202,
        "requested",
        None,
    )
    for _ in range(2):
        assert await books.auditor().work()
    listed = (await operator.get(LIST, params={"limit": 1})).json()
    more = (await operator.get(LIST, params={"limit": 1, "cursor": listed["next_cursor"]})).json()
    both = [*listed["items"], *more["items"]]
    assert (len({one["id"] for one in both}), more["next_cursor"]) == (2, None)
    path = f"{LIST}/{asked.json()['id']}"
    shown = await operator.get(path)
    assert (shown.json()["state"], shown.json()["findings"]) == ("found", 5)
    assert shown.headers["etag"] == f'"{shown.json()["version"]}"'
    seen: list[int] = []
    cursor: str | None = None
    for _ in range(3):
        page = await operator.get(
            f"{path}/findings", params={"limit": 2, **({"cursor": cursor} if cursor else {})}
        )
        seen += [one["number"] for one in page.json()["items"]]
        cursor = page.json()["next_cursor"]
    assert (seen, cursor) == ([1, 2, 3, 4, 5], None)


async def test_asking_again_before_it_has_begun_is_the_same_audit(books: Books) -> None:
    operator = books.clients[OPERATOR.subject]
    first = (await operator.post(RUN)).json()
    assert (await operator.post(RUN)).json()["id"] == first["id"]
    wider = await operator.post(RUN, json={"usage_since": "2020-01-01T00:00:00+00:00"})
    assert wider.json()["id"] != first["id"]
    while await books.auditor().work():
        pass
    assert (await operator.post(RUN)).json()["id"] != first["id"]


async def test_audits_are_the_operators_and_auditors_alone(books: Books) -> None:
    audit = (await books.clients[OPERATOR.subject].post(RUN)).json()["id"]
    for caller, looks, runs in ((AUDITOR, 200, 403), (MEMBER, 404, 404)):
        api = books.clients[caller.subject]
        for path in (LIST, f"{LIST}/{audit}", f"{LIST}/{audit}/findings"):
            assert (await api.get(path)).status_code == looks, (caller.name, path)
        assert (await api.post(RUN)).status_code == runs, caller.name
    async with books.database.transaction("metering") as session:
        actions = (await session.scalars(select(KIT.audit.c.action))).all()
    assert actions == ["usage_audit:run"]


@pytest.mark.parametrize(
    "since", ["2999-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "2026-11-01T00:00:00", "today"]
)
async def test_a_time_that_cannot_be_audited_is_refused(books: Books, since: str) -> None:
    answer = await books.clients[OPERATOR.subject].post(RUN, json={"usage_since": since})
    assert answer.status_code in {400, 422}
    assert answer.json()["detail"]
    assert await books.audits() == []


async def test_an_audit_that_is_not_there_and_a_foreign_cursor_are_told(books: Books) -> None:
    operator = books.clients[OPERATOR.subject]
    assert (await operator.get(f"{LIST}/audit_none")).status_code == 404
    audit = (await operator.post(RUN)).json()["id"]
    answer = await operator.get(f"{LIST}/{audit}/findings", params={"cursor": "eHl6"})
    assert (answer.status_code, "cursor" in answer.json()["detail"]) == (422, True)
