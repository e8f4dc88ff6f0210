"""Histories of before replay with the interpreter of today: an upgrade breaks no running order.

A new one is saved with ``DFLARE_TEST_SAVE_HISTORY=<name>`` when the interpreter's calls change on
purpose; the old ones stay as long as such operations may still run.
"""

import json
import os
import re
from pathlib import Path

import pytest
from sagakit import Disturbance, SagaBench
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from dflare.services.orchestrator.reconciler import workflow_id
from dflare.services.orchestrator.workflow import OperationWorkflow
from lab import LabWorld

HISTORIES = Path(__file__).parent / "histories"


def replayer() -> Replayer:
    return Replayer(workflows=[OperationWorkflow], data_converter=pydantic_data_converter)


SAVED = {path.stem: path.read_text() for path in sorted(HISTORIES.glob("*.json"))}


@pytest.mark.parametrize("name", SAVED)
async def test_a_saved_history_replays(name: str) -> None:
    await replayer().replay_workflow(WorkflowHistory.from_json(name, SAVED[name]))


@pytest.mark.parametrize(
    ("name", "disturbance"),
    [
        ("order", None),
        ("replacement", Disturbance("fail_one", 5, "lab.write@1")),
        ("undo", Disturbance("fail_all", 7, "orchestrator.hand_over@1")),
    ],
)
async def test_a_run_replays_as_it_happened(
    bench: SagaBench, world: LabWorld, name: str, disturbance: Disturbance | None
) -> None:
    final = await bench.run(disturbance)
    handle = bench.client.get_workflow_handle(workflow_id(final.operation_id, 1))
    history = await handle.fetch_history()
    await replayer().replay_workflow(history)
    if suffix := os.environ.get("DFLARE_TEST_SAVE_HISTORY"):
        save(HISTORIES / f"{name}_{suffix}.json", history)


def save(path: Path, history: WorkflowHistory) -> None:
    """Without the names of machine and process, which nothing depends on."""
    text = re.sub(r'"[0-9]+@[^":]+(:|")', r'"worker\1', history.to_json())
    path.write_text(json.dumps(json.loads(text), separators=(",", ":")) + "\n")
