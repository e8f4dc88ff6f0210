"""A lease in PostgreSQL: one process of several does a thing, the others wait.

The database's clock decides, so that the processes' own clocks need not agree.
"""

import os
import socket
from dataclasses import dataclass

from sqlalchemy import text

from dflare.kit.db import Database
from dflare.kit.ids import new_id


def process_name() -> str:
    """This process as a person finds it: its machine and its number there."""
    return f"{socket.gethostname()}/{os.getpid()}"


def new_holder(kind: str) -> str:
    """A holder of leases that no other one is: two of a process are told apart too."""
    return f"{process_name()}/{new_id(kind)}"


@dataclass(frozen=True)
class Lease:
    """The lease ``name``, wanted by ``holder`` for ``ttl_s`` seconds at a time."""

    database: Database
    name: str
    holder: str
    ttl_s: float = 4.0

    async def take(self) -> bool:
        """Take or renew it; false while somebody else has it."""
        async with self.database.transaction("feed") as session:
            taken = await session.execute(
                text(
                    "INSERT INTO feed.lease AS lease (name, holder, until)"
                    " VALUES (:name, :holder, now() + make_interval(secs => :ttl_s))"
                    " ON CONFLICT (name) DO UPDATE"
                    " SET holder = excluded.holder, until = excluded.until"
                    " WHERE lease.until < now() OR lease.holder = excluded.holder"
                    " RETURNING name"
                ),
                {"name": self.name, "holder": self.holder, "ttl_s": self.ttl_s},
            )
            return taken.first() is not None

    async def give_back(self) -> None:
        """Let the next one have it at once."""
        async with self.database.transaction("feed") as session:
            await session.execute(
                text("DELETE FROM feed.lease WHERE name = :name AND holder = :holder"),
                {"name": self.name, "holder": self.holder},
            )
