"""Settings of the metering service."""

from typing import ClassVar

from dflare.kit.settings import Settings


class MeteringSettings(Settings):
    """Seconds are wall time.

    ``audit_look_every_s``: how often a worker looks for an audit that is due.
    ``audit_settle_s``: what seems to differ is looked at again after this, up to three times: the
    ledger follows the allocations by events, and may be a little behind.
    ``audit_deadline_s``: an audit that takes longer is taken over by another worker.
    """

    prefix: ClassVar[str] = "DFLARE_METERING_"

    audit_look_every_s: float = 2.0
    audit_settle_s: float = 20.0
    audit_deadline_s: float = 3600.0
