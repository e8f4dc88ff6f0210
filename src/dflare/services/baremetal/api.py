"""Routes of sites and nodes, relative to ``/v1``."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.errors import InvalidError
from dflare.kit.etag import etag_of
from dflare.kit.orders import IfMatch, accepted, request_key_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal
from dflare.services.baremetal.repository import NodeFilter
from dflare.services.baremetal.service import BaremetalService, NodeEntry
from dflare.services.baremetal.service_site import Applied, SiteService, SiteView, parse_document

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=255, description="The same key: the same order"),
]
Authenticate = Callable[..., Awaitable[Principal]]


class SiteNodeType(BaseModel):
    """A node type of a site; the price is a decimal string."""

    name: str
    gpu_model: str | None
    gpus: int
    price_per_node_hour: str
    currency: str


class SiteAnswer(BaseModel):
    """A site. Tenants see where it is and what it offers: the operators' ``description``, and
    ``nodes``, which counts its nodes by state, are null for them. ``document`` only when one site
    is asked for."""

    id: str
    name: str
    region: str
    description: str | None
    node_types: list[SiteNodeType]
    nodes: dict[str, int] | None
    created_at: datetime
    updated_at: datetime
    version: int
    document: dict[str, Any] | None = None


class FieldChangeAnswer(BaseModel):
    """A value that differs; passwords are masked."""

    path: str
    old: str | None
    new: str | None


class PartAnswer(BaseModel):
    """A part of the document: its kind and name, and what changes in it."""

    kind: str
    name: str
    fields: list[FieldChangeAnswer] = []


class AppliedAnswer(BaseModel):
    """What applying changed, or would change. ``operation`` enrols new and changed nodes."""

    dry_run: bool
    site_id: str | None
    added: list[PartAnswer]
    changed: list[PartAnswer]
    removed: list[PartAnswer]
    counts: dict[str, tuple[int, int, int]]
    operation: dict[str, Any] | None = None


class NodeAnswer(BaseModel):
    """A node. ``inventory`` and ``facts`` only when one is asked for."""

    id: str
    site_id: str
    name: str
    node_type: str
    rack: str
    vendor: str
    serial: str
    state: str
    reason: str
    since: datetime
    deadline: datetime | None
    fault: str
    cordoned: bool
    cordon_reason: str
    power: str
    health: str
    health_reason: str
    checked_at: datetime | None
    operation_id: str | None
    organization_id: str | None
    project_id: str | None
    cluster_id: str | None
    version: int
    inventory: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None


class ReasonBody(BaseModel):
    """Why an operator does it."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(min_length=1, max_length=500)


class ImageAnswer(BaseModel):
    """An image that can be ordered at a site."""

    site_id: str
    name: str
    builtin: bool
    sha256: str | None


class NodeTypeAnswer(BaseModel):
    """A node type that can be ordered at a site; the price is a decimal string."""

    site_id: str
    name: str
    vendor: str
    model: str
    gpu_model: str | None
    gpus: int
    infiniband_rails: int
    price_per_node_hour: str
    currency: str


def router(
    nodes: BaremetalService,
    authorizer: Authorizer,
    principal: Authenticate,
) -> APIRouter:
    """The routes. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["baremetal"])
    sites = SiteService(nodes.database, nodes.clock, nodes.sealer, authorizer, nodes.orchestrator)
    _site_routes(routes, sites, principal)
    _catalog_routes(routes, nodes, principal)
    _node_routes(routes, nodes, principal)
    _node_orders(routes, nodes, principal)
    return routes


def _site_routes(routes: APIRouter, sites: SiteService, principal: Authenticate) -> None:
    @routes.put(
        "/sites/{name}",
        responses={202: {"model": AppliedAnswer, "description": "Nodes are being enrolled"}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "application/yaml": {"schema": {"type": "string"}},
                },
            }
        },
    )
    async def apply_site(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        name: str,
        key: IdempotencyKey = None,
        if_match: IfMatch = None,
        dry_run: Annotated[bool, Query(description="Say what would change")] = False,
    ) -> JSONResponse:
        """Declare a site by its whole document (`docs/how-to/site.md`), as JSON or YAML."""
        await sites.may_apply(caller)
        body = await request.body()
        document = await parse_document(body)
        if document.name != name:
            raise InvalidError(
                f"the document is of site {document.name}, the path names {name}",
                next_step="Use the same name in both.",
            )
        if dry_run:
            status, applied = 200, await sites.preview(caller, document, if_match)
        else:
            made = await request_key_of(request, caller.subject, key)
            status, applied = await sites.apply(caller, document, made, if_match)
        answer = _applied(applied, dry_run=dry_run)
        headers = (
            {"Location": f"/v1/operations/{answer.operation['id']}"}
            if status == 202 and answer.operation
            else {}
        )
        return JSONResponse(answer.model_dump(mode="json"), status, headers)

    @routes.get("/sites")
    async def list_sites(*, caller: Principal = Depends(principal)) -> Page[SiteAnswer]:
        """All sites, with what can be ordered there; node counts for operators and auditors."""
        return Page(items=[_site(view) for view in await sites.list_sites(caller)])

    @routes.get("/sites/{site}")
    async def show_site(
        *, response: Response, caller: Principal = Depends(principal), site: str
    ) -> SiteAnswer:
        """One site with its document, by id or name; passwords are masked."""
        view = await sites.get(caller, site)
        response.headers["ETag"] = etag_of(view.site.version, view.site.id)
        return _site(view).model_copy(update={"document": view.site.document})


def _catalog_routes(routes: APIRouter, nodes: BaremetalService, principal: Authenticate) -> None:
    @routes.get("/images")
    async def list_images(*, caller: Principal = Depends(principal)) -> Page[ImageAnswer]:
        """Images that can be ordered."""
        items = [
            ImageAnswer(
                site_id=image.site_id,
                name=image.name,
                builtin=image.builtin is not None,
                sha256=image.sha256,
            )
            for image in await nodes.images(caller)
        ]
        return Page(items=items)

    @routes.get("/node-types")
    async def list_node_types(*, caller: Principal = Depends(principal)) -> Page[NodeTypeAnswer]:
        """Node types that can be ordered."""
        items = [
            NodeTypeAnswer(
                site_id=kind.site_id,
                name=kind.name,
                vendor=kind.vendor,
                model=kind.model,
                gpu_model=kind.gpu_model,
                gpus=kind.gpus,
                infiniband_rails=kind.infiniband_rails,
                price_per_node_hour=_decimal(kind.price_per_node_hour),
                currency=kind.currency,
            )
            for kind in await nodes.node_types(caller)
        ]
        return Page(items=items)


def _node_routes(routes: APIRouter, nodes: BaremetalService, principal: Authenticate) -> None:
    @routes.get("/nodes")
    async def list_nodes(
        *,
        caller: Principal = Depends(principal),
        cursor: Cursor = None,
        limit: Limit = 100,
        site: str | None = None,
        state: str | None = None,
        node_type: str | None = None,
        cluster: str | None = None,
        name: str | None = None,
    ) -> Page[NodeAnswer]:
        """Nodes: all for operators, those in their hands for tenants."""
        wanted = NodeFilter(site, state, node_type, cluster, name)
        entries, last = await nodes.list_nodes(caller, wanted, decode_cursor(cursor), limit)
        return Page(items=[_node(entry) for entry in entries], next_cursor=next_cursor(last))

    @routes.get("/nodes/{node}")
    async def show_node(
        *, response: Response, caller: Principal = Depends(principal), node: str
    ) -> NodeAnswer:
        """One node with its inventory, by id or by a name that is unique to the caller."""
        entry = await nodes.get(caller, node)
        response.headers["ETag"] = etag_of(entry.node.version)
        facts = dict(entry.node.facts)
        if not nodes.authorizer.scope(caller).everything:
            # How a BMC is reached, and by which account, is no tenant's.
            facts.pop("bmc", None)
        whole = {"inventory": entry.node.inventory, "facts": facts}
        return _node(entry).model_copy(update=whole)

    @routes.post("/nodes/{node}/cordon")
    async def cordon_node(
        *, caller: Principal = Depends(principal), node: str, body: ReasonBody
    ) -> NodeAnswer:
        """Keep a node out of new orders."""
        return _node(await nodes.cordon(caller, node, cordoned=True, reason=body.reason))

    @routes.post("/nodes/{node}/uncordon")
    async def uncordon_node(*, caller: Principal = Depends(principal), node: str) -> NodeAnswer:
        """Let a node into new orders again."""
        return _node(await nodes.cordon(caller, node, cordoned=False, reason=""))

    @routes.post("/nodes/{node}/quarantine")
    async def quarantine_node(
        *, caller: Principal = Depends(principal), node: str, body: ReasonBody
    ) -> NodeAnswer:
        """Take a node out of every use; only cleaning leads out."""
        return _node(await nodes.quarantine(caller, node, body.reason))


def _node_orders(routes: APIRouter, nodes: BaremetalService, principal: Authenticate) -> None:
    def add(verb: str, text: str) -> None:
        async def order_node(
            *,
            request: Request,
            caller: Principal = Depends(principal),
            node: str,
            key: IdempotencyKey = None,
        ) -> JSONResponse:
            made = await request_key_of(request, caller.subject, key)
            status, document = await nodes.order(caller, node, verb, made)
            return accepted(status, document)

        order_node.__doc__ = text
        order_node.__name__ = f"{verb.replace('-', '_')}_node"
        routes.post(f"/nodes/{{node}}/{verb}", status_code=202)(order_node)

    add("reboot", "Reset a node.")
    add("rescue", "Start a rescue system in memory; the disks stay untouched.")
    add("unrescue", "Boot the system on the disks again.")
    add("reimage", "Write the disks anew with the cluster's image and start it.")
    add("enrol", "Read a node's inventory again and compare it with what is declared.")
    add("release-quarantine", "Clean a node in quarantine and give it back to the pool.")


def _site(view: SiteView) -> SiteAnswer:
    site = view.site
    return SiteAnswer(
        id=site.id,
        name=site.name,
        region=site.region,
        description=site.description if view.nodes is not None else None,
        node_types=[
            SiteNodeType(
                name=kind.name,
                gpu_model=kind.gpu_model,
                gpus=kind.gpus,
                price_per_node_hour=_decimal(kind.price_per_node_hour),
                currency=kind.currency,
            )
            for kind in view.node_types
        ],
        nodes=dict(view.nodes) if view.nodes is not None else None,
        created_at=site.created_at,
        updated_at=site.updated_at,
        version=site.version,
    )


def _applied(applied: Applied, *, dry_run: bool) -> AppliedAnswer:
    changes = applied.diff
    return AppliedAnswer(
        dry_run=dry_run,
        site_id=applied.site.id if applied.site else None,
        added=[PartAnswer(kind=kind, name=name) for kind, name in changes.added],
        changed=[
            PartAnswer(
                kind=part.kind,
                name=part.name,
                fields=[FieldChangeAnswer(**vars(change)) for change in part.fields],
            )
            for part in changes.changed
        ],
        removed=[PartAnswer(kind=kind, name=name) for kind, name in changes.removed],
        counts={str(kind): numbers for kind, numbers in changes.counts().items()},
        operation=applied.operation,
    )


def _node(entry: NodeEntry) -> NodeAnswer:
    node, holder = entry.node, entry.holder
    left_out = {"organization_id", "project_id", "cluster_id", "operation_id", "inventory", "facts"}
    own = {n: getattr(node, n) for n in NodeAnswer.model_fields if n not in left_out}
    return NodeAnswer(
        **own,
        operation_id=node.acting_operation_id,
        organization_id=holder.organization_id if holder else None,
        project_id=holder.project_id if holder else None,
        cluster_id=holder.cluster_id if holder else None,
    )


def _decimal(value: Decimal) -> str:
    return format(value, "f")
