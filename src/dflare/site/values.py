"""The scalar values of a site document: how each is written, normalised and refused.

Every refusal is a ``PydanticCustomError`` whose context holds a ``hint``: what to write instead.
The site loader shows message and hint beside line and key.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from ipaddress import IPv4Network
from typing import Annotated, Final, cast

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

VLAN_LAST: Final = 4094
VNI_LAST: Final = 0xFFFFFF
PKEY_DEFAULT: Final = 0x7FFF
PKEY_FULL_MEMBER_BIT: Final = 0x8000
_PRICE_DECIMALS: Final = 6

_DECIMAL_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_HEXADECIMAL_RANGE = re.compile(r"0x([0-9a-fA-F]{1,4})(?:-0x([0-9a-fA-F]{1,4}))?")
_PORT_RANGE = re.compile(r"([A-Za-z][A-Za-z0-9/._]*?)(0|[1-9][0-9]*)-([1-9][0-9]*)")
_PORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9/._]{0,31}")
_ENDPOINT = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})"
)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_GUID = re.compile(r"[0-9a-f]{16}")
_PORTS_AT_MOST = 1024


def refusal(message: str, hint: str) -> PydanticCustomError:
    """Return the error a validator raises: ``message`` says what is wrong, ``hint`` the way out."""
    return PydanticCustomError("site_value", "{message}", {"message": message, "hint": hint})


@dataclass(frozen=True, order=True)
class NumberRange:
    """Whole numbers from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def overlaps(self, other: "NumberRange") -> bool:
        """Say whether any number lies in both ranges."""
        return self.first <= other.last and other.first <= self.last


def _decimal_range(value: object) -> object:
    if isinstance(value, NumberRange):
        return value
    found = _DECIMAL_RANGE.fullmatch(_text(value))
    if found is None:
        raise refusal(f"{value!r} is no range of numbers", 'write it as "100-199" or "100"')
    return _ordered(int(found[1]), int(found[2] or found[1]), str(value))


def _ordered(first: int, last: int, written: str) -> NumberRange:
    if last < first:
        raise refusal(f"the range {written} ends before it starts", "write the lower number first")
    return NumberRange(first, last)


def read_vlan_range(value: object) -> object:
    """Read ``100-199`` or ``100`` within 2 to 4094; raises ``PydanticCustomError``."""
    parsed = _decimal_range(value)
    if isinstance(parsed, NumberRange) and (parsed.first <= 1 or parsed.last > VLAN_LAST):
        raise refusal(
            f"VLAN range {write_decimal_range(parsed)} holds a reserved value",
            "0, 1 (the VLAN of unconfigured ports) and 4095 cannot be a tenant's: use 2-4094",
        )
    return parsed


def read_vni_range(value: object) -> object:
    """Read ``10000-29999`` within the 24 bits of RFC 7348; raises ``PydanticCustomError``."""
    parsed = _decimal_range(value)
    if isinstance(parsed, NumberRange) and (parsed.first < 1 or parsed.last > VNI_LAST):
        raise refusal(
            f"VNI range {write_decimal_range(parsed)} leaves the 24-bit space",
            f"use numbers from 1 to {VNI_LAST}",
        )
    return parsed


def read_pkey_range(value: object) -> object:
    """Read ``0x0010-0x7ffe``; raises ``PydanticCustomError``.

    A PKey has 15 bits and a membership bit; 0 is invalid and 0x7fff the default partition
    (InfiniBand Architecture Specification volume 1, section 10.9).
    """
    if isinstance(value, NumberRange):
        return value
    found = _HEXADECIMAL_RANGE.fullmatch(_text(value))
    if found is None:
        raise refusal(f"{value!r} is no range of PKeys", 'write it as "0x0010-0x7ffe"')
    parsed = _ordered(int(found[1], 16), int(found[2] or found[1], 16), str(value))
    if parsed.last > PKEY_DEFAULT:
        low = parsed.first & PKEY_DEFAULT
        raise refusal(
            f"PKey range {value} carries the full-membership bit (0x8000)",
            f"membership is set for each port, not here: write the 15-bit value, 0x{low:04x}",
        )
    if parsed.first == 0 or parsed.last == PKEY_DEFAULT:
        raise refusal(
            f"PKey range {value} holds a reserved value",
            "0x0 is invalid and 0x7fff is the default partition of every port: use 0x0001-0x7ffe",
        )
    return parsed


def write_decimal_range(value: NumberRange) -> str:
    """Write a VLAN or VNI range as the document holds it: ``100-199``, or ``100`` for one value."""
    return str(value.first) if value.first == value.last else f"{value.first}-{value.last}"


def write_pkey_range(value: NumberRange) -> str:
    """Write a PKey range as the document holds it: ``0x0010-0x7ffe``."""
    first, last = f"0x{value.first:04x}", f"0x{value.last:04x}"
    return first if first == last else f"{first}-{last}"


def expand_ports(value: object) -> object:
    """Turn ``["swp1-3", "eth0"]`` (or one such string) into every port's name, in order.

    Anything that is no list of strings is returned as it came, for the model to refuse.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    names: list[object] = []
    for item in cast("Sequence[object]", value):  # Elements are checked one by one below.
        names.extend(_expand_port(item))
        if len(names) > _PORTS_AT_MOST:
            raise refusal(
                f"a switch with more than {_PORTS_AT_MOST} ports",
                "check the ends of the port range",
            )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise refusal(f"port {twice} stands twice", "name every front port once")
    return tuple(names)


def _expand_port(item: object) -> list[object]:
    found = _PORT_RANGE.fullmatch(item) if isinstance(item, str) else None
    if found is None:
        name = read_port_name(item)
        if not isinstance(name, str):
            raise refusal(f"{item!r} is no port name", 'write names or ranges: ["swp1-64"]')
        return [name]
    first, last = int(found[2]), int(found[3])
    if last < first or last - first >= _PORTS_AT_MOST:
        raise refusal(f"{item} is no port range", 'write it as "swp1-64", the lower number first')
    return [f"{found[1]}{number}" for number in range(first, last + 1)]


def compress_ports(names: tuple[str, ...]) -> list[str]:
    """Write port names as short as ``expand_ports`` reads them back in the same order."""
    runs: list[tuple[str, int, int]] = []
    written: list[str] = []

    def close() -> None:
        for stem, first, last in runs:
            written.append(f"{stem}{first}" if first == last else f"{stem}{first}-{last}")
        runs.clear()

    for name in names:
        found = re.fullmatch(r"([A-Za-z][A-Za-z0-9/._]*?)(0|[1-9][0-9]*)", name)
        if found is None:
            close()
            written.append(name)
            continue
        stem, number = found[1], int(found[2])
        if runs and runs[-1][0] == stem and runs[-1][2] + 1 == number:
            runs[-1] = (stem, runs[-1][1], number)
        else:
            close()
            runs.append((stem, number, number))
    close()
    return written


def read_port_name(value: object) -> object:
    """Read a switch port's name; digits alone may come as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and not _PORT_NAME.fullmatch(value):
        raise refusal(f"{value!r} is no port name", "use letters, digits, '/', '.' and '_': swp1")
    return value


def read_endpoint(value: object) -> object:
    """Read ``host:port``, in lower case; raises ``PydanticCustomError``."""
    if not isinstance(value, str):
        return value
    found = _ENDPOINT.fullmatch(value)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise refusal(f"{value!r} is no host:port", "write host and TCP port: 10.0.0.5:443")
    return value.lower()


def read_https_address(value: object) -> object:
    """Read ``https://host:port``, in lower case; raises ``PydanticCustomError``."""
    if not isinstance(value, str):
        return value
    scheme, separator, endpoint = value.partition("://")
    found = _ENDPOINT.fullmatch(endpoint.removesuffix("/"))
    if (
        not separator
        or scheme.lower() != "https"
        or found is None
        or not 0 < int(found[1]) < 1 << 16
    ):
        raise refusal(
            f"{value!r} is no https://host:port", "write host and TCP port: https://10.0.3.1:6820"
        )
    return value.lower().removesuffix("/")


def split_endpoint(address: str) -> tuple[str, int]:
    """Split ``host:port`` of a valid document into its host (without brackets) and TCP port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def read_mac(value: object) -> object:
    """Read a unicast MAC address as lower-case pairs; raises ``PydanticCustomError``."""
    if not isinstance(value, str):
        return value
    normal = value.lower().replace("-", ":")
    if not _MAC.fullmatch(normal):
        raise refusal(f"{value!r} is no MAC address", "write six pairs: 02:00:5e:10:00:01")
    if int(normal[:2], 16) & 1:
        raise refusal(
            f"{value!r} is a multicast address", "a port's own MAC has an even first byte"
        )
    return normal


def read_guid(value: object) -> object:
    """Read a port GUID as 16 lower-case hexadecimal digits; raises ``PydanticCustomError``."""
    text = _text(value).lower().removeprefix("0x").replace(":", "")
    if not _GUID.fullmatch(text):
        raise refusal(f"{value!r} is no GUID", 'write 16 hexadecimal digits: "0002c903000a0b0c"')
    if int(text, 16) == 0:
        raise refusal("GUID 0 belongs to no port", "read the port GUID with ibstat")
    return text


def read_price(value: object) -> object:
    """Read an amount of money, which must be text so that no float rounds it."""
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        raise refusal(f"the price {value!r} is not written as text", f'put it in quotes: "{value}"')
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise refusal(f"{value!r} is no amount of money", 'write it as "12.50"') from None
    exponent = price.as_tuple().exponent
    if not isinstance(exponent, int) or price < 0:
        raise refusal(f"{value!r} is no price", 'write a number from zero up: "12.50"')
    if -exponent > _PRICE_DECIMALS or price >= 10**9:
        raise refusal(
            f"the price {value} cannot be kept exactly",
            f"use at most {_PRICE_DECIMALS} decimals and less than 1,000,000,000",
        )
    return price


def read_network(value: object) -> object:
    """Read an IPv4 prefix without host bits; raises ``PydanticCustomError``."""
    if isinstance(value, IPv4Network):
        return value
    try:
        return IPv4Network(_text(value))
    except ValueError as error:
        raise refusal(f"{value!r} is no IPv4 prefix: {error}", "write it as 10.64.0.0/12") from None


def _text(value: object) -> str:
    """Accept a number where YAML read digits as one; leading zeros were kept by the loader."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _digits_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"

Whole = Annotated[int, Field(strict=True)]
Name = Annotated[
    str,
    BeforeValidator(_digits_as_text),
    StringConstraints(pattern=NAME_PATTERN),
    WithJsonSchema({"type": ["string", "integer"], "pattern": NAME_PATTERN}),
]
Label = Annotated[
    str,
    BeforeValidator(_digits_as_text),
    StringConstraints(min_length=1, max_length=128),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1, "maxLength": 128}),
]
PortName = Annotated[
    str,
    BeforeValidator(read_port_name),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["swp1"]}),
]
Endpoint = Annotated[
    str,
    BeforeValidator(read_endpoint),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$", "examples": ["10.0.0.5:443"]}),
]
HttpsAddress = Annotated[
    str,
    BeforeValidator(read_https_address),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^https://.+:[0-9]{1,5}/?$",
            "examples": ["https://10.0.3.1:6820"],
        }
    ),
]
Mac = Annotated[
    str,
    BeforeValidator(read_mac),
    WithJsonSchema({"type": "string", "pattern": "^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$"}),
]
Guid = Annotated[
    str,
    BeforeValidator(read_guid),
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": "^(0x)?([0-9A-Fa-f]{2}:?){7}[0-9A-Fa-f]{2}$"}
    ),
]
VlanRange = Annotated[
    NumberRange,
    BeforeValidator(read_vlan_range),
    PlainSerializer(write_decimal_range, return_type=str),
    WithJsonSchema({"type": ["string", "integer"], "pattern": "^[0-9]+(-[0-9]+)?$"}),
]
VniRange = Annotated[
    NumberRange,
    BeforeValidator(read_vni_range),
    PlainSerializer(write_decimal_range, return_type=str),
    WithJsonSchema({"type": ["string", "integer"], "pattern": "^[0-9]+(-[0-9]+)?$"}),
]
PkeyRange = Annotated[
    NumberRange,
    BeforeValidator(read_pkey_range),
    PlainSerializer(write_pkey_range, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^0x[0-9a-fA-F]{1,4}(-0x[0-9a-fA-F]{1,4})?$"}),
]
Price = Annotated[
    Decimal,
    BeforeValidator(read_price),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,6})?$"}),
]
Prefix = Annotated[
    IPv4Network,
    BeforeValidator(read_network),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["10.64.0.0/12"]}),
]
Ports = Annotated[
    tuple[PortName, ...],
    BeforeValidator(expand_ports),
    PlainSerializer(compress_ports, return_type=list[str]),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "examples": [["swp1-64"]],
        }
    ),
]
