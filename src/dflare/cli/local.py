"""Commands for the machine at hand: start, stop, look, examine. They need no API.

The starter is imported by the commands that use it: its libraries would double the time of every
other command and of each completion in the shell.
"""

import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn
from urllib.parse import urlsplit, urlunsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dflare.embedded.disk import running_warning
from dflare.embedded.layout import DATA_DIR_VARIABLE, Layout

if TYPE_CHECKING:
    from dflare.embedded.state import ComponentStatus, SupervisorState

NOT_RUNNING_EXIT_CODE = 3
UP_TIMEOUT_S = 120.0
FOLLOW_POLL_S = 0.25

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar=DATA_DIR_VARIABLE,
        help="Where everything is kept; .dflare in the working directory unless told.",
    ),
]


class Output(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"


class HardwareTime(StrEnum):
    """How long simulated hardware takes."""

    ZERO = "zero"
    NORMAL = "normal"


class Role(StrEnum):
    """The kinds of processes that one image can be."""

    GATEWAY = "gateway"
    WORKER = "worker"
    SITE_WORKER = "site-worker"
    RELAY = "relay"


def register(app: typer.Typer) -> None:
    """Adds the commands of this module to the program's top level."""
    for command in (up, down, status, doctor, logs, serve):
        app.command()(command)


def up(
    data_dir: DataDir = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Servers of the simulated site that the first start makes.")
    ] = 64,
    vendors: Annotated[
        str,
        typer.Option(
            help="Whose servers they are, in turn: dell, hpe, supermicro, lenovo.",
            metavar="NAME,…",
        ),
    ] = "",
    makers: Annotated[
        str,
        typer.Option(
            help="Who made their accelerators, in equal shares: nvidia, amd, intel.",
            metavar="NAME,…",
        ),
    ] = "",
    speed: Annotated[
        float | None,
        typer.Option(min=1, max=600, help="Site seconds a second; 60 unless told."),
    ] = None,
    hardware_time: Annotated[
        HardwareTime, typer.Option(help="zero: simulated hardware answers at once.")
    ] = HardwareTime.NORMAL,
    host: Annotated[str, typer.Option(help="Address on which the API listens.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the API; a free one unless told.")
    ] = None,
    postgres_url: Annotated[
        str | None,
        typer.Option(envvar="DFLARE_POSTGRES_URL", help="Use this PostgreSQL, start none."),
    ] = None,
    temporal_address: Annotated[
        str | None,
        typer.Option(envvar="DFLARE_TEMPORAL_ADDRESS", help="Use this Temporal, start none."),
    ] = None,
    valkey_url: Annotated[
        str | None,
        typer.Option(envvar="DFLARE_VALKEY_URL", help="Use this Valkey, start none."),
    ] = None,
    s3_url: Annotated[
        str | None,
        typer.Option(envvar="DFLARE_S3_URL", help="Use this S3 store, start none."),
    ] = None,
    s3_access_key: Annotated[
        str, typer.Option(envvar="DFLARE_S3_ACCESS_KEY", help="Whose key opens --s3-url.")
    ] = "",
    s3_secret_key_file: Annotated[
        str, typer.Option(envvar="DFLARE_S3_SECRET_KEY_FILE", help="The file with its secret.")
    ] = "",
    s3_bucket: Annotated[
        str, typer.Option(envvar="DFLARE_S3_BUCKET", help="Bucket; made if it is missing.")
    ] = "dflare",
    s3_region: Annotated[
        str, typer.Option(envvar="DFLARE_S3_REGION", help="Region of --s3-url.")
    ] = "us-east-1",
    metrics_url: Annotated[
        str | None,
        typer.Option(envvar="DFLARE_METRICS_URL", help="Use this VictoriaMetrics, start none."),
    ] = None,
    temporal_ui: Annotated[bool, typer.Option(help="Serve Temporal's own pages too.")] = False,
    only: Annotated[
        str, typer.Option(help="Start only these components, for example postgres,temporal.")
    ] = "",
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait until all is healthy.")
    ] = UP_TIMEOUT_S,
) -> None:
    """Start everything and return when it is healthy."""
    from pydantic import ValidationError

    from dflare.embedded import control, options

    layout = Layout.of(data_dir)
    try:
        wishes = options.UpOptions(
            nodes=nodes,
            vendors=_names(vendors),
            makers=_names(makers),
            speed=speed,
            hardware_time=options.HardwareTime(hardware_time.value),
            gateway_host=host,
            gateway_port=port,
            postgres_url=postgres_url,
            temporal_address=temporal_address,
            valkey_url=valkey_url,
            s3_url=s3_url,
            s3_access_key=s3_access_key,
            s3_secret_key_file=s3_secret_key_file and str(Path(s3_secret_key_file).absolute()),
            s3_bucket=s3_bucket,
            s3_region=s3_region,
            metrics_url=metrics_url,
            temporal_ui=temporal_ui,
            only=_names(only),
        )
    except ValidationError as error:
        _fail("; ".join(item["msg"] for item in error.errors()))
    try:
        started = control.up(layout, wishes, timeout_s=timeout)
    except control.StartError as error:
        _fail(str(error))
    console = _console()
    _print_urls(console, layout, started.state)
    verb = "already runs" if started.already_running else f"is up after {started.took_s:.1f} s"
    console.print(f"Dflare {verb}. Stop it by `dflare down`.", highlight=False)


def down(
    data_dir: DataDir = None,
    purge: Annotated[bool, typer.Option("--purge", help="Delete all data too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting.")] = False,
) -> None:
    """Stop everything; the next start finds the data again."""
    from dflare.embedded import control

    layout = Layout.of(data_dir)
    console = _console()
    was_running = control.running_supervisor(layout) is not None
    for note in control.down(layout):
        console.print(note, highlight=False)
    console.print("Dflare is stopped." if was_running else "Dflare does not run here.")
    if not purge:
        return
    if not yes:
        typer.confirm(f"Delete all data in {layout.root} for good?", abort=True)
    try:
        left = control.purge(layout)
    except (control.PurgeRefusedError, OSError) as error:
        _fail(str(error))
    console.print(f"Deleted {layout.root}.", highlight=False, soft_wrap=True)
    if left:
        names = ", ".join(path.name for path in left)
        console.print(f"Left alone, because Dflare did not make them: {names}", highlight=False)


def status(
    data_dir: DataDir = None,
    output: Annotated[Output, typer.Option("--output", "-o")] = Output.TABLE,
) -> None:
    """Show each component; exit code 0 when all are healthy, 1 when not, 3 when nothing runs."""
    from dflare.embedded import control
    from dflare.embedded.state import read_state

    layout = Layout.of(data_dir)
    state = read_state(layout.state_file)
    if state is None or control.running_supervisor(layout) is None:
        if output is Output.JSON:
            typer.echo(json.dumps({"running": False, "data_dir": str(layout.root)}))
        else:
            _console().print("Dflare does not run here. Start it by `dflare up`.")
        raise typer.Exit(NOT_RUNNING_EXIT_CODE)
    if output is Output.JSON:
        facts = {"running": True, "data_dir": str(layout.root), **state.model_dump(mode="json")}
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print_status(_console(), layout, state)
    if not state.is_ready:
        raise typer.Exit(1)


def doctor(data_dir: DataDir = None) -> None:
    """Say what is wrong on this machine and what to do; exit code 1 when something must be done."""
    from dflare.embedded.doctor import Verdict, examine

    console = _console()
    colours = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}
    findings = examine(Layout.of(data_dir))
    for finding in findings:
        line = Text(f"{finding.verdict.value:<5}", style=colours[finding.verdict])
        line.append(f"{finding.subject}: {finding.text}", style="default")
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(f"     -> {finding.advice}", highlight=False, soft_wrap=True)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)


def logs(
    name: Annotated[str, typer.Argument(help="A component, or `supervisor`.")],
    data_dir: DataDir = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines to begin with.")] = 50,
) -> None:
    """Print the log of a component."""
    from dflare.embedded.stores import last_lines

    layout = Layout.of(data_dir)
    path = layout.log_file(name)
    if path.parent != layout.logs or not path.exists():
        known = sorted(item.stem for item in layout.logs.glob("*.log"))
        _fail(f"There is no log of {name!r}. There are: {', '.join(known) or 'none yet'}.")
    size = path.stat().st_size
    typer.echo(last_lines(path, lines))
    if follow:
        try:
            _follow(path, size)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def serve(
    services: Annotated[
        list[str] | None, typer.Argument(help="Services to serve; all unless told.")
    ] = None,
    role: Annotated[Role, typer.Option(help="What kind of process this is.")] = Role.GATEWAY,
) -> None:
    """Become one process of the platform; its settings come from the environment (DFLARE_…)."""
    module = f"dflare.apps.{role.value.replace('-', '_')}"
    arguments = [sys.executable, "-m", module, *(services or [])]
    os.execv(sys.executable, arguments)  # noqa: S606 - this interpreter, no shell


def _follow(path: Path, offset: int) -> None:
    while True:
        size = path.stat().st_size
        if size < offset:
            # The supervisor shortened the log; what remains is new.
            offset = 0
        if size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                text = file.read()
            offset += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        time.sleep(FOLLOW_POLL_S)


def _print_urls(console: Console, layout: Layout, state: "SupervisorState") -> None:
    from dflare.embedded.packages import PackageCache

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, url in state.urls.items():
        table.add_row(name, without_password(url))
    table.add_row("data", str(layout.root))
    if (packages := PackageCache.of(layout)) is not None:
        table.add_row("slurm", packages.status().line)
    console.print(table, highlight=False, soft_wrap=True)
    warnings = [text for text in state.warnings if str(layout.root) not in text]
    # A full disk keeps the supervisor from writing what it sees, so the disk is looked at here.
    for warning in (*warnings, *filter(None, [running_warning(layout.root)])):
        console.print(f"Warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def _print_status(console: Console, layout: Layout, state: "SupervisorState") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("component", "state", "pid", "restarts", "since", "detail"):
        table.add_column(heading)
    for item in state.components:
        table.add_row(
            item.name,
            Text(item.state.value, style=_colour(item)),
            "outside" if item.external else str(item.process.pid if item.process else "-"),
            str(item.restarts),
            item.since,
            _detail(item),
        )
    console.print(table, highlight=False)
    console.print()
    _print_urls(console, layout, state)


def _colour(item: "ComponentStatus") -> str:
    if item.is_ready:
        return "green"
    return "yellow" if item.optional else "red"


def _detail(item: "ComponentStatus") -> str:
    if item.in_crash_loop:
        return f"crash loop, {item.failures} in a row: {item.detail}; see dflare logs {item.name}"
    return item.detail


def runs(data_dir: Path | None) -> tuple[Layout, bool]:
    """The layout of a data directory, and whether a platform runs there."""
    from dflare.embedded import control

    layout = Layout.of(data_dir)
    return layout, control.running_supervisor(layout) is not None


def without_password(url: str) -> str:
    """The URL with its password hidden, for screens."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":…@")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _console() -> Console:
    return Console()


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(Text(f"Error: {message}"), soft_wrap=True)
    raise typer.Exit(1)
