"""An order of a cluster as volumes sees it: what it mounts, granted and taken away."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from dflare.drivers.volumes.local import LocalVolumes
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.operations import NewOperation, create_operation
from dflare.kit.plan import Plan, PlannedStep
from dflare.kit.steps import Step
from dflare.services.orchestrator.sagas import cluster_parts
from dflare.services.volumes import activities
from dflare.services.volumes.contract import VolumeState
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals
from dflare.services.volumes.tables import KIT, Access, DeclaredCluster, KnownCluster, Volume

SITE = "site_kit"

SHARE = Plan(
    saga="share",
    steps=(
        cluster_parts.GRANT_VOLUMES,
        # Stands for all that follows in an order, so that there is something to fail at.
        PlannedStep(name="volumes.grant@1", on="resource", deadline_s=300, commit=True),
    ),
)
UNSHARE = Plan(
    saga="unshare",
    steps=(
        cluster_parts.GRANT_VOLUMES.model_copy(update={"commit": True}),
        cluster_parts.REVOKE_VOLUMES,
    ),
)


@dataclass
class ShareWorld:
    """Two volumes of a project for each order, one of which a neighbour has too."""

    database: Database
    storage: LocalVolumes
    settings: VolumesSettings
    plan: Plan
    signals: Signals
    project_id: str = field(default_factory=lambda: new_id("prj"))
    clusters: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def steps(self) -> Sequence[Step[Any]]:
        clock = SystemClock()
        parts = activities.Parts(self.database, clock, self.settings, self.signals)
        return [*activities.steps(clock), *activities.site_steps(parts)]

    async def order(self) -> str:
        operation_id, cluster_id = new_id("op"), new_id("clu")
        volume_ids = [new_id("vol"), new_id("vol")]
        self.clusters[operation_id] = cluster_id, volume_ids
        for volume_id in volume_ids:
            await self.storage.ensure(volume_id)
            await self.storage.set_quota(volume_id, 10)
            await self.storage.set_access(volume_id, {"clu_neighbour": False})
        now = datetime.now(UTC)
        async with self.database.transaction("volumes") as session:
            for volume_id in volume_ids:
                session.add(self._volume(volume_id, now))
                session.add(_access(volume_id, now))
            mounts = [
                {"volume_id": one, "target": "/mnt", "read_only": one == volume_ids[1]}
                for one in volume_ids
            ]
            facts = {"cluster_id": cluster_id, "project_id": self.project_id, "site_id": SITE}
            session.add(DeclaredCluster(**facts, mounts=mounts, version=1))
            session.add(KnownCluster(**facts, name="kit", state="creating", version=1))
            await session.flush()
            new = NewOperation(
                id=operation_id,
                kind=self.plan.saga,
                organization_id="org_kit",
                project_id=self.project_id,
                site_id=SITE,
                resource_kind="cluster",
                resource_id=cluster_id,
                plan=self.plan,
                targets=[],
                created_by="usr_kit",
                trace={},
            )
            await create_operation(session, KIT, new, now)
        return operation_id

    def _volume(self, volume_id: str, now: datetime) -> Volume:
        return Volume(
            id=volume_id,
            organization_id="org_kit",
            project_id=self.project_id,
            site_id=SITE,
            name=volume_id.replace("_", "-"),
            size_gib=10,
            wanted_gib=10,
            desired_gib=10,
            state=VolumeState.READY,
            since=now,
            operation_id="op_before",
            created_by="usr_kit",
            created_at=now,
            present=True,
            revision=1,
            observed_revision=1,
            observed_present=True,
            observed_gib=10,
            scanned_at=now,
        )

    async def snapshot(self, operation_id: str) -> Any:
        """What the rows say and what the storage itself grants; the cluster is called ``mine``."""
        cluster_id, volume_ids = self.clusters[operation_id]
        seen = await self.storage.observe(volume_ids)
        async with self.database.transaction("volumes") as session:
            query = select(Access).where(Access.volume_id.in_(volume_ids))
            rows = (await session.scalars(query)).all()
            volumes = [await session.get_one(Volume, one) for one in volume_ids]
        return {
            "granted": [
                {"mine" if who == cluster_id else who: may for who, may in seen[one].access.items()}
                for one in volume_ids
            ],
            "rows": sorted(
                (volume_ids.index(row.volume_id), row.mode, row.observed)
                for row in rows
                if row.cluster_id == cluster_id
            ),
            "settled": [one.observed_revision == one.revision for one in volumes],
        }

    async def untouched(self) -> Any:
        """Only the neighbour has something."""
        alone = {"clu_neighbour": False}
        return {"granted": [alone, alone], "rows": [], "settled": [True, True]}


def _access(volume_id: str, now: datetime) -> Access:
    return Access(
        volume_id=volume_id,
        cluster_id="clu_neighbour",
        mode="ro",
        observed="ro",
        created_by="usr_kit",
        created_at=now,
    )
