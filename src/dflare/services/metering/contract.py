"""What other services know of metering.

Events emitted: ``quota.changed`` (data: ``QuotaLimit``), ``invoice.drafted``.
Events consumed: ``allocation.changed``, ``site.declared`` (prices).
"""

from pydantic import BaseModel, ConfigDict


class QuotaLimit(BaseModel):
    """Data of ``quota.changed``: how many nodes of a type a project may hold at once at all sites.
    A project without a limit for a type may hold none: capacity is given, never assumed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project_id: str
    organization_id: str
    node_type: str
    nodes: int
