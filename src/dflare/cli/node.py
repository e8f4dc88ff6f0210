"""`dflare node`: servers, what is done to them, and their types."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.listing import show_list
from dflare.cli.ordering import follow_order
from dflare.cli.output import (
    SINCE,
    Column,
    Output,
    OutputOption,
    WaitOption,
    WatchOption,
    YesOption,
    age_cell,
    columns,
    confirm,
    print_list,
    print_one,
    time_cell,
)
from dflare.cli.top import node_top

app = typer.Typer(help="Servers.", no_args_is_help=True)

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Name or id of the node.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", "-r", help="Why; people read it in lists and refusals.")
]

LIST = (
    *columns("name", "state", "node_type", "rack"),
    Column("CORDONED", "cordoned"),
    Column("CLUSTER", "cluster_id"),
    SINCE,
    *columns("reason", "id"),
)
SHOW = (
    *columns("id", "name", "site_id", "state", "reason"),
    Column("SINCE", "since", age_cell),
    Column("DEADLINE", "deadline", time_cell),
    *columns("fault", "cordoned", "cordon_reason", "node_type", "rack", "vendor", "serial"),
    *columns("power", "health", "health_reason"),
    Column("CHECKED", "checked_at", age_cell),
    Column("CLUSTER", "cluster_id"),
    Column("PROJECT", "project_id"),
    *columns("operation_id"),
)
TYPES = columns(
    *("name", "vendor", "model", "gpu_model", "gpus", "infiniband_rails"),
    *(Column("PRICE PER HOUR", "price_per_node_hour"), "currency", "site_id"),
)
IMAGES = columns("name", "builtin", "sha256", "site_id")


def register(root: typer.Typer) -> None:
    """Add `node`."""
    app.command("top")(node_top)
    root.add_typer(app, name="node")


@app.command("list")
def list_(
    site: Annotated[str | None, typer.Option(help="Only those of a site.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    node_type: Annotated[str | None, typer.Option("--type", "-t", help="Only of a type.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Only those of a cluster's id.")] = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List nodes: operators see all, tenants those that they hold."""
    with Api.of_environment() as api:
        show_list(
            api,
            lambda: api.items(
                "/nodes", site=site, state=state, node_type=node_type, cluster=cluster
            ),
            LIST,
            output,
            watch=watch,
            types="node.,allocation.",
            empty="There is no node that you may see.",
        )


@app.command()
def show(node: NodeName, output: OutputOption = Output.TABLE) -> None:
    """Show a node."""
    with Api.of_environment() as api:
        print_one(api.get(f"/nodes/{segment(node)}"), SHOW, output)


@app.command()
def types(output: OutputOption = Output.TABLE) -> None:
    """List node types and their prices."""
    with Api.of_environment() as api:
        print_list(api.items("/node-types"), TYPES, output, empty="There is no node type.")


@app.command()
def images(output: OutputOption = Output.TABLE) -> None:
    """List images that nodes can boot."""
    with Api.of_environment() as api:
        print_list(api.items("/images"), IMAGES, output, empty="There is no image.")


@app.command()
def cordon(node: NodeName, reason: ReasonOption, output: OutputOption = Output.TABLE) -> None:
    """Keep new orders off a node."""
    _mark(node, "cordon", {"reason": reason}, output)


@app.command()
def uncordon(node: NodeName, output: OutputOption = Output.TABLE) -> None:
    """Let new orders use a node again."""
    _mark(node, "uncordon", None, output)


@app.command()
def quarantine(
    node: NodeName,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Block a node's traffic and every use of it."""
    confirm(f"Block all traffic of {node}?", yes=yes)
    _mark(node, "quarantine", {"reason": reason}, output)


@app.command()
def release(node: NodeName, wait: WaitOption = False, output: OutputOption = Output.TABLE) -> None:
    """Clean a node in quarantine and give it back to the pool once that was observed."""
    _order(node, "release-quarantine", output, wait=wait, done="is back in the pool")


@app.command()
def enrol(node: NodeName, wait: WaitOption = False, output: OutputOption = Output.TABLE) -> None:
    """Read a node's inventory again and compare it with what is declared."""
    _order(node, "enrol", output, wait=wait, done="is as it is declared")


@app.command()
def reboot(node: NodeName, wait: WaitOption = False, output: OutputOption = Output.TABLE) -> None:
    """Reboot a node that you hold."""
    _order(node, "reboot", output, wait=wait, done="is up again")


@app.command()
def reimage(
    node: NodeName,
    yes: YesOption = False,
    wait: WaitOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Erase a node that you hold and write its image anew."""
    confirm(f"Erase everything on {node}?", yes=yes)
    _order(node, "reimage", output, wait=wait, done="has its image anew")


@app.command()
def rescue(node: NodeName, wait: WaitOption = False, output: OutputOption = Output.TABLE) -> None:
    """Boot a node that you hold into the rescue system."""
    _order(node, "rescue", output, wait=wait, done="runs the rescue system")


@app.command()
def unrescue(node: NodeName, wait: WaitOption = False, output: OutputOption = Output.TABLE) -> None:
    """Boot a node from its disk again."""
    _order(node, "unrescue", output, wait=wait, done="runs from its disk")


def _mark(node: str, verb: str, body: dict[str, str] | None, output: Output) -> None:
    with Api.of_environment() as api:
        print_one(api.order("POST", f"/nodes/{segment(node)}/{verb}", body), SHOW, output)


def _order(node: str, verb: str, output: Output, *, wait: bool, done: str) -> None:
    with Api.of_environment() as api:
        operation = api.order("POST", f"/nodes/{segment(node)}/{verb}")
        follow_order(api, operation, output, wait=wait, done=f"Node {node} {done}.")
