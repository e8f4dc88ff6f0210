"""The sagas of shrinking: some nodes of a running cluster are drained and released, and it keeps
the others. Until the release begins it can be cancelled, and the nodes take work again."""

from dflare.kit.plan import Plan, PlannedStep
from dflare.services.orchestrator.sagas import cluster_parts as parts

_BEGIN = PlannedStep(
    name="clusters.begin_shrink@1",
    on="resource",
    per_site=False,
    deadline_s=120,
    undo="clusters.resize_undone@1",
)

_DRAIN = PlannedStep(
    name="clusters.drain@1", per_site=False, deadline_s=120, undo="clusters.undrain@1"
)

# A job may run for days, and someone who lost patience cancels.
_AWAIT_IDLE = PlannedStep(
    name="clusters.await_idle@1",
    deadline_s=14 * 24 * 3600,
    undo="clusters.resume_nodes@1",
    undo_deadline_s=1800,
)

# The commit step, apart from the release itself: an allocation whose release has begun cannot be
# taken back, so that nothing may turn around once it may have.
_LET_GO = PlannedStep(
    name="clusters.let_go@1", on="resource", per_site=False, deadline_s=120, commit=True
)

_SHRUNK = PlannedStep(name="clusters.shrunk@1", on="resource", per_site=False, deadline_s=120)

SHRINK_CLUSTER = Plan(
    saga="shrink_cluster",
    steps=(_BEGIN, _DRAIN, _LET_GO, parts.RELEASE, *parts.CLEAN_NODES, _SHRUNK),
)

SHRINK_SLURM_CLUSTER = Plan(
    saga="shrink_slurm_cluster",
    steps=(
        _BEGIN,
        _DRAIN,
        _AWAIT_IDLE,
        _LET_GO,
        parts.RELEASE,
        *parts.CLEAN_NODES,
        _SHRUNK,
    ),
)
