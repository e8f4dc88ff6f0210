"""HTTP API of reservations of whole blocks."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from fastapi import APIRouter, Depends, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from dflare.kit.etag import etag_of
from dflare.kit.orders import IfMatch, Name, Reference
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.orchestrator.contract import Same
from dflare.services.orchestrator.service_reservations import (
    BlockOrder,
    ReservationService,
    ReservationView,
)


class ReservationBody(BaseModel):
    """``blocks`` whole groups of ``level`` with all their nodes of ``node_type``, from
    ``starts_at`` (now where it is left out) to ``ends_at``."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    site: Reference | None = None
    node_type: Reference
    blocks: int = Field(ge=1, le=1024)
    level: Same = Same.BLOCK
    starts_at: AwareDatetime | None = None
    ends_at: AwareDatetime


class ReservationAnswer(BaseModel):
    """A reservation: ``scheduled``, ``active``, ``ended`` or ``cancelled``. ``held_by_others``
    counts its nodes that orders of other projects have at the moment."""

    id: str
    name: str
    state: str
    organization_id: str
    project_id: str
    site_id: str
    node_type: str
    level: Same
    blocks: list[str]
    nodes: list[str]
    held_by_others: int
    starts_at: datetime
    ends_at: datetime
    created_by: str
    created_at: datetime
    version: int


def _answer(view: ReservationView) -> ReservationAnswer:
    row = view.row
    return ReservationAnswer(
        id=row.id,
        name=row.name,
        state=view.state,
        organization_id=row.organization_id,
        project_id=row.project_id,
        site_id=row.site_id,
        node_type=row.node_type,
        level=Same(row.level),
        blocks=row.block_names,
        nodes=row.node_names,
        held_by_others=view.held_by_others,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        created_by=row.created_by,
        created_at=row.created_at,
        version=row.version,
    )


def router(
    reservations: ReservationService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``."""
    routes = APIRouter(tags=["reservations"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    @routes.post("/projects/{project}/reservations", status_code=201)
    async def create_reservation(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        body: ReservationBody,
    ) -> ReservationAnswer:
        """Reserve whole blocks for a project, all or nothing."""
        order = BlockOrder(
            name=body.name,
            site=body.site,
            node_type=body.node_type,
            blocks=body.blocks,
            level=body.level,
            starts_at=body.starts_at,
            ends_at=body.ends_at,
        )
        return _answer(await reservations.create(caller, project, order))

    @routes.get("/projects/{project}/reservations")
    async def list_reservations(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[ReservationAnswer]:
        """Reservations of a project that were not cancelled, newest first."""
        views, more = await reservations.list(caller, project, decode_cursor(cursor), limit)
        return Page(items=[_answer(view) for view in views], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/reservations/{reservation}")
    async def show_reservation(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        reservation: str,
    ) -> ReservationAnswer:
        """One reservation, by id or name."""
        view = await reservations.get(caller, project, reservation)
        response.headers["ETag"] = etag_of(view.row.version, view.row.id)
        return _answer(view)

    @routes.delete("/projects/{project}/reservations/{reservation}", status_code=204)
    async def delete_reservation(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        reservation: str,
        if_match: IfMatch = None,
    ) -> None:
        """End a reservation now; nodes that the project holds stay its own."""
        await reservations.delete(caller, project, reservation, if_match)

    return routes
