"""What a manifest refers to, read from its JSON.

Source: OCI image specification 1.1, "Image Manifest", "Image Index" and "Guidelines for Artifact
Usage"; Docker Image Manifest V2, Schema 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from dflare.services.registry.domain import assert_off_loop, is_digest
from dflare.services.registry.errors import ManifestInvalidError

MAX_MANIFEST_BYTES = 4 * 2**20
INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_IMAGES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_INDEXES = frozenset({INDEX, _DOCKER_LIST})
_ELSEWHERE = ("nondistributable", "foreign")
"""Words in the media types of layers that need not be in a registry."""


@dataclass(frozen=True)
class Descriptor:
    """A reference to content: its digest and size in bytes."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class ParsedManifest:
    """What a manifest says of itself and refers to. ``blobs`` must be in its repository, and so
    must ``manifests``; ``elsewhere`` (layers that others may not distribute) and ``subject`` need
    not."""

    media_type: str
    artifact_type: str = ""
    subject: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    blobs: tuple[Descriptor, ...] = ()
    elsewhere: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()


def parse_manifest(content: bytes, content_type: str) -> ParsedManifest:
    """Read a manifest, off the event loop: one of 4 MiB takes long.

    Raises:
        ManifestInvalidError: it is none, of a kind that is not kept, or two kinds at once (a reader
            that takes it for the other kind would see other content: CVE-2021-41190).
    """
    assert_off_loop("a manifest is parsed")
    document = _document(content)
    said = document.get("mediaType")
    announced = content_type.partition(";")[0].strip().lower()
    if said is not None and announced and said != announced:
        raise _invalid(f"its mediaType is {str(said)[:100]}, Content-Type {announced[:100]}")
    media_type = str(said or announced)
    is_index = media_type in _INDEXES
    if not is_index and media_type not in _IMAGES:
        raise _invalid(f"manifests of type {media_type[:100] or 'nothing'} are not kept here")
    foreign = ("config", "layers") if is_index else ("manifests",)
    if any(member in document for member in foreign):
        raise _invalid("it is an image and an index at once")
    blobs: list[Descriptor] = []
    elsewhere: list[Descriptor] = []
    manifests: list[Descriptor] = []
    config: dict[str, Any] = {}
    if is_index:
        manifests = [_descriptor(one) for one in _list(document, "manifests")]
    else:
        config = _object(document.get("config"), "config")
        blobs = [_descriptor(config)]
        for layer in _list(document, "layers"):
            (elsewhere if _is_elsewhere(layer) else blobs).append(_descriptor(layer))
    subject = document.get("subject")
    return ParsedManifest(
        media_type=media_type,
        artifact_type=_text(document, "artifactType") or _text(config, "mediaType"),
        subject=_descriptor(subject).digest if subject is not None else "",
        annotations=_annotations(document),
        blobs=tuple(dict.fromkeys(blobs)),
        elsewhere=tuple(dict.fromkeys(elsewhere)),
        manifests=tuple(dict.fromkeys(manifests)),
    )


def _document(content: bytes) -> dict[str, Any]:
    try:
        document: Any = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _invalid("it is not JSON") from error
    found = _object(document, "the manifest")
    if found.get("schemaVersion") != 2:
        raise _invalid("its schemaVersion is not 2")
    return found


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{what} is not an object")
    return cast("dict[str, Any]", value)


def _list(document: dict[str, Any], member: str) -> list[Any]:
    found = document.get(member)
    if not isinstance(found, list):
        raise _invalid(f"{member} is not a list")
    return cast("list[Any]", found)


def _descriptor(value: Any) -> Descriptor:
    found = _object(value, "a descriptor")
    digest, size = found.get("digest"), found.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise _invalid("a descriptor has no digest of sha256 or sha512")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53:
        raise _invalid(f"the descriptor of {digest} has no size")
    return Descriptor(digest, size)


def _is_elsewhere(layer: Any) -> bool:
    found = _object(layer, "a descriptor")
    media_type = _text(found, "mediaType")
    return bool(found.get("urls")) or any(word in media_type for word in _ELSEWHERE)


def _text(document: dict[str, Any], member: str) -> str:
    found = document.get(member, "")
    if not isinstance(found, str) or "\x00" in found or len(found) > 255:
        raise _invalid(f"{member} is not a short text")
    return found


def _annotations(document: dict[str, Any]) -> dict[str, str]:
    found = _object(document.get("annotations") or {}, "annotations")
    if not all(isinstance(value, str) for value in found.values()):
        raise _invalid("an annotation is not a text")
    # PostgreSQL's JSON cannot hold the character NUL.
    if any("\x00" in text for pair in found.items() for text in pair):
        raise _invalid("an annotation has the character NUL")
    return cast("dict[str, str]", found)


def _invalid(why: str) -> ManifestInvalidError:
    return ManifestInvalidError(
        f"this is no manifest to keep: {why}",
        next_step="Push OCI or Docker v2 images and indexes.",
    )
