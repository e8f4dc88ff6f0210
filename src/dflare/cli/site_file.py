"""Site documents on the operator's side: read with line numbers, laid out from fleet lists, sent
whole with the passwords that the file only names."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any, Literal, cast

from dflare.cli.errors import CliError, ExitCode, Json, UsageError
from dflare.site.credentials import resolve_credentials
from dflare.site.document import ServerVendor, SiteDocument
from dflare.site.fleet import import_fleet
from dflare.site.layout import LayoutOptions, SimPorts
from dflare.site.load import load_site
from dflare.site.problems import SiteErrors
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import simulator_config


@dataclass(frozen=True)
class ImportChoices:
    """What `dflare site import` was told; None stands for what the rules say."""

    name: str
    region: str
    vendors: Sequence[str]
    ethernet_ports: int
    address_base: str
    ports: SimPorts
    simulator_file: Path | None
    speed: float
    hardware_time: Literal["normal", "zero"]


def read_site(path: Path) -> SiteDocument:
    """Read and check a site file.

    Raises:
        CliError: it cannot be read or is refused; every problem is named with line and key.
    """
    with _told(path, "Correct the lines named; docs/how-to/site.md describes every key."):
        return load_site(path)


def import_site(csv_file: Path, target: Path, choices: ImportChoices) -> SiteDocument:
    """Lay out a fleet list as a site and write it, and the simulator's file where asked for.

    Raises:
        CliError: the list is refused or a file cannot be written; nothing is written then.
    """
    try:
        options = LayoutOptions(
            name=choices.name,
            region=choices.region,
            description=f"Imported from {csv_file.name}",
            ports=choices.ports,
            address_base=IPv4Address(choices.address_base),
            vendors=tuple(ServerVendor(vendor) for vendor in choices.vendors)
            or (ServerVendor.DELL,),
            ethernet_ports=choices.ethernet_ports,
        )
    except (AddressValueError, ValueError) as error:
        raise UsageError(str(error), next_step="See `dflare site import --help`.") from error
    with _told(csv_file, "Correct the rows named and import again; nothing was written."):
        document = import_fleet(csv_file, options)
    with _told(target, "Choose another place by -o."):
        if choices.simulator_file is not None:
            config = simulator_config(
                document,
                choices.ports,
                speed=choices.speed,
                hardware_time=choices.hardware_time,
            )
            write_private(choices.simulator_file, render_data(config))
        write_site(target, document)
    return document


def wire_document(path: Path, document: SiteDocument) -> Json:
    """The document as it is sent: JSON with the passwords that the file names by reference.

    Raises:
        CliError: a password cannot be found.
    """
    with _told(path, "Make the passwords readable here and apply again."):
        resolved = resolve_credentials(document, path.parent, os.environ)
    data = resolved.model_dump(mode="json", exclude_defaults=True)
    accounts = cast("dict[str, dict[str, Any]]", data["credentials"])
    for name, credential in resolved.credentials.items():
        if credential.password is not None:
            accounts[name]["password"] = credential.password.get_secret_value()
    return {"version": document.version, **data}


def summary(document: SiteDocument) -> str:
    """What a document holds, in a line."""
    gpus = {kind.name: kind.gpu.count if kind.gpu else 0 for kind in document.node_types}
    count = sum(gpus[node.type] for node in document.nodes)
    infiniband = document.fabrics.infiniband
    return (
        f"{document.name}: {len(document.nodes)} nodes of {len(document.node_types)} types with "
        f"{count} GPUs in {len(document.racks)} racks, "
        f"{len(document.fabrics.ethernet.switches)} Ethernet and "
        f"{len(infiniband.switches) if infiniband else 0} InfiniBand switches"
    )


@contextmanager
def _told(path: Path, next_step: str) -> Generator[None]:
    try:
        yield
    except SiteErrors as errors:
        count = len(errors.problems) + errors.left_out
        word = "problem" if count == 1 else "problems"
        raise CliError(f"{path} has {count} {word}\n{errors}", next_step=next_step) from errors
    except OSError as error:
        reason = error.strerror or str(error)
        raise CliError(
            f"{error.filename or path}: {reason}",
            next_step="Check the path and its permissions.",
            exit_code=ExitCode.FAILURE,
        ) from error
