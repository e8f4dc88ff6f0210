"""Tenants of a whole platform whose projects may hold images."""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

from running_platform import PlatformHandle, Tenant, ok

QUOTA_GIB = 8


@dataclass(frozen=True)
class Login:
    """What a client of the registry is given."""

    host: str
    tenant: Tenant
    user: str
    password: str

    def name(self, repository: str) -> str:
        """A repository of the tenant's project, without the host."""
        return f"{self.tenant.name}/{self.tenant.name}-lab/{repository}"


async def logged_in(platform: PlatformHandle, name: str) -> Login:
    """A tenant whose project may hold images, with a token for programs."""
    tenant = await platform.tenant(name, {"registry-gib": QUOTA_GIB})
    for _ in range(600):
        shown = ok(await tenant.http.get(f"/v1/projects/{tenant.project_id}/registry"))
        if shown["limit_bytes"]:
            break
        await asyncio.sleep(0.1)
    body = {"name": "a client", "expires_in_s": 3600}
    made = ok(await tenant.http.post("/v1/tokens", json=body))
    return Login(urlsplit(platform.url).netloc, tenant, f"{name}-user@{name}", made["secret"])
