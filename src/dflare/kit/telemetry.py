"""Structured logs and spans that carry the operation's id from the API to the driver's call.

Spans are OpenTelemetry's; beside any exporter that a site configures they are kept in PostgreSQL
(schema ``trace``), where ``dflare operation trace`` reads them.
"""

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO, cast

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import insert

from dflare.kit.db import Database
from dflare.kit.trace_tables import span as span_table

_MAX_QUEUED_SPANS = 50_000
_FLUSH_EVERY_S = 0.5
_FLUSH_ROWS = 2_000

current_operation: ContextVar[str | None] = ContextVar("current_operation", default=None)
# Kept: asking for it by name at every span costs more than the span.
_tracer = trace.get_tracer("dflare")
_propagator = TraceContextTextMapPropagator()
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Forgiving:
    """A stream that loses what cannot be written: a request must not fail because the disk under
    the log is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See ``TextIO``."""
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """See ``TextIO``."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure_logs(process: str, *, level: str = "INFO", form: str = "json") -> None:
    """Set up logs of this process on stderr: ``form`` is ``json`` or ``console``."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        # The logger writes and flushes, which is all of a TextIO that it needs.
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", Forgiving(sys.stderr))),
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


class PostgresSpans(SpanProcessor):
    """Keeps finished spans of operations and writes them in batches; drops when overloaded."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._queue: deque[dict[str, object]] = deque(maxlen=_MAX_QUEUED_SPANS)

    def on_end(self, span: ReadableSpan) -> None:
        attributes = dict(span.attributes or {})
        operation_id = attributes.pop("operation_id", None)
        context = span.context
        if operation_id is None or context is None:
            return
        self._queue.append(
            {
                "span_id": f"{context.span_id:016x}",
                "trace_id": f"{context.trace_id:032x}",
                "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
                "operation_id": operation_id,
                "process": self._process,
                "name": span.name,
                "started_at": datetime.fromtimestamp((span.start_time or 0) / 1e9, UTC),
                "ended_at": datetime.fromtimestamp((span.end_time or 0) / 1e9, UTC),
                "error": span.status.description if not span.status.is_ok else None,
                "attributes": attributes,
            }
        )

    async def flush(self, database: Database) -> None:
        """Write what is queued."""
        while self._queue:
            rows = [self._queue.popleft() for _ in range(min(len(self._queue), _FLUSH_ROWS))]
            async with database.transaction("trace") as session:
                await session.execute(insert(span_table), rows)

    async def run(self, database: Database) -> None:
        """Write queued spans until cancelled; a store that is down costs spans, nothing else."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            try:
                await self.flush(database)
            except Exception as error:
                log.warning("spans_not_written", error=str(error))


_spans: list[PostgresSpans] = []


def configure_spans(process: str) -> PostgresSpans:
    """Set up tracing of this process, once; run the result's ``run`` as a task."""
    if not _spans:
        provider = TracerProvider(resource=Resource.create({"service.name": f"dflare-{process}"}))
        _spans.append(PostgresSpans(process))
        provider.add_span_processor(_spans[0])
        trace.set_tracer_provider(provider)
    return _spans[0]


@contextmanager
def span(
    name: str,
    *,
    operation_id: str | None = None,
    carrier: dict[str, str] | None = None,
    **attributes: str | int | float | bool,
) -> Generator[Span]:
    """A span of an operation; ``carrier`` continues the trace of another process.

    Without ``operation_id`` the one of the enclosing span is taken. All spans of an operation have
    one trace id, also those that no carrier reached. An exception is recorded and raised on.
    """
    enclosing = current_operation.get()
    operation = operation_id or enclosing
    context: Context | None = _propagator.extract(carrier) if carrier else None
    if context is None and operation is not None and operation != enclosing:
        context = _context_of(operation)
    if operation is not None:
        attributes["operation_id"] = operation
    token = current_operation.set(operation)
    try:
        with _tracer.start_as_current_span(name, context, attributes=attributes) as current:
            try:
                yield current
            except Exception as error:
                current.set_status(Status(StatusCode.ERROR, str(error)[:500]))
                raise
    finally:
        current_operation.reset(token)


def _context_of(operation_id: str) -> Context:
    """The trace of an operation, from its id alone: reconcilers and sweepers act for operations
    whose request they never saw."""
    digest = hashlib.sha256(operation_id.encode()).digest()
    parent = SpanContext(
        trace_id=int.from_bytes(digest[:16], "big"),
        span_id=int.from_bytes(digest[16:24], "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent))


def carrier() -> dict[str, str]:
    """The present trace context, to hand to another process (W3C Trace Context)."""
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers
