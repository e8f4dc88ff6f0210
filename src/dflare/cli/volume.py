"""`dflare volume`: order, share, resize and release volumes."""

from typing import Annotated, Any

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError, ExitCode, Json
from dflare.cli.listing import show_list, show_of_projects
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
    note,
    print_one,
    print_table,
)

app = typer.Typer(help="Shared volumes.", no_args_is_help=True)

snapshots = typer.Typer(help="What volumes held at a moment.", no_args_is_help=True)

SnapshotArgument = Annotated[str, typer.Argument(help="Snapshot; its name is unique in a volume.")]
VolumeArgument = Annotated[str, typer.Argument(help="Name or id.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would get and cost, or why not.")
]
ClusterArgument = Annotated[str, typer.Argument(help="Cluster by name or id.")]


def register(root: typer.Typer) -> None:
    """Add `volume`."""
    root.add_typer(app, name="volume")
    app.add_typer(snapshots, name="snapshot")


def _size_cell(size_gib: Any) -> str:
    return f"{size_gib} GiB"


def _used_cell(used_bytes: Any) -> str:
    return "-" if used_bytes is None else f"{int(used_bytes) / 2**30:.1f} GiB"


def _access_cell(access: list[Json] | None) -> str:
    return ", ".join(f"{one['cluster'] or one['cluster_id']} {one['mode']}" for one in access or [])


LIST = (
    *columns("name", "state"),
    Column("SIZE", "size_gib", _size_cell),
    Column("USED", "used_bytes", _used_cell),
    Column("QUOTA", "quota"),
    Column("CLUSTERS", "access", _access_cell),
    AGE,
    *columns("id"),
)
SHOW = (
    *columns("id", "name", "state", "reason", "trouble"),
    Column("SINCE", "since", age_cell),
    *columns("site_id"),
    Column("SIZE", "size_gib", _size_cell),
    Column("USED", "used_bytes", _used_cell),
    Column("SCANNED", "scanned_at", age_cell),
    *columns("quota", "over_quota", "no_snapshots", "operation_id", "created_by"),
    AGE,
)
QUOTE = (
    *columns("name", "site"),
    Column("SIZE", "size_gib", _size_cell),
    *columns("price_per_hour", "currency"),
    Column("OTHER VOLUMES", "used_gib", _size_cell),
    Column("ALLOWED", "limit_gib", _size_cell),
)
SNAPSHOT = (*columns("name", "state", "path"), Column("TAKEN", "taken_at", age_cell))
ACCESS = columns("cluster", "mode", "observed", "cluster_id")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name; unique in the project.")],
    size: Annotated[int, typer.Option("--size", "-s", min=1, help="Size in GiB.")],
    site: Annotated[str | None, typer.Option(help="Site; not needed where there is one.")] = None,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Order a volume."""
    with Api.of_environment(project) as api:
        body = {"name": name, "size_gib": size, "site": site}
        path = f"/projects/{api.project()}/volumes"
        if dry_run:
            print_one(api.order("POST", path, body, dry_run=True), QUOTE, output)
            return
        operation = api.order("POST", path, body)
        done = f"Volume {name} is ready; share it by `dflare volume attach {name} CLUSTER`."
        follow_order(api, operation, output, wait=wait, done=done)


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
    """List volumes."""
    show_of_projects(
        project,
        "/volumes",
        LIST,
        output,
        all_projects=all_projects,
        watch=watch,
        types="volume.",
        empty="There is no volume.",
        deleted=deleted or None,
    )


@app.command()
def show(
    volume: VolumeArgument, project: ProjectOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Show a volume, what it holds and who has it."""
    with Api.of_environment(project) as api:
        item = api.get(_path(api, volume))
        print_one(item, SHOW, output)
        if output is Output.TABLE and item["access"]:
            print()
            print_table(item["access"], ACCESS)
        if output is Output.TABLE and item["over_quota"]:
            note("It holds more than its size; remove content or resize it.")


@app.command()
def resize(
    volume: VolumeArgument,
    size: Annotated[int, typer.Option("--size", "-s", min=1, help="New size in GiB.")],
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a volume another size; its content stays."""
    with Api.of_environment(project) as api:
        path, body = _path(api, volume), {"size_gib": size}
        if dry_run:
            print_one(api.order("PATCH", path, body, dry_run=True), QUOTE, output)
            return
        operation = api.order("PATCH", path, body)
        follow_order(api, operation, output, wait=wait, done=f"{volume} has {size} GiB.")


@app.command()
def attach(
    volume: VolumeArgument,
    cluster: ClusterArgument,
    read_only: Annotated[bool, typer.Option("--read-only", help="It may read alone.")] = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a cluster of the same project and site use a volume."""
    with Api.of_environment(project) as api:
        path = f"{_path(api, volume)}/access/{segment(cluster)}"
        item = api.change("PUT", path, {"mode": "ro" if read_only else "rw"})
        _print_access(item, output)


@app.command()
def detach(
    volume: VolumeArgument,
    cluster: ClusterArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take a volume away from a cluster; its content stays."""
    with Api.of_environment(project) as api:
        item = api.change("DELETE", f"{_path(api, volume)}/access/{segment(cluster)}")
        _print_access(item, output)


@app.command()
def delete(
    volume: VolumeArgument,
    yes: YesOption = False,
    wait: WaitOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Release a volume: its content is removed for good, its usage ends."""
    with Api.of_environment(project) as api:
        found = api.get(_path(api, volume))
        name = found["name"]
        confirm(
            f"Release volume {name} ({_size_cell(found['size_gib'])}, {found['state']}) and remove "
            f"its content, {_used_cell(found['used_bytes'])} by the last look, for good?",
            yes=yes,
        )
        # By id and entity tag, so that what is released is what was looked at and agreed to.
        path = f"/projects/{segment(found['project_id'])}/volumes/{segment(found['id'])}"
        operation = api.order("DELETE", path, etag=found.get("etag"))
        follow_order(api, operation, output, wait=wait, done=f"Volume {name} is released.")


@snapshots.command("create")
def create_snapshot(
    volume: VolumeArgument,
    name: SnapshotArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep a volume as it is now; hosts read it at its path below the mount."""
    with Api.of_environment(project) as api:
        item = api.change("PUT", f"{_path(api, volume)}/snapshots/{segment(name)}")
        print_one(item, SNAPSHOT, output)


@snapshots.command("list")
def list_snapshots(
    volume: VolumeArgument, project: ProjectOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the snapshots of a volume."""
    with Api.of_environment(project) as api:
        path = f"{_path(api, volume)}/snapshots"
        show_list(
            api,
            lambda: api.items(path),
            SNAPSHOT,
            output,
            watch=False,
            types="volume.",
            empty="The volume has no snapshot.",
        )


@snapshots.command("delete")
def delete_snapshot(
    volume: VolumeArgument,
    name: SnapshotArgument,
    yes: YesOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Drop a snapshot for good; the volume itself stays as it is."""
    with Api.of_environment(project) as api:
        confirm(f"Delete snapshot {name} of volume {volume} for good?", yes=yes)
        item = api.change("DELETE", f"{_path(api, volume)}/snapshots/{segment(name)}")
        print_one(item, SNAPSHOT, output)


def _print_access(item: Json, output: Output) -> None:
    if output is not Output.TABLE:
        print_one(item, SHOW, output)
        return
    print_table(item["access"], ACCESS)
    note(f"`observed` follows `mode` in a moment: dflare volume show {item['name']}")


def _path(api: Api, volume: str) -> str:
    """The path of a volume; one is found by id even where no project is chosen."""
    if api.context.project:
        return f"/projects/{api.project()}/volumes/{segment(volume)}"
    fitting = [item for item in api.pages("/volumes") if volume in (item["id"], item["name"])]
    if len(fitting) != 1:
        found = "more than one volume is" if fitting else "no volume that you may see is"
        raise CliError(
            f"{found} called {volume!r}",
            next_step="Say which project by --project; see `dflare volume list --all`.",
            exit_code=ExitCode.USAGE if fitting else ExitCode.REFUSED,
        )
    return f"/projects/{segment(fitting[0]['project_id'])}/volumes/{segment(fitting[0]['id'])}"
