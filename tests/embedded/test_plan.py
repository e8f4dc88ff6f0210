"""What a start consists of: the site of the first start, its ports, its speed, its environment."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from dflare.embedded.component import Component
from dflare.embedded.layout import Layout
from dflare.embedded.options import HardwareTime, UpOptions
from dflare.embedded.os_user import OsUser, launch_prefix
from dflare.embedded.plan import Plan, PlanError, make_plan
from dflare.embedded.ports import LOOPBACK
from dflare.sim.config import load
from dflare.site.load import load_site

ALL = UpOptions(nodes=2)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


def component(plan: Plan, name: str) -> Component:
    return next(item for item in plan.components if item.name == name)


def test_the_first_start_writes_a_site_that_the_simulator_accepts(layout: Layout) -> None:
    plan = make_plan(layout, UpOptions(nodes=3, hardware_time=HardwareTime.ZERO))
    config = load(layout.simulator_file)
    assert len(config.nodes) == 3
    assert config.speed == 1
    assert config.times.os_boot_s == 0
    assert plan.urls["simulator"].endswith(f":{config.control_port}")
    assert layout.site_file.exists()


def test_the_simulator_is_told_where_slurm_clusters_and_volumes_lie(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = component(make_plan(layout, ALL), "sim").argv
    assert argv[argv.index("--clusters") + 1] == str(layout.root / "clusters")
    assert argv[argv.index("--volume-root") + 1] == str(layout.root / "volumes")
    assert "--slurm-packages" not in argv
    monkeypatch.setenv("DFLARE_SLURM_PACKAGES", "/shared")
    argv = component(make_plan(layout, ALL), "sim").argv
    assert argv[argv.index("--slurm-packages") + 1] == "/shared/root"


def test_the_first_start_takes_vendors_in_turn_and_shares_makers_equally(layout: Layout) -> None:
    wish = UpOptions(nodes=6, vendors=("hpe", "lenovo"), makers=("nvidia", "amd", "intel"))
    make_plan(layout, wish)
    document = load_site(layout.site_file)
    assert {kind.name for kind in document.node_types} == {"h100-8", "mi300x-8", "gaudi3-8"}
    kinds = {kind.name: kind.vendor for kind in document.node_types}
    vendors = [node.vendor or kinds[node.type] for node in document.nodes]
    assert {str(vendor): vendors.count(vendor) for vendor in vendors} == {"hpe": 3, "lenovo": 3}
    assert len(load(layout.simulator_file).nodes) == 6


@pytest.mark.parametrize(
    ("vendors", "makers", "words"),
    [
        (("del",), (), "del is none of the vendors: dell, hpe"),
        (("nvidia",), (), "nvidia is none of the vendors"),
        ((), ("nvidia", "nvidia"), "one of the makers is named twice"),
    ],
)
def test_vendors_and_makers_that_do_not_exist_are_refused(
    vendors: tuple[str, ...], makers: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        UpOptions(vendors=vendors, makers=makers)


def test_later_starts_keep_the_site_and_may_change_its_speed(layout: Layout) -> None:
    make_plan(layout, ALL)
    site, nodes = layout.site_file.read_text(), load(layout.simulator_file).nodes
    plan = make_plan(layout, UpOptions(nodes=5, speed=300))
    assert layout.site_file.read_text() == site
    assert load(layout.simulator_file).nodes == nodes
    assert load(layout.simulator_file).speed == 300
    assert component(plan, "worker").env["DFLARE_SITE_CLOCK_SPEED"] == "300"


def test_a_site_of_ones_own_starts_no_simulator(layout: Layout) -> None:
    layout.create()
    layout.site_file.write_text("name: mine\n")
    plan = make_plan(layout, ALL)
    assert "sim" not in {item.name for item in plan.components}
    assert "sim" not in component(plan, "site-worker").depends_on
    assert component(plan, "site-worker").env["DFLARE_SITE_CLOCK_SPEED"] == "1"


def test_a_port_that_the_site_names_is_refused_when_taken(layout: Layout) -> None:
    make_plan(layout, ALL)
    port = load(layout.simulator_file).ufm_port
    with (
        socket.create_server((LOOPBACK, port)),
        pytest.raises(PlanError, match=rf"Port {port} \(ufm_port .*pid {os.getpid()}.*--data-dir"),
    ):
        make_plan(layout, ALL)


def test_processes_get_their_settings_by_environment_only(layout: Layout) -> None:
    plan = make_plan(layout, ALL)
    gateway = component(plan, "gateway")
    assert gateway.argv[-2:] == ("-m", "dflare.apps.gateway")
    assert gateway.env["DFLARE_POSTGRES_URL"] == plan.urls["postgres"]
    assert gateway.env["DFLARE_PUBLIC_URL"] == plan.urls["api"]
    assert Path(gateway.env["DFLARE_SECRET_KEY_FILE"]) == layout.master_key_file
    assert layout.run.stat().st_mode & 0o077 == 0
    assert not any("password" in word or "@" in word for word in gateway.argv)


def test_workers_yield_to_the_gateway(layout: Layout) -> None:
    plan = make_plan(layout, ALL)
    assert "nice" in component(plan, "worker").argv
    assert "nice" not in component(plan, "gateway").argv


def test_an_unknown_component_is_named_with_those_that_exist(layout: Layout) -> None:
    with pytest.raises(PlanError, match=r"called gatewy; there are postgres, .*gateway"):
        make_plan(layout, UpOptions(nodes=1, only=("gatewy",)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a program to another user")
def test_a_program_below_a_closed_directory_runs_without_opening_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    script = closed / "program"
    script.write_text("#!/bin/sh\nid -u\n")
    script.chmod(0o755)
    user = OsUser(name="nobody", uid=65534, gid=65534)
    prefix = launch_prefix("KILL", user, script)
    # initdb looks by access(2) whether it may run the server beside it.
    subprocess.run([*prefix, "test", "-x", script], check=True, timeout=30)
    done = subprocess.run([*prefix, script], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "65534"
    assert closed.stat().st_mode & 0o777 == 0o700
