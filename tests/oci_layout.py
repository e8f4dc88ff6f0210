"""An image on disk, as an OCI layout that clients of registries push."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any


def write_layout(folder: Path, layers: int, layer_bytes: int) -> Path:
    """An image of so many layers that compression makes no smaller; the layout's folder."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def keep(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    described: list[dict[str, Any]] = []
    diff_ids: list[str] = []
    for number in range(layers):
        content = _archive(f"file-{number}", os.urandom(layer_bytes))
        diff_ids.append(f"sha256:{hashlib.sha256(content).hexdigest()}")
        packed = gzip.compress(content, compresslevel=0)
        described.append(keep(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    config_type = "application/vnd.oci.image.config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": keep(json.dumps(config).encode(), config_type),
        "layers": described,
    }
    own = keep(json.dumps(manifest).encode(), str(manifest["mediaType"]))
    listed = {**own, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    document = {"schemaVersion": 2, "manifests": [listed]}
    (folder / "index.json").write_text(json.dumps(document))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def _archive(name: str, content: bytes) -> bytes:
    """A tar file with one file in it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    """The blobs of a layout by their names."""
    return {path.name: path.read_bytes() for path in (folder / "blobs" / "sha256").iterdir()}
