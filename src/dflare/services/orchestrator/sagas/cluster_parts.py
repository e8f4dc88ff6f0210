"""What the sagas of clusters are put together from, each list of steps in the order it runs in."""

from dflare.kit.plan import PlannedStep, SideStep

QUARANTINE = "baremetal.quarantine@1"

BEGIN = PlannedStep(
    name="clusters.begin@1",
    on="resource",
    per_site=False,
    deadline_s=120,
    undo="clusters.fail@1",
)

CONFIRM = PlannedStep(
    name="orchestrator.confirm@1",
    per_site=False,
    deadline_s=120,
    undo="orchestrator.end@1",
)

GRANT_VOLUMES = PlannedStep(
    name="volumes.grant@1",
    on="resource",
    deadline_s=300,
    undo="volumes.revoke@1",
    undo_deadline_s=1800,
)

# The deadlines of what waits for software are long in the site's time, so that a site whose clock
# runs fast leaves it enough of its own.
START_SCHEDULER = PlannedStep(
    name="clusters.start_scheduler@1",
    on="resource",
    deadline_s=1800,
    undo="clusters.stop_scheduler@1",
    undo_deadline_s=1800,
)

PREPARE_NODES = (
    # From here to the hand-over a node that fails, or that an operator takes into quarantine, is
    # replaced from the pool, and its stand-in goes through all of these steps.
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
)
"""A server of the pool becomes one that runs the tenant's system inside the tenant's network."""

# No undo: it only waits; a node leaves its Slurm with the power that the undo of start takes.
AWAIT_NODES = PlannedStep(name="clusters.await_nodes@1", deadline_s=900, replaceable=True)

# No undo: it only reads back.
VERIFY_NETWORK = PlannedStep(name="network.verify@1", deadline_s=600, replaceable=True)

# The commit step: from here the tenant has the nodes and pays for them. Its undo ends what a
# hand-over that was cut off in the middle began, and is that of confirm.
HAND_OVER = PlannedStep(
    name="orchestrator.hand_over@1", per_site=False, deadline_s=120, commit=True
)

# No undo: it stands behind the commit step.
READY = PlannedStep(name="clusters.ready@1", on="resource", per_site=False, deadline_s=120)

BEGIN_DELETE = PlannedStep(
    name="clusters.begin_delete@1",
    on="resource",
    per_site=False,
    deadline_s=120,
    commit=True,
)

# Nothing from here on has an undo: a release that was asked for goes forward.
RELEASE = PlannedStep(name="orchestrator.release@1", per_site=False, deadline_s=120)

STOP_SCHEDULER = PlannedStep(name="clusters.stop_scheduler@1", on="resource", deadline_s=3600)

REVOKE_VOLUMES = PlannedStep(name="volumes.revoke@1", on="resource", deadline_s=3600)

CLEAN_NODES = (
    # Nodes are erased inside the tenant's own isolation, so that only clean ones leave it; one that
    # cannot be cleaned goes to quarantine instead of back to the pool.
    PlannedStep(name="baremetal.power_off@1", deadline_s=600, quarantine=QUARANTINE),
    PlannedStep(name="baremetal.erase@1", deadline_s=7200, quarantine=QUARANTINE),
    PlannedStep(name="network.detach@1", deadline_s=300),
    PlannedStep(name="network.await_drained@1", deadline_s=1800, quarantine=QUARANTINE),
    PlannedStep(name="baremetal.free@1", deadline_s=600),
    PlannedStep(name="orchestrator.end@1", per_site=False, deadline_s=120),
)
"""A server that a tenant gave back becomes one of the pool."""

DELETED = PlannedStep(name="clusters.deleted@1", on="resource", per_site=False, deadline_s=120)

REPLACE = SideStep(name="orchestrator.replace@1", per_site=False, deadline_s=120)

PARK = (SideStep(name="baremetal.quarantine@1"), SideStep(name="network.close@1"))
