"""Rules about files that no linter knows: size, names, and lock files without addresses."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST_LINES = 500
SIZED_SUFFIXES = {".py", ".ts", ".tsx"}
SIZED_FOLDERS = ("src/", "tests/", "bench/", "portal/src/", ".ci/")
FORBIDDEN_STEMS = {"utils", "helpers", "common", "manager"}
LOCK_NAMES = re.compile(r"(\.lock|package-lock\.json)$")
GENERATED = re.compile(r"/generated/")
ADDRESS = re.compile(r"[a-z]+://|--index-url|--find-links|\"resolved\"")


def listed_files() -> list[str]:
    """Tracked files and new ones that git does not ignore, relative to the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def complaints_about(name: str) -> list[str]:
    path = ROOT / name
    found: list[str] = []
    if name.startswith(SIZED_FOLDERS) and path.suffix in SIZED_SUFFIXES:
        lines = path.read_text().count("\n")
        if lines > LONGEST_LINES and not GENERATED.search(name):
            found.append(f"{name}: {lines} lines, at most {LONGEST_LINES} are allowed; split it")
        # Below redfish/ the tree of files is the schema's tree, which has a resource Manager.
        if path.stem in FORBIDDEN_STEMS and path.parent.name != "redfish":
            found.append(f"{name}: a module called {path.stem} says nothing; name its content")
    if LOCK_NAMES.search(name):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if ADDRESS.search(line):
                found.append(f"{name}:{number}: a lock file carries no address: {line.strip()}")
                break
    return found


def main() -> int:
    found = [complaint for name in listed_files() for complaint in complaints_about(name)]
    sys.stderr.writelines(f"{complaint}\n" for complaint in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
