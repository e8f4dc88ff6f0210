"""The BMCs of all nodes, for those who read their sensors."""

from collections.abc import Sequence

from sqlalchemy import select

from dflare.drivers.bmc.port import BmcAccess
from dflare.kit.db import Database
from dflare.kit.seal import Sealer
from dflare.services.baremetal.agent_sessions import SCHEMA
from dflare.services.baremetal.credentials import open_credentials
from dflare.services.baremetal.steps.base import node_view
from dflare.services.baremetal.tables import Node
from dflare.services.metrics.contract import BmcTarget


class Bmcs:
    """``BmcDirectory`` over the nodes that are declared."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def targets(self) -> Sequence[BmcTarget]:
        """See ``BmcDirectory``."""
        query = select(Node).where(Node.retired_at.is_(None)).order_by(Node.id)
        async with self._database.reading(SCHEMA) as session:
            rows = list(await session.scalars(query))
            credentials = await open_credentials(session, self._sealer, rows)
        access: list[BmcAccess] = [node_view(row, credentials).bmc for row in rows]
        return [BmcTarget(row.id, bmc) for row, bmc in zip(rows, access, strict=True)]
