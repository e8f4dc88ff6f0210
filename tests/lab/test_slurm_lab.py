"""The Slurm clusters with packages that come from the machine's own Debian sources."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dflare.embedded.packages import SWITCH_VARIABLE, PackageCache, PackagesState

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.lab


@pytest.mark.timeout(900)
def test_every_promise_about_clusters_holds_with_downloaded_packages() -> None:
    cache = PackageCache(REPOSITORY / ".lab" / "slurm-packages")
    status = cache.prepare()
    assert status.state is PackagesState.READY, status.reason
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/sim/test_slurm_cluster.py"],
        cwd=REPOSITORY,
        env={**os.environ, SWITCH_VARIABLE: str(cache.folder)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-1000:]
