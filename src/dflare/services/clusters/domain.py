"""Lifecycle of a cluster: one enum (in the contract), one transition function, its public state."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from dflare.kit.errors import ConflictError
from dflare.kit.outbox import Event
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.errors import ClusterBusyError, InvalidKeyError
from dflare.services.clusters.tables import Cluster

_ALLOWED: Mapping[ClusterState, frozenset[ClusterState]] = {
    ClusterState.PENDING: frozenset({ClusterState.CREATING, ClusterState.FAILED}),
    ClusterState.CREATING: frozenset({ClusterState.READY, ClusterState.FAILED}),
    ClusterState.READY: frozenset({ClusterState.RESIZING, ClusterState.DELETING}),
    ClusterState.RESIZING: frozenset({ClusterState.READY, ClusterState.DELETING}),
    ClusterState.FAILED: frozenset({ClusterState.CREATING, ClusterState.DELETING}),
    ClusterState.DELETING: frozenset({ClusterState.DELETED}),
    ClusterState.DELETED: frozenset(),
}

ORDER_DEADLINE = timedelta(hours=2)
"""How long an order may take before someone should look."""

_KEY_FIELDS: Mapping[str, int] = {
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}
"""How many strings the blob of a key of each type is made of, its type's name being the first.
Source: RFC 4253 section 6.6, RFC 5656 section 3.1, RFC 8709 section 4, OpenSSH PROTOCOL.u2f."""


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


def check_deletable(cluster: Cluster) -> None:
    """Whether a release may be ordered now.

    Raises:
        ClusterBusyError: it is being created or deleted.
    """
    state = ClusterState(cluster.state)
    if state in {ClusterState.READY, ClusterState.FAILED}:
        return
    raise ClusterBusyError(
        f"cluster {cluster.name} is {state}",
        next_step=f"Cancel its operation first: dflare operation cancel {cluster.operation_id}"
        if state in {ClusterState.PENDING, ClusterState.CREATING, ClusterState.RESIZING}
        else f"Follow its release: dflare operation watch {cluster.operation_id}",
    )


def cluster_id_of(operation_id: str) -> str:
    """The id of the cluster that a create operation makes: a repeat finds the same."""
    return "clu_" + operation_id.partition("_")[2]


def cluster_document(cluster: Cluster) -> dict[str, Any]:
    """Public state of a cluster, the data of ``cluster.changed``."""
    return {
        "id": cluster.id,
        "name": cluster.name,
        "kind": cluster.kind,
        "organization_id": cluster.organization_id,
        "project_id": cluster.project_id,
        "site_id": cluster.site_id,
        "state": cluster.state,
        "reason": cluster.reason,
        "since": cluster.since.isoformat(),
        "operation_id": cluster.operation_id,
        "expires_at": cluster.expires_at.isoformat() if cluster.expires_at else None,
        "protected": bool(cluster.protected),
        "conditions": cluster.conditions or [],
        "version": cluster.version,
    }


def cluster_event(cluster: Cluster, now: datetime) -> Event:
    """``cluster.changed`` for a locked cluster."""
    return Event(
        type="cluster.changed",
        resource_kind="cluster",
        resource_id=cluster.id,
        resource_version=cluster.version,
        at=now,
        data=cluster_document(cluster),
        organization_id=cluster.organization_id,
        project_id=cluster.project_id,
        site_id=cluster.site_id,
        operation_id=cluster.operation_id,
    )


def ssh_fingerprint(public_key: str) -> str:
    """The SHA256 fingerprint of an OpenSSH public key, as ``ssh-keygen -lf`` prints it.

    Raises:
        InvalidKeyError: it is not one line of the form ``<type> <base64> [comment]``.
    """
    parts = public_key.strip().split(None, 2)
    if "\n" in public_key.strip() or len(parts) < 2 or parts[0] not in _KEY_FIELDS:
        raise _not_a_key()
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except binascii.Error as error:
        raise _not_a_key() from error
    fields = _strings(blob)
    if fields is None or fields[0] != parts[0].encode() or len(fields) != _KEY_FIELDS[parts[0]]:
        raise _not_a_key()
    if "ed25519" in parts[0] and len(fields[1]) != 32:
        raise _not_a_key()
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def _strings(blob: bytes) -> list[bytes] | None:
    """The strings of an SSH blob (RFC 4251 section 5), if it is made of whole ones, none empty."""
    found: list[bytes] = []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + size or size == 0:
            return None
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return found or None


def _not_a_key() -> InvalidKeyError:
    return InvalidKeyError(
        "this is not an OpenSSH public key",
        next_step="Give one line as in ~/.ssh/id_ed25519.pub: type, base64 and a comment.",
    )
