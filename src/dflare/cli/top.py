"""`dflare node top` and `dflare cluster top`: what nodes do now, out of their measurements."""

import json
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dflare.cli.client import Api, segment
from dflare.cli.cluster_path import cluster_path
from dflare.cli.errors import ExitCode, Json
from dflare.cli.output import (
    Column,
    Output,
    OutputOption,
    ProjectOption,
    is_terminal,
    new_console,
    print_list,
    table,
)

EVERY_S = 5.0
WINDOW = "2m"
"""How old a measurement may be that is still shown."""
RATE_WINDOW = "2m"
_BY = "by (site,node,cluster)"

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help=f"Show it again every {EVERY_S:g} seconds.")
]


def _percent_cell(share: Any) -> str:
    return "-" if share is None else f"{100 * float(share):.0f} %"


def _bytes_cell(count: Any) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return "-"


def _rate_cell(bytes_a_second: Any) -> str:
    return "-" if bytes_a_second is None else f"{_bytes_cell(bytes_a_second)}/s"


def _whole_cell(value: Any) -> str:
    return "-" if value is None else f"{float(value):.0f}"


def _watts_cell(watts: Any) -> str:
    if watts is None:
        return "-"
    return f"{float(watts) / 1000:.1f} kW" if float(watts) >= 10_000 else f"{float(watts):.0f} W"


NODES = (
    Column("NODE", "node"),
    Column("CLUSTER", "cluster"),
    Column("GPUS", "gpus", _whole_cell),
    Column("GPU", "gpu", _percent_cell),
    Column("GPU MEMORY", "gpu_memory_bytes", _bytes_cell),
    Column("HOTTEST", "hottest_celsius", lambda c: "-" if c is None else f"{float(c):.0f} °C"),
    Column("POWER", "watts", _watts_cell),
    Column("CPU", "cpu", _percent_cell),
    Column("MEMORY", "memory_bytes", _bytes_cell),
    Column("NETWORK", "network_bytes_a_second", _rate_cell),
    Column("LINKS DOWN", "links_down", _whole_cell),
)


def _latest(name: str, where: str) -> str:
    return f"last_over_time({name}{{{where}}}[{WINDOW}])"


def _questions(where: str) -> dict[str, str]:
    """The queries of a table's columns; ``where`` are further matchers, each with a comma."""

    def gpu(name: str) -> str:
        return _latest(name, f'hw_type="gpu"{where}')

    any_cpu = where.removeprefix(",")
    idle = f'system_cpu_time_seconds_total{{cpu_mode="idle"{where}}}[{RATE_WINDOW}]'
    all_cpu = f"system_cpu_time_seconds_total{{{any_cpu}}}[{RATE_WINDOW}]"
    seen = _latest("hw_gpu_count", f'state="seen"{where}')
    board = _latest("hw_power_watts", f'hw_type="enclosure"{where}')
    io = f"hw_network_io_bytes_total{{{any_cpu}}}[{RATE_WINDOW}]"
    return {
        "gpus": f"max {_BY} ({seen})",
        "gpu": f"avg {_BY} ({gpu('hw_gpu_utilization_ratio')})",
        "gpu_memory_bytes": f"sum {_BY} ({gpu('hw_gpu_memory_usage_bytes')})",
        "hottest_celsius": f"max {_BY} ({gpu('hw_temperature_celsius')})",
        "watts": f"max {_BY} ({board})",
        "cpu": f"1 - sum {_BY} (rate({idle})) / sum {_BY} (rate({all_cpu}))",
        "memory_bytes": f"sum {_BY} ({_latest('system_memory_usage_bytes', any_cpu)})",
        "network_bytes_a_second": f"sum {_BY} (rate({io}))",
        "links_down": f"count {_BY} ({_latest('hw_network_up', any_cpu)} == 0)",
    }


def read_nodes(api: Api, base: str, where: str = "") -> list[Json]:
    """A row a node, by name; what was not measured is null."""
    rows: dict[tuple[str, str, str], Json] = {}
    for member, query in _questions(where).items():
        answer = api.get(f"{base}/query", query=query)
        for one in answer["data"]["result"]:
            labels: Json = one["metric"]
            key = (labels.get("site", ""), labels.get("node", ""), labels.get("cluster", ""))
            row = rows.get(key)
            if row is None:
                row = rows[key] = {"site": key[0], "node": key[1], "cluster": key[2] or None}
                row |= dict.fromkeys(column.member for column in NODES[2:])
            row[member] = float(one["value"][1])
    for row in rows.values():
        # Links are counted where any is down; where links are known at all, none is a number too.
        if row["links_down"] is None and row["network_bytes_a_second"] is not None:
            row["links_down"] = 0.0
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[1], key[2]))]


def total(rows: list[Json]) -> Json:
    """One row of all: sums, and averages over those that have a value."""

    def have(member: str) -> list[float]:
        return [float(row[member]) for row in rows if row[member] is not None]

    found: Json = {"site": "", "node": "total", "cluster": f"{len(rows)} nodes"}
    for column in NODES[2:]:
        numbers = have(column.member)
        if not numbers:
            found[column.member] = None
        elif column.member in ("gpu", "cpu"):
            found[column.member] = sum(numbers) / len(numbers)
        elif column.member == "hottest_celsius":
            found[column.member] = max(numbers)
        else:
            found[column.member] = sum(numbers)
    return found


def node_top(
    all_nodes: Annotated[
        bool, typer.Option("--all", "-A", help="Nodes of everybody and of nobody; operators only.")
    ] = False,
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what nodes do now: of the chosen project, or of everybody."""
    with Api.of_environment(project) as api:
        everywhere = all_nodes or not api.context.project
        base = "/metrics/api/v1" if everywhere else f"/projects/{api.project()}/metrics/api/v1"
        _show(lambda: read_nodes(api, base), output, watch=watch, totals=False)


def cluster_top(
    cluster: Annotated[str, typer.Argument(help="Cluster by name or id.")],
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what the nodes of a cluster do now, and all of them together."""
    with Api.of_environment(project) as api:
        found = api.get(cluster_path(api, cluster))
        base = f"/projects/{segment(found['project_id'])}/metrics/api/v1"
        where = f",cluster={json.dumps(found['name'])}"
        _show(lambda: read_nodes(api, base, where), output, watch=watch, totals=True)


def _show(read: Callable[[], list[Json]], output: Output, *, watch: bool, totals: bool) -> None:
    def rows() -> list[Json]:
        found = read()
        return [*found, total(found)] if totals and found and output is Output.TABLE else found

    if not watch:
        print_list(rows(), NODES, output, empty="Nothing was measured in the last two minutes.")
        return
    try:
        if output is Output.TABLE and is_terminal(sys.stdout):
            _live(rows)
        else:
            _repeat(rows, output)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _live(rows: Callable[[], list[Json]]) -> None:
    from rich.live import Live

    with Live(console=new_console(), auto_refresh=False, transient=False) as live:
        while True:
            live.update(table(rows(), NODES), refresh=True)
            time.sleep(EVERY_S)


def _repeat(rows: Callable[[], list[Json]], output: Output) -> None:
    while True:
        if output is Output.JSON:
            # One document a line, so that a reader can tell them apart.
            print(json.dumps(rows(), ensure_ascii=False))
        else:
            print_list(rows(), NODES, output)
            print("---" if output is Output.YAML else "")
        sys.stdout.flush()
        time.sleep(EVERY_S)
