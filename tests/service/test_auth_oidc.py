"""The development issuer's promises, over HTTP: code with PKCE, refresh, device, credentials."""

import asyncio
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from auth_platform import ISSUER, AuthPlatform, auth_platform
from dflare.kit.clock import ManualClock
from dflare.services.auth.contract import Scope
from dflare.services.auth.service import DEVICE_GRANT, SYSTEM, NewUser
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import ApiToken, User
from oidc_browser import (
    CLIENT,
    REDIRECT,
    Pkce,
    authorization,
    exchange,
    form_token,
    log_in,
    redirected,
    refresh,
)

PASSWORD = "correct horse battery"
USER = "ada@acme"


@pytest.fixture(scope="module")
async def platform(database_url: str) -> AsyncIterator[AuthPlatform]:
    clock = ManualClock(datetime.now(UTC))
    settings = AuthSettings(login_attempts=3, lockout_s=60)
    async with auth_platform(database_url, clock=clock, settings=settings) as running:
        loopback = ["http://127.0.0.1/callback", "http://[::1]/callback"]
        await running.service.ensure_client(CLIENT, "Test program", loopback)
        await running.service.ensure_client("other", "Other program", loopback)
        organization = await running.service.create_organization(SYSTEM, "acme")
        user = NewUser("ada", "ada@example.org", "Ada", organization.id, PASSWORD)
        await running.service.create_user(SYSTEM, user)
        yield running


@pytest.fixture
def client(platform: AuthPlatform) -> httpx.AsyncClient:
    platform.client.cookies.clear()
    return platform.client


async def tokens_of(client: httpx.AsyncClient, **changes: str) -> dict[str, Any]:
    pkce = Pkce()
    answer = redirected(await log_in(client, authorization(pkce, **changes), USER, PASSWORD))
    return (await exchange(client, answer["code"], pkce)).json()


def clock_of(platform: AuthPlatform) -> ManualClock:
    assert isinstance(platform.clock, ManualClock)
    return platform.clock


async def whoami(client: httpx.AsyncClient, token: str) -> int:
    answer = await client.get("/v1/whoami", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def test_the_metadata_names_endpoints_that_exist(client: httpx.AsyncClient) -> None:
    metadata = (await client.get("/.well-known/openid-configuration")).json()
    assert metadata["issuer"] == ISSUER
    assert metadata["code_challenge_methods_supported"] == ["S256"]
    for name, url in metadata.items():
        if name.endswith(("_endpoint", "_uri")):
            method = "GET" if name in {"jwks_uri", "authorization_endpoint"} else "POST"
            assert (await client.request(method, url)).status_code not in {404, 405}, name


@pytest.mark.requirement("SEC01")
async def test_a_login_ends_in_tokens_that_the_published_keys_verify(
    client: httpx.AsyncClient,
) -> None:
    pkce = Pkce()
    parameters = authorization(pkce, nonce="n-1")
    answer = redirected(await log_in(client, parameters, USER, PASSWORD))
    assert (answer["state"], answer["iss"]) == ("st-1", ISSUER)
    response = await exchange(client, answer["code"], pkce)
    assert response.headers["cache-control"] == "no-store"
    tokens = response.json()
    keys = KeySet.import_key_set((await client.get("/oauth/jwks")).json())
    access = jwt.decode(tokens["access_token"], keys, algorithms=["RS256"])
    assert (access.header["typ"], access.header["kid"]) == ("at+jwt", keys.keys[0].kid)
    assert (access.claims["iss"], access.claims["aud"]) == (ISSUER, "dflare")
    assert access.claims["exp"] - access.claims["iat"] == tokens["expires_in"] == 900
    identity = jwt.decode(tokens["id_token"], keys, algorithms=["RS256"]).claims
    assert (identity["nonce"], identity["aud"], identity["email"]) == (
        "n-1",
        CLIENT,
        "ada@example.org",
    )
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    info = (await client.get("/oauth/userinfo", headers=headers)).json()
    assert (info["sub"], info["preferred_username"]) == (identity["sub"], USER)
    assert (await client.get("/v1/whoami", headers=headers)).json()["name"] == USER


async def test_a_foreign_client_library_logs_in_and_refreshes(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    with warnings.catch_warnings():
        # Authlib advises another HTTP library than the one that the rest of the tests use.
        warnings.simplefilter("ignore")
        from authlib.integrations.httpx_client import AsyncOAuth2Client
    transport = httpx.ASGITransport(app=platform.app)
    async with AsyncOAuth2Client(
        CLIENT,
        redirect_uri=REDIRECT,
        scope="openid profile",
        code_challenge_method="S256",
        token_endpoint=f"{ISSUER}/oauth/token",
        token_endpoint_auth_method="none",
        transport=transport,
    ) as foreign:
        verifier = Pkce().verifier
        url, state = foreign.create_authorization_url(
            f"{ISSUER}/oauth/authorize", code_verifier=verifier
        )
        parameters = dict(httpx.URL(url).params)
        callback = (await log_in(client, parameters, USER, PASSWORD)).headers["location"]
        token = await foreign.fetch_token(
            authorization_response=callback, code_verifier=verifier, state=state
        )
        again = await foreign.refresh_token(f"{ISSUER}/oauth/token", token["refresh_token"])
        assert again["access_token"] != token["access_token"]
        assert (await foreign.get(f"{ISSUER}/v1/whoami")).json()["name"] == USER


@pytest.mark.parametrize(
    "changes",
    [
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge": None},
        {"code_challenge_method": None},
        {"code_challenge_method": "plain"},
        {"code_challenge": "short"},
        {"response_type": "token"},
        {"scope": "everything"},
        {"prompt": "none"},
    ],
)
async def test_a_bad_request_of_a_known_address_is_told_there_and_shows_no_login(
    client: httpx.AsyncClient, changes: dict[str, str | None]
) -> None:
    parameters = authorization(Pkce(), **changes)
    for attempt in (client.get, client.post):
        response = await attempt("/oauth/authorize", params=parameters)
        answer = redirected(response)
        assert "error" in answer
        assert "code" not in answer
        assert answer["state"] == "st-1"


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/callback",
        "http://127.0.0.1.evil.example/callback",
        "http://127.0.0.1@evil.example/callback",
        "http://evil@127.0.0.1:1/callback",
        "http://127.0.0.1:1/callback/../other",
        "http://127.0.0.1:1/callback?more=1",
        "https://127.0.0.1:1/callback",
        "javascript:alert(1)",
        "http://127.0.0.1:port/callback",
        'http://127.0.0.1/"quoted"',
        "http://127.0.0.1:1/call\nback",
        "http://127.0.0.1:/callback",
    ],
)
async def test_an_address_that_is_not_the_clients_gets_no_redirect(
    client: httpx.AsyncClient, address: str
) -> None:
    response = await client.get(
        "/oauth/authorize", params=authorization(Pkce(), redirect_uri=address)
    )
    assert response.status_code == 400
    assert "location" not in response.headers


async def test_an_unknown_client_is_refused_without_a_redirect(client: httpx.AsyncClient) -> None:
    parameters = authorization(Pkce(), client_id="nobody")
    assert (await client.get("/oauth/authorize", params=parameters)).status_code in {400, 401}


async def test_the_login_page_shows_nothing_that_a_request_smuggles_in(
    client: httpx.AsyncClient,
) -> None:
    hostile = '"><script>alert(1)</script>'
    page = await client.get("/oauth/authorize", params=authorization(Pkce(), state=hostile))
    device = await client.get("/device", params={"user_code": hostile})
    for answer in (page, device):
        assert answer.status_code == 200
        assert "<script" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
    origin = urlsplit(REDIRECT)
    assert f"{origin.scheme}://{origin.netloc}" in page.headers["content-security-policy"]


async def test_a_form_counts_only_from_the_browser_that_it_was_given_to(
    client: httpx.AsyncClient,
) -> None:
    parameters = authorization(Pkce())
    form = {"username": USER, "password": PASSWORD, "answer": "allow"}
    page = await client.get("/oauth/authorize", params=parameters)
    token = form_token(page)
    missing = await client.post("/oauth/authorize", params=parameters, data=form)
    client.cookies.clear()
    without = {**form, "csrf": token}
    no_cookie = await client.post("/oauth/authorize", params=parameters, data=without)
    await client.get("/oauth/authorize", params=parameters)
    other = await client.post("/oauth/authorize", params=parameters, data=without)
    device = await client.post("/device", data={**without, "user_code": "AAAA-BBBB"})
    assert [r.status_code for r in (missing, no_cookie, other, device)] == [403] * 4


async def test_a_refused_login_tells_the_client_that_access_is_denied(
    client: httpx.AsyncClient,
) -> None:
    answer = redirected(await log_in(client, authorization(Pkce()), USER, "", "deny"))
    assert answer["error"] == "access_denied"


async def test_too_many_wrong_passwords_lock_the_account_for_a_time(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    await platform.service.create_user(SYSTEM, NewUser("lin", password=PASSWORD))
    parameters = authorization(Pkce())
    answers = [await log_in(client, parameters, "lin", f"wrong {n} xxxxxx") for n in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    locked = await log_in(client, parameters, "lin", PASSWORD)
    nobody = await log_in(client, parameters, "nobody-at-all", PASSWORD)
    assert (locked.status_code, nobody.status_code) == (401, 401)
    await clock_of(platform).sleep(61)
    assert "code" in redirected(await log_in(client, parameters, "lin", PASSWORD))


async def test_a_code_is_good_once_and_a_second_use_ends_the_login_of_the_first(
    client: httpx.AsyncClient,
) -> None:
    pkce = Pkce()
    code = redirected(await log_in(client, authorization(pkce), USER, PASSWORD))["code"]
    first = (await exchange(client, code, pkce)).json()
    assert await whoami(client, first["access_token"]) == 200
    second = await exchange(client, code, pkce)
    assert (second.status_code, second.json()["error"]) == (400, "invalid_grant")
    assert await whoami(client, first["access_token"]) == 401
    assert (await refresh(client, first["refresh_token"])).status_code == 400


async def test_of_two_programs_with_the_same_code_at_most_one_gets_tokens(
    client: httpx.AsyncClient,
) -> None:
    pkce = Pkce()
    code = redirected(await log_in(client, authorization(pkce), USER, PASSWORD))["code"]
    answers = await asyncio.gather(*(exchange(client, code, pkce) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]


async def test_a_code_needs_its_verifier_its_client_its_address_and_its_time(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    for changes in (
        {"code_verifier": Pkce().verifier},
        {"code_verifier": ""},
        {"client_id": "other"},
        {"redirect_uri": "http://127.0.0.1:1/callback"},
    ):
        pkce = Pkce()
        code = redirected(await log_in(client, authorization(pkce), USER, PASSWORD))["code"]
        assert (await exchange(client, code, pkce, **changes)).status_code == 400, changes
    pkce = Pkce()
    code = redirected(await log_in(client, authorization(pkce), USER, PASSWORD))["code"]
    await clock_of(platform).sleep(61)
    assert (await exchange(client, code, pkce)).status_code == 400


async def test_a_refresh_token_rotates_and_its_reuse_ends_the_whole_login(
    client: httpx.AsyncClient,
) -> None:
    first = await tokens_of(client)
    second = (await refresh(client, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert await whoami(client, second["access_token"]) == 200
    stolen = await refresh(client, first["refresh_token"])
    assert (stolen.status_code, stolen.json()["error"]) == (400, "invalid_grant")
    assert (await refresh(client, second["refresh_token"])).status_code == 400
    assert await whoami(client, second["access_token"]) == 401


async def test_of_two_programs_with_the_same_refresh_token_at_most_one_gets_tokens(
    client: httpx.AsyncClient,
) -> None:
    token = (await tokens_of(client))["refresh_token"]
    answers = await asyncio.gather(*(refresh(client, token) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]


async def test_another_client_cannot_use_or_spoil_a_refresh_token(
    client: httpx.AsyncClient,
) -> None:
    token = (await tokens_of(client))["refresh_token"]
    assert (await refresh(client, token, "other")).status_code == 400
    assert (await refresh(client, token)).status_code == 200


async def test_users_of_one_name_in_two_organizations_are_two_people(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    passwords = {f"lee{home}": f"the password of lee{home}" for home in ("", "@north", "@south")}
    subjects: dict[str, str] = {}
    for login, password in passwords.items():
        home = None
        if "@" in login:
            name = login.partition("@")[2]
            home = (await platform.service.create_organization(SYSTEM, name)).id
        new = NewUser("lee", organization_id=home, password=password)
        subjects[login] = (await platform.service.create_user(SYSTEM, new)).id
    for login, password in passwords.items():
        pkce = Pkce()
        code = redirected(await log_in(client, authorization(pkce), login, password))["code"]
        tokens = (await exchange(client, code, pkce)).json()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        me = (await client.get("/v1/whoami", headers=headers)).json()
        assert (me["subject"], me["name"]) == (subjects[login], login)
        client.cookies.clear()
        for other in passwords.keys() - {login}:
            refused = await log_in(client, authorization(Pkce()), other, password)
            assert refused.status_code == 401
            assert "belong together" in refused.text
    nowhere = await log_in(client, authorization(Pkce()), "lee@nowhere", passwords["lee"])
    assert nowhere.status_code == 401


async def test_a_disabled_user_is_out_at_once(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    user = await platform.service.create_user(SYSTEM, NewUser("gone", password=PASSWORD))
    pkce = Pkce()
    code = redirected(await log_in(client, authorization(pkce), "gone", PASSWORD))["code"]
    tokens = (await exchange(client, code, pkce)).json()
    everything = Scope.system("a test")
    await platform.service.update(everything, SYSTEM, User, user.id, None, disabled=True)
    assert await whoami(client, tokens["access_token"]) == 401
    assert (await refresh(client, tokens["refresh_token"])).status_code == 400
    refused = await log_in(client, authorization(Pkce()), "gone", PASSWORD)
    assert refused.status_code == 401


async def test_a_new_password_ends_the_logins_made_with_the_old_one(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    user = await platform.service.create_user(SYSTEM, NewUser("eve", password=PASSWORD))
    pkce = Pkce()
    code = redirected(await log_in(client, authorization(pkce), "eve", PASSWORD))["code"]
    tokens = (await exchange(client, code, pkce)).json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    body = {"password": "another long password"}
    changed = await client.put(f"/v1/users/{user.id}/password", json=body, headers=headers)
    assert changed.status_code == 204, changed.text
    assert await whoami(client, tokens["access_token"]) == 401
    assert (await refresh(client, tokens["refresh_token"])).status_code == 400
    assert (await log_in(client, authorization(Pkce()), "eve", PASSWORD)).status_code == 401
    answer = await log_in(client, authorization(Pkce()), "eve", body["password"])
    assert answer.status_code == 302


@pytest.mark.parametrize("which", ["refresh_token", "access_token"])
async def test_revoking_either_token_ends_the_login(client: httpx.AsyncClient, which: str) -> None:
    tokens = await tokens_of(client)
    form = {"client_id": CLIENT, "token": tokens[which]}
    foreign = await client.post("/oauth/revoke", data={**form, "client_id": "other"})
    assert foreign.status_code == 400
    assert await whoami(client, tokens["access_token"]) == 200
    assert (await client.post("/oauth/revoke", data=form)).status_code == 200
    assert await whoami(client, tokens["access_token"]) == 401
    assert (await refresh(client, tokens["refresh_token"])).status_code == 400


async def test_a_device_gets_in_when_its_user_says_so(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    started = await client.post(
        "/oauth/device", data={"client_id": CLIENT, "scope": "openid profile"}
    )
    device = started.json()
    assert device["verification_uri"] == f"{ISSUER}/device"

    async def poll() -> httpx.Response:
        form = {
            "grant_type": DEVICE_GRANT,
            "client_id": CLIENT,
            "device_code": device["device_code"],
        }
        return await client.post("/oauth/token", data=form)

    async def decide(code: str, answer: str, password: str = PASSWORD) -> int:
        page = await client.get("/device", params={"user_code": code})
        form = {
            "csrf": form_token(page),
            "user_code": code,
            "username": USER,
            "password": password,
            "answer": answer,
        }
        return (await client.post("/device", data=form)).status_code

    assert (await poll()).json()["error"] == "authorization_pending"
    assert (await poll()).json()["error"] == "slow_down"
    assert await decide("ZZZZ-ZZZZ", "allow") == 404
    assert await decide(device["user_code"], "allow", "a wrong password") == 401
    assert await decide(device["user_code"].replace("-", "").lower(), "allow") == 200
    await clock_of(platform).sleep(6)
    tokens = (await poll()).json()
    assert await whoami(client, tokens["access_token"]) == 200
    assert "id_token" in tokens
    assert (await refresh(client, tokens["refresh_token"])).status_code == 200
    assert (await poll()).status_code == 400
    device = (await client.post("/oauth/device", data={"client_id": CLIENT})).json()
    assert await decide(device["user_code"], "deny") == 200
    assert (await poll()).json()["error"] == "access_denied"
    device = (await client.post("/oauth/device", data={"client_id": CLIENT})).json()
    await clock_of(platform).sleep(601)
    assert (await poll()).json()["error"] == "expired_token"
    assert await decide(device["user_code"], "allow") == 404


async def test_a_service_account_exchanges_its_api_token_and_loses_all_with_it(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    service = platform.service
    owner = await service.organization(Scope.system("a test"), "acme")
    account = await service.create_service_account(SYSTEM, owner.id, None, "robot")
    token, secret = await service.create_token(SYSTEM, account, "t", 3600)
    form = {"grant_type": "client_credentials"}
    wrong = await client.post("/oauth/token", data=form, auth=(account.id, "dfl_wrong"))
    assert wrong.status_code == 401
    answer = await client.post("/oauth/token", data=form, auth=(account.id, secret))
    access = answer.json()["access_token"]
    assert "refresh_token" not in answer.json()
    headers = {"Authorization": f"Bearer {access}"}
    me = (await client.get("/v1/whoami", headers=headers)).json()
    assert (me["subject"], me["kind"]) == (account.id, "service_account")
    await service.delete(Scope.system("a test"), SYSTEM, ApiToken, token.id)
    assert await whoami(client, access) == 401
    again = await client.post("/oauth/token", data=form, auth=(account.id, secret))
    assert again.status_code == 401


async def test_a_new_signing_key_is_published_before_it_signs_and_the_old_one_verifies_on(
    platform: AuthPlatform, client: httpx.AsyncClient
) -> None:
    clock, keys = clock_of(platform), platform.service.keys
    await clock.sleep(timedelta(days=1).total_seconds())
    before = await tokens_of(client)
    old = (await client.get("/oauth/jwks")).json()["keys"][0]["kid"]
    new = await keys.rotate(after=old)
    assert new is not None
    assert await keys.rotate(after=old) is None
    await platform.authorizer.refresh({"signing_key": [old, new]})
    published = (await client.get("/oauth/jwks")).json()["keys"]
    assert [key["kid"] for key in published] == [new, old]
    assert all("d" not in key for key in published)
    assert (await keys.signer()).kid == old
    await clock.sleep(61)
    assert (await keys.signer()).kid == new
    assert await whoami(client, before["access_token"]) == 200
    after = await tokens_of(client)
    assert await whoami(client, after["access_token"]) == 200
    await clock.sleep(1100)
    assert await keys.ensure() is None
    left = (await client.get("/oauth/jwks")).json()["keys"]
    assert [key["kid"] for key in left] == [new]
