"""Writing a tenant's system to a node, and starting it."""

import asyncio
import base64
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.bmc.port import BootTarget
from dflare.kit.outbox import Event
from dflare.kit.plan import StepCall
from dflare.kit.steps import Outcome
from dflare.services.baremetal import repository
from dflare.services.baremetal.agent_sessions import SCHEMA, Conversation, session_id
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.errors import NodeFailedError, StillWaitingError
from dflare.services.baremetal.image_files import ImageSource
from dflare.services.baremetal.steps.base import (
    SCOPE,
    Loaded,
    NodeStep,
    NodeWork,
    change_state,
)
from dflare.services.baremetal.steps.boot import LOOK_EVERY_S, boot_agent, run_task
from dflare.services.baremetal.steps.power import power_off
from dflare.services.baremetal.tables import BootConfig, Image, Node

PURPOSE = "provision"
_TENANT_ROUND = 2
"""The session's second boot: that of the tenant's system; the first is the agent's."""


class BootPlan:
    """What the nodes boot with: the cluster's configuration, its image, its user data."""

    def __init__(self, config: BootConfig, image: Image | None, user_data: str) -> None:
        self.config = config
        self.image = image
        self.user_data = user_data
        self.source: ImageSource | None = None


class _TenantStep(NodeStep):
    """A step that needs the cluster's boot configuration."""

    async def load_extra(self, session: AsyncSession, call: StepCall) -> object:
        """See ``NodeStep.load_extra``."""
        cluster_id = call.params.get("cluster_id") or call.resource_id
        if call.ordering_service == SCHEMA:
            held = await repository.holders(session, SCOPE, list(call.targets))
            cluster_id = next((holder.cluster_id for holder in held.values()), "")
        config = await repository.boot_config(session, SCOPE, cluster_id)
        if config is None:
            return None
        image = await repository.image(session, call.site_id or config.site_id, config.image)
        sealed, user_data = config.user_data_sealed, ""
        if sealed is not None:
            name = f"user_data/{cluster_id}"
            user_data = self.parts.sealer.open(name, base64.b64decode(sealed)).decode()
        return BootPlan(config, image, user_data)

    async def prepare(self, call: StepCall, loaded: Loaded) -> dict[str, Conversation]:
        """See ``NodeStep.prepare``."""
        plan = loaded.extra
        if isinstance(plan, BootPlan) and plan.image is not None:
            plan.source = await self.parts.images.source(plan.image)
        keys = [
            (session_id(call.operation_id, PURPOSE, call.generation, id_), id_, call.operation_id)
            for id_ in loaded.nodes
        ]
        return await self.parts.sessions.open(keys)

    def plan_of(self, work: NodeWork) -> tuple[BootConfig, ImageSource, str]:
        """Configuration, image source and user data.

        Raises:
            NodeFailedError: the image is not one of the site's.
            StillWaitingError: the cluster's event has not come.
        """
        plan = work.extra
        if not isinstance(plan, BootPlan):
            raise StillWaitingError("the cluster's boot configuration has not come yet")
        if plan.source is None:
            raise NodeFailedError(f"the site has no image {plan.config.image}")
        return plan.config, plan.source, plan.user_data


class Provision(_TenantStep):
    """Boot the agent, let it write the image and the config drive, and turn the node off."""

    name = "baremetal.provision@1"
    entering = NodeState.PROVISIONING

    def enter(self, row: Node, call: StepCall, now: datetime, events: list[Event]) -> None:
        """See ``NodeStep.enter``. From here the disks may hold the tenant's data."""
        row.dirty = True
        super().enter(row, call, now, events)

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        config, source, user_data = self.plan_of(work)
        if "write_image" not in work.session.done:
            await boot_agent(work, 1)
        _check_serial(work)
        drive = _config_drive(work, config, user_data)
        observed = await run_task(
            work,
            "write_image",
            {
                "image_url": source.url,
                "image_sha256": source.sha256,
                "disk": None,
                "config_drive": drive,
            },
        )
        if observed.get("sha256") != source.sha256:
            reason = f"the disk reads back as {observed.get('sha256')}, not as {source.sha256}"
            raise NodeFailedError(reason, fault=True)
        await power_off(work)
        return Outcome("done", observed={"image_sha256": source.sha256})


class Reimage(Provision):
    """The same on a node that its tenant has: its disks are written anew."""

    name = "baremetal.reimage@1"


class Start(_TenantStep):
    """Boot the tenant's system; ends when it has called home and the BMC sees it run."""

    name = "baremetal.start@1"
    leaving = NodeState.ACTIVE
    releases = True

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        config, source, _ = self.plan_of(work)
        bmc, access, session = work.parts.bmc, work.node.bmc, work.session
        if session.up is None:
            await self._until_up(work)
        up = session.up or {}
        _check_up(work, up, config, source)
        while not (await bmc.observe(access)).os_running:
            await work.pause("the BMC does not see the system run yet")
        return Outcome("done", observed={"boot_id": up["boot_id"]})

    def admit(self, row: Node, call: StepCall) -> Outcome | None:
        """See ``NodeStep.admit``."""
        if row.state not in (NodeState.PROVISIONING, NodeState.ACTIVE):
            reason = f" ({row.reason})" if row.reason else ""
            return Outcome("failed", f"the node is {row.state}{reason}")
        return super().admit(row, call)

    async def _until_up(self, work: NodeWork) -> None:
        """Boot the disk and wait for the call home; a boot that brings none is tried again."""
        bmc, access, session = work.parts.bmc, work.node.bmc, work.session
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + work.parts.patience_s()
        while session.up is None:
            if session.closed:
                raise NodeFailedError("the node was taken over")
            if session.round < _TENANT_ROUND or loop.time() >= give_up_at:
                await bmc.ensure_media(access, None)
                await bmc.boot(access, BootTarget.DISK)
                # Noted after it: a crash between the two only boots once more.
                await work.parts.sessions.booted(session, _TENANT_ROUND)
                give_up_at = loop.time() + work.parts.patience_s()
                continue
            await work.until_changed("the tenant's system has not called home", LOOK_EVERY_S)

    def succeeded(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.succeeded``."""
        row.power = "on"
        change_state(row, NodeState.ACTIVE, "", now, call, events)


def _check_serial(work: NodeWork) -> None:
    """The agent runs on the server that was declared, and not on one with swapped cables."""
    if work.session.serial and work.session.serial != work.node.serial:
        reason = f"the agent reports serial {work.session.serial}, declared is {work.node.serial}"
        raise NodeFailedError(reason, fault=True)


def _check_up(work: NodeWork, up: dict[str, Any], config: BootConfig, source: ImageSource) -> None:
    if up["serial"] != work.node.serial:
        raise NodeFailedError(f"server {up['serial']} called home instead", fault=True)
    if up["image_sha256"] != source.sha256:
        raise NodeFailedError(f"it runs image {up['image_sha256']}, not {source.sha256}")
    if sorted(up["ssh_keys"]) != sorted(config.ssh_keys):
        raise NodeFailedError("its SSH keys are not those of the order")


def _config_drive(work: NodeWork, config: BootConfig, user_data: str) -> dict[str, Any]:
    """What cloud-init reads: a NoCloud drive's documents."""
    meta_data = {
        "instance-id": f"{work.node.id}/{work.call.operation_id}",
        "local-hostname": work.node.name,
        "dflare": {
            "cluster_id": config.cluster_id,
            "cluster": config.name,
            "project_id": config.project_id,
            "site_id": work.node.site_id,
        },
    }
    return {
        "user_data": user_data,
        "meta_data": orjson.dumps(meta_data).decode(),
        "ssh_keys": list(config.ssh_keys),
        "phone_home_url": f"{work.parts.public_url}/v1/agent/up",
        "phone_home_token": work.session.phone_token,
    }
