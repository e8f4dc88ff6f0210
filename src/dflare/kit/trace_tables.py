"""Kept spans of operations (schema ``trace``)."""

from sqlalchemy import Column, DateTime, Index, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from dflare.kit.tables import service_metadata

metadata = service_metadata("trace")

span = Table(
    "span",
    metadata,
    Column("span_id", Text, primary_key=True),
    Column("trace_id", Text, nullable=False),
    Column("parent_id", Text),
    Column("operation_id", Text, nullable=False),
    Column("process", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False),
    Column("error", Text),
    Column("attributes", JSONB, nullable=False),
    Index("ix_span_operation", "operation_id", "started_at"),
)
