"""The sagas of single nodes: what their tenant may do to them, and cleaning after quarantine.

Each begins with the claim, so that it waits for what acts on the node, and a release takes it over.
"""

from dflare.kit.plan import Plan, PlannedStep

_CLAIM = PlannedStep(
    name="orchestrator.claim@1", per_site=False, deadline_s=120, undo="orchestrator.unclaim@1"
)
# No undo: it ends what the claim began.
_UNCLAIM = PlannedStep(name="orchestrator.unclaim@1", per_site=False, deadline_s=120)

# No undo: a reset cannot be taken back; the node stays its tenant's whatever comes of it.
REBOOT_NODE = Plan(
    saga="reboot_node",
    steps=(_CLAIM, PlannedStep(name="baremetal.reboot@1", deadline_s=1800), _UNCLAIM),
)

# No undo: the tenant leaves the rescue system when it wants to, by unrescue.
RESCUE_NODE = Plan(
    saga="rescue_node",
    steps=(_CLAIM, PlannedStep(name="baremetal.rescue@1", deadline_s=3600), _UNCLAIM),
)

# No undo: the system on the disks is where the node belongs.
UNRESCUE_NODE = Plan(
    saga="unrescue_node",
    steps=(_CLAIM, PlannedStep(name="baremetal.unrescue@1", deadline_s=1800), _UNCLAIM),
)

# No undo: what stood on the disks is gone once the new image is being written. The profile is not
# set again: no system of a tenant changes it.
REIMAGE_NODE = Plan(
    saga="reimage_node",
    steps=(
        _CLAIM,
        PlannedStep(name="baremetal.reimage@1", deadline_s=3600),
        PlannedStep(name="baremetal.start@1", deadline_s=1800),
        _UNCLAIM,
    ),
)

# No undo: a node that cannot be cleaned goes back to quarantine by itself.
CLEAN_NODE = Plan(
    saga="clean_node",
    steps=(
        _CLAIM,
        PlannedStep(name="baremetal.erase@1", deadline_s=7200),
        PlannedStep(name="baremetal.free@1", deadline_s=600),
        _UNCLAIM,
    ),
)

NODE_ACTIONS = (REBOOT_NODE, RESCUE_NODE, UNRESCUE_NODE, REIMAGE_NODE, CLEAN_NODE)
