"""The tables that every service's schema has, and the declarative base they share.

Source: DESIGN section 4 (operation, audit, event, idempotency, step_outcome).
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


def service_metadata(schema: str) -> MetaData:
    """Metadata whose tables live in ``schema``."""
    return MetaData(schema=schema, naming_convention=NAMING)


class ServiceBase(DeclarativeBase):
    """Base of a service's mapped classes: subclass it once a service with its own ``metadata``."""

    __abstract__ = True
    type_annotation_map = {
        str: Text(),
        datetime: DateTime(timezone=True),
        Decimal: Numeric(),
        dict[str, Any]: JSONB(),
        list[str]: JSONB(),
        list[Any]: JSONB(),
        bytes: LargeBinary(),
    }


@dataclass(frozen=True)
class KitTables:
    """The kit's tables of one schema."""

    schema: str
    operation: Table
    operation_step: Table
    audit: Table
    event: Table
    idempotency: Table
    step_outcome: Table
    step_fence: Table
    feed_cursor: Table
    secret: Table


def kit_tables(metadata: MetaData) -> KitTables:
    """Define the kit's tables in a service's metadata.

    ``operation`` is one order and its stored plan; ``operation_step`` its steps' progress as people
    see it; ``step_outcome`` what an acting service recorded for a target of a step; ``step_fence``
    the newest attempt that may record; ``feed_cursor`` how far a consumer has read the feed.
    """
    assert metadata.schema is not None
    return KitTables(
        schema=metadata.schema,
        operation=_operation(metadata),
        operation_step=_operation_step(metadata),
        audit=_audit(metadata),
        event=_event(metadata),
        idempotency=_idempotency(metadata),
        step_outcome=_step_outcome(metadata),
        step_fence=_step_fence(metadata),
        feed_cursor=Table(
            "feed_cursor",
            metadata,
            Column("consumer", Text, primary_key=True),
            Column("position", BigInteger, nullable=False),
        ),
        secret=Table(
            "secret",
            metadata,
            Column("name", Text, primary_key=True),
            Column("sealed", LargeBinary, nullable=False),
            Column("updated_at", _WHEN, nullable=False),
        ),
    )


_WHEN = DateTime(timezone=True)


def _operation(metadata: MetaData) -> Table:
    return Table(
        "operation",
        metadata,
        Column("id", Text, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("organization_id", Text),
        Column("project_id", Text),
        Column("site_id", Text),
        Column("resource_kind", Text, nullable=False),
        Column("resource_id", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("reason", Text, nullable=False, server_default=""),
        Column("since", _WHEN, nullable=False),
        Column("deadline", _WHEN),
        Column("attempt", Integer, nullable=False, server_default="1"),
        Column("plan", JSONB, nullable=False),
        Column("targets", JSONB, nullable=False),
        Column("replacing", JSONB, nullable=False, server_default="{}"),
        Column("position", Integer, nullable=False, server_default="0"),
        Column("cancel_requested", Boolean, nullable=False, server_default="false"),
        Column("generation", Integer, nullable=False, server_default="1"),
        Column("started_attempt", Integer, nullable=False, server_default="0"),
        Column("created_by", Text, nullable=False),
        Column("created_at", _WHEN, nullable=False),
        Column("finished_at", _WHEN),
        Column("trace", JSONB, nullable=False, server_default="{}"),
        Column("version", Integer, nullable=False, server_default="1"),
        Index(
            "ix_operation_live",
            "state",
            postgresql_where=text("state NOT IN ('succeeded', 'failed', 'cancelled')"),
        ),
        Index("ix_operation_resource", "resource_id"),
    )


def _operation_step(metadata: MetaData) -> Table:
    return Table(
        "operation_step",
        metadata,
        Column("operation_id", Text, nullable=False),
        Column("index", Integer, nullable=False),
        Column("name", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("total", Integer, nullable=False, server_default="0"),
        Column("done", Integer, nullable=False, server_default="0"),
        Column("failed", Integer, nullable=False, server_default="0"),
        Column("message", Text, nullable=False, server_default=""),
        Column("started_at", _WHEN),
        Column("finished_at", _WHEN),
        PrimaryKeyConstraint("operation_id", "index"),
    )


def _audit(metadata: MetaData) -> Table:
    return Table(
        "audit",
        metadata,
        Column("id", Text, primary_key=True),
        Column("at", _WHEN, nullable=False),
        Column("principal", Text, nullable=False),
        Column("action", Text, nullable=False),
        Column("decision", Text, nullable=False),
        Column("organization_id", Text),
        Column("project_id", Text),
        Column("resource_kind", Text, nullable=False),
        Column("resource_id", Text, nullable=False),
        Column("operation_id", Text),
        Column("detail", JSONB, nullable=False, server_default="{}"),
    )


def _event(metadata: MetaData) -> Table:
    return Table(
        "event",
        metadata,
        Column("id", Text, primary_key=True),
        Column("ordinal", BigInteger, Identity(always=True), nullable=False),
        Column("type", Text, nullable=False),
        Column("organization_id", Text),
        Column("project_id", Text),
        Column("site_id", Text),
        Column("resource_kind", Text, nullable=False),
        Column("resource_id", Text, nullable=False),
        Column("resource_version", BigInteger, nullable=False),
        Column("operation_id", Text),
        Column("at", _WHEN, nullable=False),
        Column("data", JSONB, nullable=False),
        Column("relayed", Boolean, nullable=False, server_default="false"),
        Index("ix_event_unrelayed", "ordinal", postgresql_where=text("NOT relayed")),
    )


def _idempotency(metadata: MetaData) -> Table:
    return Table(
        "idempotency",
        metadata,
        Column("caller", Text, nullable=False),
        Column("route", Text, nullable=False),
        Column("key", Text, nullable=False),
        Column("body_sha256", Text, nullable=False),
        Column("operation_id", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("status", Integer),
        Column("answer", JSONB),
        Column("created_at", _WHEN, nullable=False),
        PrimaryKeyConstraint("caller", "route", "key"),
    )


def _step_outcome(metadata: MetaData) -> Table:
    return Table(
        "step_outcome",
        metadata,
        Column("operation_id", Text, nullable=False),
        Column("step", Text, nullable=False),
        Column("target", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("reason", Text, nullable=False, server_default=""),
        Column("observed", JSONB, nullable=False, server_default="{}"),
        Column("at", _WHEN, nullable=False),
        PrimaryKeyConstraint("operation_id", "step", "target"),
    )


def _step_fence(metadata: MetaData) -> Table:
    return Table(
        "step_fence",
        metadata,
        Column("operation_id", Text, nullable=False),
        Column("step", Text, nullable=False),
        Column("batch", Text, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("activity_attempt", Integer, nullable=False),
        PrimaryKeyConstraint("operation_id", "step", "batch"),
    )
