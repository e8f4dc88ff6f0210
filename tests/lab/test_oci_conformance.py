"""Programs that nobody here wrote use the registry of a whole platform: the conformance suite of
the OCI distribution specification, skopeo and podman.

The suite is built from its Go module, once, into ``.lab/``; its report stays in the test's own
folder.
"""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from oci_layout import files_of, write_layout
from registry_login import logged_in
from running_platform import PlatformHandle, PlatformWish, running_platform

REPOSITORY = Path(__file__).parents[2]
MODULE = "github.com/opencontainers/distribution-spec/conformance"
VERSION = "v0.0.0-20260831232431-97274622c111"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[PlatformHandle]:
    async with running_platform(PlatformWish(nodes=1, every_store=True)) as platform:
        yield platform


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's program."""
    program = REPOSITORY / ".lab" / f"oci-conformance-{VERSION}"
    if program.exists():
        return program
    if shutil.which("go") is None:
        pytest.skip("no Go, which builds the OCI conformance suite from its module")
    folder = tmp_path_factory.mktemp("gobin")
    subprocess.run(
        ["go", "install", f"{MODULE}@{VERSION}"],
        env={**os.environ, "GOBIN": str(folder), "GOFLAGS": "-modcacherw"},
        check=True,
        timeout=600,
    )
    program.parent.mkdir(exist_ok=True)
    partial = program.with_name(f"{program.name}.part-{os.getpid()}")
    shutil.copy(folder / "conformance", partial)
    partial.rename(program)
    return program


async def test_the_conformance_suite_of_the_distribution_specification_reports_no_failure(
    platform: PlatformHandle, suite: Path, tmp_path: Path
) -> None:
    login = await logged_in(platform, "conform")
    environment = {
        **os.environ,
        "OCI_REGISTRY": login.host,
        "OCI_TLS": "disabled",
        "OCI_REPO1": login.name("one"),
        "OCI_REPO2": login.name("two"),
        "OCI_USERNAME": login.user,
        "OCI_PASSWORD": login.password,
        "OCI_VERSION": "1.1",
        "OCI_RESULTS_DIR": str(tmp_path / "results"),
    }
    ended = await run([str(suite)], cwd=tmp_path, env=environment)
    report = ElementTree.parse(tmp_path / "results" / "junit.xml").getroot()
    cases = list(report.iter("testcase"))
    failed = [
        f"{case.get('name')}: {(case.findtext('system-out') or '')[:400]}"
        for case in cases
        if case.get("status") in {"failure", "error"}
    ]
    assert failed == []
    assert ended.returncode == 0, ended.stdout[-3000:]
    passed = sum(case.get("status") == "passed" for case in cases)
    assert passed > 500, f"{passed} of {len(cases)} cases passed"


async def test_skopeo_pushes_copies_and_pulls_what_it_pushed(
    platform: PlatformHandle, tmp_path: Path
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("no skopeo; it is a Debian package")
    login = await logged_in(platform, "skopeo")
    layout = write_layout(tmp_path / "image", layers=3, layer_bytes=12 * 2**20)
    credentials = f"{login.user}:{login.password}"
    target = f"docker://{login.host}/{login.name('base')}:v1"
    other = f"docker://{login.host}/{login.name('other')}:v1"
    pushing = ["--dest-tls-verify=false", "--dest-creds", credentials]
    pulling = ["--src-tls-verify=false", "--src-creds", credentials]
    await succeed(["skopeo", "copy", *pushing, f"oci:{layout}:v1", target])
    await succeed(["skopeo", "copy", *pushing, *pulling, target, other])
    await succeed(["skopeo", "copy", *pulling, other, f"oci:{tmp_path / 'back'}:v1"])
    assert files_of(tmp_path / "back") == files_of(layout)
    listed = ["skopeo", "list-tags", "--tls-verify=false", "--creds", credentials]
    told = await succeed([*listed, target.removesuffix(":v1")])
    assert '"v1"' in told.stdout
    await succeed(["skopeo", "delete", "--tls-verify=false", "--creds", credentials, other])
    stranger = await logged_in(platform, "stranger")
    refused = await run(
        [
            *("skopeo", "inspect", "--tls-verify=false", "--creds"),
            f"{stranger.user}:{stranger.password}",
            target,
        ]
    )
    assert refused.returncode != 0
    wrong = await run(["skopeo", "inspect", "--tls-verify=false", "--creds", "x:wrong", target])
    assert wrong.returncode != 0


@pytest.fixture
def podman() -> Iterator[list[str]]:
    """podman with stores of its own, whose paths it wants short."""
    folder = Path(tempfile.mkdtemp(prefix="pod-"))
    program = ["podman", "--root", str(folder / "root"), "--runroot", str(folder / "run")]
    program += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
    yield [*program, "--events-backend", "none"]
    subprocess.run([*program, "rmi", "--all", "--force"], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


async def test_podman_logs_in_pushes_and_pulls(
    platform: PlatformHandle, podman: list[str], tmp_path: Path
) -> None:
    if shutil.which("podman") is None:
        pytest.skip("no podman; it is a Debian package")
    login = await logged_in(platform, "podman")
    layout = write_layout(tmp_path / "image", layers=1, layer_bytes=2**20)
    auth = ["--authfile", str(tmp_path / "auth.json"), "--tls-verify=false"]
    entered = await run(
        [*podman, "login", *auth, "-u", login.user, "--password-stdin", login.host],
        text=login.password,
    )
    assert entered.returncode == 0, entered.stderr
    target = f"{login.host}/{login.name('podman')}:v1"
    await succeed([*podman, "pull", f"oci:{layout}:v1"])
    (image,) = (await succeed([*podman, "images", "--quiet"])).stdout.split()
    await succeed([*podman, "push", *auth, image, f"docker://{target}"])
    await succeed([*podman, "rmi", image])
    await succeed([*podman, "pull", *auth, target])
    assert (await succeed([*podman, "images", "--quiet"])).stdout.split() == [image]


async def succeed(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed."""
    ended = await run(command, **more)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr[-2000:]}"
    return ended


async def run(
    command: list[str], *, text: str | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program off the event loop."""
    return await asyncio.to_thread(
        subprocess.run,
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **more,
    )
