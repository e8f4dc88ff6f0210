"""`dflare usage` and `dflare invoice`."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from dflare.cli.client import Api, segment
from dflare.cli.output import (
    Column,
    Output,
    OutputOption,
    ProjectOption,
    columns,
    print_data,
    print_list,
    print_table,
    time_cell,
)

usage_app = typer.Typer(help="Usage that is billed.", no_args_is_help=True)
invoice_app = typer.Typer(help="Invoices.", no_args_is_help=True)

MonthOption = Annotated[
    str | None, typer.Option("--month", "-m", help="YYYY-MM in UTC; this month unless told.")
]


def register(root: typer.Typer) -> None:
    """Add `usage` and `invoice`."""
    root.add_typer(usage_app, name="usage")
    root.add_typer(invoice_app, name="invoice")


def _until_cell(value: Any) -> str:
    return time_cell(value) if value else "still runs"


def _hours_cell(value: Any) -> str:
    return f"{float(value) / 3600:.3f}"


USAGE = (
    *columns("cluster_id", "node_name", "node_type", "gpus"),
    Column("FROM", "usage_from", time_cell),
    Column("UNTIL", "usage_to", _until_cell),
)
LINES = (
    *columns("cluster_id", "node_type"),
    Column("NODE HOURS", "node_seconds", _hours_cell),
    Column("GPU HOURS", "gpu_seconds", _hours_cell),
    Column("PRICE", "price_per_node_hour"),
    *columns("amount", "currency"),
)


@usage_app.command("list")
def list_usage(
    month: MonthOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the intervals behind an invoice, a line a node."""
    with Api.of_environment(project) as api:
        items = api.items(f"/projects/{api.project()}/usage", month=month or _this_month())
        print_list(items, USAGE, output, empty="Nothing was used.")


@invoice_app.command("show")
def show_invoice(
    month: MonthOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the draft invoice of a month; what still runs is counted until now."""
    with Api.of_environment(project) as api:
        wanted = segment(month or _this_month())
        invoice = api.get(f"/projects/{api.project()}/invoices/{wanted}")
    if output is not Output.TABLE:
        print_data(invoice, output)
        return
    print(
        f"{invoice['project']}, {invoice['month']}, {invoice['state']}, "
        f"as of {time_cell(invoice['as_of'])}"
    )
    if invoice["lines"]:
        print()
        print_table(invoice["lines"], LINES)
    print()
    totals = [f"{amount} {currency}" for currency, amount in invoice["totals"].items()]
    print(f"Total {' and '.join(totals) or '0.00'}")


def _this_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")
