"""The models of ``site.yaml``: one data center as its operator describes it.

All models are frozen and refuse unknown keys. They check one value at a time; what joins values
(references, duplicates, overlaps) is checked by ``dflare.site.check``. Collections are tuples, in
the order of the file. ``model_dump(mode="json")`` gives what ``model_validate`` reads again, with
passwords masked: ``dflare.site.render`` is the way to write a whole document.
"""

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from dflare.site.values import (
    Endpoint,
    Guid,
    HttpsAddress,
    Label,
    Mac,
    Name,
    PkeyRange,
    PortName,
    Ports,
    Prefix,
    Price,
    VlanRange,
    VniRange,
    Whole,
    refusal,
)


class ServerVendor(StrEnum):
    """Whose Redfish dialect a server's BMC speaks."""

    DELL = "dell"
    HPE = "hpe"
    SUPERMICRO = "supermicro"
    LENOVO = "lenovo"
    NVIDIA = "nvidia"


class GpuVendor(StrEnum):
    """Who made an accelerator; decides the runtime that a tenant's system needs."""

    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"


class SiteModel(BaseModel):
    """Base of every part of the document: frozen, unknown keys refused, ``null`` never a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Credential(SiteModel):
    """A user name and where its password is found: exactly one of the three ``password`` keys."""

    username: Label = Field(description="User name that the device accepts.")
    password: SecretStr | None = Field(
        default=None, description="The password itself. Stored encrypted; keep such a file private."
    )
    password_file: Label | None = Field(
        default=None,
        description="File with the password, relative to the site file; a final newline is cut.",
    )
    password_env: Label | None = Field(
        default=None,
        description="Environment variable that holds the password when the site is applied.",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [
            key
            for key in ("password", "password_file", "password_env")
            if getattr(self, key) is not None
        ]
        if len(given) != 1:
            raise refusal(
                f"{' and '.join(given)} are both given" if given else "no password is given",
                "give exactly one of password_file, password_env and password",
            )
        if self.password is not None and set(self.password.get_secret_value()) <= {"*"}:
            raise refusal(
                "the password is masked or empty",
                "this document was written for people to read: put the real password in",
            )
        return self


class PrefixPool(SiteModel):
    """An IPv4 prefix that is cut into subnets of one size; a cluster gets one subnet."""

    cidr: Prefix = Field(description="The prefix, without host bits, as 10.64.0.0/12.")
    subnet_prefix_length: Whole = Field(
        ge=8,
        le=30,
        description="Length of the subnet handed to one cluster: 24 gives 254 addresses.",
    )

    @model_validator(mode="after")
    def _subnet_fits(self) -> Self:
        if self.subnet_prefix_length < self.cidr.prefixlen:
            raise refusal(
                f"a /{self.subnet_prefix_length} subnet does not fit into {self.cidr}",
                f"use a subnet_prefix_length from {self.cidr.prefixlen} to 30",
            )
        return self


class Pools(SiteModel):
    """Identifiers that the platform may hand to tenants of this site; nobody else may use them."""

    vlans: tuple[VlanRange, ...] = Field(
        min_length=1, description='VLAN ranges as "100-3699"; 1 and 4095 are reserved.'
    )
    vnis: tuple[VniRange, ...] = Field(
        min_length=1, description='VXLAN VNI ranges as "10000-29999".'
    )
    pkeys: tuple[PkeyRange, ...] = Field(
        default=(),
        description='InfiniBand PKey ranges as "0x0010-0x7ffe"; 0x0 and 0x7fff are reserved.',
    )
    prefixes: tuple[PrefixPool, ...] = Field(
        min_length=1, description="IPv4 prefixes for tenants' subnets."
    )
    cooldown_s: Whole = Field(
        default=300,
        ge=0,
        le=86_400,
        description="Seconds that a released identifier rests before it is handed out again.",
    )


class EthernetSwitch(SiteModel):
    """A leaf or spine switch of the Ethernet fabric."""

    name: Name = Field(description="Name, unique among all switches of the site.")
    address: Endpoint = Field(description="host:port of its management API.")
    role: Literal["leaf", "spine"] = Field(
        description="leaf: servers are cabled to it; spine: joins leaves."
    )
    ports: Ports = Field(description='Front ports: names, or ranges as "swp1-64".')
    rack: Name | None = Field(default=None, description="Rack that it stands in, where it matters.")
    driver: Literal["nvue"] = Field(default="nvue", description="How it is driven.")


class EthernetFabric(SiteModel):
    """The Ethernet fabric: its switches and the account that configures them."""

    credentials_ref: Name = Field(description="Key of credentials; the account of every switch.")
    switches: tuple[EthernetSwitch, ...] = Field(min_length=1, description="All leaves and spines.")


class InfinibandFabric(SiteModel):
    """The InfiniBand fabric, driven through its manager."""

    name: Name = Field(description="Name of the fabric manager.")
    address: Endpoint = Field(description="host:port of the manager's REST API.")
    driver: Literal["ufm"] = Field(default="ufm", description="How it is driven.")
    credentials_ref: Name = Field(description="Key of credentials; the manager's account.")
    switches: tuple[Name, ...] = Field(min_length=1, description="Names of its switches.")


class Fabrics(SiteModel):
    """The networks of the site."""

    ethernet: EthernetFabric = Field(
        description="The Ethernet fabric that every server is cabled to."
    )
    infiniband: InfinibandFabric | None = Field(
        default=None, description="The InfiniBand fabric, if any."
    )


class SchedulerHost(SiteModel):
    """A machine of the operator that runs the controllers of tenants' Slurm clusters."""

    name: Name = Field(description="Name, unique among the scheduler hosts of the site.")
    address: HttpsAddress = Field(
        description="https://host:port of its API, which docs/how-to/scheduler-host.md describes."
    )
    credentials_ref: Name = Field(description="Key of credentials; its account.")


class Image(SiteModel):
    """An operating system image to order: a file at a URL, or one that the platform makes."""

    name: Name = Field(description="Name that orders use.")
    url: Annotated[str, StringConstraints(pattern=r"^(https?|file)://\S+$")] | None = Field(
        default=None, description="Where the raw disk image is read from (http, https or file)."
    )
    builtin: Name | None = Field(
        default=None, description="Name of an image that the platform makes."
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="SHA-256 of the image, 64 hexadecimal digits; required with url."
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.url is None) == (self.builtin is None):
            raise refusal("an image needs one source", "give exactly one of url and builtin")
        if self.url is not None and self.sha256 is None:
            raise refusal("an image from a url needs its sha256", "run sha256sum on the file")
        return self


class GpuSet(SiteModel):
    """The accelerators of one server; all are alike."""

    vendor: GpuVendor = Field(description="Maker of the accelerators.")
    model: Label = Field(description="Model as shown to tenants.")
    count: Whole = Field(ge=1, le=64, description="Accelerators in one server.")
    memory_gib: Whole = Field(ge=1, description="Memory of one accelerator.")


class Cpu(SiteModel):
    """The processors of one server."""

    cores: Whole = Field(ge=1, description="Cores of all sockets together.")
    sockets: Whole = Field(default=2, ge=1, le=16, description="Processor sockets.")


class DiskKind(StrEnum):
    """How a local drive is attached, and so how it is erased."""

    NVME = "nvme"
    SATA = "sata"


class Disk(SiteModel):
    """A local drive that every server of a type has."""

    name: Label = Field(description="Device name, as nvme0n1.")
    size_gib: Whole = Field(ge=1, description="Size of the drive.")
    kind: DiskKind = Field(default=DiskKind.NVME, description="nvme or sata.")


class NodeType(SiteModel):
    """What tenants order and pay: servers of a type are alike in everything listed here."""

    name: Name = Field(description="Name that orders use.")
    vendor: ServerVendor = Field(description="Vendor of its servers; a node may say otherwise.")
    model: Label = Field(description="Server model as its vendor calls it.")
    gpu: GpuSet | None = Field(
        default=None, description="Accelerators; left out for servers without."
    )
    cpu: Cpu = Field(description="Processors.")
    memory_gib: Whole = Field(ge=1, description="Main memory.")
    disks: tuple[Disk, ...] = Field(
        min_length=1, description="Local drives, the first holds the system."
    )
    infiniband_rails: Whole = Field(
        default=0, ge=0, le=16, description="InfiniBand ports of each server, one to a rail."
    )
    price_per_node_hour: Price = Field(
        description='Price of one server for one hour, in quotes: "12.50".'
    )
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = Field(
        description="ISO 4217 code of the price."
    )


class Rack(SiteModel):
    """A rack and where it stands; placement prefers one rack, then one row, then one block."""

    name: Name = Field(description="Name, unique in the site.")
    row: Name = Field(description="Row of racks that it belongs to.")
    block: Name = Field(description="Block (hall, power or fabric domain) that the row belongs to.")


class Bmc(SiteModel):
    """The management controller of a server."""

    address: Endpoint = Field(description="host:port of its Redfish service (HTTPS).")
    credentials_ref: Name = Field(description="Key of credentials; its account.")


class EthernetPort(SiteModel):
    """A server's Ethernet port and the switch port that its cable ends in."""

    name: Label = Field(description="Interface name in the server, as eth0.")
    mac: Mac = Field(description="MAC address.")
    switch: Name = Field(description="Ethernet switch at the cable's end.")
    port: PortName = Field(description="Port of that switch.")
    speed_gbps: Whole = Field(default=100, ge=1, description="Speed of the link.")


class InfinibandPort(SiteModel):
    """A server's InfiniBand port, its rail and the switch port that its cable ends in."""

    name: Label = Field(description="Device name in the server, as mlx5_0.")
    guid: Guid = Field(description="Port GUID, 16 hexadecimal digits.")
    rail: Whole = Field(
        ge=0, le=15, description="Rail number; GPU r of each server talks on rail r."
    )
    switch: Name = Field(description="InfiniBand switch at the cable's end.")
    port: PortName = Field(description="Port of that switch.")


class Node(SiteModel):
    """One server."""

    name: Name = Field(description="Name, unique in the site.")
    type: Name = Field(description="Name of its node type.")
    rack: Name = Field(description="Name of its rack.")
    position: Whole = Field(ge=1, description="Place in the rack, counted from 1.")
    vendor: ServerVendor | None = Field(
        default=None, description="Vendor, where not the node type's."
    )
    serial: Label = Field(description="Serial number as its BMC reports it.")
    bmc: Bmc = Field(description="Management controller.")
    ethernet: tuple[EthernetPort, ...] = Field(min_length=1, description="Ethernet ports.")
    infiniband: tuple[InfinibandPort, ...] = Field(default=(), description="InfiniBand ports.")
    nvlink_domain: Name | None = Field(
        default=None,
        description="Servers with the same value share an NVLink domain; left out: its own.",
    )


class SiteDocument(SiteModel):
    """A whole site.yaml."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    name: Name = Field(description="Name of the site, unique in the platform.")
    region: Name = Field(description="Region that tenants choose.")
    description: str = Field(default="", max_length=2000, description="Free text for people.")
    credentials: dict[Name, Credential] = Field(
        description="Accounts of devices, by the name that refers to them."
    )
    pools: Pools = Field(description="Identifiers that tenants' networks are made from.")
    fabrics: Fabrics = Field(description="Switches and fabric managers.")
    scheduler_hosts: tuple[SchedulerHost, ...] = Field(
        default=(),
        description="Machines that run the controllers of Slurm clusters; without any, clusters of "
        "kind slurm are refused.",
    )
    images: tuple[Image, ...] = Field(default=(), description="Operating system images.")
    node_types: tuple[NodeType, ...] = Field(
        min_length=1, description="Kinds of server, with prices."
    )
    volume_price_per_gib_hour: Price | None = Field(
        default=None,
        description="Price of one GiB of volumes for an hour, in quotes and in the currency of the "
        "first node type; left out: volumes are free.",
    )
    racks: tuple[Rack, ...] = Field(min_length=1, description="Racks.")
    nodes: tuple[Node, ...] = Field(min_length=1, description="Servers.")

    @cached_property
    def types_by_name(self) -> dict[str, NodeType]:
        """Node types by their name."""
        return {kind.name: kind for kind in self.node_types}

    @cached_property
    def racks_by_name(self) -> dict[str, Rack]:
        """Racks by their name."""
        return {rack.name: rack for rack in self.racks}

    def vendor_of(self, node: Node) -> ServerVendor:
        """Vendor of ``node``: its own where given, its type's otherwise."""
        return node.vendor or self.types_by_name[node.type].vendor

    def nvlink_domain_of(self, node: Node) -> str:
        """NVLink domain of ``node``: the node itself where the document names none."""
        return node.nvlink_domain or node.name
