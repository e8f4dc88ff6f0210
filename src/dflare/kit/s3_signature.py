"""Signatures of requests to S3 (AWS Signature Version 4, Amazon S3 API Reference, "Authenticating
Requests (AWS Signature Version 4)", "Signature Calculations for the Authorization Header")."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
_UNRESERVED = "-_.~"


@dataclass(frozen=True)
class Credentials:
    """An access key, its secret, and the region that its signatures are for."""

    access_key: str
    secret_key: str
    region: str


def encode_path(path: str) -> str:
    """The path as it is sent and signed: every octet escaped but the unreserved and ``/``."""
    return quote(path, safe=_UNRESERVED + "/")


def encode_query(query: Mapping[str, str]) -> str:
    """The query as it is sent and signed: sorted by name, everything escaped."""
    return "&".join(
        f"{quote(name, safe=_UNRESERVED)}={quote(value, safe=_UNRESERVED)}"
        for name, value in sorted(query.items())
    )


def signed_headers(
    credentials: Credentials,
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    now: datetime,
    payload_hash: str = UNSIGNED_PAYLOAD,
) -> dict[str, str]:
    """``headers`` (names in lower case) with those that sign the request.

    ``path`` is unescaped and begins with ``/``; ``now`` is UTC. The payload is not signed unless
    its SHA-256 is given: hashing megabytes would hold up the event loop, TLS guards the way to a
    store elsewhere, and content that matters is named by its digest.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {
        **headers,
        "host": host,
        "x-amz-content-sha256": payload_hash,
        "x-amz-date": stamp,
    }
    names = ";".join(sorted(signed))
    request = "\n".join(
        (
            method,
            encode_path(path),
            encode_query(query),
            *(f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed)),
            "",
            names,
            payload_hash,
        )
    )
    scope = f"{stamp[:8]}/{credentials.region}/s3/aws4_request"
    text = "\n".join((ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    signature = hmac.digest(_signing_key(credentials, stamp[:8]), text.encode(), "sha256").hex()
    return {
        **signed,
        "authorization": f"{ALGORITHM} Credential={credentials.access_key}/{scope},"
        f"SignedHeaders={names},Signature={signature}",
    }


def _signing_key(credentials: Credentials, day: str) -> bytes:
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, credentials.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
