"""The InfiniBand fabric's difference: who should be in which partition, who is, what to change."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dflare.drivers.fabric.port import DeviceAccess, DeviceError
from dflare.drivers.infiniband.port import (
    DEFAULT_PKEY,
    ISOLATED,
    TENANT,
    FabricManager,
    FabricSeen,
    Member,
)
from dflare.services.network.domain import IntentKind, Judged, WantedPort
from dflare.services.network.fabric import (
    DeviceView,
    FabricPlan,
    PortVersion,
    Touch,
    Written,
    in_ranges,
    operations_of,
    touches_of,
)


@dataclass(frozen=True, slots=True)
class PartitionChange:
    """GUIDs by PKey. Removals are sent first; ``isolated`` become limited members of the default
    partition, which keeps two of them apart."""

    removals: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    isolated: list[str] = field(default_factory=list[str])
    additions: dict[int, list[str]] = field(default_factory=dict[int, list[str]])


class InfinibandFabric:
    """Implements ``Fabric`` over one driver of managers."""

    def __init__(self, driver: FabricManager) -> None:
        self._driver = driver

    async def observe(self, access: DeviceAccess) -> FabricSeen:
        """Every partition."""
        return await self._driver.observe(access)

    def plan(
        self, view: DeviceView, seen: FabricSeen, in_flight: frozenset[PortVersion]
    ) -> FabricPlan[PartitionChange]:
        """One call a PKey."""
        memberships = _memberships(seen)
        removals: defaultdict[int, list[str]] = defaultdict(list)
        additions: defaultdict[int, list[str]] = defaultdict(list)
        isolated: list[str] = []
        changed: list[tuple[WantedPort, IntentKind]] = []
        refused: list[str] = []
        for port in view.ports:
            if (port.port_id, port.version) in in_flight:
                continue
            present = memberships.get(port.address, {})
            pkey = _pkey(port)
            others = [other for other in present if other not in {pkey, DEFAULT_PKEY}]
            for other in others:
                removals[other].append(port.address)
            exposed = _exposed(seen, present)
            if exposed:
                isolated.append(port.address)
            if others or exposed:
                changed.append((port, IntentKind.CLOSE))
            if pkey is None or present.get(pkey) == TENANT:
                continue
            if port.stale:
                refused.append(port.port_id)
                continue
            additions[pkey].append(port.address)
            changed.append((port, IntentKind.OPEN))
        strays = _strays(view, seen)
        for pkey, guids in strays.items():
            removals[pkey].extend(guids)
        change = PartitionChange(dict(removals), isolated, dict(additions))
        return FabricPlan(
            change=change,
            needed=bool(removals or isolated or additions),
            touches=(*touches_of(changed), *((Touch(IntentKind.CLOSE),) if strays else ())),
            ports=frozenset((port.port_id, port.version) for port, _ in changed),
            operations=operations_of(port for port, _ in changed),
            refused=tuple(refused),
        )

    def judge(self, view: DeviceView, seen: FabricSeen) -> list[Judged]:
        """A port must be a full member of its own partition at index 0, of no other, and not a full
        member of the default one."""
        memberships = _memberships(seen)
        judged: list[Judged] = []
        for port in view.ports:
            present = memberships.get(port.address, {})
            pkey = _pkey(port)
            exposed = _exposed(seen, present)
            own = {key: how for key, how in present.items() if key != DEFAULT_PKEY}
            matches = not exposed and own == ({} if pkey is None else {pkey: TENANT})
            judged.append(Judged(port.port_id, port.version, _words(own, exposed), matches))
        return judged

    def gone(self, view: DeviceView, seen: FabricSeen) -> list[str]:
        """Networks whose partition has no member."""
        desired = {port.network.network_id for port in view.ports if port.network is not None}
        return [
            network.network_id
            for network in view.lingering
            if network.network_id not in desired
            and (network.pkey is None or not seen.partitions.get(network.pkey))
        ]

    def hazard(self, seen: FabricSeen) -> str:
        """New ports must not be full members of the default partition."""
        if not seen.default_full:
            return ""
        return (
            f"ports that are not listed are full members of {DEFAULT_PKEY:#x}; set the manager's "
            "default_membership to limited (declared ports are isolated one by one)"
        )

    async def write(self, access: DeviceAccess, change: PartitionChange, wait_s: float) -> Written:
        """Removals, then isolation, then additions; a refusal does not keep back the others."""
        written = Written()
        for pkey, guids in change.removals.items():
            await self._call(written, access, pkey, guids, None, wait_s)
        if change.isolated:
            await self._call(written, access, DEFAULT_PKEY, change.isolated, ISOLATED, wait_s)
        for pkey, guids in change.additions.items():
            await self._call(written, access, pkey, guids, TENANT, wait_s)
        return written

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Jobs that still run."""
        return await self._driver.unfinished(access, jobs)

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Every running job."""
        return await self._driver.running(access)

    async def _call(
        self,
        written: Written,
        access: DeviceAccess,
        pkey: int,
        guids: Sequence[str],
        member: Member | None,
        wait_s: float,
    ) -> None:
        """Send one call. While a job is late the following calls do not wait for theirs again."""
        if written.unreachable:
            return
        wait_s = 0 if written.jobs else wait_s
        try:
            if member is None:
                receipt = await self._driver.remove_members(access, pkey, guids, wait_s)
            else:
                receipt = await self._driver.ensure_members(access, pkey, guids, member, wait_s)
        except DeviceError as error:
            written.fail(error)
        else:
            written.add(receipt)


def _memberships(seen: FabricSeen) -> dict[str, dict[int, Member]]:
    """PKeys with membership by GUID."""
    found: dict[str, dict[int, Member]] = {}
    for pkey, members in seen.partitions.items():
        for guid, member in members.items():
            found.setdefault(guid, {})[pkey] = member
    return found


def _pkey(port: WantedPort) -> int | None:
    return None if port.network is None else port.network.pkey


def _exposed(seen: FabricSeen, present: dict[int, Member]) -> bool:
    """Whether the port is a full member of the default partition."""
    listed = present.get(DEFAULT_PKEY)
    return seen.default_full if listed is None else listed.full


def _strays(view: DeviceView, seen: FabricSeen) -> dict[int, list[str]]:
    """GUIDs of nobody's in partitions that are the platform's."""
    declared = {port.address for port in view.ports}
    return {
        pkey: unknown
        for pkey, members in seen.partitions.items()
        if pkey != DEFAULT_PKEY
        and in_ranges(pkey, view.pools.pkey)
        and (unknown := [guid for guid in members if guid not in declared])
    }


def _words(own: dict[int, Member], exposed: bool) -> str:
    parts = [
        f"{pkey:#x} {'full' if how.full else 'limited'}{' index0' if how.index0 else ''}"
        for pkey, how in sorted(own.items())
    ]
    if exposed:
        parts.append(f"{DEFAULT_PKEY:#x} full")
    return ", ".join(parts) or "no partition"
