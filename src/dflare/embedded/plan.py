"""Which components one start needs, from the options and what the data directory holds."""

import errno
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dflare.embedded.component import Component, ReadyFile, http_ok
from dflare.embedded.disk import start_refusal
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.os_user import OsUserError, launch_prefix
from dflare.embedded.packages import PackageCache
from dflare.embedded.platform import platform_components
from dflare.embedded.ports import (
    LOOPBACK,
    PortBook,
    PortTakenError,
    port_holder,
    port_is_free,
)
from dflare.embedded.secret_files import ensure_master_key
from dflare.embedded.store_components import MISSING, package_component, store_components


class PlanError(Exception):
    """Nothing can be started; the text says why and what to do next."""


@dataclass(frozen=True)
class Plan:
    """The components of one start, the URLs by name that people want, and what they should know."""

    components: tuple[Component, ...]
    urls: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def make_plan(layout: Layout, options: UpOptions) -> Plan:
    """Chooses ports, makes what the first start needs (secrets, site) and lists the components.

    Raises `PlanError`.
    """
    try:
        layout.create()
        _require_disk(layout)
        return _plan(layout, options)
    except (PortTakenError, OsUserError, *MISSING) as error:
        raise PlanError(str(error)) from error
    except OSError as error:
        raise PlanError(explain_os_error(error, layout.root)) from error


def explain_os_error(error: OSError, data_dir: Path) -> str:
    """One sentence on what the operating system refused, and the next step."""
    where = error.filename or data_dir
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {where} could not be written. Free space, then try again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{where} may not be written by this user. Choose another place by --data-dir, or "
            f"give {data_dir} to the user who runs this."
        )
    return f"{where}: {error.strerror or error}. Run `dflare doctor` for more."


def _plan(layout: Layout, options: UpOptions) -> Plan:
    ensure_master_key(layout.master_key_file)
    ports = PortBook(layout.ports_file)
    wanted = set(options.only)
    stores = store_components(layout, options, ports)
    urls = dict(stores.urls)
    components = list(stores.components)
    simulator = None if wanted and "sim" not in wanted else _simulator(layout, options, ports)
    if simulator is not None:
        component, urls["simulator"] = simulator
        components.append(component)
    platform = platform_components(
        layout,
        options,
        ports,
        stores=stores.environment,
        site_clock_speed=_written_speed(layout.simulator_file) if simulator else 1.0,
    )
    components += platform.components
    urls |= platform.urls
    if (packages := _slurm_packages(layout)) is not None:
        components.append(packages)
    ports.save()
    if wanted:
        unknown = wanted - {component.name for component in components}
        if unknown:
            raise PlanError(
                f"No component is called {', '.join(sorted(unknown))}; there are "
                f"{', '.join(component.name for component in components)}."
            )
        components = [component for component in components if component.name in wanted]
    names = {component.name for component in components}
    return Plan(
        components=tuple(_without_absent(component, names) for component in components),
        urls={name: url for name, url in urls.items() if not wanted or _URL_OF[name] in wanted},
        warnings=tuple(ports.notes),
    )


_URL_OF = {
    "api": "gateway",
    "simulator": "sim",
    "postgres": "postgres",
    "temporal": "temporal",
    "valkey": "valkey",
    "s3": "seaweedfs",
    "metrics": "victoriametrics",
}


def _without_absent(component: Component, names: set[str]) -> Component:
    """Without dependencies that this start leaves out or that do not exist here."""
    kept = tuple(name for name in component.depends_on if name in names)
    return replace(component, depends_on=kept)


def _simulator(layout: Layout, options: UpOptions, ports: PortBook) -> tuple[Component, str] | None:
    """The simulated site and where it is controlled; none where the operator brought a site without
    a simulator's file."""
    if not layout.site_file.exists() and not layout.simulator_file.exists():
        _write_default_site(layout, options, ports)
    if not layout.simulator_file.exists():
        return None
    if options.speed is not None:
        _rewrite_speed(layout.simulator_file, options.speed)
    _require_simulator_ports(layout.simulator_file)
    control = f"http://{LOOPBACK}:{_number(layout.simulator_file, 'control_port'):.0f}"
    argv = [
        *launch_prefix("TERM"),
        "nice",
        "-n",
        "10",
        sys.executable,
        "-m",
        "dflare.sim",
        "--config",
        str(layout.simulator_file),
        "--log",
        str(layout.simulator_log),
        "--ready-file",
        str(layout.run / "sim.ready"),
        "--clusters",
        str(layout.clusters),
        "--volume-root",
        str(layout.volumes),
    ]
    if (cache := PackageCache.of(layout)) is not None:
        argv += ["--slurm-packages", str(cache.root)]
    ready_file = ReadyFile(layout.run / "sim.ready", alive_s=float("inf"))
    component = Component(
        name="sim",
        argv=tuple(argv),
        prepare=ready_file.prepare,
        ready=http_ok(f"{control}/healthz"),
    )
    return component, control


def _slurm_packages(layout: Layout) -> Component | None:
    """The download of Slurm's packages, beside everything else; none where it is switched off."""
    cache = PackageCache.of(layout)
    if cache is None:
        return None
    return package_component("slurm-packages", cache)


def _write_default_site(layout: Layout, options: UpOptions, ports: PortBook) -> None:
    # Imported late: a start with a site of one's own needs nothing of it.
    from dflare.site.document import GpuVendor, ServerVendor
    from dflare.site.synthetic import SimPorts, write_default_site

    write_default_site(
        layout.root,
        nodes=options.nodes,
        ports=SimPorts(
            bmc=ports.choose("sim-bmc"),
            nvue=ports.choose("sim-nvue"),
            ufm=ports.choose("sim-ufm"),
            control=ports.choose("sim-control"),
            scheduler=ports.choose("sim-scheduler"),
        ),
        speed=options.chosen_speed,
        hardware_time=options.hardware_time.value,
        vendors=tuple(map(ServerVendor, options.vendors)) or (ServerVendor.DELL,),
        makers=tuple(map(GpuVendor, options.makers)) or (GpuVendor.NVIDIA,),
    )


def _require_simulator_ports(simulator_file: Path) -> None:
    """site.yaml names these ports, so they cannot move."""
    for key in ("bmc_port", "nvue_port", "ufm_port", "control_port", "scheduler_port"):
        # A site without a scheduler host has no such line.
        default = 0 if key == "scheduler_port" else None
        port = int(_number(simulator_file, key, default))
        if port and not port_is_free(port):
            raise PlanError(
                f"Port {port} ({key} of {simulator_file}) is held by {port_holder(port)}, and "
                "site.yaml names it. Stop that program, or start anew elsewhere by --data-dir."
            )


def _written_speed(simulator_file: Path) -> float:
    return _number(simulator_file, "speed", default=60.0)


def _rewrite_speed(simulator_file: Path, speed: float) -> None:
    text = simulator_file.read_text()
    changed, count = re.subn(r"(?m)^speed:.*$", f"speed: {speed:g}", text)
    if count == 0:
        changed = f"speed: {speed:g}\n{text}"
    if changed != text:
        staged = simulator_file.with_suffix(".new")
        staged.write_text(changed)
        staged.replace(simulator_file)


def _number(file: Path, key: str, default: float | None = None) -> float:
    """A top-level number of a YAML file. The file may describe thousands of servers and parsing it
    whole would double the time to start."""
    found = re.search(rf"(?m)^{key}:\s*([\d.]+)\s*$", file.read_text())
    if found is not None:
        return float(found.group(1))
    if default is not None:
        return default
    raise PlanError(f"{file} has no line `{key}: NUMBER` at its top level; add it.")


def _require_disk(layout: Layout) -> None:
    if refusal := start_refusal(layout.root):
        raise PlanError(refusal)
