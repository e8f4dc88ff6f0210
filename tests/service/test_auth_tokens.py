"""What an access token must be to be believed."""

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from auth_platform import ISSUER, AuthPlatform, auth_platform
from callers import Callers, make_callers
from dflare.kit.errors import UnauthenticatedError
from dflare.services.auth import domain
from dflare.services.auth.domain import new_secret


@pytest.fixture(scope="module")
async def platform(database_url: str) -> AsyncIterator[AuthPlatform]:
    async with auth_platform(database_url) as running:
        yield running


@pytest.fixture(scope="module")
async def callers(platform: AuthPlatform) -> Callers:
    return await make_callers(platform.service, platform.database)


@pytest.fixture(scope="module")
async def key(platform: AuthPlatform) -> RSAKey:
    return await platform.service.keys.signer()


Change = Callable[[dict[str, Any], dict[str, Any]], object]


def token_of(
    platform: AuthPlatform, callers: Callers, key: RSAKey, change: Change = lambda h, c: None
) -> str:
    now = int(platform.clock.now().timestamp())
    header: dict[str, Any] = {"alg": "RS256", "typ": "at+jwt", "kid": key.kid}
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": "dflare",
        "sub": callers.users["member"].id,
        "iat": now,
        "exp": now + 900,
        "jti": "at_1",
        "client_id": "c",
    }
    change(header, claims)
    return jwt.encode(header, claims, key, algorithms=["RS256"], default_type=None)


async def test_a_good_token_is_believed(
    platform: AuthPlatform, callers: Callers, key: RSAKey
) -> None:
    principal = await platform.authorizer.authenticate(token_of(platform, callers, key))
    assert (principal.subject, principal.token_id) == (callers.users["member"].id, "at_1")
    several = token_of(platform, callers, key, lambda _, c: c.update(aud=["dflare"]))
    assert (await platform.authorizer.authenticate(several)).subject == principal.subject


@pytest.mark.requirement("SEC01")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _, c: c.update(exp=c["iat"] - 1), id="expired"),
        pytest.param(lambda _, c: c.pop("exp"), id="without an end"),
        pytest.param(lambda _, c: c.update(exp="never"), id="with a word as its end"),
        pytest.param(lambda _, c: c.update(iat=c["iat"] + 3600, exp=c["exp"] + 7200), id="future"),
        pytest.param(lambda _, c: c.update(aud="another"), id="for another API"),
        pytest.param(lambda _, c: c.update(aud=["another"]), id="for other APIs"),
        pytest.param(lambda _, c: c.pop("aud"), id="for nobody"),
        pytest.param(lambda _, c: c.update(iss="https://evil.example"), id="of another issuer"),
        pytest.param(lambda _, c: c.update(sub="usr_nobody"), id="of nobody"),
        pytest.param(lambda _, c: c.pop("sub"), id="without a subject"),
        pytest.param(lambda _, c: c.update(sub=["usr_1"]), id="of a list"),
        pytest.param(lambda _, c: c.update(api_token="tok_gone"), id="of a removed API token"),
        pytest.param(lambda h, _: h.update(typ="JWT"), id="an ID token"),
        pytest.param(lambda h, _: h.pop("typ"), id="without a type"),
        pytest.param(lambda h, _: h.update(kid="key_unknown"), id="of an unknown key"),
        pytest.param(lambda h, _: h.pop("kid"), id="without a key's name"),
    ],
)
async def test_a_signed_token_is_not_believed_when_it_is(
    platform: AuthPlatform, callers: Callers, key: RSAKey, change: Change
) -> None:
    with pytest.raises(UnauthenticatedError):
        await platform.authorizer.authenticate(token_of(platform, callers, key, change))


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def test_a_token_that_nobody_here_signed_is_not_believed(
    platform: AuthPlatform, callers: Callers, key: RSAKey
) -> None:
    good = token_of(platform, callers, key)
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    header = {"alg": "HS256", "typ": "at+jwt", "kid": key.kid}
    # The classic confusion: the public key as the secret of a symmetric algorithm.
    signed = f"{_part(header)}.{body}"
    mac = hmac.digest(key.as_pem(private=False), signed.encode(), "sha256")
    confused = f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    foreign_key = RSAKey.generate_key(2048, {"kid": key.kid or ""})
    foreign = token_of(platform, callers, foreign_key)
    none = {"alg": "none", "typ": "at+jwt", "kid": key.kid}
    other_subject = _part({**claims, "sub": callers.users["operator"].id})
    for token in (
        f"{_part(none)}.{body}.",
        f"{_part({**none, 'alg': 'None'})}.{body}.{signature}",
        f"{head}.{body}.",
        f"{head}.{other_subject}.{signature}",
        confused,
        foreign,
        "",
        "..",
        "a.b.c",
        "ü.ü.ü",
        f"{head}.{_part({})}",
        new_secret("dfl_"),
        "dfl_",
        good + "x",
    ):
        with pytest.raises(UnauthenticatedError):
            await platform.authorizer.authenticate(token)


async def test_only_bearer_headers_carry_tokens(platform: AuthPlatform, callers: Callers) -> None:
    token = callers.tokens["member"]
    statuses: list[int] = []
    for header in (f"Bearer {token}", f"bearer {token}", f"Basic {token}", f"{token}", "Bearer"):
        answer = await platform.client.get("/v1/whoami", headers={"Authorization": header})
        statuses.append(answer.status_code)
    assert statuses == [200, 200, 401, 401, 401]
    query = await platform.client.get("/v1/whoami", params={"access_token": str(token)})
    assert query.status_code == 401
    assert query.headers["www-authenticate"] == "Bearer"


async def test_the_use_of_a_token_is_noted(platform: AuthPlatform, callers: Callers) -> None:
    headers = callers.headers("viewer")
    await platform.client.get("/v1/whoami", headers=headers)
    await platform.reconciler(platform.service).flush()
    [token] = (await platform.client.get("/v1/tokens", headers=headers)).json()["items"]
    assert token["last_used_at"] is not None


async def test_no_secret_of_a_token_or_password_is_stored_in_clear_or_told_again(
    platform: AuthPlatform, callers: Callers
) -> None:
    headers = callers.headers("member")
    body = {"name": "ci", "expires_in_s": 600}
    answer = await platform.client.post("/v1/tokens", json=body, headers=headers)
    secret = answer.json()["secret"]
    assert answer.headers["cache-control"] == "no-store"
    shown = await platform.client.get(f"/v1/tokens/{answer.json()['id']}", headers=headers)
    assert "secret" not in shown.json()
    assert secret not in shown.text
    async with platform.database.transaction("auth") as session:
        connection = await session.connection()
        for table in ("api_token", "event", "audit", "user"):
            query = f'SELECT coalesce(string_agg(t::text, $q$ $q$), $q$$q$) FROM auth."{table}" t'
            result = await connection.exec_driver_sql(query)
            assert secret not in str(result.scalar_one())


async def test_argon2_refuses_to_run_on_the_event_loop() -> None:
    with pytest.raises(AssertionError, match="on the event loop"):
        domain._hash("a long password")
