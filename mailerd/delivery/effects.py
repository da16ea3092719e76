"""Brakes: named, with a reason and an end, listed and cancellable.

A rule for replies makes an effect, or an operator does. It is a row, so that every worker of every node obeys it and
everybody can see it; workers read all of them again when they are told that something changed, and every few seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Literal

from mailerd.config.shaping import MAX_EFFECT
from mailerd.config.values import Rate
from mailerd.db import Pool

Kind = Literal["pause", "slow", "connections", "avoid"]

CHANNEL = "mailerd_traffic"  # what is notified when effects or the states of sources change
COLUMNS = "id, kind, source, provider, site, tenant, campaign, value, reason, rule, since, until"

ACTIVE = f"SELECT {COLUMNS} FROM effects WHERE until > $1 ORDER BY until, id"
# One at a time, because two workers that hear the same at the same time would both find no brake.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('mailerd effects', 0))"
# The same brake again lengthens the one that holds, instead of standing beside it.
ADD = f"""
    WITH longer AS (
        UPDATE effects SET until = GREATEST(until, $10), reason = $8
         WHERE kind = $1 AND source = $2 AND provider = $3 AND site = $4 AND tenant = $5 AND campaign = $6
           AND value = $7 AND rule = $9 AND until > $11
     RETURNING {COLUMNS}
    ), added AS (
        INSERT INTO effects (kind, source, provider, site, tenant, campaign, value, reason, rule, since, until)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $11, $10 WHERE NOT EXISTS (SELECT FROM longer)
     RETURNING {COLUMNS}
    )
    SELECT * FROM longer UNION ALL SELECT * FROM added
"""
CANCEL = f"UPDATE effects SET until = $2 WHERE id = $1 AND until > $2 RETURNING {COLUMNS}"
FORGET = "DELETE FROM effects WHERE until < $1"
TELL = "SELECT pg_notify($1, $2)"
AUDIT = "INSERT INTO audit (actor, action, data) VALUES ($1, $2, $3)"
MOST_NARROW = 500  # effects for single sites: a stranger may have thousands of those, and answer what he likes
KEEP = timedelta(days=7)  # effects that are over, for those who wonder what happened


@dataclass(frozen=True, slots=True)
class Effect:
    """A brake on what fits `source`, `provider`, `site`, `tenant` and `campaign`; "" fits any.

    `pause`: nothing leaves; `slow`: `value` messages a second at most; `connections`: `value` of them at most; `avoid`:
    the source is not chosen as long as another one of the pool is left. `rule` is `file:line`, or who made it.
    """

    id: int
    kind: str
    source: str
    provider: str
    site: str
    tenant: str
    campaign: str
    value: float
    reason: str
    rule: str
    since: datetime
    until: datetime

    def fits_path(self, source: str, provider: str, site: str) -> bool:
        """Does it hold for all mail of this path?"""
        return (
            not self.tenant
            and not self.campaign
            and self.source in ("", source)
            and self.provider in ("", provider)
            and self.site in ("", site)
        )

    def fits_mail(self, source: str, provider: str, site: str, tenant: str, campaign: str) -> bool:
        """Does it hold for mail of this tenant and campaign only, on this path?"""
        return (
            bool(self.tenant or self.campaign)
            and self.tenant in ("", tenant)
            and self.campaign in ("", campaign)
            and self.source in ("", source)
            and self.provider in ("", provider)
            and self.site in ("", site)
        )

    def __str__(self) -> str:
        what = {
            "pause": "paused",
            "slow": f"slowed to {_rate(self.value)}",
            "connections": f"{self.value:.0f} connections at most",
            "avoid": "avoided",
        }[self.kind]
        return f"{what}: {self.reason}"


def _rate(value: float) -> str:
    """Messages a second, in the unit that gives a number above one."""
    return f"{value * 60:.3g} messages a minute" if value * 60 >= 1 else f"{value * 3600:.3g} messages an hour"


def value_of(kind: Kind, *, rate: Rate | None, connections: int | None) -> float:
    """The value of a brake that somebody asks for. Raises ValueError for a number that belongs to another kind."""
    if rate is not None and kind != "slow":
        raise ValueError(f"a rate is for slow, not for {kind}")
    if connections is not None and kind != "connections":
        raise ValueError(f"a number of connections is for connections, not for {kind}")
    return rate.count / rate.period if rate is not None else float(connections or 0)


def by_operator(
    kind: Kind,
    *,
    reason: str,
    actor: str,
    now: datetime,
    until: datetime,
    source: str = "",
    provider: str = "",
    site: str = "",
    tenant: str = "",
    campaign: str = "",
    value: float = 0.0,
) -> Effect:
    """A brake that somebody asks for. Raises ValueError when it would brake nothing, or not as it says."""
    if until <= now:
        raise ValueError("its end lies in the past")
    if until - now > timedelta(seconds=MAX_EFFECT):
        raise ValueError("it holds for 7d at most: a brake is no substitute for a limit")
    if not reason.strip():
        raise ValueError("it needs a reason, for those who wonder")
    if (tenant or campaign) and kind != "pause":
        raise ValueError("a tenant or campaign can only be paused; its rate is a limit in the shaping file")
    if kind == "avoid" and not source:
        raise ValueError("it needs the source that is to be avoided")
    if kind == "slow" and not value > 0:
        raise ValueError("it needs a rate above zero")
    if kind == "connections" and not value >= 1:
        raise ValueError("it needs a number of connections, 1 or more")
    if kind in ("pause", "avoid"):
        value = 0.0
    return Effect(0, kind, source, provider, site, tenant, campaign, value, reason.strip(), actor, now, until)


class EffectStore:
    """The table of effects."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def active(self, now: datetime) -> list[Effect]:
        """Those that hold, the one that ends first first."""
        return [Effect(**row) for row in await self._pool.fetch(ACTIVE, now)]

    async def add(self, effect: Effect, *, actor: str | None = None) -> Effect:
        """Make it hold everywhere (its id is given by the table), or longer, if it holds already."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK)
            row = await connection.fetchrow(
                ADD,
                effect.kind,
                effect.source,
                effect.provider,
                effect.site,
                effect.tenant,
                effect.campaign,
                effect.value,
                effect.reason,
                effect.rule,
                effect.until,
                effect.since,
            )
            assert row is not None
            if actor is not None:
                await connection.execute(AUDIT, actor, "effect", {"id": row["id"], "kind": effect.kind})
            await connection.execute(TELL, CHANNEL, "effects")
        return Effect(**row)

    async def cancel(self, id_: int, *, actor: str, now: datetime) -> Effect | None:
        """End it now; None when none of that id holds."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(CANCEL, id_, now)
            if row is None:
                return None
            await connection.execute(AUDIT, actor, "effect.cancel", {"id": id_})
            await connection.execute(TELL, CHANNEL, "effects")
        return Effect(**row)

    async def forget(self, now: datetime) -> None:
        """Delete those that ended long ago."""
        await self._pool.execute(FORGET, now - KEEP)


class Effects:
    """What holds now, as this worker knows it."""

    def __init__(self, store: EffectStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._active: list[Effect] = []
        self._of_paths: dict[tuple[str, str, str], list[Effect]] = {}  # by source, provider and site, "" for any
        self._of_mail: list[Effect] = []
        self._narrow = 0
        self.generation = 0  # changes with every change: who keeps what fits asks again

    async def refresh(self) -> list[Effect]:
        """Read them again; those that end earlier than they were to, so that mail may leave that could not."""
        before = {effect.id: effect for effect in self._active}
        self._set(await self._store.active(self._clock()))
        until = {effect.id: effect.until for effect in self._active}
        now = self._clock()
        return [effect for id_, effect in before.items() if effect.until > max(now, until.get(id_, now))]

    async def add(self, effect: Effect) -> Effect:
        """Let it hold here at once, and everywhere soon."""
        added = await self._store.add(effect)
        self._set([*(other for other in self._active if other.id != added.id), added])
        return added

    async def forget(self) -> None:
        await self._store.forget(self._clock())

    @property
    def active(self) -> Sequence[Effect]:
        """All that hold, the one that ends first first."""
        return self._active

    def of_path(self, source: str, provider: str, site: str) -> list[Effect]:
        """Those that hold for all mail of the path, the one that ends first first; however many others there are."""
        found = [
            effect
            for key in product({source, ""}, {provider, ""}, {site, ""})
            for effect in self._of_paths.get(key, ())
        ]
        return sorted(found, key=lambda effect: (effect.until, effect.id)) if len(found) > 1 else found

    def of_mail(self, source: str, provider: str, site: str, tenant: str, campaign: str) -> list[Effect]:
        now = self._clock()
        return [
            effect
            for effect in self._of_mail
            if effect.until > now and effect.fits_mail(source, provider, site, tenant, campaign)
        ]

    @property
    def any_of_mail(self) -> bool:
        """Is there an effect for a tenant or campaign at all?"""
        return bool(self._of_mail)

    @property
    def crowded(self) -> bool:
        """Are there so many for single sites that strangers' replies may make no more of them?"""
        return self._narrow >= MOST_NARROW

    def _set(self, effects: Sequence[Effect]) -> None:
        if list(effects) != self._active:
            self._active = list(effects)
            self.generation += 1
            self._of_mail = [effect for effect in effects if effect.tenant or effect.campaign]
            self._of_paths = {}
            for effect in effects:
                if not effect.tenant and not effect.campaign:
                    self._of_paths.setdefault((effect.source, effect.provider, effect.site), []).append(effect)
            self._narrow = sum(bool(effect.site) and not effect.provider for effect in effects)
