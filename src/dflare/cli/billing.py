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
    members,
    print_data,
    print_list,
    print_table,
    size_cell,
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


def _gpus_cell(milli: Any) -> str:
    return f"{milli / 1000:g}"


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
VOLUME_LINES = (
    *columns("volume_id"),
    Column("GIB HOURS", "gib_seconds", _hours_cell),
    Column("PRICE", "price_per_gib_hour"),
    *columns("amount", "currency"),
)
JOB_LINES = (
    *columns("cluster_id", "account", "member", "runs"),
    Column("GPU HOURS", "gpu_seconds", _hours_cell),
)
JOBS = (
    Column("JOB", "scheduler_id"),
    *columns("name", "cluster_id", "account", "member", "nodes"),
    Column("GPUS", "gpu_milli", _gpus_cell),
    Column("FROM", "usage_from", time_cell),
    Column("UNTIL", "usage_to", _until_cell),
)
VOLUMES = (
    *columns("volume_id", "size_gib"),
    Column("FROM", "usage_from", time_cell),
    Column("UNTIL", "usage_to", _until_cell),
)

REGISTRY = (
    Column("HELD", "stored_bytes", size_cell),
    Column("FROM", "usage_from", time_cell),
    Column("UNTIL", "usage_to", _until_cell),
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


@usage_app.command("jobs")
def list_job_usage(
    month: MonthOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what each run of a job had of the GPUs; it is part of what the nodes cost."""
    with Api.of_environment(project) as api:
        items = api.items(f"/projects/{api.project()}/usage/jobs", month=month or _this_month())
        print_list(items, JOBS, output, empty="No job ran.")


@usage_app.command("volumes")
def list_volume_usage(
    month: MonthOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the intervals of volumes behind an invoice, a line a size."""
    with Api.of_environment(project) as api:
        items = api.items(f"/projects/{api.project()}/usage/volumes", month=month or _this_month())
        print_list(items, VOLUMES, output, empty="No volume was had.")


@usage_app.command("registry")
def list_registry_usage(
    month: MonthOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what the project's repositories held and for how long; it costs nothing."""
    with Api.of_environment(project) as api:
        items = api.items(f"/projects/{api.project()}/usage/registry", month=month or _this_month())
        print_list(items, REGISTRY, output, empty="No repository held anything.")


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
    for name, shown in (("lines", LINES), ("volumes", VOLUME_LINES)):
        if lines := members(invoice, name):
            print()
            print_table(lines, shown)
    if jobs := members(invoice, "jobs"):
        print("\nOf these nodes, jobs had:")
        print_table(jobs, JOB_LINES)
    notes: list[str] = invoice.get("notes") or []
    for line in notes:
        print(f"\n{line}")
    print()
    totals = [f"{amount} {currency}" for currency, amount in invoice["totals"].items()]
    print(f"Total {' and '.join(totals) or '0.00'}")


def _this_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")
