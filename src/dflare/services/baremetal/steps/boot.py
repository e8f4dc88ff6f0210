"""Bringing a node's agent up on its boot medium, and giving it one task."""

import asyncio
from typing import Any

from dflare.drivers.bmc.port import BootTarget, Power
from dflare.services.baremetal.errors import NodeFailedError
from dflare.services.baremetal.steps.base import NodeWork

LOOK_EVERY_S = 5.0
"""How often the BMC is looked at while an agent is waited for."""


def medium_url(work: NodeWork) -> str:
    """Where the node's boot medium is."""
    return f"{work.parts.public_url}/boot/{work.session.agent_token}/agent.iso"


async def boot_agent(work: NodeWork, round_: int, not_boot: str = "") -> None:
    """Boot the medium for the ``round_``-th time in this session and wait for the agent's hello
    from a boot other than ``not_boot``.

    A boot that does not come is tried again: at once where the server is found off, otherwise
    after the settings' patience.
    """
    session, loop = work.session, asyncio.get_running_loop()
    give_up_at = loop.time() + work.parts.patience_s()
    off_before = False
    look_at = loop.time() + LOOK_EVERY_S
    while session.round < round_ or session.boot_id in ("", not_boot):
        if session.closed:
            raise NodeFailedError("the node was taken over")
        now = loop.time()
        if session.round < round_ or now >= give_up_at:
            await _boot(work, round_)
            give_up_at = loop.time() + work.parts.patience_s()
            off_before = False
            # The hello may have come while the boot was being noted.
            continue
        if now >= look_at:
            off = (await work.parts.bmc.observe(work.node.bmc)).power is Power.OFF
            if off and off_before:
                give_up_at = now
            off_before = off
            look_at = loop.time() + LOOK_EVERY_S
            continue
        await work.until_changed("the agent has not said hello", LOOK_EVERY_S)


async def run_task(work: NodeWork, kind: str, params: dict[str, Any]) -> dict[str, Any]:
    """Let the running agent do a task and return what it observed.

    An agent that was lost (its server is off, or booted something else) is booted again: the task
    was not reported, so it is done anew.

    Raises:
        NodeFailedError: the agent reports that it failed.
    """
    session, loop = work.session, asyncio.get_running_loop()
    await work.parts.sessions.assign(session, kind, params)
    look_at, off_before = loop.time() + LOOK_EVERY_S, False
    while kind not in session.done:
        if session.closed:
            raise NodeFailedError("the node was taken over")
        await work.until_changed(f"the agent has not finished {kind}", LOOK_EVERY_S)
        if kind in session.done:
            break
        if loop.time() >= look_at:
            off = (await work.parts.bmc.observe(work.node.bmc)).power is Power.OFF
            if off and off_before:
                await _boot(work, session.round)
            off_before = off
            look_at = loop.time() + LOOK_EVERY_S
    last = session.done[kind]
    if last["state"] != "succeeded":
        raise NodeFailedError(f"{kind}: {last['message']}", fault=True)
    return dict(last["observed"])


async def _boot(work: NodeWork, round_: int) -> None:
    bmc, access = work.parts.bmc, work.node.bmc
    await bmc.ensure_media(access, medium_url(work))
    await bmc.boot(access, BootTarget.CD)
    # Noted after it: a crash between the two only boots once more.
    await work.parts.sessions.booted(work.session, round_)
