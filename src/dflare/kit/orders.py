"""What the routes share that take orders: the types of their parameters, the key of a request, and
the answer that names the operation to follow."""

from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from dflare.kit.idempotency import RequestKey, request_key

Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Lower-case letters, digits and dashes; at most 63 (RFC 1035 label)",
    ),
]
Reference = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$", description="Name or id"),
]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]
IfMatch = Annotated[
    str | None, Header(description="The ETag that was read: refused where it is another by now")
]


async def request_key_of(request: Request, subject: str, key: str | None) -> RequestKey:
    """The idempotency key of a request of ``subject``, by its route and body."""
    route = f"{request.method} {request.url.path}"
    return request_key(subject, route, key, await request.body())


def accepted(status: int, document: dict[str, Any]) -> JSONResponse:
    """The operation ``document``; with 202, its ``Location`` too."""
    headers = {"Location": f"/v1/operations/{document['id']}"} if status == 202 else {}
    return JSONResponse(document, status, headers)
