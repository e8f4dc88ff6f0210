"""The saga of an order: isolate, provision, hand over."""

from dflare.kit.plan import Plan
from dflare.services.orchestrator.sagas import cluster_parts as parts

CREATE_CLUSTER = Plan(
    saga="create_cluster",
    steps=(
        parts.BEGIN,
        parts.CONFIRM,
        *parts.PREPARE_NODES,
        parts.VERIFY_NETWORK,
        parts.HAND_OVER,
        parts.READY,
    ),
    # The nodes are held before the first step; the undo of confirm gives them back.
    undo_from=1,
    replace=parts.REPLACE,
    park=parts.PARK,
)
