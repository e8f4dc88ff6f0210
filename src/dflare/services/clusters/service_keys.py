"""SSH keys and cloud-init user data of a project."""

import hashlib
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import delete as delete_from
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NameTakenError
from dflare.kit.etag import check_if_match
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord
from dflare.kit.pagination import cut
from dflare.kit.seal import Sealer, drop_secret, get_secret, put_secret
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.clusters import repository
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain import ssh_fingerprint
from dflare.services.clusters.errors import InUseError
from dflare.services.clusters.tables import KIT, Cluster, SshKey, UserData

SCHEMA = "clusters"

Row = TypeVar("Row", SshKey, UserData)


@dataclass(frozen=True)
class KeyService:
    """Create, list, show and delete; every change is audited."""

    database: Database
    clock: Clock
    sealer: Sealer
    authorizer: Authorizer

    async def add_ssh_key(
        self, principal: Principal, project: ProjectRef, name: str, public_key: str
    ) -> SshKey:
        """Add an OpenSSH public key.

        Raises:
            InvalidKeyError: the text is none.
            NameTakenError: the project has a key of that name.
        """
        await self._may(principal, "ssh_key:create", project)
        key = SshKey(
            id=new_id("key"),
            organization_id=project.organization_id,
            project_id=project.id,
            name=name,
            public_key=public_key.strip(),
            fingerprint=ssh_fingerprint(public_key),
            created_by=principal.subject,
            created_at=self.clock.now(),
            version=1,
        )
        await self._insert(principal, project, key, "ssh_key:create")
        return key

    async def add_user_data(
        self, principal: Principal, project: ProjectRef, name: str, text: str
    ) -> UserData:
        """Add cloud-init user data; its text is sealed and never listed.

        Raises:
            NameTakenError: the project has user data of that name.
        """
        await self._may(principal, "user_data:create", project)
        content = text.encode()
        row = UserData(
            id=new_id("udata"),
            organization_id=project.organization_id,
            project_id=project.id,
            name=name,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            created_by=principal.subject,
            created_at=self.clock.now(),
            version=1,
        )
        await self._insert(principal, project, row, "user_data:create", content)
        return row

    async def user_data_text(
        self, principal: Principal, project: ProjectRef, reference: str
    ) -> tuple[UserData, str]:
        """User data with its text, for those who may read it."""
        row = await self.get(principal, project, UserData, reference)
        async with self.database.reading(SCHEMA) as session:
            content = await get_secret(session, KIT, self.sealer, _secret_name(row))
        return row, content.decode()

    async def get(
        self, principal: Principal, project: ProjectRef, kind: type[Row], reference: str
    ) -> Row:
        """One by id or name.

        Raises:
            NotFoundError: none that the caller may read.
        """
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            row = await repository.find(session, scope, kind, project.id, reference)
        await self.authorizer.check(principal, f"{kind.__tablename__}:read", _resource(row))
        return row

    async def list(
        self,
        principal: Principal,
        project: ProjectRef,
        kind: type[Row],
        after: str | None,
        limit: int,
    ) -> tuple[list[Row], str | None]:
        """One page in order of ids, and the id to go on behind where there are more."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.list_named(session, scope, kind, project.id, after, limit + 1)
        rows, last = cut(rows, limit)
        allowed = await self.authorizer.readable(
            principal, f"{kind.__tablename__}:read", [_resource(row) for row in rows]
        )
        shown = [row for row, may in zip(rows, allowed, strict=True) if may]
        return shown, last.id if last else None

    async def delete(
        self,
        principal: Principal,
        project: ProjectRef,
        kind: type[Row],
        reference: str,
        if_match: str | None = None,
    ) -> None:
        """Remove one that no live cluster refers to.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            PreconditionError: ``if_match`` names another one.
            InUseError: naming a cluster that uses it.
        """
        row = await self.get(principal, project, kind, reference)
        action = f"{kind.__tablename__}:delete"
        await self.authorizer.check(principal, action, _resource(row))
        check_if_match(if_match, row.version, row.id)
        scope = self.authorizer.scope(principal)
        async with self.database.transaction(SCHEMA) as session:
            # Locked first, so that an order which is being stored with it is seen.
            await repository.keep(session, scope, kind, [row.id], alone=True)
            user = await _used_by(session, row)
            if user is not None:
                raise InUseError(
                    f"cluster {user} uses {row.name}", next_step="Delete that cluster first."
                )
            await session.execute(delete_from(kind).where(kind.id == row.id))
            if isinstance(row, UserData):
                await drop_secret(session, KIT, _secret_name(row))
            await self._audit(session, principal, row, action)

    async def _may(self, principal: Principal, action: str, project: ProjectRef) -> None:
        kind = action.partition(":")[0]
        await self.authorizer.check(
            principal, action, Resource(kind, "", project.organization_id, project.id)
        )

    async def _insert(
        self,
        principal: Principal,
        project: ProjectRef,
        row: SshKey | UserData,
        action: str,
        secret: bytes | None = None,
    ) -> None:
        try:
            async with self.database.transaction(SCHEMA) as session:
                session.add(row)
                await session.flush()
                if secret is not None:
                    await put_secret(session, KIT, self.sealer, _secret_name(row), secret)
                await self._audit(session, principal, row, action)
        except IntegrityError as error:
            raise NameTakenError(
                f"project {project.name} has a {row.__tablename__.replace('_', ' ')} "
                f"named {row.name}",
                next_step="Choose another name, or delete that one first.",
            ) from error

    async def _audit(
        self, session: AsyncSession, principal: Principal, row: SshKey | UserData, action: str
    ) -> None:
        await outbox.record_audit(
            session,
            KIT,
            AuditRecord(
                at=self.clock.now(),
                principal=principal.subject,
                action=action,
                resource_kind=row.__tablename__,
                resource_id=row.id,
                organization_id=row.organization_id,
                project_id=row.project_id,
            ),
        )


def _secret_name(row: SshKey | UserData) -> str:
    return f"user_data/{row.id}"


def _resource(row: SshKey | UserData) -> Resource:
    return Resource(row.__tablename__, row.id, row.organization_id, row.project_id)


async def _used_by(session: AsyncSession, row: SshKey | UserData) -> str | None:
    """The name of a live cluster of the row's own project that refers to it."""
    refers = (
        Cluster.ssh_keys.contains([row.id])
        if isinstance(row, SshKey)
        else Cluster.user_data_id == row.id
    )
    query = select(Cluster.name).where(
        Cluster.project_id == row.project_id, refers, Cluster.state != ClusterState.DELETED
    )
    return (await session.scalars(query.limit(1))).first()
