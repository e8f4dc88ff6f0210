"""Promises of typed ids."""

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflare.kit.ids import is_id, new_id

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def as_uuid(text: str) -> uuid.UUID:
    value = 0
    for letter in text.rpartition("_")[2]:
        value = value * 32 + ALPHABET.index(letter)
    return uuid.UUID(int=value)


def test_an_id_is_a_uuid_of_version_7_behind_its_prefix() -> None:
    made = new_id("node")
    assert made.startswith("node_")
    decoded = as_uuid(made)
    assert (decoded.version, decoded.variant) == (7, uuid.RFC_4122)
    assert abs((decoded.int >> 80) / 1000 - time.time()) < 60


def test_ids_sort_by_the_millisecond_of_their_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(1_700_000_000_000_000_000, 1_700_000_001_000_000_000, 1_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    made = [new_id("op") for _ in range(1_000)]
    assert made == sorted(made)


def test_ids_of_one_millisecond_sort_by_their_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(1_700_000_000_000_000_000, 1_700_000_000_001_000_000, 1_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    made = [new_id("op") for _ in range(1_000)]
    assert made == sorted(made)


def test_many_ids_of_one_millisecond_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({new_id("op") for _ in range(10_000)}) == 10_000


@given(st.text(max_size=40))
def test_nothing_but_an_id_has_the_form_of_one(text: str) -> None:
    head, _, suffix = text.rpartition("_")
    looks_right = head == "node" and len(suffix) == 26 and set(suffix) <= set(ALPHABET)
    assert is_id("node", text) == looks_right


def test_an_id_of_another_kind_is_none_of_this_kind() -> None:
    assert is_id("node", new_id("node"))
    assert not is_id("node", new_id("clu"))
    assert not is_id("node", new_id("node")[:-1])
    assert not is_id("node", new_id("node").upper())
