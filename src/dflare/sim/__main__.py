"""``python -m dflare.sim --config FILE --log FILE``: run the simulated data center.

Exit codes: 0 after SIGTERM or SIGINT, 2 for a bad command line or file, 3 for a port in use,
1 for anything else.
"""

import argparse
import logging
import sys
from pathlib import Path

import uvloop
import yaml
from pydantic import ValidationError

from dflare.sim.app import SchedulerPlaces, run
from dflare.sim.config import SimConfig, load
from dflare.sim.redfish.personality import UnknownPersonalityError
from dflare.sim.server import PortInUseError

_BAD_FILE = 2
_PORT_IN_USE = 3


def main() -> int:
    """Run until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dflare.sim", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the simulator's file")
    parser.add_argument("--log", type=Path, required=True, help="where the ground truth goes")
    parser.add_argument("--ready-file", type=Path, help="appears when everything answers")
    parser.add_argument(
        "--slurm-packages", type=Path, help="root of the unpacked Debian packages of Slurm"
    )
    parser.add_argument(
        "--clusters", type=Path, help="folder of the Slurm clusters (beside the log)"
    )
    parser.add_argument(
        "--volume-root",
        type=Path,
        action="append",
        default=[],
        help="folder whose subfolders Slurm clusters may mount; may be given again",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = _config(arguments.config)
    if config is None:
        return _BAD_FILE
    places = SchedulerPlaces(
        packages=arguments.slurm_packages,
        clusters=arguments.clusters or arguments.log.with_name("clusters"),
        volume_roots=tuple(arguments.volume_root),
    )
    try:
        uvloop.run(run(config, arguments.log, arguments.ready_file, places))
    except UnknownPersonalityError as error:
        _say(f"{arguments.config}: {error}")
        return _BAD_FILE
    except PortInUseError as error:
        _say(str(error.strerror))
        return _PORT_IN_USE
    except OSError as error:
        _say(f"{error.filename or 'the system'}: {error.strerror or error}")
        return 1
    return 0


def _config(path: Path) -> SimConfig | None:
    try:
        return load(path)
    except OSError as error:
        _say(f"{path} cannot be read: {error.strerror}")
    except yaml.YAMLError as error:
        _say(f"{path} is not YAML: {error}")
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            where = ".".join(str(part) for part in problem["loc"])
            _say(f"{path}: {where}: {problem['msg']}")
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"dflare.sim: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
