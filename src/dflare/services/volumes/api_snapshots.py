"""HTTP API of snapshots of volumes."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends

from dflare.kit.orders import Name
from dflare.kit.pagination import Page
from dflare.services.auth.contract import Principal, ProjectRef
from dflare.services.volumes.contract import SnapshotFacts
from dflare.services.volumes.service import VolumeService
from dflare.services.volumes.service_snapshots import SnapshotService


def snapshot_routes(
    routes: APIRouter,
    volumes: VolumeService,
    principal: Callable[..., Awaitable[Principal]],
    project_of: Callable[..., Awaitable[ProjectRef]],
) -> None:
    """Add them to the routes of volumes."""
    snapshots = SnapshotService(volumes)

    @routes.get("/projects/{project}/volumes/{volume}/snapshots")
    async def list_snapshots(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
    ) -> Page[SnapshotFacts]:
        """All snapshots of a volume, oldest first; a volume has a few."""
        return Page(items=list(await snapshots.list(caller, project, volume)))

    @routes.put("/projects/{project}/volumes/{volume}/snapshots/{snapshot}")
    async def take_snapshot(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
        snapshot: Name,
    ) -> SnapshotFacts:
        """Keep a volume as it is now; ``state`` follows. Hosts read it at ``path`` below the
        mount."""
        return await snapshots.take(caller, project, volume, snapshot)

    @routes.delete("/projects/{project}/volumes/{volume}/snapshots/{snapshot}")
    async def drop_snapshot(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        volume: str,
        snapshot: str,
    ) -> SnapshotFacts:
        """Drop a snapshot, by name or id; it is gone when it is no longer listed."""
        return await snapshots.drop(caller, project, volume, snapshot)
