"""The BIOS profile of GPU servers: staged, applied by a reset, read back."""

from collections.abc import Mapping

from dflare.drivers.bmc.port import BiosSetting
from dflare.kit.steps import Outcome
from dflare.services.baremetal.errors import NodeFailedError
from dflare.services.baremetal.steps.base import NodeStep, NodeWork

_GPU = frozenset(
    {
        BiosSetting.PERFORMANCE,
        BiosSetting.C_STATES_OFF,
        BiosSetting.NUMA_PER_SOCKET,
        BiosSetting.ASPM_OFF,
        BiosSetting.IOMMU_ON,
    }
)
GPU_PROFILES = {
    "nvidia": _GPU,
    # AMD's guide for the MI100 asks for large BARs and SR-IOV. That the MI300X wants the same, and
    # Gaudi large BARs, is our judgement: no guide for them was found.
    "amd": _GPU | {BiosSetting.ABOVE_4G_ON, BiosSetting.SRIOV_ON},
    "intel": _GPU | {BiosSetting.ABOVE_4G_ON},
}
CPU_PROFILE = frozenset({BiosSetting.PERFORMANCE, BiosSetting.C_STATES_OFF})
_RESETS_AT_MOST = 3


class Profile(NodeStep):
    """Set the profile of the node's type; ends when the attributes in force are those wanted."""

    name = "baremetal.profile@1"

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        bmc, access = work.parts.bmc, work.node.bmc
        settings = profile_of(work.node.facts)
        resets = 0
        while True:
            found = await bmc.ensure_bios(access, settings)
            if found.applied:
                observed = {
                    "bios": dict(found.in_force),
                    "unsupported": [str(setting) for setting in found.unsupported],
                }
                return Outcome("done", observed=observed)
            if found.staged or resets == 0:
                if resets == _RESETS_AT_MOST:
                    raise NodeFailedError(_still(found.differing), fault=True)
                # Where it boots to does not matter: the firmware applies what is staged.
                await bmc.boot(access, None)
                resets += 1
            await work.pause("the BIOS settings wait for the server's reset")


def profile_of(facts: Mapping[str, object]) -> frozenset[BiosSetting]:
    """The settings of a node: those that its GPUs' maker asks for, or those of CPU servers."""
    if not facts.get("gpus"):
        return CPU_PROFILE
    return GPU_PROFILES.get(str(facts.get("gpu_vendor")), _GPU)


def _still(differing: Mapping[str, tuple[str, str]]) -> str:
    return f"after {_RESETS_AT_MOST} resets BIOS still has " + ", ".join(
        f"{name}={have} instead of {want}" for name, (have, want) in differing.items()
    )
