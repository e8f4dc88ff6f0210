"""The call by which a tenant's system sends what its exporters say: ``POST /v1/agent/metrics``.

Body and answers: ``docs/how-to/agent-protocol.md``. It is on the way of a thousand servers, so it
is Starlette without a schema layer, like the rest of the agents' API.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dflare.kit.seal import Sealer, SealError
from dflare.kit.series import SeriesStore
from dflare.services.auth.contract import Scope
from dflare.services.metrics import domain, repository
from dflare.services.metrics.domain import Sample
from dflare.services.metrics.domain_exporters import gpus_seen, samples_of
from dflare.services.metrics.repository import Had
from dflare.services.metrics.service_ingest import SCHEMA, Ingest

PATH = "/v1/agent/metrics"
LONGEST_BODY = 1 << 20
IN_THREAD_FROM_BYTES = 16 * 1024
"""Longer bodies are read in a thread: the loop is other nodes' too."""
LEAST_PAUSE_S = 1.0
OWNERS_FOR_S = 2.0

_NAME = "metrics/agent"
_SCOPE = Scope.system("a node's agent is known by who has the node")


def agent_token(sealer: Sealer, node_id: str, cluster_id: str) -> str:
    """What a cluster's system on a node shows. It is good for as long as the cluster has it."""
    plain = orjson.dumps({"node": node_id, "cluster": cluster_id})
    return base64.urlsafe_b64encode(sealer.seal(_NAME, plain)).decode().rstrip("=")


def measuring(
    store: SeriesStore, sealer: Sealer, public_url: str, every_s: float
) -> Callable[[str, str], Mapping[str, str | float]]:
    """What tells a cluster's system on a node, both by their ids, where its measurements go and how
    often; nothing where nobody keeps them."""

    def told(node_id: str, cluster_id: str) -> Mapping[str, str | float]:
        if not store.present:
            return {}
        return {
            "metrics_url": public_url + PATH,
            "metrics_token": agent_token(sealer, node_id, cluster_id),
            "metrics_every_s": every_s,
        }

    return told


@dataclass
class MeasurementsApi:
    """Takes measurements of nodes that somebody has, from the systems that they were given for."""

    ingest: Ingest
    store: SeriesStore
    sealer: Sealer
    _owners: Mapping[str, Had] = field(default_factory=dict[str, Had])
    _owners_at: float = float("-inf")
    _heard_at: dict[str, float] = field(default_factory=dict[str, float])

    def routes(self) -> list[Route]:
        """To be served beside the agents' API."""
        return [Route(PATH, self._take, methods=["POST"])]

    async def _take(self, request: Request) -> Response:
        caller = self._caller(request)
        if caller is None:
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        if not self.store.present:
            return Response(status_code=503, headers={"Retry-After": "600"})
        node_id, cluster_id = caller
        answer = await self._admit(node_id, cluster_id)
        if answer is not None:
            return answer
        body = await _body(request)
        if body is None:
            return Response(status_code=413)
        facts = await self.ingest.facts(node_id)
        if facts is None:
            return Response(status_code=425)
        text = body.decode(errors="replace")
        if len(body) > IN_THREAD_FROM_BYTES:
            samples = await asyncio.to_thread(samples_of, text, facts.ports)
        else:
            samples = samples_of(text, facts.ports)
        seen = Sample(domain.GPU_COUNT, gpus_seen(samples), {"state": "seen"})
        declared = Sample(domain.GPU_COUNT, facts.gpus, {"state": "declared"})
        self.ingest.put(node_id, [Sample(domain.AGENT_UP, 1), seen, declared, *samples])
        return Response(status_code=204)

    def _caller(self, request: Request) -> tuple[str, str] | None:
        """The node and the cluster of a token."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not 0 < len(token) < 1024:
            return None
        try:
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            said = orjson.loads(self.sealer.open(_NAME, sealed))
            return str(said["node"]), str(said["cluster"])
        except (SealError, binascii.Error, ValueError, KeyError, TypeError):
            return None

    async def _admit(self, node_id: str, cluster_id: str) -> Response | None:
        """Why nothing is taken of a node now; None where it is. Nodes whose time has not come are
        to try again, those whose time is over are not."""
        now = asyncio.get_running_loop().time()
        if now - self._heard_at.get(node_id, float("-inf")) < LEAST_PAUSE_S:
            return Response(status_code=429, headers={"Retry-After": "1"})
        self._heard_at[node_id] = now
        owner = (await self._live()).get(node_id)
        if owner is not None and owner.cluster_id == cluster_id:
            return None
        database = self.ingest.database
        async with self.ingest.looking, database.reading(SCHEMA) as session:
            had = await repository.tenancies(session, _SCOPE, _EVER, [node_id])
        mine = [one for one in had.get(node_id, []) if one.cluster_id == cluster_id]
        if owner is not None or any(one.had_to is not None for one in mine):
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        return Response(status_code=425, headers={"Retry-After": "5"})

    async def _live(self) -> Mapping[str, Had]:
        """Who has which node now."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._owners_at <= OWNERS_FOR_S:
            return self._owners
        async with self.ingest.looking:
            if loop.time() - self._owners_at > OWNERS_FOR_S:
                now = self.ingest.clock.now()
                async with self.ingest.database.reading(SCHEMA) as session:
                    had = await repository.tenancies(session, _SCOPE, now)
                live = {node: ones[-1] for node, ones in had.items()}
                self._owners = {node: one for node, one in live.items() if one.had_to is None}
                self._owners_at = loop.time()
        return self._owners


_EVER = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


async def _body(request: Request) -> bytes | None:
    """The body; None where it is too long."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LONGEST_BODY:
            return None
    return bytes(content)
