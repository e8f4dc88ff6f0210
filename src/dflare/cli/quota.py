"""`dflare quota`: how many nodes of a type a project may hold at once."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.output import (
    Column,
    Output,
    OutputOption,
    ProjectOption,
    age_cell,
    columns,
    print_list,
    print_one,
)

app = typer.Typer(help="How many nodes a project may hold.", no_args_is_help=True)

LIST = (
    *columns("node_type", "nodes"),
    Column("CHANGED", "updated_at", age_cell),
    Column("BY", "updated_by"),
)


def register(root: typer.Typer) -> None:
    """Add `quota`."""
    root.add_typer(app, name="quota")


@app.command("set")
def set_(
    node_type: Annotated[str, typer.Argument(help="Node type.")],
    nodes: Annotated[int, typer.Argument(min=0, help="Nodes at once.")],
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Set a limit (operators)."""
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/quotas/{segment(node_type)}"
        print_one(api.change("PUT", path, {"nodes": nodes}), LIST, output)


@app.command("list")
def list_(project: ProjectOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the limits of a project; a type without one cannot be ordered."""
    with Api.of_environment(project) as api:
        items = api.get(f"/projects/{api.project()}/quotas")["items"]
        print_list(items, LIST, output, empty="There is no quota, so nothing can be ordered.")
