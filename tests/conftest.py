"""What every test shares: the stores' fixtures and the check of requirement ids."""

import os
import sys
from pathlib import Path

# With import-mode=importlib nothing puts the tests' own directory on the path, and shared starters
# such as `stores` are imported by name from there.
sys.path.insert(0, str(Path(__file__).parent))

# Platforms that tests start would each download Slurm; tests of Slurm name their own folder.
os.environ.setdefault("DFLARE_SLURM_PACKAGES", "off")

pytest_plugins = ("stores", "requirement_marker")
