"""Operations in the schema of the service that was ordered: creation, transitions, progress.

PostgreSQL is the truth about an operation. Every change locks its row, raises its version and
emits ``operation.changed`` with the whole public document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.errors import ConflictError, NotFoundError, StaleAttemptError
from dflare.kit.outbox import Event
from dflare.kit.plan import FINAL_STATES, OperationState, Plan
from dflare.kit.tables import KitTables

_ALLOWED: Mapping[OperationState, frozenset[OperationState]] = {
    OperationState.PENDING: frozenset(
        {OperationState.RUNNING, OperationState.UNDOING, OperationState.CANCELLED}
    ),
    OperationState.RUNNING: frozenset(
        {OperationState.SUCCEEDED, OperationState.UNDOING, OperationState.NEEDS_OPERATOR}
    ),
    OperationState.UNDOING: frozenset(
        {OperationState.FAILED, OperationState.CANCELLED, OperationState.NEEDS_OPERATOR}
    ),
    OperationState.NEEDS_OPERATOR: frozenset({OperationState.RUNNING, OperationState.UNDOING}),
    OperationState.FAILED: frozenset({OperationState.PENDING}),
    OperationState.SUCCEEDED: frozenset(),
    OperationState.CANCELLED: frozenset(),
}


def check_transition(old: OperationState, new: OperationState) -> None:
    """The one transition function of operations.

    Raises:
        ConflictError: ``new`` does not follow ``old``.
    """
    if new is not old and new not in _ALLOWED[old]:
        raise ConflictError(
            f"an operation that is {old} cannot become {new}",
            next_step="Look at it with `dflare operation show`.",
        )


@dataclass(frozen=True)
class NewOperation:
    """An order to store. ``targets`` are node ids, or empty where the resource is the target.

    One that ``waits`` for something outside itself, for the ``reason`` given, stands at attempt 0,
    which nobody starts, until whoever it waits for gives it its targets and its first attempt.
    """

    id: str
    kind: str
    organization_id: str | None
    project_id: str | None
    site_id: str | None
    resource_kind: str
    resource_id: str
    plan: Plan
    targets: Sequence[str]
    created_by: str
    trace: dict[str, str]
    waits: bool = False
    reason: str = ""


async def create_operation(
    session: AsyncSession, kit: KitTables, new: NewOperation, now: datetime
) -> None:
    """Store an operation in state ``pending`` with its planned steps, and emit it."""
    await session.execute(
        insert(kit.operation).values(
            id=new.id,
            kind=new.kind,
            organization_id=new.organization_id,
            project_id=new.project_id,
            site_id=new.site_id,
            resource_kind=new.resource_kind,
            resource_id=new.resource_id,
            state=OperationState.PENDING,
            since=now,
            plan=new.plan.model_dump(mode="json"),
            targets=list(new.targets),
            created_by=new.created_by,
            created_at=now,
            trace=new.trace,
            attempt=0 if new.waits else 1,
            reason=new.reason,
        )
    )
    await session.execute(
        insert(kit.operation_step),
        [
            {
                "operation_id": new.id,
                "index": index,
                "name": step.name,
                "state": "planned",
                "total": len(new.targets) if step.on == "nodes" else 1,
            }
            for index, step in enumerate(new.plan.steps)
        ],
    )
    row = await lock_operation(session, kit, new.id)
    await emit_operation(session, kit, row, now)


async def lock_operation(
    session: AsyncSession, kit: KitTables, operation_id: str, attempt: int | None = None
) -> RowMapping:
    """The operation's row, locked until the transaction ends.

    Raises:
        NotFoundError: there is none in this schema.
        StaleAttemptError: ``attempt`` is given and is not the operation's present one.
    """
    query = select(kit.operation).where(kit.operation.c.id == operation_id).with_for_update()
    row = (await session.execute(query)).mappings().first()
    if row is None:
        raise NotFoundError(f"there is no operation {operation_id}")
    if attempt is not None and row["attempt"] != attempt:
        raise StaleAttemptError(f"{operation_id}: attempt {attempt}, now {row['attempt']}")
    return row


async def change_operation(
    session: AsyncSession,
    kit: KitTables,
    row: RowMapping,
    now: datetime,
    *,
    state: OperationState | None = None,
    **values: Any,
) -> RowMapping:
    """Change a locked operation and emit it. ``state`` passes the transition function.

    Raises:
        ConflictError: the state may not follow the present one.
    """
    if state is not None:
        check_transition(OperationState(row["state"]), state)
        if state != row["state"]:
            values |= {"state": state, "since": now}
        values["finished_at"] = now if state in FINAL_STATES else None
    values["version"] = row["version"] + 1
    changed = (
        (
            await session.execute(
                update(kit.operation)
                .where(kit.operation.c.id == row["id"])
                .values(**values)
                .returning(kit.operation)
            )
        )
        .mappings()
        .one()
    )
    await emit_operation(session, kit, changed, now)
    return changed


async def set_step(
    session: AsyncSession, kit: KitTables, operation_id: str, index: int, **values: Any
) -> None:
    """Change what people see of one step."""
    step = kit.operation_step
    await session.execute(
        update(step)
        .where(step.c.operation_id == operation_id, step.c.index == index)
        .values(**values)
    )


async def operation_document(
    session: AsyncSession, kit: KitTables, row: Mapping[Any, Any]
) -> dict[str, Any]:
    """The operation as people see it: its row without the plan's inputs, and its steps."""
    step = kit.operation_step
    steps = (
        (
            await session.execute(
                select(step).where(step.c.operation_id == row["id"]).order_by(step.c.index)
            )
        )
        .mappings()
        .all()
    )
    return {
        "id": row["id"],
        "service": kit.schema,
        "kind": row["kind"],
        "organization_id": row["organization_id"],
        "project_id": row["project_id"],
        "site_id": row["site_id"],
        "resource_kind": row["resource_kind"],
        "resource_id": row["resource_id"],
        "state": row["state"],
        "reason": row["reason"],
        "since": _iso(row["since"]),
        "attempt": row["attempt"],
        "cancel_requested": row["cancel_requested"],
        "targets": len(row["targets"]),
        "created_by": row["created_by"],
        "created_at": _iso(row["created_at"]),
        "finished_at": _iso(row["finished_at"]),
        "version": row["version"],
        "steps": [
            {
                "index": s["index"],
                "name": s["name"],
                "state": s["state"],
                "total": s["total"],
                "done": s["done"],
                "failed": s["failed"],
                "message": s["message"],
                "started_at": _iso(s["started_at"]),
                "finished_at": _iso(s["finished_at"]),
            }
            for s in steps
        ],
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


async def emit_operation(
    session: AsyncSession, kit: KitTables, row: Mapping[Any, Any], now: datetime
) -> None:
    """Emit ``operation.changed`` for a locked row."""
    await outbox.emit(
        session,
        kit,
        [
            Event(
                type="operation.changed",
                resource_kind="operation",
                resource_id=row["id"],
                resource_version=row["version"],
                at=now,
                data=await operation_document(session, kit, row),
                organization_id=row["organization_id"],
                project_id=row["project_id"],
                site_id=row["site_id"],
                operation_id=row["id"],
            )
        ],
    )


async def save_outcomes(
    session: AsyncSession, kit: KitTables, rows: Sequence[dict[str, Any]]
) -> None:
    """Insert or replace step outcomes (columns of ``step_outcome``)."""
    if not rows:
        return
    # One statement for every number of rows, which is compiled once.
    statement = upsert(kit.step_outcome)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=["operation_id", "step", "target"],
            set_={name: statement.excluded[name] for name in ("state", "reason", "observed", "at")},
        ),
        list(rows),
    )
