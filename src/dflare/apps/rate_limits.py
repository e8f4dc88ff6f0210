"""How often a tenant, a caller, or an address may ask, by class of route."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dflare.apps.token_buckets import Answer, Bucket, Buckets
from dflare.kit import problem
from dflare.kit.errors import TYPE_BASE, UnauthenticatedError
from dflare.kit.settings import Settings
from dflare.services.auth.contract import Authorizer, Principal

PRINCIPAL = "dflare.principal"
"""Key of the scope under which the caller is kept, so that none is authenticated twice."""

MAX_LOGIN_BYTES = 16 * 1024
_LOGIN = {"/oauth/authorize", "/device"}
_REGISTRY = "/v2/"
_FREE = {"/healthz"}
_ORDER = re.compile(r"/v1/projects/.+/(clusters|volumes|servers|reservations)(/[^/]+/resize)?")


class LimitSettings(Settings):
    """Rates are requests a second, bursts what may come at once. Those of ``read``, ``write`` and
    ``order`` hold for an organization, a caller of it may use ``user_share`` of them; an operator
    has a caller's share too. ``login`` holds for an address and an account, ``address`` for what
    comes without a caller from one address, ``registry`` for images from one address."""

    prefix: ClassVar[str] = "DFLARE_LIMITS_"

    enabled: bool = True
    read_per_s: float = 500
    read_burst: int = 2000
    write_per_s: float = 200
    write_burst: int = 2000
    order_per_s: float = 100
    order_burst: int = 1000
    user_share: float = 0.8
    login_per_s: float = 0.5
    login_burst: int = 30
    address_per_s: float = 200
    address_burst: int = 2000
    registry_per_s: float = 1000
    registry_burst: int = 5000


@dataclass(frozen=True)
class Demand:
    """The class of a request and the buckets that it takes from."""

    name: str
    buckets: tuple[Bucket, ...]


class RateLimits:
    """ASGI middleware that answers 429 with ``Retry-After`` to who asks too often, and tells all
    where they stand (``RateLimit`` and ``RateLimit-Policy``, sections 3 and 4 of revision 10 of
    draft-ietf-httpapi-ratelimit-headers). While Valkey is away nothing is limited."""

    def __init__(
        self, app: ASGIApp, buckets: Buckets, authorizer: Authorizer, settings: LimitSettings
    ) -> None:
        self._app = app
        self._buckets = buckets
        self._authorizer = authorizer
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        if scope["type"] != "http" or scope["path"] in _FREE:
            await self._app(scope, receive, send)
            return
        if scope["path"] in _LOGIN and scope["method"] == "POST":
            account, receive = await _account(receive)
            demand = self._login(scope, account)
        else:
            demand = await self._demand(scope)
        answer = await self._buckets.take(demand.buckets)
        if answer is None:
            await self._app(scope, receive, send)
            return
        headers = _headers(demand, answer)
        if not answer.allowed:
            await _refusal(demand, answer, headers)(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        await self._app(scope, receive, telling)

    async def _demand(self, scope: Scope) -> Demand:
        settings, path = self._settings, str(scope["path"])
        if path.startswith(_REGISTRY):
            return self._of_address(
                "registry", scope, settings.registry_per_s, settings.registry_burst
            )
        caller = await self._caller(scope)
        if caller is None:
            return self._of_address(
                "address", scope, settings.address_per_s, settings.address_burst
            )
        name = _class_of(str(scope["method"]), path)
        per_s, burst = {
            "read": (settings.read_per_s, settings.read_burst),
            "write": (settings.write_per_s, settings.write_burst),
            "order": (settings.order_per_s, settings.order_burst),
        }[name]
        share = settings.user_share
        own = Bucket(f"{name}:{caller.subject}", per_s * share, max(1, int(burst * share)))
        organization = _organization(caller)
        if organization is None:
            return Demand(name, (own,))
        return Demand(name, (own, Bucket(f"{name}:{organization}", per_s, burst)))

    async def _caller(self, scope: Scope) -> Principal | None:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.decode("latin-1").partition(" ")
                if scheme.lower() != "bearer" or not token:
                    return None
                try:
                    caller = await self._authorizer.authenticate(token)
                except UnauthenticatedError:
                    return None
                scope[PRINCIPAL] = caller
                return caller
        return None

    def _of_address(self, name: str, scope: Scope, per_s: float, burst: int) -> Demand:
        return Demand(name, (Bucket(f"{name}:{_address(scope)}", per_s, burst),))

    def _login(self, scope: Scope, account: str) -> Demand:
        settings = self._settings
        key = f"login:{_address(scope)}:{account}"
        at_all = self._of_address("address", scope, settings.address_per_s, settings.address_burst)
        own = Bucket(key, settings.login_per_s, settings.login_burst)
        return Demand("login", (own, *at_all.buckets))


def _class_of(method: str, path: str) -> str:
    if method in {"GET", "HEAD", "OPTIONS"}:
        return "read"
    return "order" if method == "POST" and _ORDER.fullmatch(path) else "write"


def _organization(caller: Principal) -> str | None:
    """The organization that the caller acts for; none for people of the platform."""
    return next((one.organization_id for one in caller.bindings if one.organization_id), None)


def _address(scope: Scope) -> str:
    client: Any = scope.get("client")
    return str(client[0]) if client else "unknown"


async def _account(receive: Receive) -> tuple[str, Receive]:
    """The account that a login form names, and the form's messages once more. A form that is too
    long to be one is passed on as far as it was read, and counts for no account."""
    seen: list[Message] = []
    body = b""
    while True:
        message = await receive()
        seen.append(message)
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > MAX_LOGIN_BYTES:
            break
    named = parse_qs(body[:MAX_LOGIN_BYTES].decode(errors="replace")).get("username", [""])[0]

    async def again() -> Message:
        return seen.pop(0) if seen else await receive()

    return named.strip().lower()[:200], again


def _headers(demand: Demand, answer: Answer) -> dict[str, str]:
    narrowest = min(demand.buckets, key=lambda bucket: bucket.burst)
    window = max(1, math.ceil(narrowest.burst / narrowest.per_s))
    return {
        "RateLimit-Policy": f'"{demand.name}";q={narrowest.burst};w={window}',
        "RateLimit": f'"{demand.name}";r={answer.remaining};t={math.ceil(answer.refill_s)}',
    }


def _refusal(demand: Demand, answer: Answer, headers: dict[str, str]) -> Any:
    wait_s = max(1, math.ceil(answer.wait_s))
    return problem.render(
        {
            "type": TYPE_BASE + "rate-limited",
            "title": "Too many requests",
            "status": 429,
            "detail": f"{_limits(demand.buckets)} may be asked of class {demand.name}",
            "next_step": f"Wait {wait_s} s, then repeat.",
            "retryable": True,
            "retry_after_s": wait_s,
        },
        {**headers, "Retry-After": str(wait_s)},
    )


def _limits(buckets: Sequence[Bucket]) -> str:
    narrowest = min(buckets, key=lambda bucket: bucket.burst)
    return f"at most {narrowest.burst} requests at once and {narrowest.per_s:g} a second"
