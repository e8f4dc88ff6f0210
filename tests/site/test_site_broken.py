import pytest

from dflare.site.load import parse_site
from dflare.site.problems import SiteErrors, SiteProblem


def problems_of(text: str | bytes) -> tuple[SiteProblem, ...]:
    with pytest.raises(SiteErrors) as caught:
        parse_site(text)
    return caught.value.problems


# Each case replaces text of the valid site; "#!" marks the line that must be named.
BROKEN = {
    "unknown key": (
        "    serial: S1\n",
        "    serial: S1\n    colour: red #!\n",
        "nodes[0].colour",
        "unknown key",
    ),
    "misspelt key": (
        "    position: 1",
        "    positon: 1 #!",
        "nodes[0].positon",
        "did you mean position",
    ),
    "missing key": (
        "  - name: one",
        "  - nickname: one #!",
        "nodes[0].name",
        "the key name is missing",
    ),
    "missing nested key": (
        "    bmc: {address: 10.0.0.1:443, credentials_ref: bmc}",
        "    bmc: {credentials_ref: bmc} #!",
        "nodes[0].bmc.address",
        "missing",
    ),
    "missing section": ("version: 1\n", "version: 1 #!\n", "racks", "the key racks is missing"),
    "text for a number": (
        "    memory_gib: 512",
        "    memory_gib: 512GiB #!",
        "node_types[0].memory_gib",
        "must be a whole number",
    ),
    "a boolean for a number": (
        "    position: 2",
        "    position: true #!",
        "nodes[1].position",
        "must be a whole number",
    ),
    "a fraction for a number": (
        "    memory_gib: 512",
        "    memory_gib: 512.5 #!",
        "node_types[0].memory_gib",
        "must be a whole number",
    ),
    "a list for a group": (
        "    cpu: {cores: 64}",
        "    cpu: [64] #!",
        "node_types[0].cpu",
        "must be a group of keys",
    ),
    "a group for a list": (
        "racks:\n  - {name: rack-1, row: row-1, block: block-1}",
        "racks:\n  {name: rack-1} #!",
        "racks",
        "must be a list",
    ),
    "an empty list": (
        "racks:\n  - {name: rack-1, row: row-1, block: block-1}",
        "racks: [] #!",
        "racks",
        "the list is empty",
    ),
    "an empty value": ("region: north", "region: #!", "region", "must be text, not empty"),
    "a number out of range": (
        "count: 2,",
        "count: 0,  #!\n     ",
        "node_types[0].gpu.count",
        "greater than or equal to 1",
    ),
    "an unknown vendor": (
        "    vendor: dell",
        "    vendor: del #!",
        "node_types[0].vendor",
        "did you mean dell",
    ),
    "an unknown role": (
        "role: spine, ports: [swp1-4]}",
        "role: core, ports: [swp1-4]} #!",
        "fabrics.ethernet.switches[1].role",
        "'leaf' or 'spine'",
    ),
    "a name with capitals": ("  - name: two", "  - name: Two #!", "nodes[1].name", "lower-case"),
    "an address without port": (
        "    address: 10.0.2.1:443",
        "    address: 10.0.2.1 #!",
        "fabrics.infiniband.address",
        "no host:port",
    ),
    "a wrong MAC": (
        "mac: 02:00:00:00:00:02, switch: leaf-1, port: swp2}",
        "mac: 02:00:00:00:00, switch: leaf-1, port: swp2} #!",
        "nodes[1].ethernet[0].mac",
        "no MAC address",
    ),
    "a multicast MAC": (
        "mac: 02:00:00:00:00:02, switch: leaf-1, port: swp2}",
        "mac: 03:00:00:00:00:02, switch: leaf-1, port: swp2} #!",
        "nodes[1].ethernet[0].mac",
        "multicast",
    ),
    "a wrong GUID": (
        "guid: 0002c90300000021, rail: 1, switch: ib-2, port: 2}",
        "guid: 2c903, rail: 1, switch: ib-2, port: 2} #!",
        "nodes[1].infiniband[1].guid",
        "no GUID",
    ),
    "a price without quotes": (
        '    price_per_node_hour: "5.00"',
        "    price_per_node_hour: 5.00 #!",
        "node_types[0].price_per_node_hour",
        "quotes",
    ),
    "a negative price": ('"5.00"', '"-5.00" #!', "node_types[0].price_per_node_hour", "no price"),
    "an unknown currency": (
        "    currency: EUR",
        "    currency: euro #!",
        "node_types[0].currency",
        "ISO 4217",
    ),
    "VLAN 1": ('  vlans: ["100-199"]', '  vlans: ["1-199"] #!', "pools.vlans[0]", "reserved"),
    "VLAN 4095": ('  vlans: ["100-199"]', '  vlans: ["100-4095"] #!', "pools.vlans[0]", "reserved"),
    "PKey 0": ('["0x0010-0x00ff"]', '["0x0000-0x00ff"] #!', "pools.pkeys[0]", "reserved"),
    "the default PKey": ('["0x0010-0x00ff"]', '["0x0010-0x7fff"] #!', "pools.pkeys[0]", "reserved"),
    "a PKey with the membership bit": (
        '["0x0010-0x00ff"]',
        '["0x8010-0xffff"] #!',
        "pools.pkeys[0]",
        "0x0010",
    ),
    "a backward range": (
        '  vnis: ["10000-10999"]',
        '  vnis: ["10999-10000"] #!',
        "pools.vnis[0]",
        "ends before it starts",
    ),
    "a VNI beyond 24 bits": (
        '  vnis: ["10000-10999"]',
        '  vnis: ["16777216"] #!',
        "pools.vnis[0]",
        "24-bit",
    ),
    "overlapping VLANs": (
        '  vlans: ["100-199"]',
        '  vlans: ["100-199", "199-250"] #!',
        "pools.vlans[1]",
        "overlaps pools.vlans[0]",
    ),
    "overlapping PKeys": (
        '["0x0010-0x00ff"]',
        '["0x0010-0x00ff", "0x0020"] #!',
        "pools.pkeys[1]",
        "overlaps",
    ),
    "overlapping prefixes": (
        "    - {cidr: 10.64.0.0/16, subnet_prefix_length: 24}\n",
        (
            "    - {cidr: 10.64.0.0/16, subnet_prefix_length: 24}\n"
            "    - {cidr: 10.64.128.0/17, subnet_prefix_length: 24} #!\n"
        ),
        "pools.prefixes[1].cidr",
        "overlaps",
    ),
    "a prefix with host bits": (
        "cidr: 10.64.0.0/16, subnet_prefix_length: 24}",
        "cidr: 10.64.0.1/16, subnet_prefix_length: 24} #!",
        "pools.prefixes[0].cidr",
        "host bits",
    ),
    "a subnet larger than its prefix": (
        "subnet_prefix_length: 24}",
        "subnet_prefix_length: 12} #!",
        "pools.prefixes[0]",
        "does not fit",
    ),
    "a name twice": (
        "  - name: two",
        "  - name: one #!",
        "nodes[1].name",
        "first at nodes[0].name",
    ),
    "a serial twice": ("    serial: S2", "    serial: S1 #!", "nodes[1].serial", "stands twice"),
    "an address twice": (
        "    address: 10.0.2.1:443",
        "    address: 10.0.1.1:8765 #!",
        "fabrics.infiniband.address",
        "first at fabrics.ethernet.switches[0].address",
    ),
    "a BMC address twice": (
        "    bmc: {address: 10.0.0.2:443, credentials_ref: bmc}",
        "    bmc: {address: 10.0.0.1:443, credentials_ref: bmc} #!",
        "nodes[1].bmc.address",
        "first at nodes[0].bmc.address",
    ),
    "a MAC twice, written otherwise": (
        "mac: 02:00:00:00:00:02, switch: leaf-1, port: swp2}",
        "mac: 02-00-00-00-00-01, switch: leaf-1, port: swp2} #!",
        "nodes[1].ethernet[0].mac",
        "first at nodes[0].ethernet[0].mac",
    ),
    "a GUID twice": (
        "guid: 0002c90300000021, rail: 1, switch: ib-2, port: 2}",
        "guid: 0x0002c90300000010, rail: 1, switch: ib-2, port: 2} #!",
        "nodes[1].infiniband[1].guid",
        "first at nodes[0]",
    ),
    "a switch port twice": (
        "switch: leaf-1, port: swp2}",
        "switch: leaf-1, port: swp1} #!",
        "nodes[1].ethernet[0].port",
        "first at nodes[0].ethernet[0].port",
    ),
    "an InfiniBand switch port twice": (
        "switch: ib-2, port: 2}",
        "switch: ib-2, port: 1} #!",
        "nodes[1].infiniband[1].port",
        "stands twice",
    ),
    "a place in the rack twice": (
        "    position: 2",
        "    position: 1 #!",
        "nodes[1].position",
        "position 1 of rack-1 stands twice",
    ),
    "a switch name twice": (
        "    switches: [ib-1, ib-2]",
        "    switches: [ib-1, ib-2, leaf-1] #!",
        "fabrics.infiniband.switches[2]",
        "stands twice",
    ),
    "a key twice": (
        "    serial: S2\n",
        "    serial: S2\n    serial: S3 #!\n",
        "nodes[1].serial",
        "first in line 59",
    ),
    "a port in the switch twice": (
        "role: spine, ports: [swp1-4]}",
        "role: spine, ports: [swp1-4, swp2]} #!",
        "fabrics.ethernet.switches[1].ports",
        "port swp2 stands twice",
    ),
    "an unknown rack": (
        "    rack: rack-1\n    position: 2",
        "    rack: rack-l #!\n    position: 2",
        "nodes[1].rack",
        "did you mean rack-1",
    ),
    "an unknown node type": (
        "  - name: two\n    type: big-2",
        "  - name: two\n    type: huge #!",
        "nodes[1].type",
        "not one of node_types",
    ),
    "an unknown switch": (
        "switch: leaf-1, port: swp2}",
        "switch: leaf-9, port: swp2} #!",
        "nodes[1].ethernet[0].switch",
        "not one of fabrics.ethernet.switches",
    ),
    "an unknown switch port": (
        "switch: leaf-1, port: swp2}",
        "switch: leaf-1, port: swp9} #!",
        "nodes[1].ethernet[0].port",
        "no port swp9",
    ),
    "a server on a spine": (
        "switch: leaf-1, port: swp2}",
        "switch: spine-1, port: swp2} #!",
        "nodes[1].ethernet[0].switch",
        "is a spine",
    ),
    "an unknown InfiniBand switch": (
        "switch: ib-2, port: 2}",
        "switch: ib-3, port: 2} #!",
        "nodes[1].infiniband[1].switch",
        "not one of fabrics.infiniband.switches",
    ),
    "an unknown account": (
        "    credentials_ref: net",
        "    credentials_ref: nett #!",
        "fabrics.ethernet.credentials_ref",
        "did you mean net",
    ),
    "a rail twice": (
        "rail: 1, switch: ib-2, port: 2}",
        "rail: 0, switch: ib-2, port: 2} #!",
        "nodes[1].infiniband[1].rail",
        "rail 0 stands twice",
    ),
    "a rail that the type lacks": (
        "rail: 1, switch: ib-2, port: 2}",
        "rail: 2, switch: ib-2, port: 2} #!",
        "nodes[1].infiniband[1].rail",
        "rails are 0 to 1",
    ),
    "a rail too few": (
        (
            "      - {name: mlx5_0, guid: 0002c90300000020, rail: 0, switch: ib-1, port: 2}\n"
            "      - {name: mlx5_1,"
        ),
        "      - {name: mlx5_1, #!\n",
        "nodes[1].infiniband",
        "has 2 rails",
    ),
    "InfiniBand without PKeys": (
        'pools:\n  vlans: ["100-199"]\n  vnis: ["10000-10999"]\n  pkeys: ["0x0010-0x00ff"]',
        'pools:\n  vlans: ["100-199"] #!\n  vnis: ["10000-10999"]\n  pkeys: []',
        "pools",
        "no PKeys",
    ),
    "two passwords": (
        "  bmc: {username: root, password: first-secret}",
        "  bmc: {username: root, password: a, password_env: B} #!",
        "credentials.bmc",
        "exactly one",
    ),
    "no password": (
        "  bmc: {username: root, password: first-secret}",
        "  bmc: {username: root} #!",
        "credentials.bmc",
        "no password",
    ),
    "a masked password": (
        "password: first-secret",
        "password: '**********' #!\n      ",
        "credentials.bmc",
        "masked",
    ),
    "a misspelt key of an account": (
        "{username: root, password: first-secret}",
        "{user: root, password: first-secret} #!",
        "credentials.bmc.user",
        "did you mean username",
    ),
    "an image without its hash": (
        "  - {name: base, builtin: base}",
        "  - {name: base, url: 'http://images/base.raw'} #!",
        "images[0]",
        "sha256",
    ),
    "a scheduler host without TLS": (
        "https://10.0.3.1:6820",
        'http://10.0.3.1:6820", #!\n    rest: "',
        "scheduler_hosts[0].address",
        "is no https://host:port",
    ),
    "a scheduler host at the address of a BMC": (
        "https://10.0.3.1:6820",
        'https://10.0.0.1:443", #!\n    rest: "',
        "scheduler_hosts[0].address",
        "stands twice",
    ),
    "a scheduler host with an unknown account": (
        '6820", credentials_ref: ufm}',
        '6820", credentials_ref: umf} #!',
        "scheduler_hosts[0].credentials_ref",
        "did you mean ufm",
    ),
    "two scheduler hosts of one name": (
        '  - {name: head-0, address: "https://10.0.3.1:6820", credentials_ref: ufm}',
        (
            '  - {name: head-0, address: "https://10.0.3.1:6820", credentials_ref: ufm}\n'
            '  - {name: head-0, address: "https://10.0.3.2:1", credentials_ref: ufm} #!'
        ),
        "scheduler_hosts[1].name",
        "stands twice",
    ),
    "an unknown version": ("version: 1", "version: 2 #!", "version", "is not one of 1"),
    "a tag": ("region: north", "region: !secret north #!", "region", "tag !secret is not known"),
    "an unclosed quote": ("region: north", "region: 'north", "", "YAML syntax"),
    "a tab": ("region: north", "region: north\n\tx: 1 #!", "", "YAML syntax"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_site_is_refused_with_line_key_and_reason(site_text: str, case: str) -> None:
    old, new, path, words = BROKEN[case]
    assert old in site_text, "the case no longer fits the site"
    text = site_text.replace(old, new, 1)
    if case == "missing section":
        text = text.replace("racks:\n  - {name: rack-1, row: row-1, block: block-1}\n", "")
    found = [p for p in problems_of(text) if p.path == path and words in str(p)]
    assert len(found) == 1, problems_of(text)
    if "#!" in text:
        marked = next(n for n, line in enumerate(text.splitlines(), 1) if "#!" in line)
        assert found[0].line == marked
