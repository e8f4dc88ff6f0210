"""Limits on requests, in a running platform."""

import httpx

from running_platform import PlatformWish, Tenant, running_platform

LIMITS = {
    "DFLARE_LIMITS_READ_PER_S": "0.1",
    "DFLARE_LIMITS_READ_BURST": "60",
    "DFLARE_LIMITS_USER_SHARE": "0.5",
}


async def read(tenant: Tenant) -> httpx.Response:
    return await tenant.http.get(f"/v1/projects/{tenant.project_id}/clusters")


async def test_a_tenant_that_asks_too_often_waits_and_no_other_does() -> None:
    async with running_platform(PlatformWish(nodes=1, environment=LIMITS)) as platform:
        noisy = await platform.tenant("noisy", {})
        quiet = await platform.tenant("quiet", {})
        answers = [await read(noisy) for _ in range(40)]
        assert 20 <= [answer.status_code for answer in answers].count(200) <= 31
        refused = answers[-1]
        assert refused.status_code == 429
        assert refused.json()["type"].endswith("/rate-limited")
        assert int(refused.headers["retry-after"]) >= 1
        calm = await read(quiet)
        assert calm.status_code == 200
        assert calm.headers["ratelimit-policy"] == '"read";q=30;w=600'

        with platform.supervisor_paused():
            platform.kill("valkey")
            without = [await read(noisy) for _ in range(5)]
        assert {answer.status_code for answer in without} == {200}
        assert all("ratelimit" not in answer.headers for answer in without)
