"""A hundred ways to ask for what another tenant's nodes measured, against a real VictoriaMetrics.

Everything foreign has a value of a million or more, or less than minus a million, and there are
hundreds of foreign series; the tenant's own values and counts stay below a hundred. So a sum, an
average, an extreme or a count that anything foreign went into shows by its size, and a list by the
words in it.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from dflare.kit.clock import SystemClock
from dflare.kit.series import SeriesStore
from dflare.services.auth.contract import Principal, ProjectRef, Role, RoleBinding
from dflare.services.metrics.domain import line
from dflare.services.metrics.domain_query import fence
from dflare.services.metrics.service import QueryService
from dflare.services.metrics.settings import MetricsSettings
from metrics_routes import query_application
from tenancy import Tenancy, client

LARGEST_OWN = 100.0
OWN = ProjectRef("proj_own", "training", "org_own", "own")
RIVAL = ProjectRef("proj_rival", "training", "org_rival", "rival")


def _caller(name: str, *bindings: RoleBinding) -> Principal:
    return Principal(subject=f"user_{name}", kind="user", name=name, bindings=bindings)


OPERATOR = _caller("operator", RoleBinding(Role.OPERATOR))
MEMBER = _caller("own", RoleBinding(Role.MEMBER, project_id=OWN.id))
STRANGER = _caller("rival", RoleBinding(Role.MEMBER, project_id=RIVAL.id))
FOREIGN = "kraken"
"""In the name of every node that is not the tenant's."""
THERE = f"/projects/{OWN.id}/metrics/api/v1"
EVERYWHERE = "/metrics/api/v1"

GPU = "hw_gpu_utilization_ratio"

QUERIES = [
    GPU,
    f'{GPU}{{project="{RIVAL.id}"}}',
    f'{GPU}{{project=~".*"}}',
    f'{GPU}{{project=~"proj_.*"}}',
    f'{GPU}{{project!="{OWN.id}"}}',
    f'{GPU}{{project!~"{OWN.id}"}}',
    f'{GPU}{{project=""}}',
    f'{GPU}{{project=~"|.*"}}',
    f'{GPU}{{project="{OWN.id}" or project="{RIVAL.id}"}}',
    f'{GPU}{{node="n0" or project="{RIVAL.id}"}}',
    f'{GPU}{{project="{RIVAL.id}",organization="{RIVAL.organization_id}"}}',
    f'{GPU}{{organization="{RIVAL.organization_id}"}}',
    f'{GPU}{{organization=""}}',
    '{__name__=~".+"}',
    '{__name__!=""}',
    f'{{project="{RIVAL.id}"}}',
    f'{{"project"="{RIVAL.id}"}}',
    '{node=~"kraken.*"}',
    f"sum({GPU})",
    f"sum({GPU}) by (project)",
    f"sum({GPU}) without (project, organization)",
    f"count({GPU})",
    'count({__name__=~".+"}) by (node)',
    f"max({GPU})",
    f"min({GPU})",
    f"avg({GPU})",
    f"quantile(0.99, {GPU})",
    f"topk(100, {GPU})",
    f"bottomk(100, {GPU})",
    f"limitk(100, {GPU})",
    f"outliersk(10, {GPU})",
    f'count_values("node", {GPU})',
    f'{GPU} or {GPU}{{project="{RIVAL.id}"}}',
    f'{GPU}{{project="{RIVAL.id}"}} or vector(1)',
    f'vector(1) unless {GPU}{{project="{RIVAL.id}"}}',
    f"{GPU} * on() group_left(node) count by (node) ({GPU})",
    f"{GPU} + ignoring(project, organization, node) group_right {GPU}",
    f'union({GPU}, {GPU}{{project="{RIVAL.id}"}})',
    f'({GPU}, {GPU}{{project="{RIVAL.id}"}})',
    f'WITH (f = {{project="{RIVAL.id}"}}) {GPU}{{f}}',
    f'WITH (project="{RIVAL.id}", a(q) = sum(q)) a({GPU}{{project=project}})',
    f'WITH (x = {{node="n0" or node=~"kraken.*"}}) count({GPU}{{x}})',
    f'label_set({GPU}, "project", "{RIVAL.id}")',
    f'label_replace({GPU}, "project", "{RIVAL.id}", "", "")',
    f'label_del({GPU}, "project", "organization")',
    f'label_copy({GPU}, "node", "project")',
    f'alias({GPU}{{project="{RIVAL.id}"}}, "mine")',
    f"sum_over_time({GPU}[1h])",
    f'max_over_time({GPU}{{project="{RIVAL.id}"}}[1h])',
    f"max_over_time(max({GPU})[30m:1m])",
    f"sum(rollup({GPU}[30m]))",
    f"{GPU} offset 1m",
    f"{GPU}[10m] offset 1m",
    f"{GPU} @ end()",
    f'last_over_time({GPU}{{node!~"n.*"}}[1h])',
    f'present_over_time({GPU}{{project="{RIVAL.id}"}}[1h])',
    f"histogram_quantile(0.9, sum(rate({GPU}[5m])) by (le))",
    'group by (node) ({__name__=~"hw_.*"})',
    f"changes({GPU}[1h])",
    f'sort_desc({GPU}{{project=~"(?i)PROJ_.*"}})',
    f'{GPU}{{project="{RIVAL.id}\\"}} or {GPU}{{node=\\"x"}}',
    f"{GPU}{{project='{RIVAL.id}'}} # ',project='{OWN.id}'}}",
    f"{GPU} # \n or {{node=~'kraken.*'}}",
    f'sum({GPU}) keep_metric_names or count({{organization!=""}})',
    f"any({GPU})",
    f"distinct({GPU})",
    f"share({GPU})",
    f'absent({GPU}{{node="kraken-0"}})',
]

FINDS: list[tuple[str, list[tuple[str, str]]]] = [
    ("series", [("match[]", '{__name__=~".+"}')]),
    ("series", [("match[]", f'{{project="{RIVAL.id}"}}')]),
    ("series", [("match[]", GPU), ("match[]", '{node=~"kraken.*"}')]),
    ("series", [("match[]", '{node="n0" or node=~"kraken.*"}')]),
    ("series", [("match[]", '{organization!=""}'), ("start", "1"), ("limit", "10000")]),
    ("labels", []),
    ("labels", [("match[]", '{node=~"kraken.*"}')]),
    ("labels", [("match[]", f'{{project="{RIVAL.id}"}}')]),
    ("label/node/values", []),
    ("label/project/values", []),
    ("label/organization/values", []),
    ("label/__name__/values", []),
    ("label/node/values", [("match[]", '{__name__=~".+"}')]),
    ("label/node/values", [("match[]", f'{{project="{RIVAL.id}"}}')]),
    ("label/node/values", [("match[]", GPU), ("match[]", f'{{project="{RIVAL.id}"}}')]),
    ("label/cluster/values", [("start", "1")]),
]

SMUGGLED: list[list[tuple[str, str]]] = [
    [("extra_label", f"project={RIVAL.id}")],
    [("extra_label", "")],
    [("extra_filters[]", f'{{project="{RIVAL.id}"}}')],
    [("extra_filters", f'{{project="{RIVAL.id}"}}')],
    [("extra_filters%5B%5D", f'{{project="{RIVAL.id}"}}')],
    [("extra_filters[]", "{}"), ("extra_label", f"organization={RIVAL.organization_id}")],
    [("Extra_Label", f"project={RIVAL.id}")],
    [("extra_label ", f"project={RIVAL.id}")],
    [("\textra_label", f"project={RIVAL.id}")],
    [("extra_label\x00", f"project={RIVAL.id}")],
    [("query", f'{GPU}{{project="{RIVAL.id}"}}')],
    [("nocache", "1")],
    [("db", "blue")],
    [("trace", "1")],
    [("reduce_mem_usage", "1")],
    [("max_lookback", "1000h")],
    [("authKey", "x")],
    [("format", "__name__")],
    [("_", f"&extra_label=project={RIVAL.id}")],
    [("round_digits", "1")],
]

PATHS = [
    "export",
    "admin/tsdb/delete_series",
    "status/tsdb",
    "status/active_queries",
    "../../../../metrics",
    "query/../export",
    "query%2F..%2Fexport",
    "label/../../export",
    "label/node%2F..%2F..%2Fseries/values",
    "label/..%2f..%2fexport%3f/values",
    "federate",
    "import/prometheus",
]


@dataclass(frozen=True)
class Attempt:
    """One request: ``in_form`` sends its arguments as a form."""

    path: str
    arguments: tuple[tuple[str, str], ...]
    in_form: bool
    refused: bool = False

    def __str__(self) -> str:
        said = urlencode(self.arguments)[:60]
        return f"{'POST' if self.in_form else 'GET'} {self.path} {said}"


def attempts() -> list[Attempt]:
    """Every way, in the address and in a form by turns."""
    found: list[Attempt] = []
    for number, query in enumerate(QUERIES):
        if number % 3 and "[10m]" not in query:
            span = (("start", "now-60"), ("end", "now"), ("step", "15s"))
            found.append(Attempt("query_range", (("query", query), *span), bool(number % 2)))
        else:
            found.append(Attempt("query", (("query", query),), bool(number % 2)))
    for path, arguments in FINDS:
        found.append(Attempt(path, tuple(arguments), path in ("series", "labels")))
    for number, extra in enumerate(SMUGGLED):
        asked = (("query", f"count({GPU}) by (node)"), *extra)
        found.append(Attempt("query", asked, bool(number % 2), refused=True))
        found.append(Attempt("query", asked, not number % 2, refused=True))
    found += [Attempt(path, (("query", GPU),), in_form=False, refused=True) for path in PATHS]
    return found


ATTEMPTS = attempts()
TIMES = {
    "now": lambda _: f"{time.time():.3f}",
    "now-60": lambda _: f"{time.time() - 60:.3f}",
}


async def counted(store: SeriesStore, query: list[tuple[str, str]]) -> str:
    """The one value of an answer; empty where nothing is found."""
    answer = json.loads((await store.ask("/api/v1/query", query, 10)).content)
    result = answer["data"]["result"]
    return result[0]["value"][1] if result else ""


@pytest.fixture(scope="module")
async def store(victoria_url: str) -> AsyncIterator[SeriesStore]:
    """Series of the tenant, of another one, and of nobody."""
    store = SeriesStore(victoria_url)
    now_ms = int(time.time() * 1000)
    red = {"project": OWN.id, "organization": OWN.organization_id, "cluster": "train"}
    blue = {"project": RIVAL.id, "organization": RIVAL.organization_id, "cluster": f"{FOREIGN}-c"}
    lines: list[str] = []
    for age_s in range(0, 300, 15):
        at = now_ms - age_s * 1000
        for number in range(4):
            labels = {"node": f"n{number}", "site": "s", "hw_id": "0", **red}
            lines.append(line(GPU, labels, 0.5 + number, at))
        for number in range(300):
            owner = blue if number % 3 else {}
            labels = {"node": f"{FOREIGN}-{number}", "site": "s", "hw_id": "0", **owner}
            lines.append(line(GPU, labels, (1e6 + number) * (-1 if number % 2 else 1), at))
    await store.write(lines)
    fenced = [("query", f"count({GPU})"), *fence(OWN)]
    every = [("query", f'count({GPU}{{node=~"{FOREIGN}.*"}})')]
    for query, wanted in ((fenced, "4"), (every, "300")):
        async with asyncio.timeout(60):
            while True:
                if await counted(store, query) == wanted:
                    break
                await asyncio.sleep(0.1)
    yield store
    await store.close()


@pytest.fixture(scope="module")
async def callers(store: SeriesStore) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Clients of the query API by subject."""
    known = {one.subject: one for one in (MEMBER, OPERATOR, STRANGER)}
    tenancy = Tenancy(known, (OWN, RIVAL))
    queries = QueryService(store, SystemClock(), tenancy, MetricsSettings())
    app = query_application(tenancy, queries)
    clients = {one.subject: client(app, one) for one in known.values()}
    yield clients
    for one in clients.values():
        await one.aclose()


async def send(caller: httpx.AsyncClient, base: str, attempt: Attempt) -> httpx.Response:
    """The answer to one attempt, its path as it stands."""
    encoded = urlencode([(name, TIMES.get(value, str)(value)) for name, value in attempt.arguments])
    url = f"{caller.base_url}{base.lstrip('/')}/{attempt.path}"
    form = {"content-type": "application/x-www-form-urlencoded"}
    if attempt.in_form:
        return await caller.post(httpx.URL(url), content=encoded, headers=form)
    return await caller.get(httpx.URL(f"{url}?{encoded}"))


def numbers_in(document: Any) -> list[float]:
    """The values of an answer, their times left out."""
    found: list[float] = []
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict):
        return []
    for one in data["result"]:
        pairs = one["values"] if "values" in one else [one["value"]]
        found += [float(value) for _, value in pairs]
    return found


def foreign_in(answer: httpx.Response, attempt: Attempt) -> list[str]:
    """What an answer tells of anything foreign."""
    said = " ".join(value for _, value in attempt.arguments)
    told = [word for word in (f"{FOREIGN}-", RIVAL.id) if word in answer.text and word not in said]
    told += re.findall(rf"{FOREIGN}-\d+", "" if f"{FOREIGN}-0" in said else answer.text)
    if answer.status_code == 200:
        told += [str(n) for n in numbers_in(answer.json()) if not abs(n) < LARGEST_OWN]
    return told


def test_there_are_a_hundred_attempts_at_least() -> None:
    assert len(ATTEMPTS) >= 100
    assert len({str(attempt) for attempt in ATTEMPTS}) > 90


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=str)
async def test_nothing_foreign_comes_back(
    callers: dict[str, httpx.AsyncClient], attempt: Attempt
) -> None:
    answer = await send(callers[MEMBER.subject], THERE, attempt)
    assert answer.status_code < 500, answer.text
    assert foreign_in(answer, attempt) == []
    if attempt.refused:
        assert answer.status_code in (404, 405, 422), answer.text


async def test_the_attempts_would_get_it_where_nothing_fenced_them_in(
    callers: dict[str, httpx.AsyncClient],
) -> None:
    told = 0
    for attempt in ATTEMPTS:
        if not attempt.refused:
            answer = await send(callers[OPERATOR.subject], EVERYWHERE, attempt)
            told += bool(foreign_in(answer, attempt))
    assert told > 50


async def test_a_tenant_sees_its_own_series(callers: dict[str, httpx.AsyncClient]) -> None:
    attempt = Attempt("query", (("query", f"sum({GPU}) by (node)"),), in_form=True)
    answer = (await send(callers[MEMBER.subject], THERE, attempt)).json()
    assert {one["metric"]["node"] for one in answer["data"]["result"]} == {"n0", "n1", "n2", "n3"}


@pytest.mark.parametrize("caller", [MEMBER, STRANGER])
async def test_everybodys_series_are_asked_for_by_operators_alone(
    callers: dict[str, httpx.AsyncClient], caller: Any
) -> None:
    attempt = Attempt("query", (("query", GPU),), in_form=False)
    assert (await send(callers[caller.subject], EVERYWHERE, attempt)).status_code == 404


async def test_a_project_of_others_does_not_exist(callers: dict[str, httpx.AsyncClient]) -> None:
    attempt = Attempt("query", (("query", GPU),), in_form=False)
    assert (await send(callers[STRANGER.subject], THERE, attempt)).status_code == 404
