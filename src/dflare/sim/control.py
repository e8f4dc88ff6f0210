"""The control API: ground truth, faults and the clock, for tests, benchmarks and demonstrations.

Plain HTTP on loopback. The platform under test never uses it. ``docs/adr/0004-simulator.md`` has
the list of its routes.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dflare.sim.clock import SimClock
from dflare.sim.faults import FaultPlan
from dflare.sim.host import Host, NotRunningError
from dflare.sim.network import FabricSide
from dflare.sim.scheduler.clusters import Clusters, NoSuchClusterError
from dflare.sim.scheduler.hosted import NotReadyError, RefusedError
from dflare.sim.truth import TruthLog
from dflare.sim.world import World

_LOG_LIMIT = 100_000
_HOST_FAULTS = {"bmc": "bmc_unreachable", "boot": "boot_fails", "agent": "agent_silent"}


BodyT = TypeVar("BodyT", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Text(_Body):
    text: Annotated[str, Field(min_length=1, max_length=100_000)]


class _FaultWish(_Body):
    kind: str
    target: str = "*"
    count: int | None = None
    probability: float = 1.0
    params: dict[str, object] = {}


class _Speed(_Body):
    speed: float


class _Load(_Body):
    gpus: dict[int, float]


class _Failure(_Body):
    kind: Literal["power", "bmc", "boot", "agent"]


class _Slurmd(_Body):
    service: Literal["slurmd"]


class _Service(_Body):
    service: Literal["munged", "mariadbd", "slurmdbd", "slurmctld", "slurmrestd"]


class _SwitchReset(_Body):
    to: Literal["factory", "previous"]


class ControlApi:
    """The handlers over one simulated data center."""

    def __init__(
        self,
        world: World,
        fabric: FabricSide,
        clock: SimClock,
        log: TruthLog,
        faults: FaultPlan,
        clusters: Clusters,
    ) -> None:
        self._world = world
        self._fabric = fabric
        self._clock = clock
        self._log = log
        self._faults = faults
        self._clusters = clusters

    def app(self) -> Starlette:
        """The ASGI app."""
        handlers: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/healthz", self._healthz),
            ("GET", "/truth/log", self._get_log),
            ("GET", "/truth/hosts", self._get_hosts),
            ("GET", "/truth/hosts/{name}", self._get_host),
            ("GET", "/truth/reachability", self._get_reachability),
            ("GET", "/truth/clusters", self._get_clusters),
            ("GET", "/truth/find", self._find),
            ("POST", "/truth/marker", self._mark),
            ("POST", "/hosts/{name}/secret", self._write_secret),
            ("POST", "/hosts/{name}/load", self._load_gpus),
            ("POST", "/hosts/{name}/fail", self._fail_host),
            ("POST", "/hosts/{name}/kill", self._kill_slurmd),
            ("POST", "/clusters/{id}/kill", self._kill_service),
            ("POST", "/switches/{name}/reset", self._reset_switch),
            ("GET", "/faults", self._get_faults),
            ("POST", "/faults", self._add_fault),
            ("DELETE", "/faults", self._clear_faults),
            ("GET", "/clock", self._get_clock),
            ("POST", "/clock", self._set_clock),
        ]
        routes = [Route(path, handler, methods=[method]) for method, path, handler in handlers]
        return Starlette(routes=routes, exception_handlers={HTTPException: _problem})

    async def _healthz(self, _request: Request) -> Response:
        return _json({"status": "ok", "hosts": len(self._world.hosts)})

    async def _get_log(self, request: Request) -> Response:
        query = request.query_params
        try:
            after = int(query.get("after", "0"))
            limit = min(int(query.get("limit", str(_LOG_LIMIT))), _LOG_LIMIT)
        except ValueError as error:
            raise HTTPException(422, "after and limit are whole numbers") from error
        entries = self._log.entries(query.get("kind"), query.get("subject"), after)[:limit]
        return _json({"entries": [entry.document() for entry in entries]})

    async def _get_hosts(self, _request: Request) -> Response:
        return _json({"hosts": [host.document() for host in self._world.hosts.values()]})

    async def _get_host(self, request: Request) -> Response:
        return _json(self._host(request).document())

    async def _get_reachability(self, _request: Request) -> Response:
        return _json(self._fabric.reachability_document())

    async def _find(self, request: Request) -> Response:
        text = request.query_params.get("text", "")
        if not text:
            raise HTTPException(422, "say which text: /truth/find?text=…")
        return _json({"places": self._world.find(text)})

    async def _mark(self, request: Request) -> Response:
        body = await _parsed(request, _Text)
        entry = self._log.append("marker", "control", text=body.text)
        return _json(entry.document(), 201)

    async def _write_secret(self, request: Request) -> Response:
        host, body = self._host(request), await _parsed(request, _Text)
        try:
            host.write_secret(body.text)
        except NotRunningError as error:
            raise HTTPException(409, str(error)) from error
        return _json({"places": host.places_of(body.text)}, 201)

    async def _load_gpus(self, request: Request) -> Response:
        host, body = self._host(request), await _parsed(request, _Load)
        try:
            host.load_gpus(body.gpus)
        except NotRunningError as error:
            raise HTTPException(409, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return Response(status_code=204)

    async def _fail_host(self, request: Request) -> Response:
        host, body = self._host(request), await _parsed(request, _Failure)
        if body.kind == "power":
            await host.fail()
            return _json(host.document())
        fault = self._faults.add(_HOST_FAULTS[body.kind], host.name)
        return _json(fault.document(), 201)

    async def _get_clusters(self, _request: Request) -> Response:
        clusters = [
            {
                "id": cluster.id,
                "name": cluster.wish.name if cluster.wish else None,
                "nodes": dict(cluster.holders),
                **{
                    key: value
                    for key, value in (await cluster.document()).items()
                    if key in ("state", "reason", "services")
                },
            }
            for cluster in self._clusters.all()
        ]
        return _json({"clusters": clusters})

    async def _kill_slurmd(self, request: Request) -> Response:
        host = self._host(request)
        await _parsed(request, _Slurmd)
        try:
            if not await host.lab.slurm.kill(host.name):
                raise HTTPException(409, f"no slurmd runs on {host.name}")
        except (NotReadyError, RefusedError) as error:
            raise HTTPException(409, str(error)) from error
        return Response(status_code=204)

    async def _kill_service(self, request: Request) -> Response:
        body = await _parsed(request, _Service)
        try:
            cluster = self._clusters.get(request.path_params["id"])
            await cluster.kill(body.service)
        except NoSuchClusterError as error:
            raise HTTPException(404, str(error)) from error
        except (NotReadyError, RefusedError) as error:
            raise HTTPException(409, str(error)) from error
        self._log.append("service_killed", cluster.id, service=body.service)
        return Response(status_code=204)

    async def _reset_switch(self, request: Request) -> Response:
        name, body = request.path_params["name"], await _parsed(request, _SwitchReset)
        try:
            await self._fabric.reset_switch(name, body.to)
        except KeyError as error:
            raise HTTPException(404, f"there is no switch {name}") from error
        return Response(status_code=204)

    async def _get_faults(self, _request: Request) -> Response:
        return _json({"faults": [fault.document() for fault in self._faults.faults()]})

    async def _add_fault(self, request: Request) -> Response:
        wish = await _parsed(request, _FaultWish)
        try:
            fault = self._faults.add(
                wish.kind, wish.target, wish.count, wish.probability, wish.params
            )
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        self._log.append("fault_added", fault.target, fault=fault.kind, id=fault.id)
        return _json(fault.document(), 201)

    async def _clear_faults(self, request: Request) -> Response:
        one = request.query_params.get("id")
        if one is not None and not one.isdigit():
            raise HTTPException(422, "id is a whole number")
        return _json({"cleared": self._faults.clear(None if one is None else int(one))})

    async def _get_clock(self, _request: Request) -> Response:
        now = {"now_s": self._clock.now_s(), "utc": self._clock.utc().isoformat()}
        return _json({"speed": self._clock.speed, **now})

    async def _set_clock(self, request: Request) -> Response:
        body = await _parsed(request, _Speed)
        try:
            self._clock.set_speed(body.speed)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return await self._get_clock(request)

    def _host(self, request: Request) -> Host:
        name = request.path_params["name"]
        host = self._world.hosts.get(name)
        if host is None:
            raise HTTPException(404, f"there is no host {name}")
        return host


async def _parsed(request: Request, model: type[BodyT]) -> BodyT:
    try:
        return TypeAdapter(model).validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HTTPException(422, f"{where}: {first['msg']}".lstrip(": ")) from error


async def _problem(_request: Request, error: Exception) -> Response:
    refusal = cast("HTTPException", error)
    document = {"type": "about:blank", "status": refusal.status_code, "detail": refusal.detail}
    return _json(document, refusal.status_code, "application/problem+json")


def _json(document: object, status: int = 200, kind: str = "application/json") -> Response:
    return Response(orjson.dumps(document), status, media_type=kind)
