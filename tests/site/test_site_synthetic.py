import stat
from collections import Counter
from pathlib import Path

import pytest

from dflare.sim.config import ZERO_TIMES, SimConfig, load
from dflare.site.document import GpuVendor, ServerVendor
from dflare.site.layout import NODES_AT_MOST, LayoutOptions
from dflare.site.load import check_document, load_site, parse_site
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import SimPorts, synthetic_site, write_default_site


def test_64_nodes_of_eight_gpus_stand_in_eight_racks_with_eight_rails() -> None:
    site = synthetic_site()
    check_document(site)
    assert len(site.nodes) == 64
    assert len(site.racks) == 8
    assert all(len(node.infiniband) == 8 for node in site.nodes)
    assert site.fabrics.infiniband is not None
    assert len(site.fabrics.infiniband.switches) == 16


@pytest.mark.parametrize("vendor", ServerVendor)
@pytest.mark.parametrize("gpus", [0, 4, 8])
def test_every_vendor_and_size_is_valid_hardware_too(vendor: ServerVendor, gpus: int) -> None:
    site = synthetic_site(40, gpus, vendor)
    check_document(site)
    config = SimConfig.model_validate(simulator_config(site, SimPorts()))
    assert {str(node.personality) for node in config.nodes} == {str(vendor)}
    assert {len(node.gpus) for node in config.nodes} == {gpus}
    assert (config.ufm is not None) == (gpus == 8)


def test_a_subnet_of_the_default_pool_holds_1024_nodes() -> None:
    (prefix,) = synthetic_site(1).pools.prefixes
    assert 2 ** (32 - prefix.subnet_prefix_length) - 3 >= 1024


def test_default_vlans_leave_out_what_cumulus_linux_keeps_for_itself() -> None:
    assert all(r.last < 3725 or r.first > 3999 for r in synthetic_site(1).pools.vlans)


def test_the_default_site_and_the_simulator_agree_on_every_cable(tmp_path: Path) -> None:
    ports = SimPorts(bmc=1443, nvue=1765, ufm=1444, control=1470)
    written = write_default_site(tmp_path, nodes=16, ports=ports, speed=120)
    site, config = load_site(tmp_path / "site.yaml"), load(tmp_path / "sim.yaml")
    assert site == written.document
    assert config.speed == 120
    assert (config.bmc_port, config.nvue_port, config.ufm_port, config.control_port) == (
        1443,
        1765,
        1444,
        1470,
    )
    assert {
        (node.name, f"{node.bmc_address}:1443", port.mac, port.switch, port.switch_port)
        for node in config.nodes
        for port in node.ethernet
    } == {
        (node.name, node.bmc.address, port.mac, port.switch, port.port)
        for node in site.nodes
        for port in node.ethernet
    }
    assert {(p.guid, p.rail, p.switch) for node in config.nodes for p in node.infiniband} == {
        (p.guid, p.rail, p.switch) for node in site.nodes for p in node.infiniband
    }
    password = site.credentials["bmc"].password
    assert password is not None
    assert config.bmc_credentials.password == password.get_secret_value()


def test_a_site_has_a_scheduler_host_at_an_address_and_port_of_its_own(tmp_path: Path) -> None:
    ports = SimPorts(bmc=1443, nvue=1765, ufm=1444, control=1470, scheduler=1480)
    write_default_site(tmp_path, nodes=1, ports=ports)
    site, config = load_site(tmp_path / "site.yaml"), load(tmp_path / "sim.yaml")
    (host,) = site.scheduler_hosts
    assert config.scheduler is not None
    assert config.scheduler_port == 1480
    assert host.address == f"https://{config.scheduler.address}:1480"
    others = {node.bmc_address for node in config.nodes} | {s.address for s in config.switches}
    assert config.ufm is not None
    assert config.scheduler.address not in {*others, config.ufm.address}
    password = site.credentials[host.credentials_ref].password
    assert password is not None
    assert config.scheduler_credentials is not None
    assert config.scheduler_credentials.password == password.get_secret_value()
    assert SimPorts(ufm=99).scheduler_host == 99


def test_a_site_without_a_scheduler_host_can_be_simulated_and_one_with_two_cannot() -> None:
    site = synthetic_site(1)
    without = site.model_copy(update={"scheduler_hosts": ()})
    assert SimConfig.model_validate(simulator_config(without, SimPorts())).scheduler is None
    two = site.model_copy(update={"scheduler_hosts": site.scheduler_hosts * 2})
    with pytest.raises(ValueError, match="one scheduler host"):
        simulator_config(two, SimPorts())


def test_both_files_are_private(tmp_path: Path) -> None:
    written = write_default_site(tmp_path, nodes=1)
    for file in (written.site_file, written.simulator_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_hardware_time_zero_means_at_once_and_at_speed_one(tmp_path: Path) -> None:
    write_default_site(tmp_path, nodes=1, speed=60, hardware_time="zero")
    config = load(tmp_path / "sim.yaml")
    assert config.times == ZERO_TIMES
    assert config.speed == 1


def test_writing_again_gives_new_passwords_to_both_files(tmp_path: Path) -> None:
    write_default_site(tmp_path, nodes=1)
    first = load(tmp_path / "sim.yaml").bmc_credentials
    write_default_site(tmp_path, nodes=1)
    second = load(tmp_path / "sim.yaml").bmc_credentials
    assert first.password != second.password


@pytest.mark.parametrize("nodes", [0, -1, NODES_AT_MOST + 1])
def test_a_site_of_impossible_size_is_refused(nodes: int) -> None:
    with pytest.raises(ValueError, match="1 to 16,000 servers"):
        synthetic_site(nodes)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 64 GPUs"):
        synthetic_site(1, 65)
    with pytest.raises(ValueError, match="vendors is empty"):
        LayoutOptions(vendors=())
    with pytest.raises(ValueError, match="ethernet_ports must be 1 or 2"):
        LayoutOptions(ethernet_ports=3)


def test_the_largest_site_has_addresses_for_all() -> None:
    site = synthetic_site(NODES_AT_MOST, 4)
    addresses = {node.bmc.address for node in site.nodes}
    assert len(addresses) == NODES_AT_MOST
    assert all(address.startswith("127.20.") for address in addresses)


def test_a_site_that_cannot_be_simulated_is_refused_with_the_reason(site_text: str) -> None:
    site = parse_site(site_text)
    with pytest.raises(ValueError, match=r"credentials\.net: read the password"):
        simulator_config(site, SimPorts(bmc=443, nvue=8765, ufm=443))
    demo = synthetic_site(1)
    with pytest.raises(ValueError, match="serves this kind of device at port 9"):
        simulator_config(demo, SimPorts(bmc=9))


def test_makers_share_the_nodes_and_vendors_take_them_in_turn() -> None:
    vendors = (ServerVendor.DELL, ServerVendor.SUPERMICRO, ServerVendor.HPE)
    site = synthetic_site(9, options=LayoutOptions(vendors=vendors), makers=tuple(GpuVendor))
    check_document(site)
    assert Counter(node.type for node in site.nodes) == {
        "h100-8": 3,
        "mi300x-8": 3,
        "gaudi3-8": 3,
    }
    for kind in site.types_by_name:
        of_kind = [node for node in site.nodes if node.type == kind]
        assert {site.vendor_of(node) for node in of_kind} == set(vendors)
        assert len({node.rack for node in of_kind}) == 1
    config = SimConfig.model_validate(simulator_config(site, SimPorts()))
    models = {(str(node.personality), node.gpus[0].vendor): node.model for node in config.nodes}
    assert models["hpe", "amd"] == "ProLiant Compute XD685"
    assert models["dell", "intel"] == "PowerEdge XE9680"
    assert len(models) == 9


def test_a_default_site_may_mix_vendors_and_makers(tmp_path: Path) -> None:
    vendors, makers = (ServerVendor.SUPERMICRO, ServerVendor.HPE), (GpuVendor.AMD,)
    write_default_site(tmp_path, nodes=4, vendors=vendors, makers=makers)
    site, config = load_site(tmp_path / "site.yaml"), load(tmp_path / "sim.yaml")
    assert {kind.name for kind in site.node_types} == {"mi300x-8"}
    assert [str(node.personality) for node in config.nodes] == ["supermicro", "hpe"] * 2
    assert {gpu.vendor for node in config.nodes for gpu in node.gpus} == {"amd"}


def test_a_site_without_a_maker_is_refused() -> None:
    with pytest.raises(ValueError, match="makers is empty"):
        synthetic_site(1, makers=())
