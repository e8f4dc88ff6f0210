"""Reading what a client sends to the InfiniBand manager; what does not fit raises ``Refused``."""

from collections.abc import Mapping, Sequence

from dflare.sim.fabric.inventory import Inventory
from dflare.sim.fabric.partitions import DEFAULT_PKEY, Member, Membership, Qos
from dflare.sim.fabric.tree import Json, Tree
from dflare.sim.fabric.wire import Call

_GUID_DIGITS = 16


class Refused(Exception):  # noqa: N818 - the manager refuses, no error of ours
    """A request that the manager refuses, with the status it answers."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def members_of(guids: Sequence[str], body: Tree) -> dict[str, Member]:
    """How each of ``guids`` becomes a member: one ``membership`` for all, or ``memberships``."""
    index0 = boolean(body, "index0", default=False)
    several = body.get("memberships")
    if several is None:
        one = membership(body.get("membership", "full"))
        return {guid: Member(one, index0) for guid in guids}
    if not isinstance(several, list) or len(several) != len(guids):
        raise Refused("memberships: a list as long as guids is needed")
    pairs = zip(guids, several, strict=True)
    return {guid: Member(membership(value), index0) for guid, value in pairs}


def membership(value: Json) -> Membership:
    """``full`` or ``limited``."""
    match value:
        case "full" | "limited":
            return value
        case _:
            raise Refused(f"membership: {value!r} is not one of full, limited")


def ports_of(known: Inventory, names: str) -> list[str]:
    """The port GUIDs of the hosts whose names stand in ``names`` with commas between them."""
    guids: list[str] = []
    for name in (text.strip() for text in names.split(",")):
        if name not in known.guids:
            raise Refused(f"hosts_names: no host {name!r}", 404)
        guids.extend(known.guids[name])
    return guids


def body_of(call: Call) -> Tree:
    """The JSON object that the client sent."""
    body = call.json()
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object")
    return body


def boolean(body: Tree, key: str, *, default: bool) -> bool:
    """The optional truth value of ``key``."""
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise Refused(f"{key}: {value!r} is not true or false")
    return value


def qos_of(body: Tree) -> Qos:
    """The quality of service in ``body``, with the guide's defaults."""

    def number(key: str, default: float) -> float:
        value = body.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"{key}: {value!r} is not a number")
        return value

    return Qos(
        int(number("mtu_limit", 2)), int(number("service_level", 0)), number("rate_limit", 2.5)
    )


def pkey_of(value: Json) -> int:
    """The 15 bits of a key; the guide's range excludes 0x0."""
    try:
        pkey = int(value, 16) if isinstance(value, str) else -1
    except ValueError:
        pkey = -1
    if not 0 < pkey <= DEFAULT_PKEY:
        raise Refused(f"pkey: {value!r} is not a hexadecimal string between 0x1 and 0x7fff")
    return pkey


def guids_of(value: Json) -> list[str]:
    """A list of GUIDs, normalized."""
    if not isinstance(value, list):
        raise Refused("guids: a list is needed")
    return [guid_of(item) for item in value]


def guid_of(value: Json) -> str:
    """16 lower-case digits without ``0x``."""
    text = value.lower().removeprefix("0x") if isinstance(value, str) else ""
    if len(text) != _GUID_DIGITS or any(c not in "0123456789abcdef" for c in text):
        raise Refused(f"guids: {value!r} is not a GUID of 16 hexadecimal digits")
    return text


def is_true(query: Mapping[str, str], key: str) -> bool:
    """Whether the query says ``key=true``."""
    return query.get(key, "").lower() == "true"
