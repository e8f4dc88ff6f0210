from collections import Counter, defaultdict
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dflare.sim.config import SimConfig
from dflare.site.document import Node, ServerVendor, SiteDocument
from dflare.site.fleet import import_fleet
from dflare.site.layout import LayoutOptions, SimPorts
from dflare.site.load import check_document, parse_site
from dflare.site.problems import SiteErrors, SiteProblem
from dflare.site.render import render_site
from dflare.site.simulator_file import simulator_config

FLEET = Path(__file__).parents[1] / "data/alibaba-gpu-2023/openb_node_list_gpu_node.csv"
HEADER = "sn,cpu_milli,memory_mib,gpu,model\n"


@pytest.fixture(scope="module")
def fleet() -> SiteDocument:
    return import_fleet(FLEET)


def test_the_published_fleet_becomes_1213_nodes_with_its_types(fleet: SiteDocument) -> None:
    types = Counter(node.type for node in fleet.nodes)
    assert len(fleet.nodes) == 1213
    assert types["g2-8"] == 549
    assert sum(n for name, n in types.items() if fleet.types_by_name[name].infiniband_rails) == 617
    gpus = sum(
        n * kind.gpu.count for name, n in types.items() if (kind := fleet.types_by_name[name]).gpu
    )
    assert gpus == 6212


def test_every_node_has_the_cores_and_memory_of_its_row(fleet: SiteDocument) -> None:
    rows = {
        fields[0]: (int(fields[1]) // 1000, int(fields[2]) // 1024, int(fields[3]), fields[4])
        for fields in (line.split(",") for line in FLEET.read_text().splitlines()[1:])
    }
    for node in fleet.nodes:
        kind = fleet.types_by_name[node.type]
        assert kind.gpu is not None
        found = (kind.cpu.cores, kind.memory_gib, kind.gpu.count, kind.gpu.model)
        assert found == rows[node.name]


def test_the_laid_out_fleet_is_a_valid_site_and_survives_its_file(fleet: SiteDocument) -> None:
    check_document(fleet)
    assert parse_site(render_site(fleet)) == fleet


def test_racks_hold_eight_railed_or_32_other_nodes_of_one_model(fleet: SiteDocument) -> None:
    held: dict[str, list[Node]] = defaultdict(list)
    for node in fleet.nodes:
        held[node.rack].append(node)
    assert set(held) == {rack.name for rack in fleet.racks}
    for nodes in held.values():
        railed = bool(nodes[0].infiniband)
        assert len(nodes) <= (8 if railed else 32)
        assert [node.position for node in nodes] == list(range(1, len(nodes) + 1))
        assert len({bool(node.infiniband) for node in nodes}) == 1
        models = {gpu.model for node in nodes if (gpu := fleet.types_by_name[node.type].gpu)}
        assert len(models) == 1
    assert max(Counter(rack.row for rack in fleet.racks).values()) == 10


def test_each_rack_has_one_leaf_of_its_own(fleet: SiteDocument) -> None:
    leaves = {s.name: s for s in fleet.fabrics.ethernet.switches if s.role == "leaf"}
    assert len(leaves) == len(fleet.racks)
    for node in fleet.nodes:
        assert {leaves[port.switch].rack for port in node.ethernet} == {node.rack}


def test_rail_r_of_a_scalable_unit_ends_in_one_switch(fleet: SiteDocument) -> None:
    units: dict[str, set[str]] = defaultdict(set)
    for node in fleet.nodes:
        assert [port.rail for port in node.infiniband] in ([], list(range(8)))
        for port in node.infiniband:
            units[port.switch].add(node.name)
            assert port.switch.endswith(f"-rail-{port.rail}")
    assert max(len(nodes) for nodes in units.values()) == 32
    first = {port.switch for port in fleet.nodes[0].infiniband}
    assert len(first) == 8
    assert len({frozenset(units[switch]) for switch in first}) == 1
    racks = {node.rack for node in fleet.nodes if node.name in units[min(first)]}
    assert len(racks) == 4


def test_every_device_has_a_loopback_address_of_its_own(fleet: SiteDocument) -> None:
    addresses = [node.bmc.address for node in fleet.nodes]
    addresses += [switch.address for switch in fleet.fabrics.ethernet.switches]
    hosts = [IPv4Address(address.rpartition(":")[0]) for address in addresses]
    assert len(set(hosts)) == len(hosts)
    assert all(host.is_loopback and host.packed[3] not in (0, 255) for host in hosts)


def test_prices_follow_the_table_exactly(fleet: SiteDocument) -> None:
    assert fleet.types_by_name["g2-8"].price_per_node_hour == Decimal("9.60")
    assert fleet.types_by_name["t4-2"].price_per_node_hour == Decimal("0.80")


def test_the_simulator_accepts_the_fleet_as_hardware(fleet: SiteDocument) -> None:
    config = SimConfig.model_validate(simulator_config(fleet, SimPorts()))
    assert len(config.nodes) == 1213
    assert sum(len(node.infiniband) for node in config.nodes) == 617 * 8
    assert sum(len(node.gpus) for node in config.nodes) == 6212


def test_the_same_list_gives_the_same_site() -> None:
    options = LayoutOptions(new_password=lambda: "fixed-password")
    assert import_fleet(FLEET, options) == import_fleet(FLEET, options)


def test_passwords_differ_from_site_to_site_and_from_device_to_device(fleet: SiteDocument) -> None:
    secrets = {
        credential.password.get_secret_value()
        for site in (fleet, import_fleet(FLEET))
        for credential in site.credentials.values()
        if credential.password
    }
    assert len(secrets) == 8


def test_vendors_are_spread_in_turn_where_asked(tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    file.write_text(HEADER + "".join(f"n{i},8000,32768,1,T4\n" for i in range(10)))
    site = import_fleet(file, LayoutOptions(vendors=tuple(ServerVendor), ethernet_ports=2))
    vendors = [site.vendor_of(node) for node in site.nodes]
    assert Counter(vendors) == dict.fromkeys(ServerVendor, 2)
    assert all(len(node.ethernet) == 2 for node in site.nodes)
    check_document(site)
    simulated = SimConfig.model_validate(simulator_config(site, SimPorts()))
    assert [str(node.personality) for node in simulated.nodes] == [str(v) for v in vendors]


def test_servers_without_gpu_and_unknown_models_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    file.write_text(
        "model,sn,gpu,cpu_milli,memory_mib,zone\n,n1,0,64000,262144,a\nB300,n2,8,1500,1500,b\n"
    )
    site = import_fleet(file)
    assert [(node.name, node.type) for node in site.nodes] == [("n2", "b300-8"), ("n1", "cpu")]
    assert site.types_by_name["cpu"].gpu is None
    small = site.types_by_name["b300-8"]
    assert (small.cpu.cores, small.memory_gib) == (1, 1)
    check_document(site)


WRONG_ROWS = {
    "negative": ("n1,8000,32768,-1,T4", 15, "gpu", "-1 is negative"),
    "fraction": ("n1,8000.5,32768,1,T4", 4, "cpu_milli", "no whole number"),
    "words": ("n1,8000,plenty,1,T4", 9, "memory_mib", "no whole number"),
    "empty": ("n1,,32768,1,T4", 4, "cpu_milli", "no whole number"),
    "too many GPUs": ("n1,8000,32768,65,T4", 15, "gpu", "out of range"),
    "too little memory": ("n1,8000,512,1,T4", 9, "memory_mib", "out of range"),
    "no name": (",8000,32768,1,T4", 1, "sn", "no name for a node"),
    "a name with blanks": ("node one,8000,32768,1,T4", 1, "sn", "no name for a node"),
    "no model": ("n1,8000,32768,1,", 17, "model", "no GPU model"),
    "a model without GPU": ("n1,8000,32768,0,T4", 17, "model", "gpu is 0"),
    "a field too few": ("n1,8000,32768,1", 1, "", "4 fields, the header has 5"),
    "a field too many": ("n1,8000,32768,1,T4,x", 1, "", "6 fields, the header has 5"),
    "a name twice": ("n0,8000,32768,1,T4", 1, "sn", "stands twice, first in line 2"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_wrong_row_is_refused_with_line_column_and_reason(tmp_path: Path, case: str) -> None:
    row, column, name, words = WRONG_ROWS[case]
    file = tmp_path / "fleet.csv"
    file.write_text(f"{HEADER}n0,8000,32768,1,T4\n{row}\n")
    (problem,) = refused(file)
    assert (problem.line, problem.column, problem.path) == (3, column, name)
    assert words in problem.message
    assert problem.hint


def test_all_wrong_rows_are_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "fleet.csv"
    file.write_text(HEADER + "n1,x,32768,-1,T4\n\nn2,8000,32768,1,T4\nN2,8000,32768,1,T4\n")
    found = [(p.line, p.path) for p in refused(file)]
    assert found == [(2, "cpu_milli"), (2, "gpu"), (5, "sn")]
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.csv"]


WRONG_FILES = {
    "empty": (b"", "the file is empty"),
    "header alone": (HEADER.encode(), "lists no server"),
    "no header": (b"n1,8000,32768,1,T4\n", "the column sn is missing"),
    "a column misspelt": (b"sn,cpu_mili,memory_mib,gpu,model\n", "did you mean cpu_mili?"),
    "a column twice": (b"sn,sn,cpu_milli,memory_mib,gpu,model\n", "stands twice"),
    "another encoding": (HEADER.encode() + b"caf\xe9,8000,32768,1,T4\n", "not UTF-8"),
    "a stray quote": (HEADER.encode() + b'"n1,8000,32768,1,T4\n', "no CSV"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_is_no_fleet_list_is_refused_in_words(tmp_path: Path, case: str) -> None:
    content, words = WRONG_FILES[case]
    file = tmp_path / "fleet.csv"
    file.write_bytes(content)
    assert any(words in str(problem) for problem in refused(file))


def refused(file: Path) -> tuple[SiteProblem, ...]:
    with pytest.raises(SiteErrors) as caught:
        import_fleet(file)
    return caught.value.problems
