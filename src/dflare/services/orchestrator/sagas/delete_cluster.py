"""The saga of a release: stop the bill, erase, close the network, give the nodes back.

Nothing here has an undo: a release that was asked for goes forward, and a node that cannot be
cleaned goes to quarantine instead of back to the pool. Nodes are erased inside the tenant's own
isolation, so that only clean ones leave it.
"""

from dflare.kit.plan import Plan, PlannedStep

_QUARANTINE = "baremetal.quarantine@1"

DELETE_CLUSTER = Plan(
    saga="delete_cluster",
    steps=(
        PlannedStep(
            name="clusters.begin_delete@1",
            on="resource",
            per_site=False,
            deadline_s=120,
            commit=True,
        ),
        PlannedStep(name="orchestrator.release@1", per_site=False, deadline_s=120),
        PlannedStep(name="baremetal.power_off@1", deadline_s=600, quarantine=_QUARANTINE),
        PlannedStep(name="baremetal.erase@1", deadline_s=7200, quarantine=_QUARANTINE),
        PlannedStep(name="network.detach@1", deadline_s=300),
        PlannedStep(name="network.await_drained@1", deadline_s=1800, quarantine=_QUARANTINE),
        PlannedStep(name="baremetal.free@1", deadline_s=600),
        PlannedStep(name="orchestrator.end@1", per_site=False, deadline_s=120),
        PlannedStep(name="clusters.deleted@1", on="resource", per_site=False, deadline_s=120),
    ),
)
