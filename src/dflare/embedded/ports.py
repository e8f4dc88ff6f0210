"""Free loopback ports: chosen once, kept, and explained when somebody else took one."""

import json
import random
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 15_000
EPHEMERAL_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortTakenError(Exception):
    """A port that must be used is held by another process; the text says which and what to do."""


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now. A port in TIME_WAIT counts as free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(taken: Iterable[int] = ()) -> int:
    """A free port below the kernel's ephemeral range, so that no outgoing connection takes it
    while its server is stopped. Random, so that neighbours starting together rarely meet."""
    avoided = set(taken)
    highest = _lowest_ephemeral_port() - 1
    chooser = random.SystemRandom()
    for _ in range(500):
        port = chooser.randint(LOWEST_PORT, max(highest, LOWEST_PORT + 1000))
        if port not in avoided and port_is_free(port):
            return port
    raise PortTakenError(
        f"No free port between {LOWEST_PORT} and {highest} on {LOOPBACK}. "
        "Stop programs that listen there, then try again."
    )


def port_holder(port: int) -> str:
    """Who listens on the port, as far as this user may know: `name (pid 12)` or `unknown`."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return "an unknown process"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
            return _process_name(connection.pid)
    return "an unknown process"


class PortBook:
    """The ports of one data directory by name, kept in `run/ports.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        self.notes: list[str] = []

    def choose(self, name: str, *, demanded: int | None = None) -> int:
        """The kept port, the demanded one, or a new free one.

        A demanded port that is taken raises `PortTakenError`. A kept port that is taken is
        replaced, and a line in `notes` says so, because only this directory's own processes
        know the old one and they are told anew at each start.
        """
        if demanded is not None:
            if not port_is_free(demanded):
                raise PortTakenError(
                    f"Port {demanded} (asked for {name}) is held by {port_holder(demanded)}. "
                    "Stop it, or ask for another port, or leave the option out for a free one."
                )
            self._ports[name] = demanded
            return demanded
        kept = self._ports.get(name)
        if kept is not None and port_is_free(kept):
            return kept
        chosen = free_port(self._ports.values())
        if kept is not None:
            self.notes.append(
                f"Port {kept} kept for {name} is now held by {port_holder(kept)}; "
                f"{name} moves to port {chosen}."
            )
        self._ports[name] = chosen
        return chosen

    def save(self) -> None:
        """Writes the book whole or not at all."""
        staged = self._path.with_suffix(f".{secrets.token_hex(4)}.new")
        staged.write_text(json.dumps(self._ports, indent=2, sort_keys=True) + "\n")
        staged.replace(self._path)


def _lowest_ephemeral_port() -> int:
    try:
        return int(EPHEMERAL_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _process_name(pid: int | None) -> str:
    if pid is None:
        return "an unknown process"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
