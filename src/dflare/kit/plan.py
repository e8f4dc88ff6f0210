"""What an operation is made of: its stored plan, and the calls of its steps.

Contracts only. The interpreter (``services.orchestrator.workflow``) and the acting services both
import this; it is safe inside a Temporal workflow.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BATCH_SIZE = 64
"""Targets of one activity (DESIGN section 4.7)."""


STALE_ATTEMPT = "StaleAttempt"
"""Type of the application error that ends a zombie's workflow."""

STORE_UNAVAILABLE = "StoreUnavailable"
"""Type of the application error of a step whose database does not answer."""


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OperationState(StrEnum):
    """Life of an operation. ``needs_operator`` ends only by a person's retry, resume or cancel."""

    PENDING = "pending"
    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NEEDS_OPERATOR = "needs_operator"


FINAL_STATES = frozenset(
    {OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED}
)
RESTING_STATES = FINAL_STATES | {OperationState.NEEDS_OPERATOR}
"""States in which no workflow runs."""


class PlannedStep(_Contract):
    """One step of a saga.

    ``name`` is ``<service>.<verb>@<version>`` and the activity's name. ``on`` says whether its
    targets are the operation's nodes or the ordered resource alone. ``deadline_s`` is in seconds of
    the site's clock. ``undo`` is the step that takes it back, on the same service's queue; a step
    without one says why beside its declaration. After the ``commit`` step an order can no longer be
    cancelled. Targets that fail a ``replaceable`` step are replaced from the pool; targets that
    fail a step with a ``quarantine`` step are handed to that and the operation goes on (a release
    must).
    """

    name: str = Field(pattern=r"^[a-z]+\.[a-z_]+@[1-9][0-9]*$")
    on: Literal["nodes", "resource"] = "nodes"
    per_site: bool = True
    params: dict[str, str] = {}
    deadline_s: float = 600
    undo: str | None = None
    undo_deadline_s: float = 600
    commit: bool = False
    replaceable: bool = False
    quarantine: str | None = None

    @property
    def service(self) -> str:
        """The acting service."""
        return self.name.partition(".")[0]


class SideStep(_Contract):
    """A step that the interpreter calls beside the line of steps, on nodes alone."""

    name: str = Field(pattern=r"^[a-z]+\.[a-z_]+@[1-9][0-9]*$")
    per_site: bool = True
    deadline_s: float = 600

    @property
    def service(self) -> str:
        """The acting service."""
        return self.name.partition(".")[0]


class Plan(_Contract):
    """The stored plan of an operation: ``saga`` names the declaration it came from.

    An undo begins at step ``undo_from`` at least: what an order holds before its first step, such
    as reserved nodes, is given back by that step's undo. ``replace`` finds a stand-in for each
    target that failed a replaceable step (its result is the stand-in's id). ``park`` makes targets
    safe that an undo could not take back.
    """

    saga: str
    steps: tuple[PlannedStep, ...]
    undo_from: int = 0
    replace: SideStep | None = None
    park: tuple[SideStep, ...] = ()

    @property
    def commit_index(self) -> int | None:
        """The step behind which nothing is undone; ``None`` where the plan has none."""
        return next((i for i, step in enumerate(self.steps) if step.commit), None)

    def takes_back(self, index: int) -> bool:
        """Whether an operation that cannot go on at step ``index`` has anything to undo."""
        return any(step.undo for step in self.steps[: max(index, self.undo_from) + 1])

    def with_params(self, step: str, **params: str) -> "Plan":
        """The plan with ``params`` added to the steps named ``step``."""
        return self.model_copy(
            update={
                "steps": tuple(
                    one.model_copy(update={"params": {**one.params, **params}})
                    if one.name == step
                    else one
                    for one in self.steps
                )
            }
        )


class StepCall(_Contract):
    """Input of a step's activity: ids and scalars only.

    ``attempt`` and ``generation`` come from the operation: the first rises when a workflow is
    started anew, the second when a finished undo is followed by a retry from the beginning.
    ``deadline_at`` is wall time. ``batch`` is unique within the attempt.
    """

    operation_id: str
    ordering_service: str
    attempt: int
    generation: int = 1
    step: str
    index: int
    undoing: bool = False
    batch: str
    organization_id: str | None = None
    project_id: str | None = None
    site_id: str | None = None
    resource_id: str
    targets: tuple[str, ...]
    params: dict[str, str] = {}
    deadline_at: datetime
    trace: dict[str, str] = {}

    @property
    def outcome_key(self) -> str:
        """What a target's outcome of this step is stored under.

        The index and the direction belong to it: two steps of a plan may share one undo.
        """
        way = "undo" if self.undoing else "do"
        return f"{self.step}#{self.generation}.{self.index}.{way}"


class StepReport(_Contract):
    """Output of a step's activity. Every target of the call stands in exactly one of the three.

    ``pending`` targets were not finished at the deadline of the activity; ``failed`` maps a target
    to the reason; ``results`` maps targets to an id that the step made for them, if it makes one.
    ``shared`` are failed targets whose reason is not their own: a stand-in would meet it too.
    """

    done: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    results: dict[str, str] = {}
    shared: tuple[str, ...] = ()
