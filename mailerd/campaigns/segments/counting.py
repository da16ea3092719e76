"""How many contacts fit: at once, about; and exactly, in steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from mailerd.campaigns.segments.compiling import Scope, condition_sql
from mailerd.campaigns.segments.conditions import Condition
from mailerd.campaigns.segments.parameters import Compiled, Parameters
from mailerd.campaigns.segments.sizing import Estimate, Sums, estimate, exactly
from mailerd.campaigns.segments.sources import Source, source_sql, sources
from mailerd.db import Connection, Pool

BUDGET = 0.6  # seconds of an estimate, without what statements already begun take
LONGEST = 0.4  # of one of its statements
SOURCE = 200_000  # rows that a source may have, to be read to its end
FOUND = 5_000  # contacts of it that are looked at one by one: all, or drawn at random
SMALL = 4_000  # contacts of a tenant, to be looked at one by one
STRETCH = 32  # contacts in one, as far as they can be foreseen
PILOT = 32  # stretches
GROWTH = 4
STEPS = (2_000, 200_000)  # candidates of a step of counting: first and least, most
STEP_TIME = 1.0  # seconds that one should take
MAX_ID = (1 << 63) - 1

MANY_ROWS = """
    SET LOCAL enable_seqscan = on; SET LOCAL enable_mergejoin = on; SET LOCAL jit = off;
    SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL work_mem = '32MB'
"""
"""For statements over ranges: pools are opened for other statements than these.

The memory is what sets of contacts may take as the planner sees it, and it may take far too many for likely; what would
not fit would not be hashed, but gone through for each contact.
"""

ENDS = """
    SELECT (SELECT id FROM contacts WHERE tenant = $1 ORDER BY id LIMIT 1) AS first,
           (SELECT id FROM contacts WHERE tenant = $1 ORDER BY id DESC LIMIT 1) AS last
"""
PLANNED = "EXPLAIN (FORMAT JSON) SELECT FROM contacts WHERE tenant = $1"
FIRST = """
    SELECT count(*) AS seen, count(*) FILTER (WHERE {fits}) AS hits
      FROM (SELECT * FROM contacts WHERE tenant = {tenant} ORDER BY id LIMIT {limit}) AS {c}
"""
FIND = """
    WITH found AS MATERIALIZED (SELECT u.id FROM ({source}) AS u (id) LIMIT {limit}),
         once AS MATERIALIZED (SELECT DISTINCT id FROM found)
    SELECT (SELECT count(*) FROM found) AS rows, (SELECT count(*) FROM once) AS contacts,
           ARRAY (SELECT id FROM once ORDER BY random() LIMIT {some}) AS ids
"""
OF_FOUND = """
    SELECT count(*) AS hits FROM contacts AS {c} WHERE {c}.tenant = {tenant} AND {c}.id = ANY ({ids}) AND ({fits})
"""
SAMPLE = """
    SELECT count(*) AS stretches, sum(part.seen)::bigint AS seen, sum(part.hits)::bigint AS hits,
           sum(part.hits * part.hits)::bigint AS squares
      FROM (SELECT {first} + floor((n + random()) * {stratum})::bigint AS start
              FROM generate_series(0, {stretches} - 1) AS n OFFSET 0) AS drawn
     CROSS JOIN LATERAL (
           SELECT count(*) AS seen, count(*) FILTER (WHERE {fits}) AS hits FROM contacts AS {c}
            WHERE {c}.tenant = {tenant} AND {c}.id >= drawn.start AND {c}.id < drawn.start + {width}) AS part
"""
COUNT = """
    SELECT count(*) FROM contacts AS {c}
     WHERE {c}.tenant = {tenant} AND {c}.id > {after} AND {c}.id <= {end} AND ({fits})
"""
PEOPLE = """
    SELECT {c}.id, {c}.email, {c}.first_name, {c}.last_name, {c}.created_at FROM contacts AS {c}
     WHERE {c}.tenant = {tenant} AND {c}.id > {after} AND {c}.id <= {end} AND ({fits}) {among}
     ORDER BY {c}.id LIMIT {limit}
"""
# The end of a range that has at most so many subscriptions: of each list an equal share.
LISTS_END = """
    SELECT coalesce(min(part.nth), max(part.last)) FROM unnest($1::bigint[]) AS l (id)
     CROSS JOIN LATERAL (SELECT
        (SELECT m.contact_id FROM list_contacts AS m WHERE m.list_id = l.id AND m.contact_id > $2
          ORDER BY m.contact_id OFFSET $3 LIMIT 1) AS nth,
        (SELECT m.contact_id FROM list_contacts AS m WHERE m.list_id = l.id AND m.contact_id > $2
          ORDER BY m.contact_id DESC LIMIT 1) AS last) AS part
"""
CONTACTS_END = """
    SELECT coalesce(
        (SELECT id FROM contacts WHERE tenant = $1 AND id > $2 ORDER BY id OFFSET $3 LIMIT 1),
        (SELECT id FROM contacts WHERE tenant = $1 AND id > $2 ORDER BY id DESC LIMIT 1))
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Contacts of a tenant that something is asked of.

    `fits(scope, after, end)` is SQL that is true of them, as long as their ids are in (after, end] (None: any id).
    They are all in each of `sources`. `lists`: they are all on these, and found there range by range.
    """

    tenant: str
    now: datetime
    fits: Callable[[Scope, int | None, int | None], str]
    sources: Sequence[Source] = ()
    lists: tuple[int, ...] = ()

    def scope(self) -> Scope:
        return Scope(alias="c", tenant=self.tenant, now=self.now, parameters=Parameters())


def of_condition(tenant: str, condition: Condition, now: datetime) -> Wanted:
    """Those who fit a condition without `InSegment` leaves."""

    def fits(scope: Scope, after: int | None, end: int | None) -> str:
        return condition_sql(condition, scope.within(after, end))

    return Wanted(tenant, now, fits, sources(condition))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far counting is: `counted` with ids up to `after`, `part` of 1 is done. `after` None: that is all."""

    counted: int
    after: int | None
    part: float


@dataclass(frozen=True, slots=True)
class _Found:
    """How many contacts a source has, and the ids of all of them or of some, drawn at random."""

    contacts: int
    ids: list[int]

    @property
    def is_all(self) -> bool:
        return len(self.ids) == self.contacts


class CountStore:
    """Counts contacts, and pages through them. Nothing is remembered between two calls."""

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock

    async def estimate(self, wanted: Wanted) -> Estimate:
        """About how many, in less than a second however many contacts there are."""
        deadline = self._clock() + BUDGET
        for source in wanted.sources:
            found = await self._found(wanted, source)
            if found is not None and (told := await self._of_found(wanted, found)) is not None:
                return told
        small = await self._planned(wanted.tenant) <= 10 * SMALL  # it may be far too much
        if small and (few := await self._first(wanted, SMALL)) is not None:
            return few
        ends = await self._pool.fetchrow(ENDS, wanted.tenant)
        if ends is None or ends["first"] is None:
            return exactly(0, 0)
        return await self._sampled(wanted, ends["first"], ends["last"], deadline)

    async def _found(self, wanted: Wanted, source: Source) -> "_Found | None":
        """What a source has, if it is not very much."""
        scope = wanted.scope()
        sql = FIND.format(
            source=source_sql(source, scope),
            limit=scope.parameters.add(SOURCE + 1, "bigint"),
            some=scope.parameters.add(FOUND, "bigint"),
        )
        row = await self._short(scope.parameters.compiled(sql))
        return None if row is None or row["rows"] > SOURCE else _Found(row["contacts"], row["ids"])

    async def _of_found(self, wanted: Wanted, found: "_Found") -> Estimate | None:
        scope = wanted.scope()
        sql = OF_FOUND.format(
            c=scope.alias,
            tenant=scope.text(wanted.tenant),
            ids=scope.parameters.add(found.ids, "bigint[]"),
            fits=wanted.fits(scope, None, None),
        )
        row = await self._short(scope.parameters.compiled(sql))
        if row is None:
            return None
        hits, drawn = row["hits"], len(found.ids)
        if found.is_all:
            return exactly(hits, drawn)
        return estimate(Sums(drawn, drawn, hits, hits), width=1, span=found.contacts, once=True)

    async def _first(self, wanted: Wanted, limit: int) -> Estimate | None:
        """All of them, if the tenant has no more than so many contacts and they are looked at quickly."""
        scope = wanted.scope()
        sql = FIRST.format(
            c=scope.alias,
            fits=wanted.fits(scope, None, None),
            tenant=scope.text(wanted.tenant),
            limit=scope.parameters.add(limit + 1, "bigint"),
        )
        row = await self._short(scope.parameters.compiled(sql))
        return None if row is None or row["seen"] > limit else exactly(row["hits"], row["seen"])

    async def _planned(self, tenant: str) -> int:
        """How many contacts the planner takes a tenant to have: good for sizes of things, not for figures."""
        plan = await self._pool.fetchval(PLANNED, tenant)
        return max(1, int(plan[0]["Plan"]["Plan Rows"]))

    async def _sampled(self, wanted: Wanted, first: int, last: int, deadline: float) -> Estimate:
        """Draw more and more stretches until the time is up."""
        span = last - first + 1
        width = min(span, max(STRETCH, STRETCH * span // await self._planned(wanted.tenant)))
        stretches = min(PILOT, span // width)
        sums = Sums()
        while True:
            begun = self._clock()
            drawn = await self._draw(wanted, first, span, width, stretches)
            now = self._clock()
            if drawn is not None:
                if not sums.stretches and now - begun < BUDGET / 4:  # the pilot: were its stretches of a good size?
                    better = _width(drawn, width, span)
                    if better != width:
                        width, stretches = better, min(PILOT, span // better)
                        continue
                sums += drawn
            elif width > 1:  # too much even for that: fewer contacts
                width, stretches, sums = max(1, width // 8), PILOT // 4, Sums()
            each = (now - begun) / stretches
            if (
                drawn is not None
                and span // width * each < deadline - now
                and (every := await self._first(wanted, span)) is not None
            ):
                return every
            stretches = min(stretches * GROWTH, int(0.8 * (deadline - now) / each), span // width)
            if stretches < 1 or now > deadline:
                break
        if not sums.stretches:
            return Estimate(0, 0, await self._planned(wanted.tenant), "sampled", 0)
        return estimate(sums, width=width, span=span)

    async def _draw(self, wanted: Wanted, first: int, span: int, width: int, stretches: int) -> Sums | None:
        scope = wanted.scope()
        add = scope.parameters.add
        sql = SAMPLE.format(
            c=scope.alias,
            tenant=scope.text(wanted.tenant),
            first=add(first, "bigint"),
            stratum=add((span - width + 1) / stretches, "float8"),
            stretches=add(stretches, "int"),
            width=add(width, "bigint"),
            fits=wanted.fits(scope, None, None),
        )
        row = await self._short(scope.parameters.compiled(sql))
        return None if row is None else Sums(*row)

    async def _short(self, statement: Compiled) -> Any:
        """The only row of a statement that must not take long; None: it would have."""
        async with self._pool.acquire() as connection:
            try:
                async with connection.transaction(readonly=True):
                    await connection.execute(f"SET LOCAL statement_timeout = {int(LONGEST * 1000)}")
                    return await connection.fetchrow(statement.sql, *statement.parameters)
            except asyncpg.QueryCanceledError:
                return None

    async def count(self, wanted: Wanted, *, after: int = 0, counted: int = 0, seconds: float) -> Progress:
        """Count on from `after` for about so long; what was `counted` up to there is added."""
        until = self._clock() + seconds
        least, most = STEPS
        size = least
        while (end := await self.next_end(wanted, after, size)) is not None:
            begun = self._clock()
            counted += await self._counted(wanted, after, end)
            after, now = end, self._clock()
            if now > until:
                return Progress(counted, after, await self._part(wanted.tenant, after))
            size = min(most, max(least, int(size * min(4.0, STEP_TIME / max(0.001, now - begun)))))
        return Progress(counted, None, 1.0)

    async def _counted(self, wanted: Wanted, after: int, end: int) -> int:
        scope = wanted.scope()
        sql = COUNT.format(
            c=scope.alias,
            tenant=scope.text(wanted.tenant),
            after=scope.parameters.add(after, "bigint"),
            end=scope.parameters.add(end, "bigint"),
            fits=wanted.fits(scope, after, end),
        )
        async with self._pool.acquire() as connection, connection.transaction(readonly=True):
            await connection.execute(MANY_ROWS)
            return int(await connection.fetchval(sql, *scope.parameters.values))

    async def _part(self, tenant: str, after: int) -> float:
        ends = await self._pool.fetchrow(ENDS, tenant)
        if ends is None or ends["first"] is None:
            return 1.0
        part: float = (after - ends["first"] + 1) / (ends["last"] - ends["first"] + 1)
        return min(1.0, max(0.0, part))

    async def next_end(self, wanted: Wanted, after: int, size: int, connection: Connection | None = None) -> int | None:
        """The id that ends the next range after `after`, of at most `size` candidates; None: nobody is behind it.

        Candidates are subscriptions of `wanted.lists`, or without lists all contacts of the tenant.
        """
        source = connection or self._pool
        if wanted.lists:
            share = max(1, size // len(wanted.lists))
            end = await source.fetchval(LISTS_END, list(wanted.lists), after, share - 1)
        else:
            end = await source.fetchval(CONTACTS_END, wanted.tenant, after, size - 1)
        return None if end is None else int(end)

    async def page(self, wanted: Wanted, *, after: int, limit: int, seconds: float) -> "Page":
        """Up to `limit` of them in the order of their ids, looking for about so long: fewer may not be the last."""
        until = self._clock() + seconds
        rows: list[Person] = []
        for source in wanted.sources:
            if (found := await self._found(wanted, source)) is not None and found.is_all:
                rows = await self._people(wanted, after, MAX_ID, limit + 1, found.ids)
                more = len(rows) > limit
                return Page(rows[:limit], rows[limit - 1].id if more else None)
        size = max(4 * limit, 500)
        while len(rows) <= limit and (end := await self.next_end(wanted, after, size)) is not None:
            rows += await self._people(wanted, after, end, limit + 1 - len(rows))
            after = end
            if self._clock() > until and len(rows) <= limit:
                return Page(rows, after)
            size = min(20_000, 2 * size)
        more = len(rows) > limit
        return Page(rows[:limit], rows[limit - 1].id if more else None)

    async def _people(
        self, wanted: Wanted, after: int, end: int, limit: int, ids: list[int] | None = None
    ) -> "list[Person]":
        scope = wanted.scope()
        add = scope.parameters.add
        among = "" if ids is None else f"AND {scope.alias}.id = ANY ({add(ids, 'bigint[]')})"
        span = (after, end) if ids is None else (None, None)  # few, in a very long one
        sql = PEOPLE.format(
            c=scope.alias,
            tenant=scope.text(wanted.tenant),
            after=add(after, "bigint"),
            end=add(end, "bigint"),
            fits=wanted.fits(scope, *span),
            among=among,
            limit=add(limit, "bigint"),
        )
        async with self._pool.acquire() as connection, connection.transaction(readonly=True):
            await connection.execute(MANY_ROWS)
            return [Person(**row) for row in await connection.fetch(sql, *scope.parameters.values)]


@dataclass(frozen=True, slots=True)
class Person:
    """What of a contact is shown here."""

    id: int
    email: str
    first_name: str
    last_name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Contacts, and behind which id to go on; None: that is all."""

    people: list[Person]
    after: int | None


def _width(drawn: Sums, width: int, span: int) -> int:
    """A width that has about `STRETCH` contacts, or the same when it nearly has."""
    mean = drawn.seen / drawn.stretches
    if STRETCH / 4 <= mean <= STRETCH * 4 or width == span:
        return width
    return min(span, max(1, int(width * STRETCH / max(mean, STRETCH / 1000))))
