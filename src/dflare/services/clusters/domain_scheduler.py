"""What a cluster's Slurm is made of: the names and numbers of its slots. Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dflare.drivers.scheduler.port import (
    ControllerState,
    SchedulerObserved,
    SchedulerSpec,
    Slot,
    SlotObserved,
)

CONTROLLER_PORT = 6817
MUNGE_KEY_BYTES = 128
SPARE_SLOTS = 16
"""A pool may grow by so many nodes at least before its cluster has to be ordered anew."""

GONE = "gone"
"""State of a scheduler of which nothing is left."""

_UNUSABLE = ("DOWN", "FAIL", "UNKNOWN", "NOT_RESPONDING", "*")
"""In Slurm's words for a node's state; an asterisk marks one that does not answer (sinfo(1))."""
_DEFAULT_POOL = "default"
_MODEL = re.compile(r"[a-z]{1,6}\d{2,4}[a-z]{0,3}")
_OTHER = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Shape:
    """What a node of a pool has."""

    cpus: int
    memory_mib: int
    gpus: int
    gpu_type: str


@dataclass(frozen=True)
class PoolPlan:
    """A pool as its slots are declared."""

    name: str
    max_nodes: int
    shape: Shape


def max_nodes_of(count: int) -> int:
    """How many nodes a pool ordered with ``count`` may ever have: all are declared beforehand, so
    that adding one disturbs no job."""
    return max(2 * count, count + SPARE_SLOTS)


def slot_name(pool: str, number: int) -> str:
    """Slurm's name of the node with that number in its pool."""
    return f"{pool}-{number}"


def partition_of(pool: str) -> str:
    """The partition of a pool's nodes. ``default`` would set the defaults of other partitions
    (slurm.conf(5), PartitionName)."""
    return "main" if pool == _DEFAULT_POOL else pool


def controller_of(cluster_id: str) -> str:
    """Where the slurmds of a cluster fetch their configuration, inside the tenant's network."""
    return f"{cluster_id.replace('_', '-')}.scheduler.internal:{CONTROLLER_PORT}"


def gpu_type_of(model: str | None) -> str:
    """A word of gres for a GPU's model: ``h100`` of ``NVIDIA H100 SXM5 80GB``, and the whole name
    in small letters where no word of it looks like a model's."""
    if model is None:
        return ""
    words = re.split(r"[\s/_-]+", model.lower())
    found = next((word for word in words if _MODEL.fullmatch(word)), None)
    return found or _OTHER.sub("_", model.lower()).strip("_") or "gpu"


def slots_of(pools: Sequence[PoolPlan], leaves: Mapping[str, str]) -> tuple[Slot, ...]:
    """Every slot of the pools; ``leaves`` are the switches of those that a node stands in for."""
    return tuple(
        Slot(
            name=slot_name(pool.name, number),
            partition=partition_of(pool.name),
            cpus=pool.shape.cpus,
            memory_mib=pool.shape.memory_mib,
            gpus=pool.shape.gpus,
            gpu_type=pool.shape.gpu_type,
            switch=leaves.get(slot_name(pool.name, number)),
        )
        for pool in pools
        for number in range(pool.max_nodes)
    )


def digest_of(spec: SchedulerSpec) -> str:
    """Two specifications with the same digest ask for the same."""
    parts = (spec.name, spec.slots, spec.mounts, spec.account)
    return hashlib.sha256(spec.munge_key + repr(parts).encode()).hexdigest()


def why_not_usable(slot: SlotObserved | None) -> str | None:
    """What keeps a node from running jobs for its tenant; ``None``: nothing does."""
    if slot is None:
        return "the scheduler does not know its slot"
    if not slot.registered:
        return f"its slurmd has not registered: {slot.fault or 'nothing was heard of it'}"
    if any(word in slot.state for word in _UNUSABLE):
        return f"Slurm has it as {slot.state}: {slot.fault or slot.reason or 'no reason given'}"
    return None


def nodes_document(observed: SchedulerObserved) -> dict[str, dict[str, object]]:
    """The slots as they are kept."""
    return {
        name: {
            "state": slot.state,
            "reason": slot.reason,
            "registered": slot.registered,
            "fault": slot.fault,
        }
        for name, slot in observed.nodes.items()
    }


def is_up(observed: SchedulerObserved | None) -> bool:
    """Whether the controller answers."""
    return observed is not None and observed.state in {
        ControllerState.READY,
        ControllerState.DEGRADED,
    }
