"""UFM Enterprise over REST.

Source: NVIDIA UFM Enterprise REST API Guide 6.22 ("PKey GUIDs Rest API", "Jobs REST API"). A write
is asynchronous: where its answer names a job, the job is followed; where it does not, the partition
is read until the change shows. The strict forms here are lessons of the field: 0x8002 is read as
0x2, a typo leaves a port where it was, and a port without the tenant's key at index 0 talks on the
default partition.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

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
_COMPLETED = "Completed"


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
            found = _jobs(reply.body)
            running |= {str(job.get("ID")) for job in found if job.get("Status") == _RUNNING}
        return frozenset(running)

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Every running job."""
        reply = await self._call(access, "GET", _JOBS, status=_RUNNING)
        return frozenset(str(job.get("ID")) for job in _jobs(reply.body))

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
                ended = await self._ended(access, job) if job else await shown()
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

    async def _ended(self, access: DeviceAccess, job: str) -> bool:
        """Whether a job is over; one that the manager forgot is.

        Raises:
            DeviceRefusedError: it ended in a failure.
        """
        found = _jobs((await self._call(access, "GET", f"{_JOBS}/{job}")).body)
        status = found[0].get("Status") if found else _COMPLETED
        if status not in {_RUNNING, _COMPLETED}:
            summary = found[0].get("Summary")
            raise DeviceRefusedError(f"{access.name}: job {job}: {status}: {summary}")
        return status != _RUNNING

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


def _jobs(body: Json) -> list[dict[str, Json]]:
    """The jobs of an answer: a list of them, one alone, or an error, which has no id."""
    jobs = body if isinstance(body, list) else [body]
    return [job for job in jobs if isinstance(job, dict) and "ID" in job]
