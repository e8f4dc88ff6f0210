"""OAuth clients in Authlib's terms: registered programs, and service accounts."""

# Authlib publishes no types: what its classes hand over is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleVariableOverride=false

import re
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import ClientMixin

from dflare.kit.clock import Clock
from dflare.services.auth.domain import SnapshotAuthorizer, digest
from dflare.services.auth.tables import OAuthClient

SCOPES = ("openid", "profile", "email", "offline_access")
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class PublicClient(ClientMixin):
    """A registered program without a secret."""

    token_id = ""

    def __init__(self, row: OAuthClient) -> None:
        self._row = row

    def get_client_id(self) -> str:
        return self._row.id

    def get_default_redirect_uri(self) -> str | None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(word for word in (scope or "openid").split() if word in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return any(_same_redirect(known, redirect_uri) for known in self._row.redirect_uris)

    def check_client_secret(self, client_secret: str) -> bool:
        return False

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "none"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self._row.grant_types


class ServiceAccountClient(ClientMixin):
    """A service account that exchanges one of its API tokens, as client secret, for an access
    token."""

    def __init__(self, account_id: str, authorizer: SnapshotAuthorizer, clock: Clock) -> None:
        self._id = account_id
        self._authorizer = authorizer
        self._clock = clock
        self.token_id = ""

    def get_client_id(self) -> str:
        return self._id

    def get_default_redirect_uri(self) -> str | None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        return ""

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return False

    def check_client_secret(self, client_secret: str) -> bool:
        row = self._authorizer.snapshot.tokens.get(digest(client_secret))
        if row is None or row.subject_id != self._id or row.expires_at <= self._clock.now():
            return False
        self.token_id = row.id
        return True

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in {"client_secret_basic", "client_secret_post"}

    def check_response_type(self, response_type: str) -> bool:
        return False

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "client_credentials"


def _same_redirect(known: str, given: str) -> bool:
    """Exactly the registered address, but any port on loopback (RFC 8252 section 7.3)."""
    if known == given:
        return True
    registered = urlsplit(known)
    if registered.hostname not in _LOOPBACK:
        return False
    before, after = known.split(registered.netloc, 1)
    pattern = re.escape(before + registered.netloc) + r":[0-9]{1,5}" + re.escape(after)
    return re.fullmatch(pattern, given) is not None
