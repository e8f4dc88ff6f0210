"""How an order on a cluster is stored: operation, audit and the answer to its request, in the
transaction that changes the cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import idempotency, operations, outbox
from dflare.kit.idempotency import Begun
from dflare.kit.outbox import AuditRecord
from dflare.kit.plan import Plan
from dflare.services.clusters.tables import KIT, Cluster


@dataclass(frozen=True)
class Order:
    """What to store. ``targets`` are node ids; ``action`` is what the audit log calls it; one that
    ``waits`` for capacity, as the reason says, is started when it gets its nodes."""

    operation_id: str
    kind: str
    action: str
    plan: Plan
    targets: Sequence[str]
    created_by: str
    trace: dict[str, str]
    waits: bool = False
    reason: str = ""


async def store_order(
    session: AsyncSession, cluster: Cluster, order: Order, begun: Begun | None, now: datetime
) -> dict[str, Any]:
    """Store the operation on a locked cluster; returns its document.

    ``begun`` is the request that is answered by it, if one asked for it.
    """
    await operations.create_operation(
        session,
        KIT,
        operations.NewOperation(
            id=order.operation_id,
            kind=order.kind,
            organization_id=cluster.organization_id,
            project_id=cluster.project_id,
            site_id=cluster.site_id,
            resource_kind="cluster",
            resource_id=cluster.id,
            plan=order.plan,
            targets=order.targets,
            created_by=order.created_by,
            trace=order.trace,
            waits=order.waits,
            reason=order.reason,
        ),
        now,
    )
    await record_audit(session, cluster, order.created_by, order.action, order.operation_id, now)
    row = await operations.lock_operation(session, KIT, order.operation_id)
    document = await operations.operation_document(session, KIT, row)
    if begun is not None:
        await idempotency.complete(session, KIT, begun, 202, document)
    return document


async def record_audit(
    session: AsyncSession,
    cluster: Cluster,
    principal: str,
    action: str,
    operation_id: str | None,
    now: datetime,
) -> None:
    """Say in the audit log who did what to a cluster."""
    await outbox.record_audit(
        session,
        KIT,
        AuditRecord(
            at=now,
            principal=principal,
            action=action,
            resource_kind="cluster",
            resource_id=cluster.id,
            organization_id=cluster.organization_id,
            project_id=cluster.project_id,
            operation_id=operation_id,
        ),
    )
