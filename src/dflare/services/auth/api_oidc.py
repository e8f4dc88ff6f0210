"""Routes of the development issuer: discovery, login, tokens, devices. Mounted at the root."""

from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import UnauthenticatedError
from dflare.kit.seal import Sealer
from dflare.services.auth.errors import LoginRefusedError
from dflare.services.auth.issuer.issuance import Issuance, user_info
from dflare.services.auth.issuer.logins import Logins
from dflare.services.auth.issuer.pages import Pages
from dflare.services.auth.issuer.server import Issuer
from dflare.services.auth.issuer.store import IssuerStore
from dflare.services.auth.service import AuthService
from dflare.services.auth.tables import User

_STALE = "This page was open too long. Try again."


def router(
    service: AuthService, database: Database, sealer: Sealer, clock: Clock, *, issuer: str
) -> APIRouter:
    """The issuer's routes; ``issuer`` is the platform's public URL, without a slash at its end."""
    settings = service.settings
    store = IssuerStore(database, clock, settings, service.authorizer)
    shared = Issuance(issuer, settings, clock, store, service.keys, service.authorizer)
    logins = Logins(database, clock, settings)
    pages = Pages(sealer, secure=issuer.startswith("https://"))
    routes = APIRouter(tags=["issuer"], include_in_schema=False)
    provider = Issuer(shared)
    _add_machine_routes(routes, provider)
    _add_authorize(routes, provider, logins, pages)
    _add_device_page(routes, store, logins, pages)
    return routes


def _add_machine_routes(routes: APIRouter, provider: Issuer) -> None:
    shared = provider.shared

    @routes.get("/.well-known/openid-configuration")
    @routes.get("/.well-known/oauth-authorization-server")
    async def metadata() -> dict[str, Any]:
        return provider.metadata()

    @routes.get("/oauth/jwks")
    async def jwks() -> JSONResponse:
        keys = await shared.keys.published()
        return JSONResponse(keys, headers={"Cache-Control": "public, max-age=30"})

    @routes.post("/oauth/token")
    async def token(request: Request) -> Response:
        async with request.form() as form:
            return await provider.token(request, form)

    @routes.post("/oauth/device")
    async def device_authorization(request: Request) -> Response:
        async with request.form() as form:
            return await provider.device_authorization(request, form)

    @routes.post("/oauth/revoke")
    async def revoke(request: Request) -> Response:
        async with request.form() as form:
            return await provider.revoke(request, form)

    @routes.get("/oauth/userinfo")
    @routes.post("/oauth/userinfo")
    async def userinfo(request: Request) -> dict[str, Any]:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("an access token is needed", next_step="Log in first.")
        claims = shared.authorizer.claims(given)
        principal = await shared.authorizer.authenticate(given)
        user = await shared.store.user(principal.subject)
        if user is None:
            return {"sub": principal.subject}
        return cast(
            "dict[str, Any]", dict(user_info(user, principal.name, str(claims.get("scope", ""))))
        )


def _add_authorize(routes: APIRouter, provider: Issuer, logins: Logins, pages: Pages) -> None:
    async def form_page(request: Request, error: str = "", status: int = 200) -> Response:
        client = await provider.shared.store.client(request.query_params.get("client_id", ""))
        return pages.login(
            request,
            client_name=client.name if client else "",
            error=error,
            redirect_uri=request.query_params.get("redirect_uri", ""),
            status=status,
        )

    @routes.get("/oauth/authorize")
    async def authorization_page(request: Request) -> Response:
        return await provider.check_authorization(request) or await form_page(request)

    @routes.post("/oauth/authorize")
    async def authorize(request: Request) -> Response:
        if (refusal := await provider.check_authorization(request)) is not None:
            return refusal
        async with request.form() as form:
            if not pages.genuine(request, str(form.get("csrf", ""))):
                return await form_page(request, _STALE, 403)
            if form.get("answer") == "deny":
                return await provider.authorize(request, None)
            try:
                user = await logins.login(
                    str(form.get("username", "")), str(form.get("password", ""))
                )
            except LoginRefusedError as error:
                return await form_page(request, _sentence(error), 401)
        return await provider.authorize(request, user)


def _add_device_page(routes: APIRouter, store: IssuerStore, logins: Logins, pages: Pages) -> None:
    @routes.get("/device")
    async def device_page(request: Request, user_code: str = "") -> Response:
        return pages.device(request, user_code=user_code)

    @routes.post("/device")
    async def decide(request: Request) -> Response:
        async with request.form() as form:
            code = _user_code(str(form.get("user_code", "")))
            if not pages.genuine(request, str(form.get("csrf", ""))):
                return pages.device(request, user_code=code, error=_STALE, status=403)
            approved = form.get("answer") == "allow"
            try:
                user: User = await logins.login(
                    str(form.get("username", "")), str(form.get("password", ""))
                )
            except LoginRefusedError as error:
                return pages.device(request, user_code=code, error=_sentence(error), status=401)
        if not await store.decide_device(code, user, approved):
            return pages.device(
                request, user_code=code, error="No device waits under this code.", status=404
            )
        if approved:
            return pages.message(request, "Connected", "You can close this page.")
        return pages.message(request, "Refused", "The device was not let in.")


def _user_code(text: str) -> str:
    """A code as people type it: in any case, with or without the dash."""
    letters = "".join(letter for letter in text.upper() if letter.isalnum())
    return f"{letters[:4]}-{letters[4:]}"


def _sentence(error: LoginRefusedError) -> str:
    return f"{error.detail[:1].upper()}{error.detail[1:]}."
