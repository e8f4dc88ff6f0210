"""The saga of new servers: read what they are, and put them into the pool."""

from dflare.kit.plan import Plan, PlannedStep

ENROL_NODES = Plan(
    saga="enrol_nodes",
    steps=(
        PlannedStep(
            name="orchestrator.claim@1",
            per_site=False,
            deadline_s=600,
            undo="orchestrator.unclaim@1",
        ),
        # No undo: closed is how the ports of a node in nobody's hands stay. It comes before the
        # pool, so that no node can be given away while a fabric still holds it open.
        PlannedStep(name="network.close@1", deadline_s=1800, quarantine="baremetal.set_aside@1"),
        # No undo: nothing of an inventory can be taken back. A server that is not what was declared
        # is set aside with the difference, and the others go on.
        PlannedStep(
            name="baremetal.enrol@1",
            deadline_s=1800,
            commit=True,
            quarantine="baremetal.set_aside@1",
        ),
        # No undo: it stands behind the commit step.
        PlannedStep(name="orchestrator.unclaim@1", per_site=False, deadline_s=120),
    ),
)
