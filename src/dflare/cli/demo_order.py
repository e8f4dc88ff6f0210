"""The demonstration's orders: what is asked for, what comes of it, how it is given back."""

import time
from dataclasses import dataclass, field
from datetime import datetime

from dflare.cli.demo_proofs import Bracket
from dflare.cli.demo_stage import Stage
from dflare.cli.demo_world import Tenant
from dflare.cli.errors import ApiProblem, CliError, Json

CLUSTER = "train"
SLURM_WITHIN_S = 90.0
"""How long Slurm may take to get ready: its packages are downloaded beside the first start."""
READS, POLL_S = 100, 0.1
"""How often, and every how many seconds, what events bring is asked for."""


@dataclass
class Order:
    """What was ordered, and what became of it. ``told`` is a marker in the simulator's log: the
    tenant knew by then that it has its servers; ``asked`` lies around the end of its usage."""

    tenant: Tenant
    node_type: Json
    kind: str
    count: int
    operation: Json = field(default_factory=dict[str, "object"])
    first_nodes: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    volumes: tuple[Json, ...] = ()
    job: Json | None = None
    told: datetime | None = None
    asked: Bracket | None = None

    @property
    def command(self) -> str:
        """The order as people type it."""
        pool = f"gpu={self.node_type['name']}:{self.count}"
        kind = f" --kind {self.kind}" if self.kind != "bare" else ""
        volumes = "".join(f" --volume {one['volume']}:{one['mount']}" for one in self.volumes)
        return f"dflare cluster create {CLUSTER}{kind} --pool {pool}{volumes} --ssh-key laptop"

    @property
    def path(self) -> str:
        """Where the cluster is in the API."""
        return self.tenant.path("clusters", CLUSTER)

    @property
    def body(self) -> Json:
        """The order as the API takes it."""
        pool = {"name": "gpu", "node_type": self.node_type["name"], "count": self.count}
        body: Json = {"name": CLUSTER, "pools": [pool], "ssh_keys": ["laptop"]}
        body["site"] = self.node_type["site_id"]
        body["kind"] = self.kind
        if self.volumes:
            body["volumes"] = list(self.volumes)
        return body


def place(order: Order) -> None:
    """Order a cluster."""
    order.operation = order.tenant.api.order("POST", order.tenant.path("clusters"), order.body)


def release(order: Order) -> Json:
    """Order the release of a cluster; returns the operation."""
    return order.tenant.api.order("DELETE", order.path)


def place_first(stage: Stage, order: Order) -> None:
    """Place an order of a tenant that is new: its quota travels as an event too."""
    for _ in range(READS):
        try:
            place(order)
        except ApiProblem as problem:
            if not str(problem.document.get("type")).endswith("/quota"):
                raise
            stage.wait(POLL_S)
        else:
            return
    place(order)


def quote(stage: Stage, order: Order) -> Json:
    """What the order would get: as a Slurm cluster, or where the site has none, bare."""
    deadline = time.monotonic() + SLURM_WITHIN_S
    waiting = False
    while True:
        try:
            return _asked(order)
        except ApiProblem as problem:
            if order.kind != "slurm":
                raise
            if problem.next_step.startswith("Try again") and time.monotonic() < deadline:
                if not waiting:
                    stage.say(f"Slurm is not ready yet, so wait: {problem.detail}", "dim")
                waiting = True
                stage.wait(1.0)
                continue
            stage.say(f"No Slurm here, so bare servers: {problem.detail}", "yellow")
            order.kind = "bare"


def _asked(order: Order) -> Json:
    path = order.tenant.path("clusters")
    return order.tenant.api.order("POST", path, order.body, dry_run=True)


def first_members(stage: Stage, order: Order) -> frozenset[str]:
    """The servers that an order began with; what a cluster has is told by events, so that it
    may be a moment late."""
    for _ in range(READS):
        if len(found := members(order)) == order.count:
            return found
        stage.wait(POLL_S)
    raise CliError(
        f"cluster {CLUSTER} does not say which servers it has",
        next_step="See `dflare logs worker`.",
    )


def members(order: Order) -> frozenset[str]:
    """The servers that an order has."""
    cluster = order.tenant.api.get(order.path)
    return frozenset(str(node["name"]) for node in cluster["nodes"])
