"""The stores as components: embedded ones, or outside servers that are only watched."""

import functools
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dflare.embedded import postgres, seaweedfs, temporal, valkey, victoria
from dflare.embedded.component import Component, RestartPolicy
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.os_user import launch_prefix
from dflare.embedded.packages import VICTORIA_METRICS, PackageCache
from dflare.embedded.ports import PortBook
from dflare.embedded.secret_files import ensure_password

MISSING = (
    postgres.PostgresInitError,
    temporal.TemporalMissingError,
    valkey.ValkeyMissingError,
    seaweedfs.SeaweedMissingError,
)
"""What says that a store's program is not installed."""


@dataclass(frozen=True)
class StorePlan:
    """The stores' components, the URLs by name that people want, and the settings by which the
    platform's processes find them."""

    components: tuple[Component, ...]
    urls: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def store_components(layout: Layout, options: UpOptions, ports: PortBook) -> StorePlan:
    """All stores side by side: none depends on another, and processes do not wait for those that
    they can do without."""
    plans = [
        build(layout, options, ports)
        for build in (_postgres, _temporal, _valkey, _seaweedfs, _victoriametrics)
    ]
    urls: dict[str, str] = {}
    environment: dict[str, str] = {}
    for plan in plans:
        urls |= plan.urls
        environment |= plan.environment
    return StorePlan(tuple(part for plan in plans for part in plan.components), urls, environment)


def package_component(name: str, cache: PackageCache) -> Component:
    """The download of Debian packages, beside everything else."""
    return Component(
        name=name,
        argv=(
            *launch_prefix("TERM"),
            "nice",
            "-n",
            "10",
            sys.executable,
            "-m",
            "dflare.embedded.packages",
            str(cache.folder),
            cache.wanted.name,
        ),
        restart=RestartPolicy.UNTIL_SUCCESS,
        start_timeout_s=3600,
        optional=True,
    )


def _postgres(layout: Layout, options: UpOptions, ports: PortBook) -> StorePlan:
    if options.postgres_url is not None:
        url = options.postgres_url
        component = _outside(
            "postgres",
            functools.partial(postgres.answers, url, even_without_database=True),
            "check the server, and host, port and password in --postgres-url",
        )
    else:
        server = postgres.EmbeddedPostgres(
            directory=layout.postgres,
            port=ports.choose("postgres"),
            password=ensure_password(layout.postgres_password_file),
        )
        url = server.url(postgres.PLATFORM_DATABASE)
        component = Component(
            name="postgres",
            argv=tuple(server.argv()),
            prepare=server.initialise,
            ready=server.is_ready,
            # A fast shutdown; SIGTERM would wait for every session to leave.
            stop_signal=signal.SIGINT,
            grace_s=30,
        )
    return StorePlan((component,), {"postgres": url}, {"DFLARE_POSTGRES_URL": url})


def _temporal(layout: Layout, options: UpOptions, ports: PortBook) -> StorePlan:
    if options.temporal_address is not None:
        address = options.temporal_address
        component = _outside(
            "temporal",
            functools.partial(temporal.speaks_grpc, address),
            "check the server and the host and port in --temporal-address",
        )
    else:
        server = temporal.EmbeddedTemporal(
            directory=layout.temporal,
            port=ports.choose("temporal"),
            http_port=ports.choose("temporal-http"),
            metrics_port=ports.choose("temporal-metrics"),
            ui_port=ports.choose("temporal-ui") if options.temporal_ui else None,
        )
        address = server.address
        component = Component(name="temporal", argv=tuple(server.argv()), ready=server.is_ready)
    return StorePlan((component,), {"temporal": address}, {"DFLARE_TEMPORAL_ADDRESS": address})


def _valkey(layout: Layout, options: UpOptions, ports: PortBook) -> StorePlan:
    if options.valkey_url is not None:
        url = options.valkey_url
        component = _outside(
            "valkey",
            functools.partial(valkey.answers, url),
            "check the server, and host, port and password in --valkey-url",
        )
    else:
        server = valkey.EmbeddedValkey(
            directory=layout.valkey,
            port=ports.choose("valkey"),
            password=ensure_password(layout.valkey_password_file),
        )
        url = server.url
        component = Component(
            name="valkey",
            argv=tuple(server.argv()),
            prepare=server.prepare,
            ready=server.is_ready,
        )
    return StorePlan((component,), {"valkey": url}, {"DFLARE_VALKEY_URL": url})


def _seaweedfs(layout: Layout, options: UpOptions, ports: PortBook) -> StorePlan:
    if options.s3_url is not None:
        login = seaweedfs.S3Login(
            options.s3_url,
            options.s3_access_key,
            Path(options.s3_secret_key_file),
            options.s3_bucket,
            options.s3_region,
        )
        component = _outside(
            "seaweedfs",
            functools.partial(seaweedfs.answers, login),
            "check the store and the key in --s3-url, --s3-access-key and --s3-secret-key-file",
        )
    else:
        ensure_password(layout.s3_secret_key_file)
        server = seaweedfs.EmbeddedSeaweed(
            directory=layout.seaweedfs,
            keys=layout.seaweedfs_keys,
            secret_key_file=layout.s3_secret_key_file,
            port=ports.choose("s3"),
            ports=tuple(ports.choose(f"seaweedfs-{name}") for name in seaweedfs.PORT_NAMES),
            bucket=options.s3_bucket,
        )
        login = server.login
        component = Component(
            name="seaweedfs",
            argv=tuple(server.argv()),
            env=server.environment,
            prepare=server.prepare,
            ready=server.is_ready,
            stop_signal=signal.SIGKILL,
        )
    return StorePlan(
        (component,),
        {"s3": login.url},
        {
            "DFLARE_S3_URL": login.url,
            "DFLARE_S3_ACCESS_KEY": login.access_key,
            "DFLARE_S3_SECRET_KEY_FILE": str(login.secret_key_file),
            "DFLARE_S3_BUCKET": login.bucket,
            "DFLARE_S3_REGION": login.region,
        },
    )


def _victoriametrics(layout: Layout, options: UpOptions, ports: PortBook) -> StorePlan:
    """The series. They are optional: a start neither fails nor waits for them."""
    if options.metrics_url is not None:
        url = options.metrics_url
        component = _outside(
            "victoriametrics",
            functools.partial(victoria.answers, url),
            "check the server, and host, port and password in --metrics-url",
            optional=True,
        )
        return StorePlan((component,), {"metrics": url}, {"DFLARE_METRICS_URL": url})
    packages = victoria.package_cache(layout)
    if packages is None:
        reason = (
            f"VictoriaMetrics is switched off by {VICTORIA_METRICS.switch_variable}; leave that "
            "out, or name a server by --metrics-url, and start again."
        )
        return StorePlan((), {}, {"DFLARE_METRICS_URL": "", "DFLARE_METRICS_ABSENT_REASON": reason})
    server = victoria.EmbeddedVictoria(
        directory=layout.victoriametrics / "data",
        port=ports.choose("victoriametrics"),
        password=ensure_password(layout.victoriametrics_password_file),
        packages=packages,
    )
    fetch = (package_component("victoriametrics-package", packages),)
    if not victoria.must_fetch(packages):
        fetch = ()
    component = Component(
        name="victoriametrics",
        argv=tuple(server.argv()),
        env=server.environment,
        prepare=server.prepare,
        ready=server.is_ready,
        depends_on=tuple(part.name for part in fetch),
        optional=True,
    )
    reason = (
        "VictoriaMetrics' Debian package is still being fetched, or cannot be had on this machine; "
        "`dflare doctor` says which and what to do."
    )
    return StorePlan(
        (*fetch, component),
        {"metrics": server.url},
        {"DFLARE_METRICS_URL": server.url, "DFLARE_METRICS_ABSENT_REASON": reason},
    )


def _outside(
    name: str, ready: Callable[[], Awaitable[bool]], advice: str, *, optional: bool = False
) -> Component:
    """A server that somebody else runs."""
    return Component(name=name, ready=ready, advice=advice, optional=optional)
