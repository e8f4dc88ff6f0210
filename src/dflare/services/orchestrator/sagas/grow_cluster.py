"""The sagas of growth: nodes that join a running cluster go the way of those of an order, and are
all handed over or none. Undone, the cluster is ready as it was."""

from dflare.kit.plan import Plan, PlannedStep
from dflare.services.orchestrator.sagas import cluster_parts as parts

_BEGIN = PlannedStep(
    name="clusters.begin_grow@1",
    on="resource",
    per_site=False,
    deadline_s=120,
    undo="clusters.resize_undone@1",
)

# No undo: it stands behind the commit step. Where the new node takes another's place, it orders
# the release of that one in the same transaction.
_GROWN = PlannedStep(name="clusters.grown@1", on="resource", per_site=False, deadline_s=120)

# No undo: the controller runs already, and what it hears of nodes that do not come harms nobody.
_TELL_SCHEDULER = parts.START_SCHEDULER.model_copy(update={"undo": None})

# No undo: a slot that takes work without a node is what it was before a node ever stood there. It
# comes after the power-on, since a node that left may have been drained in the same slot.
_RESUME = PlannedStep(name="clusters.resume_nodes@1", deadline_s=1800, replaceable=True)

GROW_CLUSTER = Plan(
    saga="grow_cluster",
    steps=(
        _BEGIN,
        parts.CONFIRM,
        *parts.PREPARE_NODES,
        parts.VERIFY_NETWORK,
        parts.HAND_OVER,
        _GROWN,
    ),
    # The nodes are held before the first step; the undo of confirm gives them back.
    undo_from=1,
    replace=parts.REPLACE,
    park=parts.PARK,
)

GROW_SLURM_CLUSTER = Plan(
    saga="grow_slurm_cluster",
    steps=(
        _BEGIN,
        parts.CONFIRM,
        _TELL_SCHEDULER,
        *parts.PREPARE_NODES,
        _RESUME,
        parts.AWAIT_NODES,
        parts.VERIFY_NETWORK,
        parts.HAND_OVER,
        _GROWN,
    ),
    undo_from=1,
    replace=parts.REPLACE,
    park=parts.PARK,
)
