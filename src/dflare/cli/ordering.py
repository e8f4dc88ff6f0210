"""What every command that orders something does with the answer."""

from dflare.cli.client import Api
from dflare.cli.errors import Json
from dflare.cli.output import Output, note, print_data
from dflare.cli.watch import finish, watch_operation


def follow_order(api: Api, operation: Json, output: Output, *, wait: bool, done: str) -> None:
    """Print the operation of an order, or wait for its end; ``done`` is said after success.

    Raises:
        CliError: it was waited for and did not succeed.
    """
    if wait:
        operation = watch_operation(api, operation["id"], operation)
    if output is not Output.TABLE:
        print_data(operation, output)
    if wait:
        finish(operation)
        note(done)
    elif output is Output.TABLE:
        print(operation["id"])
        if operation.get("reason"):
            note(f"It {operation['reason']}.")
        note(f"Watch it by `dflare operation watch {operation['id']}`.")
