"""UFM Enterprise over REST.

Source: NVIDIA UFM Enterprise REST API Guide 6.22 ("PKey GUIDs Rest API", "Jobs REST API"). A write
is asynchronous: where its answer names a job, the job is followed; where it does not, the partition
is read until the change shows. The strict forms here are lessons of the field: 0x8002 is read as
0x2, a typo leaves a port where it was, and a port without the tenant's key at index 0 talks on the
default partition.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from dflare.drivers.fabric.port import (
    DeviceAccess,
    DeviceRefusedError,
    DeviceUnreachableError,
    Receipt,
)
from dflare.drivers.fabric.rest import DeviceRest, Json, Reply, branch, polled
from dflare.drivers.infiniband.port import DEFAULT_PKEY, FabricSeen, Member

_PKEYS = "/ufmRest/resources/pkeys"
_REMOVE = "/ufmRest/actions/remove_guids_from_pkey"
_JOBS = "/ufmRest/jobs"
_GUID = re.compile(r"[0-9a-f]{16}")
_IDS_A_REQUEST = 200
_RUNNING = "Running"


class UfmManager:
    """Implements ``FabricManager``."""

    def __init__(self, rest: DeviceRest) -> None:
        self._rest = rest

    async def observe(self, access: DeviceAccess) -> FabricSeen:
        """Every partition with its members."""
        body = (await self._call(access, "GET", _PKEYS, guids_data="true")).body
        if not isinstance(body, dict) or not body:
            # The default partition always exists: an answer without any is no observation.
            raise DeviceUnreachableError(f"{access.name}: no partitions in the answer")
        return FabricSeen(
            partitions={int(pkey, 16): _members(shown) for pkey, shown in body.items()},
            default_full=branch(body, hex(DEFAULT_PKEY)).get("membership") != "limited",
        )

    async def ensure_members(
        self, access: DeviceAccess, pkey: int, guids: Sequence[str], member: Member, wait_s: float
    ) -> Receipt:
        """Add ``guids``, or change how they are in."""
        _check(pkey, guids)
        reply = await self._call(
            access,
            "POST",
            _PKEYS,
            body={
                "pkey": hex(pkey),
                "guids": list(guids),
                "membership": "full" if member.full else "limited",
                "index0": member.index0,
                "ip_over_ib": True,
            },
        )

        async def shown() -> bool:
            there = await self._partition(access, pkey)
            return all(there.get(guid) == member for guid in guids)

        return await self._landed(access, reply, shown, wait_s)

    async def remove_members(
        self, access: DeviceAccess, pkey: int, guids: Sequence[str], wait_s: float
    ) -> Receipt:
        """Remove ``guids`` by the action that takes them in its body: in a path they do not fit."""
        _check(pkey, guids)
        reply = await self._call(
            access, "POST", _REMOVE, body={"pkey": hex(pkey), "guids": list(guids)}
        )
        if reply.status == 404:
            return Receipt()

        async def shown() -> bool:
            return not (await self._partition(access, pkey)).keys() & set(guids)

        return await self._landed(access, reply, shown, wait_s)

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Those that the manager says are running; one that it forgot is not."""
        asked = sorted(set(jobs))
        running: set[str] = set()
        for start in range(0, len(asked), _IDS_A_REQUEST):
            ids = ",".join(asked[start : start + _IDS_A_REQUEST])
            reply = await self._call(access, "GET", f"{_JOBS}/{ids}")
            running |= {job for job, status in _statuses(reply.body) if status == _RUNNING}
        return frozenset(running)

    async def running(self, access: DeviceAccess) -> Mapping[str, str]:
        """Every running job with its description."""
        reply = await self._call(access, "GET", _JOBS, status=_RUNNING)
        jobs = reply.body if isinstance(reply.body, list) else []
        return {str(branch(job).get("ID")): str(branch(job).get("Description", "")) for job in jobs}

    async def _partition(self, access: DeviceAccess, pkey: int) -> dict[str, Member]:
        reply = await self._call(access, "GET", f"{_PKEYS}/{pkey:#x}", guids_data="true")
        return _members(reply.body)

    async def _landed(
        self,
        access: DeviceAccess,
        reply: Reply,
        shown: Callable[[], Awaitable[bool]],
        wait_s: float,
    ) -> Receipt:
        job = (reply.location or "").rpartition(f"{_JOBS}/")[2]
        until, attempt = time.monotonic() + wait_s, 0
        while True:
            try:
                ended = await shown() if not job else not await self.unfinished(access, [job])
            except DeviceUnreachableError:
                # The write was accepted: not being able to ask is no failure of it.
                ended = False
            if ended:
                return Receipt()
            left = until - time.monotonic()
            if left <= 0:
                return Receipt(jobs=(job,)) if job else Receipt(certain=False)
            await polled(left, attempt)
            attempt += 1

    async def _call(
        self, access: DeviceAccess, method: str, path: str, *, body: Json = None, **query: str
    ) -> Reply:
        reply = await self._rest.call(access, "ufm", method, path, query=query, body=body)
        if reply.status == 404 and path != _REMOVE and not path.startswith(f"{_JOBS}/"):
            raise DeviceRefusedError(f"{access.name}: {method} {path}: 404")
        return reply


def _check(pkey: int, guids: Sequence[str]) -> None:
    if not 0 < pkey <= DEFAULT_PKEY:
        raise ValueError(f"PKey {pkey:#x} is not between 0x1 and 0x7fff")
    if not guids:
        raise ValueError("no GUIDs: an empty list means everyone to some managers")
    if wrong := [guid for guid in guids if not _GUID.fullmatch(guid)]:
        raise ValueError(f"{wrong[0]!r} is not a GUID of 16 lower-case hexadecimal digits")


def _members(shown: Json) -> dict[str, Member]:
    guids = branch(shown).get("guids")
    found: dict[str, Member] = {}
    for entry in guids if isinstance(guids, list) else []:
        if isinstance(entry, dict):
            full, index0 = entry.get("membership") == "full", entry.get("index0") is True
            found[str(entry.get("guid")).lower().removeprefix("0x")] = Member(full, index0)
    return found


def _statuses(body: Json) -> list[tuple[str, str]]:
    jobs = body if isinstance(body, list) else [body]
    return [(str(j.get("ID")), str(j.get("Status"))) for j in jobs if isinstance(j, dict)]
