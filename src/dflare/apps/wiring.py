"""The one place that names concrete drivers and joins the services to each other.

A process builds one ``Platform`` and takes from it what its kind serves. Everything is made on
first use, so that a gateway never constructs a device client.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from dflare.apps import wiring_metrics
from dflare.apps.process import Process
from dflare.drivers.bmc.redfish.driver import RedfishDriver
from dflare.drivers.ethernet.nvue import NvueSwitches
from dflare.drivers.fabric.rest import DeviceRest
from dflare.drivers.infiniband.ufm import UfmManager
from dflare.drivers.scheduler.port import HostAccess
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import VolumeDriver
from dflare.kit.db import Database
from dflare.kit.feed import Projection
from dflare.kit.lease import new_holder, process_name
from dflare.kit.operation_activities import OperationActivities
from dflare.kit.series import SeriesStore
from dflare.kit.steps import CutHook, Step, StepRunner
from dflare.kit.tables import KitTables
from dflare.services.auth import repository as auth_repository
from dflare.services.auth.contract import Authorizer
from dflare.services.auth.reconciler import AuthReconciler
from dflare.services.auth.service import AuthService
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import KIT as AUTH
from dflare.services.baremetal import activities as baremetal_activities
from dflare.services.baremetal import projections as baremetal_projections
from dflare.services.baremetal.agent_sessions import AgentSessions
from dflare.services.baremetal.api_agent import AgentApi
from dflare.services.baremetal.image_files import ImageFiles
from dflare.services.baremetal.reconciler import NodeReconciler
from dflare.services.baremetal.service import BaremetalService
from dflare.services.baremetal.settings import BaremetalSettings
from dflare.services.baremetal.steps.base import StepParts
from dflare.services.baremetal.tables import KIT as BAREMETAL
from dflare.services.clusters import activities as clusters_activities
from dflare.services.clusters import activities_idle as clusters_activities_idle
from dflare.services.clusters import activities_life as clusters_activities_life
from dflare.services.clusters import activities_scheduler as clusters_activities_scheduler
from dflare.services.clusters.reconciler import ClusterReconciler
from dflare.services.clusters.reconciler_drains import DrainReconciler
from dflare.services.clusters.reconciler_jobs import JobReconciler
from dflare.services.clusters.reconciler_schedulers import SchedulerReconciler
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.metering import activities as metering_activities
from dflare.services.metering.reconciler import UsageAuditor
from dflare.services.metering.settings import MeteringSettings
from dflare.services.metering.tables import KIT as METERING
from dflare.services.metrics import projections as metrics_projections
from dflare.services.metrics.api_agent import measuring
from dflare.services.metrics.service_ingest import Ingest
from dflare.services.metrics.settings import MetricsSettings
from dflare.services.metrics.tables import KIT as METRICS
from dflare.services.network import activities as network_activities
from dflare.services.network import projections as network_projections
from dflare.services.network.ethernet import EthernetFabric
from dflare.services.network.infiniband import InfinibandFabric
from dflare.services.network.reconciler import Tools
from dflare.services.network.settings import NetworkSettings
from dflare.services.network.signals import Signals
from dflare.services.network.supervisor import Supervisor
from dflare.services.network.tables import KIT as NETWORK
from dflare.services.orchestrator import activities as orchestrator_activities
from dflare.services.orchestrator import projections as orchestrator_projections
from dflare.services.orchestrator.service import OrchestratorService
from dflare.services.orchestrator.service_usage import AllocationUsage
from dflare.services.orchestrator.tables import KIT as ORCHESTRATOR
from dflare.services.registry import projections as registry_projections
from dflare.services.registry.reconciler import RegistryReconciler
from dflare.services.registry.settings import RegistrySettings
from dflare.services.registry.tables import KIT as REGISTRY
from dflare.services.volumes import activities as volumes_activities
from dflare.services.volumes import projections as volumes_projections
from dflare.services.volumes.reconciler import Tools as VolumeTools
from dflare.services.volumes.reconciler import VolumeReconciler
from dflare.services.volumes.reconciler_scan import VolumeScanner
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals as VolumeSignals
from dflare.services.volumes.tables import KIT as VOLUMES

SCHEMAS: Mapping[str, KitTables] = {
    kit.schema: kit
    for kit in (
        AUTH,
        BAREMETAL,
        CLUSTERS,
        METERING,
        METRICS,
        NETWORK,
        ORCHESTRATOR,
        REGISTRY,
        VOLUMES,
    )
}
"""Every schema with an outbox, for the relay."""

ORDERING: Mapping[str, KitTables] = {kit.schema: kit for kit in (BAREMETAL, CLUSTERS, VOLUMES)}
"""Schemas of the services that can be ordered: they hold operations."""

Task = tuple[str, Coroutine[Any, Any, None]]
Activities = Mapping[str, Sequence[Callable[..., Awaitable[Any]]]]


@dataclass(frozen=True)
class Platform:
    """The services of one process. ``cut`` is called at the three points of every step where tests
    cut a process off (DESIGN section 9)."""

    process: Process
    cut: CutHook | None = None

    @property
    def database(self) -> Database:
        """The process's connections."""
        return self.process.database

    @property
    def authorizer(self) -> Authorizer:
        """The policy snapshot."""
        return self.auth.authorizer

    @cached_property
    def auth(self) -> AuthService:
        """Auth, with its issuer at the platform's public URL."""
        process = self.process
        return AuthService.assemble(
            process.database,
            process.sealer,
            process.clock,
            AuthSettings.read(),
            issuer=process.settings.public_url,
        )

    @cached_property
    def orchestrator(self) -> OrchestratorService:
        """Orchestrator, in-process."""
        return OrchestratorService(self.database, self.process.clock)

    @cached_property
    def baremetal(self) -> BaremetalService:
        """Baremetal's synchronous part."""
        process = self.process
        return BaremetalService(
            process.database, process.clock, process.sealer, self.authorizer, self.orchestrator
        )

    @cached_property
    def sessions(self) -> AgentSessions:
        """What agents on nodes and the steps tell each other."""
        process = self.process
        return AgentSessions(process.database, process.sealer, process.clock)

    @cached_property
    def agent_url(self) -> str:
        """The agents' API as nodes reach it."""
        settings = self.process.settings
        own = f"http://{settings.agent_host}:{settings.agent_port}"
        return BaremetalSettings.read().agent_url or own

    @cached_property
    def images(self) -> ImageFiles:
        """Image files that this process serves."""
        return ImageFiles(Path(self.process.settings.data_dir) / "images", self.agent_url)

    @cached_property
    def bmc(self) -> RedfishDriver:
        """The one client of BMCs of this process."""
        return RedfishDriver(self.process.settings.device_ca_file)

    @cached_property
    def baremetal_parts(self) -> StepParts:
        """What baremetal's steps work with."""
        process = self.process
        return StepParts(
            database=process.database,
            clock=process.clock,
            sealer=process.sealer,
            bmc=self.bmc,
            bios_defaults=self.bmc,
            sessions=self.sessions,
            images=self.images,
            settings=BaremetalSettings.read(),
            public_url=self.agent_url,
            speed=process.settings.site_clock_speed,
            measuring=measuring(
                self.series, process.sealer, self.agent_url, self.metrics_settings.push_every_s
            ),
        )

    @cached_property
    def network_settings(self) -> NetworkSettings:
        """Settings of network."""
        return NetworkSettings.read()

    @cached_property
    def signals(self) -> Signals:
        """How network's steps and reconcilers of this process wake each other."""
        return Signals()

    @cached_property
    def fabric_rest(self) -> DeviceRest:
        """The one client of fabric devices of this process."""
        return DeviceRest(
            ca_file=self.process.settings.device_ca_file,
            timeout_s=self.network_settings.request_timeout_s,
        )

    def network_tools(self) -> Tools:
        """What the device reconcilers work with."""
        process, rest = self.process, self.fabric_rest
        return Tools(
            database=process.database,
            clock=process.clock,
            speed=process.settings.site_clock_speed,
            settings=self.network_settings,
            sealer=process.sealer,
            fabrics={
                "nvue": EthernetFabric(NvueSwitches(rest)),
                "ufm": InfinibandFabric(UfmManager(rest)),
            },
            signals=self.signals,
            holder=process_name(),
        )

    @cached_property
    def volumes_settings(self) -> VolumesSettings:
        """Settings of volumes."""
        return VolumesSettings.read()

    @cached_property
    def volume_signals(self) -> VolumeSignals:
        """How volumes' steps and reconciler of this process wake each other."""
        return VolumeSignals()

    @cached_property
    def volume_drivers(self) -> dict[str, VolumeDriver]:
        """The storages that were asked for; they remember what their disks were seen to hold."""
        return {}

    def volume_driver(self, site_id: str) -> VolumeDriver:
        """The storage of a site."""
        own = Path(self.process.settings.data_dir) / "volumes"
        folder = Path(self.volumes_settings.local_dir or own) / site_id
        return self.volume_drivers.setdefault(site_id, LocalVolumes(folder))

    def volume_tools(self) -> VolumeTools:
        """What the reconciler of volumes works with."""
        process = self.process
        return VolumeTools(
            database=process.database,
            clock=process.clock,
            settings=self.volumes_settings,
            drivers=self.volume_driver,
            signals=self.volume_signals,
            holder=new_holder("volumes"),
        )

    @cached_property
    def metrics_settings(self) -> MetricsSettings:
        """Settings of metrics."""
        return MetricsSettings.read()

    @cached_property
    def series(self) -> SeriesStore:
        """The one client of the store of series of this process."""
        settings = self.process.settings
        store = SeriesStore(settings.metrics_url, settings.metrics_absent_reason)
        self.process.at_end(store.close)
        return store

    @cached_property
    def ingest(self) -> Ingest:
        """What takes measurements of nodes in."""
        process = self.process
        return Ingest(process.database, self.series, process.clock, self.metrics_settings)

    @cached_property
    def scheduler_rest(self) -> HostRest:
        """The one client of scheduler hosts of this process."""
        return HostRest(ca_file=self.process.settings.device_ca_file)

    @cached_property
    def scheduler_hosts(self) -> SchedulerHosts:
        """What runs tenants' schedulers."""

        def connect(access: HostAccess) -> SlurmHost:
            return SlurmHost(self.scheduler_rest, access)

        return SchedulerHosts(self.database, self.process.sealer, connect)

    async def start_gateway(self, portal_callbacks: Sequence[str] = ()) -> None:
        """Make what the first start needs, load the policy snapshot and keep it current.
        ``portal_callbacks`` are where the issuer may send the portal's logins."""
        process = self.process
        secrets = Path(process.settings.data_dir) / "secrets"
        reconciler = AuthReconciler(
            process.database,
            process.feed,
            self.auth.authorizer,
            self.auth.keys,
            self.auth.settings,
            process.clock,
        )
        await self.auth.ensure_bootstrap(secrets / "operator-password", portal_callbacks)
        await reconciler.start()
        process.start(reconciler.run(), "auth")

    def central_activities(self) -> Activities:
        """Activities of the queues that are no site's: the interpreter's own of each ordering
        service, and the steps that touch no device."""
        process = self.process
        speed = process.settings.site_clock_speed
        own = {
            name: OperationActivities(process.database, kit, process.clock, speed).all()
            for name, kit in ORDERING.items()
        }
        clock = process.clock
        return {
            **own,
            "clusters": [
                *own["clusters"],
                *self.step_activities(CLUSTERS, clusters_activities.steps(clock)),
                *self.step_activities(
                    CLUSTERS, clusters_activities_life.steps(clock, self.orchestrator.plan)
                ),
            ],
            "orchestrator": self.step_activities(
                ORCHESTRATOR, orchestrator_activities.steps(clock)
            ),
            "volumes": [
                *own["volumes"],
                *self.step_activities(VOLUMES, volumes_activities.steps(clock)),
            ],
        }

    def site_activities(self) -> Activities:
        """Activities of a site's queues."""
        process = self.process
        network = network_activities.steps(
            process.database,
            process.clock,
            self.network_settings,
            self.signals,
            process.settings.site_clock_speed,
        )
        baremetal = baremetal_activities.steps(self.baremetal_parts)
        volumes = volumes_activities.Parts(
            process.database, process.clock, self.volumes_settings, self.volume_signals
        )
        return {
            "baremetal": self.step_activities(BAREMETAL, baremetal),
            "clusters": self.step_activities(
                CLUSTERS,
                [
                    *clusters_activities_scheduler.site_steps(self.scheduler_hosts, process.clock),
                    *clusters_activities_idle.site_steps(self.scheduler_hosts, process.clock),
                ],
            ),
            "network": self.step_activities(NETWORK, network),
            "volumes": self.step_activities(VOLUMES, volumes_activities.site_steps(volumes)),
        }

    def step_activities(
        self, kit: KitTables, steps: Sequence[Step[Any]]
    ) -> list[Callable[..., Awaitable[Any]]]:
        """The Temporal activities of one service's steps."""
        process = self.process
        runner = StepRunner(
            process.database,
            kit,
            process.clock,
            cut=self.cut,
        )
        return [runner.activity(step) for step in steps]

    def projections(self) -> list[Projection]:
        """Every read model."""
        return [
            *auth_repository.projections(),
            *baremetal_projections.projections(),
            *clusters_activities.projections(),
            *metering_activities.projections(),
            *metrics_projections.projections(),
            *network_projections.projections(self.process.clock),
            *orchestrator_projections.projections(),
            *registry_projections.projections(),
            *volumes_projections.projections(self.process.clock),
        ]

    def central_tasks(self) -> Mapping[str, Callable[[], list[Task]]]:
        """What a worker keeps running beside its queues, by service, made when it is asked."""
        return {
            "clusters": lambda: [("clusters", self.cluster_reconciler().run())],
            "metering": lambda: [("usage-audit", self.usage_auditor().run())],
            "metrics": lambda: wiring_metrics.central_tasks(self.ingest),
            "registry": lambda: [("registry", self.registry_reconciler().run())],
        }

    def registry_reconciler(self) -> RegistryReconciler:
        """What collects blobs that nobody needs, and measures what projects hold."""
        process, settings = self.process, RegistrySettings.read()
        holder = new_holder("registry")
        return RegistryReconciler(
            process.database, process.clock, process.objects, settings, holder
        )

    def cluster_reconciler(self) -> ClusterReconciler:
        """What finds the conditions of clusters and releases those that expired."""
        return ClusterReconciler(self.database, self.process.clock, self.orchestrator)

    def usage_auditor(self) -> UsageAuditor:
        """What compares the ledger with the allocations."""
        return UsageAuditor(
            self.database,
            self.process.clock,
            AllocationUsage(self.database),
            MeteringSettings.read(),
        )

    def agent_app(self) -> Starlette:
        """The agents' API and boot media."""
        app = AgentApi(self.sessions, self.images, self.agent_url).app()
        app.router.routes.extend(wiring_metrics.agent_routes(self.process, self.ingest))
        return app

    def site_tasks(self) -> Mapping[str, Callable[[], list[Task]]]:
        """What a site worker keeps running beside its steps, by service, made when it is asked."""
        return {
            "baremetal": lambda: [
                ("agent-sessions", self.sessions.run()),
                ("nodes", NodeReconciler(self.baremetal_parts).run()),
            ],
            "clusters": lambda: [
                (
                    "schedulers",
                    SchedulerReconciler(self.scheduler_hosts, self.process.clock).run(),
                ),
                ("drains", DrainReconciler(self.scheduler_hosts).run()),
                ("jobs", self.job_reconciler().run()),
            ],
            "metrics": lambda: wiring_metrics.site_tasks(self.process, self.ingest, self.bmc),
            "network": lambda: [("fabrics", Supervisor(self.network_tools()).run())],
            "volumes": lambda: [
                ("volumes", VolumeReconciler(self.volume_tools()).run()),
                ("volume-scans", VolumeScanner(self.volume_tools()).run()),
            ],
        }

    def job_reconciler(self) -> JobReconciler:
        """What submits and follows the jobs of clusters."""
        holder = new_holder("jobs")
        return JobReconciler(self.database, self.process.clock, self.scheduler_hosts, holder)

    async def close_clients(self) -> None:
        """Close the connections to devices, after the tasks that use them. A client that was never
        used is not made for that."""
        if "bmc" in vars(self):
            await self.bmc.close()
        if "fabric_rest" in vars(self):
            await self.fabric_rest.close()
        if "scheduler_rest" in vars(self):
            await self.scheduler_rest.close()

    async def site_ids(self) -> list[str]:
        """The declared sites."""
        return await self.baremetal.site_ids()
