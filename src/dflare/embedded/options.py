"""What `dflare up` was asked for, handed to the supervisor in `run/options.json`."""

import secrets
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class HardwareTime(StrEnum):
    """How long simulated hardware takes: `zero` answers at once, at the site clock of 1x."""

    ZERO = "zero"
    NORMAL = "normal"


class UpOptions(BaseModel):
    """The options of one start. `speed` is site seconds per wall second, None for the default
    of the hardware time; `only` restricts the start to these components."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=64, ge=1)
    speed: float | None = Field(default=None, ge=1, le=600)
    hardware_time: HardwareTime = HardwareTime.NORMAL
    gateway_host: str = "127.0.0.1"
    gateway_port: int | None = Field(default=None, ge=1, le=65535)
    postgres_url: str | None = None
    temporal_address: str | None = None
    temporal_ui: bool = False
    only: tuple[str, ...] = ()

    @property
    def chosen_speed(self) -> float:
        if self.speed is not None:
            return self.speed
        return 1.0 if self.hardware_time is HardwareTime.ZERO else 60.0

    @classmethod
    def read(cls, path: Path) -> "UpOptions":
        """The options of the last `dflare up`; the defaults where there was none."""
        if not path.exists():
            return cls()
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Keeps the options; closed to others because a database URL holds a password."""
        staged = path.with_suffix(f".{secrets.token_hex(4)}.new")
        staged.touch(mode=0o600)
        staged.write_text(self.model_dump_json(indent=2) + "\n")
        staged.replace(path)
