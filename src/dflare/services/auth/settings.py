"""Auth's settings; times are seconds of wall time."""

from typing import ClassVar

from dflare.kit.settings import Settings


class AuthSettings(Settings):
    """``audience`` is the ``aud`` of access tokens (RFC 9068 section 3). A signing key signs for
    ``signing_key_s``, and verifies for the life of the longest access token after that. After
    ``login_attempts`` failures an account refuses logins for ``lockout_s``."""

    prefix: ClassVar[str] = "DFLARE_AUTH_"

    audience: str = "dflare"
    access_token_s: int = 900
    refresh_token_s: int = 30 * 86_400
    authorization_code_s: int = 60
    device_code_s: int = 600
    device_interval_s: int = 5
    api_token_max_s: int = 366 * 86_400
    signing_key_s: int = 30 * 86_400
    login_attempts: int = 10
    lockout_s: int = 300
    audit_days: int = 400
