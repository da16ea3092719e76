"""Leases: which workers are alive, and what becomes of the recipients of those that are not.

A worker holds its recipients as long as it beats. Nobody compares clocks: a worker is dead when an observer, who could
read the table all the time, has not seen its counter move for `LEASE` seconds of the observer's own monotonic clock.
An observer that stood still proves nothing: maybe the database did, or the whole machine, and all with it.
A worker that could not beat for `FENCE` seconds starts no attempt, because somebody may soon take over what it holds.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import asyncpg

from mailerd import events
from mailerd.queue.store import queue_up

BEAT_EVERY = 3.0  # seconds
FENCE = 15.0
LEASE = 30.0

REGISTER = """
    INSERT INTO workers (number, node, pid) VALUES (nextval('worker_numbers'), $1, $2)
    ON CONFLICT (number) DO NOTHING RETURNING number
"""
BEAT = "UPDATE workers SET beat = beat + 1 WHERE number = $1 RETURNING beat"
ALL = "SELECT number, node, pid, beat FROM workers"
# `$4` and `$5` are what the worker knows to have: it stays.
RELEASE = f"""
    WITH freed AS (
        UPDATE recipients SET owner = NULL, reason = CASE WHEN held THEN reason ELSE 'its worker stopped' END,
               in_doubt = in_doubt OR $2::bigint[] IS NULL OR EXISTS (
                   SELECT FROM unnest($2::bigint[], $3::int[]) AS open (message_id, n)
                    WHERE open.message_id = recipients.message_id AND open.n = recipients.n)
         WHERE owner = $1 AND NOT EXISTS (
                   SELECT FROM unnest($4::bigint[], $5::int[]) AS kept (message_id, n)
                    WHERE kept.message_id = recipients.message_id AND kept.n = recipients.n)
     RETURNING message_id, queue, due_at, held
    ), unheld AS (SELECT * FROM freed WHERE NOT held), queue AS ({queue_up("unheld")})
    SELECT count(*) FROM freed
"""
# What a dead worker has delivered and not recorded; but for whom a report was asked for, that is in doubt as before.
DELIVERED = f"""
    WITH finished AS (
        DELETE FROM recipients AS r USING messages AS m, unnest($2::bigint[], $3::int[]) AS done (message_id, n)
         WHERE r.message_id = done.message_id AND r.n = done.n AND r.owner = $1 AND r.notify = ''
           AND m.id = r.message_id
     RETURNING r.message_id, r.n, r.address, r.attempts, r.in_doubt, m.tenant, m.stream, m.campaign
    ), message AS (
        UPDATE messages SET pending = pending - gone.recipients
          FROM (SELECT message_id, count(*)::int AS recipients FROM finished GROUP BY message_id) AS gone
         WHERE id = gone.message_id
    )
    INSERT INTO events ({events.COLUMNS})
    SELECT now(), 'recipient.delivered', message_id, n, address, tenant,
           jsonb_build_object('attempt', attempts + 1, 'kind', 'delivered', 'recovered', true)
               || CASE WHEN in_doubt THEN jsonb_build_object('in_doubt', true) ELSE jsonb_build_object() END,
           stream, campaign
      FROM finished
"""
HELD = "SELECT message_id, n FROM recipients WHERE owner = $1 AND held"
FORGET_FINISHED = "DELETE FROM messages WHERE id = ANY ($1::bigint[]) AND pending <= 0"
FORGET = "DELETE FROM workers WHERE number = $1"
QUIET = "SELECT FROM workers WHERE number = $1 FOR UPDATE"
PING = "SELECT 1"


Dots = Collection[tuple[int, int]]  # message id, n; -n when the host has taken it (`queue.journal`)


@dataclass(frozen=True, slots=True)
class Worker:
    """A row of the table of workers."""

    number: int
    node: str
    pid: int
    beat: int


class WorkerStore:
    """The table of workers, and the taking over of what a dead one owned."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", *, keep_bodies: bool = False) -> None:
        self._pool = pool
        self._keep_bodies = keep_bodies

    async def register(self, node: str, pid: int) -> int:
        """A number for a new worker, used by no other living one."""
        while (number := await self._pool.fetchval(REGISTER, node, pid)) is None:
            pass
        assert isinstance(number, int)
        return number

    async def beat(self, number: int) -> bool:
        """Say that the worker is alive; False when it was declared dead and must stop."""
        return await self._pool.fetchval(BEAT, number) is not None

    async def ping(self) -> None:
        """Return when the database has answered."""
        await self._pool.execute(PING)

    async def all(self) -> list[Worker]:
        return [Worker(**row) for row in await self._pool.fetch(ALL)]

    async def held(self, number: int) -> set[tuple[int, int]]:
        """Message id and n of what a worker owns although an operator wants it kept."""
        return {(row["message_id"], row["n"]) for row in await self._pool.fetch(HELD, number)}

    async def release(self, number: int, open_dots: Dots | None) -> int:
        """Free what a dead worker owned, and forget the worker; returns how many recipients.

        `open_dots` are those (message, n) that may have been delivered without our knowing; None: it cannot be told,
        so all may. Those that were delivered, (message, -n), are recorded as such.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(FORGET, number)  # first: waits for what the worker's sessions still do, ends more
            if delivered := [(message_id, -n) for message_id, n in open_dots or () if n < 0]:
                await connection.execute(DELIVERED, number, *_columns(delivered))
                if not self._keep_bodies:
                    await connection.execute(FORGET_FINISHED, [message_id for message_id, _ in delivered])
            freed: int = await connection.fetchval(RELEASE, number, *_columns(open_dots), *_columns([]))
        return freed

    async def free_strays(self, number: int, kept: Callable[[], Dots], open_dots: Callable[[], Dots]) -> int:
        """Free what a living worker owns and does not have, such as after a claim that was committed unheard.

        Both are asked for when no transaction of the worker that takes mail is under way any more.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(QUIET, number)
            freed: int = await connection.fetchval(RELEASE, number, *_columns(open_dots()), *_columns(kept()))
        return freed


def _columns(dots: Dots | None) -> tuple[list[int] | None, list[int] | None]:
    if dots is None:
        return None, None
    return [message_id for message_id, _ in dots], [abs(n) for _, n in dots]


class Watch:
    """Decides from repeated looks at the table which workers are dead. Pure: time is handed in."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}  # number → beat, since when
        self._looked = 0.0

    def dead(self, workers: Sequence[Worker], asked: float, answered: float) -> list[Worker]:
        """The workers whose beat has not moved for LEASE seconds.

        The table was asked for and read at these times of a monotonic clock: what it says was true in between.
        """
        if answered - self._looked > FENCE:
            self.blind()
        self._looked = answered
        seen = {}
        for worker in workers:
            beat, since = self._seen.get(worker.number, (worker.beat, answered))
            seen[worker.number] = (worker.beat, since if beat == worker.beat else answered)
        self._seen = seen
        return [worker for worker in workers if asked - seen[worker.number][1] >= LEASE]

    def blind(self) -> None:
        """The table could not be read: what was seen before proves nothing any more."""
        self._seen.clear()
