"""Finding a BMC's resources by its own links, once a process."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from dflare.drivers.bmc.port import BmcAccess, BmcRefusedError
from dflare.drivers.bmc.redfish.client import Answer, Document, RedfishClient

ROOT = "/redfish/v1/"
_EXPAND = "?$expand=.($levels=1)"


@dataclass(frozen=True)
class SystemPaths:
    """Where things stand on one BMC; empty where it has none.

    ``expands``: collections can be read with their members in one call (DSP0266, 7.3.1).
    ``settings`` is where BIOS changes are staged, found with the first read of ``bios``.
    """

    system: str
    reset: str
    resets: frozenset[str]
    bios: str
    manager: str
    chassis: str
    system_media: str
    expands: bool
    model_key: str


@dataclass(frozen=True)
class MediaPaths:
    """The virtual CD: the resource and its two actions (empty: PATCH the resource)."""

    slot: str
    insert: str
    eject: str


def link(document: Document, *names: str) -> str:
    """The ``@odata.id`` behind a chain of names; empty where the chain breaks."""
    value: Any = document
    for name in names:
        value = cast("Document", value).get(name) if isinstance(value, dict) else None
    return str(cast("Document", value).get("@odata.id", "")) if isinstance(value, dict) else ""


def first_link(document: Document, *names: str) -> str:
    """The ``@odata.id`` of the first member of a list of links."""
    value: Any = document
    for name in names:
        value = cast("Document", value).get(name) if isinstance(value, dict) else None
    if not isinstance(value, list) or not value:
        return ""
    first = cast("list[Any]", value)[0]
    return str(cast("Document", first).get("@odata.id", "")) if isinstance(first, dict) else ""


def action(document: Document, name: str) -> Document:
    """An action's description, such as ``#ComputerSystem.Reset``."""
    actions = document.get("Actions")
    found = cast("Document", actions).get(name) if isinstance(actions, dict) else None
    return cast("Document", found) if isinstance(found, dict) else {}


class Finder:
    """Paths of every BMC, remembered by address."""

    def __init__(self, client: RedfishClient) -> None:
        self._client = client
        self._systems: dict[str, SystemPaths] = {}
        self._media: dict[str, MediaPaths] = {}

    def forget(self, bmc: BmcAccess) -> None:
        """Look anew at the next call: a resource was gone."""
        self._systems.pop(bmc.address, None)
        self._media.pop(bmc.address, None)

    async def system(self, bmc: BmcAccess) -> SystemPaths:
        """The paths of the one system behind the BMC.

        Raises:
            BmcError: it cannot be read.
        """
        known = self._systems.get(bmc.address)
        return known or (await self.read_system(bmc))[0]

    async def read_system(self, bmc: BmcAccess) -> tuple[SystemPaths, Answer]:
        """The paths and the ComputerSystem itself, read now."""
        known = self._systems.get(bmc.address)
        if known is not None:
            return known, await self._client.get(bmc, known.system)
        root = (await self._client.get(bmc, ROOT)).document
        systems = await self._client.get(bmc, link(root, "Systems"))
        path = first_link(systems.document, "Members")
        if not path:
            raise BmcRefusedError(f"{bmc.address} shows no system")
        answer = await self._client.get(bmc, path)
        self._systems[bmc.address] = found = _system_paths(root, path, answer.document)
        return found, answer

    async def media(self, bmc: BmcAccess) -> MediaPaths:
        """The paths of the virtual CD.

        Raises:
            BmcRefusedError: there is none.
        """
        known = self._media.get(bmc.address)
        if known is not None:
            return known
        paths = await self.system(bmc)
        where = paths.system_media
        if not where and paths.manager:
            manager = (await self._client.get(bmc, paths.manager)).document
            where = link(manager, "VirtualMedia")
        slots = await self.members(bmc, where, expands=paths.expands) if where else []
        for slot in slots:
            if {"CD", "DVD"} & set(cast("list[str]", slot.get("MediaTypes") or [])):
                found = MediaPaths(
                    str(slot["@odata.id"]),
                    str(action(slot, "#VirtualMedia.InsertMedia").get("target", "")),
                    str(action(slot, "#VirtualMedia.EjectMedia").get("target", "")),
                )
                self._media[bmc.address] = found
                return found
        raise BmcRefusedError(f"{bmc.address} has no virtual CD")

    async def members(self, bmc: BmcAccess, path: str, *, expands: bool) -> list[Document]:
        """The members of a collection, each whole."""
        if not path:
            return []
        document = (await self._client.get(bmc, path + (_EXPAND if expands else ""))).document
        members = [cast("Document", m) for m in cast("list[Any]", document.get("Members") or [])]
        if all(len(member) > 1 for member in members):
            return members
        answers = await asyncio.gather(
            *(self._client.get(bmc, str(member["@odata.id"])) for member in members)
        )
        return [answer.document for answer in answers]


def _system_paths(root: Document, path: str, system: Document) -> SystemPaths:
    features = cast("Document", root.get("ProtocolFeaturesSupported") or {})
    expand = cast("Document", features.get("ExpandQuery") or {})
    reset = action(system, "#ComputerSystem.Reset")
    return SystemPaths(
        system=path,
        reset=str(reset.get("target", "")),
        resets=frozenset(cast("list[str]", reset.get("ResetType@Redfish.AllowableValues") or [])),
        bios=link(system, "Bios"),
        manager=first_link(system, "Links", "ManagedBy"),
        chassis=first_link(system, "Links", "Chassis"),
        system_media=link(system, "VirtualMedia"),
        expands=bool(expand.get("NoLinks") and expand.get("Levels")),
        model_key=f"{system.get('Manufacturer')}/{system.get('Model')}/{system.get('BiosVersion')}",
    )
