"""The snapshot that a process decides on: rows by kind and id, and the indexes answers need.

It holds organizations, projects, subjects, bindings, live tokens, verification keys and revoked
logins. A ``SnapshotSource`` fills it; events and local writes refresh the rows that they name.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from joserfc.jwk import RSAKey

from dflare.services.auth.contract import ProjectRef, RoleBinding

KINDS = (
    "organization",
    "project",
    "user",
    "service_account",
    "role_binding",
    "token",
    "signing_key",
    "login_session",
)
"""What the snapshot is made of; the resource kinds of the events that refresh it."""

EVENT_TYPES = frozenset(f"{kind}.{verb}" for kind in KINDS for verb in ("changed", "deleted"))


@dataclass(frozen=True)
class OrganizationRow:
    """An organization of the snapshot."""

    id: str
    name: str


@dataclass(frozen=True)
class ProjectRow:
    """A project of the snapshot."""

    id: str
    name: str
    organization_id: str


@dataclass(frozen=True)
class SubjectRow:
    """A user or service account (``kind``) that is not disabled. ``organization_id`` is that of a
    user who has to name it to log in."""

    id: str
    kind: str
    name: str
    organization_id: str | None = None


@dataclass(frozen=True)
class BindingRow:
    """A role binding and whose it is."""

    id: str
    subject_id: str
    binding: RoleBinding


@dataclass(frozen=True)
class TokenRow:
    """An API token that is not revoked."""

    id: str
    subject_id: str
    secret_sha256: bytes
    expires_at: datetime


@dataclass(frozen=True)
class KeyRow:
    """A key that verifies access tokens; ``id`` is its kid."""

    id: str
    key: RSAKey


@dataclass(frozen=True)
class RevokedRow:
    """A login that was revoked less than an access token's life ago."""

    id: str


Row = OrganizationRow | ProjectRow | SubjectRow | BindingRow | TokenRow | KeyRow | RevokedRow


class SnapshotSource(Protocol):
    """Where the snapshot's rows come from."""

    async def load(self, ids: Mapping[str, Sequence[str] | None]) -> dict[str, list[Row]]:
        """The present rows by kind; ``None`` stands for all of a kind."""
        ...


class Snapshot:
    """The rows by kind and id, and the indexes that answers need."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Row]] = {kind: {} for kind in KINDS}
        self.subjects: dict[str, SubjectRow] = {}
        self.bindings: dict[str, tuple[RoleBinding, ...]] = {}
        self.tokens: dict[bytes, TokenRow] = {}
        self.keys: dict[str, RSAKey] = {}
        self.organizations: dict[str, str] = {}
        self.projects: dict[str, ProjectRef] = {}
        self.projects_by_name: dict[str, list[ProjectRef]] = {}

    def replace(
        self, ids: Mapping[str, Sequence[str] | None], rows: Mapping[str, Sequence[Row]]
    ) -> None:
        """Put ``rows`` in the place of the rows named by ``ids``; a missing one is gone."""
        for kind, named in ids.items():
            if named is None:
                self._rows[kind].clear()
            else:
                for row_id in named:
                    self._rows[kind].pop(row_id, None)
            self._rows[kind].update((row.id, row) for row in rows.get(kind, ()))
        self._index(frozenset(ids))

    def has(self, kind: str, row_id: str) -> bool:
        """Whether a row is in the snapshot."""
        return row_id in self._rows[kind]

    def _index(self, kinds: frozenset[str]) -> None:
        if kinds & {"user", "service_account"}:
            self.subjects = {
                row.id: row
                for kind in ("user", "service_account")
                for row in self._rows[kind].values()
                if isinstance(row, SubjectRow)
            }
        if "role_binding" in kinds:
            bindings: defaultdict[str, list[RoleBinding]] = defaultdict(list)
            for row in self._rows["role_binding"].values():
                if isinstance(row, BindingRow):
                    bindings[row.subject_id].append(row.binding)
            self.bindings = {subject: tuple(found) for subject, found in bindings.items()}
        if "token" in kinds:
            rows = self._rows["token"].values()
            self.tokens = {row.secret_sha256: row for row in rows if isinstance(row, TokenRow)}
        if "signing_key" in kinds:
            rows = self._rows["signing_key"].values()
            self.keys = {row.id: row.key for row in rows if isinstance(row, KeyRow)}
        if kinds & {"organization", "project"}:
            self._index_projects()

    def _index_projects(self) -> None:
        self.organizations = names = {
            row.id: row.name
            for row in self._rows["organization"].values()
            if isinstance(row, OrganizationRow)
        }
        self.projects = {
            row.id: ProjectRef(row.id, row.name, row.organization_id, names[row.organization_id])
            for row in self._rows["project"].values()
            if isinstance(row, ProjectRow) and row.organization_id in names
        }
        by_name: defaultdict[str, list[ProjectRef]] = defaultdict(list)
        for project in self.projects.values():
            by_name[project.name].append(project)
        self.projects_by_name = dict(by_name)
