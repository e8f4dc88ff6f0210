"""One process that is kept running inside a cluster's namespaces (standard library only)."""

import time
from dataclasses import dataclass, field

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
FORGIVEN_AFTER_S = 30.0

RUNNING, BACKING_OFF, STOPPING, STOPPED = "running", "backing-off", "stopping", "stopped"


@dataclass
class Service:
    """What to run, and where it stands.

    `pid` counts inside the namespaces and is 0 while nothing runs. `failures` counts the ends in a
    row, `restarts` all starts after the first. `ended` says how the last life ended.
    """

    name: str
    argv: list[str]
    env: dict[str, str]
    hostname: str
    log: str
    state: str = STOPPED
    pid: int = 0
    restarts: int = 0
    failures: int = 0
    ended: str = ""
    since: float = field(default_factory=time.time)
    due: float = 0.0

    def started(self, pid: int) -> None:
        """A process began."""
        self.pid, self.state, self.since = pid, RUNNING, time.time()

    def exited(self, status: int, now: float) -> None:
        """The process ended with this wait status; sets when the next start is due (monotonic)."""
        code = status >> 8 if status & 0x7F == 0 else -(status & 0x7F)
        self.ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self.pid = 0
        lived_s = time.time() - self.since
        self.since = time.time()
        if self.state != RUNNING:
            self.state = STOPPED
            return
        self.failures = 1 if lived_s >= FORGIVEN_AFTER_S else self.failures + 1
        delay_s = min(FIRST_DELAY_S * 2 ** min(self.failures - 1, 16), LONGEST_DELAY_S)
        self.state, self.due = BACKING_OFF, now + delay_s
        self.restarts += 1

    def stop(self) -> None:
        """Nobody wants it any more; it is ended by its process, if it has one."""
        self.state = STOPPING if self.pid else STOPPED
        self.failures = 0

    def facts(self) -> dict[str, object]:
        """What `status` tells of it."""
        return {
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "ended": self.ended,
            "since": round(self.since, 3),
        }
