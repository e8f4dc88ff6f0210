"""Sagas: readable declarations of what an order does, step by step, with each step's undo.

Steps are added, never edited in place: a running order keeps the plan that it was stored with.
"""

from collections.abc import Mapping

from dflare.kit.plan import Plan
from dflare.services.orchestrator.sagas.create_cluster import CREATE_CLUSTER
from dflare.services.orchestrator.sagas.create_slurm_cluster import CREATE_SLURM_CLUSTER
from dflare.services.orchestrator.sagas.delete_cluster import DELETE_CLUSTER
from dflare.services.orchestrator.sagas.delete_slurm_cluster import DELETE_SLURM_CLUSTER
from dflare.services.orchestrator.sagas.enrol_nodes import ENROL_NODES
from dflare.services.orchestrator.sagas.grow_cluster import GROW_CLUSTER, GROW_SLURM_CLUSTER
from dflare.services.orchestrator.sagas.node_actions import NODE_ACTIONS
from dflare.services.orchestrator.sagas.shrink_cluster import (
    SHRINK_CLUSTER,
    SHRINK_SLURM_CLUSTER,
)
from dflare.services.orchestrator.sagas.volumes import VOLUME_SAGAS

SAGAS: Mapping[str, Plan] = {
    plan.saga: plan
    for plan in (
        CREATE_CLUSTER,
        DELETE_CLUSTER,
        CREATE_SLURM_CLUSTER,
        DELETE_SLURM_CLUSTER,
        GROW_CLUSTER,
        GROW_SLURM_CLUSTER,
        SHRINK_CLUSTER,
        SHRINK_SLURM_CLUSTER,
        ENROL_NODES,
        *NODE_ACTIONS,
        *VOLUME_SAGAS,
    )
}
"""Every saga by its name."""
