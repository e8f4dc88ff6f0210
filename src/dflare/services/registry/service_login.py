"""Logins of registry clients: from a personal token, or a service account's, to a short token that
says which repositories it is for.

A client's token holds, sealed under the platform's key, the token that it logged in with. So each
request is decided as if it had come with that: revoked it is refused at once, and no process keeps
anything. What it was asked for limits it further. Source: distribution, "Token Authentication
Specification" (the challenge, the scope's grammar, the answer).
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from dflare.kit.errors import UnauthenticatedError
from dflare.kit.seal import Sealer, SealError
from dflare.services.auth.contract import Principal
from dflare.services.registry.service import DELETE, PULL, PUSH, RegistryService

SERVICE = "dflare-registry"
PREFIX = "dflreg_"
MAX_SCOPES = 32

_SEALED_AS = "registry/token"
_SCOPE = re.compile(r"repository(?:\([a-z]+\))?:([^\s,]{1,300}):([a-z*]+(?:,[a-z*]+)*)")
_VERBS = frozenset({PULL, PUSH, DELETE})


@dataclass(frozen=True)
class Caller:
    """Who calls, and for which repositories the token that it came with is: none for a login's own
    token, which is for all that its owner may do."""

    principal: Principal
    access: Mapping[str, frozenset[str]] | None = None

    def may(self, name: str, verb: str) -> bool:
        """Whether the token is for that; whether its owner may is another question."""
        return self.access is None or verb in self.access.get(name, frozenset())


@dataclass(frozen=True)
class ClientToken:
    """A token for a client, and how long it is valid."""

    token: str
    issued_at: datetime
    expires_in_s: int


@dataclass(frozen=True)
class LoginService:
    """Issues and reads the tokens of clients."""

    registry: RegistryService
    sealer: Sealer

    async def issue(self, credential: str, scopes: Sequence[str]) -> ClientToken:
        """A token for those of the wanted scopes that the owner of ``credential`` may have; one for
        none of them is a login all the same.

        Raises:
            UnauthenticatedError: the credential is not valid.
        """
        principal = await self.registry.authorizer.authenticate(credential)
        access: dict[str, list[str]] = {}
        for name, verbs in wanted_access(scopes).items():
            granted = [
                one for one in sorted(verbs) if await self.registry.may(principal, name, one)
            ]
            if granted:
                access[name] = granted
        now = self.registry.clock.now()
        lifetime_s = int(self.registry.settings.token_s)
        claims = {"c": credential, "e": int(now.timestamp()) + lifetime_s, "a": access}
        sealed = self.sealer.seal(_SEALED_AS, orjson.dumps(claims))
        token = PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")
        return ClientToken(token, now, lifetime_s)

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends an ``Authorization`` header: a client's token, a token of the platform, or the
        latter as a password.

        Raises:
            UnauthenticatedError: none, or none that is valid.
        """
        scheme, _, value = (authorization or "").partition(" ")
        authenticate = self.registry.authorizer.authenticate
        match scheme.lower():
            case "bearer" if value.startswith(PREFIX):
                claims = self._claims(value)
                access = {name: frozenset(verbs) for name, verbs in claims["a"].items()}
                return Caller(await authenticate(str(claims["c"])), access)
            case "bearer" if value:
                return Caller(await authenticate(value.strip()))
            case "basic" if value:
                return Caller(await authenticate(password_of(value)))
            case _:
                raise UnauthenticatedError(
                    "no token came with the request",
                    next_step="Log in: `dflare registry login`.",
                )

    def _claims(self, token: str) -> dict[str, Any]:
        text = token.removeprefix(PREFIX)
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            claims: dict[str, Any] = orjson.loads(self.sealer.open(_SEALED_AS, sealed))
        except (ValueError, SealError) as error:
            raise _refused("the token is not one of this registry") from error
        if claims["e"] <= self.registry.clock.now().timestamp():
            raise _refused("the token has expired")
        return claims


def wanted_access(scopes: Sequence[str]) -> dict[str, set[str]]:
    """Verbs by repository out of scopes such as ``repository:org/project/name:pull,push``; what is
    no such scope is left out."""
    wanted: dict[str, set[str]] = {}
    words = [word for scope in scopes for word in scope.split()]
    for word in words[:MAX_SCOPES]:
        found = _SCOPE.fullmatch(word)
        if found is not None:
            verbs = set(found[2].split(","))
            known = set(_VERBS) if "*" in verbs else verbs & _VERBS
            wanted.setdefault(found[1], set()).update(known)
    return wanted


def challenge(realm: str, wanted: Sequence[tuple[str, Sequence[str]]], *, narrow: bool) -> str:
    """The ``WWW-Authenticate`` header that says where to get a token, and for what; ``narrow``
    where one came that is valid, but not for that."""
    parts = [f'realm="{realm}"', f'service="{SERVICE}"']
    if wanted:
        scope = " ".join(f"repository:{name}:{','.join(verbs)}" for name, verbs in wanted)
        parts.append(f'scope="{scope}"')
    if narrow:
        parts.append('error="insufficient_scope"')
    return "Bearer " + ",".join(parts)


def password_of(basic: str) -> str:
    """The password of ``Basic`` credentials. The user's name is for people: the token says who it
    is.

    Raises:
        UnauthenticatedError: they are malformed.
    """
    try:
        text = base64.b64decode(basic.strip(), validate=True).decode()
    except ValueError as error:
        raise _refused("the credentials are malformed") from error
    _, _, password = text.partition(":")
    if not password:
        raise _refused("no password came with the request")
    return password


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        why, next_step="Log in with a token of yours: `dflare registry login`."
    )
