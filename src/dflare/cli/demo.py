"""`dflare demo`: the platform on this machine shows itself, and proves what it says."""

import time
from pathlib import Path
from typing import Annotated

import typer

from dflare.cli.errors import CliError
from dflare.cli.local import DataDir


def register(root: typer.Typer) -> None:
    """Add `demo`."""
    root.command()(demo)


def demo(
    data_dir: DataDir = None,
    fast: Annotated[bool, typer.Option("--fast", help="No pauses to read.")] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record the terminal (asciicast v2).")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what was shown (SVG).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the clusters, and say how to release them.")
    ] = False,
) -> None:
    """Tell the story of an order, from the empty site to the bill and the clean release.

    It makes two tenants of its own and touches no others. It ends with exit code 1 where something
    that it shows does not hold. Ctrl-C releases what it ordered.
    """
    from dflare.cli.demo_stage import Stage
    from dflare.cli.demo_story import Story
    from dflare.cli.demo_world import World
    from dflare.embedded.layout import Layout

    began = time.monotonic()
    layout = Layout.of(data_dir)
    with World.open(layout) as world, Stage(fast=fast, record=record, picture=picture) as stage:
        Story(world, stage, keep=keep).play()
        took_s = time.monotonic() - began
        if stage.failed:
            raise CliError(
                f"{len(stage.failed)} of the demonstration's proofs do not hold: "
                f"{'; '.join(stage.failed)}",
                next_step="See `dflare operation list` and `dflare logs site-worker`.",
            )
        stage.say(f"\nEverything held. It took {took_s:.0f} seconds.", "bold green")
