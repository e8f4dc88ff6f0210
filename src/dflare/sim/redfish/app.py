"""The BMCs on the wire: one ASGI app for all, dispatching on the address that was connected to.

HTTP rules: DSP0266 clause 7 (methods, ETags, header fields) and 13 (authentication).
"""

import gzip
from collections.abc import Mapping
from typing import cast
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from dflare.sim.config import SimConfig
from dflare.sim.redfish import bios, chassis, manager, pcie, sensors, service, storage, system
from dflare.sim.redfish.bmc import Answer, Bmc, Document, etag_of
from dflare.sim.redfish.messages import RedfishError
from dflare.sim.redfish.personality import personality_of
from dflare.sim.redfish.routing import (
    Route,
    Router,
    RouteTable,
    Writer,
    call_get,
    not_allowed,
)
from dflare.sim.redfish.schemas import ROOT, metadata_document
from dflare.sim.redfish.vendor import ErrorStyle, Vendor
from dflare.sim.server import drop_connection
from dflare.sim.world import World

_TABLES = [
    service.table,
    system.table,
    bios.table,
    storage.table,
    chassis.table,
    pcie.table,
    manager.table,
]
_METADATA = f"{ROOT}/$metadata"
_LOGIN = f"{ROOT}/SessionService/Sessions"
_MAX_BODY = 1 << 20
_SLOW_S = 30.0

Headers = Mapping[bytes, bytes]


class RedfishApp:
    """``await app(scope, receive, send)`` for every BMC of the world."""

    def __init__(self, config: SimConfig, world: World) -> None:
        routers: dict[str, Router] = {}
        self._bmcs: dict[str, tuple[Bmc, Router]] = {}
        for address, host in world.by_bmc_address.items():
            vendor = personality_of(host.node.personality)
            router = routers.get(vendor.manufacturer)
            if router is None:
                router = routers[vendor.manufacturer] = Router(_tables(vendor), vendor)
            self._bmcs[address] = (Bmc(host, vendor, config.bmc_credentials), router)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        bmc, router = self._bmcs[scope["server"][0]]
        host, faults = bmc.host, bmc.host.lab.faults
        if faults.hit("bmc_unreachable", host.name) is not None:
            await drop_connection(scope, receive)
            return
        if (slow := faults.hit("bmc_slow", host.name)) is not None:
            await host.lab.clock.sleep(slow.seconds(_SLOW_S))
        method = scope["method"]
        headers: Headers = dict(scope["headers"])
        try:
            if faults.hit("bmc_error_500", host.name) is not None:
                raise RedfishError(500, "InternalError")
            if method in ("GET", "HEAD"):
                document, allow = _read(bmc, router, scope, headers)
                await _send_document(send, bmc, document, allow, method, headers)
                return
            body = await _body(receive)
            answer = _write(bmc, router, scope, headers, body)
        except RedfishError as error:
            terse = bmc.vendor.error_style is ErrorStyle.TERSE
            answer = Answer(error.status, error.body(terse=terse), error.headers)
        content = b"" if answer.body is None else orjson.dumps(answer.body)
        await _send(send, answer.status, content, answer.headers, with_body=method != "HEAD")


def _tables(vendor: Vendor) -> list[RouteTable]:
    own = [*_TABLES, sensors.table] if vendor.has_sensors else _TABLES
    if vendor.media.by_patch:
        return [manager.changes, *own]
    return [*own, manager.actions]


def _read(bmc: Bmc, router: Router, scope: Scope, headers: Headers) -> tuple[Document | bytes, str]:
    """The document of a path, and the methods that the path takes."""
    path = _normal(scope["path"])
    if path == _METADATA:
        return metadata_document(), "GET, HEAD"
    route, parts = router.find(path)
    if not route.open:
        _check_login(bmc, headers)
    document = call_get(route, bmc, parts)
    if scope["query_string"]:
        document = _expanded(bmc, router, document, scope["query_string"].decode("latin-1"))
    return document, route.allow()


def _write(bmc: Bmc, router: Router, scope: Scope, headers: Headers, body: Document) -> Answer:
    path, method = _normal(scope["path"]), scope["method"]
    if path == _METADATA:
        raise RedfishError(405, "OperationNotAllowed", headers={"Allow": "GET, HEAD"})
    if not (path == _LOGIN and method == "POST"):
        _check_login(bmc, headers)
    route, parts = router.find(path)
    handler = _handler(route, method)
    if method == "DELETE":
        return handler(bmc, *parts)
    _check_precondition(bmc, route, method, headers, parts)
    return handler(bmc, *parts, body)


def _check_precondition(
    bmc: Bmc, route: Route, method: str, headers: Headers, parts: tuple[str, ...]
) -> None:
    """If-Match (DSP0266, 7.5); a weak ETag matches as the BMC sent it, since clients repeat it."""
    expected = headers.get(b"if-match")
    if expected is None:
        if method == "PATCH" and bmc.vendor.needs_if_match:
            raise RedfishError(428, "PreconditionRequired")
        return
    if route.get is None:
        return
    given = expected.decode("latin-1").strip()
    if given != "*" and given.removeprefix("W/") != etag_of(route.get(bmc, *parts)):
        raise RedfishError(412, "PreconditionFailed")


def _handler(route: Route, method: str) -> Writer:
    handler = {"PATCH": route.patch, "POST": route.post, "DELETE": route.delete}.get(method)
    if handler is None:
        raise not_allowed(route)
    return handler


def _check_login(bmc: Bmc, headers: Headers) -> None:
    authorization, token = headers.get(b"authorization"), headers.get(b"x-auth-token")
    if not bmc.authenticated(
        None if authorization is None else authorization.decode("latin-1"),
        None if token is None else token.decode("latin-1"),
    ):
        raise RedfishError(
            401, "NoValidSession", headers={"WWW-Authenticate": 'Basic realm="RedfishService"'}
        )


def _expanded(bmc: Bmc, router: Router, document: Document, query: str) -> Document:
    """``$expand`` of one level (DSP0266, 7.3.5): ``.`` and ``*`` replace links by resources."""
    wanted = parse_qs(query, keep_blank_values=True)
    for name in wanted:
        if name.startswith("$") and name != "$expand":
            raise RedfishError(501, "QueryNotSupportedOnResource")
    how = wanted.get("$expand", [""])[0]
    if how and not bmc.vendor.expands:
        raise RedfishError(501, "QueryNotSupportedOnResource")
    if not how:
        return document
    kind, _, levels = how.partition("(")
    if kind not in (".", "*"):
        raise RedfishError(400, "QueryParameterOutOfRange", (how, "$expand", ".,*"))
    if levels not in ("", "$levels=1)"):
        raise RedfishError(400, "QueryParameterOutOfRange", (how, "$expand", "$levels=1"))
    return cast("Document", _replace_links(bmc, router, document, top=True, follow=kind == "*"))


def _replace_links(
    bmc: Bmc, router: Router, value: object, *, top: bool = False, follow: bool
) -> object:
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [_replace_links(bmc, router, item, follow=follow) for item in items]
    if not isinstance(value, dict):
        return value
    fields = cast("Document", value)
    target = fields.get("@odata.id")
    if not top and len(fields) == 1 and isinstance(target, str):
        try:
            route, parts = router.find(_normal(target))
            return call_get(route, bmc, parts)
        except RedfishError:
            return fields
    return {
        name: part
        if name in ("Links", "Actions") and not follow
        else _replace_links(bmc, router, part, follow=follow)
        for name, part in fields.items()
    }


async def _body(receive: Receive) -> Document:
    content = bytearray()
    while True:
        event = await receive()
        if event["type"] != "http.request":
            break
        content += event.get("body", b"")
        if len(content) > _MAX_BODY:
            raise RedfishError(413, "GeneralError")
        if not event.get("more_body", False):
            break
    if not content:
        return {}
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RedfishError(400, "MalformedJSON") from error
    if not isinstance(body, dict):
        raise RedfishError(400, "MalformedJSON")
    return cast("Document", body)


def _normal(path: str) -> str:
    return path.rstrip("/") or "/"


async def _send_document(
    send: Send,
    bmc: Bmc,
    document: Document | bytes,
    allow: str,
    method: str,
    headers: Headers,
) -> None:
    if isinstance(document, bytes):
        kind = {"Content-Type": "application/xml;charset=utf-8"}
        await _send(send, 200, document, kind, with_body=method == "GET")
        return
    etag = f"W/{etag_of(document)}" if bmc.vendor.weak_etags else etag_of(document)
    schema = str(document.get("@odata.type", "")).removeprefix("#")
    fields = {"ETag": etag, "Cache-Control": "no-cache", "Allow": allow}
    if schema:
        name = schema.rsplit(".", 1)[0]
        target = f"http://redfish.dmtf.org/schemas/v1/{name}.json"
        fields["Link"] = f"<{target}>; rel=describedby"
    if headers.get(b"if-none-match", b"").decode("latin-1") == etag:
        await _send(send, 304, b"", fields, with_body=False)
        return
    content = orjson.dumps(document)
    if bmc.vendor.registry_gzip and document.get("@odata.id") == bmc.vendor.registry_path:
        if b"gzip" not in headers.get(b"accept-encoding", b""):
            raise RedfishError(406, "GeneralError")
        content = gzip.compress(content, mtime=0)
        fields["Content-Encoding"] = "gzip"
    await _send(send, 200, content, fields, with_body=method == "GET")


async def _send(
    send: Send, status: int, content: bytes, headers: Mapping[str, str], *, with_body: bool
) -> None:
    fields = [
        (b"odata-version", b"4.0"),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()),
    ]
    if content and "Content-Type" not in headers:
        fields.append((b"content-type", b"application/json;charset=utf-8"))
    if status not in (204, 304):
        fields.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content if with_body else b""})
