"""The whole line on a site that mixes four vendors' servers and three makers' GPUs: load, enrol,
order, profile, isolate, provision, start, release with erasure and BIOS defaults read back.

Every node type stands on servers of all four vendors, so that each order meets all of them. What
the nodes really got is read from the simulator.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest

import judgement
from dflare.embedded.layout import Layout
from dflare.embedded.ports import free_port
from dflare.site.document import GpuVendor, ServerVendor, SiteDocument
from dflare.site.layout import LayoutOptions, SimPorts
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import synthetic_site
from judgement import Order, Story
from running_platform import PlatformHandle, running_platform
from site_files import PlatformWish

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(600)

VENDORS = (ServerVendor.DELL, ServerVendor.SUPERMICRO, ServerVendor.HPE, ServerVendor.LENOVO)
MAKERS = (GpuVendor.NVIDIA, GpuVendor.AMD, GpuVendor.INTEL)
KINDS = {"h100-8": "nvidia", "mi300x-8": "amd", "gaudi3-8": "intel"}
# What the profile changes; a Dell server has its IOMMU on already.
IOMMU = {
    "supermicro": ("IntelVTforDirectedI_O_VT_d__00C9", "Enable"),
    "hpe": ("ProcAmdIoVt", "Enabled"),
    "lenovo": ("DevicesandIOPorts_IntelVTforDirectedIOVTd", "Enable"),
}
PERFORMANCE = {
    "dell": ("SysProfile", "PerfOptimized"),
    "supermicro": ("PowerTechnology_0071", "Disable"),
    "hpe": ("PowerRegulator", "StaticHighPerf"),
    "lenovo": ("OperatingModes_ChooseOperatingMode", "MaximumPerformance"),
}
SRIOV = {"dell": "SriovGlobalEnable", "supermicro": "SR_IOVSupport_0103", "hpe": "Sriov"}


@dataclass(frozen=True)
class Mixed:
    """The story of three tenants, one for each maker, and what was enrolled."""

    story: Story
    document: SiteDocument
    enrolled: dict[str, dict[str, Any]]

    def vendor(self, name: str) -> str:
        """Whose BMC a node has."""
        node = next(node for node in self.document.nodes if node.name == name)
        return str(self.document.vendor_of(node))

    def maker(self, name: str) -> str:
        """Who made a node's GPUs."""
        node = next(node for node in self.document.nodes if node.name == name)
        return KINDS[node.type]


def _write_mixed(layout: Layout) -> SiteDocument:
    taken: list[int] = []
    for _ in range(4):
        taken.append(free_port(taken))
    ports = SimPorts(*taken)
    options = LayoutOptions(
        name="mixed",
        ports=ports,
        address_base=IPv4Address("127.80.0.0"),
        vendors=VENDORS,
        cooldown_s=1,
    )
    document = synthetic_site(12, options=options, makers=MAKERS)
    config = simulator_config(document, ports, hardware_time="zero")
    write_private(layout.simulator_file, render_data(config))
    write_site(layout.site_file, document)
    return document


async def _enrolled(platform: PlatformHandle) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for node in await platform.nodes():
        answer = await platform.operator.get(f"/v1/nodes/{node['id']}")
        answer.raise_for_status()
        found[node["name"]] = answer.json()["inventory"]
    return found


@pytest.fixture(scope="module")
async def mixed() -> AsyncIterator[Mixed]:
    async with running_platform(PlatformWish(prepare=_write_mixed)) as platform:
        await platform.apply_site()
        enrolled = await _enrolled(platform)
        orders = [Order(f"wants-{maker}", kind, 4) for kind, maker in KINDS.items()]
        story = await judgement.live_through(platform, orders)
        yield Mixed(story, platform.document, enrolled)


def test_every_order_stood_on_servers_of_all_vendors(mixed: Mixed) -> None:
    for tenancy in mixed.story.tenancies:
        assert {mixed.vendor(name) for name in tenancy.nodes} == {str(vendor) for vendor in VENDORS}
        assert {mixed.maker(name) for name in tenancy.nodes} == {KINDS[tenancy.order.node_type]}


def test_every_vendors_and_makers_servers_are_enrolled_by_what_their_bmc_shows(
    mixed: Mixed,
) -> None:
    makers = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
    manufacturers = {
        "dell": "Dell Inc.",
        "supermicro": "Supermicro",
        "hpe": "HPE",
        "lenovo": "Lenovo",
    }
    assert len(mixed.enrolled) == 12
    for name, inventory in mixed.enrolled.items():
        assert inventory["manufacturer"] == manufacturers[mixed.vendor(name)]
        assert [gpu["maker"] for gpu in inventory["gpus"]] == [makers[mixed.maker(name)]] * 8


def test_the_profile_of_the_gpus_maker_was_in_force_by_the_vendors_own_names(mixed: Mixed) -> None:
    for name, truth in mixed.story.hosts_during.items():
        vendor = mixed.vendor(name)
        changed = truth["bios"]
        attribute, value = PERFORMANCE[vendor]
        assert changed[attribute] == value, name
        if vendor in IOMMU:
            attribute, value = IOMMU[vendor]
            assert changed[attribute] == value, name
        if vendor in SRIOV:
            assert (SRIOV[vendor] in changed) == (mixed.maker(name) == "amd"), name


def test_tenants_of_the_mixed_site_reach_their_own_nodes_alone(mixed: Mixed) -> None:
    judgement.assert_isolated(mixed.story)
    judgement.assert_keys(mixed.story)


def test_nothing_of_a_tenant_is_left_on_any_vendors_server(mixed: Mixed) -> None:
    judgement.assert_secrets_stood(mixed.story)
    judgement.assert_clean(mixed.story)
    judgement.assert_identifiers_returned(mixed.story)


def test_each_makers_nodes_are_billed_at_their_own_price(mixed: Mixed) -> None:
    assert len({mixed.story.prices[kind] for kind in KINDS}) == 3
    for tenancy in mixed.story.tenancies:
        judgement.assert_usage_is_true(tenancy)
        judgement.assert_invoice_is_exact(tenancy, mixed.story.prices)
