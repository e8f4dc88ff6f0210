"""`dflare site`: describe data centers, apply them, look at their devices, stop all writes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.diff import diff_lines
from dflare.cli.errors import ApiProblem, Json
from dflare.cli.listing import show_list
from dflare.cli.ordering import follow_order
from dflare.cli.output import (
    AGE,
    Column,
    Output,
    OutputOption,
    WaitOption,
    WatchOption,
    YesOption,
    age_cell,
    columns,
    confirm,
    members,
    new_console,
    note,
    print_data,
    print_list,
    print_one,
    print_table,
)

app = typer.Typer(help="Sites: describe, apply, freeze.", no_args_is_help=True)

SiteName = Annotated[str, typer.Argument(metavar="SITE", help="Name or id of the site.")]
SiteFile = Annotated[Path, typer.Argument(metavar="FILE", help="The site document.")]


def _types_cell(kinds: list[Json] | None) -> str:
    return ", ".join(
        f"{kind['name']} ({kind['price_per_node_hour']} {kind['currency']} an hour)"
        for kind in kinds or []
    )


TYPES = Column("NODE TYPES", "node_types", _types_cell)
LIST = (*columns("name", "region"), TYPES, *columns("nodes"), AGE, *columns("id"))
SHOW = (
    *columns("id", "name", "region", "description"),
    TYPES,
    *columns("nodes", "created_at", "updated_at", "version"),
)
IMAGES = columns("name", "site", "builtin", "sha256")
DEVICES = (
    *columns("name", "kind", "health", "ports", "waiting", "repaired"),
    Column("WRITES", "open_intents"),
    Column("READ", "read_at", age_cell),
    *columns("address", "reason"),
)
POOLS = columns("kind", "total", "free", "allocated", "draining", "cooldown")


class HardwareTime(StrEnum):
    """How long simulated hardware takes."""

    NORMAL = "normal"
    ZERO = "zero"


def register(root: typer.Typer) -> None:
    """Add `site`."""
    root.add_typer(app, name="site")


@app.command("import")
def import_(
    fleet: Annotated[
        Path, typer.Argument(metavar="CSV", help="List with sn,cpu_milli,memory_mib,gpu,model.")
    ],
    target: Annotated[Path, typer.Option("--output", "-o", help="Site document to write.")] = Path(
        "site.yaml"
    ),
    name: Annotated[str, typer.Option(help="Name of the site.")] = "fleet",
    region: Annotated[str, typer.Option(help="Region of the site.")] = "local",
    vendor: Annotated[
        list[str] | None, typer.Option(help="Vendor of the servers; several take turns.")
    ] = None,
    ethernet_ports: Annotated[
        int, typer.Option(min=1, max=2, help="Cables of a server to its leaf.")
    ] = 1,
    address_base: Annotated[
        str, typer.Option(help="First of three neighbouring /16 for devices.")
    ] = "127.20.0.0",
    bmc_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of BMCs.")] = 8443,
    nvue_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of switches.")] = 8765,
    ufm_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UFM.")] = 8444,
    simulator_file: Annotated[
        Path | None, typer.Option(help="Also write the simulator's file for it.")
    ] = None,
    control_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the simulator's own control.")
    ] = 8470,
    speed: Annotated[float, typer.Option(min=1, max=600, help="Simulated seconds a second.")] = 60,
    hardware_time: Annotated[
        HardwareTime, typer.Option(help="zero: simulated hardware answers at once.")
    ] = HardwareTime.NORMAL,
) -> None:
    """Lay out a list of servers as a site with racks and cables."""
    from dflare.cli.site_file import ImportChoices, SimPorts, import_site, summary

    choices = ImportChoices(
        name=name,
        region=region,
        vendors=vendor or [],
        ethernet_ports=ethernet_ports,
        address_base=address_base,
        ports=SimPorts(bmc=bmc_port, nvue=nvue_port, ufm=ufm_port, control=control_port),
        simulator_file=simulator_file,
        speed=speed,
        hardware_time=hardware_time.value,
    )
    document = import_site(fleet, target, choices)
    print(summary(document))
    note(f"Written to {target}. Apply it by `dflare site apply {target}`.")


@app.command()
def validate(file: SiteFile) -> None:
    """Check a site document here, without the API; every problem is named with its line."""
    from dflare.cli.site_file import read_site, summary

    print(summary(read_site(file)))


@app.command()
def apply(
    file: SiteFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; change nothing.")
    ] = False,
    wait: WaitOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make the platform know a site as the document describes it; new nodes are enrolled."""
    from dflare.cli.site_file import read_site, summary, wire_document

    document = read_site(file)
    body = wire_document(file, document)
    with Api.of_environment() as api:
        path = f"/sites/{segment(document.name)}"
        answer = api.order("PUT", path, body, dry_run=dry_run or None)
        if dry_run:
            _print_diff(answer, output)
            return
        operation: Json | None = answer["operation"]
        if output is Output.TABLE:
            note(f"Applied {summary(document)}.")
        if operation is None:
            if output is not Output.TABLE:
                print_data(answer, output)
            return
        follow_order(
            api, operation, output, wait=wait, done=f"The nodes of {document.name} are enrolled."
        )


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List sites."""
    with Api.of_environment() as api:
        print_list(
            api.items("/sites"),
            LIST,
            output,
            empty="There is no site; `dflare site apply FILE` makes one.",
        )


@app.command()
def images(output: OutputOption = Output.TABLE) -> None:
    """List the images that nodes can boot; an order without one gets the first of its site."""
    with Api.of_environment() as api:
        names = {item["id"]: item["name"] for item in api.items("/sites")}
        items = [
            {**item, "site": names.get(item["site_id"], item["site_id"])}
            for item in api.items("/images")
        ]
        print_list(items, IMAGES, output, empty="There is no image.")


@app.command()
def show(site: SiteName, output: OutputOption = Output.TABLE) -> None:
    """Show a site; to tenants, what it offers."""
    with Api.of_environment() as api:
        try:
            item = api.get(f"/sites/{segment(site)}")
        except ApiProblem as problem:
            # The whole document is the operators'; what there is to order stands in the list.
            offered = [item for item in api.items("/sites") if site in (item["id"], item["name"])]
            if problem.status != 404 or not offered:
                raise
            item = offered[0]
        print_one(item, SHOW, output)


@app.command()
def freeze(
    site: SiteName,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why.")],
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Stop all writes to devices of a site at once, and say what waits."""
    with Api.of_environment() as api:
        confirm(f"Stop all writes to devices of {site}?", yes=yes)
        answer = api.order("POST", f"/sites/{segment(site)}/freeze", {"reason": reason})
        _print_frozen(answer, output, f"Site {site} is frozen.")


@app.command()
def unfreeze(site: SiteName, output: OutputOption = Output.TABLE) -> None:
    """Let writes to devices of a site go on."""
    with Api.of_environment() as api:
        answer = api.order("POST", f"/sites/{segment(site)}/unfreeze")
        _print_frozen(answer, output, f"Site {site} is not frozen any more.")


@app.command()
def pools(site: SiteName, output: OutputOption = Output.TABLE) -> None:
    """Show how much of each pool of identifiers is used."""
    with Api.of_environment() as api:
        print_list(api.get(f"/sites/{segment(site)}/pools")["pools"], POOLS, output)


@app.command()
def devices(
    site: SiteName, watch: WatchOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Show switches and fabric managers: health, drift, writes under way."""
    with Api.of_environment() as api:
        show_list(
            api,
            lambda: api.items(f"/sites/{segment(site)}/devices"),
            DEVICES,
            output,
            watch=watch,
            types="device.,site.frozen",
            empty="The site has no devices.",
        )


def _print_diff(answer: Json, output: Output) -> None:
    if output is not Output.TABLE:
        print_data(answer, output)
        return
    console = new_console()
    for line in diff_lines(answer):
        console.print(line, soft_wrap=True, highlight=False)
    note("Nothing was changed.")


def _print_frozen(answer: Json, output: Output, said: str) -> None:
    if output is not Output.TABLE:
        print_data(answer, output)
        return
    print(said)
    if answer["waiting_ports"]:
        print(f"{answer['waiting_ports']} ports wait to be written:")
        print_table(members(answer, "waiting"), columns("device_id", "ports"))
