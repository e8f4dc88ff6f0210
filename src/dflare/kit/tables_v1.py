"""The kit's tables as a service's first migration makes them. Frozen at the first release.

Every schema has the same tables, so its ``0001`` calls this instead of writing them out. It does
not follow ``dflare.kit.tables`` on purpose: a migration that ran once must always make the same.
A change of those tables is a new migration of every service, through functions of its own here.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_NAMES = (
    "audit",
    "event",
    "feed_cursor",
    "idempotency",
    "operation",
    "operation_step",
    "secret",
    "step_fence",
    "step_outcome",
)


def create_kit_tables(schema: str) -> None:
    """Create the kit's tables and their indexes in ``schema``, within a running migration."""
    _create_operations(schema)
    _create_records(schema)
    _create_steps(schema)
    _create(
        schema,
        "idempotency",
        ["caller", "route", "key"],
        _text("caller"),
        _text("route"),
        _text("key"),
        _text("body_sha256"),
        _text("operation_id"),
        _text("state"),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", postgresql.JSONB(), nullable=True),
        _time("created_at"),
    )
    _create(
        schema,
        "feed_cursor",
        ["consumer"],
        _text("consumer"),
        sa.Column("position", sa.BigInteger(), nullable=False),
    )
    _create(
        schema,
        "secret",
        ["name"],
        _text("name"),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        _time("updated_at"),
    )


def drop_kit_tables(schema: str) -> None:
    """Drop what ``create_kit_tables`` made, indexes with it."""
    for name in reversed(_NAMES):
        op.drop_table(name, schema=schema)


def _create_operations(schema: str) -> None:
    _create(
        schema,
        "operation",
        ["id"],
        _text("id"),
        _text("kind"),
        *_owner(),
        _text("resource_kind"),
        _text("resource_id"),
        _text("state"),
        _text("reason", default=""),
        _time("since"),
        _time("deadline", nullable=True),
        _number("attempt", default="1"),
        _json("plan"),
        _json("targets"),
        _json("replacing", default="{}"),
        _number("position", default="0"),
        _flag("cancel_requested"),
        _number("generation", default="1"),
        _number("started_attempt", default="0"),
        _text("created_by"),
        _time("created_at"),
        _time("finished_at", nullable=True),
        _json("trace", default="{}"),
        _number("version", default="1"),
    )
    live = sa.text("state NOT IN ('succeeded', 'failed', 'cancelled')")
    op.create_index(
        "ix_operation_live", "operation", ["state"], schema=schema, postgresql_where=live
    )
    op.create_index("ix_operation_resource", "operation", ["resource_id"], schema=schema)
    _create(
        schema,
        "operation_step",
        ["operation_id", "index"],
        _text("operation_id"),
        _number("index"),
        _text("name"),
        _text("state"),
        _number("total", default="0"),
        _number("done", default="0"),
        _number("failed", default="0"),
        _text("message", default=""),
        _time("started_at", nullable=True),
        _time("finished_at", nullable=True),
    )


def _create_records(schema: str) -> None:
    _create(
        schema,
        "audit",
        ["id"],
        _text("id"),
        _time("at"),
        _text("principal"),
        _text("action"),
        _text("decision"),
        _text("organization_id", nullable=True),
        _text("project_id", nullable=True),
        _text("resource_kind"),
        _text("resource_id"),
        _text("operation_id", nullable=True),
        _json("detail", default="{}"),
    )
    _create(
        schema,
        "event",
        ["id"],
        _text("id"),
        sa.Column("ordinal", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _text("type"),
        *_owner(),
        _text("resource_kind"),
        _text("resource_id"),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        _text("operation_id", nullable=True),
        _time("at"),
        _json("data"),
        _flag("relayed"),
    )
    unrelayed = sa.text("NOT relayed")
    op.create_index(
        "ix_event_unrelayed", "event", ["ordinal"], schema=schema, postgresql_where=unrelayed
    )


def _create_steps(schema: str) -> None:
    _create(
        schema,
        "step_outcome",
        ["operation_id", "step", "target"],
        _text("operation_id"),
        _text("step"),
        _text("target"),
        _text("state"),
        _text("reason", default=""),
        _json("observed", default="{}"),
        _time("at"),
    )
    _create(
        schema,
        "step_fence",
        ["operation_id", "step", "batch"],
        _text("operation_id"),
        _text("step"),
        _text("batch"),
        _number("attempt"),
        _number("activity_attempt"),
    )


def _create(schema: str, table: str, key: list[str], *columns: sa.Column[Any]) -> None:
    primary = sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}"))
    op.create_table(table, *columns, primary, schema=schema)


def _owner() -> list[sa.Column[Any]]:
    return [_text(name, nullable=True) for name in ("organization_id", "project_id", "site_id")]


def _text(name: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=nullable, server_default=default)


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _number(name: str, *, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default=default)


def _json(name: str, *, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, postgresql.JSONB(), nullable=False, server_default=default)


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default="false")
