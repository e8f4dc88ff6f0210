"""The doctor names what is wrong and what to do, and how a Temporal server is recognised."""

import asyncio
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from dflare.cli.local import without_password
from dflare.cli.main import app
from dflare.embedded import control
from dflare.embedded.doctor import Finding, Verdict, examine
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.plan import PlanError, explain_os_error, make_plan
from dflare.embedded.ports import LOOPBACK, free_port
from dflare.embedded.temporal import speaks_grpc


class Usage(NamedTuple):
    """What shutil.disk_usage answers."""

    total: int
    used: int
    free: int


@pytest.fixture
def layout() -> Iterator[Layout]:
    directory = Path(tempfile.mkdtemp(prefix="dflare-doctor-"))
    layout = Layout(directory / "data")
    yield layout
    control.down(layout)
    shutil.rmtree(directory, ignore_errors=True)


def findings_of(layout: Layout) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(layout)}


def test_a_machine_that_works_has_nothing_to_put_right(layout: Layout) -> None:
    found = findings_of(layout)
    assert [item for item in found.values() if item.verdict is Verdict.FAIL] == []
    assert found["processes"].text == "nothing runs in this data directory"
    assert not layout.root.exists(), "looking must not make anything"


@pytest.mark.parametrize(
    ("free_mib", "verdict"), [(100, Verdict.FAIL), (500, Verdict.WARN), (5000, Verdict.OK)]
)
def test_little_disk_is_told_before_it_is_full(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, free_mib: int, verdict: Verdict
) -> None:
    usage = Usage(total=10**12, used=0, free=free_mib * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    finding = findings_of(layout)["disk"]
    assert finding.verdict is verdict
    assert bool(finding.advice) == (verdict is not Verdict.OK)


def test_a_full_disk_stops_the_start_with_one_message(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(total=10**12, used=10**12, free=3 * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PlanError, match=r"Only 3 MiB are free .* Free space"):
        make_plan(layout, UpOptions(only=("postgres",)))


def test_errors_of_the_system_become_one_sentence_with_the_next_step() -> None:
    data = Path("data")
    full = explain_os_error(OSError(errno.ENOSPC, "No space left", "data/run/state.json"), data)
    assert (
        full
        == "The disk is full: data/run/state.json could not be written. Free space, then try again."
    )
    denied = explain_os_error(PermissionError(errno.EACCES, "Permission denied", "data"), data)
    assert "--data-dir" in denied


def test_a_data_directory_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    answer = CliRunner().invoke(app, ["up", "--data-dir", str(occupied / "data")])
    assert answer.exit_code == 1
    assert "Error:" in answer.output
    assert "Traceback" not in answer.output


def test_a_start_on_a_port_in_use_names_its_holder_and_leaves_nothing_running(
    layout: Layout,
) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["up", "--port", port, "--data-dir", str(layout.root)]
        answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 1
    said = " ".join(answer.output.split())
    assert f"Port {port} (asked for gateway) is held by" in said
    assert f"(pid {os.getpid()})" in said
    assert "ask for another port" in said
    assert CliRunner().invoke(app, ["status", "--data-dir", str(layout.root)]).exit_code == 3


def test_processes_without_a_supervisor_are_found(layout: Layout) -> None:
    started = control.up(layout, UpOptions(only=("temporal",)))
    assert findings_of(layout)["temporal"].verdict is Verdict.OK
    layout.lock_file.unlink()
    finding = findings_of(layout)["processes"]
    assert finding.verdict is Verdict.FAIL
    assert "dflare down" in finding.advice
    layout.lock_file.write_text(started.state.supervisor.model_dump_json())


def test_status_of_nothing_says_how_to_start(layout: Layout) -> None:
    answer = CliRunner().invoke(app, ["status", "--data-dir", str(layout.root)])
    assert answer.exit_code == 3
    assert "dflare up" in answer.output


def test_a_log_that_does_not_exist_lists_those_that_do(layout: Layout) -> None:
    layout.create()
    layout.log_file("gateway").write_text("one\ntwo\n")
    runner = CliRunner()
    shown = runner.invoke(app, ["logs", "gateway", "-n", "1", "--data-dir", str(layout.root)])
    assert shown.output == "two\n"
    wrong = runner.invoke(app, ["logs", "../run/options", "--data-dir", str(layout.root)])
    assert wrong.exit_code == 1
    assert "gateway" in wrong.output


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://a:secret@h:1/d") == "postgresql://a:…@h:1/d"
    assert without_password("127.0.0.1:7233") == "127.0.0.1:7233"


async def test_only_an_http2_server_passes_for_temporal(temporal_address: str) -> None:
    assert await speaks_grpc(temporal_address)
    assert not await speaks_grpc(f"{LOOPBACK}:{free_port()}")
    assert not await speaks_grpc("no-port")

    async def answer_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    port = free_port()
    server = await asyncio.start_server(answer_http1, LOOPBACK, port)
    assert not await speaks_grpc(f"{LOOPBACK}:{port}")
    server.close()
    await server.wait_closed()
