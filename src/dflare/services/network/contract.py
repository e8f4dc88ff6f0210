"""What other services know of network.

Steps (all on queue ``network.<site>``, targets are nodes): ``attach@1`` (allocates the order's
identifiers once, sets the desired state of the nodes' ports; undo ``withdraw@1``), ``await@1``
(waits until the fabrics were read back as desired; undo none), ``verify@1`` (one more read-back
after hand-over), ``detach@1`` (desired: closed, identifiers ``draining``), ``await_drained@1``
(every intent of an older epoch is closed or expired **and** a later read-back is clean; frees the
identifiers into ``cooldown``), ``withdraw@1`` (``detach@1`` and ``await_drained@1`` in one, as
undo), ``close@1`` (a node's ports closed whatever holds it, for quarantine, and seen to be so:
no write of any network can open them), ``seclude@1`` (a network of its own for a node that no order
holds and that is cleaned: its agent reaches the platform and nobody else; the target is the ordered
node itself; undo ``close@1``).
Every desired row carries the allocation's epoch (from orchestrator's ``allocation.changed``); a row
of an older epoch is refused.

Events emitted: ``network.changed``, ``device.changed``, ``site.frozen``.
Events consumed: ``site.declared``, ``node.declared``, ``allocation.changed``, and
``node.state_changed``: a node that goes into quarantine is desired closed at once, and stays so for
the order that has it.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class PoolValueState(StrEnum):
    """Life of an identifier from a pool (VLAN, VNI, PKey, subnet)."""

    FREE = "free"
    ALLOCATED = "allocated"
    DRAINING = "draining"
    COOLDOWN = "cooldown"


class NetworkFacts(BaseModel):
    """Data of ``network.changed``: a cluster's isolated network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network_id: str
    cluster_id: str
    site_id: str
    state: str
    vrf: str
    vlan: int | None
    vni: int | None
    pkey: int | None
    subnet: str | None
