"""What other services know of auth: the caller, what it may see, and the decision.

The actions are those of ``policy/schema.cedarschema``; one that it does not name is refused.

Events emitted: ``<kind>.changed`` and ``<kind>.deleted`` of organization, project, user,
service_account, role_binding, token, signing_key and login_session (data: the row without
secrets). Those of people, roles and tokens name no organization or project outside their data.
Events consumed: ``audit.recorded`` (from ``kit.outbox.record_audit`` of every service),
``cluster.changed``, ``volume.changed`` and ``repository.changed`` (a project that holds any is not
removed).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from sqlalchemy import ColumnElement, false, or_, true
from sqlalchemy.sql.elements import KeyedColumnElement


class Role(StrEnum):
    """Roles of the shipped policy set. ``operator`` and ``auditor`` are bound to the platform, the
    others to an organization or a project."""

    OPERATOR = "operator"
    AUDITOR = "auditor"
    ORGANIZATION_ADMIN = "organization_admin"
    PROJECT_ADMIN = "project_admin"
    MEMBER = "member"
    VIEWER = "viewer"


@dataclass(frozen=True)
class RoleBinding:
    """A role within the platform (no ids), an organization, or a project."""

    role: Role
    organization_id: str | None = None
    project_id: str | None = None


@dataclass(frozen=True)
class Principal:
    """An authenticated caller. ``subject`` is a user's or service account's id."""

    subject: str
    kind: str
    name: str
    bindings: tuple[RoleBinding, ...] = ()
    token_id: str = ""


@dataclass(frozen=True)
class Scope:
    """What a caller may know to exist. Every repository query starts from one.

    A scope is everything (operators, the system) or the projects and organizations listed;
    ``reason`` says why code without a caller runs with everything.
    """

    everything: bool = False
    organization_ids: frozenset[str] = frozenset()
    project_ids: frozenset[str] = frozenset()
    reason: str = ""

    @classmethod
    def system(cls, reason: str) -> "Scope":
        """The explicit scope of relay, reconcilers and steps."""
        return cls(everything=True, reason=reason)

    def where(
        self,
        organization: KeyedColumnElement[Any] | None,
        project: KeyedColumnElement[Any] | None,
    ) -> ColumnElement[bool]:
        """The condition on a table's owner columns that keeps a query within this scope."""
        if self.everything:
            return true()
        allowed: list[ColumnElement[bool]] = [false()]
        if organization is not None and self.organization_ids:
            allowed.append(organization.in_(self.organization_ids))
        if project is not None and self.project_ids:
            allowed.append(project.in_(self.project_ids))
        return or_(*allowed)

    def covers(self, organization_id: str | None, project_id: str | None) -> bool:
        """The same condition for a thing already at hand."""
        return (
            self.everything
            or organization_id in self.organization_ids
            or project_id in self.project_ids
        )


@dataclass(frozen=True)
class Resource:
    """The object of a decision. ``kind`` is an entity type of the Cedar schema, in lower case:
    organization, project, cluster, node, site, operation, invoice, ssh_key, user_data, quota, …"""

    kind: str
    id: str
    organization_id: str | None = None
    project_id: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class ProjectRef:
    """A project as it can be named in a path: by id or by ``organization/name``."""

    id: str
    name: str
    organization_id: str
    organization_name: str


class Authorizer(Protocol):
    """The policy snapshot of a process. Nothing in here makes a network call or a query; events
    refresh the snapshot (and the process that wrote refreshes at once)."""

    async def authenticate(self, token: str) -> Principal:
        """The caller of a bearer token.

        Raises:
            UnauthenticatedError: expired, revoked, forged, or of a disabled user.
        """
        ...

    def scope(self, principal: Principal) -> Scope:
        """What ``principal`` may know to exist."""
        ...

    def project(self, scope: Scope, reference: str) -> ProjectRef:
        """A project by id, by name where that is unique in the scope, or by ``organization/name``.

        Raises:
            NotFoundError: none that the scope covers.
        """
        ...

    async def check(self, principal: Principal, action: str, resource: Resource) -> None:
        """Decide by Cedar; ``action`` is ``<kind>:<verb>``, such as ``cluster:create``.

        Raises:
            NotFoundError: the caller may not even read the resource.
            ForbiddenError: it may read it, but not do this.
        """
        ...

    async def readable(
        self, principal: Principal, action: str, resources: Sequence[Resource]
    ) -> list[bool]:
        """Verify a page that SQL filtered, batched and off the event loop."""
        ...
