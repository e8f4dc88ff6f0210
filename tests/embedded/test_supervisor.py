"""The supervisor over small programs: order, restarts, hangs, and nothing left behind."""

import asyncio
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dflare.embedded.component import Component, ReadyFile, RestartPolicy, listening
from dflare.embedded.identity import ProcessIdentity, marked_processes
from dflare.embedded.keeper import KeepingPolicy
from dflare.embedded.layout import Layout
from dflare.embedded.plan import Plan
from dflare.embedded.ports import free_port
from dflare.embedded.state import ComponentState, ComponentStatus, SupervisorState, read_state
from dflare.embedded.supervisor import Supervisor, dependency_levels

QUICK = KeepingPolicy(
    first_delay_s=0.05,
    longest_delay_s=0.2,
    ready_poll_s=0.02,
    health_poll_s=0.05,
    hung_after_checks=4,
)
SLEEPER = "import time\ntime.sleep(600)"


def program(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(source))


async def always_ready() -> bool:
    return True


async def until(what: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 - the world outside this process sets no event
            await asyncio.sleep(0.02)


class Running:
    """A supervisor in this process, with its written state."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    def state(self) -> SupervisorState:
        state = read_state(self.layout.state_file)
        assert state is not None
        return state

    def component(self, name: str) -> ComponentStatus:
        return next(item for item in self.state.components if item.name == name)

    def pid(self, name: str) -> int:
        process = self.component(name).process
        assert process is not None
        return process.pid


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "data")
    layout.create()
    return layout


@asynccontextmanager
async def supervised(layout: Layout, *components: Component) -> AsyncIterator[Running]:
    stop = asyncio.Event()
    plan = Plan(components=components, urls={})
    task = asyncio.create_task(Supervisor(layout, plan, policy=QUICK).run(stop))
    try:
        running = Running(layout)
        await until(lambda: read_state(layout.state_file) is not None)
        yield running
    finally:
        stop.set()
        await task
    assert marked_processes(layout.root) == [], "the supervisor left processes behind"


async def test_a_component_starts_only_when_what_it_needs_is_healthy(layout: Layout) -> None:
    open_gate = layout.root / "gate"
    order = layout.root / "order"

    def writes(name: str) -> tuple[str, ...]:
        return program(f"open({str(order)!r}, 'a').write('{name} ')\n{SLEEPER}")

    async def gate_is_open() -> bool:
        return open_gate.exists()

    async with supervised(
        layout,
        Component("second", writes("second"), ready=always_ready, depends_on=("first",)),
        Component("first", writes("first"), ready=gate_is_open),
    ) as running:
        await until(lambda: order.exists() and order.read_text() == "first ")
        assert running.component("second").state is ComponentState.WAITING
        open_gate.touch()
        await until(lambda: running.state.is_ready)
        await until(lambda: order.read_text() == "first second ")


async def test_a_killed_component_is_started_again(layout: Layout) -> None:
    async with supervised(
        layout, Component("server", program(SLEEPER), ready=always_ready)
    ) as running:
        await until(lambda: running.state.is_ready)
        before = running.pid("server")
        os.kill(before, signal.SIGKILL)
        await until(lambda: running.component("server").restarts == 1)
        await until(lambda: running.state.is_ready)
        assert running.pid("server") != before


async def test_a_crash_loop_is_shown_with_its_reason_and_ends_when_the_cause_is_gone(
    layout: Layout,
) -> None:
    cure = layout.root / "cure"
    source = f"""
        import pathlib, sys, time
        if not pathlib.Path({str(cure)!r}).exists():
            sys.exit(7)
        time.sleep(600)
    """
    alive = ReadyFile(layout.run / "never", alive_s=0.5)
    async with supervised(
        layout,
        Component("sick", program(source), prepare=alive.prepare, ready=alive.check),
    ) as running:
        await until(lambda: running.component("sick").in_crash_loop)
        assert "exited with code 7" in running.component("sick").detail
        assert not running.state.is_ready
        cure.touch()
        await until(lambda: running.state.is_ready)


async def test_a_step_runs_until_it_succeeds_and_then_never_again(layout: Layout) -> None:
    runs = layout.root / "runs"
    source = f"""
        import sys
        with open({str(runs)!r}, "a") as file:
            file.write("x")
        sys.exit(0 if len(open({str(runs)!r}).read()) >= 3 else 1)
    """
    async with supervised(
        layout,
        Component("migrate", program(source), restart=RestartPolicy.UNTIL_SUCCESS),
        Component("after", program(SLEEPER), ready=always_ready, depends_on=("migrate",)),
    ) as running:
        await until(lambda: running.state.is_ready)
        assert running.component("migrate").state is ComponentState.DONE
        assert runs.read_text() == "xxx"


async def test_a_component_that_hangs_is_killed_and_started_again(layout: Layout) -> None:
    port = free_port()
    source = f"""
        import socket
        server = socket.create_server(("127.0.0.1", {port}))
        while True:
            server.accept()[0].close()
    """
    async with supervised(
        layout, Component("server", program(source), ready=listening("127.0.0.1", port))
    ) as running:
        await until(lambda: running.state.is_ready)
        before = running.pid("server")
        # A stopped process keeps its listening socket; filling its backlog makes checks time out.
        os.kill(before, signal.SIGSTOP)
        fillers = [socket.socket() for _ in range(300)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        await until(lambda: running.component("server").restarts == 1, timeout_s=60)
        for filler in fillers:
            filler.close()
        await until(lambda: running.state.is_ready)
        assert running.pid("server") != before


async def test_stopping_ends_what_ignores_it_and_what_left_its_group(layout: Layout) -> None:
    pid_file = layout.root / "daemon"
    source = f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        daemon = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
        )
        open({str(pid_file)!r}, "w").write(str(daemon.pid))
        time.sleep(600)
    """
    async with supervised(
        layout, Component("stubborn", program(source), ready=always_ready, grace_s=0.3)
    ) as running:
        await until(lambda: pid_file.exists() and pid_file.read_text() != "")
        daemon = ProcessIdentity.of(int(pid_file.read_text()))
        leader = running.component("stubborn").process
    assert daemon is not None
    assert leader is not None
    await until(lambda: not daemon.is_alive() and not leader.is_alive())
    assert running.state.stopped


async def test_components_stop_before_what_they_need(layout: Layout) -> None:
    order = layout.root / "order"

    def tells_its_end(name: str) -> tuple[str, ...]:
        return program(f"""
            import signal, sys, time
            def end(*_):
                open({str(order)!r}, "a").write("{name} ")
                sys.exit(0)
            signal.signal(signal.SIGTERM, end)
            open({str(layout.run / name)!r}, "w").close()
            time.sleep(600)
        """)

    def has_handler(name: str) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return (layout.run / name).exists()

        return check

    async with supervised(
        layout,
        Component("store", tells_its_end("store"), ready=has_handler("store")),
        Component("api", tells_its_end("api"), ready=has_handler("api"), depends_on=("store",)),
    ) as running:
        await until(lambda: running.state.is_ready)
    assert order.read_text() == "api store "


async def test_an_outside_server_is_followed_and_never_started(layout: Layout) -> None:
    port = free_port()
    component = Component("outside", ready=listening("127.0.0.1", port), advice="check the port")
    async with supervised(layout, component) as running:
        await until(lambda: running.component("outside").state is ComponentState.UNHEALTHY)
        assert "check the port" in running.component("outside").detail
        server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", port)
        await until(lambda: running.state.is_ready)
        assert running.component("outside").process is None
        server.close()
        await server.wait_closed()
        await until(lambda: running.component("outside").state is ComponentState.UNHEALTHY)


async def test_a_preparation_that_fails_is_told_and_repeated(layout: Layout) -> None:
    tries: list[int] = []

    def prepare() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no space left")

    async with supervised(
        layout, Component("store", program(SLEEPER), prepare=prepare, ready=always_ready)
    ) as running:
        await until(lambda: "no space left" in running.component("store").detail)
        await until(lambda: running.state.is_ready)


def test_delays_double_up_to_the_longest() -> None:
    policy = KeepingPolicy()
    assert [policy.delay_s(failures) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_circular_and_unknown_dependencies_are_refused() -> None:
    loop = [Component("a", depends_on=("b",)), Component("b", depends_on=("a",))]
    with pytest.raises(ValueError, match="Circular or unknown"):
        dependency_levels(loop)
    with pytest.raises(ValueError, match="Circular or unknown"):
        dependency_levels([Component("a", depends_on=("missing",))])
