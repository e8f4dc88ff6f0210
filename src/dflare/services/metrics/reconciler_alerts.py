"""Raises and resolves alerts: one process at a time looks at the conditions, by a lease."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ProblemError
from dflare.kit.ids import new_id
from dflare.kit.lease import Lease
from dflare.kit.outbox import Event
from dflare.kit.series import SeriesStore
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Scope
from dflare.services.metrics import domain_alerts, repository
from dflare.services.metrics.contract import AlertFacts, AlertRule, AlertState
from dflare.services.metrics.domain_alerts import SEVERITY, Condition, Places
from dflare.services.metrics.settings import MetricsSettings
from dflare.services.metrics.tables import KIT, Alert

SCHEMA = "metrics"
LEASE = "metrics/alerts"
TIDY_EVERY, KEPT = timedelta(hours=1), timedelta(days=90)
"""How long what is over is remembered, and how often that is looked at."""
OF_NODES = frozenset({AlertRule.DEAD_GPU, AlertRule.LOST_LINK})

_SCOPE = Scope.system("alerts are looked for on every node and operation")


@dataclass
class AlertReconciler:
    """Looks at every rule's conditions every ``alert_every_s``. Where the store of series is away,
    alerts of nodes stay as they are."""

    database: Database
    store: SeriesStore
    clock: Clock
    settings: MetricsSettings
    lease: Lease
    _pending: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _tidied_at: datetime | None = None

    async def run(self) -> None:
        """Look until cancelled, as long as the lease can be had."""
        try:
            while True:
                try:
                    if await self.lease.take():
                        await self.look()
                except (SQLAlchemyError, OSError, ProblemError) as error:
                    log.warning("alerts_not_looked_at", error=repr(error)[:300])
                await asyncio.sleep(self.settings.alert_every_s)
        finally:
            await asyncio.shield(self._give_back())

    async def look(self) -> None:
        """One look; conditions that last become alerts, alerts without a condition are resolved."""
        now = self.clock.now()
        async with self.database.reading(SCHEMA) as session:
            live = await repository.live_operations(session, _SCOPE)
        usual = timedelta(seconds=self.settings.late_operation_s)
        seen = domain_alerts.late_operations(live, now, usual)
        looked_at = {AlertRule.LATE_OPERATION}
        if self.store.present:
            try:
                seen += await self._of_nodes(now)
                looked_at |= OF_NODES
            except ProblemError as error:
                log.warning("alerts_of_nodes_wait", error=str(error)[:300])
        lasting = self._lasting(seen, now)
        await self._record(lasting, {one.fingerprint for one in seen}, looked_at, now)
        if self._tidied_at is None or now - self._tidied_at > TIDY_EVERY:
            async with self.database.transaction(SCHEMA) as session:
                await repository.forget(session, now - KEPT)
            self._tidied_at = now

    async def _of_nodes(self, now: datetime) -> list[Condition]:
        async with self.database.reading(SCHEMA) as session:
            nodes = await repository.nodes(session, _SCOPE)
            had = await repository.tenancies(session, _SCOPE, now)
        places, silent_s = Places.of(nodes, had), self.settings.agent_silent_s
        missing = await self.store.instant(domain_alerts.gpu_query(silent_s))
        recent_s = 1.7 * self.settings.push_every_s
        present = await self.store.instant(domain_alerts.present_query(recent_s)) if missing else []
        down = await self.store.instant(domain_alerts.link_query(silent_s))
        return [
            *domain_alerts.dead_gpus(missing, present, places),
            *domain_alerts.lost_links(down, places),
        ]

    def _lasting(self, seen: Sequence[Condition], now: datetime) -> list[Condition]:
        """Those that have been seen for long enough."""
        self._pending = {one.fingerprint: self._pending.get(one.fingerprint, now) for one in seen}
        least = timedelta(seconds=self.settings.alert_after_s)
        return [one for one in seen if one.at_once or now - self._pending[one.fingerprint] >= least]

    async def _record(
        self,
        lasting: Sequence[Condition],
        seen: set[str],
        looked_at: set[AlertRule],
        now: datetime,
    ) -> None:
        async with self.database.transaction(SCHEMA) as session:
            standing = await repository.raised_alerts(session, _SCOPE, lock=True)
            events: list[Event] = []
            for row in standing:
                if row.fingerprint not in seen and row.rule in looked_at:
                    row.state, row.resolved_at = AlertState.RESOLVED, now
                    row.version += 1
                    events.append(alert_event(row, now))
            known = {row.fingerprint for row in standing}
            for one in lasting:
                if one.fingerprint not in known:
                    row = _new_alert(one, now)
                    session.add(row)
                    events.append(alert_event(row, now))
            await session.flush()
            await outbox.emit(session, KIT, events)

    async def _give_back(self) -> None:
        try:
            await self.lease.give_back()
        except (SQLAlchemyError, OSError, ProblemError) as error:
            log.warning("lease_not_given_back", lease=self.lease.name, error=repr(error)[:200])


def alert_event(row: Alert, now: datetime) -> Event:
    """``alert.raised`` or ``alert.resolved``, by the alert's state."""
    names = [name for name in AlertFacts.model_fields if name != "state"]
    facts = AlertFacts(state=AlertState(row.state), **{name: getattr(row, name) for name in names})
    return Event(
        type=f"alert.{row.state}",
        resource_kind="alert",
        resource_id=row.id,
        resource_version=row.version,
        at=now,
        data=facts.model_dump(mode="json"),
        organization_id=row.organization_id,
        project_id=row.project_id,
        site_id=row.site_id,
    )


def _new_alert(condition: Condition, now: datetime) -> Alert:
    return Alert(
        id=new_id("alert"),
        fingerprint=condition.fingerprint,
        rule=condition.rule,
        state=AlertState.RAISED,
        severity=SEVERITY[condition.rule],
        summary=condition.summary,
        site_id=condition.site_id,
        organization_id=condition.organization_id,
        project_id=condition.project_id,
        cluster_id=condition.cluster_id,
        subject_kind=condition.subject_kind,
        subject_id=condition.subject_id,
        subject_name=condition.subject_name,
        part=condition.part,
        raised_at=now,
        resolved_at=None,
        version=1,
    )
