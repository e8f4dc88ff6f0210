"""Lifecycle of a cluster: one enum (in the contract), one transition function."""

import base64
import binascii
import hashlib
from collections.abc import Mapping

from dflare.kit.errors import ConflictError
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.errors import InvalidKeyError

_ALLOWED: Mapping[ClusterState, frozenset[ClusterState]] = {
    ClusterState.PENDING: frozenset({ClusterState.CREATING, ClusterState.FAILED}),
    ClusterState.CREATING: frozenset({ClusterState.READY, ClusterState.FAILED}),
    ClusterState.READY: frozenset({ClusterState.DELETING}),
    ClusterState.FAILED: frozenset({ClusterState.CREATING, ClusterState.DELETING}),
    ClusterState.DELETING: frozenset({ClusterState.DELETED}),
    ClusterState.DELETED: frozenset(),
}

_KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)


def check_transition(old: ClusterState, new: ClusterState) -> None:
    """Whether ``new`` may follow ``old``; the same state again is allowed, for repeated steps.

    Raises:
        ConflictError: it may not.
    """
    if new is not old and new not in _ALLOWED[old]:
        raise ConflictError(
            f"a cluster that is {old} cannot become {new}",
            next_step="Look at it with `dflare cluster show`.",
        )


def ssh_fingerprint(public_key: str) -> str:
    """The SHA256 fingerprint of an OpenSSH public key, as ``ssh-keygen -lf`` prints it.

    Source: RFC 4253 section 6.6 (the blob begins with its own type).

    Raises:
        InvalidKeyError: it is not one line of the form ``<type> <base64> [comment]``.
    """
    parts = public_key.strip().split(None, 2)
    if "\n" in public_key.strip() or len(parts) < 2 or parts[0] not in _KEY_TYPES:
        raise _not_a_key()
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except binascii.Error as error:
        raise _not_a_key() from error
    name = parts[0].encode()
    if blob[:4] != len(name).to_bytes(4, "big") or blob[4 : 4 + len(name)] != name:
        raise _not_a_key()
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def _not_a_key() -> InvalidKeyError:
    return InvalidKeyError(
        "this is not an OpenSSH public key",
        next_step="Give one line as in ~/.ssh/id_ed25519.pub: type, base64 and a comment.",
    )
