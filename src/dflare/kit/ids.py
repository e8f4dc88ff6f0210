"""Typed ids: a prefix that names the kind and a UUIDv7 in Crockford base 32 (the TypeID form).

Ids sort by their time of creation within a kind, which keeps indexes compact. They are never used
as feed cursors: clocks of two processes may disagree.
Source: RFC 9562 section 5.7; TypeID specification 0.3.
"""

import secrets
import time
from typing import NewType

OrganizationId = NewType("OrganizationId", str)
ProjectId = NewType("ProjectId", str)
UserId = NewType("UserId", str)
SiteId = NewType("SiteId", str)
NodeId = NewType("NodeId", str)
ClusterId = NewType("ClusterId", str)
NodePoolId = NewType("NodePoolId", str)
OperationId = NewType("OperationId", str)
AllocationId = NewType("AllocationId", str)
NetworkId = NewType("NetworkId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_SUFFIX_LENGTH = 26


def new_id(prefix: str) -> str:
    """A new id such as ``node_01h455vb4pex5vsknk084sn02q``."""
    unix_ms, rest_ns = divmod(time.time_ns(), 1_000_000)
    value = (unix_ms & (2**48 - 1)) << 80
    value |= 0x7 << 76
    # A quarter of a microsecond, so that ids of one millisecond sort too (RFC 9562 section 6.2,
    # method 3): which of two operations is the newer one is read from their ids.
    value |= (rest_ns * 4096 // 1_000_000) << 64
    value |= 0b10 << 62
    value |= secrets.randbits(62)
    digits: list[str] = []
    for _ in range(_SUFFIX_LENGTH):
        digits.append(_ALPHABET[value & 31])
        value >>= 5
    return f"{prefix}_{''.join(reversed(digits))}"


def is_id(prefix: str, text: str) -> bool:
    """Whether ``text`` has the form of an id of kind ``prefix``."""
    head, _, suffix = text.rpartition("_")
    return head == prefix and len(suffix) == _SUFFIX_LENGTH and set(suffix) <= set(_ALPHABET)
