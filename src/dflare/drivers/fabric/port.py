"""What every fabric device has in common: how it is reached, how it fails, how long it takes."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """How to reach a device's management API. ``address`` is ``host:port``; the password never
    shows in ``repr``."""

    name: str
    address: str
    username: str
    password: str = field(repr=False)


class DeviceError(Exception):
    """A call to a device failed. The message names the device and what it said."""


class DeviceUnreachableError(DeviceError):
    """No answer, or one that says nothing.

    ``harmless``: all the same nothing of this call can take effect; otherwise a write still may.
    """

    def __init__(self, message: str, *, harmless: bool = False) -> None:
        super().__init__(message)
        self.harmless = harmless


class DeviceRefusedError(DeviceError):
    """The device said no: nothing of this call takes effect, now or later."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a write that the device accepted.

    ``jobs`` are the device's own ids of work that had not ended when the call returned; it may take
    effect later. ``certain`` is false where the device gives no id and the effect was not seen.
    """

    jobs: tuple[str, ...] = ()
    certain: bool = True

    @property
    def landed(self) -> bool:
        """Whether nothing of the write can happen any more."""
        return self.certain and not self.jobs
