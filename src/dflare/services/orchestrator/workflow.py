"""The one interpreter: a workflow that carries out the stored plan of any operation.

It knows no saga. What it must remember beyond its own history stands in the operation's row and in
the acting services' recorded outcomes, so that an attempt whose history was lost is followed by
one that goes on where it was. Source: DESIGN section 4, points 5 to 8.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from dflare.kit import operation_calls as calls
    from dflare.kit.operation_results import Result, in_short
    from dflare.kit.plan import BATCH_SIZE, STALE_ATTEMPT, OperationState, PlannedStep, SideStep
    from dflare.kit.step_calls import HistoryFullError, StepCaller, StepLine, cause_of

NAME = "OperationWorkflow"
REPLACEMENT_ROUNDS = 3
EXCHANGED_AT_ONCE = 8 * BATCH_SIZE
"""Targets whose exchange (some 30 calls for each batch of them) fits well into one history."""
CANCELLED = "cancelled"

_PROGRESS_EVERY = timedelta(seconds=0.5)


@workflow.defn(name=NAME)
class OperationWorkflow:
    """Interprets one attempt of one operation."""

    def __init__(self) -> None:
        self._ref: calls.OperationRef
        self._view: calls.OperationView
        self._targets: list[str] = []
        self._replacing: dict[str, str] = {}
        self._skip: dict[str, set[str]] = {}
        self._notes: list[str] = []
        self._caller: StepCaller
        self._reported_at: datetime

    @workflow.run
    async def run(self, ref: calls.OperationRef) -> None:
        """Carry the operation out, or undo it; a superseded attempt ends silently."""
        self._ref, self._caller = ref, StepCaller(ref)
        try:
            await self._interpret()
        except HistoryFullError:
            workflow.continue_as_new(ref.model_copy(update={"continued": ref.continued + 1}))
        except ActivityError as error:
            if cause_of(error) != STALE_ATTEMPT:
                raise
            workflow.logger.info("superseded: %s", error.cause)

    async def _interpret(self) -> None:
        self._view = await self._caller.kit(calls.LOAD, self._ref, calls.OperationView)
        self._targets = list(self._view.targets)
        self._replacing = dict(self._view.replacing)
        if self._view.undoing:
            await self._undo(self._view.position, self._view.reason)
            return
        steps = self._view.plan.steps
        for index in range(self._view.position, len(steps)):
            begun = await self._begin(index)
            if begun.action == "cancel":
                await self._turn_around(index, CANCELLED)
                return
            trouble = await self._step(index, begun.deadline_at)
            if trouble is not None:
                await self._give_up(index, trouble)
                return
            self._caller.leave_if_long()
        await self._finish(OperationState.SUCCEEDED, "; ".join(self._notes))

    async def _give_up(self, index: int, trouble: str) -> None:
        commit = self._view.plan.commit_index
        if commit is not None and index > commit:
            await self._finish(OperationState.NEEDS_OPERATOR, trouble)
        elif not self._view.plan.takes_back(index):
            # A release whose beginning fails has only one way to go.
            again = f"dflare operation retry {self._ref.operation_id}"
            await self._finish(
                OperationState.NEEDS_OPERATOR,
                f"{trouble}; remove the cause, then go on with `{again}`",
            )
        else:
            await self._turn_around(index, trouble)

    async def _turn_around(self, index: int, reason: str) -> None:
        await self._undo(max(index, self._view.plan.undo_from), reason)

    # --- forward -------------------------------------------------------------------------------

    async def _step(self, index: int, deadline_at: datetime) -> str | None:
        """Carry out one step for all targets; what is wrong, if the operation cannot go on."""
        step = self._view.plan.steps[index]
        pairs, self._replacing = self._replacing, {}
        waiting = {*pairs, *pairs.values()}
        targets = [t for t in self._going(step) if t not in waiting]
        line = StepLine(step.name, index, step.per_site, deadline_at, dict(step.params))

        async def progress(so_far: Result) -> None:
            await self._report(index, so_far)

        result = await self._caller.call(self._view, line, targets, progress)
        trouble, notes = None, len(self._notes)
        if result.failed or pairs:
            trouble = await self._settle(index, result, pairs)
        await self._end(
            index,
            "done" if trouble is None else "failed",
            result,
            trouble or "; ".join(self._notes[notes:]),
            advance=trouble is None,
        )
        return trouble

    def _going(self, step: PlannedStep) -> list[str]:
        """The targets of a step: without those in quarantine, where the step is the like of the
        one that could not be done for them."""
        if step.on == "resource":
            return [self._view.resource_id]
        if step.quarantine is None:
            return list(self._targets)
        return [t for t in self._targets if step.service not in self._skip.get(t, ())]

    async def _settle(self, index: int, result: Result, pairs: dict[str, str]) -> str | None:
        """Deal with targets that failed: replace them, put them into quarantine, or give up."""
        step = self._view.plan.steps[index]
        if step.replaceable and self._view.plan.replace is not None:
            return await self._replace(index, result, pairs)
        if step.quarantine is not None:
            quarantine = SideStep(name=step.quarantine, per_site=step.per_site)
            stuck = await self._side(quarantine, index, result.failed, step.name)
            for target in result.failed:
                self._skip.setdefault(target, set()).add(step.service)
            self._notes.append(f"in quarantine: {result.describe(step.name)}")
            return None if not stuck else f"not even quarantine: {in_short(stuck)}"
        return result.describe(step.name)

    async def _replace(self, index: int, result: Result, pairs: dict[str, str]) -> str | None:
        """Exchange failed targets for stand-ins, for a bounded number of rounds."""
        step = self._view.plan.steps[index]
        why = result.describe(step.name) if result.failed else f"{step.name} was interrupted"
        failed = dict(result.failed)
        rounds = 0
        while True:
            if pairs:
                failed |= await self._exchange(index, pairs, result)
            if failed and result.beyond_replacing:
                return why if failed == result.failed else _failed_too(why, failed)
            if not failed:
                self._notes.append(f"replaced: {why}")
                return None
            if rounds == REPLACEMENT_ROUNDS:
                return _failed_too(why, failed)
            rounds += 1
            found = await self._stand_ins(index, failed)
            if found.failed:
                return f"{why}; {in_short(found.failed)}"
            pairs = {new: old for old, new in found.results.items()}
            failed = {}

    async def _stand_ins(self, index: int, failed: dict[str, str]) -> Result:
        """Ask for a stand-in for each failed target; those found belong to the operation at once,
        so that an undo finds them."""
        replace = self._view.plan.replace
        assert replace is not None
        deadline_at = await self._deadline(replace.deadline_s)
        line = StepLine(replace.name, index, replace.per_site, deadline_at, {})
        found = await self._caller.call(self._view, line, list(failed))
        pairs = {new: old for old, new in found.results.items()}
        # A stand-in that failed in its turn stood for a target that was taken back already.
        gone = [self._replacing[t] for t in failed if t in self._replacing]
        await self._retarget(gone, list(pairs), replacing=pairs)
        return found

    async def _exchange(self, index: int, pairs: dict[str, str], result: Result) -> dict[str, str]:
        """Exchange targets given up for their stand-ins; returns the stand-ins that failed, with
        the reason. Some at a time, so that one history is long enough to see each portion end."""
        self._replacing = dict(pairs)
        failed: dict[str, str] = {}
        new = list(pairs)
        for start in range(0, len(new), EXCHANGED_AT_ONCE):
            portion = {n: pairs[n] for n in new[start : start + EXCHANGED_AT_ONCE]}
            failed |= await self._exchange_some(index, portion, result)
        return failed

    async def _exchange_some(
        self, index: int, pairs: dict[str, str], result: Result
    ) -> dict[str, str]:
        """Take back what was done to the targets given up, bring their stand-ins to where the
        others are, and go on with those."""
        await self._take_back_given_up(index, list(pairs.values()))
        fresh = list(pairs)
        failed: dict[str, str] = {}
        for earlier in range(index + 1):
            step = self._view.plan.steps[earlier]
            if step.on == "resource" or not fresh:
                continue
            line = StepLine(
                step.name,
                earlier,
                step.per_site,
                await self._deadline(step.deadline_s),
                dict(step.params),
            )
            came = await self._caller.call(self._view, line, fresh)
            fresh = [t for t in fresh if t in set(came.done)]
            failed |= came.failed
            result.shared.update(came.shared)
        gone = [old for new, old in pairs.items() if new not in failed]
        self._replacing = {n: old for n, old in self._replacing.items() if old not in set(gone)}
        await self._retarget(gone, [], replacing=self._replacing)
        result.done.extend(fresh)
        for old in gone:
            result.failed.pop(old, None)
        return failed

    async def _take_back_given_up(self, index: int, targets: Sequence[str]) -> None:
        for earlier in range(index, -1, -1):
            step = self._view.plan.steps[earlier]
            if step.undo is None or step.on == "resource":
                continue
            going = [t for t in targets if step.service not in self._skip.get(t, ())]
            for target in await self._take_back(
                earlier, going, await self._deadline(step.undo_deadline_s)
            ):
                self._skip.setdefault(target, set()).add(step.service)

    # --- backward ------------------------------------------------------------------------------

    async def _undo(self, position: int, reason: str) -> None:
        """Undo from ``position`` down. What cannot be undone is parked and left to a person."""
        begin = calls.BeginUndo(ref=self._ref, position=position, reason=reason)
        await self._caller.kit(calls.BEGIN_UNDO, begin)
        parked = list(self._view.parked)
        messages = list(self._view.messages)
        for index in range(position, -1, -1):
            step = self._view.plan.steps[index]
            if step.undo is None:
                continue
            begun = await self._begin(index, undoing=True)
            going = [t for t in self._going_back(step) if t not in parked]
            left = await self._take_back(index, going, begun.deadline_at)
            result = Result(len(going), [t for t in going if t not in left], left)
            message = f"{step.undo}: {in_short(left)}" if left else ""
            if left and step.on == "nodes":
                parked += left
                await self._retarget([], [], parked=parked)
            if left:
                messages.append(message)
            await self._end(index, "needs_operator" if left else "undone", result, message)
            self._caller.leave_if_long()
        await self._end_undo(parked, messages, reason)

    async def _end_undo(self, parked: list[str], messages: list[str], reason: str) -> None:
        if not messages:
            cancelled = reason == CANCELLED
            state = OperationState.CANCELLED if cancelled else OperationState.FAILED
            await self._finish(state, reason)
            return
        # The other nodes may be somebody else's from now on: a resume must not touch them.
        await self._retarget([t for t in self._targets if t not in parked], [], parked=parked)
        await self._finish(
            OperationState.NEEDS_OPERATOR, f"{reason}; not undone: {'; '.join(messages)}"
        )

    def _going_back(self, step: PlannedStep) -> list[str]:
        return [self._view.resource_id] if step.on == "resource" else list(self._targets)

    async def _take_back(
        self, index: int, targets: Sequence[str], deadline_at: datetime
    ) -> dict[str, str]:
        """Call a step's undo; nodes that it could not be done for are parked and returned."""
        step = self._view.plan.steps[index]
        assert step.undo is not None
        line = StepLine(
            step.undo,
            index,
            step.per_site,
            deadline_at,
            dict(step.params),
            undoing=True,
            patient=True,
        )
        result = await self._caller.call(self._view, line, targets)
        if result.failed and step.on == "nodes":
            for side in self._view.plan.park:
                stuck = await self._side(side, index, result.failed, step.undo, undoing=True)
                for target, reason in stuck.items():
                    result.failed[target] += f" ({side.name}: {reason})"
        return result.failed

    async def _side(
        self,
        side: SideStep,
        index: int,
        failed: dict[str, str],
        failing_step: str,
        *,
        undoing: bool = False,
    ) -> dict[str, str]:
        """Call a side step for failed targets, by reason; returns those that it failed for."""
        by_reason: dict[str, list[str]] = {}
        for target, reason in failed.items():
            by_reason.setdefault(reason, []).append(target)
        stuck: dict[str, str] = {}
        for reason, targets in by_reason.items():
            line = StepLine(
                side.name,
                index,
                side.per_site,
                await self._deadline(side.deadline_s),
                {"reason": f"{failing_step}: {reason}"[:500]},
                undoing=undoing,
                patient=True,
            )
            stuck |= (await self._caller.call(self._view, line, targets)).failed
        return stuck

    # --- what people see and the row remembers ------------------------------------------------

    async def _report(self, index: int, result: Result) -> None:
        """Show progress as batches finish, but seldom: each is an event that people receive."""
        now = workflow.now()
        if len(result.done) == result.total or now - self._reported_at < _PROGRESS_EVERY:
            return
        self._reported_at = now
        await self._end(index, "running", result, "")

    async def _begin(self, index: int, *, undoing: bool = False) -> calls.StepBegun:
        self._reported_at = workflow.now()
        begin = calls.BeginStep(ref=self._ref, index=index, undoing=undoing)
        return await self._caller.kit(calls.BEGIN_STEP, begin, calls.StepBegun)

    async def _end(
        self,
        index: int,
        state: calls.StepEnd,
        result: Result,
        message: str,
        *,
        advance: bool = False,
    ) -> None:
        await self._caller.kit(
            calls.END_STEP,
            calls.EndStep(
                ref=self._ref,
                index=index,
                state=state,
                done=len(result.done),
                failed=len(result.failed),
                message=message,
                advance=advance,
            ),
        )

    async def _finish(self, state: OperationState, reason: str) -> None:
        await self._caller.kit(
            calls.FINISH, calls.Finish(ref=self._ref, state=state, reason=reason)
        )

    async def _retarget(
        self,
        removed: Sequence[str],
        added: Sequence[str],
        *,
        replacing: Mapping[str, str] | None = None,
        parked: Sequence[str] = (),
    ) -> None:
        gone = set(removed)
        self._targets = [t for t in self._targets if t not in gone]
        self._targets += [t for t in added if t not in self._targets]
        await self._caller.kit(
            calls.RETARGET,
            calls.Retarget(
                ref=self._ref,
                removed=tuple(removed),
                added=tuple(added),
                replacing=dict(replacing or {}),
                parked=tuple(parked),
            ),
        )

    async def _deadline(self, site_seconds: float) -> datetime:
        ask = calls.Deadline(ref=self._ref, site_seconds=site_seconds)
        return await self._caller.kit(calls.DEADLINE, ask, datetime)


def _failed_too(why: str, failed: Mapping[str, str]) -> str:
    return f"{why}; stand-ins failed too: {in_short(failed)}"
