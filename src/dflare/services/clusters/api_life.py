"""HTTP API of running clusters: their size, their nodes, their end, their protection."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.errors import InvalidError
from dflare.kit.etag import etag_of
from dflare.kit.orders import IdempotencyKey, IfMatch, Reference, accepted, request_key_of
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.clusters.api import ClusterAnswer, cluster_answer
from dflare.services.clusters.service import ClusterView
from dflare.services.clusters.service_life import LifeChange, LifeService, ScaleOrder


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScaleBody(_Body):
    """``count`` nodes in the pool from now on. ``nodes`` (names or ids) are those that leave first;
    without a count they alone leave. ``drain`` says what is done where jobs run on them: wait until
    they have ended, refuse, or end them now; a cluster without a scheduler has none."""

    count: int | None = Field(default=None, ge=0, le=8192)
    drain: Literal["wait", "refuse", "now"] = "wait"
    nodes: list[Reference] = Field(default_factory=list[Reference], max_length=8192)


class LifeBody(_Body):
    """What changes. ``ttl_s`` is counted from now, in seconds; ``null`` takes the end away. A
    protected cluster is released neither by an order nor at its end."""

    protected: bool | None = None
    ttl_s: Annotated[int, Field(ge=60, le=366 * 24 * 3600)] | None = None


class DrainBody(_Body):
    """Why the node takes no new work."""

    reason: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")


def router(
    life: LifeService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["clusters"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    @routes.patch("/projects/{project}/clusters/{cluster}")
    async def change_cluster(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        body: LifeBody,
        if_match: IfMatch = None,
    ) -> ClusterAnswer:
        """Set a cluster's end and protection."""
        view = await life.change(caller, project, cluster, _change(body), if_match)
        return _answer(response, view)

    @routes.patch("/projects/{project}/clusters/{cluster}/pools/{pool}", status_code=202)
    async def scale_pool(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        pool: str,
        body: ScaleBody,
        key: IdempotencyKey = None,
        if_match: IfMatch = None,
    ) -> JSONResponse:
        """Order another size of a pool; answers with the operation to follow."""
        if body.count is None and not body.nodes:
            raise InvalidError(
                "neither a count nor nodes are given",
                next_step="Say how many nodes the pool is to have, or which leave it.",
            )
        order = ScaleOrder(body.count, body.drain, tuple(body.nodes))
        request_key = await request_key_of(request, caller.subject, key)
        answer = await life.scale(caller, project, cluster, pool, order, request_key, if_match)
        return accepted(*answer)

    _node_routes(routes, life, principal, project_of)
    return routes


def _node_routes(
    routes: APIRouter,
    life: LifeService,
    principal: Callable[..., Awaitable[Principal]],
    project_of: Callable[..., Awaitable[ProjectRef]],
) -> None:
    @routes.post("/projects/{project}/clusters/{cluster}/nodes/{node}/replace", status_code=202)
    async def replace_node(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        node: str,
        key: IdempotencyKey = None,
        if_match: IfMatch = None,
    ) -> JSONResponse:
        """Order another node in the place of this one; its release follows in an operation of its
        own, which the cluster names then."""
        request_key = await request_key_of(request, caller.subject, key)
        return accepted(
            *await life.replace_node(caller, project, cluster, node, request_key, if_match)
        )

    @routes.post("/projects/{project}/clusters/{cluster}/nodes/{node}/drain")
    async def drain_node(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        node: str,
        body: DrainBody,
    ) -> ClusterAnswer:
        """Let a node take no new work; only its owner ends a drain."""
        return _answer(response, await life.drain(caller, project, cluster, node, body.reason))

    @routes.post("/projects/{project}/clusters/{cluster}/nodes/{node}/undrain")
    async def undrain_node(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        node: str,
    ) -> ClusterAnswer:
        """End a drain of the caller's own."""
        return _answer(response, await life.undrain(caller, project, cluster, node))


def _change(body: LifeBody) -> LifeChange:
    if body.ttl_s is not None:
        return LifeChange(body.protected, timedelta(seconds=body.ttl_s))
    return LifeChange(body.protected, False if "ttl_s" in body.model_fields_set else None)


def _answer(response: Response, view: ClusterView) -> ClusterAnswer:
    response.headers["ETag"] = etag_of(view.cluster.version, view.cluster.id)
    return cluster_answer(view)
