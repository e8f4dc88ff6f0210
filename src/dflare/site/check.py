"""What joins the values of a site: references, duplicates, overlaps, rails.

The check reads raw data (dicts and lists) and not models, so that a document with a wrong value is
told everything else that is wrong with it too. What has not the right shape is passed over here:
the models refuse it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TypeGuard, cast

from pydantic_core import PydanticCustomError

from dflare.site.problems import KeyPath, did_you_mean, path_text
from dflare.site.values import (
    NumberRange,
    expand_ports,
    read_endpoint,
    read_guid,
    read_https_address,
    read_mac,
    read_network,
    read_pkey_range,
    read_port_name,
    read_vlan_range,
    read_vni_range,
)

Entry = tuple[KeyPath, dict[str, object]]


@dataclass(frozen=True)
class Finding:
    """A problem of the document at ``path``. ``candidates`` are names that may have been meant."""

    path: KeyPath
    message: str
    hint: str | None = None
    value: str = ""
    candidates: tuple[str, ...] = ()

    def full_hint(self) -> str | None:
        """The hint, after the nearest candidate where one is near."""
        near = did_you_mean(self.value, self.candidates) if self.value else None
        return "; ".join(part for part in (near, self.hint) if part) or None


def check(data: object) -> Iterator[Finding]:
    """Yield every finding of ``data``, the plain form of a site document."""
    if not _is_mapping(data):
        return
    site = _Parts(data)
    yield from _names(site)
    yield from _pools(data)
    yield from _racks(site)
    yield from _credentials(site)
    yield from _nodes(site)
    yield from _switch_ports(site)
    yield from _rails(site)


class _Parts:
    """The entries of the document by kind, each with its path."""

    def __init__(self, data: dict[str, object]) -> None:
        fabrics = _mapping(data.get("fabrics"))
        self.ethernet = _mapping(fabrics.get("ethernet"))
        self.infiniband = _mapping(fabrics.get("infiniband"))
        self.has_infiniband = bool(self.infiniband)
        self.credentials = tuple(_mapping(data.get("credentials")))
        self.pkeys = _mapping(data.get("pools")).get("pkeys")
        self.scheduler_hosts = list(_entries(data.get("scheduler_hosts"), ("scheduler_hosts",)))
        self.images = list(_entries(data.get("images"), ("images",)))
        self.node_types = list(_entries(data.get("node_types"), ("node_types",)))
        self.racks = list(_entries(data.get("racks"), ("racks",)))
        self.nodes = list(_entries(data.get("nodes"), ("nodes",)))
        self.switches = list(
            _entries(self.ethernet.get("switches"), ("fabrics", "ethernet", "switches"))
        )
        self.infiniband_switches: list[tuple[KeyPath, str]] = [
            (("fabrics", "infiniband", "switches", i), str(name))
            for i, name in enumerate(_list(self.infiniband.get("switches")))
            if isinstance(name, str | int)
        ]

    def ports(self, key: str) -> Iterator[tuple[KeyPath, dict[str, object], dict[str, object]]]:
        """Every port of every node under ``key``, with its node."""
        for path, node in self.nodes:
            for port_path, port in _entries(node.get(key), (*path, key)):
                yield port_path, node, port


def _names(site: _Parts) -> Iterator[Finding]:
    yield from _twice("scheduler host", _values(site.scheduler_hosts, "name"))
    yield from _twice("image", _values(site.images, "name"))
    yield from _twice("node type", _values(site.node_types, "name"))
    yield from _twice("rack", _values(site.racks, "name"))
    yield from _twice("node", _values(site.nodes, "name"))
    yield from _twice("serial", _values(site.nodes, "serial"))
    yield from _twice("switch", [*_values(site.switches, "name"), *site.infiniband_switches])
    bmcs = [((*path, "bmc"), _mapping(node.get("bmc"))) for path, node in site.nodes]
    manager: list[Entry] = [(("fabrics", "infiniband"), site.infiniband)]
    addresses = _values([*site.switches, *manager, *bmcs], "address", read_endpoint)
    for path, address in _values(site.scheduler_hosts, "address", read_https_address):
        addresses.append((path, address.removeprefix("https://")))
    yield from _twice("address", addresses)
    ethernet = [(path, port) for path, _, port in site.ports("ethernet")]
    yield from _twice("MAC", _values(ethernet, "mac", read_mac))
    infiniband = [(path, port) for path, _, port in site.ports("infiniband")]
    yield from _twice("GUID", _values(infiniband, "guid", read_guid))
    for key in ("ethernet", "infiniband"):
        for path, node in site.nodes:
            ports = list(_entries(node.get(key), (*path, key)))
            yield from _twice("port", _values(ports, "name"))
    for path, kind in site.node_types:
        yield from _twice(
            "disk", _values(list(_entries(kind.get("disks"), (*path, "disks"))), "name")
        )


def _pools(data: dict[str, object]) -> Iterator[Finding]:
    pools = _mapping(data.get("pools"))
    for key, read in (
        ("vlans", read_vlan_range),
        ("vnis", read_vni_range),
        ("pkeys", read_pkey_range),
    ):
        seen: list[tuple[KeyPath, NumberRange]] = []
        for i, written in enumerate(_list(pools.get(key))):
            found = _read(read, written)
            if not isinstance(found, NumberRange):
                continue
            path: KeyPath = ("pools", key, i)
            for other_path, other in seen:
                if found.overlaps(other):
                    yield _overlap(path, str(written), other_path)
            seen.append((path, found))
    networks: list[tuple[KeyPath, IPv4Network]] = []
    for path, pool in _entries(pools.get("prefixes"), ("pools", "prefixes")):
        network = _read(read_network, pool.get("cidr"))
        if not isinstance(network, IPv4Network):
            continue
        for other_path, other in networks:
            if network.overlaps(other):
                yield _overlap((*path, "cidr"), str(network), other_path)
        networks.append(((*path, "cidr"), network))


def _overlap(path: KeyPath, written: str, other: KeyPath) -> Finding:
    return Finding(
        path,
        f"{written} overlaps {path_text(other)}",
        "a value in two ranges would be handed out twice: make the ranges disjoint",
    )


def _racks(site: _Parts) -> Iterator[Finding]:
    racks = _name_set(site.racks)
    for path, switch in site.switches:
        if switch.get("rack") is not None:
            yield from _dangling(path, switch, "rack", racks, "racks")
    places: list[tuple[KeyPath, str]] = []
    for path, node in site.nodes:
        yield from _dangling(path, node, "rack", racks, "racks")
        if isinstance(node.get("position"), int):
            places.append(((*path, "position"), f"{node['position']} of {node.get('rack')}"))
    yield from _twice("position", places)


def _credentials(site: _Parts) -> Iterator[Finding]:
    names = dict.fromkeys(site.credentials)
    holders: list[Entry] = [
        (("fabrics", "ethernet"), site.ethernet),
        (("fabrics", "infiniband"), site.infiniband),
        *site.scheduler_hosts,
    ]
    holders += [((*path, "bmc"), _mapping(node.get("bmc"))) for path, node in site.nodes]
    for path, holder in holders:
        yield from _dangling(path, holder, "credentials_ref", names, "credentials")


def _nodes(site: _Parts) -> Iterator[Finding]:
    types = _name_set(site.node_types)
    for path, node in site.nodes:
        yield from _dangling(path, node, "type", types, "node_types")


def _switch_ports(site: _Parts) -> Iterator[Finding]:
    front: dict[str, frozenset[str]] = {}
    roles: dict[str, object] = {}
    for _, switch in site.switches:
        name = _text(switch.get("name"))
        if name is not None:
            front.setdefault(name, _port_names(switch.get("ports")))
            roles.setdefault(name, switch.get("role"))
    ends: list[tuple[KeyPath, str]] = []
    for path, _, port in site.ports("ethernet"):
        yield from _dangling(
            path, port, "switch", dict.fromkeys(front), "fabrics.ethernet.switches"
        )
        switch, end = _text(port.get("switch")), _text(_read(read_port_name, port.get("port")))
        if switch is None or end is None or switch not in front:
            continue
        ends.append(((*path, "port"), f"{switch} {end}"))
        if front[switch] and end not in front[switch]:
            yield Finding(
                (*path, "port"),
                f"switch {switch} has no port {end}",
                "list the port under the switch, or correct the cable",
                end,
                tuple(front[switch]),
            )
        if roles[switch] == "spine":
            yield Finding(
                (*path, "switch"), f"{switch} is a spine", "cable servers to leaf switches"
            )
    known = dict.fromkeys(name for _, name in site.infiniband_switches)
    for path, _, port in site.ports("infiniband"):
        if site.has_infiniband:
            yield from _dangling(path, port, "switch", known, "fabrics.infiniband.switches")
        switch, end = _text(port.get("switch")), _text(_read(read_port_name, port.get("port")))
        if switch is not None and end is not None:
            ends.append(((*path, "port"), f"{switch} {end}"))
    yield from _twice("switch port", ends)


def _rails(site: _Parts) -> Iterator[Finding]:
    rails_of = {
        _text(kind.get("name")): kind.get("infiniband_rails", 0) for _, kind in site.node_types
    }
    for path, node in site.nodes:
        ports = list(_entries(node.get("infiniband"), (*path, "infiniband")))
        if ports and not site.has_infiniband:
            yield Finding(
                (*path, "infiniband"),
                "the node has InfiniBand ports, the site has no InfiniBand fabric",
                "add fabrics.infiniband, or leave the ports out",
            )
        wanted = rails_of.get(_text(node.get("type")))
        if isinstance(wanted, int) and len(ports) != wanted:
            yield Finding(
                (*path, "infiniband") if ports else path,
                f"the node has {len(ports)} InfiniBand ports, its type {node.get('type')} "
                f"has {wanted} rails",
                "correct the ports, or make a node type of its own",
            )
        seen: list[tuple[KeyPath, str]] = []
        for port_path, port in ports:
            rail = port.get("rail")
            if not isinstance(rail, int):
                continue
            seen.append(((*port_path, "rail"), str(rail)))
            if isinstance(wanted, int) and rail >= wanted > 0:
                yield Finding(
                    (*port_path, "rail"),
                    f"rail {rail} does not exist",
                    f"rails are 0 to {wanted - 1}",
                )
        yield from _twice("rail", seen)
    if site.has_infiniband and not _list(site.pkeys):
        yield Finding(
            ("pools",),
            "the site has an InfiniBand fabric and no PKeys",
            'add pkeys: ["0x0010-0x7ffe"]',
        )


def _dangling(
    path: KeyPath, entry: dict[str, object], key: str, names: Iterable[str], where: str
) -> Iterator[Finding]:
    value = _text(entry.get(key))
    if value is not None and value not in names:
        known = tuple(names)
        yield Finding(
            (*path, key),
            f"{value} is not one of {where}",
            f"there are {len(known)}: {', '.join(known[:5])}{', …' if len(known) > 5 else ''}",
            value,
            known,
        )


def _twice(what: str, values: Iterable[tuple[KeyPath, str]]) -> Iterator[Finding]:
    first: dict[str, KeyPath] = {}
    for path, value in values:
        if value in first:
            yield Finding(
                path,
                f"{what} {value} stands twice, first at {path_text(first[value])}",
                "each may stand once",
            )
        else:
            first[value] = path


def _values(
    entries: Iterable[Entry], key: str, read: Callable[[object], object] | None = None
) -> list[tuple[KeyPath, str]]:
    found: list[tuple[KeyPath, str]] = []
    for path, entry in entries:
        value = _text(_read(read, entry.get(key)) if read else entry.get(key))
        if value is not None:
            found.append(((*path, key), value))
    return found


def _name_set(entries: Iterable[Entry]) -> dict[str, None]:
    return dict.fromkeys(name for _, name in _values(entries, "name"))


def _port_names(value: object) -> frozenset[str]:
    expanded = _read(expand_ports, value)
    if not isinstance(expanded, tuple):
        return frozenset()
    return frozenset(cast("tuple[str, ...]", expanded))  # expand_ports yields names alone.


def _read(read: Callable[[object], object], value: object) -> object:
    """Read a value as the model does; None where the model refuses it."""
    if value is None:
        return None
    try:
        return read(value)
    except PydanticCustomError:
        return None


def _text(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _is_mapping(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _mapping(value: object) -> dict[str, object]:
    return value if _is_mapping(value) else {}


def _list(value: object) -> list[object]:
    return value if _is_list(value) else []


def _entries(value: object, path: KeyPath) -> Iterator[Entry]:
    for i, entry in enumerate(_list(value)):
        if _is_mapping(entry):
            yield (*path, i), entry
