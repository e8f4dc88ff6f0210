"""The registry as its clients know it: ``/v2/`` of the OCI distribution specification 1.1.

Its paths, headers and errors are the specification's, so it stands beside ``/v1`` and not in the
platform's own description.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from dflare.kit.errors import ProblemError, UnauthenticatedError
from dflare.services.registry.domain import (
    algorithm_of,
    check_digest,
    parse_name,
    parse_range,
)
from dflare.services.registry.domain_manifests import INDEX, MAX_MANIFEST_BYTES
from dflare.services.registry.errors import (
    ManifestTooLargeError,
    NameInvalidError,
    RegistryError,
    SizeInvalidError,
)
from dflare.services.registry.service import DELETE, PULL, PUSH, Place, RegistryService
from dflare.services.registry.service_login import Caller, LoginService, challenge, password_of
from dflare.services.registry.service_manifests import ManifestService
from dflare.services.registry.service_uploads import UploadService

STREAMED = r"/v2/.+/blobs/uploads/[^/]*"
"""Paths whose bodies are blobs: the registry bounds them, by quota and by what a part may have."""

MAX_TAGS = 1_000
MAX_REFERRERS = 200

_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}
_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 503: "UNAVAILABLE"}
_SAFE = {"X-Content-Type-Options": "nosniff"}
"""What tenants push is served where the portal is: no browser shall guess that it is a page."""


class ChallengedError(UnauthenticatedError):
    """No token, or none for this; ``header`` says where to get one."""

    def __init__(self, cause: ProblemError, header: str) -> None:
        super().__init__(cause.detail, next_step=cause.next_step)
        self.header = header


class _Route(APIRoute):
    """Answers refusals as the specification wants them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handle(request)
            except ProblemError as error:
                response = refusal(error)
            except ClientDisconnect:
                # Nobody is there to read it.
                response = Response(status_code=400)
            response.headers.update(_VERSION)
            return response

        return handled


def refusal(error: ProblemError) -> JSONResponse:
    """An error as clients of the specification read it."""
    code = error.code if isinstance(error, RegistryError) else _CODES.get(error.status, "UNKNOWN")
    message = f"{error.detail}. {error.next_step}".strip()
    headers: dict[str, str] = {}
    if isinstance(error, ChallengedError):
        headers["WWW-Authenticate"] = error.header
    if error.retryable:
        headers["Retry-After"] = "2"
    document = {"errors": [{"code": code, "message": message, "detail": error.facts or None}]}
    return JSONResponse(document, error.status, headers)


@dataclass(frozen=True)
class RegistryParts:
    """What the routes work with; ``realm`` is where clients get their tokens."""

    registry: RegistryService
    uploads: UploadService
    manifests: ManifestService
    logins: LoginService
    realm: str

    async def caller(
        self, request: Request, wanted: Sequence[tuple[str, Sequence[str]]] = ()
    ) -> Caller:
        """Who calls.

        Raises:
            ChallengedError: nobody who is known.
        """
        try:
            return await self.logins.caller(request.headers.get("authorization"))
        except UnauthenticatedError as error:
            header = challenge(self.realm, wanted, narrow=False)
            raise ChallengedError(error, header) from error

    async def opened(
        self, request: Request, verb: str, *also: tuple[str, Sequence[str]]
    ) -> tuple[Caller, Place]:
        """The repository of the path, for a caller that may do ``verb`` there with its token;
        ``also`` is what the token must be for elsewhere.

        Raises:
            ChallengedError, NameInvalidError, NameUnknownError, ForbiddenError.
        """
        name = request.path_params["name"]
        try:
            parse_name(name)
        except NameInvalidError:
            await self.caller(request)
            raise
        verbs = {PULL: [PULL], PUSH: [PULL, PUSH], DELETE: [DELETE]}[verb]
        wanted = [(name, verbs), *also]
        caller = await self.caller(request, wanted)
        place = await self.registry.open(caller.principal, name, verb)
        if not all(caller.may(one, needed) for one, them in wanted for needed in them):
            error = UnauthenticatedError("the token that came is not for this repository and verb")
            raise ChallengedError(error, challenge(self.realm, wanted, narrow=True))
        return caller, place


def router(parts: RegistryParts) -> APIRouter:
    """The routes, for the gateway to mount at its root."""
    routes = APIRouter(prefix="/v2", route_class=_Route, include_in_schema=False)

    @routes.get("/")
    async def version(request: Request) -> Response:
        """Whether this is a registry of the specification, and the caller is known."""
        await parts.caller(request)
        return JSONResponse({})

    @routes.get("/token")
    async def token(request: Request) -> Response:
        """A client's token for a login (distribution, "Token Authentication Specification")."""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        try:
            if scheme.lower() not in {"basic", "bearer"}:
                raise UnauthenticatedError(
                    "no password came with the request",
                    next_step="Log in with a token of yours: `dflare registry login`.",
                )
            credential = password_of(value) if scheme.lower() == "basic" else value.strip()
            issued = await parts.logins.issue(credential, request.query_params.getlist("scope"))
        except UnauthenticatedError as error:
            raise ChallengedError(error, 'Basic realm="Dflare registry"') from error
        document = {
            "token": issued.token,
            "access_token": issued.token,
            "expires_in": issued.expires_in_s,
            "issued_at": issued.issued_at.isoformat(),
        }
        return JSONResponse(document, headers={"Cache-Control": "no-store"})

    _add_uploads(routes, parts)
    _add_blobs(routes, parts)
    _add_manifests(routes, parts)
    _add_lists(routes, parts)
    return routes


def _add_uploads(routes: APIRouter, parts: RegistryParts) -> None:
    uploads = parts.uploads

    @routes.post("/{name:path}/blobs/uploads/")
    async def begin_upload(request: Request) -> Response:
        """Begin a blob, send it whole (``digest``), or take it from elsewhere (``mount``)."""
        query = request.query_params
        source = query.get("from")
        also = await _source_scope(parts, request, source) if query.get("mount") else []
        _, place = await parts.opened(request, PUSH, *also)
        if mount := query.get("mount"):
            if await parts.registry.mount(place, mount, source):
                return _made(place, "blobs", mount)
            return _continue(place, await uploads.begin(place, algorithm_of(mount)), 0)
        digest = query.get("digest")
        if digest is None:
            algorithm = query.get("digest-algorithm", "sha256")
            return _continue(place, await uploads.begin(place, algorithm), 0)
        upload_id = await uploads.begin(place, algorithm_of(check_digest(digest)))
        await uploads.receive(
            place, upload_id, request.stream(), length=_length(request), last=True
        )
        await uploads.finish(place, upload_id, digest)
        return _made(place, "blobs", digest)

    @routes.get("/{name:path}/blobs/uploads/{upload}")
    async def show_upload(request: Request) -> Response:
        """How far an upload is."""
        _, place = await parts.opened(request, PUSH)
        upload_id = request.path_params["upload"]
        return _continue(place, upload_id, await uploads.offset(place, upload_id), status=204)

    @routes.patch("/{name:path}/blobs/uploads/{upload}")
    async def send_chunk(request: Request) -> Response:
        """Send the next bytes, with or without saying which they are."""
        _, place = await parts.opened(request, PUSH)
        upload_id = request.path_params["upload"]
        offset = await uploads.receive(
            place,
            upload_id,
            request.stream(),
            content_range=request.headers.get("content-range"),
            length=_length(request),
        )
        return _continue(place, upload_id, offset)

    @routes.put("/{name:path}/blobs/uploads/{upload}")
    async def finish_upload(request: Request) -> Response:
        """Send the last bytes, if any, and say what all of it is."""
        _, place = await parts.opened(request, PUSH)
        upload_id = request.path_params["upload"]
        digest = check_digest(request.query_params.get("digest", ""))
        length = _length(request)
        content_range = request.headers.get("content-range")
        if length != 0 or content_range is not None:
            await uploads.receive(
                place,
                upload_id,
                request.stream(),
                content_range=content_range,
                length=length,
                last=True,
            )
        await uploads.finish(place, upload_id, digest)
        return _made(place, "blobs", digest)

    @routes.delete("/{name:path}/blobs/uploads/{upload}")
    async def cancel_upload(request: Request) -> Response:
        """Give an upload up."""
        _, place = await parts.opened(request, PUSH)
        await uploads.cancel(place, request.path_params["upload"])
        return Response(status_code=204)


def _add_blobs(routes: APIRouter, parts: RegistryParts) -> None:
    registry = parts.registry

    @routes.api_route("/{name:path}/blobs/{digest}", methods=["GET", "HEAD"])
    async def show_blob(request: Request) -> Response:
        """A blob, or some of its bytes."""
        caller, place = await parts.opened(request, PULL)
        digest, name = request.path_params["digest"], place.name.full
        head = request.method == "HEAD"
        pushing = head and caller.may(name, PUSH)
        pushing = pushing and await registry.may(caller.principal, name, PUSH)
        held = await registry.blob(place, digest, pushing=pushing)
        headers = {
            **_SAFE,
            "Accept-Ranges": "bytes",
            "Content-Length": str(held.size_bytes),
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
        }
        if head:
            return Response(headers=headers)
        wanted = parse_range(request.headers.get("range"), held.size_bytes)
        if wanted is None:
            return StreamingResponse(registry.content(held, None), headers=headers)
        first, last = wanted
        headers["Content-Length"] = str(last - first + 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{held.size_bytes}"
        return StreamingResponse(registry.content(held, wanted), 206, headers)

    @routes.delete("/{name:path}/blobs/{digest}")
    async def delete_blob(request: Request) -> Response:
        """Take a blob from a repository."""
        _, place = await parts.opened(request, DELETE)
        await registry.delete_blob(place, request.path_params["digest"])
        return Response(status_code=202)


def _add_manifests(routes: APIRouter, parts: RegistryParts) -> None:
    manifests = parts.manifests

    @routes.api_route("/{name:path}/manifests/{reference}", methods=["GET", "HEAD"])
    async def show_manifest(request: Request) -> Response:
        """A manifest by tag or digest."""
        _, place = await parts.opened(request, PULL)
        found = await manifests.get(place, request.path_params["reference"])
        headers = {
            **_SAFE,
            "Content-Length": str(found.size_bytes),
            "Content-Type": found.media_type,
            "Docker-Content-Digest": found.digest,
            "ETag": f'"{found.digest}"',
        }
        content = found.content if request.method == "GET" else b""
        return Response(content, headers=headers)

    @routes.put("/{name:path}/manifests/{reference}")
    async def push_manifest(request: Request) -> Response:
        """Push a manifest under a tag or its digest."""
        _, place = await parts.opened(request, PUSH)
        if (_length(request) or 0) > MAX_MANIFEST_BYTES:
            raise ManifestTooLargeError(
                f"a manifest has at most {MAX_MANIFEST_BYTES} bytes",
                next_step="Push a smaller one.",
            )
        pushed = await manifests.push(
            place,
            request.path_params["reference"],
            await request.body(),
            request.headers.get("content-type", ""),
            request.query_params.get("digest"),
        )
        response = _made(place, "manifests", pushed.digest)
        if pushed.subject:
            response.headers["OCI-Subject"] = pushed.subject
        return response

    @routes.delete("/{name:path}/manifests/{reference}")
    async def delete_manifest(request: Request) -> Response:
        """Delete a tag, or a manifest with all its tags."""
        _, place = await parts.opened(request, DELETE)
        await manifests.delete(place, request.path_params["reference"])
        return Response(status_code=202)


def _add_lists(routes: APIRouter, parts: RegistryParts) -> None:
    @routes.get("/{name:path}/tags/list")
    async def list_tags(request: Request) -> Response:
        """Names of tags."""
        _, place = await parts.opened(request, PULL)
        query = request.query_params
        asked = query.get("n")
        if asked is not None and not (asked.isascii() and asked.isdecimal() and len(asked) < 10):
            raise SizeInvalidError(f"n is {asked[:20]!r}, not a number", next_step="Correct it.")
        limit = MAX_TAGS if asked is None else min(int(asked), MAX_TAGS)
        last = query.get("last", "")[:128].replace("\x00", "")
        found = await parts.manifests.tag_names(place, last, limit + 1)
        tags = list(found[:limit])
        headers: dict[str, str] = {}
        if len(found) > limit and tags:
            arguments = {"n": str(limit), "last": tags[-1]}
            headers["Link"] = _next(request, arguments)
        return JSONResponse({"name": place.name.full, "tags": tags}, headers=headers)

    @routes.get("/{name:path}/referrers/{digest}")
    async def list_referrers(request: Request) -> Response:
        """What is about a manifest: signatures, attestations, bills of materials."""
        _, place = await parts.opened(request, PULL)
        query = request.query_params
        subject, artifact_type = request.path_params["digest"], query.get("artifactType")
        last = query.get("last", "")
        found = await parts.manifests.referrers(
            place, subject, artifact_type, check_digest(last) if last else "", MAX_REFERRERS + 1
        )
        shown = list(found[:MAX_REFERRERS])
        headers = {"OCI-Filters-Applied": "artifactType"} if artifact_type is not None else {}
        if len(found) > MAX_REFERRERS:
            kept = {"artifactType": artifact_type} if artifact_type is not None else {}
            headers["Link"] = _next(request, {**kept, "last": str(shown[-1]["digest"])})
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": shown}
        return JSONResponse(document, headers=headers, media_type=INDEX)


async def _source_scope(
    parts: RegistryParts, request: Request, source: str | None
) -> list[tuple[str, Sequence[str]]]:
    """What a token must be for to mount from ``source``: to pull there, where its owner may. Where
    the owner may not, nothing is mounted, and nothing is asked of the token."""
    if source is None:
        return []
    caller = await parts.caller(request, [(request.path_params["name"], [PULL, PUSH])])
    return [(source, [PULL])] if await parts.registry.may(caller.principal, source, PULL) else []


def _length(request: Request) -> int | None:
    """What the request announces; none where it does not say."""
    text = request.headers.get("content-length")
    if text is not None:
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
    chunked = "transfer-encoding" in request.headers
    return None if chunked else 0


def _continue(place: Place, upload_id: str, offset: int, *, status: int = 202) -> Response:
    return Response(
        status_code=status,
        headers={
            "Docker-Upload-UUID": upload_id,
            "Location": f"/v2/{place.name.full}/blobs/uploads/{quote(upload_id, safe='')}",
            "Range": f"0-{max(offset - 1, 0)}",
        },
    )


def _made(place: Place, kind: str, digest: str) -> Response:
    return Response(
        status_code=201,
        headers={
            "Docker-Content-Digest": digest,
            "Location": f"/v2/{place.name.full}/{kind}/{digest}",
        },
    )


def _next(request: Request, arguments: dict[str, str]) -> str:
    return f'<{quote(request.url.path)}?{urlencode(arguments)}>; rel="next"'
