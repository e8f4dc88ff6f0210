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
    is why nothing can be run; ``lingers`` counts how often an ended cluster is still seen. Programs
    get ``answers`` in turn, or what ``slurm`` makes of the request."""

    access: HostAccess
    ca_file: Path
    state: str = "ready"
    broken: str = ""
    failed: str = ""
    absent: dict[str, str] = field(default_factory=dict[str, str])
    lingers: int = 0
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    ending: dict[str, int] = field(default_factory=dict[str, int])
    drained: dict[str, str] = field(default_factory=dict[str, str])
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
            "nodes": {name: self._node(name) for name in names},
        }

    def _node(self, name: str) -> dict[str, Any]:
        state = "UNKNOWN" if name in self.absent else "IDLE"
        return {
            "state": state + "+DRAIN" * (name in self.drained),
            "reason": self.drained.get(name, ""),
            "registered": name not in self.absent,
            "fault": self.absent.get(name, ""),
        }

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
        if request.match_info["id"] not in self.clusters:
            return _problem(404, "no such cluster")
        if self.failed:
            return _problem(409, self.failed)
        body = await request.json()
        self.ran.append({**body, "stdin": base64.b64decode(body["stdin"])})
        if self.slurm is not None:
            code, stdout, stderr = self.slurm(self.ran[-1])
        else:
            code, stdout, stderr = self.answers.pop(0) if self.answers else (0, "", "")
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
