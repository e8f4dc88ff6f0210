"""The BIOS profile of GPU servers: staged, applied by a reset, read back."""

from collections.abc import Mapping

from dflare.drivers.bmc.port import BiosSetting
from dflare.kit.steps import Outcome
from dflare.services.baremetal.errors import NodeFailedError
from dflare.services.baremetal.steps.base import NodeStep, NodeWork

GPU_PROFILE = frozenset(BiosSetting)
CPU_PROFILE = frozenset({BiosSetting.PERFORMANCE, BiosSetting.C_STATES_OFF})
_RESETS_AT_MOST = 3


class Profile(NodeStep):
    """Set the profile of the node's type; ends when the attributes in force are those wanted."""

    name = "baremetal.profile@1"

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        bmc, access = work.parts.bmc, work.node.bmc
        settings = GPU_PROFILE if work.node.facts.get("gpus") else CPU_PROFILE
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


def _still(differing: Mapping[str, tuple[str, str]]) -> str:
    return f"after {_RESETS_AT_MOST} resets BIOS still has " + ", ".join(
        f"{name}={have} instead of {want}" for name, (have, want) in differing.items()
    )
