"""Inputs and outputs of the interpreter's own activities, which run on the ordering service's
queue. Contracts only: safe inside a Temporal workflow."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dflare.kit.plan import OperationState, Plan

LOAD = "operation.load"
BEGIN_STEP = "operation.begin_step"
END_STEP = "operation.end_step"
BEGIN_UNDO = "operation.begin_undo"
RETARGET = "operation.retarget"
DEADLINE = "operation.deadline"
FINISH = "operation.finish"


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OperationRef(_Contract):
    """Which attempt of which operation; ``ordering_service`` names the schema and the queue.

    ``heartbeat_s`` is after how many seconds without a sign of life an activity is given to
    another worker. ``continued`` counts the histories of this attempt; each is left for a new one
    after ``max_history`` events, with which activities in flight stay below 5,000 (DESIGN 4.7).
    """

    operation_id: str
    ordering_service: str
    attempt: int
    heartbeat_s: float = 10.0
    max_history: int = 4_000
    continued: int = 0


class OperationView(_Contract):
    """What the interpreter needs of an operation. ``position`` is the index of the step to go on
    with; where ``undoing`` it is the highest step that may have to be undone. ``replacing`` maps a
    stand-in that has not caught up yet to the target that was given up for it. ``parked`` are
    targets that could not be undone, ``messages`` what is left of them to a person."""

    plan: Plan
    targets: tuple[str, ...]
    position: int
    undoing: bool
    cancelled: bool
    reason: str
    generation: int
    organization_id: str | None
    project_id: str | None
    site_id: str | None
    resource_id: str
    trace: dict[str, str]
    replacing: dict[str, str] = {}
    parked: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


class BeginStep(_Contract):
    """Start step ``index``, or its undo."""

    ref: OperationRef
    index: int
    undoing: bool = False


class StepBegun(_Contract):
    """``cancel``: a person asked for it and it is not too late; undo from here instead.

    ``deadline_at`` is wall time, computed from the plan's seconds of the site's clock.
    """

    action: Literal["run", "cancel"]
    deadline_at: datetime


StepEnd = Literal["running", "done", "failed", "undone", "needs_operator"]


class EndStep(_Contract):
    """What came of step ``index``. ``advance`` moves the operation's position behind it."""

    ref: OperationRef
    index: int
    state: StepEnd
    done: int
    failed: int
    message: str = ""
    advance: bool = False


class BeginUndo(_Contract):
    """Turn around: undo from step ``position`` down, for ``reason``."""

    ref: OperationRef
    position: int
    reason: str


class Retarget(_Contract):
    """Targets that were given up and those that stand in for them; the rest as in the view."""

    ref: OperationRef
    removed: tuple[str, ...]
    added: tuple[str, ...]
    replacing: dict[str, str] = {}
    parked: tuple[str, ...] = ()


class Deadline(_Contract):
    """Ask when ``site_seconds`` of the site's clock from now will have passed, in wall time."""

    ref: OperationRef
    site_seconds: float


class Finish(_Contract):
    """End the attempt in ``state`` with a reason for people."""

    ref: OperationRef
    state: OperationState
    reason: str = ""
