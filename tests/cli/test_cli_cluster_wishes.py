"""`dflare cluster create` with wishes for its nodes, and with leave to wait for them."""

import pytest

from dflare.cli.cluster_wishes import Same, wishes_of
from dflare.cli.errors import UsageError


def test_an_order_without_wishes_says_nothing_of_them() -> None:
    assert wishes_of(spread=False, pack=False, same=None, exclude=None, queue=False) == {}


def test_wishes_are_told_as_the_api_names_them() -> None:
    body = wishes_of(spread=True, pack=False, same=Same.BLOCK, exclude=["n1", "n2"], queue=True)
    assert body == {
        "placement": {"shape": "spread", "same": "block", "exclude": ["n1", "n2"]},
        "wait_for_capacity": True,
    }


def test_packing_within_one_domain_is_told() -> None:
    body = wishes_of(spread=False, pack=True, same=Same.NVLINK_DOMAIN, exclude=None, queue=False)
    assert body == {"placement": {"shape": "pack", "same": "nvlink-domain"}}


@pytest.mark.parametrize("same", [Same.LEAF, Same.NVLINK_DOMAIN])
def test_a_spread_within_one_rack_is_refused_before_anything_is_asked(same: Same) -> None:
    with pytest.raises(UsageError, match="goes over racks"):
        wishes_of(spread=True, pack=False, same=same, exclude=None, queue=False)


def test_spread_and_pack_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="contradict"):
        wishes_of(spread=True, pack=True, same=None, exclude=None, queue=False)
