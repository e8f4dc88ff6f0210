"""A whole platform whose simulated scheduler host runs Debian's own Slurm."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dflare.drivers.scheduler.port import HostAccess
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from running_platform import PlatformHandle, Tenant
from scheduler_host import packages_or_skip


def slurm_environment() -> dict[str, str]:
    """Where the platform finds Slurm's packages; without any the test is skipped."""
    packages = packages_or_skip()
    return {"DFLARE_SLURM_PACKAGES": str(packages.parent)}


@asynccontextmanager
async def scheduler_host(platform: PlatformHandle) -> AsyncIterator[SlurmHost]:
    """The site's scheduler host, reached by the driver as the site's worker does."""
    (declared,) = platform.document.scheduler_hosts
    account = platform.document.credentials[declared.credentials_ref]
    assert account.password is not None
    password = account.password.get_secret_value()
    access = HostAccess(declared.name, declared.address, account.username, password)
    rest = HostRest(ca_file=str(platform.layout.device_ca_file), timeout_s=30)
    try:
        yield SlurmHost(rest, access)
    finally:
        await rest.close()


def order_of(name: str, count: int) -> dict[str, Any]:
    """The body of an order of a Slurm cluster with one pool, ``gpu``."""
    pools = [{"name": "gpu", "node_type": "h100-8", "count": count}]
    return {"name": name, "kind": "slurm", "pools": pools}


async def admitted_order(platform: PlatformHandle, tenant: Tenant, order: dict[str, Any]) -> Any:
    """The operation of an order; asked for again until the scheduler host was heard of."""
    operation: Any = None

    async def admitted() -> bool:
        nonlocal operation
        path = f"/v1/projects/{tenant.project_id}/clusters"
        answer = await tenant.http.post(path, json=order)
        if answer.status_code != 202:
            assert answer.json()["type"].endswith("/slurm-unavailable"), answer.text
        operation = answer.json()
        return answer.status_code == 202

    await platform.until(admitted, 120)
    return operation
