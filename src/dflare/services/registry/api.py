"""HTTP API of repositories. Clients of images use ``/v2/`` (``api_oci``)."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from dflare.kit.etag import etag_of
from dflare.kit.orders import IfMatch
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.registry.service import RegistryService, RepositoryView

NameFilter = Annotated[
    str | None, Query(max_length=255, description="Only the one of this name in the project")
]


class RepositoryAnswer(BaseModel):
    """A repository. ``reference`` is what clients pull and push, host included; ``name`` the part
    of it behind organization and project. ``size_bytes`` counts what other repositories of the
    project have too."""

    id: str
    name: str
    reference: str
    organization_id: str
    project_id: str
    size_bytes: int
    manifests: int
    tags: int
    created_by: str
    created_at: datetime
    pushed_at: datetime
    version: int


class TagAnswer(BaseModel):
    """A tag and the manifest that it names; ``size_bytes`` are those of the manifest and of what it
    refers to itself."""

    name: str
    digest: str
    media_type: str
    artifact_type: str
    size_bytes: int
    updated_by: str
    updated_at: datetime


class RegistryAnswer(BaseModel):
    """The registry as a project has it. ``prefix`` stands before the names of its repositories. A
    blob that several repositories have counts once in ``stored_bytes``; ``uploading_bytes`` are
    being pushed, and count against ``limit_bytes`` too."""

    host: str
    prefix: str
    stored_bytes: int
    uploading_bytes: int
    limit_bytes: int


def router(
    registry: RegistryService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
    *,
    public_url: str,
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["registry"])
    host = urlsplit(public_url).netloc

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    def answer(view: RepositoryView) -> RepositoryAnswer:
        row = view.repository
        return RepositoryAnswer(
            id=row.id,
            name=row.name,
            reference=f"{host}/{view.full_name}",
            organization_id=row.organization_id,
            project_id=row.project_id,
            size_bytes=view.size_bytes,
            manifests=view.manifests,
            tags=view.tags,
            created_by=row.created_by,
            created_at=row.created_at,
            pushed_at=row.pushed_at,
            version=row.version,
        )

    @routes.get("/repositories")
    async def list_all_repositories(
        *, caller: Principal = Depends(principal), cursor: Cursor = None, limit: Limit = 100
    ) -> Page[RepositoryAnswer]:
        """Repositories of all projects that the caller may read."""
        views, more = await registry.list(caller, None, decode_cursor(cursor), limit)
        return Page(items=[answer(view) for view in views], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/registry")
    async def show_registry(
        *, caller: Principal = Depends(principal), project: ProjectRef = Depends(project_of)
    ) -> RegistryAnswer:
        """What the repositories of a project hold and may hold, and how they are called."""
        held = await registry.storage(caller, project)
        return RegistryAnswer(
            host=host,
            prefix=f"{host}/{project.organization_name}/{project.name}/",
            stored_bytes=held.stored_bytes,
            uploading_bytes=held.uploading_bytes,
            limit_bytes=held.limit_bytes,
        )

    @routes.get("/projects/{project}/repositories")
    async def list_repositories(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        name: NameFilter = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[RepositoryAnswer]:
        """Repositories of a project; ``name`` finds those whose names have a slash."""
        views, more = await registry.list(caller, project, decode_cursor(cursor), limit, name=name)
        return Page(items=[answer(view) for view in views], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/repositories/{repository}")
    async def show_repository(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        repository: str,
    ) -> RepositoryAnswer:
        """One repository, by id, or by a name without a slash."""
        view = await registry.get(caller, project, repository)
        response.headers["ETag"] = etag_of(view.repository.version, view.repository.id)
        return answer(view)

    @routes.delete("/projects/{project}/repositories/{repository}", status_code=204)
    async def delete_repository(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        repository: str,
        if_match: IfMatch = None,
    ) -> None:
        """Remove a repository with all its tags and manifests for good."""
        await registry.delete(caller, project, repository, if_match)

    @routes.get("/projects/{project}/repositories/{repository}/tags")
    async def list_tags(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        repository: str,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[TagAnswer]:
        """Tags of a repository, by name."""
        tags, more = await registry.tags(caller, project, repository, decode_cursor(cursor), limit)
        return Page(
            items=[TagAnswer.model_validate(tag, from_attributes=True) for tag in tags],
            next_cursor=next_cursor(more),
        )

    @routes.delete("/projects/{project}/repositories/{repository}/tags/{tag}", status_code=204)
    async def delete_tag(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        repository: str,
        tag: str,
    ) -> None:
        """Remove a tag, with what no other tag names then."""
        await registry.delete_tag(caller, project, repository, tag)

    return routes
