"""`dflare network`: the isolated networks of clusters."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.listing import show_list
from dflare.cli.output import Output, OutputOption, WatchOption, columns, print_one

app = typer.Typer(help="Isolated networks of clusters.", no_args_is_help=True)

LIST = columns("id", "cluster_id", "state", "vrf", "vlan", "vni", "pkey", "subnet")
SHOW = columns(
    *("id", "cluster_id", "project_id", "site_id", "state", "reason", "vrf", "vlan"),
    *("vni", "l3_vni", "pkey", "subnet"),
)


def register(root: typer.Typer) -> None:
    """Add `network`."""
    root.add_typer(app, name="network")


@app.command("list")
def list_(watch: WatchOption = False, output: OutputOption = Output.TABLE) -> None:
    """List networks."""
    with Api.of_environment() as api:
        show_list(
            api,
            lambda: api.items("/networks"),
            LIST,
            output,
            watch=watch,
            types="network.",
            empty="There is no network.",
        )


@app.command()
def show(
    network: Annotated[str, typer.Argument(help="Id.")], output: OutputOption = Output.TABLE
) -> None:
    """Show a network."""
    with Api.of_environment() as api:
        print_one(api.get(f"/networks/{segment(network)}"), SHOW, output)
