"""What the issuer's parts share, and the tokens they issue (RFC 9068, OpenID Connect Core 1.0)."""

# Authlib publishes no types: what its classes hand over is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleVariableOverride=false

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio import from_thread
from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oidc.core import UserInfo
from authlib.oidc.core.grants import OpenIDCode, OpenIDToken
from joserfc import jwt
from joserfc.jwk import RSAKey

from dflare.kit.clock import Clock
from dflare.kit.ids import new_id
from dflare.services.auth.domain import ALGORITHM, SnapshotAuthorizer, new_secret
from dflare.services.auth.issuer.clients import ServiceAccountClient
from dflare.services.auth.issuer.keys import SigningKeys
from dflare.services.auth.issuer.store import Grant, IssuerStore
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import User

T = TypeVar("T")


@dataclass(frozen=True)
class Issuance:
    """What the issuer's parts share; ``issuer`` is the platform's public URL."""

    issuer: str
    settings: AuthSettings
    clock: Clock
    store: IssuerStore
    keys: SigningKeys
    authorizer: SnapshotAuthorizer

    def now(self) -> int:
        """Seconds since the epoch, as tokens give times."""
        return int(self.clock.now().timestamp())


@dataclass(frozen=True)
class Owner:
    """The user that a token is for, with the grant that it comes from."""

    user: User
    grant: Grant

    def get_user_id(self) -> str:
        """See Authlib."""
        return self.user.id


def wait(work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """The result of a coroutine function, from a worker thread of the loop that runs it."""
    return from_thread.run(work, *arguments)


def owner_of(shared: Issuance, grant: Grant) -> Owner | None:
    """The user of a grant, unless it was disabled meanwhile."""
    user = wait(shared.store.user, grant.user_id)
    return Owner(user, grant) if user else None


def user_info(user: User, login: str, scope: str) -> UserInfo:
    """The claims about a user that ``scope`` asks for (OpenID Connect Core section 5.4). The login
    name is the one that is unique on the platform."""
    claims: dict[str, Any] = {"sub": user.id}
    words = scope.split()
    if "profile" in words:
        claims |= {"name": user.display_name, "preferred_username": login}
    if "email" in words and user.email:
        claims |= {"email": user.email, "email_verified": False}
    return UserInfo(**claims)


class TokenGenerator(BearerTokenGenerator):
    """Access tokens of RFC 9068 with the ``kid`` that Authlib's own leave out, and refresh tokens
    that are stored by their hash."""

    def __init__(self, shared: Issuance) -> None:
        super().__init__(self._access_token, _refresh_token, self._lifetime_s)
        self._shared = shared

    def _lifetime_s(self, client: ClientMixin, grant_type: str) -> int:
        return self._shared.settings.access_token_s

    def _access_token(
        self, client: ClientMixin, grant_type: str, user: Owner | None, scope: str
    ) -> str:
        shared = self._shared
        now = shared.now()
        claims: dict[str, Any] = {
            "iss": shared.issuer,
            "aud": shared.settings.audience,
            "sub": user.user.id if user else client.get_client_id(),
            "client_id": client.get_client_id(),
            "iat": now,
            "exp": now + shared.settings.access_token_s,
            "jti": new_id("at"),
            "scope": scope,
        }
        if user is not None:
            claims |= {"sid": user.grant.session_id, "auth_time": user.grant.auth_time}
        elif isinstance(client, ServiceAccountClient):
            claims["api_token"] = client.token_id
        key = wait(shared.keys.signer)
        header = {"alg": ALGORITHM, "typ": "at+jwt", "kid": key.kid}
        return jwt.encode(header, claims, key, algorithms=[ALGORITHM])


def _refresh_token(**_: Any) -> str:
    return new_secret()


class _IdToken(OpenIDToken):
    """What both kinds of grants need to add an ID token."""

    shared: Issuance

    def resolve_client_private_key(self, client: ClientMixin) -> RSAKey:
        """See Authlib."""
        return wait(self.shared.keys.signer)

    def get_client_algorithm(self, client: ClientMixin) -> str:
        """See Authlib."""
        return ALGORITHM

    def get_encode_header(self, client: ClientMixin) -> dict[str, Any]:
        """See Authlib."""
        return {"alg": ALGORITHM, "kid": wait(self.shared.keys.signer).kid}

    def get_client_claims(self, client: ClientMixin) -> dict[str, Any]:
        """See Authlib."""
        now = self.shared.now()
        return {
            "iss": self.shared.issuer,
            "aud": client.get_client_id(),
            "iat": now,
            "exp": now + self.shared.settings.access_token_s,
        }

    def generate_user_info(self, user: Owner, scope: str) -> UserInfo:
        """See Authlib."""
        login = self.shared.authorizer.login_name(user.user.name, user.user.organization_id)
        return user_info(user.user, login, scope)


class CodeIdToken(_IdToken, OpenIDCode):
    """ID tokens of the code grant."""

    def __init__(self, shared: Issuance) -> None:
        super().__init__(require_nonce=False)
        self.shared = shared

    def exists_nonce(self, nonce: str, request: Any) -> bool:
        """See Authlib."""
        return wait(self.shared.store.nonce_was_used, request.payload.client_id, nonce)


class LaterIdToken(_IdToken):
    """ID tokens of refresh and device grants."""

    def __init__(self, shared: Issuance) -> None:
        self.shared = shared
