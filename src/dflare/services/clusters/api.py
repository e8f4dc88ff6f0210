"""HTTP API of clusters, SSH keys and user data."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.errors import InvalidError
from dflare.kit.etag import etag_of
from dflare.kit.orders import IdempotencyKey, IfMatch, Name, Reference, accepted, request_key_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.clusters.domain_scheduler import partition_of
from dflare.services.clusters.service import ClusterService, ClusterView
from dflare.services.clusters.service_admission import SITE_DEFAULT_IMAGE, ClusterOrder
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.service_scheduler import VolumeWish
from dflare.services.clusters.tables import SshKey, UserData
from dflare.services.orchestrator.contract import PlacementWish, PoolWish


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PoolBody(_Body):
    """A node pool: ``count`` nodes of ``node_type``."""

    name: Name = "default"
    node_type: Reference
    count: int = Field(ge=1, le=8192)


class VolumeBody(_Body):
    """A volume of the project that every node is to see at ``mount``; of kind ``slurm`` only."""

    volume: Reference
    mount: str = Field(max_length=200)
    read_only: bool = False


class ClusterBody(_Body):
    """An order. ``site`` may be left out where there is one site; without an ``image`` the first
    that the site declares is booted; keys are names or ids. ``ttl_s`` is after how many seconds
    from now it is released, unless it is ``protected``. ``placement`` says where its nodes shall
    lie; one that may ``wait_for_capacity`` waits in turn where too few nodes are free."""

    name: Name
    kind: Literal["bare", "slurm"] = "bare"
    site: Reference | None = None
    image: Reference = SITE_DEFAULT_IMAGE
    pools: list[PoolBody] = Field(min_length=1, max_length=32)
    ssh_keys: list[Reference] = Field(default_factory=list[Reference], max_length=64)
    user_data: Reference | None = None
    volumes: list[VolumeBody] = Field(default_factory=list[VolumeBody], max_length=16)
    placement: PlacementWish | None = None
    wait_for_capacity: bool = False
    ttl_s: Annotated[int, Field(ge=60, le=366 * 24 * 3600)] | None = None
    protected: bool = False


class PoolAnswer(BaseModel):
    """A node pool."""

    id: str
    name: str
    node_type: str
    count: int


class MemberAnswer(BaseModel):
    """A node of a cluster. ``slot`` is its number in its pool; one that is drained takes no new
    work, and only who drained it ends that."""

    node_id: str
    name: str
    node_type: str
    pool: str
    slot: int
    allocation: str
    drained_by: str | None
    drain_reason: str | None


class ConditionAnswer(BaseModel):
    """What is said of a cluster beside its state: Ready, NodesHealthy, SchedulerHealthy or
    Expiring. ``since`` is when ``status`` (true, false, unknown) became what it is."""

    type: str
    status: str
    reason: str
    message: str
    since: datetime


class SchedulerAnswer(BaseModel):
    """How the cluster's Slurm is, and what to name to it: ``partitions`` are those of its pools,
    ``account`` is whom jobs are billed to. ``state`` is empty until it was seen."""

    state: str
    reason: str
    partitions: list[str]
    account: str


class ClusterAnswer(BaseModel):
    """A cluster. ``nodes`` and ``scheduler`` are filled when one cluster is asked for, not in
    lists; a bare one has no scheduler. A volume is told by its id."""

    id: str
    name: str
    kind: str
    organization_id: str
    project_id: str
    site_id: str
    image: str
    state: str
    reason: str
    since: datetime
    deadline: datetime | None
    pools: list[PoolAnswer]
    nodes: list[MemberAnswer]
    ssh_keys: list[str]
    user_data: str | None
    operation_id: str
    placement: str
    expires_at: datetime | None
    protected: bool
    conditions: list[ConditionAnswer]
    volumes: list[VolumeBody]
    scheduler: SchedulerAnswer | None
    created_by: str
    created_at: datetime
    version: int


class QuoteAnswer(BaseModel):
    """What an order would get: nodes, why these, and the price an hour as a decimal string. One
    that would ``wait`` gets no nodes now; ``placement`` says what it would wait for."""

    dry_run: bool = True
    waits: bool = False
    nodes: list[str]
    placement: str
    price_per_hour: str
    currency: str


class SshKeyBody(_Body):
    """An OpenSSH public key, one line."""

    name: Name
    public_key: str = Field(max_length=16_384)


class SshKeyAnswer(BaseModel):
    """An SSH key."""

    id: str
    name: str
    public_key: str
    fingerprint: str
    created_by: str
    created_at: datetime


class UserDataBody(_Body):
    """Cloud-init user data, at most 64 KiB."""

    name: Name
    text: str = Field(min_length=1, max_length=65_536)


class UserDataAnswer(BaseModel):
    """User data; ``text`` only when one is asked for."""

    id: str
    name: str
    sha256: str
    size_bytes: int
    created_by: str
    created_at: datetime
    text: str | None = None


_MADE = {"pools", "nodes", "user_data", "placement", "conditions", "volumes", "scheduler"}
"""Parts of the answer that are no columns of the cluster."""


def cluster_answer(view: ClusterView) -> ClusterAnswer:
    """A cluster as the API shows it."""
    cluster = view.cluster
    return ClusterAnswer(
        **{
            name: getattr(cluster, name) for name in ClusterAnswer.model_fields if name not in _MADE
        },
        pools=[
            PoolAnswer(id=p.id, name=p.name, node_type=p.node_type, count=p.count)
            for p in view.pools
        ],
        nodes=[
            MemberAnswer(
                node_id=m.node_id,
                name=m.node_name,
                node_type=m.node_type,
                pool=m.pool,
                slot=m.slot,
                allocation=m.state,
                drained_by=view.drains[m.node_id].owner if m.node_id in view.drains else None,
                drain_reason=view.drains[m.node_id].reason if m.node_id in view.drains else None,
            )
            for m in view.members
        ],
        user_data=cluster.user_data_id,
        placement=cluster.explanation,
        conditions=[ConditionAnswer.model_validate(one) for one in cluster.conditions],
        volumes=[
            VolumeBody(volume=one["volume_id"], mount=one["target"], read_only=one["read_only"])
            for one in cluster.mounts
        ],
        scheduler=SchedulerAnswer(
            state=view.scheduler.state,
            reason=view.scheduler.reason,
            partitions=sorted({partition_of(pool.name) for pool in view.pools}),
            account=view.scheduler.account,
        )
        if view.scheduler
        else None,
    )


def _order(body: ClusterBody) -> ClusterOrder:
    names = [pool.name for pool in body.pools]
    if len(set(names)) != len(names):
        raise InvalidError("two pools have the same name", next_step="Name each pool differently.")
    return ClusterOrder(
        name=body.name,
        kind=body.kind,
        site=body.site,
        image=body.image,
        pools=tuple(
            PoolWish(pool=p.name, node_type=p.node_type, count=p.count) for p in body.pools
        ),
        ssh_keys=tuple(body.ssh_keys),
        user_data=body.user_data,
        volumes=tuple(VolumeWish(v.volume, v.mount, v.read_only) for v in body.volumes),
        ttl=None if body.ttl_s is None else timedelta(seconds=body.ttl_s),
        protected=body.protected,
        placement=body.placement,
        wait_for_capacity=body.wait_for_capacity,
    )


def router(
    clusters: ClusterService,
    keys: KeyService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["clusters"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    @routes.post(
        "/projects/{project}/clusters",
        status_code=202,
        responses={200: {"model": QuoteAnswer, "description": "Answer of a dry run"}},
    )
    async def create_cluster(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        body: ClusterBody,
        key: IdempotencyKey = None,
        dry_run: Annotated[bool, Query(description="Say what would happen")] = False,
    ) -> JSONResponse:
        """Order a cluster; answers with the operation to follow."""
        if dry_run:
            quote = await clusters.quote(caller, project, _order(body))
            answer = QuoteAnswer(
                waits=quote.reservation.waits,
                nodes=[placed.node_name for placed in quote.reservation.placed],
                placement=quote.reservation.explanation,
                price_per_hour=str(quote.price_per_hour),
                currency=quote.currency,
            )
            return JSONResponse(answer.model_dump(mode="json"), 200)
        status, document = await clusters.create(
            caller, project, _order(body), await request_key_of(request, caller.subject, key)
        )
        return accepted(status, document)

    @routes.get("/clusters")
    async def list_all_clusters(
        *,
        caller: Principal = Depends(principal),
        cursor: Cursor = None,
        limit: Limit = 100,
        deleted: bool = False,
    ) -> Page[ClusterAnswer]:
        """Clusters of all projects that the caller may read."""
        return await _page(None, caller, cursor, limit, deleted)

    @routes.get("/projects/{project}/clusters")
    async def list_clusters(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
        deleted: bool = False,
    ) -> Page[ClusterAnswer]:
        """Clusters of a project."""
        return await _page(project, caller, cursor, limit, deleted)

    async def _page(
        project: ProjectRef | None,
        caller: Principal,
        cursor: str | None,
        limit: int,
        deleted: bool,
    ) -> Page[ClusterAnswer]:
        views, more = await clusters.list(
            caller, project, decode_cursor(cursor), limit, deleted=deleted
        )
        return Page(items=[cluster_answer(view) for view in views], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/clusters/{cluster}")
    async def show_cluster(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
    ) -> ClusterAnswer:
        """One cluster with its nodes, by id or name."""
        view = await clusters.get(caller, project, cluster)
        response.headers["ETag"] = etag_of(view.cluster.version, view.cluster.id)
        return cluster_answer(view)

    @routes.delete("/projects/{project}/clusters/{cluster}", status_code=202)
    async def delete_cluster(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        key: IdempotencyKey = None,
        if_match: IfMatch = None,
    ) -> JSONResponse:
        """Release a cluster; usage ends with this request."""
        status, document = await clusters.delete(
            caller, project, cluster, await request_key_of(request, caller.subject, key), if_match
        )
        return accepted(status, document)

    _ssh_key_routes(routes, keys, principal, project_of)
    _user_data_routes(routes, keys, principal, project_of)
    return routes


def _ssh_key_routes(
    routes: APIRouter,
    keys: KeyService,
    principal: Callable[..., Awaitable[Principal]],
    project_of: Callable[..., Awaitable[ProjectRef]],
) -> None:
    def answer(row: SshKey) -> SshKeyAnswer:
        return SshKeyAnswer.model_validate(row, from_attributes=True)

    @routes.post("/projects/{project}/ssh-keys", status_code=201)
    async def add_ssh_key(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        body: SshKeyBody,
    ) -> SshKeyAnswer:
        """Add an SSH key."""
        return answer(await keys.add_ssh_key(caller, project, body.name, body.public_key))

    @routes.get("/projects/{project}/ssh-keys")
    async def list_ssh_keys(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[SshKeyAnswer]:
        """SSH keys of a project."""
        rows, more = await keys.list(caller, project, SshKey, decode_cursor(cursor), limit)
        return Page(items=[answer(row) for row in rows], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/ssh-keys/{ssh_key}")
    async def show_ssh_key(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        ssh_key: str,
    ) -> SshKeyAnswer:
        """One SSH key, by id or name."""
        row = await keys.get(caller, project, SshKey, ssh_key)
        response.headers["ETag"] = etag_of(row.version, row.id)
        return answer(row)

    @routes.delete("/projects/{project}/ssh-keys/{ssh_key}", status_code=204)
    async def delete_ssh_key(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        ssh_key: str,
        if_match: IfMatch = None,
    ) -> None:
        """Remove an SSH key that no live cluster uses."""
        await keys.delete(caller, project, SshKey, ssh_key, if_match)


def _user_data_routes(
    routes: APIRouter,
    keys: KeyService,
    principal: Callable[..., Awaitable[Principal]],
    project_of: Callable[..., Awaitable[ProjectRef]],
) -> None:
    def answer(row: UserData) -> UserDataAnswer:
        return UserDataAnswer.model_validate(row, from_attributes=True)

    @routes.post("/projects/{project}/user-data", status_code=201)
    async def add_user_data(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        body: UserDataBody,
    ) -> UserDataAnswer:
        """Add cloud-init user data."""
        return answer(await keys.add_user_data(caller, project, body.name, body.text))

    @routes.get("/projects/{project}/user-data")
    async def list_user_data(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[UserDataAnswer]:
        """User data of a project, without texts."""
        rows, more = await keys.list(caller, project, UserData, decode_cursor(cursor), limit)
        return Page(items=[answer(row) for row in rows], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/user-data/{user_data}")
    async def show_user_data(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        user_data: str,
    ) -> UserDataAnswer:
        """One with its text, by id or name."""
        row, text = await keys.user_data_text(caller, project, user_data)
        response.headers["ETag"] = etag_of(row.version, row.id)
        return answer(row).model_copy(update={"text": text})

    @routes.delete("/projects/{project}/user-data/{user_data}", status_code=204)
    async def delete_user_data(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        user_data: str,
        if_match: IfMatch = None,
    ) -> None:
        """Remove user data that no live cluster uses."""
        await keys.delete(caller, project, UserData, user_data, if_match)
