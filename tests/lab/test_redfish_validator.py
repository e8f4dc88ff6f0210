"""DMTF's Redfish service validator reads every resource of a simulated BMC.

It needs the schema files of DSP8010 (CSDL). They are taken from the folder that
``DFLARE_REDFISH_SCHEMAS`` names, or else unpacked once by cargo from the crate
``nv-redfish-schema``, which carries DMTF's bundle, into ``.lab/``.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import openpyxl
import pytest

from simulator import BMC_PASSWORD, BMC_USER, SimHandle, data_center, simulator

REPOSITORY = Path(__file__).parents[2]
KNOWN = REPOSITORY / "docs" / "evidence" / "redfish-validator.md"
CRATE, CRATE_VERSION = "nv-redfish-schema", "0.10.1"
SYSTEM = "/redfish/v1/Systems/System.Embedded.1"
CD = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the CSDL files."""
    if named := os.environ.get("DFLARE_REDFISH_SCHEMAS"):
        return Path(named)
    kept = REPOSITORY / ".lab" / f"redfish-schemas-{CRATE_VERSION}"
    if not kept.exists():
        if shutil.which("cargo") is None:
            pytest.skip(
                "no cargo; let DFLARE_REDFISH_SCHEMAS name a folder of DSP8010's csdl files"
            )
        unpack(tmp_path_factory.mktemp("crate"), kept)
    return kept


def unpack(folder: Path, kept: Path) -> None:
    """Let cargo unpack the crate and keep its CSDL files."""
    for arguments in (
        ["init", "--quiet", "--name", "schemas", "."],
        ["add", "--quiet", f"{CRATE}@={CRATE_VERSION}"],
        ["vendor", "--quiet", "vendor"],
    ):
        subprocess.run(["cargo", *arguments], cwd=folder, check=True, timeout=240)
    (found,) = (folder / "vendor" / CRATE).glob("redfish-csdl/csdl")
    kept.parent.mkdir(exist_ok=True)
    partial = kept.with_name(f"{kept.name}.part-{os.getpid()}")
    shutil.copytree(found, partial)
    partial.rename(kept)


async def test_the_validator_finds_no_failure_and_only_the_warnings_that_are_explained(
    tmp_path: Path, schemas: Path
) -> None:
    async with simulator(tmp_path / "sim", data_center(1, network="127.74")) as sim:
        await make_a_busy_bmc(sim)
        code = await asyncio.to_thread(validate, sim.bmc_url("n0"), schemas, tmp_path)
    results = read_results(tmp_path)
    failures = [row for row in results if row[2] == "FAIL"]
    assert failures == []
    assert code == 0
    assert len(results) > 5_000
    warnings = {(schema, field) for schema, field, result in results if result == "WARN"}
    assert warnings == explained()


async def make_a_busy_bmc(sim: SimHandle) -> None:
    """A host that ran, with a medium inserted, a BIOS job done and another one waiting."""
    async with sim.bmc("n0") as bmc:
        image = {"Image": f"{sim.control_url}/nothing.iso"}
        (await bmc.post(f"{CD}/Actions/VirtualMedia.InsertMedia", json=image)).raise_for_status()
        settings = f"{SYSTEM}/Bios/Settings"
        (await bmc.patch(settings, json={"Attributes": {"ProcC1E": "Disabled"}})).raise_for_status()
        on = {"ResetType": "On"}
        (await bmc.post(f"{SYSTEM}/Actions/ComputerSystem.Reset", json=on)).raise_for_status()
        await sim.until("n0", power="On", bios_pending={})
        (await bmc.patch(settings, json={"Attributes": {"ProcC1E": "Enabled"}})).raise_for_status()


def validate(url: str, schemas: Path, folder: Path) -> int:
    """Run the validator; its reports go to ``folder``; returns its exit code."""
    program = "from redfish_service_validator.console_scripts import main; main()"
    arguments = ["--rhost", url, "--user", BMC_USER, "--password", BMC_PASSWORD, "--skipschema"]
    arguments += ["--schema_directory", str(schemas), "--logdir", str(folder / "reports")]
    with (folder / "validator.out").open("wb") as sink:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            stdout=sink,
            stderr=sink,
            timeout=240,
            check=False,
        )
    return done.returncode


def read_results(folder: Path) -> list[tuple[str, str, str]]:
    """Schema, property and result of every check."""
    (report,) = (folder / "reports").glob("*/*.xlsx")
    book = openpyxl.load_workbook(report, read_only=True)
    try:
        rows = book["Results"].iter_rows(min_row=2, values_only=True)
        return [(str(row[4]).split(" ")[0], str(row[5]), str(row[7])) for row in rows]
    finally:
        book.close()


def explained() -> set[tuple[str, str]]:
    """Schema and property of the rows of the evidence's table."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .{20,} \|$", KNOWN.read_text(), re.MULTILINE)
    return set(rows)
