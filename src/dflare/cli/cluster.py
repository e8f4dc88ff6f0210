"""`dflare cluster`: order, look at, and release clusters."""

from enum import StrEnum
from typing import Annotated

import typer

from dflare.cli import cluster_jobs, cluster_life
from dflare.cli.client import Api, segment
from dflare.cli.cluster_life import seconds_of
from dflare.cli.cluster_path import cluster_path
from dflare.cli.cluster_wishes import (
    ExcludeOption,
    PackOption,
    QueueOption,
    SameOption,
    SpreadOption,
    wishes_of,
)
from dflare.cli.errors import Json, UsageError
from dflare.cli.listing import show_of_projects
from dflare.cli.ordering import follow_order
from dflare.cli.output import (
    AGE,
    Column,
    Output,
    OutputOption,
    ProjectOption,
    WaitOption,
    WatchOption,
    YesOption,
    age_cell,
    columns,
    confirm,
    new_console,
    print_data,
    print_one,
    print_table,
    text_cell,
    time_cell,
)
from dflare.cli.top import cluster_top

app = typer.Typer(help="Clusters.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `cluster`."""
    cluster_life.register(app)
    cluster_jobs.register(app)
    app.command("top")(cluster_top)
    root.add_typer(app, name="cluster")


def _pools_cell(pools: list[Json] | None) -> str:
    return ", ".join(f"{pool['count']} x {pool['node_type']}" for pool in pools or [])


def _volumes_cell(volumes: list[Json] | None) -> str:
    return ", ".join(
        f"{one['volume']} at {one['mount']}{' (ro)' * one['read_only']}" for one in volumes or []
    )


LIST = columns("name", "state", Column("NODES", "pools", _pools_cell), "kind", "image", AGE, "id")
SHOW = (
    *columns("id", "name", "kind", "state", "reason"),
    Column("SINCE", "since", age_cell),
    *columns("site_id", "image"),
    Column("POOLS", "pools", _pools_cell),
    *columns("ssh_keys", "user_data", "placement", "operation_id", "created_by"),
    Column("VOLUMES", "volumes", _volumes_cell),
    Column("EXPIRES", "expires_at", time_cell),
    *columns("protected"),
    AGE,
)
MEMBERS = columns("name", "node_type", "pool", "slot", "allocation", "drained_by", "node_id")
CONDITIONS = columns("type", "status", "reason", "message")
SCHEDULER = (
    Column("SLURM", "state"),
    *columns("reason"),
    Column("PARTITIONS", "partitions", ", ".join),
    *columns("account"),
)


class Kind(StrEnum):
    """What a cluster comes with."""

    BARE = "bare"
    SLURM = "slurm"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name; unique in the project.")],
    kind: Annotated[
        Kind, typer.Option("--kind", "-k", help="Servers alone, or with a Slurm of their own.")
    ] = Kind.BARE,
    nodes: Annotated[
        int | None, typer.Option("--nodes", "--count", "-n", min=1, help="How many.")
    ] = None,
    node_type: Annotated[str | None, typer.Option("--type", "-t", help="Of which type.")] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="A pool as name=type:count; repeat it for more pools."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site; not needed where there is one.")] = None,
    image: Annotated[
        str, typer.Option(help="Image that the nodes boot; `default` is the site's first.")
    ] = "default",
    ssh_key: Annotated[
        list[str] | None, typer.Option(help="SSH key by name; repeat it for more.")
    ] = None,
    user_data: Annotated[str | None, typer.Option(help="User data by name.")] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            help="A volume and where jobs see it, as NAME:/mnt/data, or NAME:/mnt/data:ro to read "
            "only; repeat it for more."
        ),
    ] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", help="Release it after this time, such as 8h.")
    ] = None,
    protect: Annotated[bool, typer.Option("--protect", help="Refuse its deletion.")] = False,
    spread: SpreadOption = False,
    pack: PackOption = False,
    same: SameOption = None,
    exclude: ExcludeOption = None,
    queue: QueueOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would get and cost, or why not.")
    ] = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Order a cluster."""
    body = {
        "name": name,
        **({} if kind is Kind.BARE else {"kind": kind.value}),
        "site": site,
        "image": image,
        "pools": _pools(nodes, node_type, pool or []),
        "ssh_keys": ssh_key or [],
        "user_data": user_data,
        **({"volumes": [_volume(text) for text in volume]} if volume else {}),
        **({"ttl_s": seconds_of(ttl)} if ttl else {}),
        **({"protected": True} if protect else {}),
        **wishes_of(spread=spread, pack=pack, same=same, exclude=exclude, queue=queue),
    }
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/clusters"
        if dry_run:
            _print_quote(api.order("POST", path, body, dry_run=True), output)
            return
        operation = api.order("POST", path, body)
        follow_order(
            api,
            operation,
            output,
            wait=wait,
            done=f"Cluster {name} is ready; see it by `dflare cluster show {name}`.",
        )


@app.command("list")
def list_(
    all_projects: Annotated[
        bool, typer.Option("--all", "-A", help="Of every project that you may see.")
    ] = False,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones too.")] = False,
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List clusters."""
    show_of_projects(
        project,
        "/clusters",
        LIST,
        output,
        all_projects=all_projects,
        watch=watch,
        types="cluster.",
        empty="There is no cluster.",
        deleted=deleted or None,
    )


@app.command()
def show(
    cluster: Annotated[str, typer.Argument(help="Name or id.")],
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a cluster and its nodes."""
    with Api.of_environment(project) as api:
        item = api.get(cluster_path(api, cluster))
        print_one(item, SHOW, output)
        if output is Output.TABLE and item["nodes"]:
            print()
            print_table(item["nodes"], MEMBERS)
        if output is Output.TABLE and item.get("conditions"):
            print()
            print_table(item["conditions"], CONDITIONS)
        if output is Output.TABLE and item.get("scheduler"):
            print()
            _print_use(item)


@app.command()
def delete(
    cluster: Annotated[str, typer.Argument(help="Name or id.")],
    yes: YesOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Release a cluster: its disks are erased, its network closed, its usage ends."""
    with Api.of_environment(project) as api:
        found = api.get(cluster_path(api, cluster))
        name, count = found["name"], sum(pool["count"] for pool in found["pools"])
        confirm(
            f"Release cluster {name} ({_pools_cell(found['pools'])}, {found['state']}) and erase "
            f"the disks of its {count} nodes?",
            yes=yes,
        )
        # By id and entity tag, so that what is released is what was looked at and agreed to.
        path = f"/projects/{segment(found['project_id'])}/clusters/{segment(found['id'])}"
        operation = api.order("DELETE", path, etag=found.get("etag"))
        follow_order(api, operation, output, wait=wait, done=f"Cluster {name} is released.")


def _volume(text: str) -> Json:
    name, _, rest = text.partition(":")
    mount, _, mode = rest.partition(":")
    if not (name and mount.startswith("/") and mode in {"", "ro", "rw"}):
        raise UsageError(
            f"{text!r} is not a volume with its place",
            next_step="Write NAME:/mnt/data, or NAME:/mnt/data:ro to read only.",
        )
    return {"volume": name, "mount": mount, "read_only": mode == "ro"}


def _print_use(cluster: Json) -> None:
    """How a tenant uses the cluster's Slurm."""
    scheduler = cluster["scheduler"]
    partition, name = scheduler["partitions"][0], cluster["name"]
    print_one(scheduler, SCHEDULER, Output.TABLE)
    line = f"Submit a job: dflare cluster submit {name} job.sh -- --partition={partition} --nodes=1"
    new_console().print(line, soft_wrap=True, highlight=False, markup=False)


def _pools(nodes: int | None, node_type: str | None, pools: list[str]) -> list[Json]:
    wanted: list[Json] = []
    if nodes is not None and node_type:
        wanted.append({"name": "default", "node_type": node_type, "count": nodes})
    elif nodes is not None or node_type:
        raise UsageError(
            "--nodes and --type belong together",
            next_step="Say both, such as --nodes 16 --type h100-8; see `dflare node types`.",
        )
    for text in pools:
        name, _, rest = text.partition("=")
        kind, _, count = rest.rpartition(":")
        if not (name and kind and count.isdecimal() and int(count) > 0):
            raise UsageError(
                f"{text!r} is not a pool", next_step="Write name=type:count, as in a=h100-8:16."
            )
        wanted.append({"name": name, "node_type": kind, "count": int(count)})
    if not wanted:
        raise UsageError(
            "the order names no nodes",
            next_step="Add --nodes and --type, or --pool name=type:count.",
        )
    return wanted


def _print_quote(quote: Json, output: Output) -> None:
    if output is not Output.TABLE:
        print_data(quote, output)
        return
    console = new_console()
    lines = [
        ("nodes", f"{len(quote['nodes'])}: {text_cell(quote['nodes'])}"),
        ("placement", quote["placement"]),
        ("price", f"{quote['price_per_hour']} {quote['currency']} an hour"),
    ]
    for title, text in lines:
        console.print(f"{title:<9}  {text}", soft_wrap=True, highlight=False, markup=False)
    console.print("Nothing was ordered.", highlight=False)
