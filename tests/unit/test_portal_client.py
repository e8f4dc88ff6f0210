"""The portal's client is what the API says of itself."""

import subprocess
from pathlib import Path

import pytest

from openapi_document import openapi_document, written

PORTAL = Path(__file__).parents[2] / "portal"


async def test_the_portals_document_is_the_apis() -> None:
    kept = (PORTAL / "openapi.json").read_text()
    assert kept == written(await openapi_document()), "run `make portal-api`, look, and commit"


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program of the portal's packages."""
    file = PORTAL / "node_modules" / ".bin" / program
    if not file.exists():
        pytest.skip("the portal's packages are not installed; make portal does that")
    return subprocess.run(
        [str(file), *arguments], cwd=PORTAL, capture_output=True, text=True, timeout=240
    )


def test_the_portals_types_are_made_from_its_document(tmp_path: Path) -> None:
    made = tmp_path / "api.d.ts"
    done = run("openapi-typescript", "openapi.json", "--output", str(made), "--alphabetize")
    assert done.returncode == 0, done.stderr
    kept = (PORTAL / "src" / "generated" / "api.d.ts").read_text()
    assert kept == made.read_text(), "run `make portal-api`, look, and commit"


def test_the_portal_is_well_typed() -> None:
    done = run("tsc", "--noEmit")
    assert done.returncode == 0, done.stdout
