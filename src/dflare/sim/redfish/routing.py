"""Which handler serves a path. Every route names the schema that it follows.

A template's ``<system>``, ``<manager>`` and the like stand for the vendor's names and become plain
text; ``{name}`` stands for one path part that the handler gets, unquoted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from dflare.sim.redfish.bmc import Answer, Bmc, Document
from dflare.sim.redfish.messages import RedfishError
from dflare.sim.redfish.schemas import COLLECTIONS, VERSIONS
from dflare.sim.redfish.vendor import Vendor

Getter = Callable[..., Document]
Writer = Callable[..., Answer]


@dataclass(slots=True)
class Route:
    """What may be done at one path; ``open`` needs no login."""

    schema: str
    get: Getter | None = None
    patch: Writer | None = None
    post: Writer | None = None
    delete: Writer | None = None
    open: bool = False

    def allow(self) -> str:
        """The value of the Allow header field."""
        methods = ["GET", "HEAD"] if self.get else []
        writers = {"PATCH": self.patch, "POST": self.post, "DELETE": self.delete}
        methods += [method for method, handler in writers.items() if handler is not None]
        return ", ".join(methods)


class RouteTable:
    """Routes by path template, filled by decorators."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}

    def get(
        self, template: str, schema: str, *, open_to_all: bool = False
    ) -> Callable[[Getter], Getter]:
        """Register what a GET of ``template`` shows: a resource of ``schema``."""

        def register(handler: Getter) -> Getter:
            route = self._route(template, schema)
            route.get, route.open = handler, open_to_all
            return handler

        return register

    def patch(self, template: str, schema: str) -> Callable[[Writer], Writer]:
        """Register the handler of PATCH: ``(bmc, *parts, body)``."""

        def register(handler: Writer) -> Writer:
            self._route(template, schema).patch = handler
            return handler

        return register

    def post(self, template: str, schema: str) -> Callable[[Writer], Writer]:
        """Register the handler of POST: ``(bmc, *parts, body)``."""

        def register(handler: Writer) -> Writer:
            self._route(template, schema).post = handler
            return handler

        return register

    def delete(self, template: str, schema: str) -> Callable[[Writer], Writer]:
        """Register the handler of DELETE: ``(bmc, *parts)``."""

        def register(handler: Writer) -> Writer:
            self._route(template, schema).delete = handler
            return handler

        return register

    def _route(self, template: str, schema: str) -> Route:
        if schema not in VERSIONS and schema not in COLLECTIONS and schema != "OData":
            raise ValueError(f"{template} cites the unknown schema {schema}")
        return self.routes.setdefault(template, Route(schema))


class Router:
    """The routes of one vendor's BMC, ready for look-up."""

    def __init__(self, tables: list[RouteTable], vendor: Vendor) -> None:
        self._plain: dict[str, Route] = {}
        self._with_parts: dict[int, list[tuple[tuple[str | None, ...], Route]]] = {}
        for table in tables:
            for template, route in table.routes.items():
                self._add(_for_vendor(template, vendor), route)

    def find(self, path: str) -> tuple[Route, tuple[str, ...]]:
        """The route of ``path`` and the parts that its template leaves open.

        Raises:
            RedfishError: 404, there is none.
        """
        if (route := self._plain.get(path)) is not None:
            return route, ()
        parts = path.split("/")
        for pattern, route in self._with_parts.get(len(parts), ()):
            if all(want is None or want == part for want, part in zip(pattern, parts, strict=True)):
                found = zip(pattern, parts, strict=True)
                return route, tuple(unquote(part) for want, part in found if want is None)
        raise missing(path)

    def _add(self, template: str, route: Route) -> None:
        if "{" not in template:
            self._plain[template] = route
            return
        pattern = tuple(None if part[:1] == "{" else part for part in template.split("/"))
        self._with_parts.setdefault(len(pattern), []).append((pattern, route))


def missing(path: str) -> RedfishError:
    """The 404 of a path that leads nowhere."""
    return RedfishError(404, "ResourceMissingAtURI", (path,))


def call_get(route: Route, bmc: Bmc, parts: tuple[str, ...]) -> Document:
    """Run the GET handler.

    Raises:
        RedfishError: there is nothing, or GET is not allowed.
    """
    if route.get is None:
        raise not_allowed(route)
    return route.get(bmc, *parts)


def not_allowed(route: Route) -> RedfishError:
    """The 405 of a method that the path does not take."""
    return RedfishError(405, "OperationNotAllowed", headers={"Allow": route.allow()})


def _for_vendor(template: str, vendor: Vendor) -> str:
    return (
        template.replace("<system>", vendor.system_id)
        .replace("<manager>", vendor.manager_id)
        .replace("<chassis>", vendor.chassis_id)
        .replace("<bios>", vendor.bios.bios)
        .replace("<settings>", vendor.bios.settings)
        .replace("<reset>", vendor.bios.reset)
        .replace("<registry>", vendor.registry_path)
        .replace("<storage>", vendor.names.storage)
        .replace("<account>", vendor.account_id)
    )
