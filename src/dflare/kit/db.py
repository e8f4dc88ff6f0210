"""PostgreSQL: one engine a process, a schema and role a service, transactions that name theirs."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import orjson
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

POOL_SIZE = 10
"""Connections a process may hold (DESIGN section 2)."""

CONNECTION_TIMEOUT_S = 30
"""A connection is waited for at most this long."""

LONGEST_STATEMENT_S = 60
"""A statement, or a transaction that does nothing, is given up after this: a process that hangs
must not keep its row locks."""

PING_AFTER_IDLE_S = 5.0
"""A connection that rested for longer is asked whether it lives before it is used. One that the
server closed is known without asking: its socket ended."""

_TRANSIENT_CLASSES = frozenset({"08", "40", "53", "57"})
"""SQLSTATE classes: connection, rollback (deadlock), resources, operator (shutdown, start).
Source: PostgreSQL documentation, appendix A."""

_open_schema: ContextVar[str | None] = ContextVar("open_schema", default=None)


class OpenTransactionError(RuntimeError):
    """A programming error: a network call or a second schema inside an open transaction."""


class StoreUnavailableError(ConnectionError):
    """The database does not answer, or gave the transaction up; trying again may help."""


def is_unavailable(error: BaseException) -> bool:
    """Whether an error of the driver says that the database cannot serve now."""
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        return error.connection_invalidated or state[:2] in _TRANSIENT_CLASSES
    return isinstance(error, PoolTimeoutError)


def role_of(schema: str) -> str:
    """The database role that owns ``schema``."""
    return f"dflare_{schema}"


def assert_no_transaction(what: str) -> None:
    """Called by everything that talks to the outside world.

    Raises:
        OpenTransactionError: a transaction is open in this task.
    """
    schema = _open_schema.get()
    if schema is not None:
        raise OpenTransactionError(f"{what} while a transaction of schema {schema} is open")


def async_url(postgres_url: str) -> str:
    """The SQLAlchemy form of a ``postgresql://`` URL."""
    return postgres_url.replace("postgresql://", "postgresql+asyncpg://", 1)


class Database:
    """The process's connections. Services get a ``transaction`` of their own schema from it."""

    def __init__(self, postgres_url: str, *, application: str, pool_size: int = POOL_SIZE) -> None:
        self.url = postgres_url
        self.engine = create_async_engine(
            async_url(postgres_url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=CONNECTION_TIMEOUT_S,
            json_serializer=_json_text,
            json_deserializer=orjson.loads,
            connect_args={
                "server_settings": {
                    "application_name": application,
                    "statement_timeout": f"{LONGEST_STATEMENT_S}s",
                    "idle_in_transaction_session_timeout": f"{LONGEST_STATEMENT_S}s",
                },
                "timeout": 10,
            },
        )
        event.listen(self.engine.sync_engine, "checkin", _note_rest)
        event.listen(self.engine.sync_engine, "checkout", _refuse_dead)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        # The pool gives a connection to whoever asks first when one comes back, which lets some
        # wait for long; here they are served in the order of their coming.
        self._turns = asyncio.Semaphore(pool_size)

    @asynccontextmanager
    async def transaction(self, schema: str) -> AsyncGenerator[AsyncSession]:
        """One transaction as the role of ``schema``; commits at the end, rolls back on an error.

        Raises:
            OpenTransactionError: another transaction is open in this task.
            StoreUnavailableError: the database cannot serve. If that came at the very end, the
                transaction may have been committed.
        """
        async with self._session(schema) as session, session.begin():
            await session.execute(text(f"SET LOCAL ROLE {role_of(schema)}"))
            yield session

    @asynccontextmanager
    async def reading(self, schema: str) -> AsyncGenerator[AsyncSession]:
        """Looks as the role of ``schema``: each statement sees one moment, as in ``transaction``,
        but there is none to begin and to end, which saves three of four round trips.

        Nothing may be written and no row locked: there is nothing that would roll it back.

        Raises:
            OpenTransactionError: a transaction is open in this task.
            StoreUnavailableError: the database cannot serve.
        """
        role = role_of(schema)
        async with self._session(schema) as session:
            connection = await session.connection(
                execution_options={"isolation_level": "AUTOCOMMIT"}
            )
            known = connection.sync_connection.info if connection.sync_connection else {}
            if known.get("role") != role:
                known.pop("role", None)
                await session.execute(text(f"SET ROLE {role}"))
                known["role"] = role
            yield session

    @asynccontextmanager
    async def across(self) -> AsyncGenerator[AsyncConnection]:
        """A connection of no service's role, for the relay's one look at all schemas."""
        async with self._turn(), self.engine.connect() as connection:
            # A role that is set within a transaction comes back when that is rolled back.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            known = connection.sync_connection.info if connection.sync_connection else {}
            if known.pop("role", None) is not None:
                await connection.execute(text("RESET ROLE"))
            yield connection

    @asynccontextmanager
    async def _session(self, schema: str) -> AsyncGenerator[AsyncSession]:
        assert_no_transaction(f"transaction of schema {schema}")
        try:
            async with self._turn(), self._sessions() as session:
                token = _open_schema.set(schema)
                try:
                    yield session
                finally:
                    _open_schema.reset(token)
        except (DBAPIError, PoolTimeoutError) as error:
            if is_unavailable(error):
                raise StoreUnavailableError(f"the database cannot serve: {error}") from error
            raise

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(CONNECTION_TIMEOUT_S if self._turns.locked() else None):
                await self._turns.acquire()
        except TimeoutError as error:
            raise StoreUnavailableError("all connections to the database are in use") from error
        try:
            yield
        finally:
            self._turns.release()

    async def dispose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def _json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _note_rest(_connection: Any, record: Any) -> None:
    record.info["rested_at"] = time.monotonic()


def _refuse_dead(connection: Any, record: Any, _proxy: Any) -> None:
    """Ask only a connection that rested long: asking takes three round trips, as many as a short
    transaction.

    Raises:
        InvalidatePoolError: it is dead, and so are those that are as old; the pool makes new ones.
    """
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError("the server closed this connection")
    now = time.monotonic()
    if now - record.info.get("rested_at", now) <= PING_AFTER_IDLE_S:
        return
    try:
        connection.ping()
    except Exception as error:
        raise InvalidatePoolError("this connection does not answer") from error
