"""How a process ends: its tasks first, then what they used, and nothing keeps it from ending."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dflare.apps import process as processes
from dflare.apps import site_worker
from dflare.apps.process import Process, running_process
from dflare.apps.wiring import Platform
from dflare.embedded.secret_files import ensure_master_key
from dflare.kit.settings import PlatformSettings
from simulator import free_ports
from stores import drop_database
from tenancy import migrated_database

Starter = Callable[[str], AbstractAsyncContextManager[Process]]


@pytest.fixture
async def start(postgres_url: str, temporal_address: str, tmp_path: Path) -> AsyncIterator[Starter]:
    url = await migrated_database(postgres_url, "baremetal", "network", "trace")
    ensure_master_key(tmp_path / "master-key")
    settings = PlatformSettings(
        postgres_url=url,
        temporal_address=temporal_address,
        secret_key_file=str(tmp_path / "master-key"),
        agent_port=free_ports(1)[0],
        data_dir=str(tmp_path),
    )
    yield lambda name: running_process(name, settings)
    drop_database(url)


@dataclass(frozen=True)
class Watched(Platform):
    """A platform that notes which tasks still ran when its clients were closed."""

    running: list[set[str]] = field(default_factory=list[set[str]])

    async def close_clients(self) -> None:
        self.running.append({task.get_name() for task in self.process.tasks})
        await super().close_clients()


async def test_a_site_worker_closes_its_clients_of_devices_when_its_tasks_have_ended(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []

    async def close(client: object) -> None:
        closed.append(client)

    async with start("site-worker") as process:
        platform = Watched(process)
        await site_worker.serve(process, platform)
        started = {task.get_name() for task in process.tasks}
        monkeypatch.setattr(type(platform.bmc), "close", close)
        monkeypatch.setattr(type(platform.fabric_rest), "close", close)
        assert platform.running == []
    assert {"nodes", "fabrics", "sites", "agent-api"} <= started
    assert platform.running == [set()]
    assert closed == [platform.bmc, platform.fabric_rest]


async def test_closing_makes_no_client_that_was_not_used(start: Starter) -> None:
    async with start("worker") as process:
        platform = Platform(process)
        process.at_end(platform.close_clients)
    assert "bmc" not in vars(platform)
    assert "fabric_rest" not in vars(platform)


async def test_a_closing_work_that_fails_or_hangs_keeps_no_other_from_being_done(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CLOSE_WITHIN_S", 0.01)
    done: list[str] = []

    async def note(name: str) -> None:
        done.append(name)

    async def fail() -> None:
        raise OSError("the device is gone")

    async def hang() -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(60), start("worker") as process:
        process.at_end(lambda: note("first given"))
        process.at_end(fail)
        process.at_end(hang)
        process.at_end(lambda: note("last given"))
    assert done == ["last given", "first given"]
