"""The saga of an order: isolate, provision, hand over."""

from dflare.kit.plan import Plan, PlannedStep, SideStep

CREATE_CLUSTER = Plan(
    saga="create_cluster",
    steps=(
        PlannedStep(
            name="clusters.begin@1",
            on="resource",
            per_site=False,
            deadline_s=120,
            undo="clusters.fail@1",
        ),
        PlannedStep(
            name="orchestrator.confirm@1",
            per_site=False,
            deadline_s=120,
            undo="orchestrator.end@1",
        ),
        # From here to the hand-over a node that fails, or that an operator takes into quarantine,
        # is replaced from the pool, and its stand-in goes through all of these steps.
        PlannedStep(
            name="baremetal.prepare@1",
            deadline_s=600,
            undo="baremetal.free@1",
            replaceable=True,
        ),
        PlannedStep(
            name="network.attach@1",
            deadline_s=300,
            undo="network.withdraw@1",
            undo_deadline_s=1800,
            replaceable=True,
        ),
        # No undo: it only waits; what it waits for is taken back by the undo of attach.
        PlannedStep(name="network.await@1", deadline_s=900, replaceable=True),
        PlannedStep(
            name="baremetal.profile@1",
            deadline_s=1800,
            undo="baremetal.power_off@1",
            replaceable=True,
        ),
        PlannedStep(
            name="baremetal.provision@1",
            deadline_s=3600,
            undo="baremetal.erase@1",
            undo_deadline_s=7200,
            replaceable=True,
        ),
        PlannedStep(
            name="baremetal.start@1",
            deadline_s=1800,
            undo="baremetal.power_off@1",
            replaceable=True,
        ),
        # No undo: it only reads back.
        PlannedStep(name="network.verify@1", deadline_s=600, replaceable=True),
        # The commit step: from here the tenant has the nodes and pays for them. Its undo ends what
        # a hand-over that was cut off in the middle began, and is that of confirm.
        PlannedStep(name="orchestrator.hand_over@1", per_site=False, deadline_s=120, commit=True),
        # No undo: it stands behind the commit step.
        PlannedStep(name="clusters.ready@1", on="resource", per_site=False, deadline_s=120),
    ),
    # The nodes are held before the first step; the undo of confirm gives them back.
    undo_from=1,
    replace=SideStep(name="orchestrator.replace@1", per_site=False, deadline_s=120),
    park=(SideStep(name="baremetal.quarantine@1"), SideStep(name="network.close@1")),
)
