"""The files that a cluster's daemons read, generated from facts about its hosts.

Without cgroups and without root: slurm.conf(5), gres.conf(5), topology.conf(5), slurmdbd.conf(5),
cgroup.conf(5).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dflare.sim.slurm.sandbox import CLUSTER, CONTROLLER, ETC, PACKAGES, USER

CONTROLLER_PORT, DATABASE_DAEMON_PORT, FIRST_NODE_PORT = 6817, 6819, 20000
JOB_LOG = f"{CLUSTER}/log/jobs"
JOB_HOOKS = ("prolog", "epilog")
DEAD_PORT = 9
"""Nothing listens there (discard, RFC 863)."""
LOOPBACK = "127.0.0.1"
MUNGE_SOCKET = f"{CLUSTER}/munge/munge.sock"
DATABASE_SOCKET = f"{CLUSTER}/run/mariadb.sock"
REST_SOCKET = f"{CLUSTER}/run/slurmrestd.sock"
JWT_KEY = f"{ETC}/jwt.key"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FIRST_WITH_CGROUP_SWITCH = (23, 2)


@dataclass(frozen=True)
class Host:
    """One host that may be a node of the cluster, whether its slurmd runs yet or not.

    `leaf` and `block` are the switch it hangs on and the group of switches above; hosts without a
    leaf give a cluster without topology. `gpu_type` is a word of gres, such as `h100`. Hosts
    without a `partition` are in the cluster's. `port` is that of its slurmd, which a change of the
    cluster must not move while the host runs; 0 stands for the next one by place.
    """

    name: str
    gpus: int = 8
    gpu_type: str = "h100"
    cpus: int = 64
    memory_mib: int = 1_024_000
    leaf: str = ""
    block: str = ""
    partition: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == CONTROLLER:
            raise ValueError(f"{self.name!r} cannot be the name of a node")


@dataclass(frozen=True)
class ClusterFacts:
    """A cluster's name, every host that may join it, and how long slurmd may be silent (s).

    `account` is the one that jobs without an account get. The first host's partition is the one
    that jobs without a partition get.
    """

    name: str
    hosts: tuple[Host, ...]
    partition: str = "main"
    silence_s: int = 30
    account: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not self.hosts:
            raise ValueError(f"{self.name!r} is no name of a cluster, or it has no host")
        if len({host.name for host in self.hosts}) != len(self.hosts):
            raise ValueError("two hosts of a cluster have the same name")


def configuration(
    facts: ClusterFacts, *, plugins: str, version: tuple[int, int], password: str
) -> dict[str, str]:
    """The files below /etc/slurm by name.

    `plugins` is the folder of Slurm's plugins inside, `version` Slurm's own, `password` the one of
    slurmdbd at its database.
    """
    files = {
        "slurm.conf": slurm_conf(facts, plugins),
        "gres.conf": gres_conf(facts.hosts),
        "slurmdbd.conf": slurmdbd_conf(plugins, password),
        "hosts": hosts_file(facts.hosts),
    }
    for hook, word in zip(JOB_HOOKS, ("started", "ended"), strict=True):
        files[hook] = _hook(word)
    if has_topology(facts.hosts):
        files["topology.conf"] = topology_conf(facts.hosts)
    # Nothing asks for a cgroup, but slurmd ends when it cannot tell which kind the machine has.
    plugin = "disabled" if version >= _FIRST_WITH_CGROUP_SWITCH else "cgroup/v1"
    files["cgroup.conf"] = f"CgroupPlugin={plugin}\n"
    return files


def slurm_conf(
    facts: ClusterFacts,
    plugins: str,
    munge_socket: str = MUNGE_SOCKET,
    controller_port: int = CONTROLLER_PORT,
) -> str:
    """slurm.conf. A host is unknown until its slurmd registers, and DOWN if that takes too long; it
    comes up by registering at any time (ReturnToService=2). Declared as DOWN, a restarted slurmctld
    would end the jobs on it."""
    topology = "topology/tree" if has_topology(facts.hosts) else "topology/none"
    lines = [
        f"ClusterName={facts.name}",
        f"SlurmctldHost={CONTROLLER}({LOOPBACK})",
        f"SlurmctldPort={controller_port}",
        f"SlurmUser={USER}",
        f"SlurmdUser={USER}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={munge_socket}",
        "AuthAltTypes=auth/jwt",
        f"AuthAltParameters=jwt_key={JWT_KEY}",
        "CredType=cred/munge",
        f"PluginDir={plugins}",
        f"StateSaveLocation={CLUSTER}/state",
        f"SlurmdSpoolDir={CLUSTER}/spool/%n",
        f"SlurmctldPidFile={CLUSTER}/run/slurmctld.pid",
        f"SlurmdPidFile={CLUSTER}/run/slurmd.%n.pid",
        f"SlurmctldLogFile={CLUSTER}/log/slurmctld.log",
        f"SlurmdLogFile={CLUSTER}/log/slurmd.%n.log",
        f"SlurmctldTimeout={facts.silence_s}",
        f"SlurmdTimeout={facts.silence_s}",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "ReturnToService=2",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmdParameters=config_overrides",
        f"TopologyPlugin={topology}",
        "TreeWidth=65533",
        "GresTypes=gpu",
        "SchedulerParameters=bf_interval=2,sched_min_interval=0,batch_sched_delay=0",
        "AccountingStorageTRES=gres/gpu",
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={LOOPBACK}",
        f"AccountingStoragePort={DATABASE_DAEMON_PORT}",
        f"AccountingStoragePass={munge_socket}",
        "TrackWCKey=yes",
        f"Prolog={ETC}/{JOB_HOOKS[0]}",
        f"Epilog={ETC}/{JOB_HOOKS[1]}",
        "PrologFlags=Alloc",
    ]
    lines += [_node(host, host.port or FIRST_NODE_PORT + at) for at, host in enumerate(facts.hosts)]
    lines += _partitions(facts)
    return "\n".join(lines) + "\n"


def gres_conf(hosts: Sequence[Host]) -> str:
    """gres.conf; the files exist only to be counted, and must be devices (see `gpu_files`)."""
    lines: list[str] = []
    for (kind, count), names in _by_gpus(hosts).items():
        if count:
            files = f"{CLUSTER}/gpu/gpu[0-{count - 1}]" if count > 1 else f"{CLUSTER}/gpu/gpu0"
            lines.append(f"NodeName={','.join(names)} Name=gpu Type={kind} File={files}")
    return "\n".join(lines) + "\n"


def topology_conf(hosts: Sequence[Host]) -> str:
    """topology.conf: a switch a leaf, one a block above, and one root, so that a job may span all.

    Leaves and blocks get the prefixes `leaf-` and `block-`: their names share one space.
    """
    leaves: dict[str, list[str]] = {}
    blocks: dict[str, dict[str, None]] = {}
    for host in hosts:
        leaves.setdefault(host.leaf, []).append(host.name)
        blocks.setdefault(host.block or "all", {})[host.leaf] = None
    lines = [f"SwitchName=leaf-{leaf} Nodes={','.join(names)}" for leaf, names in leaves.items()]
    for block, below in blocks.items():
        joined = ",".join(f"leaf-{leaf}" for leaf in below)
        lines.append(f"SwitchName=block-{block} Switches={joined}")
    if len(blocks) > 1:
        joined = ",".join(f"block-{block}" for block in blocks)
        lines.append(f"SwitchName=root Switches={joined}")
    return "\n".join(lines) + "\n"


def slurmdbd_conf(plugins: str, password: str) -> str:
    """slurmdbd.conf; the daemon refuses a file that others may read."""
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={MUNGE_SOCKET}",
        "AuthAltTypes=auth/jwt",
        f"AuthAltParameters=jwt_key={JWT_KEY}",
        f"PluginDir={plugins}",
        f"DbdHost={CONTROLLER}",
        f"DbdAddr={LOOPBACK}",
        f"DbdPort={DATABASE_DAEMON_PORT}",
        f"SlurmUser={USER}",
        f"PidFile={CLUSTER}/run/slurmdbd.pid",
        f"LogFile={CLUSTER}/log/slurmdbd.log",
        "StorageType=accounting_storage/mysql",
        f"StorageHost={LOOPBACK}",
        "StorageUser=slurm",
        f"StoragePass={password}",
        "StorageLoc=slurm_accounting",
        "TrackWCKey=yes",
    ]
    return "\n".join(lines) + "\n"


def hosts_file(hosts: Sequence[Host]) -> str:
    """/etc/hosts, so that a job finds its nodes by name."""
    names = ["localhost", CONTROLLER, *(host.name for host in hosts)]
    return "".join(f"{LOOPBACK} {name}\n" for name in names)


def has_topology(hosts: Sequence[Host]) -> bool:
    """Whether every host says on which leaf it hangs: with topology/tree a node outside of
    topology.conf would never get a job."""
    return all(host.leaf for host in hosts)


def plugin_folder(relative: str) -> str:
    """The plugins' folder inside, from its path below the packages."""
    return f"{PACKAGES}/{relative}"


def _node(host: Host, port: int) -> str:
    gres = f" Gres=gpu:{host.gpu_type}:{host.gpus}" if host.gpus else ""
    return (
        f"NodeName={host.name} NodeHostname={host.name} NodeAddr={LOOPBACK} Port={port} "
        f"CPUs={host.cpus} RealMemory={host.memory_mib}{gres} State=UNKNOWN"
    )


def _hook(word: str) -> str:
    """A program that slurmd runs on each node of a job, before its first step and after its last:
    it notes the time, the word, node, job, GPUs (by number) and account. It never fails, since a
    node whose prolog fails is drained (slurm.conf(5))."""
    facts = "$SLURMD_NODENAME $SLURM_JOB_ID ${SLURM_JOB_GPUS:--} ${SLURM_JOB_ACCOUNT:--}"
    return f'#!/bin/sh\necho "$(date +%s.%N) {word} {facts}" >> {JOB_LOG}\nexit 0\n'


def _partitions(facts: ClusterFacts) -> list[str]:
    """A line a partition. A job that names no memory gets the share of its cores: without a default
    it would hold the whole node's."""
    members: dict[str, list[Host]] = {}
    for host in facts.hosts:
        members.setdefault(host.partition or facts.partition, []).append(host)
    lines: list[str] = []
    for name, hosts in members.items():
        share_mib = max(1, min(host.memory_mib // host.cpus for host in hosts))
        lines.append(
            f"PartitionName={name} Nodes={','.join(host.name for host in hosts)} "
            f"Default={'NO' if lines else 'YES'} State=UP DefMemPerCPU={share_mib}"
        )
    return lines


def _by_gpus(hosts: Sequence[Host]) -> dict[tuple[str, int], list[str]]:
    grouped: dict[tuple[str, int], list[str]] = {}
    for host in hosts:
        grouped.setdefault((host.gpu_type, host.gpus), []).append(host.name)
    return grouped
