"""From the site document to this service's rows and events. Pure but for sealing."""

from datetime import datetime
from typing import Any

from dflare.kit.seal import Sealer
from dflare.services.baremetal.contract import (
    EthernetCable,
    InfinibandCable,
    NodeDeclared,
    NodeState,
    NodeTypeFacts,
    PoolFacts,
    SchedulerHostFacts,
    SiteDeclared,
    SwitchFacts,
    UfmFacts,
)
from dflare.services.baremetal.credentials import device_secret
from dflare.services.baremetal.tables import Node as NodeRow
from dflare.site.document import Node, NodeType, SiteDocument


def node_facts(document: SiteDocument, node: Node) -> dict[str, Any]:
    """What the document says of a node, with what it says elsewhere of its rack and type."""
    kind, rack = document.types_by_name[node.type], document.racks_by_name[node.rack]
    return {
        "node_type": node.type,
        "vendor": str(document.vendor_of(node)),
        "gpus": kind.gpu.count if kind.gpu else 0,
        "gpu_vendor": str(kind.gpu.vendor) if kind.gpu else None,
        "serial": node.serial,
        "bmc": {"address": node.bmc.address, "credential": node.bmc.credentials_ref},
        "rack": node.rack,
        "row": rack.row,
        "block": rack.block,
        "position": node.position,
        "nvlink_domain": node.nvlink_domain,
        "ethernet": [
            {"name": p.name, "mac": p.mac, "switch": p.switch, "port": p.port}
            for p in node.ethernet
        ],
        "infiniband": [
            {"name": p.name, "guid": p.guid, "rail": p.rail, "switch": p.switch, "port": p.port}
            for p in node.infiniband
        ],
    }


def declare(row: NodeRow, name: str, facts: dict[str, Any], now: datetime) -> None:
    """Make the row what the document says; it has to be enrolled (again)."""
    row.name = name
    row.node_type, row.vendor, row.rack = facts["node_type"], facts["vendor"], facts["rack"]
    row.serial = facts["serial"]
    row.bmc_address, row.credential = facts["bmc"]["address"], facts["bmc"]["credential"]
    row.facts = facts
    row.state, row.reason, row.since, row.deadline = NodeState.DECLARED, "", now, None
    row.version += 1


def node_declared(row: NodeRow) -> NodeDeclared:
    """Data of ``node.declared``."""
    facts = row.facts
    return NodeDeclared(
        node_id=row.id,
        site_id=row.site_id,
        name=row.name,
        node_type=facts["node_type"],
        gpus=facts["gpus"],
        row=facts["row"],
        rack=facts["rack"],
        block=facts["block"],
        nvlink_domain=facts["nvlink_domain"],
        ethernet=tuple(EthernetCable(**port) for port in facts["ethernet"]),
        infiniband=tuple(InfinibandCable(**port) for port in facts["infiniband"]),
        retired=row.retired_at is not None,
    )


def site_declared(site_id: str, document: SiteDocument, sealer: Sealer) -> SiteDeclared:
    """Data of ``site.declared``. Passwords of devices go sealed to the service that drives them."""
    ethernet, infiniband, pools = (
        document.fabrics.ethernet,
        document.fabrics.infiniband,
        document.pools,
    )

    volume_price = document.volume_price_per_gib_hour

    def sealed(device: str, reference: str) -> str:
        account = document.credentials[reference]
        password = account.password.get_secret_value() if account.password else ""
        return device_secret(sealer, site_id, device, account.username, password)

    return SiteDeclared(
        site_id=site_id,
        name=document.name,
        currency=document.node_types[0].currency,
        switches=tuple(
            SwitchFacts(
                name=switch.name,
                address=switch.address,
                driver=switch.driver,
                role=switch.role,
                ports=switch.ports,
                secret=sealed(switch.name, ethernet.credentials_ref),
            )
            for switch in ethernet.switches
        ),
        ufm=UfmFacts(
            name=infiniband.name,
            address=infiniband.address,
            driver=infiniband.driver,
            secret=sealed(infiniband.name, infiniband.credentials_ref),
        )
        if infiniband
        else None,
        pools=PoolFacts(
            vlan=tuple((r.first, r.last) for r in pools.vlans),
            vni=tuple((r.first, r.last) for r in pools.vnis),
            pkey=tuple((r.first, r.last) for r in pools.pkeys),
            prefixes=tuple(str(pool.cidr) for pool in pools.prefixes),
            subnet_length=pools.prefixes[0].subnet_prefix_length,
            cooldown_s=pools.cooldown_s,
        ),
        node_types=tuple(_type_facts(kind) for kind in document.node_types),
        images=tuple(image.name for image in document.images),
        scheduler_hosts=tuple(
            SchedulerHostFacts(
                name=host.name,
                address=host.address,
                secret=sealed(host.name, host.credentials_ref),
            )
            for host in document.scheduler_hosts
        ),
        volume_price_per_gib_hour=None if volume_price is None else str(volume_price),
    )


def node_type_row(site_id: str, kind: NodeType) -> dict[str, Any]:
    """A row of ``node_type``."""
    return {
        "site_id": site_id,
        "name": kind.name,
        "vendor": str(kind.vendor),
        "model": kind.model,
        "gpu_model": kind.gpu.model if kind.gpu else None,
        "gpus": kind.gpu.count if kind.gpu else 0,
        "infiniband_rails": kind.infiniband_rails,
        "price_per_node_hour": kind.price_per_node_hour,
        "currency": kind.currency,
        "facts": kind.model_dump(mode="json"),
    }


def _type_facts(kind: NodeType) -> NodeTypeFacts:
    return NodeTypeFacts(
        name=kind.name,
        vendor=str(kind.vendor),
        gpu_model=kind.gpu.model if kind.gpu else None,
        gpus=kind.gpu.count if kind.gpu else 0,
        infiniband_rails=kind.infiniband_rails,
        price_per_node_hour=str(kind.price_per_node_hour),
        cpus=kind.cpu.cores,
        memory_mib=kind.memory_gib * 1024,
    )
