"""The part of the NVUE object model that the simulated switch knows.

Source: CumulusNetworks/docs, Cumulus Linux 5.13, "NVUE API" (Supported Objects) and the chapters
"VLAN-aware Bridge Mode", "Traditional Bridge Mode", "VXLAN Devices", "Inter-subnet Routing" and
"Virtual Routing and Forwarding - VRF". Below the parts named here any JSON object is accepted, as
the platform does not use it and the walk does not look at it.
"""

import re

from dflare.sim.fabric.tree import Json, Tree, branch, find

BRIDGE = "br_default"
BUILD = "Cumulus Linux 5.13.0"
TOP_LEVEL = frozenset(
    {
        "acl",
        "bridge",
        "evpn",
        "interface",
        "maintenance",
        "mlag",
        "nve",
        "platform",
        "qos",
        "router",
        "service",
        "system",
        "vrf",
    }
)
PREDEFINED_VRFS = frozenset({"default", "mgmt"})
INTERFACE_NAME_MAX = 15
VLAN_MAX = 4094
VNI_MAX = 16_777_215

_TYPES = (
    (re.compile(r"swp\d+(s\d+)?"), "swp"),
    (re.compile(r"eth\d+"), "eth"),
    (re.compile(r"lo"), "loopback"),
    (re.compile(r"vlan\d+"), "svi"),
    (re.compile(r"bond\d+"), "bond"),
    (re.compile(r"peerlink"), "peerlink"),
)
_KNOWN_TYPES = frozenset({"swp", "eth", "loopback", "svi", "bond", "peerlink", "sub"})
_PORT_IN_BRIDGE = frozenset({"access", "untagged", "vlan", "learning", "stp", "multicast"})
_ON = frozenset({"on", "enabled"})


class Refused(Exception):  # noqa: N818 - the switch refuses, which is not an error of ours
    """A request that the switch refuses with 400; the message says where and why."""


class Invalid(Exception):  # noqa: N818 - the name is the device's own state
    """A configuration that cannot be applied.

    ``location`` is the dotted path, ``reason`` a sentence.
    """

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"Config invalid at {location}: {reason}")
        self.location = location
        self.reason = reason


def is_on(value: Json) -> bool:
    """Whether an ``enable`` (5.x) or ``state`` (later) leaf says yes."""
    return value in _ON


def type_of(interface: str) -> str | None:
    """The type that a well-named interface has without being told."""
    return next((kind for form, kind in _TYPES if form.fullmatch(interface)), None)


def completed(patch: Tree) -> Tree:
    """``patch`` with what the server adds itself: types of well-named interfaces, VLANs of SVIs.

    Source: "NVUE API", note on PATCH responses of 5.10 and later.
    """
    interfaces = patch.get("interface")
    if not isinstance(interfaces, dict):
        return patch
    filled: Tree = {}
    for name, value in interfaces.items():
        kind = type_of(name)
        if not isinstance(value, dict) or kind is None:
            filled[name] = value
            continue
        added: Tree = {"type": kind}
        if kind == "svi":
            added["vlan"] = int(name.removeprefix("vlan"))
        filled[name] = {**added, **value}
    return {**patch, "interface": filled}


def check_patch(patch: Tree) -> None:
    """Check the form of a root patch.

    Raises:
        Refused: a key or value that the schema does not have.
    """
    for key in patch:
        if key not in TOP_LEVEL:
            raise Refused(f"'{key}' is not a known object")
    for key, value in patch.items():
        if value is not None and not isinstance(value, dict):
            raise Refused(f"{key}: {value!r} is not of type 'object'")
    for name, domain in branch(patch, "bridge", "domain").items():
        _check_domain(name, domain)
    for name, interface in branch(patch, "interface").items():
        _check_interface(name, interface)
    for name, vrf in branch(patch, "vrf").items():
        if len(name) > 15:
            raise Refused(f"vrf: '{name}' is longer than {INTERFACE_NAME_MAX} characters")
        for vni in branch(vrf, "evpn", "vni"):
            _number(vni, VNI_MAX, f"vrf.{name}.evpn.vni")


def check_config(config: Tree) -> None:
    """Check what can only be seen in a whole configuration.

    Raises:
        Invalid: the configuration cannot be applied.
    """
    owners: dict[str, str] = {}
    for domain_name, domain in branch(config, "bridge", "domain").items():
        for vlan, body in branch(domain, "vlan").items():
            for vni in branch(body, "vni"):
                where = f"bridge.domain.{domain_name}.vlan.{vlan}.vni.{vni}"
                _claim(owners, vni, where)
    for vrf, body in branch(config, "vrf").items():
        for vni in branch(body, "evpn", "vni"):
            _claim(owners, vni, f"vrf.{vrf}.evpn.vni.{vni}")
    known = PREDEFINED_VRFS | branch(config, "vrf").keys()
    for name, interface in branch(config, "interface").items():
        vrf = find(interface, ("ip", "vrf"))
        if vrf is not None and vrf not in known:
            raise Invalid(f"interface.{name}.ip.vrf", f"VRF {vrf} is not configured.")


def _claim(owners: dict[str, str], vni: str, where: str) -> None:
    if vni in owners:
        raise Invalid(where, f"VNI {vni} is already used at {owners[vni]}.")
    owners[vni] = where


def _check_domain(name: str, domain: Json) -> None:
    if domain is None:
        return
    if not isinstance(domain, dict):
        raise Refused(f"bridge.domain.{name}: not of type 'object'")
    for vlan, body in branch(domain, "vlan").items():
        _number(vlan, VLAN_MAX, f"bridge.domain.{name}.vlan")
        for vni in branch(body, "vni"):
            _number(vni, VNI_MAX, f"bridge.domain.{name}.vlan.{vlan}.vni")


def _check_interface(name: str, interface: Json) -> None:
    if interface is None:
        return
    if not isinstance(interface, dict):
        raise Refused(f"interface.{name}: not of type 'object'")
    kind = interface.get("type", type_of(name))
    if kind is not None and kind not in _KNOWN_TYPES:
        raise Refused(f"interface.{name}.type: {kind!r} is not one of {sorted(_KNOWN_TYPES)}")
    if kind is None:
        raise Refused(f"interface.{name}: no type")
    for state in branch(interface, "link", "state"):
        if state not in {"up", "down"}:
            raise Refused(f"interface.{name}.link.state: '{state}' is not one of up, down")
    for domain, body in branch(interface, "bridge", "domain").items():
        _check_membership(f"interface.{name}.bridge.domain.{domain}", body)
    vlan = interface.get("vlan")
    if vlan is not None:
        _number(vlan, VLAN_MAX, f"interface.{name}.vlan")


def _check_membership(where: str, body: Json) -> None:
    if body is None:
        return
    if not isinstance(body, dict):
        raise Refused(f"{where}: not of type 'object'")
    for key, value in body.items():
        if key not in _PORT_IN_BRIDGE:
            raise Refused(f"{where}: '{key}' is not a known attribute")
        if key in {"access", "untagged"} and value is not None and value != "none":
            _number(value, VLAN_MAX, f"{where}.{key}")
    for vlan in branch(body, "vlan"):
        if vlan != "all":
            _vlan_range(vlan, f"{where}.vlan")


def _vlan_range(text: str, where: str) -> None:
    for end in text.split("-", 1):
        _number(end, VLAN_MAX, where)


def _number(value: Json, most: int, where: str) -> int:
    """The number that ``value`` is; ``auto`` counts as 0.

    Raises:
        Refused: it is none between 1 and ``most``.
    """
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Refused(f"{where}: {value!r} is not a number")
    text = str(value)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise Refused(f"{where}: {value!r} is not between 1 and {most}")
    return int(text)
