"""The saga of a release: stop the bill, erase, close the network, give the nodes back.

Nothing here has an undo: a release that was asked for goes forward, and a node that cannot be
cleaned goes to quarantine instead of back to the pool. Nodes are erased inside the tenant's own
isolation, so that only clean ones leave it.
"""

from dflare.kit.plan import Plan
from dflare.services.orchestrator.sagas import cluster_parts as parts

DELETE_CLUSTER = Plan(
    saga="delete_cluster",
    steps=(parts.BEGIN_DELETE, parts.RELEASE, *parts.CLEAN_NODES, parts.DELETED),
)
