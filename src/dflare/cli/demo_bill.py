"""The demonstration's bill: read from the platform, judged by the simulator's log."""

import time
from decimal import Decimal
from typing import TYPE_CHECKING

from dflare.cli.demo_proofs import Bill, Bracket, bill, job_bill_problems
from dflare.cli.demo_stage import INDENT
from dflare.cli.demo_world import Simulator, Tenant
from dflare.cli.errors import CliError, Json
from dflare.cli.output import parse_time

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dflare.cli.demo_order import Order

LEDGER_WITHIN_S = 60.0
LEDGER_POLL_S = 0.2


def bill_of(simulator: Simulator, order: "Order", handed_over: Bracket) -> Bill:
    """The bill of an order; where it was not released, until now.

    Raises:
        CliError: the ledger does not follow.
    """
    tenant, asked = order.tenant, order.asked
    ended = asked is not None
    began = handed_over.earliest
    before = simulator.mark(f"{tenant.name} asks for its bill")
    until = asked.latest if asked else parse_time(before)
    months = sorted({f"{at:%Y-%m}" for at in (began, until)})
    usage = {month: _ledger(tenant, month, order.count, ended=ended) for month in months}
    invoices = [tenant.api.get(tenant.path("invoices", month)) for month in months]
    after = simulator.mark(f"{tenant.name} has its bill")
    window = asked or Bracket(parse_time(before), parse_time(after))
    price = Decimal(order.node_type["price_per_node_hour"])
    return bill(invoices, usage, price, handed_over, window, order.count)


def job_told(tenant: Tenant, job: Json) -> list[str]:
    """What is wrong with what the invoices tell of the job; the ledger may be a moment late."""
    began, ended = parse_time(job["created_at"]), parse_time(job["ended_at"])
    months = sorted({f"{at:%Y-%m}" for at in (began, ended)})
    deadline = time.monotonic() + LEDGER_WITHIN_S
    while True:
        invoices = [tenant.api.get(tenant.path("invoices", month)) for month in months]
        wrong = job_bill_problems(invoices, job)
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(LEDGER_POLL_S)


def bill_table(
    found: Bill, price: Decimal, currency: str, nodes: int, job: Json | None
) -> "RenderableType":
    """What is to be paid, and by whose word; and what of it a job had."""
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    seconds = found.node_seconds / nodes
    table.add_row("invoice", f"{found.invoiced} {currency}", "what the tenant is shown")
    table.add_row(
        "ledger",
        f"{found.exact} {currency}",
        f"{nodes} servers, {seconds:.1f} s each, {price} {currency} an hour",
    )
    table.add_row(
        "simulator's log",
        f"{found.least} to {found.most} {currency}",
        "boot or hand-over to request of release",
    )
    if job is not None:
        table.add_row("job", f"{job['gpu_seconds']} GPU-seconds", "told beside it, for its member")
    return Padding(table, (0, 0, 0, INDENT))


def _ledger(tenant: Tenant, month: str, nodes: int, *, ended: bool) -> list[Json]:
    """The ledger of a month; it follows events, so it may be a moment late."""
    deadline = time.monotonic() + LEDGER_WITHIN_S
    while True:
        usage = tenant.api.items(tenant.path("usage"), month=month)
        if len(usage) == nodes and all(one["usage_to"] or not ended for one in usage):
            return usage
        if time.monotonic() > deadline:
            raise CliError(
                f"the ledger has {len(usage)} intervals of {nodes} after {LEDGER_WITHIN_S:.0f} s",
                next_step="See `dflare logs worker`.",
            )
        time.sleep(LEDGER_POLL_S)
