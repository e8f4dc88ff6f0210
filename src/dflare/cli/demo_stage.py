"""The stage of the demonstration: what people see of it, the recording and the picture of it."""

import io
import json
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from dflare.cli.client import Api
from dflare.cli.errors import CliError, Json
from dflare.cli.watch import changed_lines, operation_tree, versions

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH, HEIGHT = 100, 40
"""Columns and rows of a recording where no terminal says how large it is."""
MESSAGE_AT_MOST = 44
REFRESH_PER_S = 8
INDENT = 2
_FAILED_STEP = re.compile(r"^replaced: \S+ failed for ([0-9]+ of [0-9]+): ")
_DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class Cast:
    """A recording in asciicast format, version 2: a header line, then a line an output event.

    Source: docs.asciinema.org, "asciicast v2". Events are written as they happen, so that a
    demonstration that was cut off can be looked at too.
    """

    def __init__(self, file: TextIO, width: int, height: int, title: str) -> None:
        self._file = file
        self._began = time.monotonic()
        header = {
            "version": 2,
            "width": width,
            "height": height,
            "timestamp": int(datetime.now(UTC).timestamp()),
            "title": title,
            "env": {"TERM": "xterm-256color"},
        }
        self._line(header)

    def output(self, text: str) -> None:
        """Record what went to the terminal; a terminal needs both characters of a line's end."""
        at = round(time.monotonic() - self._began, 6)
        self._line([at, "o", text.replace("\r\n", "\n").replace("\n", "\r\n")])

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")


class _Tee(io.StringIO):
    """A terminal whose output is recorded too; nothing is kept here."""

    def __init__(self, screen: TextIO, cast: Cast) -> None:
        super().__init__()
        self._screen = screen
        self._cast = cast

    def write(self, text: str, /) -> int:
        self._cast.output(text)
        return self._screen.write(text)

    def flush(self) -> None:
        self._screen.flush()

    def isatty(self) -> bool:
        return True


class Stage:
    """Shows acts, trees and proofs. Use it as a context manager: leaving it ends the recording and
    writes the picture (SVG).

    ``failed`` are the proofs that did not hold, as sentences.

    Raises:
        CliError: the recording cannot be written.
    """

    def __init__(
        self,
        *,
        fast: bool = False,
        record: Path | None = None,
        picture: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from rich.console import Console

        self.failed: list[str] = []
        self._fast = fast
        self._sleep = sleep
        self._acts = 0
        self._picture = picture
        self._record = _opened(record) if record else None
        if self._record is None:
            self.console = Console(highlight=False)
        else:
            size = Console()
            width, height = size.size if size.is_terminal else (WIDTH, HEIGHT)
            cast = Cast(self._record, width, height, "dflare demo")
            self.console = Console(
                file=_Tee(sys.stdout, cast),
                force_terminal=True,
                color_system="256",
                width=width,
                height=height,
                highlight=False,
            )
        self._still = _still_console() if picture else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._record is not None:
            self._record.close()
        if self._picture is not None and self._still is not None:
            drawn = self._still.export_svg(title="dflare demo")
            # Without the fonts that it would load from elsewhere; the reader's own are as good.
            self._picture.write_text(_FONT_FACE.sub("", drawn), encoding="utf-8")

    def act(self, title: str) -> None:
        """Begin the next part of the story."""
        from rich.rule import Rule
        from rich.text import Text

        self._acts += 1
        self.show(Text())
        heading = Text(f"{self._acts}  {title}", style="bold cyan")
        if self.console.is_terminal:
            self.show(Rule(heading, align="left", style="cyan"))
        else:
            self.show(heading)

    def say(self, text: str, style: str = "") -> None:
        """A sentence or more of the story; lines are broken where the terminal ends."""
        from rich.text import Text

        for console in self._consoles():
            lines = [
                textwrap.fill(
                    line,
                    console.width - INDENT,
                    initial_indent=" " * INDENT,
                    subsequent_indent=" " * INDENT,
                    break_on_hyphens=False,
                )
                for line in text.split("\n")
            ]
            console.print(Text("\n".join(lines), style=style))

    def show(self, what: "RenderableType") -> None:
        """Anything that can be drawn."""
        for console in self._consoles():
            console.print(what)

    def pause(self, seconds: float) -> None:
        """Time to read; none where nobody looks or `--fast` was said."""
        if not self._fast and self.console.is_terminal:
            self._sleep(seconds)

    def wait(self, seconds: float) -> None:
        """Time that the story itself needs."""
        self._sleep(seconds)

    def proof(self, sentence: str, wrong: Sequence[str] = ()) -> None:
        """A claim that was looked at: it holds where nothing is ``wrong``."""
        from rich.text import Text

        if not wrong:
            self.show(Text.assemble(("  ✔ ", "bold green"), sentence))
            return
        self.failed.append(f"{sentence}: {wrong[0]}")
        self.show(Text.assemble(("  ✘ ", "bold red"), (sentence, "red")))
        for text in wrong[:5]:
            self.show(Text(f"      {text}", style="red"))

    def follow(self, api: Api, operation: Json) -> Json:
        """Show an operation until it has ended; returns its last document."""
        if self.console.is_terminal:
            return self._follow_live(api, operation)
        shown: dict[str, Any] = {}
        known = operation
        for fresh in versions(api, operation["id"], operation, notice=self.say):
            known = fresh or known
            for line in changed_lines(shortened(known), shown):
                self.say(line)
        return known

    def _follow_live(self, api: Api, operation: Json) -> Json:
        from rich.live import Live
        from rich.padding import Padding

        def tree(document: Json) -> Padding:
            return Padding(operation_tree(shortened(document), datetime.now(UTC)), (0, 0, 0, 2))

        known = operation
        with Live(
            tree(known), console=self.console, refresh_per_second=REFRESH_PER_S, transient=True
        ) as live:
            for fresh in versions(api, operation["id"], operation, notice=self.say):
                known = fresh or known
                live.update(tree(known))
        self.show(tree(known))
        return known

    def _consoles(self) -> list["Console"]:
        return [self.console, *([self._still] if self._still is not None else [])]


def shortened(document: Json) -> Json:
    """An operation whose messages fit in a line: the whole of them stands in its trace. The reason
    of one that succeeded repeats those of its steps."""
    steps = [{**step, "message": _cut(step["message"] or "")} for step in document["steps"]]
    reason = "" if document["state"] == "succeeded" else document.get("reason") or ""
    return {**document, "steps": steps, "reason": reason}


def plain(text: str) -> str:
    """A reason as people say it: without the step's name, and of a digest its beginning."""
    text = _FAILED_STEP.sub(r"replaced \1: ", text)
    return _DIGEST.sub(r"\1…", text)


def _cut(message: str) -> str:
    text = plain(message)
    return text if len(text) <= MESSAGE_AT_MOST else f"{text[: MESSAGE_AT_MOST - 1]}…"


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise CliError(
            f"{path} cannot be written: {error.strerror}",
            next_step="Name another file by --record.",
        ) from error


def _still_console() -> "Console":
    from rich.console import Console

    return Console(
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=WIDTH,
        highlight=False,
    )
