"""A scheduler host on the wire, for tests that need its answers and not a real Slurm: the API of
``docs/how-to/scheduler-host.md`` over TLS, with what a test says it is to answer."""

import base64
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from dflare.drivers.scheduler.port import HostAccess
from dflare.sim.certificates import Authority
from simulator import free_ports

USERNAME, PASSWORD = "operator", "of-the-host"
HEADER = f"Basic {base64.b64encode(f'{USERNAME}:{PASSWORD}'.encode()).decode()}"


@dataclass
class WireHost:
    """``absent`` maps slots whose slurmd never registers to what the host knows of them; ``broken``
    is why nothing can be run; ``lingers`` counts how often an ended cluster is still seen;
    ``drained`` is why, by cluster and slot. Programs get ``answers`` in turn, or what ``slurm``
    makes of the request; without either, drains are kept and nothing else is known."""

    access: HostAccess
    ca_file: Path
    state: str = "ready"
    broken: str = ""
    failed: str = ""
    absent: dict[str, str] = field(default_factory=dict[str, str])
    lingers: int = 0
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    ending: dict[str, int] = field(default_factory=dict[str, int])
    drained: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    told: list[str] = field(default_factory=list[str])
    ran: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    answers: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    slurm: Callable[[dict[str, Any]], tuple[int, str, str]] | None = None

    def document(self, cluster_id: str) -> dict[str, Any]:
        """What GET answers."""
        names = [slot["name"] for slot in self.clusters[cluster_id]["slots"]]
        state = "failed" if self.failed else "stopping" if cluster_id in self.ending else "ready"
        return {
            "state": state,
            "reason": self.failed,
            "services": {"slurmctld": {"state": "running", "restarts": 0, "ended": ""}},
            "nodes": {name: self._node(cluster_id, name) for name in names},
        }

    def _node(self, cluster_id: str, name: str) -> dict[str, Any]:
        state = "UNKNOWN" if name in self.absent else "IDLE"
        reason = self.drained.get((cluster_id, name))
        return {
            "state": state if reason is None else f"{state}+DRAIN",
            "reason": reason or "",
            "registered": name not in self.absent,
            "fault": self.absent.get(name, ""),
        }

    def _keep_drains(self, cluster_id: str, argv: list[str]) -> None:
        """What ``scontrol update`` does."""
        if argv[:2] != ["scontrol", "update"]:
            return
        values = dict(one.split("=", 1) for one in argv[2:])
        for name in values["NodeName"].split(","):
            self.drained.pop((cluster_id, name), None)
            if values["State"] == "DRAIN":
                self.drained[cluster_id, name] = f"{values['Reason']} [root@2026-01-01]"

    async def answer_status(self, _: web.Request) -> web.Response:
        answer = {"state": self.state, "version": "22.05.8", "reason": self.broken}
        return web.json_response({"slurm": answer})

    async def answer_put(self, request: web.Request) -> web.Response:
        if self.broken:
            return _problem(503, self.broken)
        cluster_id = request.match_info["id"]
        self.clusters[cluster_id] = await request.json()
        self.ending.pop(cluster_id, None)
        return web.json_response(self.document(cluster_id))

    async def answer_get(self, request: web.Request) -> web.Response:
        cluster_id = request.match_info["id"]
        if cluster_id in self.ending:
            self.ending[cluster_id] -= 1
            if self.ending[cluster_id] < 0:
                for name in [slot["name"] for slot in self.clusters[cluster_id]["slots"]]:
                    self.drained.pop((cluster_id, name), None)
                del self.ending[cluster_id], self.clusters[cluster_id]
        if cluster_id not in self.clusters:
            return _problem(404, "no such cluster")
        return web.json_response(self.document(cluster_id))

    async def answer_delete(self, request: web.Request) -> web.Response:
        cluster_id = request.match_info["id"]
        if cluster_id not in self.clusters:
            return _problem(404, "no such cluster")
        self.ending.setdefault(cluster_id, self.lingers)
        return web.json_response({}, status=202)

    async def answer_run(self, request: web.Request) -> web.Response:
        cluster_id = request.match_info["id"]
        if cluster_id not in self.clusters:
            return _problem(404, "no such cluster")
        if self.failed:
            return _problem(409, self.failed)
        body = await request.json()
        self.ran.append({**body, "stdin": base64.b64decode(body["stdin"])})
        if self.slurm is not None:
            code, stdout, stderr = self.slurm(self.ran[-1])
        elif self.answers:
            code, stdout, stderr = self.answers.pop(0)
        else:
            self._keep_drains(cluster_id, body["argv"])
            code, stdout, stderr = 0, "", ""
        if code == 504:
            return _problem(504, "it did not end")
        return web.json_response({"code": code, "stdout": stdout, "stderr": stderr})


@asynccontextmanager
async def wire_host(folder: Path) -> AsyncGenerator[WireHost]:
    """A host that listens; ``folder`` gets its authority's certificate."""
    authority = Authority(folder / "host-ca.pem")
    (port,) = free_ports(1)
    access = HostAccess("ctl-1", f"https://127.0.0.1:{port}", USERNAME, PASSWORD)
    host = WireHost(access, folder / "host-ca.pem")
    runner = web.AppRunner(_application(host))
    await runner.setup()
    try:
        context = authority.server_context(["127.0.0.1"])
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        yield host
    finally:
        await runner.cleanup()


def _problem(status: int, detail: str) -> web.Response:
    return web.json_response(
        {"title": "refused", "status": status, "detail": detail}, status=status
    )


def _application(host: WireHost) -> web.Application:
    @web.middleware
    async def authenticate(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != HEADER:
            return _problem(401, "who are you?")
        host.told.append(f"{request.method} {request.path}")
        return await handler(request)

    application = web.Application(middlewares=[authenticate])
    cluster = "/v1/clusters/{id}"
    application.router.add_get("/v1/status", host.answer_status)
    application.router.add_put(cluster, host.answer_put)
    application.router.add_get(cluster, host.answer_get)
    application.router.add_delete(cluster, host.answer_delete)
    application.router.add_post(f"{cluster}/run", host.answer_run)
    return application
