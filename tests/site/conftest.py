"""A small site file that the tests break in one place at a time."""

import pytest

SITE = """\
version: 1
name: lab
region: north
credentials:
  bmc: {username: root, password: first-secret}
  net: {username: cumulus, password_file: net.password}
  ufm: {username: admin, password_env: UFM_PASSWORD}
pools:
  vlans: ["100-199"]
  vnis: ["10000-10999"]
  pkeys: ["0x0010-0x00ff"]
  prefixes:
    - {cidr: 10.64.0.0/16, subnet_prefix_length: 24}
fabrics:
  ethernet:
    credentials_ref: net
    switches:
      - {name: leaf-1, address: "10.0.1.1:8765", role: leaf, ports: [swp1-4], rack: rack-1}
      - {name: spine-1, address: "10.0.1.2:8765", role: spine, ports: [swp1-4]}
  infiniband:
    name: ufm-1
    address: 10.0.2.1:443
    credentials_ref: ufm
    switches: [ib-1, ib-2]
scheduler_hosts:
  - {name: head-0, address: "https://10.0.3.1:6820", credentials_ref: ufm}
images:
  - {name: base, builtin: base}
node_types:
  - name: big-2
    vendor: dell
    model: PowerEdge XE9680
    gpu: {vendor: nvidia, model: H100, count: 2, memory_gib: 80}
    cpu: {cores: 64}
    memory_gib: 512
    disks:
      - {name: nvme0n1, size_gib: 894}
    infiniband_rails: 2
    price_per_node_hour: "5.00"
    currency: EUR
racks:
  - {name: rack-1, row: row-1, block: block-1}
nodes:
  - name: one
    type: big-2
    rack: rack-1
    position: 1
    serial: S1
    bmc: {address: 10.0.0.1:443, credentials_ref: bmc}
    ethernet:
      - {name: eth0, mac: 02:00:00:00:00:01, switch: leaf-1, port: swp1}
    infiniband:
      - {name: mlx5_0, guid: 0002c90300000010, rail: 0, switch: ib-1, port: 1}
      - {name: mlx5_1, guid: 0002c90300000011, rail: 1, switch: ib-2, port: 1}
  - name: two
    type: big-2
    rack: rack-1
    position: 2
    serial: S2
    bmc: {address: 10.0.0.2:443, credentials_ref: bmc}
    ethernet:
      - {name: eth0, mac: 02:00:00:00:00:02, switch: leaf-1, port: swp2}
    infiniband:
      - {name: mlx5_0, guid: 0002c90300000020, rail: 0, switch: ib-1, port: 2}
      - {name: mlx5_1, guid: 0002c90300000021, rail: 1, switch: ib-2, port: 2}
"""


@pytest.fixture
def site_text() -> str:
    return SITE
