"""The platform's own processes as components: settings go to them by environment only."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dflare.embedded.component import (
    Check,
    Component,
    ReadyFile,
    RestartPolicy,
    http_ok,
)
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.os_user import launch_prefix
from dflare.embedded.ports import LOOPBACK, PortBook
from dflare.embedded.temporal import NAMESPACE

READY_FILE_VARIABLE = "SUPERVISED_READY_FILE"
ALIVE_MEANS_READY_S = 3.0


@dataclass(frozen=True)
class PlatformPlan:
    """The platform's components and the URLs by name that people want."""

    components: tuple[Component, ...]
    urls: dict[str, str]


def platform_components(
    layout: Layout,
    options: UpOptions,
    ports: PortBook,
    *,
    stores: Mapping[str, str],
    site_clock_speed: float,
) -> PlatformPlan:
    """Migrations, gateway, worker, site-worker and relay against the stores that the settings
    in `stores` name.

    Raises `PortTakenError` when the demanded gateway port is held.
    """
    gateway_port = ports.choose("gateway", demanded=options.gateway_port)
    public_host = LOOPBACK if options.gateway_host == "0.0.0.0" else options.gateway_host  # noqa: S104 - compared, not bound
    local_url = f"http://{public_host}:{gateway_port}"
    env = {
        **stores,
        "DFLARE_TEMPORAL_NAMESPACE": os.environ.get("DFLARE_TEMPORAL_NAMESPACE", NAMESPACE),
        "DFLARE_SECRET_KEY_FILE": str(layout.master_key_file),
        "DFLARE_GATEWAY_HOST": options.gateway_host,
        "DFLARE_GATEWAY_PORT": str(gateway_port),
        "DFLARE_PUBLIC_URL": os.environ.get("DFLARE_PUBLIC_URL", local_url),
        "DFLARE_AGENT_HOST": LOOPBACK,
        "DFLARE_AGENT_PORT": str(ports.choose("agent")),
        "DFLARE_DEVICE_CA_FILE": str(layout.device_ca_file),
        "DFLARE_SITE_CLOCK_SPEED": f"{site_clock_speed:g}",
        "DFLARE_DATA_DIR": str(layout.root),
        "DFLARE_LOG_FORMAT": os.environ.get("DFLARE_LOG_FORMAT", "json"),
    }
    builder = _Builder(layout, env)
    return PlatformPlan(
        components=(
            builder.migrate(),
            builder.process("gateway", ("migrate",), ready=http_ok(f"{local_url}/healthz")),
            builder.process("worker", ("migrate", "temporal"), nice=10),
            builder.process("site-worker", ("migrate", "temporal", "sim"), nice=10),
            builder.process("relay", ("migrate", "temporal")),
        ),
        urls={"api": env["DFLARE_PUBLIC_URL"]},
    )


@dataclass(frozen=True)
class _Builder:
    layout: Layout
    env: dict[str, str]

    def migrate(self) -> Component:
        return Component(
            name="migrate",
            argv=self._argv("migrate", nice=0),
            env=self.env,
            depends_on=("postgres",),
            restart=RestartPolicy.UNTIL_SUCCESS,
        )

    def process(
        self,
        name: str,
        depends_on: tuple[str, ...],
        *,
        ready: Check | None = None,
        nice: int = 0,
    ) -> Component:
        """A server of the platform. Workers run at a lower priority than the gateway, so that a
        large order does not slow the answers of the API."""
        ready_file = self.layout.run / f"{name}.ready"
        signs = ReadyFile(ready_file, alive_s=ALIVE_MEANS_READY_S)
        return Component(
            name=name,
            argv=self._argv(name.replace("-", "_"), nice=nice),
            env={**self.env, READY_FILE_VARIABLE: str(ready_file)},
            prepare=signs.prepare,
            ready=ready or signs.check,
            depends_on=depends_on,
        )

    def _argv(self, module: str, *, nice: int) -> tuple[str, ...]:
        lowered = ("nice", "-n", str(nice)) if nice else ()
        return (*launch_prefix("TERM"), *lowered, sys.executable, "-m", f"dflare.apps.{module}")
