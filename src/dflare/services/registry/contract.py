"""What other services know of the registry.

A repository is called ``<organization>/<project>/<path>`` outside; inside it belongs to its
project's id, so that renaming an organization or project renames its repositories.

Events emitted: ``repository.changed`` (data: ``RepositoryFacts``; ``state`` is ``deleted`` once,
when it is gone), ``registry.usage`` (data: ``RegistryUsage``).
Events consumed: ``quota.changed`` (of ``QUOTA``).
"""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

QUOTA = "registry-gib"
"""Under this name metering keeps how many GiB the repositories of a project may hold together."""


class RepositoryState(StrEnum):
    """Life of a repository: it is there from its first push until it is deleted."""

    READY = "ready"
    DELETED = "deleted"


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RepositoryFacts(_Contract):
    """Data of ``repository.changed``. ``tag`` and ``digest`` say what of it was written or removed
    last; both are empty where that was the repository itself."""

    id: str
    name: str
    organization_id: str
    project_id: str
    state: RepositoryState
    version: int
    tag: str = ""
    digest: str = ""


class RegistryUsage(_Contract):
    """Data of ``registry.usage``: the repositories of a project held ``stored_bytes`` from
    ``usage_from`` to ``usage_to``, UTC wall time, or still do. ``version`` rises with every change
    of the interval, so that a ledger is idempotent by both."""

    interval_id: str
    version: int
    organization_id: str
    project_id: str
    stored_bytes: int
    usage_from: datetime
    usage_to: datetime | None = None
