"""HTTP API of networks and, for operators, of a site's devices and pools."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.etag import etag_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.network.service import DeviceView, FreezeView, NetworkService
from dflare.services.network.tables import Network

_INTENTS_SHOWN = 50


class NetworkAnswer(BaseModel):
    """A cluster's isolated network. ``pkey`` is a hexadecimal string, null without InfiniBand. The
    network of a node that is cleaned has no owner, and the node's id for ``cluster_id``."""

    id: str
    cluster_id: str
    site_id: str
    organization_id: str | None
    project_id: str | None
    state: str
    reason: str
    since: datetime
    vrf: str
    vlan: int | None
    vni: int | None
    l3_vni: int | None
    pkey: str | None
    subnet: str | None
    created_at: datetime
    version: int


class IntentAnswer(BaseModel):
    """A write that may still take effect, until ``deadline`` at the latest unless ``jobs`` of the
    device still run."""

    id: str
    kind: str
    node_id: str | None
    network_id: str | None
    epoch: int
    opened_at: datetime
    deadline: datetime
    jobs: list[str]


class DeviceAnswer(BaseModel):
    """A switch or fabric manager. ``waiting`` of its ``ports`` were not seen as desired yet;
    ``repaired`` ports had drifted and were set right; ``open_intents`` counts all, ``intents``
    shows the oldest."""

    id: str
    name: str
    kind: str
    driver: str
    address: str
    retired: bool
    health: str
    reason: str
    since: datetime
    read_at: datetime | None
    ports: int
    waiting: int
    repaired: int
    reconciled_by: str
    open_intents: int
    intents: list[IntentAnswer]


class PoolAnswer(BaseModel):
    """Identifiers of one kind by state."""

    kind: str
    total: int
    free: int
    allocated: int
    draining: int
    cooldown: int


class PoolsAnswer(BaseModel):
    """The identifier pools of a site."""

    pools: list[PoolAnswer]


class FreezeBody(BaseModel):
    """Why nothing may be written."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500)


class WaitingAnswer(BaseModel):
    """Ports of a device whose desired state was not seen yet."""

    device_id: str
    ports: int


class FreezeAnswer(BaseModel):
    """Whether a site is frozen, and what waits."""

    site_id: str
    name: str
    frozen: bool
    frozen_by: str
    reason: str
    frozen_at: datetime | None
    waiting_ports: int
    waiting: list[WaitingAnswer]


def router(
    service: NetworkService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["networks"])
    _network_routes(routes, service, authorizer, principal)
    _site_routes(routes, service, principal)
    return routes


def _network_routes(
    routes: APIRouter,
    service: NetworkService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> None:
    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    async def page(
        caller: Principal, project: ProjectRef | None, cursor: str | None, limit: int
    ) -> Page[NetworkAnswer]:
        found, more = await service.networks(caller, project, decode_cursor(cursor), limit)
        return Page(items=[_network(n) for n in found], next_cursor=next_cursor(more))

    @routes.get("/networks")
    async def list_networks(
        *, caller: Principal = Depends(principal), cursor: Cursor = None, limit: Limit = 100
    ) -> Page[NetworkAnswer]:
        """Networks of all projects that the caller may read."""
        return await page(caller, None, cursor, limit)

    @routes.get("/projects/{project}/networks")
    async def list_project_networks(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[NetworkAnswer]:
        """Networks of a project."""
        return await page(caller, project, cursor, limit)

    @routes.get("/networks/{network}")
    async def show_network(
        *, response: Response, caller: Principal = Depends(principal), network: str
    ) -> NetworkAnswer:
        """One network with its identifiers."""
        found = await service.network(caller, network)
        response.headers["ETag"] = etag_of(found.version)
        return _network(found)


def _site_routes(
    routes: APIRouter, service: NetworkService, principal: Callable[..., Awaitable[Principal]]
) -> None:
    @routes.get("/sites/{site}/devices")
    async def list_devices(
        *,
        caller: Principal = Depends(principal),
        site: str,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[DeviceAnswer]:
        """Switches and fabric managers with health, drift and writes that are not over."""
        views, more = await service.devices(caller, site, decode_cursor(cursor), limit)
        return Page(items=[_device(view) for view in views], next_cursor=next_cursor(more))

    @routes.get("/sites/{site}/pools")
    async def show_pools(*, caller: Principal = Depends(principal), site: str) -> PoolsAnswer:
        """How many identifiers are in use."""
        usage = await service.usage(caller, site)
        return PoolsAnswer(
            pools=[PoolAnswer(kind=str(kind), **counts) for kind, counts in usage.items()]
        )

    @routes.get("/sites/{site}/freeze")
    async def show_freeze(*, caller: Principal = Depends(principal), site: str) -> FreezeAnswer:
        """Whether writes are stopped, and what waits."""
        return _freeze(await service.frozen(caller, site))

    @routes.post("/sites/{site}/freeze")
    async def freeze_site(
        *, caller: Principal = Depends(principal), site: str, body: FreezeBody
    ) -> FreezeAnswer:
        """Stop all writes to the site's network devices at once."""
        return _freeze(await service.freeze(caller, site, body.reason))

    @routes.post("/sites/{site}/unfreeze")
    async def unfreeze_site(*, caller: Principal = Depends(principal), site: str) -> FreezeAnswer:
        """Let writes go on; says what has waited."""
        return _freeze(await service.unfreeze(caller, site))


def _network(network: Network) -> NetworkAnswer:
    return NetworkAnswer(
        **{name: getattr(network, name) for name in NetworkAnswer.model_fields if name != "pkey"},
        pkey=None if network.pkey is None else hex(network.pkey),
    )


def _device(view: DeviceView) -> DeviceAnswer:
    device = view.device
    shown = view.intents[:_INTENTS_SHOWN]
    return DeviceAnswer(
        id=device.id,
        name=device.name,
        kind=device.kind,
        driver=device.driver,
        address=device.address,
        retired=device.retired,
        health=device.health,
        reason=device.reason,
        since=device.since,
        read_at=device.read_at,
        ports=view.work.ports,
        waiting=view.work.waiting,
        repaired=device.repaired,
        reconciled_by=view.work.holder,
        open_intents=len(view.intents),
        intents=[IntentAnswer.model_validate(i, from_attributes=True) for i in shown],
    )


def _freeze(view: FreezeView) -> FreezeAnswer:
    return FreezeAnswer(
        site_id=view.site_id,
        name=view.name,
        frozen=view.frozen,
        frozen_by=view.frozen_by,
        reason=view.frozen_reason,
        frozen_at=view.frozen_at,
        waiting_ports=sum(view.waiting.values()),
        waiting=[WaitingAnswer(device_id=d, ports=n) for d, n in view.waiting.items()],
    )
