"""The demonstration, as people run it: it ends well, leaves nothing, and says so when it does not.

The runs follow one another on one platform on which another tenant has servers all the time.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from running_platform import CliResult, PlatformHandle, ok, running_platform
from site_files import PlatformWish

# In the shorter run the README's test goes through the demonstration.
pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

NODES, OTHERS = 24, 2
RUN_WITHIN_S = 480


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[PlatformHandle]:
    """A platform with a tenant that has nothing to do with the demonstration."""
    async with running_platform(PlatformWish(nodes=NODES)) as running:
        await running.apply_site()
        tenant = await running.tenant("bystander", {"h100-8": OTHERS})
        await running.wait(await running.order(tenant, "line", "h100-8", OTHERS))
        yield running


async def demonstrated(platform: PlatformHandle, *more: str) -> CliResult:
    """One run, without pauses."""
    return await platform.cli(
        *("demo", "--data-dir", str(platform.layout.root), "--fast", *more), timeout_s=RUN_WITHIN_S
    )


async def assert_nothing_left(platform: PlatformHandle) -> None:
    """No tenant of a demonstration is there, every server is free but the bystander's, and that
    one has its own still."""
    organizations = await platform.all_pages("/v1/organizations")
    assert [one["name"] for one in organizations] == ["bystander"]
    await platform.until_available(NODES - OTHERS)
    clusters = await platform.all_pages("/v1/clusters")
    assert [(one["name"], one["state"]) for one in clusters] == [("line", "ready")]
    assert ok(await platform.sim.http.get("/faults"))["faults"] == []


async def test_ctrl_c_in_the_middle_of_an_order_releases_it(platform: PlatformHandle) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dflare.cli.main", "demo", "--fast"),
        env={**os.environ, "DFLARE_DATA_DIR": str(platform.layout.root)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A suite started in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    async with asyncio.timeout(RUN_WITHIN_S):
        while b"is running" not in (line := await process.stdout.readline()):
            assert line, "it ended before the order was under way"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert process.returncode == 130, out.decode() + err.decode()
    assert "Releasing what the demonstration ordered" in out.decode()
    assert "is left" not in out.decode(), out.decode()
    assert "was not released" not in out.decode(), out.decode()
    await assert_nothing_left(platform)


async def test_the_demonstration_ends_well_after_another_and_leaves_nothing(
    platform: PlatformHandle, tmp_path: Path
) -> None:
    record = tmp_path / "demo.cast"
    shown = await demonstrated(platform, "--record", str(record))
    assert shown.exit_code == 0, shown.out[-3000:] + shown.err
    assert "Everything held." in shown.out
    assert "✘" not in shown.out
    for words in ("stands in for it", "nobody else's", "of other tenants", "simulator's log"):
        assert words in shown.out
    header, *events = [json.loads(line) for line in record.read_text().splitlines()]
    assert header["version"] == 2
    assert "".join(event[2] for event in events) == shown.out.replace("\n", "\r\n")
    await assert_nothing_left(platform)


async def test_a_disk_that_only_claims_to_be_erased_fails_the_demonstration(
    platform: PlatformHandle,
) -> None:
    await platform.sim.fault("erase_lies", "node-*")
    shown = await demonstrated(platform)
    await platform.sim.clear_faults()
    assert shown.exit_code == 1, shown.out[-3000:] + shown.err
    assert "✘" in shown.out
    assert "Everything held." not in shown.out
    assert "proofs do not hold" in shown.err
