"""Which sources may send from this node: looked after by one of its workers, read by all of them.

`SourceWatch` runs the checks of `source_checks`, holds addresses for its node and writes down what it found;
`SourceStates` is what a worker goes by. Between them stands the database, and a notification of `CHANNEL`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import asyncpg
import structlog

from mailerd.clock import utc_now
from mailerd.config import Config
from mailerd.db import Pool
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.source_checks import (
    BOUND,
    HELD,
    Check,
    Finding,
    Mode,
    SourceChecker,
    State,
    Verdict,
    is_public,
    settle,
)
from mailerd.queue.commit import LOST

log = structlog.get_logger()

CHANNEL = "mailerd_traffic"  # NOTIFY; the payload is a word for what changed
CHANGED = "sources"
BOUND_EVERY = 5.0  # seconds between looks whether addresses are bound here and held
SHORTEST = 1.0  # second between looks, whatever is configured
WRITTEN_EVERY = 60.0  # seconds after which a check that found the same again is written all the same
NOT_HELD = "this node does not hold its address yet"

CHECKS = """
    SELECT node, source, name, state, text, since, checked_at FROM source_checks
     WHERE node IN (SELECT node FROM workers) OR NOT EXISTS (SELECT FROM workers) ORDER BY source, node, name
"""
ANY_RUNS = "SELECT EXISTS (SELECT FROM workers)"
CHECKS_OF = """
    SELECT source, name, state, text, since, checked_at FROM source_checks WHERE node = $1 ORDER BY source, name
"""
HOLDERS = "SELECT address, node FROM source_holders"
LET_GO = "DELETE FROM source_holders WHERE node = $1 AND address <> ALL ($2::text[])"
# A node without workers holds nothing any more. By address, so that two nodes never wait for each other crosswise.
TAKE = """
    INSERT INTO source_holders (address, node)
    SELECT wanted, $1 FROM unnest($2::text[]) AS wanted
     WHERE NOT EXISTS (SELECT FROM source_holders WHERE address = wanted AND node = $1) ORDER BY wanted
    ON CONFLICT (address) DO UPDATE SET node = excluded.node, since = now()
     WHERE NOT EXISTS (SELECT FROM workers WHERE workers.node = source_holders.node)
"""
WRITE = """
    INSERT INTO source_checks (node, source, name, state, text, since, checked_at)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[])
    ON CONFLICT (node, source, name) DO UPDATE
       SET state = excluded.state, text = excluded.text, since = excluded.since, checked_at = excluded.checked_at
"""
FORGET = """
    DELETE FROM source_checks USING unnest($2::text[], $3::text[]) AS gone (source, name)
     WHERE node = $1 AND source_checks.source = gone.source AND source_checks.name = gone.name
"""
FORGET_NODES = """
    DELETE FROM source_checks WHERE node <> $1 AND checked_at < now() - interval '1 day'
       AND NOT EXISTS (SELECT FROM workers WHERE workers.node = source_checks.node)
"""
TELL = f"SELECT pg_notify('{CHANNEL}', '{CHANGED}')"


@dataclass(frozen=True, slots=True)
class CheckOfNode:
    """A check as some node found it."""

    node: str
    check: Check


@dataclass(frozen=True, slots=True)
class Written:
    """A check as it stands in the database, and the address that it is about."""

    address: str | None
    check: Check


class SourceStore:
    """What the nodes found out about their sources, and which node holds an address."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def holders(self) -> dict[str, str]:
        """Address → the node that holds it. An address that is missing is free."""
        return {row["address"]: row["node"] for row in await self._pool.fetch(HOLDERS)}

    async def hold(self, node: str, addresses: Collection[str]) -> dict[str, str]:
        """Hold these addresses for the node, and no others; returns all holders.

        An address that another node holds stays there as long as that node has a worker.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LET_GO, node, list(addresses))
            await connection.execute(TAKE, node, list(addresses))
            return {row["address"]: row["node"] for row in await connection.fetch(HOLDERS)}

    async def checks(self, node: str) -> list[Check]:
        return [_check(row) for row in await self._pool.fetch(CHECKS_OF, node)]

    async def checks_of_all(self) -> list[CheckOfNode]:
        """By source, node and name of the check: of the nodes that run, or, when none does, what all found last."""
        return [CheckOfNode(row["node"], _check(row)) for row in await self._pool.fetch(CHECKS)]

    async def any_runs(self) -> bool:
        """Does any node have workers?"""
        return bool(await self._pool.fetchval(ANY_RUNS))

    async def write(self, node: str, checks: Sequence[Check], gone: Collection[tuple[str, str]] = ()) -> None:
        """Keep these states of the node, and forget the checks (source, name) that are `gone`."""
        columns = zip(*((c.source, c.name, c.state, c.text, c.since, c.checked_at) for c in checks), strict=True)
        async with self._pool.acquire() as connection, connection.transaction():
            if checks:
                await connection.execute(WRITE, node, *map(list, columns))
            if gone:
                await connection.execute(FORGET, node, [source for source, _ in gone], [name for _, name in gone])

    async def forget_nodes(self, node: str) -> None:
        """Forget what nodes found that are gone for a day; `node` is the one that asks."""
        await self._pool.execute(FORGET_NODES, node)

    async def tell(self) -> None:
        """Wake the workers of all nodes: what they read here is no longer true."""
        await self._pool.execute(TELL)


def _check(row: asyncpg.Record) -> Check:
    state = State(row["state"])
    return Check(row["source"], row["name"], state, row["text"], row["since"], row["checked_at"])


class SourceStates:
    """What one worker knows of the sources: `failing` says of each that must not send why not.

    A source with an address may send when its node holds the address and no check of it is failing; sources whose
    address the system chooses always may. To be refreshed at the start, when `CHANNEL` says `sources`, and every now
    and then.
    """

    def __init__(self, config: Config, store: SourceStore, node: str) -> None:
        self._store = store
        self._node = node
        self._addresses: dict[str, str] = {}
        self.failing: Mapping[str, str] = {}
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Other sources; those that are new, or have another address, may send after the next refresh."""
        addresses: dict[str, str] = {name: s.address for name, s in config.sources.items() if s.address is not None}
        known, self._addresses = self._addresses, addresses
        self.failing = {
            name: self.failing.get(name, NOT_HELD)
            for name, address in addresses.items()
            if name in self.failing or known.get(name) != address
        }

    async def refresh(self) -> bool:
        """Read what the node's watch has found; True when `failing` is another one than before."""
        holders = await self._store.holders()
        checks = await self._store.checks(self._node)
        failing: dict[str, str] = {}
        for check in sorted(checks, key=_gravity):
            if check.state is State.FAILING and check.source in self._addresses:
                failing.setdefault(check.source, check.text)
        for name, address in self._addresses.items():
            holder = holders.get(address)
            if holder != self._node:
                failing.setdefault(name, NOT_HELD if holder is None else held_elsewhere(address, holder))
        changed = failing != self.failing
        self.failing = failing
        return changed


class SourceWatch:
    """Looks after the sources for its node. One worker of a node runs it; all of them read what it writes.

    `public` says which addresses have an identity to check; `clock` gives the time of the day.
    """

    def __init__(
        self,
        config: Config,
        store: SourceStore,
        resolver: Resolver,
        node: str,
        *,
        clock: Callable[[], datetime] = utc_now,
        public: Callable[[str], bool] = is_public,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._node = node
        self._clock = clock
        self._public = public
        self._written: dict[tuple[str, str], Written] | None = None  # None: not read yet
        self._holders: dict[str, str] = {}
        self._here: set[str] = set()
        self._recording = asyncio.Lock()
        self._look_at_addresses, self._look_at_identity = asyncio.Event(), asyncio.Event()
        self._set(config)

    def reconfigure(self, config: Config) -> None:
        """Go on with other sources or checks, and look at once."""
        self._set(config)
        self._look_at_addresses.set()
        self._look_at_identity.set()

    def _set(self, config: Config) -> None:
        self._config = config
        self._checker = SourceChecker(config, self._resolver, public=self._public)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                self._repeat(self.look_at_addresses, self._look_at_addresses, lambda: BOUND_EVERY), name="addresses"
            )
            tasks.create_task(
                self._repeat(self.look_at_identity, self._look_at_identity, lambda: self._config.source_checks.every),
                name="source checks",
            )

    async def _repeat(
        self, look: Callable[[], Awaitable[None]], now: asyncio.Event, every: Callable[[], float]
    ) -> None:
        while True:
            now.clear()
            pause = max(every(), SHORTEST)
            try:
                await look()
            except LOST as error:
                log.warning("source_checks.interrupted", error=str(error))
                pause = min(pause, BOUND_EVERY)
            except Exception:
                log.exception("source_checks.failed")
                pause = min(pause, BOUND_EVERY)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await now.wait()

    async def look_at_addresses(self) -> None:
        """See which addresses are bound here, and hold those, no others, for this node."""
        config, checker = self._config, self._checker
        bound = {source: checker.bound(source) for source in config.sources}
        here = {
            source: address
            for source, finding in bound.items()
            if (address := config.sources[source].address) is not None and finding.verdict is not Verdict.BAD
        }
        holders = await self._store.hold(self._node, set(here.values()))
        found: list[tuple[str, Finding, Mode]] = [(source, finding, "act") for source, finding in bound.items()]
        found += [(source, self._held(address, holders.get(address)), "act") for source, address in here.items()]
        changed = self._ours(holders) != self._ours(self._holders)
        await self._record(config, found, lambda name: name in (BOUND, HELD))
        if changed:
            await self._store.tell()
        self._holders = holders
        if not here.keys() <= self._here:
            self._look_at_identity.set()
        self._here = set(here)

    async def look_at_identity(self) -> None:
        """Ask DNS about the sources that are bound here."""
        config, checker = self._config, self._checker
        here = [source for source in config.sources if checker.bound(source).verdict is not Verdict.BAD]
        found: list[tuple[str, Finding, Mode]] = []
        for source, findings in zip(here, await asyncio.gather(*map(checker.identity, here)), strict=True):
            modes = checker.modes(source)
            found += [(source, finding, modes[finding.name]) for finding in findings]
        await self._record(config, found, lambda name: name not in (BOUND, HELD))
        await self._store.forget_nodes(self._node)

    def _held(self, address: str, holder: str | None) -> Finding:
        if holder == self._node:
            return Finding(HELD, Verdict.GOOD, f"this node holds {address}")
        return Finding(HELD, Verdict.BAD, NOT_HELD if holder is None else held_elsewhere(address, holder))

    def _ours(self, holders: Mapping[str, str]) -> set[str]:
        return {address for address, node in holders.items() if node == self._node}

    async def _record(
        self, config: Config, found: Iterable[tuple[str, Finding, Mode]], of_this_look: Callable[[str], bool]
    ) -> None:
        """Write what is new; checks of this kind of look that were not found any more are forgotten."""
        async with self._recording:
            if self._written is None:
                self._written = {
                    (check.source, check.name): Written(_address(config, check.source), check)
                    for check in await self._store.checks(self._node)
                }
            now = self._clock()
            changes: list[tuple[Check | None, Check]] = []
            gone = {key for key in self._written if of_this_look(key[1])}
            for source, finding, mode in found:
                gone.discard((source, finding.name))
                before = self._before(source, finding.name, _address(config, source))
                changes.append((before, settle(source, finding, mode, before, now)))
            changes = [(before, check) for before, check in changes if _is_news(before, check)]
            if not changes and not gone:
                return
            await self._store.write(self._node, [check for _, check in changes], gone)
            for key in gone:
                del self._written[key]
            for before, check in changes:
                self._written[check.source, check.name] = Written(_address(config, check.source), check)
                _log_change(before, check)
            if gone or any(_matters(before, check) for before, check in changes):
                await self._store.tell()

    def _before(self, source: str, name: str, address: str | None) -> Check | None:
        """What was written of a check, unless it is about another address."""
        assert self._written is not None
        written = self._written.get((source, name))
        return written.check if written is not None and written.address == address else None


def held_elsewhere(address: str, node: str) -> str:
    return f"{address} sends from node {node}: an address belongs to one node at a time"


def _address(config: Config, source: str) -> str | None:
    return config.sources[source].address if source in config.sources else None


def _gravity(check: Check) -> tuple[bool, bool, str]:
    """What to tell first of several reasons."""
    return check.name != BOUND, check.name != HELD, check.name


def _is_news(before: Check | None, check: Check) -> bool:
    if before is None or (before.state, before.text) != (check.state, check.text):
        return True
    return (check.checked_at - before.checked_at).total_seconds() >= WRITTEN_EVERY


def _matters(before: Check | None, check: Check) -> bool:
    """Does it change where mail leaves, or why not?"""
    return before is None or _obstacle(before) != _obstacle(check)


def _obstacle(check: Check) -> str | None:
    return check.text if check.state is State.FAILING else None


def _log_change(before: Check | None, check: Check) -> None:
    was = State.OK if before is None else before.state
    if check.state is was:
        return
    facts = {"source": check.source, "check": check.name, "reason": check.text}
    if check.state is State.FAILING:
        log.warning("source.failed", **facts)
    elif was is State.FAILING:
        log.info("source.recovered", **facts)
    elif check.state is State.WARNING:
        log.warning("source.doubted", **facts)
