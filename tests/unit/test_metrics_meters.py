"""What a process counts of itself, and how it is written."""

import httpx
from fastapi import FastAPI

from dflare.apps.own_metrics import own_lines, with_labels
from dflare.apps.request_meter import NAME, RequestMeter
from dflare.kit.loop_lag import LoopLag
from dflare.kit.meters import BOUNDS_S, MOST_SERIES, Meters, sample_line


def test_a_histogram_counts_what_each_bound_holds() -> None:
    meters = Meters()
    for seconds in (0.001, 0.02, 0.02, 99.0):
        meters.observe("t", (("route", "/a"),), seconds)
    lines = list(meters.lines())
    assert len(lines) == len(BOUNDS_S) + 3
    assert 't_bucket{le="0.005",route="/a"} 1' in lines
    assert 't_bucket{le="0.025",route="/a"} 3' in lines
    assert 't_bucket{le="10",route="/a"} 3' in lines
    assert 't_bucket{le="+Inf",route="/a"} 4' in lines
    assert 't_count{route="/a"} 4' in lines


def test_a_process_never_keeps_more_series_than_it_may() -> None:
    meters = Meters()
    for number in range(MOST_SERIES + 10):
        meters.observe("t", (("n", str(number)),), 1.0)
    assert sum(line.startswith("t_count") for line in meters.lines()) == MOST_SERIES


async def test_requests_are_told_by_route_method_and_status_and_never_by_path() -> None:
    app, meters = FastAPI(), Meters()
    app.add_middleware(RequestMeter, meters=meters)

    @app.get("/things/{thing}")
    async def thing(thing: str) -> str:
        return thing

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for name in ("a", "b", "c"):
            assert (await client.get(f"/things/{name}")).status_code == 200
        assert (await client.get("/secret-of-somebody")).status_code == 404
        assert (await client.post("/things/a")).status_code == 405
    counts = {line for line in meters.lines() if line.startswith(f"{NAME}_count")}
    of = f'{NAME}_count{{http_request_method="GET",http_response_status_code='
    assert f'{of}"200",http_route="/things/{{thing}}"}} 3' in counts
    assert f'{of}"404",http_route="unmatched"}} 1' in counts
    assert not any("secret" in line for line in counts)


def test_more_labels_stand_behind_a_samples_own() -> None:
    assert with_labels('a{b="c"} 1', ',process="x"') == 'a{b="c",process="x"} 1'
    assert with_labels("a{} 1", ',process="x"') == 'a{process="x"} 1'
    assert with_labels('a{route="/{x} y"} 1', ',p="x"') == 'a{route="/{x} y",p="x"} 1'
    assert sample_line("a", {"b": 'x"\\\n'}, 0.5) == 'a{b="x\\"\\\\\\n"} 0.5'


def test_the_lag_of_the_loop_is_told_in_seconds() -> None:
    told = list(own_lines(Meters(), LoopLag()))
    assert 'dflare_loop_lag_seconds{quantile="p99"} 0' in told
