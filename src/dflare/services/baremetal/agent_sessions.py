"""Conversations with nodes' agents: what was asked, what was said.

The steps ask and the agent API hears; both use one ``AgentSessions`` in a process. Rows are the
truth: every change is committed before it counts, many at once (a thousand agents report in the
same second). Changes that another process committed are fetched once a second.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, cast

import orjson
from sqlalchemy import RowMapping, Table, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.seal import Sealer
from dflare.kit.telemetry import log
from dflare.services.baremetal.tables import AgentSession

SCHEMA = "baremetal"
GROUP_S = 0.01
"""How long changes are gathered before they are committed together."""
REFRESH_S = 1.0

_table = cast("Table", AgentSession.__table__)


@dataclass(frozen=True)
class AgentTask:
    """Work for an agent; ``params`` may hold secrets and is sealed at rest."""

    id: str
    kind: str
    params: dict[str, Any] = field(repr=False)


@dataclass
class Conversation:
    """A session in memory: a copy of its row, with an event that is set at every change."""

    id: str
    node_id: str
    operation_id: str
    agent_token: str = field(repr=False)
    phone_token: str = field(repr=False)
    round: int
    booted_at: datetime | None
    boot_id: str
    serial: str
    task: AgentTask | None
    done: dict[str, dict[str, Any]]
    up: dict[str, Any] | None
    closed: bool
    version: int
    progress: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change, or after ``timeout_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()


@dataclass(frozen=True)
class _Change:
    """``values`` of the row ``id``; ``apply`` repeats it on the copy once it is committed."""

    kind: str
    id: str
    values: dict[str, Any]
    apply: Callable[[], None]
    committed: asyncio.Future[None]


def session_id(operation_id: str, purpose: str, generation: int, node_id: str) -> str:
    """The id of the session of a step for a node: the same at every repetition."""
    return f"{operation_id}/{purpose}/{generation}/{node_id}"


def digest(token: str) -> str:
    """What of a token is stored to compare. Tokens are random, so that a plain hash suffices."""
    return sha256(token.encode()).hexdigest()


_BY_ID = _table.c.id == bindparam("b_id")
_RISE = {"version": _table.c.version + 1}
_STATEMENTS = {
    "hello": update(_table)
    .where(_BY_ID)
    .values(boot_id=bindparam("b_boot"), serial=bindparam("b_serial"), **_RISE),
    "booted": update(_table)
    .where(_BY_ID)
    .values(round=bindparam("b_round"), booted_at=bindparam("b_at"), **_RISE),
    "task": update(_table)
    .where(_BY_ID)
    .values(
        task_id=bindparam("b_task"),
        task_kind=bindparam("b_kind"),
        task_sealed=bindparam("b_sealed"),
        **_RISE,
    ),
    "report": update(_table)
    .where(_BY_ID, _table.c.task_id == bindparam("b_task"))
    .values(
        done=_table.c.done.op("||")(bindparam("b_done", type_=JSONB())),
        task_id=None,
        task_kind=None,
        task_sealed=None,
        **_RISE,
    ),
    "up": update(_table).where(_BY_ID).values(up=bindparam("b_up", type_=JSONB()), **_RISE),
}


class AgentSessions:
    """All sessions of a process. ``run`` must run beside it."""

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._by_id: dict[str, Conversation] = {}
        self._by_token: dict[str, tuple[str, str]] = {}
        self._queue: list[_Change] = []
        self._under_way: Counter[str] = Counter()
        self._waiting = asyncio.Event()

    async def run(self) -> None:
        """Commit changes and fetch those of other processes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._refresh())

    async def open(self, wanted: Sequence[tuple[str, str, str]]) -> dict[str, Conversation]:
        """Sessions by node for (id, node, operation); those that do not exist are opened.

        One that was closed comes back closed, with what was said in it: a step that is repeated
        after its end finds it so.
        """
        found = {key[0]: self._by_id[key[0]] for key in wanted if key[0] in self._by_id}
        missing = [key for key in wanted if key[0] not in found]
        if missing:
            rows = [self._new_row(*key) for key in missing]
            async with self._database.transaction(SCHEMA) as session:
                await session.execute(insert(_table).on_conflict_do_nothing(), rows)
                found |= await self._load(session, [key[0] for key in missing])
        return {node_id: found[id_] for id_, node_id, _ in wanted}

    async def find(self, ids: Sequence[str]) -> dict[str, Conversation]:
        """Sessions by node among ``ids``, of those that exist."""
        missing = [id_ for id_ in ids if id_ not in self._by_id]
        if missing:
            async with self._database.transaction(SCHEMA) as session:
                await self._load(session, missing)
        return {c.node_id: c for id_ in ids if (c := self._by_id.get(id_)) is not None}

    async def of_token(self, token: str, purpose: str) -> Conversation | None:
        """The open session whose ``agent`` or ``phone`` token this is."""
        key = digest(token)
        if key not in self._by_token:
            column = _table.c.agent_digest if purpose == "agent" else _table.c.phone_digest
            async with self._database.transaction(SCHEMA) as session:
                found = await session.scalar(select(_table.c.id).where(column == key))
                if found is not None:
                    await self._load(session, [found])
        id_, of = self._by_token.get(key, ("", ""))
        conversation = self._by_id.get(id_)
        if conversation is None or conversation.closed or of != purpose:
            return None
        expected = conversation.agent_token if purpose == "agent" else conversation.phone_token
        return conversation if secrets.compare_digest(expected, token) else None

    async def booted(self, conversation: Conversation, round_: int) -> None:
        """Note that boot number ``round_`` was ordered."""
        now = self._clock.now()

        def apply() -> None:
            conversation.round, conversation.booted_at = round_, now

        await self._commit("booted", conversation, {"b_round": round_, "b_at": now}, apply)

    async def assign(self, conversation: Conversation, kind: str, params: dict[str, Any]) -> None:
        """Give the agent a task, unless it has one of this kind or has done it."""
        held = conversation.task
        if kind in conversation.done or (held is not None and held.kind == kind):
            return
        task = AgentTask(new_id("task"), kind, params)
        sealed = self._sealer.seal(f"{conversation.id}/task", orjson.dumps(params))

        def apply() -> None:
            conversation.task = task

        values = {"b_task": task.id, "b_kind": kind, "b_sealed": sealed}
        await self._commit("task", conversation, values, apply)

    async def hello(self, conversation: Conversation, boot_id: str, serial: str) -> None:
        """An agent has booted."""

        def apply() -> None:
            conversation.boot_id, conversation.serial = boot_id, serial

        await self._commit("hello", conversation, {"b_boot": boot_id, "b_serial": serial}, apply)

    async def report(self, conversation: Conversation, task_id: str, body: dict[str, Any]) -> bool:
        """An agent reports; false when the task is not wanted (any more).

        Progress is kept in memory only; an end is committed.
        """
        if any(last["task_id"] == task_id for last in conversation.done.values()):
            return True
        task = conversation.task
        if task is None or task.id != task_id:
            return False
        if body["state"] == "running":
            conversation.progress = f"{task.kind} {body['percent']} %"
            return True
        last = {
            "task_id": task_id,
            "state": body["state"],
            "message": body["message"],
            "observed": body["observed"],
            "boot_id": conversation.boot_id,
        }

        def apply() -> None:
            conversation.done[task.kind] = last
            if conversation.task is not None and conversation.task.id == task_id:
                conversation.task = None

        values = {"b_task": task_id, "b_done": {task.kind: last}}
        await self._commit("report", conversation, values, apply)
        return True

    async def up(self, conversation: Conversation, body: dict[str, Any]) -> None:
        """A tenant's system has come up."""

        def apply() -> None:
            conversation.up = body

        await self._commit("up", conversation, {"b_up": body}, apply)

    def closed(self, node_ids: Iterable[str], but_of: str | None) -> None:
        """Forget sessions of nodes whose rows were closed, but those of operation ``but_of``."""
        nodes = set(node_ids)
        for conversation in list(self._by_id.values()):
            if conversation.node_id in nodes and conversation.operation_id != but_of:
                self._forget(conversation)

    async def _commit(
        self,
        kind: str,
        conversation: Conversation,
        values: dict[str, Any],
        apply: Callable[[], None],
    ) -> None:
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def applied() -> None:
            apply()
            conversation.version += 1
            conversation.notify()

        values = {"b_id": conversation.id, **values}
        self._under_way[conversation.id] += 1
        self._queue.append(_Change(kind, conversation.id, values, applied, committed))
        self._waiting.set()
        try:
            await committed
        finally:
            self._under_way[conversation.id] -= 1

    async def _write(self) -> None:
        while True:
            await self._waiting.wait()
            await asyncio.sleep(GROUP_S)
            self._waiting.clear()
            changes, self._queue = self._queue, []
            try:
                await self._write_group(changes)
            except Exception as error:
                log.warning("agent_sessions_not_written", error=str(error)[:300])
                for change in changes:
                    if not change.committed.done():
                        change.committed.set_exception(error)
                continue
            for change in changes:
                change.apply()
                if not change.committed.done():
                    change.committed.set_result(None)

    async def _write_group(self, changes: list[_Change]) -> None:
        async with self._database.transaction(SCHEMA) as session:
            for kind, statement in _STATEMENTS.items():
                rows = [change for change in changes if change.kind == kind]
                if rows:
                    # In the order of ids, so that two processes cannot wait for each other.
                    rows.sort(key=lambda change: change.id)
                    connection = await session.connection()
                    await connection.execute(statement, [change.values for change in rows])

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if not self._by_id:
                continue
            try:
                await self._fetch_changed()
            except Exception as error:
                log.warning("agent_sessions_not_read", error=str(error)[:300])

    async def _fetch_changed(self) -> None:
        known = {id_: c.version for id_, c in self._by_id.items()}
        async with self._database.transaction(SCHEMA) as session:
            rows = await session.execute(
                select(_table.c.id, _table.c.version, _table.c.closed_at).where(
                    _table.c.id == func.any(list(known))
                )
            )
            changed = [r.id for r in rows if r.closed_at or r.version != known[r.id]]
            if changed:
                await self._load(session, changed)

    async def _load(self, session: AsyncSession, ids: Sequence[str]) -> dict[str, Conversation]:
        rows = (
            await session.execute(select(_table).where(_table.c.id == func.any(list(ids))))
        ).mappings()
        return {row["id"]: self._keep(row) for row in rows}

    def _keep(self, row: RowMapping) -> Conversation:
        known = self._by_id.get(row["id"])
        if known is not None and self._under_way[known.id] > 0:
            # The row read may lack what is being committed here; the next look has both.
            return known
        fresh = self._conversation(row)
        if fresh.closed:
            if known is not None:
                self._forget(known)
            return known or fresh
        if known is None:
            self._by_id[fresh.id] = fresh
            self._by_token[row["agent_digest"]] = (fresh.id, "agent")
            self._by_token[row["phone_digest"]] = (fresh.id, "phone")
            return fresh
        for name in ("round", "booted_at", "boot_id", "serial", "task", "done", "up", "version"):
            setattr(known, name, getattr(fresh, name))
        known.notify()
        return known

    def _conversation(self, row: RowMapping) -> Conversation:
        tokens = orjson.loads(self._sealer.open(f"{row['id']}/tokens", row["tokens_sealed"]))
        return Conversation(
            id=row["id"],
            node_id=row["node_id"],
            operation_id=row["operation_id"],
            agent_token=tokens["agent"],
            phone_token=tokens["phone"],
            round=row["round"],
            booted_at=row["booted_at"],
            boot_id=row["boot_id"],
            serial=row["serial"],
            task=self._task(row),
            done=dict(row["done"]),
            up=row["up"],
            closed=row["closed_at"] is not None,
            version=row["version"],
        )

    def _task(self, row: RowMapping) -> AgentTask | None:
        if row["task_id"] is None or row["task_sealed"] is None:
            return None
        params = orjson.loads(self._sealer.open(f"{row['id']}/task", row["task_sealed"]))
        return AgentTask(row["task_id"], row["task_kind"], params)

    def _forget(self, conversation: Conversation) -> None:
        conversation.closed = True
        self._by_id.pop(conversation.id, None)
        self._by_token.pop(digest(conversation.agent_token), None)
        self._by_token.pop(digest(conversation.phone_token), None)
        conversation.notify()

    def _new_row(self, id_: str, node_id: str, operation_id: str) -> dict[str, Any]:
        tokens = {"agent": secrets.token_urlsafe(32), "phone": secrets.token_urlsafe(32)}
        return {
            "id": id_,
            "node_id": node_id,
            "operation_id": operation_id,
            "agent_digest": digest(tokens["agent"]),
            "phone_digest": digest(tokens["phone"]),
            "tokens_sealed": self._sealer.seal(f"{id_}/tokens", orjson.dumps(tokens)),
            "opened_at": self._clock.now(),
        }
