"""Inputs and outputs of the interpreter's own activities, which run on the ordering service's
queue. Contracts only: safe inside a Temporal workflow."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dflare.kit.plan import OperationState, Plan

LOAD = "operation.load"
BEGIN_STEP = "operation.begin_step"
END_STEP = "operation.end_step"
RETARGET = "operation.retarget"
FINISH = "operation.finish"


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OperationRef(_Contract):
    """Which attempt of which operation; ``ordering_service`` names the schema and the queue."""

    operation_id: str
    ordering_service: str
    attempt: int


class OperationView(_Contract):
    """What the interpreter needs of an operation. ``position`` is the index of the step to go on
    with; where ``undoing`` it is the highest step that may have to be undone."""

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
    targets: tuple[str, ...]
    deadline_at: datetime


class EndStep(_Contract):
    """What came of step ``index``. ``advance`` moves the operation's position behind it."""

    ref: OperationRef
    index: int
    state: Literal["running", "done", "failed", "undone", "needs_operator"]
    done: int
    failed: int
    message: str = ""
    advance: bool = False


class Retarget(_Contract):
    """Targets that were given up and those that stand in for them."""

    ref: OperationRef
    removed: tuple[str, ...]
    added: tuple[str, ...]


class Finish(_Contract):
    """End the attempt in ``state`` with a reason for people."""

    ref: OperationRef
    state: OperationState
    reason: str = ""
