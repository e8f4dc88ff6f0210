"""What every test shares: the stores' fixtures and the check of requirement ids."""

import sys
from pathlib import Path

# With import-mode=importlib nothing puts the tests' own directory on the path, and shared starters
# such as `stores` are imported by name from there.
sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ("stores", "requirement_marker")
