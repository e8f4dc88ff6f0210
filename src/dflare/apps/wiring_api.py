"""Joins the services' APIs to a platform. Apart from ``wiring``: only a gateway serves them, and
the frameworks of an API take a second to load."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from dflare.apps.wiring import ORDERING, Platform
from dflare.services.auth import api as auth_api
from dflare.services.auth import api_oidc
from dflare.services.auth.contract import Principal
from dflare.services.baremetal import api as baremetal_api
from dflare.services.clusters import api as clusters_api
from dflare.services.clusters import api_jobs as clusters_api_jobs
from dflare.services.clusters import api_life as clusters_api_life
from dflare.services.clusters.service import ClusterService
from dflare.services.clusters.service_jobs import JobService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.service_life import LifeService
from dflare.services.metering import api as metering_api
from dflare.services.metering import api_audits as metering_api_audits
from dflare.services.metering.service import MeteringService
from dflare.services.metering.service_audits import AuditService
from dflare.services.metrics import api as metrics_api
from dflare.services.metrics.service import QueryService
from dflare.services.metrics.service_alerts import AlertService
from dflare.services.network import api as network_api
from dflare.services.network.service import NetworkService
from dflare.services.orchestrator import api as orchestrator_api
from dflare.services.registry import api as registry_api
from dflare.services.registry import api_oci as registry_api_oci
from dflare.services.registry.service import RegistryService
from dflare.services.registry.service_login import LoginService
from dflare.services.registry.service_manifests import ManifestService
from dflare.services.registry.service_uploads import UploadService
from dflare.services.registry.settings import RegistrySettings
from dflare.services.volumes import api as volumes_api
from dflare.services.volumes.service import VolumeService

STREAMED = registry_api_oci.STREAMED
"""Paths whose bodies may be of any size."""


def routers(platform: Platform, principal: Callable[..., Awaitable[Principal]]) -> list[APIRouter]:
    """The API of every service, to be mounted at ``/v1``."""
    process = platform.process
    clusters = ClusterService(
        process.database, process.clock, process.sealer, platform.authorizer, platform.orchestrator
    )
    keys = KeyService(process.database, process.clock, process.sealer, platform.authorizer)
    life = LifeService(
        process.database, process.clock, platform.authorizer, platform.orchestrator, clusters
    )
    jobs = JobService(process.database, process.clock, platform.authorizer)
    metering = MeteringService(process.database, process.clock, platform.authorizer)
    audits = AuditService(process.database, process.clock, platform.authorizer)
    queries = QueryService(
        platform.series, process.clock, platform.authorizer, platform.metrics_settings
    )
    alerts = AlertService(process.database, process.clock, platform.authorizer)
    network = NetworkService(process.database, process.clock, platform.authorizer)
    volumes = VolumeService(
        process.database, process.clock, platform.authorizer, platform.orchestrator
    )
    registry = _registry(platform)
    url = process.settings.public_url
    return [
        baremetal_api.router(platform.baremetal, platform.authorizer, principal),
        network_api.router(network, platform.authorizer, principal),
        clusters_api.router(clusters, keys, platform.authorizer, principal),
        clusters_api_life.router(life, platform.authorizer, principal),
        clusters_api_jobs.router(jobs, platform.authorizer, principal),
        volumes_api.router(volumes, platform.authorizer, principal),
        orchestrator_api.router(platform.orchestrator, ORDERING, platform.authorizer, principal),
        metering_api.router(metering, platform.authorizer, principal),
        metering_api_audits.router(audits, principal),
        metrics_api.query_router(queries, platform.authorizer, principal),
        metrics_api.alert_router(alerts, platform.authorizer, principal),
        registry_api.router(registry, platform.authorizer, principal, public_url=url),
        # Last: its path of a project takes ``organization/name`` and so any longer path.
        auth_api.router(platform.auth, platform.authorizer, principal),
    ]


def root_routers(platform: Platform) -> list[APIRouter]:
    """The issuer's and the registry's routes, whose places the standards fix."""
    process = platform.process
    registry = _registry(platform)
    return [
        registry_api_oci.router(
            registry_api_oci.RegistryParts(
                registry,
                UploadService(registry),
                ManifestService(registry),
                LoginService(registry, process.sealer),
                realm=f"{process.settings.public_url}/v2/token",
            )
        ),
        api_oidc.router(
            platform.auth,
            process.database,
            process.sealer,
            process.clock,
            issuer=process.settings.public_url,
        ),
    ]


def _registry(platform: Platform) -> RegistryService:
    process, settings = platform.process, RegistrySettings.read()
    return RegistryService(
        process.database, process.clock, platform.authorizer, process.objects, settings
    )
