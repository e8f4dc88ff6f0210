"""Which arguments of Prometheus' query API are taken, and how samples are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflare.kit.series import SeriesAbsentError, SeriesStore
from dflare.services.auth.contract import ProjectRef
from dflare.services.metrics.domain import Sample, is_known, line
from dflare.services.metrics.domain_query import (
    LABELS,
    MOST_MATCHES,
    QUERY,
    QUERY_RANGE,
    SERIES,
    checked,
    fence,
    label_path,
    pairs_of,
)
from dflare.services.metrics.domain_times import BOUNDS_S, counted
from dflare.services.metrics.errors import ArgumentError

NOW_S = 1_795_000_000.0
FORM = "application/x-www-form-urlencoded"

RANGE = {"query": "up", "start": "1794999000", "end": "1795000000", "step": "15s"}


@pytest.mark.parametrize(
    ("question", "given"),
    [
        (QUERY, {"query": "up"}),
        (QUERY, {"query": "up", "time": "2026-11-24T16:00:00Z", "timeout": "5s"}),
        (QUERY_RANGE, RANGE),
        (QUERY_RANGE, {**RANGE, "step": "0.5"}),
        (SERIES, {"match[]": "up", "start": "1794999000", "limit": "10"}),
        (LABELS, {}),
    ],
)
def test_what_prometheus_clients_ask_is_taken(question: str, given: dict[str, str]) -> None:
    asked = checked(question, list(given.items()), NOW_S, 20)
    assert {name for name, _ in asked} >= set(given)


@pytest.mark.parametrize(
    ("question", "given"),
    [
        (QUERY, {}),
        (QUERY, {"query": " "}),
        (QUERY, {"query": "x" * 20_000}),
        (QUERY, {"query": "up", "time": "yesterday"}),
        (QUERY, {"query": "up", "time": "2026-11-24T16:00:00"}),
        (QUERY, {"query": "up", "time": "NaN"}),
        (QUERY, {"query": "up", "timeout": "-1s"}),
        (QUERY, {"query": "up", "start": "1"}),
        (QUERY_RANGE, {"query": "up"}),
        (QUERY_RANGE, {**RANGE, "step": "0"}),
        (QUERY_RANGE, {**RANGE, "step": "1ms"}),
        (QUERY_RANGE, {**RANGE, "end": "1"}),
        (QUERY_RANGE, {**RANGE, "start": "1", "step": "1w"}),
        (SERIES, {}),
        (SERIES, {"match[]": "x" * 5_000}),
        (LABELS, {"limit": "0"}),
        (LABELS, {"limit": "10001"}),
        (LABELS, {"limit": "²"}),
        (LABELS, {"query": "up"}),
    ],
)
def test_what_is_too_much_or_no_argument_is_refused(question: str, given: dict[str, str]) -> None:
    with pytest.raises(ArgumentError) as refused:
        checked(question, list(given.items()), NOW_S, 20)
    assert refused.value.next_step


def test_an_argument_comes_once_and_matches_a_few_times() -> None:
    with pytest.raises(ArgumentError, match="twice"):
        checked(QUERY, [("query", "a"), ("query", "b")], NOW_S, 20)
    with pytest.raises(ArgumentError, match="match"):
        checked(SERIES, [("match[]", "a")] * (MOST_MATCHES + 5), NOW_S, 20)


def test_nobody_gets_more_time_than_there_is() -> None:
    asked = dict(checked(QUERY, [("query", "a"), ("timeout", "10h")], NOW_S, 20))
    assert asked["timeout"] == "20s"
    asked = dict(checked(QUERY, [("query", "a"), ("timeout", "2s")], NOW_S, 20))
    assert asked["timeout"] == "2s"


def test_arguments_of_the_address_and_of_the_form_are_one_list() -> None:
    given = pairs_of("a=1&b=%7B", b"a=2&c=", f"{FORM}; charset=utf-8")
    assert given == [("a", "1"), ("b", "{"), ("a", "2"), ("c", "")]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (b'{"query": "up"}', "application/json"),
        (b"a=%ff", FORM),
        (b"a=%00", FORM),
        (b"&".join([b"a=1"] * 100), FORM),
        (b"a=" + b"x" * 300_000, FORM),
    ],
)
def test_a_body_that_is_no_small_form_is_refused(form: bytes, kind: str) -> None:
    with pytest.raises(ArgumentError):
        pairs_of("", form, kind)


@pytest.mark.parametrize("name", ["", "a-b", "a/b", "../x", "1a", "a" * 129, "nöde", "a\n"])
def test_only_names_of_labels_become_a_path(name: str) -> None:
    with pytest.raises(ArgumentError):
        label_path(name)


def test_the_fence_names_organization_and_project() -> None:
    project = ProjectRef("proj_1", "p", "org_1", "o")
    assert fence(project) == [
        ("extra_label", "organization=org_1"),
        ("extra_label", "project=proj_1"),
    ]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_no_value_of_a_label_ends_its_quotes(value: str) -> None:
    written = line("m", {"a": value, "b": "x"}, 1, 2)
    assert written.endswith('",b="x"} 1 2')
    inside = written.removeprefix('m{a="').removesuffix('",b="x"} 1 2')
    assert "\n" not in inside
    plain = inside.replace("\\\\", "").replace('\\"', "").replace("\\n", "")
    assert "\\" not in plain
    assert '"' not in plain


@pytest.mark.parametrize(
    "sample",
    [
        Sample("hw_unknown", 1),
        Sample("hw_power_watts", float("nan"), {"hw_type": "gpu", "hw_id": "0"}),
        Sample("hw_power_watts", float("inf"), {"hw_type": "gpu", "hw_id": "0"}),
        Sample("hw_power_watts", 1, {"project": "proj_1"}),
        Sample("hw_power_watts", 1, {"hw_id": "a\nb"}),
        Sample("hw_power_watts", 1, {"hw_id": "a" * 200}),
    ],
)
def test_a_sample_that_is_no_measurement_of_ours_is_known_as_such(sample: Sample) -> None:
    assert not is_known(sample)
    assert is_known(Sample("hw_power_watts", 1, {"hw_type": "gpu", "hw_id": "0"}))


def test_without_a_store_it_is_said_what_to_install() -> None:
    store = SeriesStore("", "no package was found")
    assert not store.present
    with pytest.raises(SeriesAbsentError, match="no package was found") as absent:
        store.check_present()
    assert absent.value.status == 503
    assert "victoria-metrics" in absent.value.next_step


def test_buckets_hold_what_took_at_most_as_long() -> None:
    buckets = counted(counted(counted([], 0.1), 2.0), 99_999)
    assert len(buckets) == len(BOUNDS_S) + 1
    by_bound = dict(zip(BOUNDS_S, buckets, strict=False))
    assert by_bound[0.1] == 1
    assert by_bound[1.0] == 1
    assert by_bound[3.0] == 2
    assert by_bound[3_600.0] == 2
    assert buckets[-1] == 3
