"""`dflare audit`: who did what, what was refused, and whether the usage ledger is right."""

import time
from typing import Annotated, Any

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError, ExitCode, Json
from dflare.cli.output import (
    Column,
    Output,
    OutputOption,
    columns,
    note,
    print_list,
    print_one,
    time_cell,
)

app = typer.Typer(help="Who did what.", no_args_is_help=True)
usage_app = typer.Typer(
    help="Comparisons of the usage ledger with the allocations (operators and auditors).",
    no_args_is_help=True,
)

LIST = (
    Column("AT", "at", time_cell),
    *columns("principal", "action", "decision"),
    Column("RESOURCE", "resource_id"),
    Column("OPERATION", "operation_id"),
)


OVER = ("clean", "found")
LOOK_S = 1.0


def _day_cell(value: Any) -> str:
    return str(value) if value else "(asked for)"


AUDITS = (
    *columns("id"),
    Column("DAY", "day", _day_cell),
    Column("USAGE SINCE", "usage_since", time_cell),
    *columns("state", "allocations", "entries", "findings", "reason"),
)
FINDINGS = columns("number", "kind", "allocation_id", "node_id", "project_id")


def register(root: typer.Typer) -> None:
    """Add `audit`."""
    app.add_typer(usage_app, name="usage")
    root.add_typer(app, name="audit")


@app.command("list")
def list_(
    resource: Annotated[str | None, typer.Option(help="Only about this resource's id.")] = None,
    decision: Annotated[str | None, typer.Option(help="Only allowed, or only denied.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the audit log."""
    items: list[Json] = []
    with Api.of_environment() as api:
        for item in api.pages(
            "/audit", resource_id=resource, decision=decision, limit=min(limit, 500)
        ):
            items.append(item)
            if len(items) >= limit:
                break
    print_list(items, LIST, output, empty="Nothing is in the audit log that you may see.")


@usage_app.command("list")
def list_usage_audits(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List audits of the usage ledger, newest first."""
    with Api.of_environment() as api:
        pages = api.pages("/audits/usage", limit=min(limit, 500))
        items = [item for _, item in zip(range(limit), pages, strict=False)]
    print_list(items, AUDITS, output, empty="The ledger was not audited yet.")


@usage_app.command("run")
def run_usage_audit(
    since: Annotated[
        str | None,
        typer.Option(help="All usage that does not end before this time, such as 2026-11-01."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for what it finds.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Audit the usage ledger now; with --wait, findings are exit code 1."""
    body = {"usage_since": _moment(since)} if since else {}
    with Api.of_environment() as api:
        audit = api.change("POST", "/audits/usage:run", body)
        try:
            while wait and audit["state"] not in OVER:
                time.sleep(LOOK_S)
                audit = api.get(f"/audits/usage/{segment(audit['id'])}")
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    print_one(audit, AUDITS, output)
    if audit["findings"]:
        raise CliError(
            f"the audit found {audit['findings']} faults",
            next_step=f"See them: dflare audit usage show {audit['id']}",
            exit_code=ExitCode.FAILURE,
        )


@usage_app.command("show")
def show_usage_audit(
    audit: Annotated[str, typer.Argument(help="Audit by id.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show an audit of the usage ledger and what it found; JSON has both sides of each finding."""
    with Api.of_environment() as api:
        path = f"/audits/usage/{segment(audit)}"
        found = api.get(path)
        findings = api.items(f"{path}/findings")
    if output is not Output.TABLE:
        print_one({**found, "found": findings}, AUDITS, output)
        return
    print_one(found, AUDITS, output)
    if findings:
        print()
        print_list(findings, FINDINGS, output)
    if found["findings"] > len(findings):
        note(f"Of {found['findings']} findings, {len(findings)} were kept.")


def _moment(text: str) -> str:
    """A day, or a moment with its zone, as the API takes it."""
    return f"{text}T00:00:00Z" if len(text) == len("2026-11-01") else text
