"""Process 1 of a cluster's namespaces: starts, keeps and ends what runs there, on orders.

`python -m dflare.sim.slurm.init FOLDER PACKAGES [BINDS]` makes the namespaces, prints one line
(`ready`, or why not) and goes on as a daemon that belongs to nobody: the simulator may die and
find it again by the socket `FOLDER/control/init.sock`. When it ends, for whatever reason, the
kernel ends every process inside and takes mounts and network away (pid_namespaces(7)).

An order is one packet of JSON on a connection of its own (SOCK_SEQPACKET), the answer another one:
`start`, `stop`, `kill`, `cut`, `status`, `run` (with three descriptors, see unix(7) SCM_RIGHTS) and
`end`. Hanging up on a running `run` kills it. Only the standard library is imported, for memory.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dflare.sim.slurm import sandbox
from dflare.sim.slurm.service import BACKING_OFF, STOPPED, STOPPING, Service

PACKET_BYTES = 1 << 20
END_GRACE_S = 3.0
SOCKET = "init.sock"

Order = dict[str, Any]


@dataclass
class _Command:
    connection: socket.socket
    pid: int


@dataclass
class _Wait:
    """Somebody waits for the end of a service that was asked to stop; it is killed when due."""

    connection: socket.socket
    kill_at: float


class Init:
    """The services and commands of one cluster."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._services: dict[str, Service] = {}
        self._commands: dict[int, _Command] = {}
        self._waits: dict[str, list[_Wait]] = {}
        self._hosts: dict[str, int] = {}
        self._ending_at: float | None = None

    def run(self) -> None:
        """Serves orders until told to end; returns when everything has had its time to end."""
        wake, woken = socket.socketpair()
        for end in (wake, woken, self._listener):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._on_signal)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._selector.register(woken, selectors.EVENT_READ, "woken")
        self._selector.register(self._listener, selectors.EVENT_READ, "listener")
        while not self._ended():
            for key, _ in self._selector.select(self._until_due()):
                if key.data == "woken":
                    woken.recv(4096)
                elif key.data == "listener":
                    self._accept()
                else:
                    self._receive(key.data)
            self._reap()
            self._do_what_is_due()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._end()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _receive(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES, 3)
            for descriptor in descriptors:
                # A program that a command leaves behind must not hold the pipes of its output.
                os.set_inheritable(descriptor, False)
            if packet:
                self._obey(connection, json.loads(packet), descriptors)
            else:
                self._hung_up(connection)
        except BlockingIOError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._answer(connection, {"error": f"{type(error).__name__}: {error}"})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _obey(self, connection: socket.socket, order: Order, descriptors: list[int]) -> None:
        match order["order"]:
            case "start":
                self._answer(connection, self._start(order))
            case "stop":
                self._stop(connection, order["name"], float(order["grace_s"]))
            case "kill":
                self._answer(connection, {"killed": self._kill(order["name"])})
            case "cut":
                self._answer(connection, {"killed": self._cut(order["hostname"])})
            case "status":
                facts = {name: service.facts() for name, service in self._services.items()}
                self._answer(connection, {"services": facts})
            case "run":
                self._run(connection, order, descriptors)
            case "end":
                self._end()
                self._answer(connection, {})
            case unknown:
                raise ValueError(f"no order is called {unknown!r}")

    def _start(self, order: Order) -> dict[str, object]:
        """Ensures that the service runs; one that runs already is left alone."""
        known = self._services.get(order["name"])
        if known is None or known.state in (STOPPED, STOPPING):
            if known is not None and known.pid:
                os.kill(known.pid, signal.SIGKILL)
                os.waitpid(known.pid, 0)
            known = Service(
                order["name"],
                list(order["argv"]),
                dict(order["env"]),
                order["hostname"],
                order["log"],
            )
            self._services[known.name] = known
            self._spawn_service(known)
        return known.facts()

    def _spawn_service(self, service: Service) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(service.log, flags, 0o600)
        try:
            pid = self._spawn(service.argv, service.env, service.hostname, "/", (None, log, log))
        finally:
            os.close(log)
        service.started(pid)

    def _spawn(
        self,
        argv: list[str],
        env: dict[str, str],
        hostname: str,
        directory: str,
        descriptors: tuple[int | None, int, int],
    ) -> int:
        """Starts a program on a simulated host, as leader of a new session.

        The program has no capability: only this process has, and they end with execve(2).
        """
        uts = self._host(hostname)
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            sandbox.enter_uts(uts)
            source, output, errors = descriptors
            os.dup2(os.open("/dev/null", os.O_RDONLY) if source is None else source, 0)
            os.dup2(output, 1)
            os.dup2(errors, 2)
            os.chdir(directory)
            os.execvpe(argv[0], argv, env)  # noqa: S606 - a program by its arguments, no shell
        except BaseException as error:
            os.write(2, f"{argv[0]} cannot be started: {error}\n".encode())
        os._exit(127)

    def _host(self, hostname: str) -> int:
        if hostname not in self._hosts:
            self._hosts[hostname] = sandbox.new_uts(hostname)
        return self._hosts[hostname]

    def _stop(self, connection: socket.socket, name: str, grace_s: float) -> None:
        service = self._services.get(name)
        if service is None or service.state == STOPPED:
            self._answer(connection, {"state": STOPPED})
            return
        service.stop()
        if service.state == STOPPED:
            self._answer(connection, service.facts())
            return
        os.kill(service.pid, signal.SIGTERM)
        self._waits.setdefault(name, []).append(_Wait(connection, time.monotonic() + grace_s))

    def _kill(self, name: str) -> bool:
        """SIGKILL for the process; a service is started again."""
        service = self._services[name]
        if service.pid:
            os.kill(service.pid, signal.SIGKILL)
        return bool(service.pid)

    def _cut(self, hostname: str) -> int:
        """Takes a host's power: no process of it remains and none is started again."""
        for service in self._services.values():
            if service.hostname == hostname:
                service.stop()
        uts = self._hosts.get(hostname)
        if uts is None:
            return 0
        killed = 0
        # A process that is forked while the list is read is met by the next reading.
        while found := list(_processes_in(os.fstat(uts).st_ino)):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            self._reap()
        return killed

    def _run(self, connection: socket.socket, order: Order, descriptors: list[int]) -> None:
        source, output, errors = descriptors
        pid = self._spawn(
            order["argv"],
            order["env"],
            order["hostname"],
            order["directory"],
            (source, output, errors),
        )
        self._commands[pid] = _Command(connection, pid)

    def _hung_up(self, connection: socket.socket) -> None:
        for command in self._commands.values():
            if command.connection is connection:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGKILL)
        self._forget(connection)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if command := self._commands.pop(pid, None):
                self._answer(command.connection, {"code": os.waitstatus_to_exitcode(status)})
            for service in self._services.values():
                if service.pid == pid:
                    service.exited(status, time.monotonic())
                    for wait in self._waits.pop(service.name, ()):
                        self._answer(wait.connection, service.facts())

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for service in self._services.values():
            if service.state == BACKING_OFF and service.due <= now and self._ending_at is None:
                self._spawn_service(service)
        for name, waits in self._waits.items():
            if any(wait.kill_at <= now for wait in waits) and self._services[name].pid:
                os.kill(self._services[name].pid, signal.SIGKILL)

    def _until_due(self) -> float | None:
        """Seconds until something is due, None when only an event can bring work."""
        times = [s.due for s in self._services.values() if s.state == BACKING_OFF]
        times += [wait.kill_at for waits in self._waits.values() for wait in waits]
        if self._ending_at is not None:
            times.append(self._ending_at)
        return max(0.01, min(times) - time.monotonic()) if times else None

    def _end(self) -> None:
        if self._ending_at is not None:
            return
        self._ending_at = time.monotonic() + END_GRACE_S
        for service in self._services.values():
            service.stop()
            if service.pid:
                os.kill(service.pid, signal.SIGTERM)

    def _ended(self) -> bool:
        if self._ending_at is None:
            return False
        alive = any(service.pid for service in self._services.values())
        return not alive or time.monotonic() >= self._ending_at

    def _answer(self, connection: socket.socket, answer: dict[str, object]) -> None:
        with contextlib.suppress(OSError):
            connection.send(json.dumps(answer).encode())
        self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()


def _processes_in(uts_inode: int) -> Iterator[int]:
    """The living processes of one simulated host."""
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or entry == "1":
            continue
        with contextlib.suppress(OSError):
            # A zombie has left its namespaces, so that its link cannot be read.
            if os.stat(f"/proc/{entry}/ns/uts").st_ino == uts_inode:
                yield int(entry)


def main(arguments: list[str]) -> int:
    """Makes the namespaces and forks process 1; returns when that one is ready, or could not be."""
    folder, packages = Path(arguments[0]), Path(arguments[1])
    binds = {
        inside: (Path(path), bool(read_only))
        for inside, (path, read_only) in json.loads(
            arguments[2] if len(arguments) > 2 else "{}"
        ).items()
    }
    _close_inherited()
    listener = _listen(folder / "control")
    try:
        sandbox.unshare_all()
    except sandbox.SandboxError as error:
        print(error, flush=True)  # noqa: T201 - the caller reads this line
        return 1
    said, saying = os.pipe()
    if os.fork():
        os.close(saying)
        with os.fdopen(said) as report:
            text = report.read()
        print(text, flush=True)  # noqa: T201 - the caller reads this line
        return 0 if text == "ready" else 1
    os.setsid()
    try:
        sandbox.furnish(folder, packages, binds)
    except sandbox.SandboxError as error:
        os.write(saying, str(error).encode())
        return 1
    _detach()
    # Here and not earlier: peers see the process that called listen(2) (unix(7), SO_PEERCRED).
    listener.listen(64)
    os.write(saying, b"ready")
    os.close(saying)
    Init(listener).run()
    return 0


def _close_inherited() -> None:
    """Closes what the caller left open, such as its own ends of this program's pipes: the caller
    waits for their end, and nothing of it may reach into the namespaces."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            # The descriptor of the listing itself is closed already.
            with contextlib.suppress(OSError):
                os.close(int(name))


def _listen(control: Path) -> socket.socket:
    """The socket of orders, bound by a relative name because addresses have 108 bytes at most."""
    os.chdir(control)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.umask(0o077)
    listener.bind(SOCKET)
    os.umask(0o022)
    os.chdir("/")
    return listener


def _detach() -> None:
    """Lets go of the caller's terminal and pipes."""
    folder = f"{sandbox.CLUSTER}/log"
    os.makedirs(folder, exist_ok=True)
    nothing = os.open("/dev/null", os.O_RDONLY)
    log = os.open(f"{folder}/init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


if __name__ == "__main__":
    # Leaving by `_exit` runs no clean-up of the interpreter: process 1 ends all others by ending.
    os._exit(main(sys.argv[1:]))
