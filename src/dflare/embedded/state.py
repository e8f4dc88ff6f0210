"""What the supervisor tells about itself in `run/state.json`."""

import secrets
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dflare.embedded.identity import ProcessIdentity


class ComponentState(StrEnum):
    """Where a component stands. `done` is a step that ran once and succeeded; `absent` an optional
    component that this machine cannot have."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    BACKING_OFF = "backing-off"
    DONE = "done"
    STOPPED = "stopped"
    ABSENT = "absent"


READY_STATES = frozenset({ComponentState.HEALTHY, ComponentState.DONE})
CRASH_LOOP_FAILURES = 3


class ComponentStatus(BaseModel):
    """One component as seen by its supervisor. `since` is UTC in ISO 8601; `failures` counts the
    starts that failed in a row, `restarts` all of them since the supervisor began."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: ComponentState = ComponentState.WAITING
    since: str = ""
    process: ProcessIdentity | None = None
    external: bool = False
    optional: bool = False
    restarts: int = 0
    failures: int = 0
    detail: str = ""
    log: str = ""

    @property
    def is_ready(self) -> bool:
        return self.state in READY_STATES

    @property
    def in_crash_loop(self) -> bool:
        return self.failures >= CRASH_LOOP_FAILURES


class SupervisorState(BaseModel):
    """The whole file. `failure` is set when the supervisor gave up before it began."""

    model_config = ConfigDict(frozen=True)

    supervisor: ProcessIdentity
    version: str
    urls: dict[str, str] = {}
    components: tuple[ComponentStatus, ...] = ()
    warnings: tuple[str, ...] = ()
    failure: str = ""
    stopped: bool = False

    @property
    def is_ready(self) -> bool:
        needed = [item for item in self.components if not item.optional]
        return bool(needed) and all(item.is_ready for item in needed)

    @property
    def processes(self) -> list[ProcessIdentity]:
        return [item.process for item in self.components if item.process is not None]


def read_state(path: Path) -> SupervisorState | None:
    """The last state written; None when there is none or it cannot be understood."""
    try:
        return SupervisorState.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_state(path: Path, state: SupervisorState) -> None:
    """Replaces the file whole, so that no reader meets half of it. Raises `OSError`."""
    staged = path.with_suffix(f".{secrets.token_hex(4)}.new")
    staged.write_text(state.model_dump_json(indent=2) + "\n")
    staged.replace(path)
