"""Writing a tenant's system to a node, and starting it."""

import asyncio
import base64
from collections.abc import Mapping
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
from dflare.services.clusters.contract import SchedulerSecret

PURPOSE = "provision"
_TENANT_ROUND = 2
"""The session's second boot: that of the tenant's system; the first is the agent's."""


class BootPlan:
    """What the nodes boot with: the cluster's configuration, its image, its user data, and of a
    Slurm cluster its secret and the name that each node has there, as far as it is known."""

    def __init__(
        self,
        config: BootConfig,
        image: Image | None,
        user_data: str,
        scheduler: SchedulerSecret | None,
        slots: Mapping[str, str],
    ) -> None:
        self.config = config
        self.image = image
        self.user_data = user_data
        self.scheduler = scheduler
        self.slots = slots
        self.source: ImageSource | None = None

    def vendor_data(self, node_id: str) -> str:
        """The vendor data of a node; empty where it joins nothing.

        Raises:
            StillWaitingError: its allocation has not been heard of.
        """
        if self.scheduler is None:
            return ""
        slot = self.slots.get(node_id)
        if slot is None:
            raise StillWaitingError("the node's place in its cluster has not come yet")
        return slurmd_vendor_data(self.scheduler, slot)


class _TenantStep(NodeStep):
    """A step that needs the cluster's boot configuration."""

    async def load_extra(self, session: AsyncSession, call: StepCall) -> object:
        """See ``NodeStep.load_extra``."""
        cluster_id = call.params.get("cluster_id") or call.resource_id
        held = await repository.holders(session, SCOPE, list(call.targets))
        if call.ordering_service == SCHEMA:
            cluster_id = next((holder.cluster_id for holder in held.values()), "")
        config = await repository.boot_config(session, SCOPE, cluster_id)
        if config is None:
            return None
        image = await repository.image(session, call.site_id or config.site_id, config.image)
        sealed, user_data = config.user_data_sealed, ""
        if sealed is not None:
            name = f"user_data/{cluster_id}"
            user_data = self.parts.sealer.open(name, base64.b64decode(sealed)).decode()
        slots = {
            node_id: f"{holder.pool}-{holder.slot}"
            for node_id, holder in held.items()
            if holder.cluster_id == cluster_id
        }
        return BootPlan(config, image, user_data, self._scheduler(config), slots)

    def _scheduler(self, config: BootConfig) -> SchedulerSecret | None:
        if config.scheduler_sealed is None:
            return None
        sealed = base64.b64decode(config.scheduler_sealed)
        name = f"scheduler/{config.cluster_id}"
        return SchedulerSecret.model_validate_json(self.parts.sealer.open(name, sealed))

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

    def plan_of(self, work: NodeWork) -> tuple[BootPlan, ImageSource]:
        """What the node boots with, and where its image comes from.

        Raises:
            NodeFailedError: the image is not one of the site's.
            StillWaitingError: the cluster's event has not come.
        """
        plan = work.extra
        if not isinstance(plan, BootPlan):
            raise StillWaitingError("the cluster's boot configuration has not come yet")
        if plan.source is None:
            raise NodeFailedError(f"the site has no image {plan.config.image}")
        return plan, plan.source


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
        plan, source = self.plan_of(work)
        drive = _config_drive(work, plan)
        if "write_image" not in work.session.done:
            await boot_agent(work, 1)
        _check_serial(work)
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
        plan, source = self.plan_of(work)
        bmc, access, session = work.parts.bmc, work.node.bmc, work.session
        if session.up is None:
            await self._until_up(work)
        up = session.up or {}
        _check_up(work, up, plan.config, source)
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


def slurmd_vendor_data(scheduler: SchedulerSecret, slot: str) -> str:
    """Vendor data that makes a node ``slot`` of its Slurm cluster: the munge key, and a slurmd
    that takes its name and its configuration from there. JSON is YAML 1.2.

    Source: cloud-init, modules ``write_files`` and ``runcmd``; slurmd(8), configless.
    """
    options = f'SLURMD_OPTIONS="-N {slot} --conf-server {scheduler.controller}"\n'
    document = {
        "write_files": [
            {
                "path": "/etc/munge/munge.key",
                "encoding": "b64",
                "content": scheduler.munge_key,
                "owner": "munge:munge",
                "permissions": "0400",
            },
            {"path": "/etc/default/slurmd", "content": options, "permissions": "0644"},
        ],
        "runcmd": [["systemctl", "enable", "--now", "munge", "slurmd"]],
    }
    return f"#cloud-config\n{orjson.dumps(document).decode()}\n"


def _config_drive(work: NodeWork, plan: BootPlan) -> dict[str, Any]:
    """What cloud-init reads: a NoCloud drive's documents."""
    config = plan.config
    meta_data = {
        "instance-id": f"{work.node.id}/{work.call.operation_id}",
        "local-hostname": work.node.name,
        "dflare": {
            "cluster_id": config.cluster_id,
            "cluster": config.name,
            "project_id": config.project_id,
            "site_id": work.node.site_id,
            **work.parts.measuring(work.node.id, config.cluster_id),
        },
    }
    return {
        "user_data": plan.user_data,
        "vendor_data": plan.vendor_data(work.node.id),
        "meta_data": orjson.dumps(meta_data).decode(),
        "ssh_keys": list(config.ssh_keys),
        "phone_home_url": f"{work.parts.public_url}/v1/agent/up",
        "phone_home_token": work.session.phone_token,
    }
