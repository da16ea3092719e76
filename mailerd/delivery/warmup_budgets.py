"""The budgets of warm-up, shared by all workers of all nodes: drawn from the database in blocks before they are spent.

What was drawn counts as used, so a crash errs to the safe side; an orderly stop gives the rest back. Beside that the
books of what became of the mail, by source, provider and day, from which the states are judged once a day.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from itertools import islice

import asyncpg
import structlog

from mailerd.config import Config, WarmUpOf, WarmUpPlan
from mailerd.delivery import warmup
from mailerd.delivery.warmup import DayFacts, Outcome, State, Wait

log = structlog.get_logger()

Key = tuple[str, str]  # source, provider
Decide = Callable[[Key, State, Sequence[DayFacts]], State]

DRAWING = timedelta(seconds=0.2)  # in which a block has been drawn, as a rule
BLOCKS = 50  # of a window's budget: what a dead worker had drawn is lost until the next window
FLUSH_EVERY = 5.0  # seconds
JUDGE_AFTER = timedelta(minutes=1)  # of a new day: by then all workers have written what they know of the last one
AGAIN_AFTER = 1.0  # seconds, when the database could not be asked
KEEP_DAYS = 60  # of the books
MAX_PURSES = 20_000  # of one worker; mail to that many sites of strangers must not fill its memory
FEW_PURSES = 1_000  # of a source, however many there are
LOOKS = 2  # at old purses for every new one, so that those in use do not hide the others
KEEP_WINDOWS = timedelta(days=2)
OUTCOMES: tuple[Outcome, ...] = ("delivered", "deferred", "bounced", "complained")

# The statements take columns; all of them touch rows in the order of the key, so that they never wait for one another
# in a circle.
BEGIN = """
    INSERT INTO warmups (source, provider, plan, stage, stage_since)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::date[])
        AS new (source, provider, plan, stage, stage_since) ORDER BY source, provider
    ON CONFLICT DO NOTHING
"""
OPEN = """
    INSERT INTO warmup_windows (source, provider, window_start, drawn)
    SELECT source, provider, window_start, 0 FROM unnest($1::text[], $2::text[], $3::timestamptz[])
        AS ask (source, provider, window_start) ORDER BY source, provider
    ON CONFLICT DO NOTHING
"""
# The rows are locked before they are read, so `old.drawn` is what the last one who drew has left.
DRAW = """
    WITH old AS MATERIALIZED (
        SELECT source, provider, window_start, w.drawn, GREATEST(0, LEAST(wanted, budget - w.drawn)) AS granted, budget
          FROM warmup_windows AS w
          JOIN unnest($1::text[], $2::text[], $3::timestamptz[], $4::int[], $5::int[])
               AS ask (source, provider, window_start, wanted, budget) USING (source, provider, window_start)
         ORDER BY source, provider FOR UPDATE OF w
    )
    UPDATE warmup_windows AS w SET drawn = old.drawn + granted FROM old
     WHERE w.source = old.source AND w.provider = old.provider AND w.window_start = old.window_start
 RETURNING w.source, w.provider, granted, GREATEST(0, budget - w.drawn) AS rest
"""
PUT_BACK = """
    WITH old AS MATERIALIZED (
        SELECT source, provider, window_start, GREATEST(0, w.drawn - n) AS drawn FROM warmup_windows AS w
          JOIN unnest($1::text[], $2::text[], $3::timestamptz[], $4::int[]) AS ask (source, provider, window_start, n)
               USING (source, provider, window_start)
         ORDER BY source, provider FOR UPDATE OF w
    )
    UPDATE warmup_windows AS w SET drawn = old.drawn FROM old
     WHERE w.source = old.source AND w.provider = old.provider AND w.window_start = old.window_start
"""
ADD = """
    INSERT INTO traffic_days AS t (day, source, provider, delivered, deferred, bounced, complained)
    SELECT * FROM unnest($1::date[], $2::text[], $3::text[], $4::int[], $5::int[], $6::int[], $7::int[])
        AS new (day, source, provider, delivered, deferred, bounced, complained) ORDER BY day, source, provider
    ON CONFLICT (day, source, provider) DO UPDATE
       SET delivered = t.delivered + EXCLUDED.delivered, deferred = t.deferred + EXCLUDED.deferred,
           bounced = t.bounced + EXCLUDED.bounced, complained = t.complained + EXCLUDED.complained
"""
ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('mailerd.warmups', 0))"
WHOLE_TABLES = "SET LOCAL enable_seqscan = on"  # once a day, all of them: better than row by row
STATES = """
    SELECT source, provider, plan, stage, stage_since, last_day, verdict FROM warmups WHERE source = ANY ($1::text[])
"""
DAYS = """
    SELECT t.source, t.provider, t.day, t.delivered, t.deferred, t.bounced, t.complained
      FROM traffic_days AS t JOIN warmups AS w USING (source, provider)
     WHERE t.source = ANY ($1::text[]) AND t.day BETWEEN $2::date - $3::int AND $2::date - 1
       AND t.day > LEAST(COALESCE(w.last_day, w.stage_since - 1), $2::date - 2)
     ORDER BY t.day
"""
CHANGE = """
    UPDATE warmups AS w
       SET plan = new.plan, stage = new.stage, stage_since = new.stage_since, last_day = new.last_day,
           verdict = new.verdict
      FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::date[], $6::date[], $7::text[])
        AS new (source, provider, plan, stage, stage_since, last_day, verdict)
     WHERE w.source = new.source AND w.provider = new.provider
"""
# A state at the first stage that nothing happens to says no more than no state at all.
FORGET = (
    "DELETE FROM warmups WHERE stage = 0 AND GREATEST(stage_since, last_day) < $1::date - 2 * $2::int",
    "DELETE FROM warmup_windows WHERE window_start < $1",
    "DELETE FROM traffic_days WHERE day < $1",
)
OVERVIEW = """
    SELECT w.source, w.provider, w.plan, w.stage, w.stage_since, w.last_day, w.verdict,
           COALESCE(of_hour.drawn, 0) AS drawn_hour, COALESCE(of_day.drawn, 0) AS drawn_day,
           COALESCE(t.delivered, 0) AS delivered, COALESCE(t.deferred, 0) AS deferred,
           COALESCE(t.bounced, 0) AS bounced, COALESCE(t.complained, 0) AS complained
      FROM warmups AS w
      LEFT JOIN warmup_windows AS of_hour ON of_hour.source = w.source AND of_hour.provider = w.provider
                                         AND of_hour.window_start = $3
      LEFT JOIN warmup_windows AS of_day ON of_day.source = w.source AND of_day.provider = w.provider
                                        AND of_day.window_start = $4
      LEFT JOIN traffic_days AS t ON t.source = w.source AND t.provider = w.provider AND t.day = $5
     WHERE w.source = ANY ($1::text[]) AND ($2::text IS NULL OR w.provider = $2)
     ORDER BY COALESCE(t.delivered, 0) DESC, w.stage DESC, w.source, w.provider LIMIT $6
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """Up to `wanted` recipients of a window's `budget`."""

    source: str
    provider: str
    window_start: datetime
    wanted: int
    budget: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What an `Ask` got, and what nobody has drawn yet."""

    source: str
    provider: str
    granted: int
    rest: int


@dataclass(frozen=True, slots=True)
class Progress:
    """One source at one provider: its state, what was drawn of the windows under way, and today's books."""

    source: str
    provider: str
    state: State
    drawn_hour: int
    drawn_day: int
    today: DayFacts


@dataclass(slots=True)
class Purse:
    """What this worker may still spend of a budget, in the window under way."""

    state: State
    limit: int | None  # of a window; None: warm
    start: datetime
    end: datetime
    have: int = 0  # drawn, not spent
    rest: int = 0  # nobody had drawn when we last asked
    out: int = 0  # spent, and neither noted nor given back so far
    stale: int = 0  # of those, what was spent in windows that are over

    @property
    def block(self) -> int:
        return max(1, (self.limit or 0) // BLOCKS)

    def is_idle(self, now: datetime) -> bool:
        """Does it hold no more than what the database knows?"""
        return not self.out and (not self.have or now >= self.end)


@dataclass(slots=True)
class Warming:
    """A source that has a warm-up."""

    name: str
    settings: WarmUpOf
    plan: WarmUpPlan
    started: date | None
    purses: dict[str, Purse] = field(default_factory=dict)

    def adopted(self, state: State, today: date) -> State:
        return warmup.adopt(state, self.settings.plan, self.plan, self.started, today)


class WarmUps:
    """What sources that are warming up may send, for one worker.

    `provider` is a name of the caller's: the provider, or the site of a host that belongs to none, so that each small
    site has a budget of its own. States that say nothing are forgotten, see `FORGET`.
    """

    def __init__(self, config: Config, store: "WarmUpStore", clock: Callable[[], datetime]) -> None:
        """`clock` gives the time in UTC."""
        self._store = store
        self._clock = clock
        self._states: dict[Key, State] | None = None  # as last read
        self._wanted: dict[Key, int] = {}
        self._notes: dict[tuple[date, str, str], list[int]] = {}
        self._wake = asyncio.Event()
        self._judged: date | None = None
        self._settings = config.warmup
        self._sources = _warming(config)

    def reconfigure(self, config: Config) -> None:
        """Follow a new configuration; a changed plan goes on at the stage nearest to the one before."""
        before, self._sources, self._settings = self._sources, _warming(config), config.warmup
        for name, source in self._sources.items():
            if name in before:
                source.purses = before[name].purses
        self._judged = None  # sources that are new here have states that were not read
        self._adopt()

    def take(self, source: str, provider: str, n: int) -> Wait | None:
        """None: `n` recipients may be mailed now, and count as used. Else nothing was taken, and until when it is so.

        All or nothing. More than `left()` is never given, so a transaction must not be larger than that. A block that
        has to be drawn from the database first makes a wait of 0.2 s. What is taken is either noted or given back.
        """
        warming = self._sources.get(source)
        if warming is None:
            return None
        now = self._clock()
        if self._states is None:
            return Wait(now + DRAWING, f"warm-up of {source}: its state is being read")
        if warming.started is not None and now.date() < warming.started:
            return Wait(_midnight(warming.started), f"warm-up of {source} begins on {warming.started}")
        purse = self._purse(warming, provider, now)
        if purse.limit is None:
            return None
        if purse.have >= n:
            purse.have -= n
            purse.out += n
            if 2 * purse.have < purse.block and purse.rest > 0:
                self._ask((source, provider), purse.block)
            return None
        if purse.have + purse.rest < n:
            return Wait(purse.end, _used_up(warming, provider, purse))
        self._ask((source, provider), n)
        return Wait(now + DRAWING, f"warm-up of {source} at {provider}: its budget is being drawn")

    def give_back(self, source: str, provider: str, n: int) -> None:
        """`n` recipients that were taken were not mailed after all.

        What was taken in a window that is over is of no use in this one: as much is dropped as was under way when
        this window began.
        """
        purse = self._known_purse(source, provider)
        if purse is None or purse.limit is None:
            return
        self._turn(self._sources[source], purse, self._clock())
        dropped = min(n, purse.stale)
        purse.stale -= dropped
        purse.out = max(0, purse.out - n)
        purse.have += n - dropped

    def left(self, source: str, provider: str) -> float:
        """Recipients that may still be mailed in this window, as far as this worker knows; inf: a warm source."""
        warming = self._sources.get(source)
        if warming is None:
            return math.inf
        now = self._clock()
        if self._states is None or (warming.started is not None and now.date() < warming.started):
            return 0
        purse = self._purse(warming, provider, now)
        return math.inf if purse.limit is None else purse.have + purse.rest

    def budget(self, source: str, provider: str) -> tuple[str, str] | None:
        """The budget of the window under way, and what is used of it, for people; None: a warm source."""
        warming = self._sources.get(source)
        if warming is None:
            return None
        now = self._clock()
        if warming.started is not None and now.date() < warming.started:
            return f"nothing before {warming.started}", ""
        purse = self._purse(warming, provider, now)
        if purse.limit is None:
            return None
        used = purse.limit - purse.have - purse.rest
        return f"{purse.limit:,} recipients a {warming.plan.per}", f"{used:,} used"

    def overflows(self, source: str) -> bool:
        """Whether what is over goes by warm sources of the pool; else it waits for the next window."""
        warming = self._sources.get(source)
        return warming is not None and warming.settings.overflow == "sources"

    def note(self, source: str, provider: str, outcome: Outcome, n: int) -> None:
        """Write down what became of `n` recipients, of any source; it reaches the database within seconds."""
        counts = self._notes.setdefault((self._clock().date(), source, provider), [0, 0, 0, 0])
        counts[OUTCOMES.index(outcome)] += n
        if outcome != "complained" and (purse := self._known_purse(source, provider)):
            purse.out = max(0, purse.out - n)

    def spent(self, source: str, provider: str, n: int) -> None:
        """`n` recipients were tried and deferred for reasons of their own: used up, and no sign of anything."""
        if purse := self._known_purse(source, provider):
            purse.out = max(0, purse.out - n)

    async def look(self, provider: str) -> None:
        """Read how far all workers are at a provider, for who only looks: what `left` and `take` say is of now then."""
        now = self._clock()
        states: dict[Key, State] = {}
        drawn: dict[str, int] = {}
        if self._sources:
            for row in await self._store.overview(tuple(self._sources), provider, now, len(self._sources)):
                source = self._sources[row.source]
                states[row.source, provider] = source.adopted(row.state, now.date())
                drawn[row.source] = row.drawn_hour if source.plan.per == "hour" else row.drawn_day
        self._states = (self._states or {}) | states
        for source in self._sources.values():
            source.purses.pop(provider, None)
            purse = self._purse(source, provider, now)
            purse.rest = max(0, purse.rest - drawn.get(source.name, 0))

    async def run(self) -> None:
        """Draw what is asked for, write the books and judge each day, until cancelled. `stop` comes after that."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_drawing(), name="warm-up budgets")
            tasks.create_task(self._keep_books(), name="warm-up books")

    async def stop(self) -> None:
        """Write the books, and give back what was drawn and not spent."""
        await self._guarded(self.flush)
        now = self._clock()
        rests = [
            Ask(source.name, provider, purse.start, purse.have, 0)
            for source in self._sources.values()
            for provider, purse in source.purses.items()
            if purse.have and purse.start <= now < purse.end
        ]
        for source in self._sources.values():
            source.purses.clear()
        if rests:
            await self._guarded(partial(self._store.put_back, rests))

    async def draw(self) -> None:
        """Draw what `take` asked for since the last time; `run` does so."""
        wanted, self._wanted = self._wanted, {}
        now = self._clock()
        asks: list[Ask] = []
        states: dict[Key, State] = {}
        for (source, provider), n in sorted(wanted.items()):
            if (purse := self._known_purse(source, provider)) is None or purse.limit is None or purse.have >= n:
                continue
            self._turn(self._sources[source], purse, now)
            asks.append(Ask(source, provider, purse.start, max(n - purse.have, purse.block), purse.limit))
            if (source, provider) not in (self._states or {}):
                states[source, provider] = purse.state
        if states:
            await self._store.begin(states)
            self._states = states | (self._states or {})
        if not asks:
            return
        asked = {(ask.source, ask.provider): ask for ask in asks}
        for grant in await self._store.draw(asks):
            purse, ask = self._known_purse(grant.source, grant.provider), asked[grant.source, grant.provider]
            if purse is not None and purse.limit is not None and purse.start == ask.window_start:
                purse.have += grant.granted
                purse.rest = max(0, grant.rest + purse.limit - ask.budget)  # the stage may have changed meanwhile

    async def flush(self) -> None:
        """Write the books so far; what could not be written is written with the next."""
        notes, self._notes = self._notes, {}
        if not notes:
            return
        try:
            await self._store.add(
                [((source, provider), DayFacts(day, *counts)) for (day, source, provider), counts in notes.items()]
            )
        except BaseException:
            for key, counts in notes.items():
                newer = self._notes.setdefault(key, [0, 0, 0, 0])
                newer[:] = [old + new for old, new in zip(counts, newer, strict=True)]
            raise

    async def judge(self, today: date) -> None:
        """Judge the days before `today` that were not, and read all states.

        Every worker of all nodes does it; the first one finds something to judge, the others wait for it to be done.
        """
        sources, settings = self._sources, self._settings
        idle = math.ceil(settings.idle / warmup.DAY)

        def decide(key: Key, state: State, days: Sequence[DayFacts]) -> State:
            source = sources[key[0]]
            state = source.adopted(state, today)
            day = warmup.last_sending_day(state, days)
            return warmup.judge(state, source.plan, day, settings, today)

        self._states = await self._store.judge(tuple(sources), today, idle, decide)
        self._judged = today
        self._adopt()

    async def _keep_drawing(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._guarded(self.draw)

    async def _keep_books(self) -> None:
        while True:
            await self._guarded(self.flush)
            today = (self._clock() - JUDGE_AFTER).date()
            if self._judged != today:
                await self._guarded(partial(self.judge, today))
            await asyncio.sleep(FLUSH_EVERY if self._judged else AGAIN_AFTER)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it; without the database later, as callers ask again."""
        try:
            await work()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            log.warning("warmup.postponed", reason=str(error) or type(error).__name__)
            await asyncio.sleep(AGAIN_AFTER)

    def _ask(self, key: Key, n: int) -> None:
        self._wanted[key] = max(n, self._wanted.get(key, 0))
        self._wake.set()

    def _purse(self, warming: Warming, provider: str, now: datetime) -> Purse:
        """The purse in the window of `now`; a new one when the provider is new to the source."""
        purse = warming.purses.get(provider)
        if purse is None:
            state = (self._states or {}).get((warming.name, provider))
            state = state or warmup.begin(warming.settings.plan, warming.plan, now.date())
            limit = warmup.budget(warming.plan, state.stage)
            if len(warming.purses) >= max(FEW_PURSES, MAX_PURSES // len(self._sources)):
                _make_room(warming, now)
            purse = Purse(state, limit, *warmup.window(warming.plan, now), rest=limit or 0)
            warming.purses[provider] = purse
        self._turn(warming, purse, now)
        return purse

    def _known_purse(self, source: str, provider: str) -> Purse | None:
        warming = self._sources.get(source)
        return None if warming is None else warming.purses.get(provider)

    def _turn(self, warming: Warming, purse: Purse, now: datetime) -> None:
        """Begin a new window when the last one is over."""
        if not purse.start <= now < purse.end:
            purse.start, purse.end = warmup.window(warming.plan, now)
            purse.have, purse.rest, purse.stale = 0, purse.limit or 0, purse.out

    def _adopt(self) -> None:
        """Bring the purses in line with states that were read, and with a new configuration."""
        if self._states is None:
            return
        now = self._clock()
        today = now.date()
        self._states = {
            key: self._sources[key[0]].adopted(state, today)
            for key, state in self._states.items()
            if key[0] in self._sources
        }
        for source in self._sources.values():
            source.purses = {
                provider: purse for provider, purse in source.purses.items() if purse.out or now < purse.end
            }
            for provider, purse in source.purses.items():
                state = self._states.get((source.name, provider))
                self._follow(source, purse, state or source.adopted(purse.state, today), now)

    def _follow(self, source: Warming, purse: Purse, state: State, now: datetime) -> None:
        """Change the stage, within the window: what was drawn of it is drawn."""
        drawn = (purse.limit or 0) - purse.rest
        purse.state, purse.limit = state, warmup.budget(source.plan, state.stage)
        purse.rest = max(0, (purse.limit or 0) - drawn)
        if purse.start != warmup.window(source.plan, now)[0] or purse.end != warmup.window(source.plan, now)[1]:
            purse.end = purse.start  # over: of another day, or of another kind
        self._turn(source, purse, now)


def _warming(config: Config) -> dict[str, Warming]:
    plans = warmup.plans_of(config.warmup)
    return {
        name: Warming(
            name,
            source.warmup,
            plans[source.warmup.plan],
            date.fromisoformat(source.warmup.started) if source.warmup.started else None,
        )
        for name, source in config.sources.items()
        if source.warmup is not None
    }


def _make_room(warming: Warming, now: datetime) -> None:
    """Drop idle purses, the oldest first; made again, they ask the database how much is left."""
    for provider in list(islice(warming.purses, LOOKS)):
        purse = warming.purses.pop(provider)
        if not purse.is_idle(now):
            warming.purses[provider] = purse  # the last one now


def _used_up(warming: Warming, provider: str, purse: Purse) -> str:
    stage = f"stage {purse.state.stage + 1} of {len(warming.plan.stages)}"
    budget = f"{purse.limit:,} recipients a {warming.plan.per}"
    left = purse.have + purse.rest
    words = f"of {budget} only {left:,} are left" if left else f"{budget} are used up"
    return f"warm-up of {warming.name} at {provider}: {words} ({stage})"


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


class WarmUpStore:
    """States, windows, and the books of days."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def begin(self, states: dict[Key, State]) -> None:
        """Write states of sources at providers that have none."""
        rows = [(*key, state.plan, state.stage, state.stage_since) for key, state in states.items()]
        await self._pool.execute(BEGIN, *_columns(rows))

    async def draw(self, asks: Sequence[Ask]) -> list[Grant]:
        """Take of each window's budget what is wanted, as far as it goes; never more than the budget, whoever draws."""
        await self._pool.execute(OPEN, *_columns([(ask.source, ask.provider, ask.window_start) for ask in asks]))
        rows = [(ask.source, ask.provider, ask.window_start, ask.wanted, ask.budget) for ask in asks]
        return [Grant(**row) for row in await self._pool.fetch(DRAW, *_columns(rows))]

    async def put_back(self, asks: Sequence[Ask]) -> None:
        """Give back `wanted` of what was drawn."""
        rows = [(ask.source, ask.provider, ask.window_start, ask.wanted) for ask in asks]
        await self._pool.execute(PUT_BACK, *_columns(rows))

    async def add(
        self,
        books: Sequence[tuple[Key, DayFacts]],
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None" = None,
    ) -> None:
        """Add to the books of days; in the caller's transaction, if he has one."""
        if not books:
            return
        rows = [
            (facts.day, *key, facts.delivered, facts.deferred, facts.bounced, facts.complained) for key, facts in books
        ]
        await (connection or self._pool).execute(ADD, *_columns(rows))

    async def judge(self, sources: Sequence[str], today: date, idle: int, decide: Decide) -> dict[Key, State]:
        """Let `decide` look at every state of `sources` and the days that it has not judged yet; all states after that.

        One caller at a time over all nodes. Forgets what is of no use any more; `idle` in days, see `FORGET`.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(ALONE)
            await connection.execute(WHOLE_TABLES)
            await connection.execute(FORGET[0], today, idle)
            await connection.execute(FORGET[1], _midnight(today) - KEEP_WINDOWS)
            await connection.execute(FORGET[2], today - timedelta(days=KEEP_DAYS))
            days: dict[Key, list[DayFacts]] = {}
            for source, provider, *facts in await connection.fetch(DAYS, sources, today, KEEP_DAYS):
                days.setdefault((source, provider), []).append(DayFacts(*facts))
            before = {(row["source"], row["provider"]): _state(row) for row in await connection.fetch(STATES, sources)}
            after = {key: decide(key, state, days.get(key, ())) for key, state in before.items()}
            changed = {key: state for key, state in after.items() if state != before[key]}
            if changed:
                await connection.execute(CHANGE, *_columns([_row(key, state) for key, state in changed.items()]))
        for (source, provider), state in changed.items():
            if state.stage != before[source, provider].stage:
                log.info(
                    "warmup.judged", source=source, provider=provider, stage=state.stage + 1, verdict=state.verdict
                )
        return after

    async def overview(self, sources: Sequence[str], provider: str | None, now: datetime, limit: int) -> list[Progress]:
        """How far `sources` are at each provider, those that sent most today first; `now` in UTC."""
        hour = now.replace(minute=0, second=0, microsecond=0)
        rows = await self._pool.fetch(OVERVIEW, sources, provider, hour, hour.replace(hour=0), now.date(), limit)
        return [
            Progress(
                row["source"],
                row["provider"],
                _state(row),
                row["drawn_hour"],
                row["drawn_day"],
                DayFacts(now.date(), row["delivered"], row["deferred"], row["bounced"], row["complained"]),
            )
            for row in rows
        ]


def _state(row: asyncpg.Record) -> State:
    return State(row["plan"], row["stage"], row["stage_since"], row["last_day"], row["verdict"])


def _row(key: Key, state: State) -> tuple[str, str, str, int, date, date | None, str]:
    return (*key, state.plan, state.stage, state.stage_since, state.last_day, state.verdict)


def _columns(rows: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))
