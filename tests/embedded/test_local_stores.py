"""`dflare up` and `down` over the two real stores."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from temporalio.client import Client

from dflare.embedded import control
from dflare.embedded.identity import ProcessIdentity, marked_processes
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.os_user import OsUser, launch_prefix
from dflare.embedded.ports import LOOPBACK
from dflare.embedded.state import ComponentState, read_state
from dflare.embedded.supervisor import clear_remains
from stores import fresh_database

PYTHON = Path(sys.executable).resolve()
STORES = UpOptions(only=("postgres", "temporal"))


@pytest.fixture
def layout() -> Iterator[Layout]:
    directory = Path(tempfile.mkdtemp(prefix="dflare-up-"))
    layout = Layout(directory / "data")
    yield layout
    control.down(layout)
    shutil.rmtree(directory, ignore_errors=True)


async def until(what: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 - the world outside this process sets no event
            await asyncio.sleep(0.05)


async def in_maintenance_database(started: control.Started) -> asyncpg.Connection:
    url = started.state.urls["postgres"].rsplit("/", 1)[0] + "/postgres"
    return await asyncpg.connect(url)


async def up(layout: Layout, options: UpOptions = STORES) -> control.Started:
    return await asyncio.to_thread(control.up, layout, options)


async def down(layout: Layout) -> list[str]:
    return await asyncio.to_thread(control.down, layout)


def processes_of(layout: Layout) -> list[ProcessIdentity]:
    """What carries the mark, and PostgreSQL's own helpers, whose environment is hidden."""
    found = marked_processes(layout.root)
    for process in psutil.process_iter(["cmdline"]):
        if any(str(layout.root) in word for word in process.info["cmdline"] or ()):
            identity = ProcessIdentity.of(process.pid)
            if identity is not None:
                found.append(identity)
    return found


async def test_down_leaves_no_process_and_the_next_start_finds_the_data_again(
    layout: Layout,
) -> None:
    first = await up(layout)
    connection = await in_maintenance_database(first)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    children = [
        child.pid
        for process in first.state.processes
        for child in psutil.Process(process.pid).children(recursive=True)
    ]
    assert children

    assert await down(layout) == []
    assert processes_of(layout) == []
    assert not any(psutil.pid_exists(pid) for pid in children)

    second = await up(layout)
    assert second.state.urls == first.state.urls
    connection = await in_maintenance_database(second)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()
    client = await Client.connect(second.state.urls["temporal"])
    assert await client.service_client.check_health()


async def test_a_second_start_changes_nothing(layout: Layout) -> None:
    first = await up(layout)
    again = await up(layout)
    assert again.already_running
    assert again.state.supervisor == first.state.supervisor
    assert again.state.processes == first.state.processes


async def test_two_starts_at_once_make_one_supervisor(layout: Layout) -> None:
    first, second = await asyncio.gather(up(layout), up(layout))
    assert first.state.supervisor == second.state.supervisor


async def test_a_killed_postgres_comes_back_with_what_was_committed(layout: Layout) -> None:
    started = await up(layout)
    connection = await in_maintenance_database(started)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS answer")
    postgres = next(item for item in started.state.components if item.name == "postgres")
    assert postgres.process is not None
    postgres.process.send(signal.SIGKILL)
    connection.terminate()

    def is_back() -> bool:
        state = read_state(layout.state_file)
        assert state is not None
        now = next(item for item in state.components if item.name == "postgres")
        return now.is_ready and now.restarts >= 1 and now.process != postgres.process

    await until(is_back)
    connection = await in_maintenance_database(started)
    assert await connection.fetchval("SELECT answer FROM kept") == 7
    await connection.close()


async def test_after_the_supervisor_was_killed_a_start_works_and_keeps_the_data(
    layout: Layout,
) -> None:
    first = await up(layout)
    connection = await in_maintenance_database(first)
    await connection.execute("CREATE TABLE kept AS SELECT 9 AS answer")
    await connection.close()
    first.state.supervisor.send(signal.SIGKILL)
    await until(lambda: control.running_supervisor(layout) is None)

    second = await up(layout)
    assert second.state.supervisor != first.state.supervisor
    assert not any(process.is_alive() for process in first.state.processes)
    connection = await in_maintenance_database(second)
    assert await connection.fetchval("SELECT answer FROM kept") == 9
    await connection.close()


async def test_the_stores_end_with_a_killed_supervisor(layout: Layout) -> None:
    started = await up(layout)
    started.state.supervisor.send(signal.SIGKILL)
    await until(lambda: not any(process.is_alive() for process in started.state.processes))
    await until(lambda: processes_of(layout) == [])
    assert await down(layout) == []


async def test_a_recorded_pid_that_belongs_to_another_program_now_is_left_alone(
    layout: Layout,
) -> None:
    started = await up(layout)
    await down(layout)
    bystander = await asyncio.create_subprocess_exec("sleep", "600")
    postgres = started.state.components[0]
    assert postgres.process is not None
    stale = postgres.model_copy(
        update={"process": postgres.process.model_copy(update={"pid": bystander.pid})}
    )
    state = started.state.model_copy(update={"components": (stale,)})
    layout.state_file.write_text(state.model_dump_json())

    assert clear_remains(layout) == []
    assert bystander.returncode is None
    bystander.kill()
    await bystander.wait()


async def test_a_demanded_port_in_use_is_refused_before_anything_starts(layout: Layout) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        options = STORES.model_copy(update={"gateway_port": port})
        with pytest.raises(control.StartError, match=rf"Port {port} .*pid {os.getpid()}"):
            await up(layout, options)
    assert processes_of(layout) == []


async def test_a_stores_port_taken_meanwhile_moves_and_says_so(layout: Layout) -> None:
    first = await up(layout)
    await down(layout)
    port = int(first.state.urls["temporal"].rsplit(":", 1)[1])
    with socket.create_server((LOOPBACK, port)):
        second = await up(layout)
    assert second.state.urls["temporal"] != first.state.urls["temporal"]
    assert any(f"Port {port}" in warning for warning in second.state.warnings)


async def test_an_outside_postgres_is_used_and_none_is_started(
    layout: Layout, postgres_url: str
) -> None:
    url = fresh_database(postgres_url)
    started = await up(layout, STORES.model_copy(update={"postgres_url": url}))
    postgres = next(item for item in started.state.components if item.name == "postgres")
    assert postgres.external
    assert postgres.state is ComponentState.HEALTHY
    assert not (layout.postgres / "data").exists()


async def test_an_outside_store_that_is_down_is_named_with_the_next_step(layout: Layout) -> None:
    options = STORES.model_copy(update={"temporal_address": f"{LOOPBACK}:1", "only": ("temporal",)})
    with pytest.raises(control.StartError, match=r"temporal.*does not answer.*--temporal-address"):
        await up(layout, options)


async def test_purge_deletes_only_what_it_made(layout: Layout) -> None:
    await up(layout, UpOptions(only=("temporal",)))
    with pytest.raises(control.PurgeRefusedError, match="dflare down"):
        control.purge(layout)
    await down(layout)
    foreign = layout.root / "notes.txt"
    foreign.write_text("mine")
    assert control.purge(layout) == [foreign]
    assert list(layout.root.iterdir()) == [foreign]
    with pytest.raises(control.PurgeRefusedError, match="no data directory"):
        control.purge(layout)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
async def test_an_ordinary_user_starts_and_stops_it_all(layout: Layout) -> None:
    entry = pwd.getpwnam("nobody")
    user = OsUser(name="nobody", uid=entry.pw_uid, gid=entry.pw_gid)
    home = layout.root.parent
    user.own(home)
    prefix = launch_prefix("KILL", user, PYTHON, Path(__file__))
    program = [*prefix, sys.executable, "-m", "dflare.cli.main"]

    def dflare(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *arguments, "--data-dir", layout.root],
            check=False,
            cwd="/",
            env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=180,
        )

    started = await asyncio.to_thread(dflare, "up", "--only", "postgres,temporal")
    assert started.returncode == 0, started.stdout + started.stderr
    assert "Dflare is up" in started.stdout
    state = read_state(layout.state_file)
    assert state is not None
    assert {psutil.Process(p.pid).uids().effective for p in state.processes} == {user.uid}

    shown = await asyncio.to_thread(dflare, "status")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    stopped = await asyncio.to_thread(dflare, "down")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert processes_of(layout) == []
