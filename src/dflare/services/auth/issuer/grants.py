"""The grants of the issuer in Authlib's terms; the store consumes what they are given."""

# Authlib publishes no types: what its classes hand over is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleVariableOverride=false

from typing import Any

from authlib.oauth2.rfc6749 import (
    AuthorizationCodeMixin,
    ClientMixin,
    OAuth2Request,
    TokenMixin,
    grants,
)
from authlib.oauth2.rfc6749.errors import AccessDeniedError, InvalidRequestError
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import (
    DeviceAuthorizationEndpoint,
    DeviceCodeGrant,
    DeviceCredentialMixin,
)

from dflare.kit.errors import UnauthenticatedError
from dflare.services.auth.issuer.issuance import Issuance, Owner, owner_of, wait
from dflare.services.auth.issuer.store import CodeRequest, Device, Grant

_CLIENT_AUTH = ["none", "client_secret_basic", "client_secret_post"]


class _Consumed(AuthorizationCodeMixin, TokenMixin):
    """A consumed code or refresh token in Authlib's terms."""

    code_challenge_method = "S256"

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.code_challenge = grant.code_challenge

    def get_redirect_uri(self) -> str:
        return self.grant.redirect_uri

    def get_scope(self) -> str:
        return self.grant.scope

    def get_nonce(self) -> str | None:
        return self.grant.nonce

    def get_auth_time(self) -> int:
        return self.grant.auth_time

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> list[str]:
        return ["pwd"]

    def check_client(self, client: ClientMixin) -> bool:
        return self.grant.client_id == client.get_client_id()


class _DeviceModel(DeviceCredentialMixin):
    def __init__(self, device: Device) -> None:
        self.device = device

    def get_client_id(self) -> str:
        return self.device.client_id

    def get_scope(self) -> str:
        return self.device.scope

    def get_user_code(self) -> str:
        return self.device.user_code

    def get_nonce(self) -> None:
        return None

    def get_auth_time(self) -> None:
        return None

    def is_expired(self) -> bool:
        return self.device.expired


class Challenge(CodeChallenge):
    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]
    DEFAULT_CODE_CHALLENGE_METHOD = "S256"

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError(
                "PKCE with code_challenge_method=S256 is required", redirect_uri=redirect_uri
            )
        super().validate_code_challenge(grant, redirect_uri)


class CodeGrant(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _CLIENT_AUTH
    server: Any

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        remembered = CodeRequest(
            client_id=request.client.get_client_id(),
            user_id=request.user.id,
            redirect_uri=data["redirect_uri"],
            scope=request.client.get_allowed_scope(data.get("scope")),
            nonce=data.get("nonce"),
            code_challenge=data["code_challenge"],
        )
        wait(self.server.shared.store.save_code, code, remembered)

    def query_authorization_code(self, code: str, client: ClientMixin) -> _Consumed | None:
        grant = wait(self.server.shared.store.use_code, code, client.get_client_id())
        return _Consumed(grant) if grant else None

    def delete_authorization_code(self, authorization_code: _Consumed) -> None:
        """It was consumed when it was found."""

    def authenticate_user(self, authorization_code: _Consumed) -> Owner | None:
        return owner_of(self.server.shared, authorization_code.grant)


class RefreshGrant(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _CLIENT_AUTH
    INCLUDE_NEW_REFRESH_TOKEN = True
    server: Any

    def authenticate_refresh_token(self, refresh_token: str) -> _Consumed | None:
        request: Any = self.request
        client_id = request.client.get_client_id()
        grant = wait(self.server.shared.store.use_refresh, refresh_token, client_id)
        return _Consumed(grant) if grant else None

    def authenticate_user(self, refresh_token: _Consumed) -> Owner | None:
        return owner_of(self.server.shared, refresh_token.grant)

    def revoke_old_credential(self, refresh_token: _Consumed) -> None:
        """It was consumed when it was found."""


class DeviceGrant(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _CLIENT_AUTH
    server: Any

    def query_device_credential(self, device_code: str) -> _DeviceModel | None:
        device = wait(self.server.shared.store.poll_device, device_code)
        return _DeviceModel(device) if device and device.state != "used" else None

    def query_user_grant(self, user_code: str) -> tuple[Owner | None, bool] | None:
        grant = wait(self.server.shared.store.use_device, user_code)
        if grant is not None:
            return owner_of(self.server.shared, grant), True
        return None

    def should_slow_down(self, credential: _DeviceModel) -> bool:
        return credential.device.too_soon

    def validate_device_credential(self, credential: _DeviceModel) -> Any:
        if credential.device.state == "denied":
            raise AccessDeniedError
        return super().validate_device_credential(credential)


class ClientCredentialsGrant(grants.ClientCredentialsGrant):
    """A service account acts for itself."""

    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]


class DeviceAuthorization(DeviceAuthorizationEndpoint):
    """Where a device asks for its codes (RFC 8628 section 3.1)."""

    CLIENT_AUTH_METHODS = _CLIENT_AUTH

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        shared: Issuance = server.shared
        self.EXPIRES_IN = shared.settings.device_code_s
        self.INTERVAL = shared.settings.device_interval_s

    def get_verification_uri(self) -> str:
        """See Authlib."""
        return f"{self.server.shared.issuer}/device"

    def save_device_credential(self, client_id: str, scope: str | None, data: Any) -> None:
        """See Authlib."""
        store = self.server.shared.store
        wait(store.save_device, data["device_code"], data["user_code"], client_id, scope or "")


class _Revocable:
    """A token's login, and the client that may end it."""

    def __init__(self, session_id: str, client_id: str) -> None:
        self.session_id = session_id
        self._client_id = client_id

    def check_client(self, client: ClientMixin) -> bool:
        """See Authlib."""
        return self._client_id == client.get_client_id()


class Revocation(RevocationEndpoint):
    """Where a client ends a login by any token of it (RFC 7009)."""

    CLIENT_AUTH_METHODS = _CLIENT_AUTH

    def query_token(self, token_string: str, token_type_hint: str | None) -> _Revocable | None:
        """See Authlib."""
        shared: Issuance = self.server.shared
        found = wait(shared.store.session_of, token_string)
        if found is not None:
            return _Revocable(*found)
        try:
            claims = shared.authorizer.claims(token_string)
        except UnauthenticatedError:
            return None
        return _Revocable(str(claims.get("sid", "")), str(claims.get("client_id")))

    def revoke_token(self, token: _Revocable, request: OAuth2Request) -> None:
        """See Authlib."""
        wait(self.server.shared.store.revoke_session, token.session_id)
