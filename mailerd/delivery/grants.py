"""Limits that hold over all nodes, shared out: who may use how much of them.

A source address belongs to one node, so the limits of paths need no sharing. What is limited for all sources together
(a site, a provider, a domain, a tenant, a campaign, a credential) is split among the nodes that want it. A node may use
what the table grants it; it raises its grant only to what the others leave, and lowers it first in the ledger, then,
when all its workers have looked there, in the table. So the grants in force never add up to more than the limit.

A node that is alone asks nobody. One that comes to others waits `JOIN`: by then each of them has seen it, or has not
reached the database for so long that it sends nothing (`queue.workers.FENCE`).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from mailerd.db import Pool
from mailerd.delivery.ledger import Ledger
from mailerd.queue.workers import BEAT_EVERY, FENCE

log = structlog.get_logger()

JOIN = FENCE + 2 * BEAT_EVERY  # seconds
WANTED = 10.0  # seconds for which a use counts as a wish
OBEYED = 3.0  # seconds after which all workers, who look every second, follow a lower grant

MAX_METERS = 5_000  # of limits that one worker watches

GRANT = "grant "  # before names in the ledger

# One statement: what the others hold is read and our own row written under one lock.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('mailerd grants', 0))"
LIVING = "SELECT DISTINCT node FROM workers"
ROWS = "SELECT meter, node, wanted, granted FROM grants"
ROWS_OF = "SELECT meter, granted FROM grants WHERE node = $1"
SET = """
    INSERT INTO grants (meter, node, wanted, granted, at) SELECT meter, $1, wanted, granted, now()
      FROM unnest($2::text[], $3::float8[], $4::float8[]) AS mine (meter, wanted, granted)
    ON CONFLICT (meter, node) DO UPDATE SET wanted = EXCLUDED.wanted, granted = EXCLUDED.granted, at = EXCLUDED.at
"""
FORGET = "DELETE FROM grants WHERE node <> ALL ($1::text[]) OR (node = $2 AND meter <> ALL ($3::text[]))"


@dataclass(slots=True)
class _Row:
    wanted: float
    granted: float


class GrantStore:
    """The table of grants."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of_node(self, node: str) -> dict[str, float]:
        """Meter → what the node was granted."""
        return {row["meter"]: row["granted"] for row in await self._pool.fetch(ROWS_OF, node)}

    async def exchange(
        self,
        node: str,
        nodes: Sequence[str],
        decide: Callable[[dict[str, dict[str, _Row]]], dict[str, _Row]],
    ) -> dict[str, _Row]:
        """Write what `decide` makes of all rows of the living nodes; the rows of the dead are dropped."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK)
            # Also who came since the caller looked: nobody's rows may be dropped who is alive.
            living = {*nodes, *(row["node"] for row in await connection.fetch(LIVING))}
            table: dict[str, dict[str, _Row]] = {}
            for row in await connection.fetch(ROWS):
                if row["node"] in living:
                    table.setdefault(row["meter"], {})[row["node"]] = _Row(row["wanted"], row["granted"])
            mine = decide(table)
            await connection.execute(FORGET, list(living), node, list(mine))
            await connection.execute(
                SET, node, list(mine), [row.wanted for row in mine.values()], [row.granted for row in mine.values()]
            )
        return mine


class Grants:
    """What this node may use of the limits that hold over all nodes.

    Shares are fractions of a limit. They stand in the ledger, where all workers of the node read them; one of them (the
    worker that calls `exchange`) talks to the table.
    """

    def __init__(
        self, store: GrantStore, ledger: Ledger, node: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._node = node
        self._now = monotonic
        self._meters: dict[str, int] = {}  # name → limit when it counts connections, else 0
        self.generation = 0
        self._last: tuple[float, ...] = (True,)
        self._lowered: dict[str, tuple[float, float]] = {}  # name → grant that is not in the table yet, since when

    def alone(self) -> bool:
        return self._ledger.alone

    def share(self, name: str) -> float:
        """The fraction of a rate that this node may use."""
        return self._granted(name, 0)

    def connections(self, name: str, limit: int) -> int:
        """How many of `limit` connections this node may open."""
        return round(self._granted(name, limit) * limit)

    def _granted(self, name: str, limit: int) -> float:
        if self.alone():
            return 1.0
        if len(self._meters) >= MAX_METERS:
            self._meters.clear()  # those in use come back
        self._meters[name] = limit
        meter = self._ledger.meter(f"{GRANT}{name}")
        return self._ledger.update(meter, lambda state: (state[0], self._now(), float(limit), *state[3:]))[0]

    def look(self) -> None:
        """Notice whether grants changed, so that paths are computed anew; cheap, to be called every second."""
        alone = self.alone()
        state: tuple[float, ...] = (alone,)
        if not alone:
            state += tuple(self._ledger.meter(f"{GRANT}{name}").state()[0] for name in self._meters)
        if state != self._last:
            self._last = state
            self.generation += 1

    def seen(self, nodes: Sequence[str]) -> None:
        """These nodes live. Others, once seen, end our being alone at once; when they are gone, so are their grants."""
        alone = all(node == self._node for node in nodes)
        if self._ledger.alone != alone:
            self._ledger.alone = alone
            log.info("nodes.changed", alone=alone)
            self.generation += 1

    async def begin(self) -> None:
        """Forget grants that the table does not know any more: while this node was away, others were given them."""
        table: dict[str, float] = {}
        try:
            table = await self._store.of_node(self._node)
        finally:
            for record in self._ledger.records():
                if record.name.startswith(GRANT):
                    name = record.name.removeprefix(GRANT)
                    self._set(name, min(record.state[0], table.get(name, 0.0)))

    async def exchange(self, nodes: Sequence[str], *, joined: float) -> None:
        """Ask for what was wanted lately, give back what was not. `joined`: when this node came, monotonic seconds."""
        now = self._now()
        if self.alone() or now - joined < JOIN:
            return
        wishes = self._wishes(now)
        mine: dict[str, float] = {}

        def decide(table: dict[str, dict[str, _Row]]) -> dict[str, _Row]:
            rows = {}
            for name, (wanted, limit, used) in wishes.items():
                others = {node: row for node, row in table.get(name, {}).items() if node != self._node}
                target = _target(self._node, wanted, others, limit)
                left = 1.0 - sum(row.granted for row in others.values())
                granted = max(0.0, min(target, left))
                shown = table.get(name, {}).get(self._node, _Row(0.0, 0.0)).granted
                if granted >= shown:
                    shown = granted
                    self._lowered.pop(name, None)
                elif self._is_obeyed(name, granted, now):
                    # Connections beyond it end one after the other, and are ours until then.
                    shown = min(shown, max(granted, used / limit if limit else 0.0))
                if wanted or shown:
                    rows[name] = _Row(wanted, shown)
                mine[name] = granted
                self._lower(name, granted)
            return rows

        await self._store.exchange(self._node, nodes, decide)
        for name, granted in mine.items():
            self._set(name, granted)

    def _wishes(self, now: float) -> dict[str, tuple[float, int, int]]:
        """Name → (1 when it was wanted lately, limit of connections or 0, connections open)."""
        wishes = {}
        for record in self._ledger.records():
            if record.name.startswith(GRANT):
                name = record.name.removeprefix(GRANT)
                _, wanted_at, limit, *_ = record.state
                used = self._ledger.meter(name).held if limit else 0
                wishes[name] = (float(now - wanted_at < WANTED), int(limit), used)
        return wishes

    def _is_obeyed(self, name: str, granted: float, now: float) -> bool:
        """Do all workers use no more than this by now? Asked for what is less than the table says."""
        lower, since = self._lowered.get(name, (math.inf, now))
        if granted < lower:
            if len(self._lowered) >= MAX_METERS:
                self._lowered.clear()  # those in use are noted again, and waited for once more
            self._lowered[name] = granted, now
            return False
        return now - since >= OBEYED

    def _lower(self, name: str, granted: float) -> None:
        if granted < self._ledger.meter(f"{GRANT}{name}").state()[0]:
            self._set(name, granted)

    def _set(self, name: str, granted: float) -> None:
        self._ledger.update(self._ledger.meter(f"{GRANT}{name}"), lambda state: (granted, *state[1:]))


def _target(node: str, wanted: float, others: dict[str, _Row], limit: int) -> float:
    """Our fair fraction: equal parts for all who want it; whole connections, the rest to the first by name."""
    if not wanted:
        return 0.0
    names = sorted([node, *(name for name, row in others.items() if row.wanted)])
    if not limit:
        return 1.0 / len(names)
    whole, rest = divmod(limit, len(names))
    return (whole + (names.index(node) < rest)) / limit
