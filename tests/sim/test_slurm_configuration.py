"""What a cluster's daemons are told, and what is refused before anything starts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dflare.sim.slurm.configuration import (
    ClusterFacts,
    Host,
    configuration,
    gres_conf,
    slurm_conf,
    topology_conf,
)
from dflare.sim.slurm.programs import PackagesMissingError, Programs

HOSTS = tuple(Host(f"gpu{i}", leaf=f"l{i // 2}", block=f"b{i // 4}") for i in range(8))


def test_every_host_is_unknown_until_its_slurmd_registers() -> None:
    text = slurm_conf(ClusterFacts("alpha", HOSTS), "/plugins")
    nodes = [line for line in text.splitlines() if line.startswith("NodeName=")]
    assert len(nodes) == 8
    assert all("State=UNKNOWN" in line and "Gres=gpu:h100:8" in line for line in nodes)
    assert len({line.partition("Port=")[2].split()[0] for line in nodes}) == 8
    assert "ReturnToService=2" in text
    assert "Nodes=gpu0,gpu1,gpu2,gpu3,gpu4,gpu5,gpu6,gpu7" in text


def test_topology_follows_leaves_and_blocks_and_joins_them_at_a_root() -> None:
    assert topology_conf(HOSTS).splitlines() == [
        "SwitchName=leaf-l0 Nodes=gpu0,gpu1",
        "SwitchName=leaf-l1 Nodes=gpu2,gpu3",
        "SwitchName=leaf-l2 Nodes=gpu4,gpu5",
        "SwitchName=leaf-l3 Nodes=gpu6,gpu7",
        "SwitchName=block-b0 Switches=leaf-l0,leaf-l1",
        "SwitchName=block-b1 Switches=leaf-l2,leaf-l3",
        "SwitchName=root Switches=block-b0,block-b1",
    ]


def test_a_host_without_a_leaf_leaves_the_whole_cluster_without_topology() -> None:
    facts = ClusterFacts("alpha", (*HOSTS, Host("lost")))
    files = configuration(facts, plugins="/p", version=(22, 5), password="x")
    assert "topology.conf" not in files
    assert "TopologyPlugin=topology/none" in files["slurm.conf"]


def test_hosts_with_other_gpus_have_lines_of_their_own() -> None:
    mixed = (Host("a"), Host("b", gpus=4, gpu_type="mi300x"), Host("c", gpus=0), Host("d", gpus=1))
    assert gres_conf(mixed).splitlines() == [
        "NodeName=a Name=gpu Type=h100 File=/cluster/gpu/gpu[0-7]",
        "NodeName=b Name=gpu Type=mi300x File=/cluster/gpu/gpu[0-3]",
        "NodeName=d Name=gpu Type=h100 File=/cluster/gpu/gpu0",
    ]


@pytest.mark.parametrize(("version", "plugin"), [((22, 5), "cgroup/v1"), ((23, 11), "disabled")])
def test_no_version_of_slurm_looks_for_a_cgroup(version: tuple[int, int], plugin: str) -> None:
    facts = ClusterFacts("alpha", HOSTS)
    files = configuration(facts, plugins="/p", version=version, password="x")
    assert files["cgroup.conf"] == f"CgroupPlugin={plugin}\n"


@pytest.mark.parametrize("name", ["", "Gpu", "gpu 0", "gpu\nState=UP", "controller", "../x"])
def test_a_name_that_could_say_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a node"):
        Host(name)


def test_two_hosts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        ClusterFacts("alpha", (Host("a"), Host("a")))


def test_a_folder_without_the_packages_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(PackagesMissingError, match=r"usr/sbin/munged.*usr/sbin/slurmd.*auth_jwt"):
        Programs.find(tmp_path)


def test_where_no_namespaces_can_be_had_the_reason_and_the_remedy_are_said(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare to make a place without namespaces")
    for name in ("control", "etc", "inside", "home", "root"):
        (tmp_path / name).mkdir()
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces || exit 77; exec "$@"'
    init = [sys.executable, "-m", "dflare.sim.slurm.init", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [unshare, "--user", "--map-root-user", "sh", "-c", forbid, "sh", *init],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this machine does not let a test forbid namespaces to itself")
    assert done.returncode == 1
    assert "gives this user no namespaces" in done.stdout
    assert "user.max_user_namespaces" in done.stdout
