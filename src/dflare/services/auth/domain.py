"""Rules of identity without any query: names, secrets, roles, and who may do what."""

import asyncio
import hashlib
import re
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from joserfc import jws, jwt
from joserfc.errors import JoseError

from dflare.kit.clock import Clock
from dflare.kit.errors import (
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
)
from dflare.kit.outbox import AuditRecord
from dflare.services.auth import policy
from dflare.services.auth.contract import (
    Principal,
    ProjectRef,
    Resource,
    Role,
    Scope,
)
from dflare.services.auth.errors import WeakPasswordError
from dflare.services.auth.policy.snapshot import KINDS, Snapshot, SnapshotSource

ALGORITHM = "RS256"
TOKEN_PREFIX = "dfl_"  # noqa: S105
CLOCK_SKEW_S = 60
PASSWORD_MIN = 12
PASSWORD_MAX = 256

_NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_hasher = PasswordHasher()
_hashing = asyncio.Semaphore(2)
_INLINE_DECISIONS = 8
_DECISIONS_A_TURN = 32
_MAX_DENIALS = 10_000


def check_name(name: str) -> str:
    """The name itself, where it may stand in a path and as a host's label (RFC 1123).

    Raises:
        InvalidError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name!r} cannot be a name",
            next_step="Use 2 to 63 lower-case letters, digits and dashes, a letter first.",
        )
    return name


def login_name(name: str, organization: str | None) -> str:
    """What a user of an organization (its name), or of the platform, logs in as."""
    return f"{name}@{organization}" if organization else name


def split_login(login: str) -> tuple[str, str | None]:
    """The names of user and organization in a login name; no organization: of the platform."""
    name, at, organization = login.strip().partition("@")
    return name, organization if at else None


def check_role(role: Role, organization_id: str | None, project_id: str | None) -> None:
    """Refuse a role where it has no meaning.

    Raises:
        InvalidError: a platform role with an organization, a tenant's role without, an
            organization's administrator of a project, or a project's of a whole organization.
    """
    platform = role in {Role.OPERATOR, Role.AUDITOR}
    if platform and (organization_id or project_id):
        raise InvalidError(
            f"{role} is a role on the platform", next_step="Leave organization and project out."
        )
    if not platform and not organization_id:
        raise InvalidError(
            f"{role} is a role in an organization or project", next_step="Say which."
        )
    if role is Role.ORGANIZATION_ADMIN and project_id:
        raise InvalidError(
            f"{role} is a role in an organization", next_step="Use project_admin for a project."
        )
    if role is Role.PROJECT_ADMIN and not project_id:
        raise InvalidError(
            f"{role} is a role in a project",
            next_step="Name the project, or use organization_admin.",
        )


def check_binding(
    role: Role, home_organization: str | None, home_project: str | None, project_id: str | None
) -> None:
    """Refuse a role that would reach beyond the people who administer its subject, since they can
    set its password or issue tokens in its name.

    Raises:
        InvalidError: a role on the platform for someone of an organization, or a role outside its
            project for a project's service account.
    """
    if role in {Role.OPERATOR, Role.AUDITOR} and home_organization is not None:
        raise InvalidError(
            f"{role} is for people of the platform, and this one belongs to an organization",
            next_step="Make a user without an organization.",
        )
    if home_project is not None and project_id != home_project:
        raise InvalidError(
            "a project's service account has roles in that project alone",
            next_step="Make a service account of the organization.",
        )


def new_secret(prefix: str = "") -> str:
    """256 random bits in URL-safe letters behind ``prefix``."""
    return prefix + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    """What is stored of a secret of ``new_secret``."""
    return hashlib.sha256(secret.encode()).digest()


async def hash_password(password: str) -> str:
    """The argon2id hash of a password (RFC 9106), off the event loop, two at a time at most.

    Raises:
        WeakPasswordError: too short, or so long that hashing it would be a burden.
    """
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise WeakPasswordError(
            f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters",
            next_step="Choose a longer one, such as four random words.",
        )
    async with _hashing:
        return await asyncio.to_thread(_hash, password)


async def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether the password belongs to the hash; as slow for an account that has none."""
    if len(password) > PASSWORD_MAX:
        return False
    async with _hashing:
        return await asyncio.to_thread(_verify, password_hash, password)


def _hash(password: str) -> str:
    _assert_off_loop()
    return _hasher.hash(password)


def _verify(password_hash: str | None, password: str) -> bool:
    _assert_off_loop()
    if password_hash is None:
        _hasher.hash(password)
        return False
    try:
        return _hasher.verify(password_hash, password)
    except VerificationError:
        return False


def _assert_off_loop() -> None:
    """Argon2 takes tens of milliseconds: on the loop it would stop every other request."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AssertionError("argon2 on the event loop")


class SnapshotAuthorizer:
    """Implements ``contract.Authorizer`` on a snapshot."""

    def __init__(self, source: SnapshotSource, clock: Clock, *, issuer: str, audience: str) -> None:
        self.snapshot = Snapshot()
        self.denials: deque[AuditRecord] = deque(maxlen=_MAX_DENIALS)
        self.used_tokens: set[str] = set()
        self._source = source
        self._clock = clock
        self._issuer = issuer
        self._audience = audience

    async def refresh(self, ids: Mapping[str, Sequence[str] | None] | None = None) -> None:
        """Read the rows named anew, or the whole snapshot."""
        wanted: Mapping[str, Sequence[str] | None] = ids or dict.fromkeys(KINDS)
        self.snapshot.replace(wanted, await self._source.load(wanted))

    async def authenticate(self, token: str) -> Principal:
        """See ``contract.Authorizer``."""
        if token.startswith(TOKEN_PREFIX):
            return self._opaque(token)
        return self._signed(token)

    def _opaque(self, token: str) -> Principal:
        row = self.snapshot.tokens.get(digest(token))
        if row is None:
            raise _unauthenticated("the token is unknown or revoked")
        if row.expires_at <= self._clock.now():
            raise _unauthenticated("the token has expired")
        self.used_tokens.add(row.id)
        return self.principal(row.subject_id, token_id=row.id)

    def _signed(self, token: str) -> Principal:
        claims = self.claims(token)
        for kind, claim in (("token", "api_token"), ("login_session", "sid")):
            gone = kind == "login_session"
            if claim in claims and self.snapshot.has(kind, str(claims[claim])) is gone:
                raise _unauthenticated("the login that this token came from was revoked")
        return self.principal(str(claims["sub"]), token_id=str(claims.get("jti", "")))

    def claims(self, token: str) -> dict[str, Any]:
        """The claims of a valid access token (RFC 9068 section 4).

        Raises:
            UnauthenticatedError: it is not one, or has expired.
        """
        try:
            header = jws.extract_compact(token.encode()).headers()
            key = self.snapshot.keys.get(str(header.get("kid")))
            if key is None:
                raise _unauthenticated("the token's signing key is unknown")
            decoded = jwt.decode(token, key, algorithms=[ALGORITHM])
        except (JoseError, ValueError) as error:
            raise _unauthenticated("the token is not one of this platform") from error
        claims, now = decoded.claims, self._clock.now().timestamp()
        audience: Any = claims.get("aud")
        if (
            decoded.header.get("typ") != "at+jwt"
            or claims.get("iss") != self._issuer
            or audience not in (self._audience, [self._audience])
            or not isinstance(claims.get("sub"), str)
        ):
            raise _unauthenticated("the token is not an access token for this API")
        expires, issued = claims.get("exp"), claims.get("iat")
        if not isinstance(expires, int) or expires <= now:
            raise _unauthenticated("the token has expired")
        if not isinstance(issued, int) or issued > now + CLOCK_SKEW_S:
            raise _unauthenticated("the token was issued in the future")
        return claims

    def principal(self, subject_id: str, *, token_id: str = "") -> Principal:
        """The caller behind a subject.

        Raises:
            UnauthenticatedError: it does not exist or is disabled.
        """
        subject = self.snapshot.subjects.get(subject_id)
        if subject is None:
            raise _unauthenticated("the account does not exist or is disabled")
        bindings = self.snapshot.bindings.get(subject_id, ())
        name = self.login_name(subject.name, subject.organization_id)
        return Principal(subject.id, subject.kind, name, bindings, token_id)

    def login_name(self, name: str, organization_id: str | None) -> str:
        """What a user of the organization with that id, or of the platform, logs in as."""
        return login_name(name, self.snapshot.organizations.get(organization_id or ""))

    def scope(self, principal: Principal) -> Scope:
        """See ``contract.Authorizer``."""
        return scope_of(principal)

    def project(self, scope: Scope, reference: str) -> ProjectRef:
        """See ``contract.Authorizer``."""
        organization, _, name = reference.rpartition("/")
        if (found := self.snapshot.projects.get(reference)) is not None:
            candidates = [found]
        else:
            candidates = [
                project
                for project in self.snapshot.projects_by_name.get(name, ())
                if organization in {"", project.organization_name, project.organization_id}
            ]
        visible = [p for p in candidates if scope.covers(p.organization_id, p.id)]
        if len(visible) == 1:
            return visible[0]
        if visible:
            choices = ", ".join(sorted(f"{p.organization_name}/{p.name}" for p in visible))
            raise NotFoundError(
                f"more than one project is called {name}", next_step=f"Say which: {choices}."
            )
        raise NotFoundError(
            f"there is no project {reference}",
            next_step="List the projects that you can see: `dflare project list`.",
        )

    async def check(self, principal: Principal, action: str, resource: Resource) -> None:
        """See ``contract.Authorizer``."""
        if policy.decide(principal, action, [resource])[0]:
            return
        self._deny(principal, action, resource)
        what = f"{resource.kind} {resource.id}".strip()
        at_platform = not (resource.id or resource.organization_id or resource.project_id)
        readable = (
            at_platform or policy.decide(principal, f"{resource.kind}:read", [resource])[0]
        ) and not action.endswith((":read", ":list"))
        if not readable:
            raise NotFoundError(f"there is no {what}" if resource.id else "there is no such thing")
        raise ForbiddenError(
            f"{principal.name} may not {action.replace(':', ' ')} here",
            next_step="Ask an administrator of the project or organization for a role that may.",
            action=action,
        )

    async def readable(
        self, principal: Principal, action: str, resources: Sequence[Resource]
    ) -> list[bool]:
        """See ``contract.Authorizer``."""
        if len(resources) <= _INLINE_DECISIONS:
            return policy.decide(principal, action, resources)
        decisions: list[bool] = []
        for start in range(0, len(resources), _DECISIONS_A_TURN):
            # Cedar holds the interpreter's lock while it decides: small turns let the loop run.
            some = resources[start : start + _DECISIONS_A_TURN]
            decisions += await asyncio.to_thread(policy.decide, principal, action, some)
        return decisions

    def _deny(self, principal: Principal, action: str, resource: Resource) -> None:
        self.denials.append(
            AuditRecord(
                at=self._clock.now(),
                principal=principal.subject,
                action=action,
                resource_kind=resource.kind,
                resource_id=resource.id,
                decision="deny",
                organization_id=resource.organization_id,
                project_id=resource.project_id,
            )
        )


def scope_of(principal: Principal) -> Scope:
    """What a caller's bindings let it know to exist."""
    if any(binding.role in {Role.OPERATOR, Role.AUDITOR} for binding in principal.bindings):
        return Scope(everything=True, reason=f"{principal.kind} {principal.name} of the platform")
    return Scope(
        organization_ids=frozenset(
            binding.organization_id
            for binding in principal.bindings
            if binding.organization_id and not binding.project_id
        ),
        project_ids=frozenset(
            binding.project_id for binding in principal.bindings if binding.project_id
        ),
    )


def _unauthenticated(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(why, next_step="Log in with `dflare login`.")
