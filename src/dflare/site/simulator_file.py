"""The simulator's file for a site: the same devices and cables, seen from the hardware's side.

The simulator reads it by its own code and shares none with the platform; what is written here is
the format of ``dflare.sim``'s configuration file.
"""

from typing import Final, Literal
from uuid import UUID, uuid5

from dflare.site.document import Credential, Node, NodeType, SiteDocument
from dflare.site.hardware import server_model
from dflare.site.layout import SimPorts
from dflare.site.values import split_endpoint

HardwareTime = Literal["normal", "zero"]

_NAMESPACE: Final = UUID("6f2c5f1e-8d0c-4b7a-9f6e-0d1f7a6c2b11")
_TIMES: Final = (
    "power_on_s",
    "power_off_s",
    "post_s",
    "bios_apply_s",
    "os_boot_s",
    "agent_boot_s",
    "image_write_s",
    "erase_s",
    "switch_apply_s",
    "ufm_job_s",
)


def simulator_config(
    site: SiteDocument,
    ports: SimPorts,
    speed: float = 60,
    hardware_time: HardwareTime = "normal",
    seed: int = 1,
) -> dict[str, object]:
    """Return the simulator's configuration of ``site`` as plain data.

    ``speed`` is simulated seconds per wall second; hardware time ``zero`` means devices that answer
    at once, at speed 1.

    Raises:
        ValueError: the site cannot be simulated: a device listens at another port than ``ports``
            say, a kind of device has several accounts, or a password is not in the document.
    """
    infiniband = site.fabrics.infiniband
    bmc = _one_account(site, {node.bmc.credentials_ref for node in site.nodes}, "BMCs")
    nvue = _one_account(site, {site.fabrics.ethernet.credentials_ref}, "switches")
    ufm = _one_account(site, {infiniband.credentials_ref}, "the manager") if infiniband else nvue
    config: dict[str, object] = {
        "seed": seed,
        "speed": 1.0 if hardware_time == "zero" else float(speed),
    }
    if hardware_time == "zero":
        config["times"] = dict.fromkeys(_TIMES, 0)
    config |= _scheduler(site, ports)
    return config | {
        "bmc_port": ports.bmc,
        "nvue_port": ports.nvue,
        "ufm_port": ports.ufm,
        "control_port": ports.control,
        "bmc_credentials": bmc,
        "nvue_credentials": nvue,
        "ufm_credentials": ufm,
        # As docs/how-to/site.md asks of a real site; tests of the fabrics keep the open default.
        "ufm": {
            "name": infiniband.name,
            "address": _host(infiniband.address, ports.ufm),
            "default_membership": "limited",
        }
        if infiniband
        else None,
        "switches": [
            {
                "name": switch.name,
                "address": _host(switch.address, ports.nvue),
                "role": switch.role,
                "ports": list(switch.ports),
            }
            for switch in site.fabrics.ethernet.switches
        ],
        "nodes": [_node(site, node, ports) for node in site.nodes],
    }


def _scheduler(site: SiteDocument, ports: SimPorts) -> dict[str, object]:
    """The keys of the scheduler host; none where the site has none."""
    if len(site.scheduler_hosts) > 1:
        raise ValueError(
            f"the simulator has one scheduler host, the site {len(site.scheduler_hosts)}"
        )
    for host in site.scheduler_hosts:
        address = _host(host.address.removeprefix("https://"), ports.scheduler_host)
        return {
            "scheduler_port": ports.scheduler_host,
            "scheduler_credentials": _one_account(site, {host.credentials_ref}, "scheduler hosts"),
            "scheduler": {"name": host.name, "address": address},
        }
    return {}


def _node(site: SiteDocument, node: Node, ports: SimPorts) -> dict[str, object]:
    kind = site.types_by_name[node.type]
    vendor = site.vendor_of(node)
    maker = kind.gpu.vendor if kind.gpu else None
    return {
        "name": node.name,
        "serial": node.serial,
        "uuid": str(uuid5(_NAMESPACE, f"{site.name}/{node.serial}")),
        "personality": str(vendor),
        # The type's model is that of its own vendor.
        "model": kind.model if vendor == kind.vendor else server_model(vendor, maker),
        "bmc_address": _host(node.bmc.address, ports.bmc),
        "cpu_cores": kind.cpu.cores,
        "cpu_sockets": kind.cpu.sockets,
        "memory_gib": kind.memory_gib,
        "gpus": _gpus(kind),
        "disks": [
            {
                "name": disk.name,
                "size_gib": disk.size_gib,
                "kind": str(disk.kind),
                "serial": f"{node.serial}-D{number}",
            }
            for number, disk in enumerate(kind.disks)
        ],
        "ethernet": [
            {
                "name": port.name,
                "mac": port.mac,
                "speed_gbps": port.speed_gbps,
                "switch": port.switch,
                "switch_port": port.port,
            }
            for port in node.ethernet
        ],
        "infiniband": [
            {
                "name": port.name,
                "guid": port.guid,
                "rail": port.rail,
                "switch": port.switch,
                "switch_port": port.port,
            }
            for port in node.infiniband
        ],
        "nvlink_domain": node.nvlink_domain,
    }


def _gpus(kind: NodeType) -> list[dict[str, object]]:
    if kind.gpu is None:
        return []
    gpu = {"vendor": str(kind.gpu.vendor), "model": kind.gpu.model}
    return [{**gpu, "memory_gib": kind.gpu.memory_gib} for _ in range(kind.gpu.count)]


def _host(address: str, port: int) -> str:
    host, given = split_endpoint(address)
    if given != port:
        raise ValueError(
            f"{address}: the simulator serves this kind of device at port {port}; "
            "give every device of a kind the same port"
        )
    return host


def _one_account(site: SiteDocument, refs: set[str], what: str) -> dict[str, str]:
    if len(refs) > 1:
        raise ValueError(f"the simulator knows one account for {what}, the site has {sorted(refs)}")
    ref = refs.pop()
    credential: Credential = site.credentials[ref]
    if credential.password is None:
        raise ValueError(f"credentials.{ref}: read the password into the document first")
    return {"username": credential.username, "password": credential.password.get_secret_value()}
