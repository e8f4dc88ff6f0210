"""Images without bytes in the gateway of ``tenanted_gateway``, for which no store of objects is
needed."""

from typing import Any

from dflare.kit.ids import new_id
from tenanted_gateway import TenantedGateway

EMPTY_BLOB = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The digest of no bytes."""

IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_IMAGE: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/x-empty", "digest": EMPTY_BLOB, "size": 0},
    "layers": [],
}


async def new_repository(gateway: TenantedGateway, *, tagged: bool = True) -> str:
    """A repository of the home project with an image ``v1``, or with its blob alone; its name."""
    organization, project = gateway.callers.organization.name, gateway.callers.project.name
    name = f"{organization}/{project}/r-{new_id('x')[-12:]}"
    path, digest = f"/v2/{name}/blobs/uploads/", {"digest": EMPTY_BLOB}
    answer = await gateway.ask("member", "POST", path, params=digest)
    assert answer.status_code == 201, answer.text
    if tagged:
        path, kind = f"/v2/{name}/manifests/v1", {"Content-Type": IMAGE_TYPE}
        answer = await gateway.ask("member", "PUT", path, json=EMPTY_IMAGE, headers=kind)
        assert answer.status_code == 201, answer.text
    return name
