"""Declaring sites: a whole site document at a time, in one transaction."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from pydantic import SecretStr
from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import idempotency, outbox, telemetry
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError, PreconditionError, ProblemError
from dflare.kit.etag import check_if_match
from dflare.kit.idempotency import Begun, RequestKey
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord, Event
from dflare.kit.seal import Sealer
from dflare.services.auth.contract import Authorizer, Principal, Resource
from dflare.services.baremetal import repository
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.credentials import open_named, store_credential
from dflare.services.baremetal.declaration import (
    declare,
    node_declared,
    node_facts,
    node_type_row,
    site_declared,
)
from dflare.services.baremetal.domain import UNUSED, check_transition
from dflare.services.baremetal.errors import NodesInUseError, SiteInvalidError
from dflare.services.baremetal.service import SCHEMA, store_operation
from dflare.services.baremetal.tables import KIT, Image, Node, NodeType, Rack, Site
from dflare.services.orchestrator.contract import Orchestrator
from dflare.site.diff import SiteDiff, diff
from dflare.site.document import Credential, SiteDocument
from dflare.site.load import parse_site
from dflare.site.problems import SiteErrors

_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Applied:
    """What applying did (or, in a dry run, would do). ``operation`` enrols what is new."""

    site: Site | None
    diff: SiteDiff
    operation: dict[str, Any] | None


@dataclass(frozen=True)
class SiteView:
    """A site with its node types. Its nodes, counted by state, only for who may read the site: how
    full it is and what is broken is no tenant's."""

    site: Site
    node_types: Sequence[NodeType]
    nodes: Mapping[str, int] | None


@dataclass(frozen=True)
class _Before:
    site: Site | None
    document: SiteDocument | None


async def parse_document(body: bytes) -> SiteDocument:
    """A site document from YAML or JSON text, off the event loop.

    Raises:
        SiteInvalidError: with every problem's line, column, key and hint.
    """
    try:
        return await asyncio.to_thread(parse_site, body, "site")
    except SiteErrors as error:
        raise SiteInvalidError(
            f"the site document has {len(error.problems)} problems",
            next_step="Correct what is named and apply it again; nothing was changed.",
            errors=[
                {
                    "line": problem.line,
                    "column": problem.column,
                    "path": problem.path,
                    "message": problem.message,
                    "hint": problem.hint,
                }
                for problem in error.problems
            ],
        ) from error


@dataclass(frozen=True)
class SiteService:
    """Sites as their operators declare them."""

    database: Database
    clock: Clock
    sealer: Sealer
    authorizer: Authorizer
    orchestrator: Orchestrator

    async def list_sites(self, principal: Principal) -> Sequence[SiteView]:
        """All sites; tenants order at them."""
        await self.authorizer.check(principal, "site:list", Resource("site", ""))
        async with self.database.reading(SCHEMA) as session:
            sites = await repository.sites(session)
            kinds = await repository.node_types(session)
        resources = [Resource("site", site.id) for site in sites]
        whole = await self.authorizer.readable(principal, "site:read", resources)
        async with self.database.reading(SCHEMA) as session:
            return [
                SiteView(
                    site,
                    [kind for kind in kinds if kind.site_id == site.id],
                    await repository.count_by_state(session, site.id) if may else None,
                )
                for site, may in zip(sites, whole, strict=True)
            ]

    async def get(self, principal: Principal, reference: str) -> SiteView:
        """One site with its document, for operators and auditors."""
        async with self.database.reading(SCHEMA) as session:
            site = await repository.find_site(session, reference)
            counts = await repository.count_by_state(session, site.id) if site else {}
            kinds = await repository.node_types(session)
        if site is None:
            raise NotFoundError(
                f"there is no site {reference}", next_step="List sites with `dflare site list`."
            )
        await self.authorizer.check(principal, "site:read", Resource("site", site.id))
        return SiteView(site, [kind for kind in kinds if kind.site_id == site.id], counts)

    async def may_apply(self, principal: Principal) -> None:
        """Asked before the document is even parsed.

        Raises:
            NotFoundError, ForbiddenError: the caller is no operator.
        """
        await self.authorizer.check(principal, "site:apply", Resource("site", ""))

    async def preview(
        self, principal: Principal, document: SiteDocument, if_match: str | None = None
    ) -> Applied:
        """What ``apply`` would change, with the same refusals and nothing changed."""
        await self.may_apply(principal)
        async with self.database.transaction(SCHEMA) as session:
            before = await self._before(session, document.name)
            _check_unchanged(if_match, before.site)
            if before.site is not None:
                await _check_nodes(session, self, principal, before.site.id, document)
        return Applied(before.site, diff(before.document, document), None)

    async def apply(
        self,
        principal: Principal,
        document: SiteDocument,
        request: RequestKey,
        if_match: str | None = None,
    ) -> tuple[int, Applied]:
        """Declare a site, or declare it anew: what the document holds is what there is.

        Passwords must be in it. Repeating it changes nothing. New and changed nodes are enrolled by
        an operation.

        Raises:
            NotFoundError, ForbiddenError: the caller is no operator.
            PreconditionError: ``if_match`` names another version of the site.
            NodesInUseError: nodes that are in use would go or change; they are named.
        """
        await self.may_apply(principal)
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        try:
            with telemetry.span("baremetal.apply_site", operation_id=begun.operation_id):
                return await self._apply(principal, document, begun, if_match)
        except ProblemError:
            await idempotency.forget(self.database, KIT, begun)
            raise

    async def _apply(
        self, principal: Principal, document: SiteDocument, begun: Begun, if_match: str | None
    ) -> tuple[int, Applied]:
        now = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            claimed = await idempotency.claim(session, KIT, begun, now)
            before = await self._before(session, document.name)
            changes = diff(before.document, document)
            if claimed.answer is not None:
                return claimed.status or 200, Applied(
                    before.site, changes, claimed.answer.get("operation")
                )
            _check_unchanged(if_match, before.site)
            site = before.site or _new_site(document, now)
            operation: dict[str, Any] | None = None
            if changes:
                targets = await self._change(session, principal, site, document, before, now)
                if targets:
                    operation = await store_operation(
                        session,
                        principal,
                        saga="enrol_nodes",
                        action="site:apply",
                        plan=self.orchestrator.plan("enrol_nodes"),
                        operation_id=begun.operation_id,
                        resource=("site", site.id),
                        owner=(None, None),
                        site_id=site.id,
                        targets=targets,
                        clock=self.clock,
                    )
            status = 202 if operation else 200
            await idempotency.complete(session, KIT, begun, status, {"operation": operation})
        return status, Applied(site, changes, operation)

    async def _before(self, session: AsyncSession, name: str) -> _Before:
        """The site as it is declared now, with its passwords, locked."""
        site = await repository.find_site(session, name, lock=True)
        if site is None:
            return _Before(None, None)
        stored = cast("dict[str, dict[str, Any]]", dict(site.document["credentials"]))
        pairs = await open_named(session, self.sealer, [(site.id, ref) for ref in stored])
        credentials = {
            ref: Credential(username=user, password=SecretStr(password))
            for (_, ref), (user, password) in pairs.items()
        }
        # The passwords of the stored form are masked, which the model refuses to read.
        plain: dict[str, Any] = {**site.document, "credentials": {}}
        document = SiteDocument.model_validate(plain).model_copy(
            update={"credentials": credentials}
        )
        return _Before(site, document)

    async def _change(
        self,
        session: AsyncSession,
        principal: Principal,
        site: Site,
        document: SiteDocument,
        before: _Before,
        now: datetime,
    ) -> list[str]:
        """Write the site and everything in it; returns the nodes to enrol."""
        present = await _check_nodes(session, self, principal, site.id, document)
        if before.site is None:
            session.add(site)
        else:
            site.version += 1
        site.region, site.description = document.region, document.description
        site.document, site.updated_at = document.model_dump(mode="json"), now
        await session.flush()
        await self._store_parts(session, site.id, document)
        events = [site_declared_event(site, document, self.sealer, now)]
        targets = _store_nodes(session, site.id, document, present, now, events)
        await session.flush()
        await outbox.emit(session, KIT, events)
        record = AuditRecord(
            at=now,
            principal=principal.subject,
            action="site:apply",
            resource_kind="site",
            resource_id=site.id,
            detail={"version": site.version, "nodes": len(document.nodes)},
        )
        await outbox.record_audit(session, KIT, record)
        return targets

    async def _store_parts(
        self, session: AsyncSession, site_id: str, document: SiteDocument
    ) -> None:
        for reference, credential in document.credentials.items():
            password = credential.password.get_secret_value() if credential.password else ""
            await store_credential(
                session, self.sealer, site_id, reference, credential.username, password
            )
        for kind in (Rack, NodeType, Image):
            await session.execute(delete(kind).where(kind.site_id == site_id))
        racks = [{"site_id": site_id, **rack.model_dump()} for rack in document.racks]
        await session.execute(insert(Rack), racks)
        kinds = [node_type_row(site_id, kind) for kind in document.node_types]
        await session.execute(insert(NodeType), kinds)
        images = [
            {"site_id": site_id, "ordinal": number, **image.model_dump()}
            for number, image in enumerate(document.images)
        ]
        if images:
            await session.execute(insert(Image), images)


def site_declared_event(site: Site, document: SiteDocument, sealer: Sealer, now: datetime) -> Event:
    """``site.declared`` of a locked site."""
    return Event(
        type="site.declared",
        resource_kind="site",
        resource_id=site.id,
        resource_version=site.version,
        at=now,
        data=site_declared(site.id, document, sealer).model_dump(mode="json"),
        site_id=site.id,
    )


def _check_unchanged(if_match: str | None, site: Site | None) -> None:
    if site is not None:
        check_if_match(if_match, site.version, site.id)
    elif if_match is not None:
        # RFC 9110 section 13.1.1: no tag, not even `*`, matches what does not exist.
        raise PreconditionError(
            "there is no such site",
            next_step="Leave If-Match out to declare it for the first time.",
        )


def _new_site(document: SiteDocument, now: datetime) -> Site:
    return Site(
        id=new_id("site"),
        name=document.name,
        region=document.region,
        description=document.description,
        document={},
        created_at=now,
        updated_at=now,
        version=1,
    )


async def _check_nodes(
    session: AsyncSession,
    service: SiteService,
    principal: Principal,
    site_id: str,
    document: SiteDocument,
) -> dict[str, Node]:
    """The site's present nodes by name.

    Raises:
        NodesInUseError: some that are in use would go or become other servers.
    """
    scope = service.authorizer.scope(principal)
    present = await repository.nodes_of_site(session, scope, site_id)
    declared = {node.name: node for node in document.nodes}
    in_use: list[str] = []
    for name, row in present.items():
        node = declared.get(name)
        same = node is not None and node_facts(document, node) == row.facts
        if not same and (row.state not in UNUSED or row.acting_operation_id is not None):
            in_use.append(f"{name} ({row.state})")
    if in_use:
        more = len(in_use) - _NAMED_AT_MOST
        named = ", ".join(in_use[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        raise NodesInUseError(
            f"the document changes or leaves out nodes that are in use: {named}",
            next_step="Release or clean them first, or leave them as they are in the document.",
            nodes=[*in_use],
        )
    return present


def _store_nodes(
    session: AsyncSession,
    site_id: str,
    document: SiteDocument,
    present: Mapping[str, Node],
    now: datetime,
    events: list[Event],
) -> list[str]:
    """Write nodes, new, changed and gone; returns those to enrol."""
    targets: list[str] = []
    for node in document.nodes:
        row = present.get(node.name)
        facts = node_facts(document, node)
        if row is not None and row.facts == facts:
            continue
        if row is None:
            row = Node(id=new_id("node"), site_id=site_id, created_at=now, version=0)
            row.cordoned, row.state = False, NodeState.DECLARED
            session.add(row)
        else:
            check_transition(NodeState(row.state), NodeState.DECLARED)
        declare(row, node.name, facts, now)
        events.append(_node_event(row, now))
        targets.append(row.id)
    for name in present.keys() - {node.name for node in document.nodes}:
        row = present[name]
        row.retired_at, row.version = now, row.version + 1
        events.append(_node_event(row, now))
    return targets


def _node_event(row: Node, now: datetime) -> Event:
    """``node.declared`` of a locked node."""
    return Event(
        type="node.declared",
        resource_kind="node",
        resource_id=row.id,
        resource_version=row.version,
        at=now,
        data=node_declared(row).model_dump(mode="json"),
        site_id=row.site_id,
    )
