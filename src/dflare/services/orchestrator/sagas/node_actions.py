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

# Nobody may take the node's ports for closed because it is in quarantine: that is often why it is
# there. So it is seen isolated from everything before it boots, is erased in a network of its own,
# where its agent is heard by the platform alone, and is seen isolated again before it is free.
_ISOLATE = PlannedStep(name="network.close@1", deadline_s=1800)
CLEAN_NODE = Plan(
    saga="clean_node",
    steps=(
        _CLAIM,
        # No undo: closed is how a node in quarantine belongs.
        _ISOLATE,
        PlannedStep(
            name="network.seclude@1",
            deadline_s=300,
            undo="network.close@1",
            undo_deadline_s=1800,
        ),
        # No undo: it only waits; what it waits for is taken back by the undo of seclude.
        PlannedStep(name="network.await@1", deadline_s=900),
        # What was cleaned and cannot be given back goes back to quarantine.
        PlannedStep(name="baremetal.erase@1", deadline_s=7200, undo="baremetal.quarantine@1"),
        # No undo: see above.
        _ISOLATE,
        # The commit step, and no undo: the node is in the pool.
        PlannedStep(name="baremetal.free@1", deadline_s=600, commit=True),
        _UNCLAIM,
    ),
)

# No undo, and no claim: an operator's quarantine beats whatever acts on the node. Its ports are
# closed first, since traffic is what harms others.
QUARANTINE_NODE = Plan(
    saga="quarantine_node",
    steps=(
        PlannedStep(name="network.close@1", deadline_s=600, commit=True),
        PlannedStep(name="baremetal.quarantine@1", deadline_s=600),
    ),
)

NODE_ACTIONS = (REBOOT_NODE, RESCUE_NODE, UNRESCUE_NODE, REIMAGE_NODE, CLEAN_NODE, QUARANTINE_NODE)
