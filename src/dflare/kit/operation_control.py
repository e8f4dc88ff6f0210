"""What people may do to an operation: cancel, retry, resume. Each changes its row alone; the relay
and the interpreter see it there."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import RowMapping, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ConflictError
from dflare.kit.operations import change_operation, lock_operation, operation_document
from dflare.kit.plan import FINAL_STATES, OperationState, Plan
from dflare.kit.tables import KitTables


class OperationStateError(ConflictError):
    """The operation's state does not allow what was asked."""

    slug, title = "operation-state", "Operation not in that state"


class TooLateError(ConflictError):
    """The operation went past its commit step, where nothing is undone."""

    slug, title = "too-late", "Too late to cancel"


Document = dict[str, Any]

_END: Final = {
    OperationState.SUCCEEDED: "has succeeded",
    OperationState.FAILED: "has failed",
    OperationState.CANCELLED: "is cancelled",
}


async def cancel(database: Database, kit: KitTables, operation_id: str, clock: Clock) -> Document:
    """Ask for an operation to be undone.

    Raises:
        NotFoundError: there is none in this schema.
        OperationStateError: it has ended, is being undone, or was as far as it could.
        TooLateError: its commit step has begun.
    """
    async with database.transaction(kit.schema) as session:
        row = await lock_operation(session, kit, operation_id)
        state = OperationState(row["state"])
        if state in FINAL_STATES:
            raise OperationStateError(
                f"the operation {_END[state]}", next_step="There is nothing left to cancel."
            )
        if state is OperationState.UNDOING:
            raise OperationStateError(
                "the operation is being undone already", next_step="Watch it end."
            )
        await _refuse_committed(session, kit, row)
        if state is OperationState.NEEDS_OPERATOR:
            raise OperationStateError(
                "the operation was undone as far as it could be",
                next_step="Remove the cause that its reason names, then resume it.",
            )
        # One that waits at attempt 0 is started, to find out at once that it was cancelled.
        row = await change_operation(
            session, kit, row, clock.now(), cancel_requested=True, attempt=max(row["attempt"], 1)
        )
        return await operation_document(session, kit, row)


async def resume(database: Database, kit: KitTables, operation_id: str, clock: Clock) -> Document:
    """Go on with an operation that waits for a person, in the direction it went.

    Raises:
        NotFoundError: there is none in this schema.
        OperationStateError: it does not wait for a person.
    """
    async with database.transaction(kit.schema) as session:
        row = await lock_operation(session, kit, operation_id)
        if row["state"] != OperationState.NEEDS_OPERATOR:
            raise OperationStateError(
                f"the operation is {row['state']}; only one that needs an operator is resumed",
                next_step="Watch it, or retry it if it failed.",
            )
        row = await _begin_anew(session, kit, row, clock)
        return await operation_document(session, kit, row)


async def check_retry(database: Database, kit: KitTables, operation_id: str) -> None:
    """Whether an operation may be retried, before anything is reserved for it.

    Raises:
        NotFoundError: there is none in this schema.
        OperationStateError: as for ``retry``.
    """
    async with database.transaction(kit.schema) as session:
        row = await lock_operation(session, kit, operation_id)
        if not await _stands_at_its_start(session, kit, row):
            _refuse_unfailed(row)


async def retry(
    database: Database,
    kit: KitTables,
    operation_id: str,
    clock: Clock,
    targets: Sequence[str] | None = None,
) -> Document:
    """Begin a failed operation from its first step, with new targets where given.

    One that waits for a person with nothing committed and nothing to undo, such as a release that
    could not begin, goes on with the targets that it has.

    Raises:
        NotFoundError: there is none in this schema.
        OperationStateError: it has neither failed nor waits at its start.
    """
    async with database.transaction(kit.schema) as session:
        row = await lock_operation(session, kit, operation_id)
        if await _stands_at_its_start(session, kit, row):
            row = await _begin_anew(session, kit, row, clock)
            return await operation_document(session, kit, row)
        _refuse_unfailed(row)
        wanted = list(row["targets"] if targets is None else targets)
        step = kit.operation_step
        for index, planned in enumerate(Plan.model_validate(row["plan"]).steps):
            await session.execute(
                update(step)
                .where(step.c.operation_id == operation_id, step.c.index == index)
                .values(
                    state="planned",
                    total=len(wanted) if planned.on == "nodes" else 1,
                    done=0,
                    failed=0,
                    message="",
                    started_at=None,
                    finished_at=None,
                )
            )
        row = await change_operation(
            session,
            kit,
            row,
            clock.now(),
            state=OperationState.PENDING,
            reason="",
            position=0,
            targets=wanted,
            attempt=row["attempt"] + 1,
            generation=row["generation"] + 1,
            cancel_requested=False,
            replacing={},
        )
        return await operation_document(session, kit, row)


def _refuse_unfailed(row: RowMapping) -> None:
    if row["state"] != OperationState.FAILED:
        raise OperationStateError(
            f"the operation is {row['state']}; only a failed one is retried",
            next_step="Watch it, or resume it if it needs an operator.",
        )


async def _states_of_steps(
    session: AsyncSession, kit: KitTables, row: RowMapping
) -> dict[int, str]:
    step = kit.operation_step
    query = select(step.c.index, step.c.state).where(step.c.operation_id == row["id"])
    return {one["index"]: one["state"] for one in (await session.execute(query)).mappings()}


async def _stands_at_its_start(session: AsyncSession, kit: KitTables, row: RowMapping) -> bool:
    """Whether it waits for a person at a step up to which nothing has to be undone."""
    plan = Plan.model_validate(row["plan"])
    if row["state"] != OperationState.NEEDS_OPERATOR or plan.takes_back(row["position"]):
        return False
    commit = plan.commit_index
    states = await _states_of_steps(session, kit, row)
    return commit is None or states[commit] != "done"


async def _refuse_committed(session: AsyncSession, kit: KitTables, row: RowMapping) -> None:
    commit = Plan.model_validate(row["plan"]).commit_index
    if commit is None:
        return
    # An operation that begins with its commit, such as a release, was decided when it was ordered.
    if commit == 0 or (await _states_of_steps(session, kit, row))[commit] != "planned":
        raise TooLateError(
            "the operation went past the step from which on nothing is undone",
            next_step="Let it end; release what it made if you do not want it.",
        )


async def _begin_anew(
    session: AsyncSession, kit: KitTables, row: RowMapping, clock: Clock
) -> RowMapping:
    """A new attempt, in the direction that the operation went, which forgets recorded outcomes.

    Outcomes are kept by generation, so that a new one asks failed targets again; the steps
    themselves look at the world first.
    """
    step = kit.operation_step
    states = await _states_of_steps(session, kit, row)
    stuck = [index for index, state in states.items() if state == "needs_operator"]
    undoing = bool(stuck) or "undone" in states.values()
    await session.execute(
        update(step)
        .where(step.c.operation_id == row["id"], step.c.state.in_(["needs_operator", "failed"]))
        .values(state="undone" if undoing else "planned", message="", started_at=None)
    )
    return await change_operation(
        session,
        kit,
        row,
        clock.now(),
        state=OperationState.UNDOING if undoing else OperationState.RUNNING,
        position=max(stuck, default=row["position"]),
        attempt=row["attempt"] + 1,
        generation=row["generation"] + 1,
        replacing={},
    )
