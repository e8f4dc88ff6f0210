"""What the tests of the command line share; the server itself is in ``api_stub``."""

import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from dflare.cli import client, stream

# With import-mode=importlib nothing puts this directory on the path.
sys.path.insert(0, str(Path(__file__).parent))

from api_stub import Cli, Flaky, Stub, build, serving


@pytest.fixture
def stub() -> Generator[Stub]:
    """The server, fresh for a test."""
    state = Stub()
    with serving(build(state)) as url:
        state.url = url
        yield state


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(stream, "POLL_S", 0.01)
    monkeypatch.setattr(stream, "IDLE_S", 0.05)


@pytest.fixture
def cli(tmp_path: Path, stub: Stub) -> Cli:
    """The program, logged in at the server by a token of the environment."""
    return Cli(tmp_path, stub.url)


@pytest.fixture
def fresh_cli(tmp_path: Path) -> Cli:
    """The program as somebody finds it who never used it."""
    return Cli(tmp_path, token="")


@pytest.fixture
def flaky(stub: Stub) -> Generator[Callable[[int], Flaky]]:
    """Makes a way to the server that breaks a number of times."""
    made: list[Flaky] = []

    def make(drops: int) -> Flaky:
        made.append(Flaky(stub.url, drops))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
