"""Asking for measurements within a project, or within everything."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dflare.kit.clock import Clock
from dflare.kit.series import FRESH, Answer, SeriesStore
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.metrics.domain_query import QUERY, Pairs, checked, fence
from dflare.services.metrics.errors import BusyError
from dflare.services.metrics.settings import MetricsSettings

WAITING_A_QUERY = 4
"""So many questions of a project may wait for each that is answered."""


@dataclass
class QueryService:
    """Questions of Prometheus' API, each fenced in by what the caller may see."""

    store: SeriesStore
    clock: Clock
    authorizer: Authorizer
    settings: MetricsSettings
    _slots: dict[str, asyncio.Semaphore] = field(init=False)
    _asking: defaultdict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Nobody asks yet."""
        self._slots, self._asking = {}, defaultdict(int)

    async def ask(
        self,
        principal: Principal,
        project: ProjectRef | None,
        question: str,
        path: str,
        given: Pairs,
    ) -> Answer:
        """The store's answer to ``question`` at its ``path``. With a ``project`` it knows of that
        project's series alone; without one the caller must be allowed everything.

        Raises:
            NotFoundError, ForbiddenError: the caller may not ask there.
            ArgumentError: an argument is not taken.
            BusyError: too many ask for the same project.
            SeriesAbsentError, SeriesUnreachableError, AnswerTooLongError: see ``SeriesStore``.
        """
        await self.authorizer.check(principal, "metric:read", metric_resource(project))
        timeout_s = self.settings.query_s
        asked = checked(question, given, self.clock.now().timestamp(), timeout_s)
        self.store.check_present()
        form = [*asked, *(fence(project) if project else [])]
        if question == QUERY:
            form.append(FRESH)
        async with self._turn(project.id if project else ""):
            return await self.store.ask(path, form, timeout_s + 2)

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncGenerator[None]:
        """A few at a time for each project, so that one cannot keep the store from others."""
        at_once = self.settings.queries_at_once
        if self._asking[key] >= at_once * (1 + WAITING_A_QUERY):
            raise BusyError(
                "too many queries of this project are under way",
                next_step="Ask again in a few seconds, fewer at a time.",
            )
        slots = self._slots.setdefault(key, asyncio.Semaphore(at_once))
        self._asking[key] += 1
        try:
            async with slots:
                yield
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]
                self._slots.pop(key, None)


def metric_resource(project: ProjectRef | None) -> Resource:
    """The measurements of a project, or of everything, as the object of a decision."""
    if project is None:
        return Resource("metric", "all")
    return Resource("metric", project.id, project.organization_id, project.id)
