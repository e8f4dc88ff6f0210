"""What a server's disk makes of it in a Slurm cluster, and what is told of jobs: without Slurm."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, cast

import pytest

from dflare.services.baremetal.steps.provision import slurmd_vendor_data
from dflare.services.clusters.contract import SchedulerSecret
from dflare.sim.clock import SimClock
from dflare.sim.scheduler.job_truth import JobTruth
from dflare.sim.scheduler.slurmd import settings_of
from dflare.sim.slurm.cluster import ClusterNamespace
from dflare.sim.slurm.orders import Output
from dflare.sim.truth import TruthLog
from scheduler_host import vendor_data

KEY = bytes(range(128))
STARTED = "100.5 started gpu-0 7 0,1,2,3 my-project\n"
ENDED = "103.5 ended gpu-0 7 0,1,2,3 my-project\n"


class Told:
    """A cluster whose servers noted these lines."""

    def __init__(self) -> None:
        self.text = ""

    async def run(self, argv: Sequence[str], **_more: Any) -> Output:
        start = int(argv[2].removeprefix("+")) - 1
        return Output(0, self.text.encode()[start:].decode(), "")

    def namespace(self) -> ClusterNamespace:
        """It stands in for the one method that is called."""
        return cast("ClusterNamespace", self)


@pytest.fixture
def log() -> TruthLog:
    return TruthLog(None, SimClock(1))


def test_the_platforms_vendor_data_name_slot_controller_and_key() -> None:
    controller = "clu-1.scheduler.internal:6817"
    secret = SchedulerSecret(munge_key=base64.b64encode(KEY).decode(), controller=controller)
    found = settings_of(slurmd_vendor_data(secret, "gpu-3"))
    assert found is not None
    assert (found.slot, found.controller, found.munge_key) == ("gpu-3", controller, KEY)


def test_the_key_is_told_by_its_digest_alone() -> None:
    found = settings_of(vendor_data("clu_1", "gpu-0", KEY))
    assert found is not None
    assert found.document()["munge_key_sha256"] == hashlib.sha256(KEY).hexdigest()
    assert base64.b64encode(KEY).decode() not in str(found.document())
    assert "munge_key" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#!/bin/sh\necho SLURMD_OPTIONS",
        "#cloud-config\n[",
        "#cloud-config\n- a list",
        "#cloud-config\nwrite_files: [{path: /etc/default/slurmd, content: SLURMD_OPTIONS=-N}]",
        vendor_data("clu_1", "gpu-0", KEY).replace("encoding: b64\n", "encoding: b64\n  x: [\n"),
        vendor_data("clu_1", "gpu-0", KEY).replace(base64.b64encode(KEY).decode(), "no%base64"),
        vendor_data("clu_1", "gpu-0", KEY).replace("--conf-server", "--other"),
    ],
)
def test_vendor_data_that_make_no_slurm_node_make_none(text: str) -> None:
    assert settings_of(text) is None


async def test_a_job_is_told_once_from_its_start_to_its_end(log: TruthLog) -> None:
    told, jobs = Told(), JobTruth("clu_1", log)
    told.text = STARTED
    for _ in range(2):
        await jobs.read(told.namespace(), {"gpu-0": "n0"})
    told.text += ENDED + "104.5 started gpu-0 8 "
    await jobs.read(told.namespace(), {"gpu-0": "n0"})
    entries = [(e.kind, e.subject, e.facts["job"], e.facts["gpus"]) for e in log.entries()]
    assert entries == [("job_started", "n0", "7", 4), ("job_ended", "n0", "7", 4)]
    assert [e.facts["at"] for e in log.entries()] == [100.5, 103.5]
    told.text += "- my-project\n"
    await jobs.read(told.namespace(), {"gpu-0": "n0"})
    (last,) = log.entries("job_started", after=2)
    assert (last.facts["job"], last.facts["gpus"]) == ("8", 0)


async def test_a_job_on_a_server_that_loses_its_power_ends_there(log: TruthLog) -> None:
    told, jobs = Told(), JobTruth("clu_1", log)
    told.text = STARTED + STARTED.replace("gpu-0", "gpu-1")
    await jobs.read(told.namespace(), {"gpu-0": "n0", "gpu-1": "n1"})
    jobs.lost("gpu-1")
    jobs.lost("gpu-1")
    (ended,) = log.entries("job_ended")
    assert (ended.subject, ended.facts["how"]) == ("n1", "power")


async def test_lines_that_nobody_would_write_are_passed_over(log: TruthLog) -> None:
    told, jobs = Told(), JobTruth("clu_1", log)
    told.text = "nonsense\n" + STARTED.replace("gpu-0", "nowhere") + ENDED
    await jobs.read(told.namespace(), {"gpu-0": "n0"})
    assert log.entries() == []
