"""Promises of pages, entity tags and clocks."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflare.kit.clock import HARDWARE_FLOOR_S, ManualClock, hardware_timeout_s
from dflare.kit.errors import InvalidError, PreconditionError
from dflare.kit.etag import check_if_match, etag_of
from dflare.kit.pagination import cut, decode_cursor, encode_cursor, next_cursor


@given(st.text())
def test_a_cursor_gives_back_its_key(key: str) -> None:
    assert decode_cursor(encode_cursor(key)) == key


@given(st.text(max_size=40))
def test_a_cursor_of_someone_else_is_refused_or_read_and_never_fails(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert isinstance(decode_cursor(text), str)


@pytest.mark.parametrize("cursor", ["é", "x", "/w=="])
def test_a_malformed_cursor_is_invalid_input(cursor: str) -> None:
    with pytest.raises(InvalidError):
        decode_cursor(cursor)


def test_no_cursor_means_the_beginning() -> None:
    assert decode_cursor(None) is None
    assert next_cursor(None) is None
    assert decode_cursor(next_cursor("a")) == "a"


@given(st.lists(st.integers(), max_size=20, unique=True), st.integers(1, 7))
def test_pages_give_every_row_once_and_the_last_one_says_so(rows: list[int], limit: int) -> None:
    seen: list[int] = []
    pages = 0
    while True:
        page, last = cut(rows[len(seen) : len(seen) + limit + 1], limit)
        seen.extend(page)
        pages += 1
        if last is None:
            break
        assert last == seen[-1]
    assert seen == rows
    assert pages == max(1, -(-len(rows) // limit)), "no empty page may follow a full one"


def test_a_tag_of_the_present_version_passes() -> None:
    assert etag_of(7) == '"7"'
    for header in (None, "*", '"7"', '"6", "7"'):
        check_if_match(header, 7)


def test_a_tag_of_another_resource_of_that_name_is_refused() -> None:
    check_if_match(etag_of(7, "key_1"), 7, "key_1")
    for other in (etag_of(7, "key_2"), etag_of(7)):
        with pytest.raises(PreconditionError):
            check_if_match(other, 7, "key_1")


@pytest.mark.parametrize("header", ['"6"', "7", 'W/"7"', "", '"17"'])
def test_a_tag_of_another_version_is_refused(header: str) -> None:
    with pytest.raises(PreconditionError, match="version 7"):
        check_if_match(header, 7)


@given(st.floats(0, 1e6), st.floats(1, 600))
def test_hardware_gets_its_sites_time_but_never_less_than_the_floor(
    seconds: float, speed: float
) -> None:
    granted = hardware_timeout_s(seconds, speed)
    assert granted >= HARDWARE_FLOOR_S
    assert granted * speed >= seconds * (1 - 1e-9)


async def test_a_tests_clock_moves_by_its_sleeps_alone() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    clock = ManualClock(start)
    await clock.sleep(3600)
    assert clock.now() == start + timedelta(hours=1)
