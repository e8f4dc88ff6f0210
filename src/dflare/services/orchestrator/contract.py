"""What other services know of orchestrator: wishes, reservations, plans, lifecycle enums.

Steps acted by orchestrator (all on queue ``orchestrator``): ``confirm@1`` (undo ``end@1``),
``hand_over@1`` (the commit step), ``release@1`` (param ``requested_at``, ISO 8601: when usage
ends), ``end@1``, ``replace@1`` (results: the stand-in's node id), ``claim@1`` (waits for the
exclusive right to act on nodes outside an order; undo ``unclaim@1``), ``unclaim@1``.

Events emitted: ``allocation.changed`` (data: ``AllocationFacts``), ``claim.changed`` (data:
``ClaimFacts``), ``reservation.changed`` (data: ``BlockReservationFacts``).
Events consumed: ``node.declared``, ``node.state_changed``, ``site.declared``, ``quota.changed``,
``operation.changed``, ``cluster.changed`` (when a cluster ends).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from dflare.kit.plan import Plan


class AllocationState(StrEnum):
    """A node's membership in an order, for the whole tenancy."""

    HELD = "held"
    CONFIRMED = "confirmed"
    RELEASING = "releasing"
    ENDED = "ended"


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AllocationFacts(_Contract):
    """Data of ``allocation.changed``.

    ``operation_id`` is the operation that acts on the node now or did last: the order, then its
    release. ``usage_from``/``usage_to`` bound what is billed, UTC wall time: from hand-over to the
    request of release, or to the node's quarantine where that comes first. ``slot`` is the node's
    number in its pool, unique among those held or confirmed. ``version`` rises with every change.
    """

    allocation_id: str
    version: int
    state: AllocationState
    node_id: str
    node_name: str
    node_type: str
    gpus: int
    site_id: str
    organization_id: str
    project_id: str
    cluster_id: str
    pool: str
    slot: int = 0
    operation_id: str
    epoch: int
    usage_from: datetime | None = None
    usage_to: datetime | None = None


class ClaimFacts(_Contract):
    """Data of ``claim.changed``: an operation began (``held``) or ceased to act on a node."""

    claim_id: str
    version: int
    node_id: str
    site_id: str
    operation_id: str
    held: bool


class Shape(StrEnum):
    """How the nodes of an order lie to each other."""

    PACK = "pack"
    """In as few blocks, rail blocks, racks and NVLink domains as possible."""
    SPREAD = "spread"
    """Over as many racks as possible, as evenly as possible: a rack that fails takes few."""


class Same(StrEnum):
    """A group that must hold the whole order."""

    NVLINK_DOMAIN = "nvlink-domain"
    LEAF = "leaf"
    """One Ethernet leaf, which is one rack."""
    RAIL_BLOCK = "rail-block"
    """One set of InfiniBand leaf switches, one a rail."""
    BLOCK = "block"


class PlacementWish(_Contract):
    """Where an order's nodes shall lie; ``exclude`` has ids or names of nodes it must not get."""

    shape: Shape = Shape.PACK
    same: Same | None = None
    exclude: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] = Field(
        default=(), max_length=1024
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.shape is Shape.SPREAD and self.same in (Same.NVLINK_DOMAIN, Same.LEAF):
            raise ValueError(f"spread goes over racks; the same {self.same} stands in one")
        return self


class PoolWish(_Contract):
    """So many nodes of a type for one node pool."""

    pool: str
    node_type: str
    count: int = Field(ge=1, le=8192)


class Wishes(_Contract):
    """What an order needs. The hold lives ``ttl_s`` of wall time unless it is confirmed.

    Nodes for a cluster that has some already are placed near those, and, without a ``placement``
    of their own, as the cluster's first nodes were wished. An order that may ``wait`` is kept
    where too few are free. ``ends_at`` is when the nodes are given back at the latest, if known.
    """

    organization_id: str
    project_id: str
    site_id: str
    cluster_id: str
    pools: tuple[PoolWish, ...]
    placement: PlacementWish | None = None
    wait: bool = False
    ends_at: AwareDatetime | None = None
    ttl_s: float = 120


class BlockReservationFacts(_Contract):
    """Data of ``reservation.changed``: nodes that are for one project alone for a time.

    ``level`` is the kind of group that was taken whole; ``state`` is ``scheduled`` or
    ``cancelled``.
    """

    id: str
    version: int
    name: str
    site_id: str
    project_id: str
    node_type: str
    level: Same
    block_names: tuple[str, ...]
    node_ids: tuple[str, ...]
    state: str
    starts_at: AwareDatetime
    ends_at: AwareDatetime


@dataclass(frozen=True)
class Placed:
    """One node chosen for an order. ``epoch`` is the node's counter as of this reservation,
    ``slot`` its number in the pool."""

    allocation_id: str
    node_id: str
    node_name: str
    pool: str
    epoch: int
    slot: int = 0


@dataclass(frozen=True)
class Reservation:
    """The answer to wishes: the nodes held, the plan to store, why these nodes.

    Where the order ``waits`` nothing is placed, the explanation says what for, and its operation
    has to be stored at attempt 0: it is given its nodes and started when there are some.
    """

    placed: tuple[Placed, ...]
    plan: Plan
    explanation: str
    expires_at: datetime
    waits: bool = False


class Orchestrator(Protocol):
    """The synchronous part. Everything else is steps and events."""

    async def reserve(self, operation_id: str, wishes: Wishes) -> Reservation:
        """Place, allocate, claim and count the quota in one transaction; idempotent by operation.

        Raises:
            ConflictError subclasses ``CapacityError`` (how many are missing and why the others are
            not free), ``QuotaError`` (limit, used, wanted), ``UnknownNodeTypeError`` (which exist).
        """
        ...

    async def release_hold(self, operation_id: str) -> None:
        """Give back at once what ``reserve`` holds for an order that is refused after it.

        Confirmed nodes stay: they belong to an order that was stored. Where this is never called,
        the hold ends with its time to live. An order that waits does so no longer.
        """
        ...

    async def preview(self, wishes: Wishes) -> Reservation:
        """The same answer, or refusal, with nothing held."""
        ...

    def plan(self, saga: str) -> Plan:
        """The present plan of a saga by name, such as ``delete_cluster``; pure."""
        ...

    async def nodes_of(self, cluster_id: str) -> Sequence[Placed]:
        """The live allocations of a cluster, for the targets of its release."""
        ...


class UsageRecords(Protocol):
    """The allocations that were handed over, read where they are true. Metering's audit asks for
    them: a read model fed by events cannot tell which events it never got (DESIGN section 5)."""

    async def handed_over(
        self, since: datetime, after: str | None, limit: int
    ) -> Sequence[AllocationFacts]:
        """A page of the allocations whose usage does not end before ``since``, in order of their
        ids and behind the id ``after``."""
        ...

    async def allocations(self, allocation_ids: Sequence[str]) -> Sequence[AllocationFacts]:
        """Allocations by id, handed over or not; unknown ids are left out."""
        ...
