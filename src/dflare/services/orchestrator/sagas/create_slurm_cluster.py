"""The saga of an order of a Slurm cluster: as of a bare one, with its volumes and its controller
set, and handed over only when every node has registered there."""

from dflare.kit.plan import Plan
from dflare.services.orchestrator.sagas import cluster_parts as parts

CREATE_SLURM_CLUSTER = Plan(
    saga="create_slurm_cluster",
    steps=(
        parts.BEGIN,
        parts.CONFIRM,
        # Volumes come first: the namespaces of the controller set mount them when they are made.
        parts.GRANT_VOLUMES,
        # It starts while the nodes are provisioned, which takes longer.
        parts.START_SCHEDULER,
        *parts.PREPARE_NODES,
        parts.AWAIT_NODES,
        parts.VERIFY_NETWORK,
        parts.HAND_OVER,
        parts.READY,
    ),
    # The nodes are held before the first step; the undo of confirm gives them back.
    undo_from=1,
    replace=parts.REPLACE,
    park=parts.PARK,
)
