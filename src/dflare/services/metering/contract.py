"""What other services know of metering.

Events emitted: ``quota.changed`` (data: ``QuotaLimit``), ``metering.audit_found`` (data:
``AuditFound``; it is no tenant's).
Events consumed: ``allocation.changed``, ``volume.usage_changed``, ``registry.usage`` and
``job.changed`` (the ledgers), ``site.declared`` (prices).
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class QuotaLimit(BaseModel):
    """Data of ``quota.changed``: how many nodes of a type a project may hold at once at all sites.
    A project without a limit for a type may hold none: capacity is given, never assumed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project_id: str
    organization_id: str
    node_type: str
    nodes: int


class AuditFound(BaseModel):
    """Data of ``metering.audit_found``: an audit of the ledger ended with findings. ``kinds``
    counts them by kind, ``usage_since`` is where the audited time begins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audit_id: str
    usage_since: datetime
    findings: int
    kinds: dict[str, int]
