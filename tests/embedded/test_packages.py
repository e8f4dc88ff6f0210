"""Slurm's Debian packages: had by an ordinary user, once, and never at the cost of a start."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dflare.embedded import packages
from dflare.embedded.doctor import Finding, Verdict, examine
from dflare.embedded.identity import ProcessIdentity
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.packages import (
    REQUIRED,
    SWITCH_VARIABLE,
    PackageCache,
    PackagesState,
    PackagesStatus,
)
from dflare.embedded.plan import make_plan
from dflare.embedded.state import ComponentState, ComponentStatus, SupervisorState

FAKE_APT = """#!{python}
import pathlib, sys
with open({calls!r}, "a") as calls:
    print(*sys.argv, file=calls)
archives = next(a.partition("=")[2] for a in sys.argv if "Cache::archives=" in a)
words = [a for a in sys.argv[1:] if not a.startswith("-")]
if sys.argv[0].endswith("apt-cache"):
    print(*{known!r}, sep="\\n")
elif words[0] == "update":
    sys.exit(100)
else:
    names = words[1:] + (["libneeded"] if words[0] == "install" else [])
    for name in names:
        if words[0] == "install" and name == "munge":
            continue  # installed on the machine
        pathlib.Path(archives, name + "_1.2_all.deb").write_text(name)
"""
FAKE_DPKG = """#!{python}
import pathlib, sys
name = pathlib.Path(sys.argv[-2 if sys.argv[1] == "--extract" else -1]).read_text()
if sys.argv[1] == "--extract":
    pathlib.Path(sys.argv[3], name).touch()
else:
    print(name, "1.2")
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt and dpkg of our own on the path; gives the file with their calls. The first source of
    packages never answers."""
    return fake_tools(tmp_path, monkeypatch, known=REQUIRED)


def fake_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, known: tuple[str, ...]) -> Path:
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    calls.touch()
    apt = FAKE_APT.format(python=sys.executable, calls=str(calls), known=known)
    dpkg = FAKE_DPKG.format(python=sys.executable)
    for name, text in (("apt-get", apt), ("apt-cache", apt), ("dpkg-deb", dpkg)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    return calls


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "cache")


def test_packages_are_unpacked_with_what_they_need_and_their_versions_kept(
    cache: PackageCache, calls: Path
) -> None:
    status = cache.prepare()
    assert status.state is PackagesState.READY, status.reason
    unpacked = {path.name for path in cache.root.iterdir()}
    assert unpacked == {*REQUIRED, "libneeded"}
    assert status.versions["slurmctld"] == "1.2"
    assert cache.status() == status
    assert status.line == "ready, 1.2"


def test_nothing_is_downloaded_twice(cache: PackageCache, calls: Path) -> None:
    cache.prepare()
    before = calls.read_text()
    assert "install" in before
    assert cache.prepare().state is PackagesState.READY
    assert calls.read_text() == before


def test_apt_keeps_its_state_and_cache_inside_the_cache(cache: PackageCache, calls: Path) -> None:
    cache.prepare()
    for line in calls.read_text().splitlines():
        assert f"Dir::State={cache.folder}" in line
        assert f"Dir::Cache={cache.folder}" in line
    assert {path.name for path in cache.folder.iterdir()} == {"root", "status.json", "lock"}


def test_a_source_without_the_packages_is_said_and_tried_again_at_the_next_start(
    cache: PackageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_tools(tmp_path, monkeypatch, known=REQUIRED[1:])
    status = cache.prepare()
    assert status.state is PackagesState.UNAVAILABLE
    assert "no source has munge" in status.reason
    assert "bare works without" in status.reason
    assert not cache.root.exists()
    before = calls.read_text()
    cache.prepare()
    assert len(calls.read_text()) > len(before)


def test_a_machine_without_apt_is_told_what_slurm_needs_and_the_program_succeeds(
    cache: PackageCache, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dflare.embedded.packages", str(cache.folder)],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    status = cache.status()
    assert status.state is PackagesState.UNAVAILABLE
    assert "apt-get" in status.reason
    assert "Debian" in status.reason


def test_a_cut_off_download_leaves_no_half_tree_and_goes_on(
    cache: PackageCache, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = cache.folder / "root.new"
    half.mkdir(parents=True)
    (half / "remains").touch()
    (cache.folder / "status.json").write_text(
        json.dumps({"state": "preparing", "reason": "", "versions": {}})
    )
    assert cache.prepare().state is PackagesState.READY
    assert not (cache.root / "remains").exists()
    assert not half.exists()


def test_a_start_prepares_the_packages_beside_the_stores_and_waits_for_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, str(tmp_path / "shared"))
    plan = make_plan(Layout(tmp_path / "data"), UpOptions(nodes=1))
    component = next(item for item in plan.components if item.name == "slurm-packages")
    assert component.optional
    assert component.depends_on == ()
    assert str(tmp_path / "shared") in component.argv
    assert not any("slurm-packages" in item.depends_on for item in plan.components)


def test_packages_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, "off")
    plan = make_plan(Layout(tmp_path / "data"), UpOptions(nodes=1))
    assert "slurm-packages" not in {item.name for item in plan.components}


def test_a_start_is_ready_while_something_optional_is_not(tmp_path: Path) -> None:
    def state(optional: bool) -> SupervisorState:
        needed = ComponentStatus(name="gateway", state=ComponentState.HEALTHY)
        beside = ComponentStatus(
            name="slurm-packages", state=ComponentState.STARTING, optional=optional
        )
        identity = ProcessIdentity.of(os.getpid())
        assert identity is not None
        return SupervisorState(supervisor=identity, version="1", components=(needed, beside))

    assert state(optional=True).is_ready
    assert not state(optional=False).is_ready


def test_the_doctor_says_how_the_packages_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "data")
    cache = PackageCache(tmp_path / "data" / "packages")
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)

    def finding() -> Finding:
        return next(item for item in examine(layout) if item.subject == "slurm")

    assert finding().verdict is Verdict.OK
    cache.folder.mkdir(parents=True)
    for state, reason, verdict in (
        ("ready", "", Verdict.OK),
        ("unavailable", "no source has munge", Verdict.WARN),
    ):
        said = {"state": state, "reason": reason, "versions": {"slurmctld": "22.05"}}
        (cache.folder / "status.json").write_text(json.dumps(said))
        assert finding().verdict is verdict
        assert (reason or "22.05") in finding().text
    shutil.rmtree(cache.folder)
    monkeypatch.setenv(SWITCH_VARIABLE, "off")
    assert "off" in finding().text


def test_a_status_line_names_the_reason() -> None:
    assert PackagesStatus(PackagesState.PREPARING).line == "preparing"
    assert PackagesStatus(PackagesState.UNAVAILABLE, "why").line == "unavailable: why"
    assert packages.OFF == "off"
