"""`dflare operation`: orders under way, their steps, their story, and what people may do."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError, Json
from dflare.cli.listing import show_list
from dflare.cli.ordering import follow_order
from dflare.cli.output import (
    AGE,
    SINCE,
    Column,
    Output,
    OutputOption,
    WaitOption,
    WatchOption,
    columns,
    new_console,
    note,
    print_data,
)
from dflare.cli.trace import trace_lines
from dflare.cli.watch import finish, operation_tree, watch_operation

app = typer.Typer(help="Orders under way and their steps.", no_args_is_help=True)

OperationId = Annotated[str, typer.Argument(metavar="OPERATION", help="Id of the operation.")]


def register(root: typer.Typer) -> None:
    """Add `operation`."""
    root.add_typer(app, name="operation")


def _steps_cell(steps: list[Json] | None) -> str:
    done = sum(step["state"] in ("done", "undone") for step in steps or [])
    return f"{done}/{len(steps or [])}"


LIST = (
    *columns("id", "kind", "state"),
    Column("STEPS", "steps", _steps_cell),
    Column("RESOURCE", "resource_id"),
    AGE,
    SINCE,
    *columns("reason"),
)


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind.")] = None,
    resource: Annotated[str | None, typer.Option(help="Only those of this resource's id.")] = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List operations that you may see."""
    with Api.of_environment() as api:
        show_list(
            api,
            lambda: api.items("/operations", state=state, kind=kind, resource=resource),
            LIST,
            output,
            watch=watch,
            types="operation.",
            empty="There is no operation.",
        )


@app.command()
def show(operation: OperationId, output: OutputOption = Output.TABLE) -> None:
    """Show an operation and its steps as they stand."""
    with Api.of_environment() as api:
        document = api.get(f"/operations/{segment(operation)}")
    if output is not Output.TABLE:
        print_data(document, output)
        return
    new_console().print(operation_tree(document, datetime.now(UTC)))


@app.command()
def watch(operation: OperationId, output: OutputOption = Output.TABLE) -> None:
    """Watch an operation until it ends; exit code 0 when it succeeded, 1 when not."""
    with Api.of_environment() as api:
        document = watch_operation(api, operation)
        if output is not Output.TABLE:
            print_data(document, output)
        finish(document)


@app.command()
def trace(operation: OperationId, output: OutputOption = Output.TABLE) -> None:
    """Tell the story of an operation, from the API down to calls of devices."""
    with Api.of_environment() as api:
        document = api.get(f"/operations/{segment(operation)}/trace")
    if output is not Output.TABLE:
        print_data(document, output)
        return
    console = new_console()
    for line in trace_lines(document):
        console.print(line, soft_wrap=True, highlight=False)


@app.command()
def cancel(
    operation: OperationId, wait: WaitOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Take an operation back; refused once its nodes were handed over."""
    with Api.of_environment() as api:
        document = api.order("POST", f"/operations/{segment(operation)}/cancel")
        if wait:
            document = watch_operation(api, operation, document)
        if output is not Output.TABLE:
            print_data(document, output)
        if document["state"] == "cancelled":
            note(f"{document['kind']} {document['id']} is cancelled.")
        elif wait:
            raise CliError(
                f"{document['kind']} was not cancelled: it is {document['state']}",
                next_step=f"See `dflare operation show {document['id']}`.",
            )
        else:
            note(f"{document['kind']} {document['id']} is being cancelled.")


@app.command()
def retry(
    operation: OperationId, wait: WaitOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Begin a failed operation anew, with nodes that are free now."""
    _again(operation, "retry", output, wait=wait)


@app.command()
def resume(
    operation: OperationId, wait: WaitOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Let an operation that waited for an operator go on from where it stands."""
    _again(operation, "resume", output, wait=wait)


def _again(operation: str, verb: str, output: Output, *, wait: bool) -> None:
    with Api.of_environment() as api:
        document = api.change("POST", f"/operations/{segment(operation)}/{verb}")
        follow_order(api, document, output, wait=wait, done=f"{document['kind']} succeeded.")
