"""What `dflare up` was asked for, handed to the supervisor in `run/options.json`."""

import secrets
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError


class HardwareTime(StrEnum):
    """How long simulated hardware takes: `zero` answers at once, at the site clock of 1x."""

    ZERO = "zero"
    NORMAL = "normal"


class UpOptions(BaseModel):
    """The options of one start. `speed` is site seconds per wall second, None for the default
    of the hardware time; `only` restricts the start to these components. `nodes`, `vendors` (of
    servers, who take turns) and `makers` (of accelerators, who share the servers equally) are those
    of the simulated site that the first start makes; none stands for its default. URLs and
    addresses name outside servers in place of embedded ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=64, ge=1)
    vendors: tuple[str, ...] = ()
    makers: tuple[str, ...] = ()
    speed: float | None = Field(default=None, ge=1, le=600)
    hardware_time: HardwareTime = HardwareTime.NORMAL
    gateway_host: str = "127.0.0.1"
    gateway_port: int | None = Field(default=None, ge=1, le=65535)
    postgres_url: str | None = None
    temporal_address: str | None = None
    temporal_ui: bool = False
    valkey_url: str | None = None
    s3_url: str | None = None
    s3_access_key: str = ""
    s3_secret_key_file: str = ""
    s3_bucket: str = "dflare"
    s3_region: str = "us-east-1"
    metrics_url: str | None = None
    only: tuple[str, ...] = ()

    @field_validator("vendors", "makers")
    @classmethod
    def _are_known(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not given:
            return given
        # Imported late: only who chooses waits for the site document's models.
        from dflare.site.document import GpuVendor, ServerVendor

        # There is no simulated BMC of NVIDIA's own servers.
        simulated = [vendor for vendor in ServerVendor if vendor is not ServerVendor.NVIDIA]
        known = [str(one) for one in (simulated if info.field_name == "vendors" else GpuVendor)]
        for name in given:
            if name not in known:
                raise PydanticCustomError(
                    "unknown_maker",
                    "{name} is none of the {field}: {known}",
                    {"name": name, "field": info.field_name, "known": ", ".join(known)},
                )
        if len(set(given)) != len(given):
            raise PydanticCustomError(
                "named_twice", "one of the {field} is named twice", {"field": info.field_name}
            )
        return given

    @model_validator(mode="after")
    def _knows_the_key_of_s3(self) -> "UpOptions":
        if self.s3_url is not None and not (self.s3_access_key and self.s3_secret_key_file):
            raise PydanticCustomError(
                "key_missing", "--s3-url needs --s3-access-key and --s3-secret-key-file too"
            )
        return self

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
