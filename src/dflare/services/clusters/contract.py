"""What other services know of clusters.

Steps (queue ``clusters``, the target is the cluster): ``begin@1`` (state ``creating``; undo
``fail@1``), ``ready@1``, ``begin_delete@1``, ``deleted@1``.

Events emitted: ``cluster.declared`` (data: ``ClusterDeclared``), ``cluster.changed``.
Events consumed: ``site.declared`` (which sites and node types exist), ``allocation.changed``.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class ClusterState(StrEnum):
    """Life of a cluster."""

    PENDING = "pending"
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


class ClusterDeclared(BaseModel):
    """Data of ``cluster.declared``: what its nodes boot with. ``user_data_sealed`` is base64 of
    ``kit.seal`` under the name ``user_data/<cluster_id>``, since it may hold secrets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster_id: str
    name: str
    organization_id: str
    project_id: str
    site_id: str
    image: str
    ssh_keys: tuple[str, ...]
    user_data_sealed: str | None = None
