"""What other services know of baremetal.

Steps (all on queue ``baremetal.<site>``, targets are nodes):

- ``prepare@1``: state ``preparing``, powered off; undo ``free@1``.
- ``profile@1``: the type's BIOS profile set and read back after a reset; undo ``power_off@1``.
- ``provision@1``: virtual media, agent, image and config drive written; undo ``erase@1``. Params:
  ``cluster_id``.
- ``start@1``: boots the tenant's system and waits for its phone-home; undo ``power_off@1``.
- ``power_off@1``; ``erase@1`` (disks, memory, TPM, BIOS defaults; reads back by a second boot).
- ``free@1``: state ``available``; leaves a node in quarantine or maintenance as it is.
- ``quarantine@1``: state ``quarantine``, powered off as far as the BMC obeys. Param: ``reason``.
- ``reboot@1``, ``rescue@1``, ``unrescue@1``, ``reimage@1``: what a tenant may do to its node;
  ``reimage@1`` writes the disks like ``provision@1`` and is followed by ``start@1``.
- ``enrol@1``: inventory compared with the declaration, state ``available`` or ``failed``;
  ``set_aside@1`` lets an operation go on without the nodes that failed.

A step acts on a node only while the claim (or, where nobody claims it, the allocation) names its
operation; before that event has come its targets are pending.

Events emitted: ``site.declared``, ``node.declared``, ``node.state_changed`` (data below).
Events consumed: ``cluster.declared`` (boot configuration), ``allocation.changed`` (who holds it),
``claim.changed`` (which operation may act on it), ``site.frozen`` (steps wait while a site is).

Sagas ordered here: ``enrol_nodes``, ``reboot_node``, ``rescue_node``, ``unrescue_node``,
``reimage_node``, ``clean_node``, ``quarantine_node``. The resource is the node, or the site for
``enrol_nodes`` of what a site document brings.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class NodeState(StrEnum):
    """The physical state of a node. It knows no tenant: who holds it is orchestrator's.

    ``enrolling`` waits for its first inventory; ``available`` is clean and powered off; ``failed``
    waits for an operator; ``quarantine`` blocks all traffic and every use.
    """

    DECLARED = "declared"
    ENROLLING = "enrolling"
    AVAILABLE = "available"
    PREPARING = "preparing"
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    RESCUE = "rescue"
    CLEANING = "cleaning"
    QUARANTINE = "quarantine"
    MAINTENANCE = "maintenance"
    FAILED = "failed"


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EthernetCable(_Contract):
    """A host port and where its cable ends; ``switch`` is the name in the site document."""

    name: str
    mac: str
    switch: str
    port: str


class InfinibandCable(_Contract):
    """A host channel adapter's port; ``guid`` is 16 hexadecimal digits."""

    name: str
    guid: str
    rail: int
    switch: str
    port: str


class NodeDeclared(_Contract):
    """Data of ``node.declared``: where the node stands and how it is cabled."""

    node_id: str
    site_id: str
    name: str
    node_type: str
    gpus: int
    row: str
    rack: str
    block: str
    nvlink_domain: str | None
    ethernet: tuple[EthernetCable, ...]
    infiniband: tuple[InfinibandCable, ...]
    retired: bool = False


class NodeStateChanged(_Contract):
    """Data of ``node.state_changed``."""

    node_id: str
    site_id: str
    name: str
    state: NodeState
    reason: str
    cordoned: bool = False


class NodeTypeFacts(_Contract):
    """A node type; the price is a decimal string in the site's currency."""

    name: str
    vendor: str
    gpu_model: str | None
    gpus: int
    infiniband_rails: int
    price_per_node_hour: str
    cpus: int = 0
    memory_mib: int = 0


class SwitchFacts(_Contract):
    """An Ethernet switch; ``address`` is ``host:port``, ``secret`` a sealed credentials document
    (see ``kit.seal``, name ``device/<site_id>/<name>``) in base64."""

    name: str
    address: str
    driver: str
    role: str
    ports: tuple[str, ...]
    secret: str


class UfmFacts(_Contract):
    """The InfiniBand manager, like a switch."""

    name: str
    address: str
    driver: str
    secret: str


class SchedulerHostFacts(_Contract):
    """A host of the operator's that runs tenants' schedulers; ``address`` is
    ``https://host:port``, ``secret`` as a switch's."""

    name: str
    address: str
    secret: str


class PoolFacts(_Contract):
    """Inclusive ranges of identifiers; prefixes are CIDRs cut into subnets of ``subnet_length``."""

    vlan: tuple[tuple[int, int], ...]
    vni: tuple[tuple[int, int], ...]
    pkey: tuple[tuple[int, int], ...]
    prefixes: tuple[str, ...]
    subnet_length: int
    cooldown_s: float


class SiteDeclared(_Contract):
    """Data of ``site.declared``: all of the site but its nodes. ``images`` are names, in the order
    in which the site declares them: the first is booted where an order names none. The price of
    volumes is a decimal string in the site's currency, or null where they cost nothing."""

    site_id: str
    name: str
    currency: str
    switches: tuple[SwitchFacts, ...]
    ufm: UfmFacts | None
    pools: PoolFacts
    node_types: tuple[NodeTypeFacts, ...]
    images: tuple[str, ...] = ()
    scheduler_hosts: tuple[SchedulerHostFacts, ...] = ()
    volume_price_per_gib_hour: str | None = None
