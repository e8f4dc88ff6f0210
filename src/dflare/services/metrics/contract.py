"""What other services know of metrics.

Events emitted: ``alert.raised`` and ``alert.resolved`` (data: ``AlertFacts``). One that concerns a
project's node or operation names the project, so that its members hear of it.
Events consumed: ``site.declared``, ``node.declared`` (which nodes there are, and their parts),
``allocation.changed`` (who has a node from when to when), ``cluster.declared`` (names of clusters),
``operation.changed`` (operations that are late, and how long steps take).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from dflare.drivers.bmc.port import BmcAccess


class AlertRule(StrEnum):
    """What is looked for. Each is explained in ``domain_alerts``."""

    DEAD_GPU = "dead_gpu"
    LOST_LINK = "lost_link"
    LATE_OPERATION = "late_operation"


class AlertState(StrEnum):
    """Life of an alert; the next time is another alert."""

    RAISED = "raised"
    RESOLVED = "resolved"


class AlertFacts(BaseModel):
    """Data of ``alert.raised`` and ``alert.resolved``. ``subject`` is the id of the node or of the
    operation, ``part`` the GPU or port of a node where it is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    rule: AlertRule
    state: AlertState
    severity: str
    summary: str
    site_id: str | None
    organization_id: str | None
    project_id: str | None
    cluster_id: str | None
    subject_kind: str
    subject_id: str
    subject_name: str
    part: str
    raised_at: datetime
    resolved_at: datetime | None = None


@dataclass(frozen=True)
class BmcTarget:
    """A node whose BMC is read."""

    node_id: str
    access: BmcAccess


class BmcDirectory(Protocol):
    """The BMCs of the nodes that stand in sites, with what opens them. Baremetal answers it in the
    process that may reach them; an event would carry every password to every reader of the feed."""

    async def targets(self) -> Sequence[BmcTarget]:
        """All nodes that are not retired, in order of their ids."""
        ...
