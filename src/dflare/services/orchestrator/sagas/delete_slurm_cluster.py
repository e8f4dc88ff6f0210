"""The saga of a release of a Slurm cluster: the bill stops, then its controller set with every job,
then its hold on volumes; the nodes are cleaned as those of a bare one."""

from dflare.kit.plan import Plan
from dflare.services.orchestrator.sagas import cluster_parts as parts

DELETE_SLURM_CLUSTER = Plan(
    saga="delete_slurm_cluster",
    steps=(
        parts.BEGIN_DELETE,
        parts.RELEASE,
        parts.STOP_SCHEDULER,
        parts.REVOKE_VOLUMES,
        *parts.CLEAN_NODES,
        parts.DELETED,
    ),
)
