"""`dflare cluster scale|replace-node|extend|protect|unprotect|drain|undrain`: running clusters."""

import re
from enum import StrEnum
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.cluster_path import cluster_path
from dflare.cli.errors import Json, UsageError
from dflare.cli.ordering import follow_order
from dflare.cli.output import (
    Output,
    OutputOption,
    ProjectOption,
    WaitOption,
    YesOption,
    confirm,
    note,
    parse_time,
    print_data,
)
from dflare.cli.watch import watch_operation

ClusterArgument = Annotated[str, typer.Argument(help="Cluster by name or id.")]
NodeArgument = Annotated[str, typer.Argument(help="Node by name or id.")]

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


class Drain(StrEnum):
    """What is done where jobs run on nodes that leave."""

    WAIT = "wait"
    REFUSE = "refuse"
    NOW = "now"


def register(clusters: typer.Typer) -> None:
    """Add the commands to `dflare cluster`."""
    for name, command in (
        ("scale", scale),
        ("replace-node", replace_node),
        ("extend", extend),
        ("protect", protect),
        ("unprotect", unprotect),
        ("drain", drain),
        ("undrain", undrain),
    ):
        clusters.command(name)(command)


def seconds_of(text: str) -> int:
    """The seconds of a duration such as ``8h``, ``90m`` or ``1d12h``.

    Raises:
        UsageError: it is none.
    """
    parts = re.findall(r"(\d+)([dhms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(
            f"{text!r} is not a duration", next_step="Write it as 8h, 90m, 2d or 1d12h."
        )
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def scale(
    cluster: ClusterArgument,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=0, help="Nodes from now on.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="Of which pool; not needed where there is one.")
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", help="A node that leaves, by name; repeat it for more."),
    ] = None,
    drain: Annotated[
        Drain, typer.Option("--drain", help="What to do where jobs run on nodes that leave.")
    ] = Drain.WAIT,
    yes: YesOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a pool another number of nodes."""
    if count is None and not node:
        raise UsageError(
            "neither a count nor nodes are given",
            next_step="Say --count N, or --node NAME for each node that is to leave.",
        )
    with Api.of_environment(project) as api:
        found = api.get(cluster_path(api, cluster))
        one = _pool(found, pool)
        wanted = one["count"] - len(node or []) if count is None else count
        if wanted < one["count"]:
            leaving = ", ".join(node or []) or "those that came last"
            confirm(
                f"Release {one['count'] - wanted} of the {one['count']} nodes of pool "
                f"{one['name']} ({leaving}) and erase their disks?",
                yes=yes,
            )
        body: Json = {"drain": drain.value, "nodes": node or []}
        if count is not None:
            body["count"] = count
        path = f"{_of(found)}/pools/{segment(one['id'])}"
        follow_order(
            api,
            api.order("PATCH", path, body, etag=found.get("etag")),
            output,
            wait=wait,
            done=f"Pool {one['name']} of cluster {found['name']} has {wanted} nodes.",
        )


def replace_node(
    cluster: ClusterArgument,
    node: NodeArgument,
    yes: YesOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put another node in the place of one, which is released afterwards."""
    with Api.of_environment(project) as api:
        found = api.get(cluster_path(api, cluster))
        confirm(
            f"Replace node {node} of cluster {found['name']} and erase its disks?",
            yes=yes,
        )
        path = f"{_of(found)}/nodes/{segment(node)}/replace"
        operation = api.order("POST", path, etag=found.get("etag"))
        if wait:
            operation = watch_operation(api, operation["id"], operation)
            if operation["state"] == "succeeded":
                # The release of the old node is an operation of its own, which the cluster names.
                after = api.get(_of(found))["operation_id"]
                operation = api.get(f"/operations/{segment(after)}")
        done = f"Node {node} of cluster {found['name']} is replaced."
        follow_order(api, operation, output, wait=wait, done=done)


def extend(
    cluster: ClusterArgument,
    ttl: Annotated[str, typer.Option("--ttl", help="From now, such as 8h; `never` for no end.")],
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move a cluster's end: when its time is over it is released."""
    item = _change(cluster, {"ttl_s": None if ttl == "never" else seconds_of(ttl)}, project, output)
    if output is Output.TABLE:
        end = item["expires_at"]
        at = f"ends at {parse_time(end):%Y-%m-%d %H:%M:%S} UTC" if end else "has no end"
        note(f"Cluster {item['name']} {at}.")


def protect(
    cluster: ClusterArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Protect a cluster against deletion, by people and at its end."""
    item = _change(cluster, {"protected": True}, project, output)
    if output is Output.TABLE:
        note(f"Cluster {item['name']} is protected.")


def unprotect(
    cluster: ClusterArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a cluster be deleted again."""
    item = _change(cluster, {"protected": False}, project, output)
    if output is Output.TABLE:
        note(f"Cluster {item['name']} is not protected any more.")


def drain(
    cluster: ClusterArgument,
    node: NodeArgument,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why.")],
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a node take no new work; only who drained it ends that."""
    _on_node(cluster, node, "drain", {"reason": reason}, project, output)
    if output is Output.TABLE:
        note(f"Node {node} is drained.")


def undrain(
    cluster: ClusterArgument,
    node: NodeArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a node that you drained take work again."""
    _on_node(cluster, node, "undrain", None, project, output)
    if output is Output.TABLE:
        note(f"Node {node} takes work again.")


def _of(found: Json) -> str:
    """The path of a cluster that was looked at, by its id: its name may be another's later."""
    return f"/projects/{segment(found['project_id'])}/clusters/{segment(found['id'])}"


def _pool(found: Json, name: str | None) -> Json:
    pools = found["pools"]
    if name is None and len(pools) == 1:
        return pools[0]
    for pool in pools:
        if name in (pool["name"], pool["id"]):
            return pool
    names = ", ".join(pool["name"] for pool in pools)
    raise UsageError(
        f"cluster {found['name']} has no pool {name}" if name else "no pool is named",
        next_step=f"Say --pool with one of: {names}.",
    )


def _change(cluster: str, body: Json, project: str | None, output: Output) -> Json:
    with Api.of_environment(project) as api:
        item = api.change("PATCH", cluster_path(api, cluster), body)
    if output is not Output.TABLE:
        print_data(item, output)
    return item


def _on_node(
    cluster: str, node: str, verb: str, body: Json | None, project: str | None, output: Output
) -> None:
    with Api.of_environment(project) as api:
        path = f"{cluster_path(api, cluster)}/nodes/{segment(node)}/{verb}"
        item = api.change("POST", path, body)
    if output is not Output.TABLE:
        print_data(item, output)
