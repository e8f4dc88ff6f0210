"""The demonstration's job: as many GPUs as the cluster has, a volume, and by the API alone."""

import re
import time
from typing import TYPE_CHECKING

from dflare.cli.demo_leave import settled
from dflare.cli.demo_proofs import job_problems
from dflare.cli.errors import ApiProblem, CliError, Json
from dflare.cli.watch import finish

if TYPE_CHECKING:
    from dflare.cli.demo_order import Order
    from dflare.cli.demo_stage import Stage
    from dflare.cli.demo_story import Story

VOLUME, MOUNT, SIZE_GIB = "data", "/mnt/data", 10
QUOTA = "volume-gib"
OVER = ("ended", "refused")
JOB_WITHIN_S, POLL_S, READS = 120.0, 0.2, 50
SHOWN = 4
"""Lines of the output that are shown before it is cut."""
SCRIPT = """#!/bin/bash
srun --ntasks-per-node=1 bash -c 'echo "$(hostname) has GPUs $SLURM_STEP_GPUS"' | sort -V{tee}
sleep 2
"""
"""It sleeps because Slurm's accounting counts whole seconds."""


def make_volume(story: "Story", order: "Order") -> None:
    """A volume for the cluster to mount; where the site has no storage, say why there is none."""
    tenant, operator = order.tenant, story.world.operator
    operator.change("PUT", tenant.path("quotas", QUOTA), {"nodes": SIZE_GIB})
    body = {"name": VOLUME, "size_gib": SIZE_GIB, "site": order.node_type["site_id"]}
    try:
        operation = _ordered_volume(story, order, body)
    except ApiProblem as problem:
        story.stage.say(f"No volume here: {problem.detail}", "yellow")
        return
    finish(settled(tenant.api, operation))
    order.volumes = ({"volume": VOLUME, "mount": MOUNT},)
    story.stage.say(f"$ dflare volume create {VOLUME} --size {SIZE_GIB} --wait", "bold")


def _ordered_volume(story: "Story", order: "Order", body: Json) -> Json:
    """Order it; the quota that was just given travels as an event."""
    path = order.tenant.path("volumes")
    for _ in range(READS):
        try:
            return order.tenant.api.order("POST", path, body)
        except ApiProblem as problem:
            if not str(problem.document.get("type")).endswith("quota"):
                raise
            story.stage.wait(POLL_S)
    return order.tenant.api.order("POST", path, body)


def job(story: "Story", order: "Order") -> None:
    """Run a job on every GPU of the cluster and show what it printed.

    Raises:
        CliError: it does not end.
    """
    if order.kind != "slurm":
        return
    stage, gpus = story.stage, order.node_type["gpus"]
    stage.act(f"A job on {order.count * gpus} GPUs")
    script = SCRIPT.format(tee=f" | tee {MOUNT}/result" if order.volumes else "")
    options = [f"--nodes={order.count}", f"--gres=gpu:{gpus}"]
    stage.say(f"$ dflare cluster submit train gpus.sh --wait -- {' '.join(options)}", "bold")
    path = f"{order.path}/jobs"
    body = {"name": "gpus", "script": script, "options": options}
    began = time.monotonic()
    submitted = order.tenant.api.order("POST", path, body)
    found = _ended(stage, order, f"{path}/{submitted['id']}")
    took_s = time.monotonic() - began
    output = order.tenant.api.get(f"{path}/{submitted['id']}/output")
    lines = [line for line in str(output["text"]).splitlines() if line.strip()]
    _show_output(stage, lines)
    order.job = found
    stage.say(
        f"Slurm's accounting: job {found['scheduler_id']} had {found['nodes']} servers, "
        f"{found['gpus']} GPUs, {found['gpu_seconds']} GPU-seconds. It took {took_s:.1f} s.\n"
    )
    stage.proof(
        f"one job printed from {order.count} servers with {gpus} GPUs each",
        job_problems(found, lines, order.count, gpus),
    )
    stage.pause(2)


def _ended(stage: "Stage", order: "Order", path: str) -> Json:
    """The job once it has ended and all that it wrote was read."""
    deadline = time.monotonic() + JOB_WITHIN_S
    while True:
        found = order.tenant.api.get(path)
        whole = order.tenant.api.get(f"{path}/output")["state"] != "open"
        if found["state"] in OVER and (whole or found["state"] == "refused"):
            return found
        if time.monotonic() > deadline:
            raise CliError(
                f"the job is {found['state']} after {JOB_WITHIN_S:.0f} s "
                f"({found['scheduler_state'] or 'not with Slurm'}): {found['reason']}",
                next_step="See `dflare cluster jobs` and `dflare logs site-worker`.",
            )
        stage.wait(POLL_S)


def _show_output(stage: "Stage", lines: list[str]) -> None:
    shown = lines if len(lines) <= SHOWN else [*lines[: SHOWN - 1], "…", lines[-1]]
    for line in shown:
        stage.say(f"  {re.sub(r'[^ -~…]', '?', line)}")
    stage.say("")
