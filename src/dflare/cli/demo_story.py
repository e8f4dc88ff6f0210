"""The acts of the demonstration, in the order in which they are played."""

import secrets
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from dflare.cli import demo_job, demo_leave, demo_proofs
from dflare.cli.client import segment
from dflare.cli.demo_map import site_map
from dflare.cli.demo_order import (
    Order,
    first_members,
    members,
    place,
    place_first,
    quote,
    release,
)
from dflare.cli.demo_stage import INDENT, Stage, plain
from dflare.cli.demo_world import World
from dflare.cli.errors import CliError, Json, UsageError
from dflare.cli.output import parse_time
from dflare.cli.watch import finish

if TYPE_CHECKING:
    from rich.console import RenderableType

WANTED, NEIGHBOURS, SPARES = 16, 2, 1
"""Servers of the tenant, of its neighbour, and those that must be free beside them."""
FAULT = "image_corrupt"
READ_S, GLANCE_S = 3.0, 1.5
TENANCY_S = 12.0
"""How long the tenant keeps its servers at least: the log leaves open when within a second or two
they were handed over, which is most of a bill that is shorter."""


class Story:
    """One run. Everything that it makes carries the run's tag, so that runs never meet."""

    def __init__(self, world: World, stage: Stage, *, keep: bool) -> None:
        self.world = world
        self.stage = stage
        self.keep = keep
        self.tag = secrets.token_hex(2)
        self.fault: int | None = None
        self.broken: Json | None = None

    def play(self) -> None:
        """All acts. What this run has made is released too where it ends early.

        Raises:
            CliError: an act could not be played.
            KeyboardInterrupt: somebody had seen enough.
        """
        played = False
        try:
            self._acts()
            played = True
        finally:
            if not played:
                demo_leave.leave_early(self)

    def _acts(self) -> None:
        site = self._site()
        order, neighbour = self._tenants(site)
        self._order(order, neighbour)
        self._replacement(order, neighbour)
        self._isolation(order, neighbour)
        demo_job.job(self, order)
        if not self.keep:
            text = self._leave_data(order)
            self._release(order, neighbour)
            self._bill(order)
            self._clean(order, text)
            demo_leave.tidy(self)
        else:
            self._bill(order)
            self.stage.say("")
            demo_leave.repair(self)
            demo_leave.say_how_to_leave(self)

    # --- the site ------------------------------------------------------------------------------

    def _site(self) -> Json:
        self.stage.act("The site")
        site = self._known_site() or self._applied_site()
        nodes = self._nodes(site)
        gpus = {kind["name"]: kind["gpus"] for kind in self._types(site)}
        total = sum(gpus.get(node["node_type"], 0) for node in nodes)
        racks = len({node["rack"] for node in nodes})
        self.stage.say(
            f"{site['name']}: {len(nodes)} servers with {total} GPUs in {racks} racks. They are "
            "simulated; the platform speaks Redfish, NVUE and UFM to them as to real ones.\n"
        )
        self.stage.show(self._map(site))
        self.stage.pause(READ_S)
        return site

    def _known_site(self) -> Json | None:
        sites = self.world.operator.items("/sites")
        if not self.world.layout.site_file.exists():
            return sites[0] if sites else None
        from dflare.cli.site_file import read_site

        name = read_site(self.world.layout.site_file).name
        return next((site for site in sites if site["name"] == name), None)

    def _applied_site(self) -> Json:
        from dflare.cli.site_file import read_site, wire_document

        file = self.world.layout.site_file
        if not file.exists():
            raise UsageError(
                f"there is no site, and none is described in {file}",
                next_step="Describe one (docs/how-to/site.md) and apply it by `dflare site apply`.",
            )
        document = read_site(file)
        path = f"/sites/{segment(document.name)}"
        self.stage.say(
            "Nobody has loaded the site yet: every port is closed and every server's inventory "
            "is read first.\n"
        )
        answer = self.world.operator.order("PUT", path, wire_document(file, document))
        if answer["operation"] is not None:
            finish(self.stage.follow(self.world.operator, answer["operation"]))
            self.stage.say("")
        return self.world.operator.get(path)

    def _nodes(self, site: Json) -> list[Json]:
        return self.world.operator.items("/nodes", site=site["id"])

    def _types(self, site: Json) -> list[Json]:
        types = self.world.operator.items("/node-types")
        return [kind for kind in types if kind["site_id"] == site["id"]]

    def _map(self, site: Json) -> "RenderableType":
        tenants = {tenant.project_id: f"of {tenant.name}" for tenant in self.world.tenants}
        return site_map(self._nodes(site), tenants, self.stage.console.width - 4)

    # --- tenants and their orders --------------------------------------------------------------

    def _tenants(self, site: Json) -> tuple[Order, Order]:
        kind, count = self._choice(site)
        self.stage.act("Two tenants")
        names = (f"demo-{self.tag}", f"next-{self.tag}")
        tenants = [
            self.world.new_tenant(name, kind["name"], nodes + SPARES)
            for name, nodes in zip(names, (count, NEIGHBOURS), strict=True)
        ]
        self.stage.say(
            f"{names[0]} wants {count} servers of {kind['gpus']} GPUs. {names[1]}, its neighbour, "
            f"wants {NEIGHBOURS}. Each has a user, a project and an SSH key of its own."
        )
        if count < WANTED:
            self.stage.say(f"{WANTED} were meant; no more are free here.", "yellow")
        self.stage.pause(GLANCE_S)
        return (
            Order(tenants[0], kind, "slurm", count),
            Order(tenants[1], kind, "bare", NEIGHBOURS),
        )

    def _choice(self, site: Json) -> tuple[Json, int]:
        """The type with the most free GPUs, and how many of its servers to order."""
        free: dict[str, int] = {}
        for node in self._nodes(site):
            if node["state"] == "available" and not (node["cordoned"] or node["project_id"]):
                free[node["node_type"]] = free.get(node["node_type"], 0) + 1
        types = sorted(
            self._types(site), key=lambda kind: -kind["gpus"] * free.get(kind["name"], 0)
        )
        room = (free.get(types[0]["name"], 0) if types else 0) - NEIGHBOURS - SPARES
        if room < 2:
            raise CliError(
                f"too few servers are free at {site['name']} for two tenants: "
                f"{room + NEIGHBOURS + SPARES} of {2 + NEIGHBOURS + SPARES}",
                next_step="Wait for them or release some; see `dflare node list`.",
            )
        return types[0], min(WANTED, room)

    def _order(self, order: Order, neighbour: Order) -> None:
        gpus = order.count * order.node_type["gpus"]
        self.stage.act(f"The order: {order.count} servers, {gpus} GPUs")
        place_first(self.stage, neighbour)
        found = quote(self.stage, order)
        if order.kind == "slurm":
            demo_job.make_volume(self, order)
        self.stage.say(f"$ {order.command}", "bold")
        self.stage.say(
            f"{found['placement']}\n{found['price_per_hour']} {found['currency']} an hour\n"
        )
        victim = str(sorted(found["nodes"])[min(2, order.count - 1)])
        self.fault = self.world.simulator.fault(FAULT, victim)
        place(order)
        order.first_nodes = first_members(self.stage, order)
        if victim not in order.first_nodes:
            # Somebody was faster between the question and the order: break one that it did get.
            self.world.simulator.clear(self.fault)
            victim = min(order.first_nodes)
            self.fault = self.world.simulator.fault(FAULT, victim)
        self.broken = self.world.operator.get(f"/nodes/{segment(victim)}")
        self.stage.say(
            f"So that it is not too easy, {victim} will write something else to its disk than what "
            "it is told.\n"
        )
        finish(self.stage.follow(order.tenant.api, order.operation))
        order.told = parse_time(self.world.simulator.mark(f"{order.tenant.name} has its servers"))
        finish(demo_leave.settled(neighbour.tenant.api, neighbour.operation))
        self.world.simulator.clear(self.fault)
        self.fault = None
        order.nodes, neighbour.nodes = members(order), members(neighbour)
        self.stage.pause(READ_S)

    # --- what came of it -----------------------------------------------------------------------

    def _replacement(self, order: Order, neighbour: Order) -> None:
        assert self.broken is not None
        name = str(self.broken["name"])
        self.stage.act("A server failed, and was replaced")
        state = self.world.operator.get(f"/nodes/{segment(name)}")
        self.stage.say(f"{name} is set aside ({state['state']}): {_sentence(state)}")
        for stand_in in sorted(order.nodes - order.first_nodes):
            self.stage.say(f"{stand_in} stands in for it.")
        self.stage.say("")
        site = {"id": order.node_type["site_id"]}
        self.stage.show(self._map(site))
        wrong = [f"{name} is still one of the cluster's"] if name in order.nodes else []
        if len(order.nodes) != order.count:
            wrong.append(f"the cluster has {len(order.nodes)} servers")
        self.stage.proof(
            f"the read-back caught it, and {order.tenant.name} has {order.count} good servers",
            wrong,
        )
        overlap = order.nodes & neighbour.nodes
        self.stage.proof("no server has two tenants", [f"{name} has" for name in sorted(overlap)])
        self.stage.pause(READ_S)

    def _isolation(self, order: Order, neighbour: Order) -> None:
        from rich.padding import Padding
        from rich.table import Table

        self.stage.act("Isolation, by ground truth")
        self.stage.say(
            "Not what the platform believes: the simulator walks packets over what the switches "
            "were really programmed to do. What nobody programmed is open there, as in the field."
            "\n"
        )
        truth = self.world.simulator.reachability()
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("pairs that reach each other")
        for title in ("among its own", f"to {neighbour.tenant.name}", "to all others"):
            table.add_column(title, justify="right")
        wrong: list[str] = []
        for technology, name in demo_proofs.TECHNOLOGIES.items():
            wired = technology == "ethernet" or order.node_type["infiniband_rails"] > 0
            found = demo_proofs.reach(truth, technology, order.nodes, neighbour.nodes)
            wrong += demo_proofs.isolation_problems(found, expected=wired)
            inside = f"{found.inside} of {found.inside_of}" if wired else "no cable"
            table.add_row(name, inside, str(found.neighbour), str(found.others))
        self.stage.show(Padding(table, (0, 0, 0, INDENT)))
        self.stage.proof(f"{order.tenant.name} reaches all of its servers and nobody else's", wrong)
        self.stage.pause(READ_S)

    # --- the end of the tenancy ----------------------------------------------------------------

    def _leave_data(self, order: Order) -> str:
        """The tenant writes a secret to every disk and into every memory, to be looked for."""
        self._stay(order)
        text = f"secret of {order.tenant.name} {secrets.token_hex(8)}"
        for node in sorted(order.nodes):
            self.world.simulator.secret(node, text)
        stands = {place["host"] for place in self.world.simulator.find(text)}
        missing = [f"{name}: it is not found there" for name in sorted(order.nodes - stands)]
        self.stage.say("")
        self.stage.proof(
            "a secret of the tenant stands on all of its disks, to be looked for", missing
        )
        return text

    def _stay(self, order: Order) -> None:
        """Keep the servers long enough for a bill that says something."""
        assert order.told is not None
        left_s = TENANCY_S - (datetime.now(UTC) - order.told).total_seconds()
        if left_s > 0:
            self.stage.wait(left_s)

    def _release(self, order: Order, neighbour: Order) -> None:
        self.stage.act("The release")
        self.stage.say(
            "It ends when isolation and erasure have been observed, not when they were asked for.\n"
        )
        gone = release(neighbour)
        before = self.world.simulator.mark(f"{order.tenant.name} asks for release")
        operation = release(order)
        after = self.world.simulator.mark(f"{order.tenant.name} has asked for release")
        order.asked = demo_proofs.Bracket(parse_time(before), parse_time(after))
        finish(self.stage.follow(order.tenant.api, operation))
        finish(demo_leave.settled(neighbour.tenant.api, gone))
        demo_leave.remove_volumes(order.tenant)
        self.stage.pause(GLANCE_S)

    def _bill(self, order: Order) -> None:
        from dflare.cli.demo_bill import bill_of, bill_table, job_told

        self.stage.act("The bill" if order.asked else "The bill so far")
        booted = demo_proofs.last_boot(
            self.world.simulator.boots(), order.nodes, order.tenant.public_key
        )
        if booted is None or order.told is None:
            self.stage.proof(
                "every server ran the tenant's system", ["one never did, by the simulator's log"]
            )
            return
        found = bill_of(self.world.simulator, order, demo_proofs.Bracket(booted, order.told))
        price = Decimal(order.node_type["price_per_node_hour"])
        currency = str(order.node_type["currency"])
        self.stage.show(bill_table(found, price, currency, order.count, order.job))
        self.stage.proof(
            "the invoice is ledger times price, to the cent, and what the log allows",
            found.problems(),
        )
        if order.job is not None:
            self.stage.proof(
                "the invoice tells of the job what Slurm's own accounting does",
                job_told(order.tenant, order.job),
            )
        self.stage.pause(READ_S)

    def _clean(self, order: Order, text: str) -> None:
        self.stage.act("Clean, by ground truth")
        simulator = self.world.simulator
        demo_leave.repair(self)
        nodes = order.nodes | order.first_nodes
        found = demo_proofs.traces(
            simulator.hosts(), nodes, simulator.find(text), simulator.reachability()
        )
        self.stage.proof(
            f"{len(nodes)} servers: disks blank, no key, no secret, power off, nobody reached",
            found,
        )
        self.stage.show(self._map({"id": order.node_type["site_id"]}))
        self.stage.pause(GLANCE_S)


def _sentence(node: Json) -> str:
    reason = str(node["reason"] or "no reason is given")
    return plain(reason.partition(": ")[2] or reason)
