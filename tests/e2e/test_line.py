"""The whole line on a small site: load, enrol, order, isolate, provision, meter, release.

How the bill is judged: a node is billed from hand-over to the request of release. The simulator's
log has no hand-over, so it brackets both ends: the tenant's system must be up in the log before
usage begins, and usage must have begun before the test saw the order succeed; usage must end
between two markers that the test writes into the log right before and right after its request.
Within these brackets the invoice must equal, to the cent, exact decimal arithmetic over the
intervals and the prices of the site document, done here and not by the product. The price is about
one EUR a second, so that a wrong millisecond shows.

A third tenant's bill comes from the log alone, with nothing of the product's in it: its nodes are
so cheap that the brackets are worth less than a cent, it keeps them while the others come and go,
and asks for release when the brackets lie within one cent. That leaves one number to be paid.
"""

from collections.abc import AsyncIterator

import pytest

import judgement
from judgement import Order, Story
from running_platform import running_platform
from site_files import PlatformWish

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(900)

NODES, RED, BLUE, GREEN = 24, 9, 5, 2
CHEAP, CHEAP_PRICE = "h100-8-cheap", "6.00"


@pytest.fixture(scope="module")
async def story() -> AsyncIterator[Story]:
    """Three tenants' lives, from the loading of the site to the last free identifier."""
    wish = PlatformWish(
        nodes=NODES,
        price_per_node_hour="3600.36",
        more_kinds={CHEAP: (GREEN, CHEAP_PRICE)},
    )
    async with running_platform(wish) as platform:
        await platform.apply_site()
        orders = [Order("red", "h100-8", RED), Order("blue", "h100-8", BLUE)]
        green = Order("green", CHEAP, GREEN, cents_from_log=7)
        yield await judgement.live_through(platform, orders, long=green)


def test_a_new_site_comes_to_let_nobody_reach_anybody(story: Story) -> None:
    judgement.assert_no_reach(story.reach_before)


def test_each_tenant_gets_as_many_nodes_as_it_ordered(story: Story) -> None:
    assert [len(tenancy.nodes) for tenancy in story.tenancies] == [GREEN, RED, BLUE]


def test_tenants_reach_their_own_nodes_and_nothing_else(story: Story) -> None:
    judgement.assert_isolated(story)


def test_a_tenants_key_alone_is_on_its_nodes_disks(story: Story) -> None:
    judgement.assert_keys(story)


def test_nothing_of_a_tenant_is_left_after_its_release(story: Story) -> None:
    judgement.assert_secrets_stood(story)
    judgement.assert_clean(story)


def test_identifiers_are_free_again_after_their_cooldown(story: Story) -> None:
    judgement.assert_identifiers_returned(story)


def test_usage_runs_from_hand_over_to_the_request_of_release(story: Story) -> None:
    for tenancy in story.tenancies:
        judgement.assert_usage_is_true(tenancy)


def test_invoices_equal_exact_arithmetic_to_the_cent(story: Story) -> None:
    for tenancy in story.tenancies:
        judgement.assert_invoice_is_exact(tenancy, story.prices)


def test_an_invoice_is_the_number_of_cents_that_the_simulators_log_gives(story: Story) -> None:
    judgement.assert_log_alone_gives_the_bill(story.tenancies[0], story.prices)


def test_the_audit_of_the_ledger_finds_nothing(story: Story) -> None:
    judgement.assert_audited_clean(story)
