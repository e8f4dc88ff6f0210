"""HTTP API of volumes."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.etag import etag_of
from dflare.kit.orders import IdempotencyKey, IfMatch, Name, Reference, accepted, request_key_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.volumes.api_snapshots import snapshot_routes
from dflare.services.volumes.contract import AccessMode
from dflare.services.volumes.domain import over_quota
from dflare.services.volumes.service import VolumeOrder, VolumeService, VolumeView
from dflare.services.volumes.service_access import AccessService
from dflare.services.volumes.service_quote import QuoteService, VolumeQuote

MAX_SIZE_GIB = 1_048_576
"""One pebibyte."""

DryRun = Annotated[bool, Query(description="Say what would happen")]
SizeGib = Annotated[int, Field(ge=1, le=MAX_SIZE_GIB, description="Size in GiB")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class VolumeBody(_Body):
    """An order. ``site`` may be left out where there is one site."""

    name: Name
    size_gib: SizeGib
    site: Reference | None = None


class ResizeBody(_Body):
    """Another size."""

    size_gib: SizeGib


class AccessBody(_Body):
    """What a cluster may do: ``ro`` reads, ``rw`` reads and writes."""

    mode: Literal["ro", "rw"] = "rw"


class AccessAnswer(BaseModel):
    """What a cluster is to have of a volume (``mode``), and was seen to have (``observed``);
    ``none`` is nothing."""

    cluster_id: str
    cluster: str
    mode: str
    observed: str


class VolumeAnswer(BaseModel):
    """A volume. ``size_gib`` is had and paid for, ``wanted_gib`` was asked for last.

    ``quota`` is ``hard`` where writing beyond the size fails, and ``advisory`` where it does not:
    there ``used_bytes``, found by a scan at ``scanned_at``, and ``over_quota`` say what is. It is
    empty until the storage has answered. ``used_complete`` is false where ``used_bytes`` is a lower
    bound. ``no_snapshots`` is why its storage keeps none, empty where it does. ``trouble`` is why
    the storage is not yet as it should be.
    """

    id: str
    name: str
    organization_id: str
    project_id: str
    site_id: str
    size_gib: int
    wanted_gib: int
    state: str
    reason: str
    trouble: str
    since: datetime
    deadline: datetime | None
    quota: str
    used_bytes: int | None
    used_complete: bool
    over_quota: bool
    scanned_at: datetime | None
    no_snapshots: str
    access: list[AccessAnswer]
    operation_id: str
    created_by: str
    created_at: datetime
    version: int


class QuoteAnswer(BaseModel):
    """What a dry run found: the size, where, and the price an hour of the whole volume as a decimal
    string. ``limit_gib`` is what the project may have, ``used_gib`` what its other volumes count.
    ``quota`` is how the size is held, empty where no storage has answered yet."""

    dry_run: bool = True
    name: str
    size_gib: int
    site_id: str
    site: str
    price_per_hour: str
    currency: str
    limit_gib: int
    used_gib: int
    quota: str


_DRY_RUN: dict[int | str, dict[str, Any]] = {
    200: {"model": QuoteAnswer, "description": "Answer of a dry run"}
}


def volume_answer(view: VolumeView) -> VolumeAnswer:
    """A volume as the API shows it."""
    made = {"access", "over_quota"}
    return VolumeAnswer(
        **{
            name: getattr(view.volume, name)
            for name in VolumeAnswer.model_fields
            if name not in made
        },
        over_quota=over_quota(view.volume),
        access=[
            AccessAnswer(
                cluster_id=row.cluster_id,
                cluster=view.cluster_names.get(row.cluster_id, ""),
                mode=row.mode,
                observed=row.observed,
            )
            for row in view.access
        ],
    )


def router(
    volumes: VolumeService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["volumes"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    async def page(
        project: ProjectRef | None, caller: Principal, cursor: str | None, limit: int, deleted: bool
    ) -> Page[VolumeAnswer]:
        views, more = await volumes.list(
            caller, project, decode_cursor(cursor), limit, deleted=deleted
        )
        return Page(items=[volume_answer(view) for view in views], next_cursor=next_cursor(more))

    @routes.get("/volumes")
    async def list_all_volumes(
        *,
        caller: Principal = Depends(principal),
        cursor: Cursor = None,
        limit: Limit = 100,
        deleted: bool = False,
    ) -> Page[VolumeAnswer]:
        """Volumes of all projects that the caller may read."""
        return await page(None, caller, cursor, limit, deleted)

    @routes.get("/projects/{project}/volumes")
    async def list_volumes(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
        deleted: bool = False,
    ) -> Page[VolumeAnswer]:
        """Volumes of a project."""
        return await page(project, caller, cursor, limit, deleted)

    @routes.get("/projects/{project}/volumes/{volume}")
    async def show_volume(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
    ) -> VolumeAnswer:
        """One volume, by id or name."""
        view = await volumes.get(caller, project, volume)
        response.headers["ETag"] = etag_of(view.volume.version, view.volume.id)
        return volume_answer(view)

    _ordering_routes(routes, volumes, principal, project_of)
    _access_routes(routes, volumes, principal, project_of)
    snapshot_routes(routes, volumes, principal, project_of)
    return routes


def _ordering_routes(
    routes: APIRouter,
    volumes: VolumeService,
    principal: Callable[..., Awaitable[Principal]],
    project_of: Callable[..., Awaitable[ProjectRef]],
) -> None:
    quotes = QuoteService(volumes)

    @routes.post("/projects/{project}/volumes", status_code=202, responses=_DRY_RUN)
    async def create_volume(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        body: VolumeBody,
        key: IdempotencyKey = None,
        dry_run: DryRun = False,
    ) -> JSONResponse:
        """Order a volume; answers with the operation to follow."""
        order = VolumeOrder(body.name, body.size_gib, body.site)
        if dry_run:
            return _quoted(await quotes.create(caller, project, order))
        given = await volumes.create(
            caller, project, order, await request_key_of(request, caller.subject, key)
        )
        return accepted(*given)

    @routes.patch("/projects/{project}/volumes/{volume}", status_code=202, responses=_DRY_RUN)
    async def resize_volume(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
        body: ResizeBody,
        key: IdempotencyKey = None,
        if_match: IfMatch = None,
        dry_run: DryRun = False,
    ) -> JSONResponse:
        """Order another size; answers with the operation to follow."""
        if dry_run:
            return _quoted(await quotes.resize(caller, project, volume, body.size_gib))
        given = await volumes.resize(
            caller,
            project,
            volume,
            body.size_gib,
            await request_key_of(request, caller.subject, key),
            if_match,
        )
        return accepted(*given)

    @routes.delete("/projects/{project}/volumes/{volume}", status_code=202)
    async def delete_volume(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
        key: IdempotencyKey = None,
        if_match: IfMatch = None,
    ) -> JSONResponse:
        """Release a volume and remove its content; usage ends with this request."""
        given = await volumes.delete(
            caller, project, volume, await request_key_of(request, caller.subject, key), if_match
        )
        return accepted(*given)


def _quoted(quote: VolumeQuote) -> JSONResponse:
    answer = QuoteAnswer(
        name=quote.name,
        size_gib=quote.size_gib,
        site_id=quote.site_id,
        site=quote.site,
        price_per_hour=str(quote.price_per_hour),
        currency=quote.currency,
        limit_gib=quote.quota.limit_gib,
        used_gib=quote.quota.used_gib,
        quota=quote.held,
    )
    return JSONResponse(answer.model_dump(mode="json"), 200)


def _access_routes(
    routes: APIRouter,
    volumes: VolumeService,
    principal: Callable[..., Awaitable[Principal]],
    project_of: Callable[..., Awaitable[ProjectRef]],
) -> None:
    access = AccessService(volumes)

    @routes.put("/projects/{project}/volumes/{volume}/access/{cluster}")
    async def attach_volume(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
        cluster: str,
        body: AccessBody,
    ) -> VolumeAnswer:
        """Let a cluster of the project use a volume of its site; ``observed`` follows."""
        mode = AccessMode(body.mode)
        return volume_answer(await access.set(caller, project, volume, cluster, mode))

    @routes.delete("/projects/{project}/volumes/{volume}/access/{cluster}")
    async def detach_volume(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
        cluster: str,
    ) -> VolumeAnswer:
        """Take a volume away from a cluster; it is gone there when its entry is."""
        mode = AccessMode.NONE
        return volume_answer(await access.set(caller, project, volume, cluster, mode))
