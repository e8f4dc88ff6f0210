"""The network service on a simulated data center: real PostgreSQL, the simulator at the wire.

async with network_site(url, folder, data_center(nodes=4)) as site:
    await site.hold("clu_a", ["n0", "n1"])
    await site.step("network.attach@1", "clu_a", ["n0", "n1"])
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

import dflare.services.network as package
from dflare.drivers.ethernet.nvue import NvueSwitches
from dflare.drivers.fabric.rest import DeviceRest
from dflare.drivers.infiniband.ufm import UfmManager
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.plan import StepCall, StepReport
from dflare.kit.seal import Sealer
from dflare.kit.steps import Step, StepRunner
from dflare.services.baremetal.contract import (
    EthernetCable,
    InfinibandCable,
    NodeDeclared,
    PoolFacts,
    SiteDeclared,
    SwitchFacts,
    UfmFacts,
)
from dflare.services.network.activities import steps
from dflare.services.network.ethernet import EthernetFabric
from dflare.services.network.infiniband import InfinibandFabric
from dflare.services.network.projections import AllocationProjection, InventoryProjection
from dflare.services.network.reconciler import DeviceReconciler, Tools
from dflare.services.network.settings import NetworkSettings
from dflare.services.network.signals import Signals
from dflare.services.network.supervisor import Supervisor
from dflare.services.network.tables import KIT
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from dflare.sim.config import SimConfig
from simulator import SimHandle, simulator

MIGRATIONS = {"network": Path(package.__path__[0]) / "migrations"}
SITE = "site_test"
KEY = b"k" * 32
QUICK = NetworkSettings(
    read_back_every_s=2,
    poll_s=0.1,
    lease_s=4,
    sweep_every_s=0.2,
    wait_s=0.3,
    backoff_first_s=0.05,
    backoff_most_s=0.5,
    step_wait_s=20,
)
POOLS = PoolFacts(
    vlan=((100, 110),),
    vni=((10_000, 10_050),),
    pkey=((0x10, 0x20),),
    prefixes=("10.64.0.0/20",),
    subnet_length=24,
    cooldown_s=0,
)


class ShiftedClock:
    """The machine's clock plus what a test adds to it; sleeping is real."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class NetworkSite:
    """The service's parts on one simulator."""

    database: Database
    sim: SimHandle
    clock: ShiftedClock
    tools: Tools
    supervisor: Supervisor
    runner: StepRunner
    by_name: dict[str, Step[Any]]
    epochs: dict[str, int] = field(default_factory=dict[str, int])
    versions: dict[str, int] = field(default_factory=dict[str, int])
    allocations: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    async def hold(
        self,
        cluster: str,
        nodes: Sequence[str],
        state: AllocationState = AllocationState.CONFIRMED,
    ) -> None:
        """Tell network that the cluster got these nodes: new allocations, higher epochs."""
        for node in nodes:
            self.epochs[node] = self.epochs.get(node, 0) + 1
            self.allocations[node] = (cluster, new_id("alc"))
        await self.tell(nodes, state)

    async def release(self, nodes: Sequence[str]) -> None:
        """Tell network that the nodes are being released: higher epochs again."""
        for node in nodes:
            self.epochs[node] += 1
        await self.tell(nodes, AllocationState.RELEASING)

    async def tell(self, nodes: Sequence[str], state: AllocationState) -> None:
        """Deliver ``allocation.changed`` for each node's present allocation."""
        entries: list[FeedEntry] = []
        for node in nodes:
            cluster, allocation = self.allocations[node]
            self.versions[allocation] = self.versions.get(allocation, 0) + 1
            facts = AllocationFacts(
                allocation_id=allocation,
                version=self.versions[allocation],
                state=state,
                node_id=node,
                node_name=node,
                node_type="test",
                gpus=8,
                site_id=SITE,
                organization_id="org_test",
                project_id="prj_test",
                cluster_id=cluster,
                pool="default",
                operation_id="op_test",
                epoch=self.epochs[node],
            )
            entries.append(entry("allocation.changed", allocation, facts.version, facts))
        async with self.database.transaction("network") as session:
            await AllocationProjection(self.clock).apply(session, entries)

    def call(self, step: str, cluster: str, nodes: Sequence[str], **more: Any) -> StepCall:
        """The call that the interpreter would make."""
        values: dict[str, Any] = {
            "operation_id": f"op_{cluster}",
            "ordering_service": "clusters",
            "attempt": 1,
            "step": step,
            "index": 0,
            "batch": "0",
            "organization_id": "org_test",
            "project_id": "prj_test",
            "site_id": SITE,
            "resource_id": cluster,
            "targets": tuple(nodes),
            "deadline_at": self.clock.now() + timedelta(seconds=60),
        }
        return StepCall(**(values | more))

    async def step(self, step: str, cluster: str, nodes: Sequence[str], **more: Any) -> StepReport:
        """Run one step once."""
        return await self.runner.run(self.by_name[step], self.call(step, cluster, nodes, **more), 1)

    async def done(self, step: str, cluster: str, nodes: Sequence[str], **more: Any) -> None:
        """Run one step, which must finish every node."""
        report = await self.step(step, cluster, nodes, **more)
        assert sorted(report.done) == sorted(nodes), report

    async def order(self, cluster: str, nodes: Sequence[str], **more: Any) -> None:
        """Hold, attach and await."""
        await self.hold(cluster, nodes)
        await self.done("network.attach@1", cluster, nodes, **more)
        await self.done("network.await@1", cluster, nodes, **more)

    async def give_back(self, cluster: str, nodes: Sequence[str], **more: Any) -> None:
        """Release, detach and await drained."""
        await self.release(nodes)
        await self.done("network.detach@1", cluster, nodes, **more)
        await self.done("network.await_drained@1", cluster, nodes, **more)

    async def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Rows of the service's own schema."""
        async with self.database.transaction("network") as session:
            found = await session.execute(text(query), values)
            return [dict(row) for row in found.mappings()]

    async def settled(self) -> None:
        """Wait until every declared port was seen as desired."""
        await self.until(lambda: self._all_met())

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Look until ``condition`` holds, 30 seconds at most."""
        async with asyncio.timeout(30):
            while not await condition():  # noqa: ASYNC110 - what is waited for is no task of ours
                await asyncio.sleep(0.02)

    async def reachability(self) -> dict[str, Any]:
        """The ground truth of who reaches whom."""
        return (await self.sim.control.get("/truth/reachability")).json()

    async def ethernet_groups(self) -> list[set[str]]:
        """Hosts that reach each other by Ethernet."""
        return [set(group) for group in (await self.reachability())["ethernet"]]

    async def infiniband_groups(self) -> list[set[str]]:
        """Hosts that reach each other by InfiniBand."""
        return [set(g["full"]) for g in (await self.reachability())["infiniband"]]

    async def _all_met(self) -> bool:
        rows = await self.rows(
            "SELECT count(*) AS unmet FROM network.port_desired d LEFT JOIN network.port_observed o"
            " ON o.port_id = d.port_id AND o.matches AND o.compared_version = d.version"
            " WHERE o.port_id IS NULL"
        )
        return rows[0]["unmet"] == 0


def entry(kind: str, resource_id: str, version: int, data: Any) -> FeedEntry:
    """An event as the feed delivers it."""
    return FeedEntry(
        position=0,
        source="test",
        event_id=new_id("evt"),
        type=kind,
        organization_id=None,
        project_id=None,
        site_id=SITE,
        resource_kind=kind.partition(".")[0],
        resource_id=resource_id,
        resource_version=version,
        operation_id=None,
        at=datetime.now(UTC),
        data=data.model_dump(mode="json"),
    )


def declarations(config: SimConfig, pools: PoolFacts) -> list[FeedEntry]:
    """``site.declared`` and ``node.declared`` for everything in the simulator's file."""
    sealer = Sealer(KEY)

    def sealed(name: str, username: str, password: str) -> str:
        login = json.dumps({"username": username, "password": password}).encode()
        return base64.b64encode(sealer.seal(f"device/{SITE}/{name}", login)).decode()

    nvue, ufm = config.nvue_credentials, config.ufm_credentials
    site = SiteDeclared(
        site_id=SITE,
        name="test",
        currency="EUR",
        switches=tuple(
            SwitchFacts(
                name=switch.name,
                address=f"{switch.address}:{config.nvue_port}",
                driver="nvue",
                role=switch.role,
                ports=switch.ports,
                secret=sealed(switch.name, nvue.username, nvue.password),
            )
            for switch in config.switches
        ),
        ufm=None
        if config.ufm is None
        else UfmFacts(
            name=config.ufm.name,
            address=f"{config.ufm.address}:{config.ufm_port}",
            driver="ufm",
            secret=sealed(config.ufm.name, ufm.username, ufm.password),
        ),
        pools=pools,
        node_types=(),
    )
    nodes = [
        NodeDeclared(
            node_id=node.name,
            site_id=SITE,
            name=node.name,
            node_type="test",
            gpus=len(node.gpus),
            row="r",
            rack="r",
            block="b",
            nvlink_domain=None,
            ethernet=tuple(
                EthernetCable(name=p.name, mac=p.mac, switch=p.switch, port=p.switch_port)
                for p in node.ethernet
            ),
            infiniband=tuple(
                InfinibandCable(
                    name=p.name, guid=p.guid, rail=p.rail, switch=p.switch, port=p.switch_port
                )
                for p in node.infiniband
            ),
        )
        for node in config.nodes
    ]
    return [
        entry("site.declared", SITE, 1, site),
        *(entry("node.declared", node.node_id, 1, node) for node in nodes),
    ]


def tools_of(
    database: Database,
    rest: DeviceRest,
    clock: ShiftedClock,
    settings: NetworkSettings,
    holder: str,
    speed: float,
) -> Tools:
    """What a site-worker would build."""
    return Tools(
        database=database,
        clock=clock,
        speed=speed,
        settings=settings,
        sealer=Sealer(KEY),
        fabrics={
            "nvue": EthernetFabric(NvueSwitches(rest)),
            "ufm": InfinibandFabric(UfmManager(rest)),
        },
        signals=Signals(),
        holder=holder,
    )


@asynccontextmanager
async def network_site(
    postgres_url: str,
    folder: Path,
    document: dict[str, Any],
    *,
    settings: NetworkSettings = QUICK,
    pools: PoolFacts = POOLS,
    reconcile: bool = True,
) -> AsyncIterator[NetworkSite]:
    """The service on a fresh database; without ``reconcile`` nothing is written to devices."""
    await upgrade_all(postgres_url, MIGRATIONS)
    database = Database(postgres_url, application="network-test")
    async with simulator(folder, document) as sim:
        rest = DeviceRest(ca_file=str(sim.ca_file), timeout_s=settings.request_timeout_s)
        clock = ShiftedClock()
        speed = sim.config.speed
        tools = tools_of(database, rest, clock, settings, "worker-1", speed)
        site = NetworkSite(
            database=database,
            sim=sim,
            clock=clock,
            tools=tools,
            supervisor=Supervisor(tools),
            runner=StepRunner(database, KIT, clock),
            by_name={s.name: s for s in steps(database, clock, settings, tools.signals, speed)},
        )
        async with database.transaction("network") as session:
            await InventoryProjection(clock).apply(session, declarations(sim.config, pools))
        running = asyncio.create_task(site.supervisor.run()) if reconcile else None
        try:
            yield site
        finally:
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            await rest.close()
            await database.dispose()


async def held(site: NetworkSite, tools: Tools, device: str) -> DeviceReconciler:
    """A reconciler that a test runs pass by pass, with the device's lease."""
    await site.rows(
        "UPDATE network.device_lease SET holder = :holder, held_until = now() + interval '1 hour'"
        " WHERE device_id = :device RETURNING device_id",
        holder=tools.holder,
        device=f"{SITE}/{device}",
    )
    return DeviceReconciler(f"{SITE}/{device}", tools)
