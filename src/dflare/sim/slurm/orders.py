"""Orders to the program inside a cluster's namespaces, from the simulator's event loop."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflare.sim.slurm.sandbox import Binds

PACKET_BYTES = 1 << 20
START_TIMEOUT_S = 30.0
OUTPUT_LIMIT_BYTES = 8 << 20


class NamespacesUnavailableError(Exception):
    """No namespaces can be had here; the text says why and what a person can do."""


class ClusterGoneError(Exception):
    """Nothing runs (any more) in the cluster's namespaces."""


class OrderRefusedError(Exception):
    """Process 1 did not do what it was told; the text is its reason."""


@dataclass(frozen=True)
class Output:
    """What a program did: its exit code (negative: a signal) and what it wrote."""

    code: int
    stdout: str
    stderr: str


class Inside:
    """Process 1 of one cluster, found by the socket in the cluster's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def start(self, packages: Path, binds: Binds, environment: Mapping[str, str]) -> None:
        """Makes the namespaces with process 1 in them.

        The process belongs to nobody, in a session of its own, so it outlives this one. Raises
        `NamespacesUnavailableError`.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dflare.sim.slurm.init",
            str(self._folder),
            str(packages),
            json.dumps({inside: (str(path), closed) for inside, (path, closed) in binds.items()}),
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                said, complaint = await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise NamespacesUnavailableError(
                f"The namespaces were not made within {START_TIMEOUT_S:.0f} s."
            ) from None
        except asyncio.CancelledError:
            # What it makes can be found, and ended, only when it is whole.
            await process.wait()
            raise
        if process.returncode != 0:
            raise NamespacesUnavailableError((said.strip() or complaint.strip()).decode())

    async def process(self) -> int | None:
        """The pid of process 1 as seen from here; None when it is gone."""
        try:
            with await self._connect() as connection:
                peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except ClusterGoneError:
            return None
        pid, _, _ = struct.unpack("3i", peer)
        return int(pid)

    async def order(self, name: str, /, **facts: Any) -> dict[str, Any]:
        """Gives an order and returns its answer. Raises `ClusterGoneError`, `OrderRefusedError`."""
        with await self._connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.send(json.dumps({"order": name, **facts}).encode())
            return await _answer(connection)

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        directory: str,
        hostname: str,
        timeout_s: float,
    ) -> Output:
        """Runs a program inside to its end; it is killed when time is up or the caller gives up.

        At most 8 MiB of each output are kept. Raises `TimeoutError`, `ClusterGoneError`.
        """
        facts = {
            "order": "run",
            "argv": list(argv),
            "env": dict(env),
            "directory": directory,
            "hostname": hostname,
        }
        async with asyncio.timeout(timeout_s):
            with await self._connect() as connection, contextlib.ExitStack() as stack:
                output, errors = _Pipe(stack), _Pipe(stack)
                with _holding(stdin) as source:
                    ends = [source, output.write_end, errors.write_end]
                    with contextlib.suppress(ConnectionError):
                        socket.send_fds(connection, [json.dumps(facts).encode()], ends)
                output.close_write_end()
                errors.close_write_end()
                answered = asyncio.create_task(_answer(connection))
                reading = [asyncio.create_task(pipe.read_all()) for pipe in (output, errors)]
                try:
                    answer = await answered
                    stdout, stderr = await asyncio.gather(*reading)
                finally:
                    for task in (answered, *reading):
                        task.cancel()
                    await asyncio.wait([answered, *reading])
        return Output(answer["code"], stdout, stderr)

    async def end(self, patience_s: float) -> None:
        """Ends process 1 and with it every process inside; returns when they are gone."""
        pid = await self.process()
        if pid is None:
            return
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            with contextlib.suppress(ClusterGoneError, OrderRefusedError):
                await self.order("end")
            if not await _ended(watched, patience_s):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
                await _ended(watched, patience_s)
        finally:
            os.close(watched)

    async def _connect(self) -> socket.socket:
        """Through a descriptor of the folder, because an address has 108 bytes at most."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            folder = os.open(self._folder / "control", os.O_PATH | os.O_DIRECTORY)
            try:
                loop = asyncio.get_running_loop()
                await loop.sock_connect(connection, f"/proc/self/fd/{folder}/init.sock")
            finally:
                os.close(folder)
        except OSError as error:
            connection.close()
            raise ClusterGoneError(f"Nothing runs in {self._folder}: {error}") from error
        return connection


class _Pipe:
    """A pipe whose write end is given away."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        read_end, self.write_end = os.pipe()
        self._reading = stack.enter_context(os.fdopen(read_end, "rb", buffering=0))
        self._closing = stack.enter_context(os.fdopen(self.write_end, "wb", buffering=0))

    def close_write_end(self) -> None:
        self._closing.close()

    async def read_all(self) -> str:
        """Everything that is written, cut at the limit."""
        kept = bytearray()
        descriptor = self._reading.fileno()
        while True:
            await _until_readable(descriptor)
            if not (part := os.read(descriptor, 65536)):
                return kept.decode(errors="replace")
            kept += part[: OUTPUT_LIMIT_BYTES - len(kept)]


@contextlib.contextmanager
def _holding(data: bytes) -> Generator[int]:
    """A descriptor from which a program reads these bytes."""
    with os.fdopen(os.memfd_create("stdin"), "w+b", buffering=0) as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


async def _until_readable(descriptor: int) -> None:
    """Waits for input or the end of it. Nothing of the loop holds the descriptor afterwards, in
    whatever way this ends, so that it can be closed at once."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        loop.remove_reader(descriptor)
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, tell)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)


async def _answer(connection: socket.socket) -> dict[str, Any]:
    await _until_readable(connection.fileno())
    try:
        packet = connection.recv(PACKET_BYTES)
    except ConnectionError:
        packet = b""
    if not packet:
        raise ClusterGoneError("The cluster ended while it was asked.")
    answer = json.loads(packet)
    if "error" in answer:
        raise OrderRefusedError(answer["error"])
    return answer


async def _ended(watched: int, patience_s: float) -> bool:
    """Whether the process of a pidfd ended in time (it reads as ready then, pidfd_open(2))."""
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while not poll.poll(0):
        if loop.time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
