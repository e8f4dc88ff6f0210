"""The adapter between Authlib's server core and this platform.

Authlib's core is synchronous and knows no web framework. Each request runs in a worker thread,
where signing belongs anyway; the store's coroutines are called back on the event loop. What Authlib
leaves open is closed here: a code request without a PKCE challenge is refused, access tokens name
their key, codes and refresh tokens are consumed in SQL (``store``).
Sources: RFC 6749, 7009, 7636, 8628, 9068, 9207; OpenID Connect Core 1.0.
"""

# Authlib publishes no types: what its classes hand over is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleVariableOverride=false

import json
import logging
from collections import defaultdict
from typing import Any

from anyio import to_thread
from authlib.oauth2 import AuthorizationServer, OAuth2Error
from authlib.oauth2.rfc6749 import ClientMixin, OAuth2Payload, OAuth2Request
from authlib.oauth2.rfc6749.errors import InvalidRequestError
from authlib.oauth2.rfc9207 import IssuerParameter
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import Response

from dflare.kit.ids import is_id
from dflare.services.auth.domain import ALGORITHM
from dflare.services.auth.issuer.clients import SCOPES, PublicClient, ServiceAccountClient
from dflare.services.auth.issuer.grants import (
    Challenge,
    ClientCredentialsGrant,
    CodeGrant,
    DeviceAuthorization,
    DeviceGrant,
    RefreshGrant,
    Revocation,
)
from dflare.services.auth.issuer.issuance import (
    CodeIdToken,
    Issuance,
    LaterIdToken,
    Owner,
    TokenGenerator,
    wait,
)
from dflare.services.auth.tables import User

# Authlib logs tokens at level DEBUG.
logging.getLogger("authlib").setLevel(logging.INFO)


class Issuer:
    """The issuer's endpoints, for routes to call on the event loop."""

    def __init__(self, shared: Issuance) -> None:
        self.shared = shared
        self._server = _Server(shared)

    async def check_authorization(self, request: Request) -> Response | None:
        """``None`` for a good authorization request, else the refusal: a redirect to the client
        where its address is known to be its own, a document where not."""
        return await to_thread.run_sync(self._check_authorization, _Request(request, FormData()))

    async def authorize(self, request: Request, user: User | None) -> Response:
        """The redirect that answers an authorization request, with a code where ``user`` agreed."""
        return await to_thread.run_sync(self._authorize, _Request(request, FormData()), user)

    async def token(self, request: Request, form: FormData) -> Response:
        """The token endpoint."""
        given = _Request(request, form)
        return await to_thread.run_sync(self._answer, self._server.create_token_response, given)

    async def device_authorization(self, request: Request, form: FormData) -> Response:
        """The device authorization endpoint."""
        return await self._endpoint(DeviceAuthorization.ENDPOINT_NAME, request, form)

    async def revoke(self, request: Request, form: FormData) -> Response:
        """The revocation endpoint."""
        return await self._endpoint(Revocation.ENDPOINT_NAME, request, form)

    def metadata(self) -> dict[str, Any]:
        """The provider's metadata (OpenID Connect Discovery 1.0 section 3, RFC 8414)."""
        issuer = self.shared.issuer
        return {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/oauth/authorize",
            "token_endpoint": f"{issuer}/oauth/token",
            "jwks_uri": f"{issuer}/oauth/jwks",
            "userinfo_endpoint": f"{issuer}/oauth/userinfo",
            "device_authorization_endpoint": f"{issuer}/oauth/device",
            "revocation_endpoint": f"{issuer}/oauth/revoke",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": [
                "authorization_code",
                "refresh_token",
                "client_credentials",
                DeviceGrant.GRANT_TYPE,
            ],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": [
                "none",
                "client_secret_basic",
                "client_secret_post",
            ],
            "authorization_response_iss_parameter_supported": True,
            "scopes_supported": list(SCOPES),
            "claims_supported": ["sub", "name", "preferred_username", "email"],
        }

    async def _endpoint(self, name: str, request: Request, form: FormData) -> Response:
        given = _Request(request, form)

        def answer(asked: OAuth2Request) -> Any:
            return self._server.create_endpoint_response(name, asked)

        return await to_thread.run_sync(self._answer, answer, given)

    def _check_authorization(self, request: OAuth2Request) -> Response | None:
        try:
            self._server.get_consent_grant(request, end_user=None)
        except OAuth2Error as error:
            return self._refused(request, error)
        except ValueError:
            return self._malformed(request)
        return None

    def _authorize(self, request: OAuth2Request, user: User | None) -> Response:
        try:
            grant = self._server.get_consent_grant(request, end_user=user)
        except OAuth2Error as error:
            return self._refused(request, error)
        answer: Any = self._server.create_authorization_response(request, user, grant)
        return answer

    def _answer(self, endpoint: Any, request: OAuth2Request) -> Response:
        try:
            return endpoint(request)
        except ValueError:
            return self._malformed(request)

    def _malformed(self, request: OAuth2Request) -> Response:
        """Authlib fails to quote a parameter that has letters which its answer may not have."""
        error = InvalidRequestError("A parameter holds letters that it may not hold.")
        return self._refused(request, error)

    def _refused(self, request: OAuth2Request, error: OAuth2Error) -> Response:
        answer: Any = self._server.handle_error_response(request, error)
        return answer


class _Payload(OAuth2Payload):
    def __init__(self, query: QueryParams, form: FormData) -> None:
        self._items = [(name, str(value)) for name, value in query.multi_items()]
        self._items += [(name, str(value)) for name, value in form.multi_items()]

    @property
    def data(self) -> dict[str, str]:
        return dict(self._items)

    @property
    def datalist(self) -> defaultdict[str, list[str]]:
        values: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in self._items:
            values[name].append(value)
        return values


class _Request(OAuth2Request):
    """A request as Authlib reads it. Whether the transport is safe is the gateway's to say: it is
    TLS, or loopback in development, so the address is given as one that Authlib accepts."""

    def __init__(self, request: Request, form: FormData) -> None:
        secure = request.url.replace(scheme="https")
        super().__init__(request.method, str(secure), headers=request.headers)
        self._form = form
        self.payload = _Payload(request.query_params, form)
        self._args = request.query_params

    @property
    def args(self) -> QueryParams:
        return self._args

    @property
    def form(self) -> FormData:
        return self._form


class _Server(AuthorizationServer):
    def __init__(self, shared: Issuance) -> None:
        super().__init__(scopes_supported=list(SCOPES))
        self.shared = shared
        self.register_token_generator("default", TokenGenerator(shared))
        self.register_extension(_IssuerParameter(shared.issuer))
        self.register_grant(CodeGrant, [Challenge(required=True), CodeIdToken(shared)])
        self.register_grant(RefreshGrant, [LaterIdToken(shared)])
        self.register_grant(DeviceGrant, [LaterIdToken(shared)])
        self.register_grant(ClientCredentialsGrant)
        self.register_endpoint(DeviceAuthorization)
        self.register_endpoint(Revocation)

    def query_client(self, client_id: str) -> ClientMixin | None:
        if is_id("sa", client_id):
            known = client_id in self.shared.authorizer.snapshot.subjects
            account = ServiceAccountClient(client_id, self.shared.authorizer, self.shared.clock)
            return account if known else None
        row = wait(self.shared.store.client, client_id)
        return PublicClient(row) if row else None

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        secret = token.get("refresh_token")
        if secret is not None and isinstance(request.user, Owner):
            scope = token.get("scope", "")
            wait(self.shared.store.save_refresh, secret, request.user.grant, scope)

    def create_oauth2_request(self, request: Any) -> OAuth2Request:
        assert isinstance(request, OAuth2Request)
        return request

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Response:
        content = json.dumps(body) if isinstance(body, dict) else (body or "")
        response = Response(content, status, dict(headers))
        response.headers.setdefault("Cache-Control", "no-store")
        # Authlib's RFC 9207 extension reads and writes this attribute.
        setattr(response, "location", response.headers.get("location"))  # noqa: B010
        return response

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """There is nobody to tell: changes of state emit events in the store."""


class _IssuerParameter(IssuerParameter):
    """The ``iss`` parameter of authorization answers (RFC 9207)."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        """See Authlib."""
        return self._issuer

    def add_issuer_parameter(self, authorization_server: Any, response: Any) -> None:
        """See Authlib, which leaves the header as it was."""
        super().add_issuer_parameter(authorization_server, response)
        if response.location:
            response.headers["location"] = response.location
