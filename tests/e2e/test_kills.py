"""Killed processes and a lost store end where an undisturbed run ends.

Twelve SIGKILLs, two of each process in an order drawn by a seed, hit two orders and two releases in
twelve distinct steps. Steps that wait for hardware take about a second, and the site's clock goes
slowly from the kill until everything is up again; steps that are over in an instant are held by a
lock on the table that they write, until the kill. What is compared at the end: states of
operations, allocations, identifiers and nodes, who reaches whom, and usage intervals.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from judgement import peers
from running_platform import (
    KILL_SETTINGS,
    PlatformHandle,
    Tenant,
    brief,
    running_platform,
    running_steps,
)
from site_files import PlatformWish

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(900)

NODES, ORDERED = 8, 5
SEED = 20230711
SPEED = 20
# Seconds of the site's clock: at 20x each is between a tenth of a second and a second and a half.
TIMES = {
    "power_on_s": 4,
    "power_off_s": 16,
    "post_s": 10,
    "bios_apply_s": 6,
    "os_boot_s": 16,
    "agent_boot_s": 6,
    "image_write_s": 16,
    "erase_s": 16,
    "switch_apply_s": 30,
    "ufm_job_s": 20,
}
PROCESSES = ("gateway", "worker", "site-worker", "relay", "temporal", "postgres")


@dataclass(frozen=True)
class Moment:
    """A running step to kill in; ``held_by`` is the table whose lock keeps it from ending."""

    step: str
    held_by: str | None = None


ORDERS = (
    (
        Moment("baremetal.prepare@1"),
        Moment("network.await@1"),
        Moment("baremetal.provision@1"),
        Moment("orchestrator.hand_over@1", held_by="orchestrator.allocation"),
    ),
    (
        Moment("network.attach@1", held_by="network.port_desired"),
        Moment("baremetal.profile@1"),
        Moment("baremetal.start@1"),
    ),
)
RELEASES = (
    (
        Moment("orchestrator.release@1", held_by="orchestrator.allocation"),
        Moment("baremetal.erase@1"),
        Moment("network.await_drained@1"),
    ),
    (
        Moment("baremetal.power_off@1"),
        Moment("network.detach@1", held_by="network.port_desired"),
    ),
)


@dataclass
class Killer:
    """Kills the next process of its list in each moment that it is given."""

    platform: PlatformHandle
    processes: list[str]
    hits: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    async def strike(
        self, moments: Sequence[Moment], order: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Order, and kill in each moment; a moment's lock is held from the one before it on."""
        if moments[0].held_by is None:
            # Reading of power states is what the first step does: let BMCs take their time.
            await self.platform.sim.fault("bmc_slow", params={"seconds": SPEED / 2})
        operation: dict[str, Any] | None = None
        for moment in moments:
            async with self._held(moment.held_by):
                operation = operation or await order()
                step = await self._reach(operation, moment.step)
                await self.platform.sim.speed(1)
                process = self.processes.pop()
                pid = self.platform.kill(process)
                self.hits.append((step, process))
                await self.platform.sim.clear_faults()
            await self.platform.until_healthy(other_than=pid)
            await self.platform.sim.speed(SPEED)
        assert operation is not None
        return operation

    async def _reach(self, operation: dict[str, Any], wanted: str) -> str:
        """Waits for the step, and says which runs now: on a busy machine the one that was wanted
        may pass unseen, and the process dies in the next."""
        async with asyncio.timeout(60):
            while True:
                seen = await self.platform.operation(operation["id"])
                running = running_steps(seen) if seen is not None else []
                if wanted in running:
                    return wanted
                over = seen and any(s["name"] == wanted and s["finished_at"] for s in seen["steps"])
                if over and running:
                    return running[0]
                assert seen is None or seen["state"] != "succeeded", brief(seen)
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def _held(self, table: str | None) -> AsyncIterator[None]:
        if table is None:
            yield
            return
        async with self.platform.database() as database:
            # The lock goes with the connection, however that ends.
            await database.execute(f"BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield


@dataclass(frozen=True)
class Outcome:
    """What an order and its release left behind, without ids and times."""

    operations: tuple[str, ...]
    allocations: tuple[tuple[str, int], ...]
    reached_during: tuple[int, ...]
    reached_after: int
    nodes: tuple[tuple[str, int], ...]
    live_claims: int
    identifiers_in_use: int
    networks: tuple[str, ...]
    intervals: tuple[bool, ...]
    quota_used: int


@dataclass(frozen=True)
class Evidence:
    """The undisturbed run, the disturbed ones, and who was killed in which step."""

    calm: Outcome
    killed: list[Outcome]
    hits: list[tuple[str, str]]
    store_lost: Outcome


@pytest.fixture(scope="module")
async def evidence() -> AsyncIterator[Evidence]:
    """One platform that lives through everything, so that damage of one run shows in the next."""
    wish = PlatformWish(nodes=NODES, speed=SPEED, times=TIMES, environment=KILL_SETTINGS)
    async with running_platform(wish) as platform:
        await platform.apply_site()
        tenant = await platform.tenant("red", {"h100-8": ORDERED})
        calm = await _cycle(platform, tenant, "calm")
        chosen = [*PROCESSES, *PROCESSES]
        random.Random(SEED).shuffle(chosen)
        killer = Killer(platform, chosen)
        killed = [
            await _cycle(platform, tenant, f"killed-{number}", killer, *moments)
            for number, moments in enumerate(zip(ORDERS, RELEASES, strict=True))
        ]
        store_lost = await _cycle_without_store(platform, tenant)
        yield Evidence(calm, killed, killer.hits, store_lost)


async def _cycle(
    platform: PlatformHandle,
    tenant: Tenant,
    name: str,
    killer: Killer | None = None,
    in_order: Sequence[Moment] = (),
    in_release: Sequence[Moment] = (),
) -> Outcome:
    """Order and release, with a kill in each of the moments named."""

    async def order() -> dict[str, Any]:
        return await platform.order(tenant, name, "h100-8", ORDERED)

    async def release() -> dict[str, Any]:
        return await platform.release(tenant, name)

    created = await (killer.strike(in_order, order) if killer else order())
    await platform.wait(created, deadline_s=150)
    reached = await _reached(platform)
    deleted = await (killer.strike(in_release, release) if killer else release())
    await platform.wait(deleted, deadline_s=150)
    return await _outcome(platform, [created["id"], deleted["id"]], reached)


async def _cycle_without_store(platform: PlatformHandle, tenant: Tenant) -> Outcome:
    """Order, and lose all that Temporal knows in the middle of it."""
    created = await platform.order(tenant, "store", "h100-8", ORDERED)
    async with asyncio.timeout(60):
        while True:
            seen = await platform.operation(created["id"])
            if seen is not None and "baremetal.provision@1" in running_steps(seen):
                break
            await asyncio.sleep(0.01)
    with platform.supervisor_paused():
        pid = platform.kill("temporal")
        files = sorted(platform.layout.temporal.glob("temporal.db*"))
        assert files, "Temporal keeps its database elsewhere now"
        for file in files:
            file.unlink()
    await platform.until_healthy(other_than=pid)
    await platform.wait(created, deadline_s=150)
    reached = await _reached(platform)
    deleted = await platform.release(tenant, "store")
    await platform.wait(deleted, deadline_s=150)
    return await _outcome(platform, [created["id"], deleted["id"]], reached)


async def _reached(platform: PlatformHandle) -> tuple[int, ...]:
    """How many others each host reaches in both technologies, in order of number."""
    truth = await platform.sim.reachability()
    names = [node.name for node in platform.document.nodes]
    return tuple(
        sorted(
            len(peers(truth, technology, name))
            for name in names
            for technology in ("ethernet", "infiniband")
        )
    )


async def _outcome(
    platform: PlatformHandle, operation_ids: list[str], reached: tuple[int, ...]
) -> Outcome:
    await platform.until_available(NODES)
    truth = await platform.sim.reachability()
    async with platform.database() as database:
        operations = await database.fetch(
            "SELECT state, resource_id FROM clusters.operation WHERE id = ANY($1) ORDER BY id",
            operation_ids,
        )
        cluster = operations[0]["resource_id"]
        allocations = await database.fetch(
            "SELECT state, usage_from, usage_to FROM orchestrator.allocation WHERE cluster_id = $1",
            cluster,
        )
        networks = await database.fetch(
            "SELECT id, state FROM network.network WHERE cluster_id = $1", cluster
        )
        in_use = await database.fetchval(
            "SELECT count(*) FROM network.pool_value"
            " WHERE network_id = ANY($1) AND state IN ('allocated', 'draining')",
            [network["id"] for network in networks],
        )
        claims = await database.fetchval(
            "SELECT count(*) FROM orchestrator.claim WHERE ended_at IS NULL"
        )
        nodes = await database.fetch("SELECT state FROM baremetal.node")
        quota = await database.fetchval("SELECT sum(nodes) FROM orchestrator.quota_usage")
    return Outcome(
        operations=tuple(row["state"] for row in operations),
        allocations=_counted(row["state"] for row in allocations),
        reached_during=reached,
        reached_after=len(truth["ethernet"]) + len(truth["infiniband"]),
        nodes=_counted(row["state"] for row in nodes),
        live_claims=claims,
        identifiers_in_use=in_use,
        networks=tuple(row["state"] for row in networks),
        intervals=tuple(
            row["usage_from"] is not None
            and row["usage_to"] is not None
            and row["usage_from"] < row["usage_to"]
            for row in allocations
        ),
        quota_used=quota or 0,
    )


def _counted(states: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(states).items()))


def test_an_undisturbed_order_and_release_leave_nothing(evidence: Evidence) -> None:
    calm = evidence.calm
    assert calm.operations == ("succeeded", "succeeded")
    assert calm.allocations == (("ended", ORDERED),)
    assert calm.reached_during == (0,) * 2 * (NODES - ORDERED) + (ORDERED - 1,) * 2 * ORDERED
    assert (calm.reached_after, calm.live_claims, calm.identifiers_in_use) == (0, 0, 0)
    assert calm.nodes == (("available", NODES),)
    assert calm.intervals == (True,) * ORDERED
    assert calm.quota_used == 0


def test_twelve_kills_hit_every_process_twice_and_most_of_the_steps(
    evidence: Evidence,
) -> None:
    assert Counter(process for _, process in evidence.hits) == dict.fromkeys(PROCESSES, 2)
    # All twelve differ, unless the machine was so busy that a step passed unseen.
    assert len({step for step, _ in evidence.hits}) >= 8


def test_killed_processes_end_in_the_state_of_an_undisturbed_run(evidence: Evidence) -> None:
    assert evidence.killed == [evidence.calm] * 2


def test_losing_temporals_whole_store_ends_in_the_state_of_an_undisturbed_run(
    evidence: Evidence,
) -> None:
    assert evidence.store_lost == evidence.calm
