"""The 1,213-node fleet: imported, enrolled, ordered by two tenants, released clean.

Judged like the small line (``test_line``). Both bills come from the simulator's log and the price
alone: the type is so cheap that what the log leaves open is worth less than a cent, and each tenant
asks for release when it lies within one cent.
"""

from collections.abc import AsyncIterator
from functools import partial

import pytest

import judgement
from judgement import Order, Story
from running_platform import running_platform
from site_files import PlatformWish, import_whole_fleet

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(900)

KIND, RED, BLUE = "g2-8", 16, 128


@pytest.fixture(scope="module")
async def story() -> AsyncIterator[Story]:
    """Two tenants' lives in the fleet, from its import to the last free identifier."""
    fleet = partial(import_whole_fleet, prices={KIND: "0.05"})
    async with running_platform(PlatformWish(prepare=fleet)) as platform:
        await platform.apply_site(deadline_s=400)
        orders = [
            Order("red", KIND, RED, cents_from_log=2),
            Order("blue", KIND, BLUE, cents_from_log=6),
        ]
        yield await judgement.live_through(platform, orders, deadline_s=300)


def test_the_whole_fleet_is_enrolled_and_comes_to_let_nobody_reach_anybody(story: Story) -> None:
    assert len(story.every_host) == 1213
    judgement.assert_no_reach(story.reach_before)


def test_two_tenants_get_16_and_128_nodes_of_the_fleet(story: Story) -> None:
    assert [len(tenancy.nodes) for tenancy in story.tenancies] == [RED, BLUE]


def test_tenants_of_the_fleet_reach_their_own_nodes_and_nothing_else(story: Story) -> None:
    judgement.assert_isolated(story)


def test_a_tenants_key_alone_is_on_its_nodes_in_the_fleet(story: Story) -> None:
    judgement.assert_keys(story)


def test_nothing_of_a_tenant_is_left_in_the_fleet_after_its_release(story: Story) -> None:
    judgement.assert_secrets_stood(story)
    judgement.assert_clean(story)


def test_identifiers_of_the_fleet_are_free_again_after_their_cooldown(story: Story) -> None:
    judgement.assert_identifiers_returned(story)


def test_usage_of_the_fleet_runs_from_hand_over_to_the_request_of_release(story: Story) -> None:
    for tenancy in story.tenancies:
        judgement.assert_usage_is_true(tenancy)


def test_invoices_of_the_fleet_equal_exact_arithmetic_to_the_cent(story: Story) -> None:
    for tenancy in story.tenancies:
        judgement.assert_invoice_is_exact(tenancy, story.prices)


def test_invoices_of_the_fleet_are_the_cents_that_the_simulators_log_gives(story: Story) -> None:
    for tenancy in story.tenancies:
        judgement.assert_log_alone_gives_the_bill(tenancy, story.prices)


def test_the_audit_of_the_ledger_of_the_fleet_finds_nothing(story: Story) -> None:
    judgement.assert_audited_clean(story)
