"""A disk that is too small, and one that fills while the platform runs, on a small tmpfs."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from dflare.embedded import disk
from dflare.kit import problem
from dflare.kit.db import StoreUnavailableError
from dflare.kit.telemetry import Forgiving

DEADLINE_S = 240.0


@contextmanager
def mounted(size_mib: int) -> Iterator[Path]:
    """A tmpfs of that size, which the database's user can reach; skips where none can be had."""
    # Outside pytest's own directories, which other users cannot enter.
    place = Path(tempfile.mkdtemp(prefix="dflare-disk-"))
    place.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=755", "dflare", str(place)]
    try:
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root can mount a small disk")
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("no tmpfs can be mounted here")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    finally:
        place.rmdir()


class Machine:
    """The program with its home and its data on one small disk."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data = place / "data"
        self.filler = place / "filler"

    def __call__(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DFLARE_")}
        return subprocess.run(
            [sys.executable, "-m", "dflare.cli.main", *words],
            env={
                **kept,
                "HOME": str(self.place.with_name(f"{self.place.name}-home")),
                "DFLARE_DATA_DIR": str(self.data),
                "NO_COLOR": "1",
            },
            input=text,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def done(self, *words: str, text: str = "") -> str:
        """Run a command that has to succeed; what it prints."""
        ended = self(*words, text=text)
        assert ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def fill(self) -> None:
        """Leave no byte free."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue


def test_a_disk_that_is_too_small_is_told_before_anything_is_made() -> None:
    with mounted(100) as place:
        run = Machine(place)
        refused = run("up")
        assert refused.returncode == 1
        assert "need 200 MiB to start" in refused.stderr
        assert "Free space, or choose another place by --data-dir." in " ".join(
            refused.stderr.split()
        )
        assert list(place.iterdir()) == []
        examined = run("doctor")
        assert examined.returncode == 1
        assert "Free some space; the stores need 200 MiB." in examined.stdout


def test_orders_are_refused_on_a_full_disk_and_go_on_once_there_is_room_again() -> None:
    with mounted(700) as place:
        run = Machine(place)
        home = place.with_name(f"{place.name}-home")
        try:
            run.done("up", "--nodes", "4", "--hardware-time", "zero")
            run.done("login", "--local")
            run.done("site", "apply", str(run.data / "site.yaml"), "--wait")
            run.done("organization", "create", "acme")
            run.done("project", "create", "lab", "--organization", "acme", "--use")
            run.done("quota", "set", "h100-8", "4")
            run.fill()
            _is_refused_for_the_disk(run)
            assert "is full" in run("status").stdout
            examined = run("doctor").stdout
            assert "Free some space there; what runs goes on by itself then." in examined
            # An order either comes too late for the room that is left, or is kept and waits.
            early = run("cluster", "create", "early", "-n", "1", "-t", "h100-8")
            assert early.returncode == 0 or "is full" in early.stderr, early.stderr
            run.filler.unlink()
            run.done("cluster", "create", "late", "-n", "1", "-t", "h100-8", "--wait")
            _all_succeed(run)
            names = {one["name"] for one in json.loads(run.done("cluster", "list", "-o", "json"))}
            assert names - {"early"} == {"late"}
            assert ("early" in names) == (early.returncode == 0), "nothing is left half done"
        finally:
            run("down")
            shutil.rmtree(home, ignore_errors=True)


def _is_refused_for_the_disk(run: Machine) -> None:
    """Pages that are half empty still take small rows, so larger ones are tried until none fits."""
    for number in range(20):
        text = secrets.token_hex(30_000)
        ended = run("user-data", "add", f"filler-{number}", "-", text=text)
        if ended.returncode != 0:
            assert ended.returncode == 5, ended.stderr
            assert "the disk of the database is full" in ended.stderr
            assert "next: An operator frees space" in ended.stderr
            return
    raise AssertionError("a full disk took everything")


def _all_succeed(run: Machine) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        orders = json.loads(run.done("operation", "list", "-o", "json"))
        states = {order["state"] for order in orders}
        if states == {"succeeded"}:
            return
        assert states <= {"pending", "running", "succeeded"}, orders
        assert time.monotonic() < deadline, orders


def test_the_warning_of_a_running_platform_says_whether_orders_are_refused_already(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = 0
    monkeypatch.setattr(disk, "free_bytes", lambda _: free)
    assert "orders are refused and those under way wait" in disk.running_warning(tmp_path)
    free = 500 * disk.MIB
    assert "Only 500 MiB are free" in disk.running_warning(tmp_path)
    free = 2 * disk.LOW_DISK_BYTES
    assert disk.running_warning(tmp_path) == ""


async def test_the_databases_full_disk_is_a_problem_of_its_own() -> None:
    class FullError(Exception):
        sqlstate = "53100"

    app = FastAPI()
    problem.install(app)

    full = DBAPIError("INSERT", {}, FullError("could not extend file: No space left on device"))

    @app.post("/statement")
    async def statement() -> None:
        raise full

    @app.post("/transaction")
    async def transaction() -> None:
        raise StoreUnavailableError("the database cannot serve") from full

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/statement", "/transaction"):
            answer = await client.post(path)
            assert answer.status_code == 503
            assert answer.json()["type"].endswith("/disk-full")
            assert answer.json()["retryable"] is True
            assert "Retry-After" in answer.headers


def test_a_log_that_cannot_be_written_fails_no_request() -> None:
    with Path("/dev/full").open("w") as full:
        stream = Forgiving(full)
        assert stream.write("a line\n") in (0, 7)
        stream.flush()
        # What is still buffered would fail once more when the file is closed.
        with pytest.raises(OSError, match="No space left"):
            full.close()
