"""Which questions of Prometheus' API may be asked, and with which arguments. Pure.

A question is put together anew out of what is on these lists, so that nothing that a client sends
reaches the store unlooked at. What the store itself would take beyond Prometheus (``extra_label``,
``extra_filters[]``, ``db``, ``nocache`` …) is on no list. Source: Prometheus, "HTTP API";
VictoriaMetrics, "Prometheus querying API enhancements".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from urllib.parse import parse_qsl

from dflare.services.auth.contract import ProjectRef
from dflare.services.metrics.errors import ArgumentError

LONGEST_QUERY = 16_384
LONGEST_MATCH = 4_096
MOST_MATCHES = 16
MOST_ARGUMENTS = 64
LONGEST_FORM = 256 * 1024
MOST_POINTS = 11_000
"""Points of one series in one answer, as Prometheus has it."""
LONGEST_RANGE_S = 400 * 86_400.0
MOST_FOUND = 10_000
"""Series, label names or label values in one answer."""

QUERY, QUERY_RANGE, SERIES, LABELS = "query", "query_range", "series", "labels"

Pairs = Sequence[tuple[str, str]]

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{1,9})?([eE][+]?\d{1,2})?")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def pairs_of(query_string: str, form: bytes, content_type: str) -> list[tuple[str, str]]:
    """The arguments of a request, of its query string and of its form.

    Raises:
        ArgumentError: the body is no form, or there is too much of it.
    """
    if form and content_type.partition(";")[0].strip().lower() != _FORM:
        raise ArgumentError(
            f"the body is not {_FORM}", next_step="Send arguments as a form, or in the address."
        )
    if len(form) > LONGEST_FORM or len(query_string) > LONGEST_FORM:
        raise ArgumentError("the arguments are too long", next_step="Shorten the query.")
    try:
        text = form.decode()
        given = [
            pair
            for source in (query_string, text)
            for pair in parse_qsl(
                source, keep_blank_values=True, max_num_fields=MOST_ARGUMENTS, errors="strict"
            )
        ]
    except ValueError as error:
        raise ArgumentError(
            "the arguments cannot be read", next_step="Send them encoded, in UTF-8, 64 at most."
        ) from error
    if any("\x00" in part for pair in given for part in pair):
        raise ArgumentError("an argument holds a zero byte", next_step="Leave it out.")
    return given


_FORM = "application/x-www-form-urlencoded"


def label_path(name: str) -> str:
    """The store's path for the values of a label.

    Raises:
        ArgumentError: it is no name of a label.
    """
    if not _LABEL.fullmatch(name):
        raise ArgumentError(
            f"{name[:64]!r} is no name of a label",
            next_step="Names have letters, digits and underscores; /labels lists them.",
        )
    return f"/api/v1/label/{name}/values"


def fence(project: ProjectRef) -> list[tuple[str, str]]:
    """The store's own arguments that keep every selector of a question within a project. Each is
    joined by AND to whatever the question selects."""
    return [
        ("extra_label", f"organization={project.organization_id}"),
        ("extra_label", f"project={project.id}"),
    ]


def checked(question: str, given: Pairs, now_s: float, timeout_s: float) -> list[tuple[str, str]]:
    """The arguments to ask ``question`` with: those given, where each of them is allowed.

    Raises:
        ArgumentError: names the argument at fault and which are taken.
    """
    rules = _RULES[question]
    seen: set[str] = set()
    asked: list[tuple[str, str]] = []
    for name, value in given:
        rule = rules.get(name)
        if rule is None:
            raise ArgumentError(
                f"the argument {name[:64]!r} is not taken",
                next_step=f"Taken are: {', '.join(rules)}.",
            )
        if name in seen and name != "match[]":
            raise ArgumentError(f"{name} came twice", next_step=f"Give {name} once.")
        seen.add(name)
        asked.append((name, rule(name, value)))
    _check_together(question, dict(asked), len(asked), seen, now_s)
    if question in (QUERY, QUERY_RANGE):
        asked = [(name, value) for name, value in asked if name != "timeout"]
        wished = _seconds(dict(given).get("timeout", "")) or timeout_s
        asked.append(("timeout", f"{min(wished, timeout_s):g}s"))
    elif "limit" not in seen:
        asked.append(("limit", str(MOST_FOUND)))
    return asked


def _check_together(
    question: str, asked: Mapping[str, str], count: int, seen: set[str], now_s: float
) -> None:
    needed = {QUERY: ("query",), QUERY_RANGE: ("query", "start", "end", "step")}.get(question, ())
    if missing := [name for name in needed if name not in seen]:
        raise ArgumentError(f"{', '.join(missing)} must be given", next_step="Add it.")
    if question == SERIES and "match[]" not in seen:
        raise ArgumentError("match[] must be given", next_step="Name series, as {node='a'}.")
    if count > MOST_MATCHES + len(_RULES[question]):
        raise ArgumentError(
            f"more than {MOST_MATCHES} of match[] came", next_step="Join some of them by a regex."
        )
    if "start" not in seen and "end" not in seen:
        return
    end_s = _instant(asked["end"]) if "end" in seen else now_s
    span_s = end_s - (_instant(asked["start"]) if "start" in seen else end_s)
    if span_s < 0 or span_s > LONGEST_RANGE_S:
        raise ArgumentError(
            "the time asked for ends before it starts, or is longer than 400 days",
            next_step="Give start and end as seconds since 1970 or as RFC 3339.",
        )
    if question == QUERY_RANGE:
        step_s = _seconds(asked["step"])
        if step_s <= 0 or span_s / step_s > MOST_POINTS:
            raise ArgumentError(
                f"an answer has at most {MOST_POINTS} points a series",
                next_step="Ask for a longer step or a shorter time.",
            )


def _query(name: str, value: str) -> str:
    if not value.strip() or len(value.encode()) > LONGEST_QUERY:
        raise ArgumentError(
            f"{name} is empty or longer than {LONGEST_QUERY} bytes", next_step="Shorten it."
        )
    return value


def _match(name: str, value: str) -> str:
    if not value.strip() or len(value.encode()) > LONGEST_MATCH:
        raise ArgumentError(
            f"{name} is empty or longer than {LONGEST_MATCH} bytes", next_step="Shorten it."
        )
    return value


def _time(name: str, value: str) -> str:
    try:
        return f"{_instant(value):.3f}"
    except ValueError as error:
        raise ArgumentError(
            f"{name} is no time", next_step="Give seconds since 1970 or RFC 3339."
        ) from error


def _step(name: str, value: str) -> str:
    if _seconds(value) <= 0:
        raise ArgumentError(
            f"{name} is no length of time", next_step="Give seconds, or as in 30s, 5m, 1h."
        )
    return value


def _limit(name: str, value: str) -> str:
    if not value.isascii() or not value.isdigit() or not 0 < int(value[:9]) <= MOST_FOUND:
        raise ArgumentError(f"{name} is not from 1 to {MOST_FOUND}", next_step="Give one that is.")
    return str(int(value[:9]))


def _instant(value: str) -> float:
    if _NUMBER.fullmatch(value):
        return float(value)
    at = datetime.fromisoformat(value)
    if at.tzinfo is None:
        raise ValueError("no zone")
    return at.timestamp()


def _seconds(value: str) -> float:
    """A length of time in seconds; 0 where it is none."""
    if _NUMBER.fullmatch(value):
        return float(value)
    found = _DURATION.fullmatch(value)
    return float(found[1]) * _SECONDS[found[2]] if found else 0.0


_Rule = Callable[[str, str], str]
_FOUND: Mapping[str, _Rule] = {"match[]": _match, "start": _time, "end": _time, "limit": _limit}
_RULES: Mapping[str, Mapping[str, _Rule]] = {
    QUERY: {"query": _query, "time": _time, "step": _step, "timeout": _step},
    QUERY_RANGE: {
        "query": _query,
        "start": _time,
        "end": _time,
        "step": _step,
        "timeout": _step,
    },
    SERIES: _FOUND,
    LABELS: _FOUND,
}
