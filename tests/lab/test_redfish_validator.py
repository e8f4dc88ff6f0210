"""DMTF's Redfish service validator reads every resource of a simulated BMC of each vendor.

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
CDS = {
    "dell": "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD",
    "hpe": "/redfish/v1/Managers/1/VirtualMedia/2",
    "lenovo": "/redfish/v1/Managers/1/VirtualMedia/EXT1",
    "supermicro": "/redfish/v1/Managers/1/VirtualMedia/VirtualMedia1",
}
ATTRIBUTES = {
    "dell": ("ProcC1E", "Disabled", "Enabled"),
    "hpe": ("ProcSMT", "Disabled", "Enabled"),
    "lenovo": ("Processors_HyperThreading", "Disable", "Enable"),
    "supermicro": ("CPUC6Report_0094", "Disable", "Auto"),
}
GPUS = {
    "dell": {"vendor": "nvidia", "model": "NVIDIA H100 80GB HBM3", "memory_gib": 80},
    "lenovo": {"vendor": "intel", "model": "Intel Gaudi 3", "memory_gib": 128},
    "hpe": {"vendor": "amd", "model": "AMD Instinct MI300X", "memory_gib": 192},
    "supermicro": {"vendor": "intel", "model": "Intel Gaudi 3", "memory_gib": 128},
}

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


@pytest.mark.parametrize("vendor", sorted(CDS))
async def test_the_validator_finds_nothing_that_is_not_explained(
    tmp_path: Path, schemas: Path, vendor: str
) -> None:
    document = data_center(1, network="127.74")
    document["nodes"][0] |= {"personality": vendor, "gpus": [GPUS[vendor]] * 8}
    async with simulator(tmp_path / "sim", document) as sim:
        await make_a_busy_bmc(sim, vendor)
        code = await asyncio.to_thread(validate, sim.bmc_url("n0"), schemas, tmp_path)
    results = read_results(tmp_path)
    failures = {(schema, field) for schema, field, result in results if result == "FAIL"}
    assert failures == explained(vendor, "Failures")
    assert (code == 0) == (not failures)
    assert len(results) > 5_000
    warnings = {(schema, field) for schema, field, result in results if result == "WARN"}
    assert warnings == explained(vendor, "Warnings")


async def make_a_busy_bmc(sim: SimHandle, vendor: str) -> None:
    """A host that ran, with a medium inserted, a BIOS change applied and another one waiting."""
    name, first, second = ATTRIBUTES[vendor]
    async with sim.bmc("n0", headers={"If-Match": "*"}) as bmc:
        root = (await bmc.get("/redfish/v1/Systems")).json()
        system = (await bmc.get(root["Members"][0]["@odata.id"])).json()
        bios = (await bmc.get(system["Bios"]["@odata.id"])).json()
        image = {"Image": f"{sim.control_url}/nothing.iso"}
        if "Actions" in (await bmc.get(CDS[vendor])).json():
            insert = f"{CDS[vendor]}/Actions/VirtualMedia.InsertMedia"
            (await bmc.post(insert, json=image)).raise_for_status()
        else:
            (await bmc.patch(CDS[vendor], json={**image, "Inserted": True})).raise_for_status()
        settings = bios["@Redfish.Settings"]["SettingsObject"]["@odata.id"]
        (await bmc.patch(settings, json={"Attributes": {name: first}})).raise_for_status()
        reset = system["Actions"]["#ComputerSystem.Reset"]["target"]
        (await bmc.post(reset, json={"ResetType": "On"})).raise_for_status()
        await sim.until("n0", power="On", bios_pending={})
        (await bmc.patch(settings, json={"Attributes": {name: second}})).raise_for_status()


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


def explained(vendor: str, kind: str) -> set[tuple[str, str]]:
    """Schema and property of the rows that name the vendor, in the evidence's table of a kind."""
    section = KNOWN.read_text().split(f"## {kind}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)` \| ([a-z, ]+) \| .{20,} \|$", section, re.MULTILINE
    )
    return {(schema, field) for schema, field, vendors in rows if vendor in vendors.split(", ")}
