"""The one place that renders errors as problem+json (RFC 9457)."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from dflare.kit.db import is_unavailable
from dflare.kit.errors import TYPE_BASE, ProblemError
from dflare.kit.telemetry import log

MEDIA_TYPE = "application/problem+json"
_DISK_FULL = "53100"
"""SQLSTATE of a full disk (PostgreSQL documentation, appendix A)."""
_DATA_EXCEPTION = "22"
"""SQLSTATE class of values that a column cannot hold (same appendix)."""


def render(document: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document as a response."""
    return JSONResponse(document, document["status"], headers, MEDIA_TYPE)


def _document(status: int, slug: str, title: str, detail: str, next_step: str) -> dict[str, Any]:
    return {
        "type": TYPE_BASE + slug,
        "title": title,
        "status": status,
        "detail": detail,
        "next_step": next_step,
        "retryable": status == 503,
    }


def _is_disk_full(error: BaseException) -> bool:
    """Whether PostgreSQL says so, also through the error that a transaction raised of it."""
    causes = (error, error.__cause__)
    driver = [cause.orig for cause in causes if isinstance(cause, DBAPIError)]
    return any(str(getattr(one, "sqlstate", None) or "") == _DISK_FULL for one in driver)


def install(app: FastAPI) -> None:
    """Register the handlers of ``app``."""

    async def on_problem(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ProblemError)
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return render(error.document(), headers)

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        faults = [
            {"where": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]}
            for fault in error.errors()
        ]
        document = _document(
            422,
            "invalid",
            "Invalid input",
            "; ".join(f"{fault['where']}: {fault['message']}" for fault in faults),
            "Correct the fields named and repeat.",
        )
        return render({**document, "errors": faults})

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return render(
            _document(
                error.status_code,
                "http",
                str(error.detail),
                str(error.detail),
                "See the API's description at /v1/openapi.json.",
            ),
            dict(error.headers or {}),
        )

    async def on_database(_: Request, error: Exception) -> JSONResponse:
        log.error("database_error", error=str(error)[:500])
        retry = {"Retry-After": "2"}
        if _is_disk_full(error):
            return render(
                _document(
                    503,
                    "disk-full",
                    "The disk is full",
                    "the disk of the database is full, so nothing can be changed now",
                    "An operator frees space (`dflare doctor` says how much is needed); repeat "
                    "with the same Idempotency-Key then.",
                ),
                retry,
            )
        return render(
            _document(
                503,
                "store-unavailable",
                "A store does not answer",
                "The database cannot serve now; a change that was asked for may have been made.",
                "Repeat with the same Idempotency-Key; an operator looks with `dflare doctor`.",
            ),
            retry,
        )

    async def on_driver(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, DBAPIError)
        state = str(getattr(error.orig, "sqlstate", None) or "")
        if is_unavailable(error):
            return await on_database(request, error)
        if state.startswith(_DATA_EXCEPTION):
            return render(
                _document(
                    422,
                    "invalid",
                    "Invalid input",
                    "the request holds a character or a number that cannot be stored",
                    "Leave out control characters and numbers beyond 64 bits.",
                )
            )
        return await on_unexpected(request, error)

    async def on_unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected_error", exc_info=error)
        return render(
            _document(
                500,
                "internal",
                "Internal error",
                "something failed that nobody foresaw; the log has the details",
                "Repeat with the same Idempotency-Key; if it stays, tell an operator.",
            )
        )

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(DBAPIError, on_driver)
    for kind in (PoolTimeoutError, OSError):
        app.add_exception_handler(kind, on_database)
    app.add_exception_handler(Exception, on_unexpected)
