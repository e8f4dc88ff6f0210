"""The scheduler host's HTTP API, as `docs/how-to/scheduler-host.md` describes it."""

import base64
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dflare.sim.config import Credentials
from dflare.sim.faults import FaultPlan
from dflare.sim.scheduler.clusters import ID, Clusters, MountRefusedError, NoSuchClusterError
from dflare.sim.scheduler.hosted import HostedCluster, NotReadyError, RefusedError
from dflare.sim.scheduler.wire import ClusterWish, RunWish
from dflare.sim.server import drop_connection

BodyT = TypeVar("BodyT", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


class _ProblemError(Exception):
    """An answer that says why not."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def scheduler_app(
    clusters: Clusters, credentials: Credentials, faults: FaultPlan, name: str
) -> ASGIApp:
    """The app; `name` is the host's, by which faults mean it."""
    inner = _Api(clusters).app()
    wanted = f"{credentials.username}:{credentials.password}".encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if faults.hit("scheduler_unreachable", name) is not None:
            await drop_connection(scope, receive)
        elif not secrets.compare_digest(_login(Request(scope)), wanted):
            answer = _problem(401, "Log in by HTTP Basic.")
            answer.headers["WWW-Authenticate"] = 'Basic realm="scheduler"'
            await answer(scope, receive, send)
        else:
            await inner(scope, receive, send)

    return app


class _Api:
    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters

    def app(self) -> Starlette:
        handlers: list[tuple[str, str, Handler]] = [
            ("GET", "/v1/status", self._status),
            ("PUT", "/v1/clusters/{id}", self._put),
            ("GET", "/v1/clusters/{id}", self._get),
            ("DELETE", "/v1/clusters/{id}", self._delete),
            ("POST", "/v1/clusters/{id}/run", self._run),
        ]
        return Starlette(
            routes=[Route(path, _told(handler), methods=[m]) for m, path, handler in handlers]
        )

    async def _status(self, _request: Request) -> Response:
        status = self._clusters.preparation.status()
        slurm = {"state": status.state, "version": status.version, "reason": status.reason}
        return _json({"slurm": slurm})

    async def _put(self, request: Request) -> Response:
        cluster_id = request.path_params["id"]
        if not ID.fullmatch(cluster_id):
            raise _ProblemError(422, f"{cluster_id!r} is no id of a cluster")
        wish = await _parsed(request, ClusterWish)
        status = self._clusters.preparation.status()
        if status.state != "ready":
            raise _ProblemError(503, status.reason)
        cluster = await self._clusters.ensure(cluster_id, wish)
        return _json(await cluster.document())

    async def _get(self, request: Request) -> Response:
        return _json(await self._cluster(request).document())

    async def _delete(self, request: Request) -> Response:
        await self._clusters.remove(request.path_params["id"])
        return Response(status_code=202)

    async def _run(self, request: Request) -> Response:
        cluster = self._cluster(request)
        output = await cluster.run(await _parsed(request, RunWish))
        return _json({"code": output.code, "stdout": output.stdout, "stderr": output.stderr})

    def _cluster(self, request: Request) -> HostedCluster:
        return self._clusters.get(request.path_params["id"])


def _told(handler: Handler) -> Handler:
    """The handler with its refusals as answers."""

    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except _ProblemError as problem:
            return _problem(problem.status, str(problem))
        except NoSuchClusterError as error:
            return _problem(404, str(error))
        except (NotReadyError, RefusedError) as error:
            return _problem(409, str(error))
        except MountRefusedError as error:
            return _problem(422, str(error))
        except TimeoutError:
            return _problem(504, "The program ran longer than timeout_s, and was killed.")

    return told


def _login(request: Request) -> bytes:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return b""


async def _parsed(request: Request, model: type[BodyT]) -> BodyT:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _ProblemError(422, f"{where}: {first['msg']}".lstrip(": ")) from error


def _problem(status: int, detail: str) -> Response:
    document = {"type": "about:blank", "status": status, "detail": detail}
    return Response(orjson.dumps(document), status, media_type="application/problem+json")


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
