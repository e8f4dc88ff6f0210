"""Identifiers from a site's ranges: free → allocated → draining → cooldown → free.

Only identifiers that are not free have rows; the lowest free one is taken. The lock of the site's
row orders allocations, and the primary key of ``pool_value`` is what makes doubles impossible.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import hardware_timeout_s
from dflare.services.baremetal.contract import PoolFacts
from dflare.services.network.contract import PoolValueState
from dflare.services.network.domain import PoolKind
from dflare.services.network.errors import PoolExhaustedError
from dflare.services.network.tables import PoolValue, Site

Range = tuple[int, int]


def ranges_of(pools: PoolFacts, kind: PoolKind) -> tuple[tuple[Range, ...], int]:
    """The inclusive ranges of a kind and the step between two values."""
    match kind:
        case PoolKind.VLAN:
            return pools.vlan, 1
        case PoolKind.VNI:
            return pools.vni, 1
        case PoolKind.PKEY:
            return pools.pkey, 1
        case PoolKind.SUBNET:
            step = 2 ** (32 - pools.subnet_length)
            return tuple(_subnets(prefix, step) for prefix in pools.prefixes), step


def capacity(ranges: Iterable[Range], step: int) -> int:
    """How many values the ranges hold."""
    return sum((last - first) // step + 1 for first, last in ranges)


def lowest_free(ranges: Sequence[Range], step: int, taken: set[int]) -> int | None:
    """The first value of the ranges that is not taken."""
    for first, last in ranges:
        for value in range(first, last + 1, step):
            if value not in taken:
                return value
    return None


def subnet_text(value: int, length: int) -> str:
    """A subnet's value as a CIDR."""
    return f"{ipaddress.IPv4Address(value)}/{length}"


async def take(
    session: AsyncSession,
    site_id: str,
    network_id: str,
    kinds: Sequence[PoolKind],
    now: datetime,
) -> list[int]:
    """Allocate one value for each of ``kinds``, in their order; the site's row is locked.

    Raises:
        PoolExhaustedError: a range has no free value; nothing was taken for this kind.
    """
    pools = PoolFacts.model_validate(
        await session.scalar(select(Site.pools).where(Site.id == site_id).with_for_update())
    )
    values: list[int] = []
    for kind in kinds:
        rows = await session.scalars(
            select(PoolValue.value).where(PoolValue.site_id == site_id, PoolValue.kind == kind)
        )
        ranges, step = ranges_of(pools, kind)
        value = lowest_free(ranges, step, set(rows))
        if value is None:
            total = capacity(ranges, step)
            raise PoolExhaustedError(
                f"all {total} {kind} identifiers of the site are in use or cooling down",
                next_step="Widen the range in the site document, or wait for a release.",
                kind=str(kind),
                total=total,
            )
        await session.execute(
            insert(PoolValue).values(
                site_id=site_id,
                kind=kind,
                value=value,
                state=PoolValueState.ALLOCATED,
                network_id=network_id,
                since=now,
            )
        )
        values.append(value)
    return values


async def drain(session: AsyncSession, network_id: str, now: datetime) -> None:
    """Everything allocated to a network becomes ``draining``."""
    await session.execute(
        update(PoolValue)
        .where(PoolValue.network_id == network_id, PoolValue.state == PoolValueState.ALLOCATED)
        .values(state=PoolValueState.DRAINING, since=now)
    )


async def cool_down(
    session: AsyncSession, site_id: str, network_id: str, now: datetime, speed: float
) -> None:
    """Everything draining of a network becomes ``cooldown`` for the site's time."""
    pools = PoolFacts.model_validate(
        await session.scalar(select(Site.pools).where(Site.id == site_id))
    )
    rest_s = hardware_timeout_s(pools.cooldown_s, speed)
    await session.execute(
        update(PoolValue)
        .where(PoolValue.network_id == network_id, PoolValue.state == PoolValueState.DRAINING)
        .values(
            state=PoolValueState.COOLDOWN,
            since=now,
            cooldown_until=now + timedelta(seconds=rest_s),
        )
    )


async def free_cooled(session: AsyncSession, now: datetime) -> int:
    """Forget values whose cooldown is over; returns how many are free again."""
    freed = await session.execute(
        delete(PoolValue)
        .where(
            PoolValue.state == PoolValueState.COOLDOWN,
            PoolValue.cooldown_until <= now,
        )
        .returning(PoolValue.value)
    )
    return len(freed.all())


async def usage(session: AsyncSession, site: Site) -> dict[PoolKind, dict[str, int]]:
    """How many values of each kind there are in each state, and in all."""
    rows = await session.execute(
        select(PoolValue.kind, PoolValue.state, func.count())
        .where(PoolValue.site_id == site.id)
        .group_by(PoolValue.kind, PoolValue.state)
    )
    counted = {(kind, state): number for kind, state, number in rows}
    pools = PoolFacts.model_validate(site.pools)
    answer: dict[PoolKind, dict[str, int]] = {}
    for kind in PoolKind:
        total = capacity(*ranges_of(pools, kind))
        held = {
            str(state): counted.get((kind, state), 0)
            for state in PoolValueState
            if state is not PoolValueState.FREE
        }
        answer[kind] = {"total": total, "free": max(0, total - sum(held.values())), **held}
    return answer


def _subnets(prefix: str, step: int) -> Range:
    network = ipaddress.IPv4Network(prefix)
    first = int(network.network_address)
    return first, first + (network.num_addresses // step - 1) * step
