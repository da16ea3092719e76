"""Steering: hold, release, retry, bounce, cancel and reschedule, for one message or for all that fits a selection.

What a worker has in memory is recalled first: the daemon's workers listen for a notification with the selection and put
back what they are not sending at this moment. Every command is written to the audit table.

What an operator holds only an operator releases; its tenant may still give it up for good, but not let it go on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeAlias

import asyncpg
import msgspec

from mailerd import events
from mailerd.queue.mail import Recipient
from mailerd.queue.store import queue_up
from mailerd.queue.views import Steered

CHANNEL = "mailerd_recall"
RECALL_FOR = 2.0  # seconds that a command waits for workers to put mail back
RECALL_EVERY = 0.1
STEP = 20_000  # recipients that one statement looks at, about: so it ends in time however long the queue is
LOWEST, HIGHEST = -(2**63), 2**63 - 1  # ids of messages
TRIES = 5  # of a transaction that lost against the workers' own

Within: TypeAlias = tuple[Any, ...]  # `Selection.parameters`, and behind which id and up to which
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Work: TypeAlias = Callable[[Connection, Within], Awaitable[int]]  # of one step; how many recipients it has changed


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which recipients are meant: all that fit every field given. At least one is."""

    message: int | None = None
    address: str | None = None
    domain: str | None = None
    sender: str | None = None
    stream: str | None = None
    pool: str | None = None
    credential: str | None = None
    tenant: str | None = None
    campaign: str | None = None

    def matches(self, recipient: Recipient) -> bool:
        """Does a recipient in memory fit?"""
        message = recipient.message
        return (
            self.message in (None, message.id)
            and self.address in (None, recipient.address)
            and self.domain in (None, recipient.domain)
            and self.sender in (None, message.sender)
            and self.stream in (None, message.stream)
            and self.pool in (None, message.pool)
            and self.credential in (None, message.credential)
            and self.tenant in (None, message.tenant)
            and self.campaign in (None, message.campaign)
        )

    def parameters(self) -> tuple[Any, ...]:
        """The first nine parameters of the statements below."""
        return (
            self.message,
            self.address,
            self.domain,
            self.sender,
            self.stream,
            self.pool,
            self.credential,
            self.tenant,
            self.campaign,
        )


WAKE = Selection(message=0)  # fits nothing: workers only look for due and expired mail
UNBLOCK_ALL = Selection(message=-1)  # fits nothing: workers also try the sites again that they leave alone

MATCH = """
    r.message_id = m.id
    AND ($1::bigint IS NULL OR r.message_id = $1) AND ($2::text IS NULL OR r.address = $2)
    AND ($3::text IS NULL OR r.domain = $3) AND ($4::text IS NULL OR m.sender = $4)
    AND ($5::text IS NULL OR m.stream = $5) AND ($6::text IS NULL OR m.pool = $6)
    AND ($7::text IS NULL OR m.credential = $7) AND ($8::text IS NULL OR m.tenant = $8)
    AND ($9::text IS NULL OR m.campaign = $9)
"""
# Of these, those of some messages: a command for millions is carried out in steps. Recipients that do not fit count
# too, or the statement that looks for the end of a step would read them all where few fit.
WITHIN = "AND r.message_id > $10 AND r.message_id <= $11"
LAST_OF_STEP = "SELECT message_id FROM recipients WHERE message_id > $1 ORDER BY message_id OFFSET $2 LIMIT 1"
EVENT = f"INSERT INTO events ({events.COLUMNS})"
# The reason of what is held while a command for good is carried out; should that die half way, it says what to do.
FROZEN = "an operator began to return or cancel it: release it, or again"

# Also what a command for good has frozen, which is released when it could not be stopped; and an operator holds what
# the tenant held. `$13`: an operator does it.
HOLD = f"""
    WITH changed AS (
        UPDATE recipients AS r SET held = true, held_by_operator = $13, reason = $12 FROM messages AS m
         WHERE {MATCH} {WITHIN} AND ($13::bool OR NOT r.held_by_operator)
           AND (NOT r.held OR r.held_by_operator <> $13 OR r.reason = '{FROZEN}')
     RETURNING r.message_id, r.n, r.address, m.tenant, m.stream, m.campaign
    )
    {EVENT} SELECT $14, 'recipient.held', message_id, n, address, tenant, $15, stream, campaign FROM changed
"""
RELEASE = f"""
    WITH changed AS (
        UPDATE recipients AS r SET held = false, held_by_operator = false, reason = '' FROM messages AS m
         WHERE {MATCH} {WITHIN} AND r.held AND ($12::bool OR NOT r.held_by_operator)
     RETURNING r.message_id, r.n, r.address, r.queue, r.due_at, m.tenant, m.stream, m.campaign
    ), queue AS ({queue_up("changed")})
    {EVENT} SELECT $13, 'recipient.released', message_id, n, address, tenant, $14, stream, campaign FROM changed
"""
# The same without an event, while a command for good is carried out. What an operator freezes that a tenant's command
# has frozen is the operator's; what was held before stays as it was held.
FREEZE = f"""
    UPDATE recipients AS r SET held = true, held_by_operator = $12, reason = '{FROZEN}'
      FROM messages AS m
     WHERE {MATCH} {WITHIN} AND (NOT r.held OR $12::bool AND NOT r.held_by_operator AND r.reason = '{FROZEN}')
"""
THAW = f"""
    WITH changed AS (
        UPDATE recipients AS r SET held = false, held_by_operator = false, reason = '' FROM messages AS m
         WHERE {MATCH} {WITHIN} AND r.held AND r.reason = '{FROZEN}' AND ($12::bool OR NOT r.held_by_operator)
     RETURNING r.message_id, r.queue, r.due_at
    )
    {queue_up("changed")}
"""
RESCHEDULE = f"""
    WITH changed AS (
        UPDATE recipients AS r SET due_at = LEAST($12, r.expires_at), reason = $13 FROM messages AS m
         WHERE {MATCH} {WITHIN} AND r.owner IS NULL AND NOT r.held
     RETURNING r.message_id, r.queue, r.due_at
    ), queue AS ({queue_up("changed")})
    SELECT count(*) FROM changed
"""
UNBLOCK = f"""
    WITH locked AS MATERIALIZED (
        SELECT name FROM queues
         WHERE blocked_until IS NOT NULL
           AND name IN (SELECT r.queue FROM recipients AS r, messages AS m WHERE {MATCH} {WITHIN})
         ORDER BY name COLLATE "C" FOR UPDATE
    )
    UPDATE queues SET blocked_until = NULL, reason = '' WHERE name IN (SELECT name FROM locked)
"""
# Expired on the operator's word: the sweep for expired mail writes the report to the sender.
EXPIRE = f"""
    WITH changed AS (
        UPDATE recipients AS r SET expires_at = $12, returned = true, held = false, held_by_operator = false
          FROM messages AS m
         WHERE {MATCH} {WITHIN} AND r.owner IS NULL
     RETURNING 1
    )
    SELECT count(*) FROM changed
"""
CANCEL = f"""
    WITH gone AS (
        DELETE FROM recipients AS r USING messages AS m WHERE {MATCH} {WITHIN} AND r.owner IS NULL
     RETURNING r.message_id, r.n, r.address, m.tenant, m.stream, m.campaign
    ), rest AS (
        UPDATE messages SET pending = pending - of.recipients
          FROM (SELECT message_id, count(*)::int AS recipients FROM gone GROUP BY message_id) AS of
         WHERE id = of.message_id
     RETURNING id, pending
    ), event AS (
        {EVENT} SELECT $12, 'recipient.cancelled', message_id, n, address, tenant, $13, stream, campaign FROM gone
    )
    SELECT (SELECT count(*) FROM gone) AS changed, ARRAY (SELECT id FROM rest WHERE pending <= 0) AS finished
"""
DELETE_FINISHED = """
    DELETE FROM messages WHERE id = ANY ($1::bigint[]) AND pending <= 0
        AND NOT EXISTS (SELECT FROM recipients WHERE message_id = messages.id)
"""
COUNT = f"""
    SELECT count(*) AS all, count(*) FILTER (WHERE r.held_by_operator) AS kept
      FROM recipients AS r, messages AS m WHERE {MATCH} {WITHIN}
"""
OWNED = f"SELECT EXISTS (SELECT FROM recipients AS r, messages AS m WHERE {MATCH} {WITHIN} AND r.owner IS NOT NULL)"
KNOWN = "SELECT EXISTS (SELECT FROM events WHERE message_id = $1 AND tenant = $2)"
AUDIT = "INSERT INTO audit (actor, action, data) VALUES ($1, $2, $3)"
RECALL = "SELECT pg_notify($1, $2)"


@dataclass(frozen=True, slots=True)
class Command:
    """Who did what to which recipients, when."""

    selection: Selection
    actor: str
    action: str
    now: datetime

    @property
    def facts(self) -> dict[str, str]:
        return {"by": self.actor}


class Steer(Protocol):
    """A command of `ControlStore`."""

    async def __call__(self, selection: Selection, *, actor: str, now: datetime) -> Steered: ...


class ControlStore:
    """Carries out steering commands. A process has one: its pool is also the mail's; steering takes one connection.

    `operator`: its commands are an operator's, not a tenant's.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        *,
        keep_bodies: bool = False,
        step: int = STEP,
        operator: bool = False,
    ) -> None:
        self._pool = pool
        self._step = step
        self._operator = operator
        self._keep_bodies = keep_bodies
        self._turn = asyncio.Lock()

    async def hold(self, selection: Selection, *, actor: str, now: datetime) -> Steered:
        """Keep matching mail where it is until it is released; it still expires."""
        command = Command(selection, actor, "hold", now)
        parameters = (f"held by {actor}", self._operator, now, command.facts)
        changed = await self._each(selection, HOLD, *parameters, audited=command)
        await self._recall(selection)
        return await self._steered(selection, changed)

    async def release(self, selection: Selection, *, actor: str, now: datetime) -> Steered:
        """Let held mail go on; what an operator holds only at an operator's command."""
        command = Command(selection, actor, "release", now)
        changed = await self._each(selection, RELEASE, self._operator, now, command.facts, audited=command)
        await self._wake()
        return await self._steered(selection, changed)

    async def retry(self, selection: Selection, *, actor: str, now: datetime) -> Steered:
        """Make waiting mail due now, also where its queue is blocked."""
        return await self.reschedule(selection, due_at=now, actor=actor, now=now)

    async def reschedule(self, selection: Selection, *, due_at: datetime, actor: str, now: datetime) -> Steered:
        """Make waiting mail due at that time."""
        await self._recall(selection)
        command = Command(selection, actor, "reschedule", now)

        async def work(connection: Connection, within: Within) -> int:
            return int(await connection.fetchval(RESCHEDULE, *within, due_at, f"rescheduled by {actor}"))

        changed = await self._in_steps(selection, work, command)
        await self._each(selection, UNBLOCK)  # by itself: it locks other queues, and in another order
        await self._wake(UNBLOCK_ALL)
        return await self._steered(selection, changed)

    async def bounce(self, selection: Selection, *, actor: str, now: datetime) -> Steered:
        """Give up on matching mail; its senders are told."""
        command = Command(selection, actor, "bounce", now)
        await self._each(selection, FREEZE, self._operator, audited=command)
        await self._recall(selection)

        async def work(connection: Connection, within: Within) -> int:
            changed = await connection.fetchval(EXPIRE, *within, now - timedelta(seconds=1))
            # What was being sent at that moment could not be stopped, and must not stay held when it comes back.
            await connection.execute(THAW, *within, self._operator)
            return int(changed)

        changed = await self._in_steps(selection, work)
        await self._wake()
        return await self._steered(selection, changed)

    async def cancel(self, selection: Selection, *, actor: str, now: datetime) -> Steered:
        """Delete matching mail; nobody is told."""
        command = Command(selection, actor, "cancel", now)
        await self._each(selection, FREEZE, self._operator, audited=command)
        await self._recall(selection)

        async def work(connection: Connection, within: Within) -> int:
            gone = await connection.fetchrow(CANCEL, *within, now, command.facts)
            assert gone is not None
            if not self._keep_bodies:
                await connection.execute(DELETE_FINISHED, gone["finished"])
            # What was being sent at that moment could not be stopped, and must not stay held when it comes back.
            await connection.execute(THAW, *within, self._operator)
            return int(gone["changed"])

        changed = await self._in_steps(selection, work)
        return await self._steered(selection, changed)

    async def count(self, selection: Selection) -> int:
        """How many recipients fit; of a long queue, which changes while it is counted, about."""
        return (await self._count(selection))[0]

    async def knows(self, message: int, tenant: str) -> bool:
        """Was this message accepted from this tenant?"""
        return bool(await self._pool.fetchval(KNOWN, message, tenant))

    async def _each(
        self, selection: Selection, statement: str, *parameters: Any, audited: Command | None = None
    ) -> int:
        async def work(connection: Connection, within: Within) -> int:
            return _rows(await connection.execute(statement, *within, *parameters))

        return await self._in_steps(selection, work, audited)

    async def _in_steps(self, selection: Selection, work: Work, audited: Command | None = None) -> int:
        """Do the work for some messages after the others, in one transaction each; the sum of what it says.

        One transaction for millions would take minutes, let others wait for all of it, and be for nothing when its time
        is over. What is `audited` is so with the first.
        """
        done = 0
        async for within in self._steps(selection):
            done += await self._in_one(work, within, audited)
            audited = None
        return done

    async def _steps(self, selection: Selection) -> AsyncIterator[Within]:
        """All there is, in steps; there is one at least."""
        if selection.message is not None:  # the narrowest, also for a plan that was made for others
            yield (*selection.parameters(), selection.message - 1, selection.message)
            return
        after = LOWEST
        while after < HIGHEST:
            async with self._connection() as connection:
                last = await connection.fetchval(LAST_OF_STEP, after, self._step)
            upto = HIGHEST if last is None else last
            yield (*selection.parameters(), after, upto)
            after = upto

    async def _in_one(self, work: Work, within: Within, audited: Command | None) -> int:
        """Do the work in one transaction; again if it and the workers' own waited for one another."""
        for left in range(TRIES - 1, -1, -1):
            try:
                async with self._connection() as connection, connection.transaction():
                    if audited is not None:
                        await _audit(connection, audited)
                    return await work(connection, within)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                if not left:
                    raise
        raise AssertionError

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Ours, one at a time however many commands there are: what sends and accepts has the others."""
        async with self._turn, self._pool.acquire() as connection:
            yield connection

    async def _recall(self, selection: Selection) -> None:
        """Ask the workers to put matching mail back, and give them a moment to do it."""
        payload = msgspec.json.encode(selection).decode()
        deadline: float | None = None
        while await self._owned(selection):  # of a long queue it takes its time: they are asked once at least
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + RECALL_FOR
            if now >= deadline:
                return
            await self._pool.execute(RECALL, CHANNEL, payload)
            await asyncio.sleep(RECALL_EVERY)

    async def _wake(self, word: Selection = WAKE) -> None:
        await self._pool.execute(RECALL, CHANNEL, msgspec.json.encode(word).decode())

    async def _owned(self, selection: Selection) -> bool:
        """Is any of it in the memory of a worker?"""
        async for within in self._steps(selection):
            async with self._connection() as connection:
                if await connection.fetchval(OWNED, *within):
                    return True
        return False

    async def _count(self, selection: Selection) -> tuple[int, int]:
        """How many fit, and how many of them an operator holds."""
        fit, kept = 0, 0
        async for within in self._steps(selection):
            async with self._connection() as connection:
                row = await connection.fetchrow(COUNT, *within)
            assert row is not None
            fit, kept = fit + row["all"], kept + row["kept"]
        return fit, kept

    async def _steered(self, selection: Selection, changed: int) -> Steered:
        waiting, kept = await self._count(selection)
        return Steered(changed=changed, waiting=waiting, kept=0 if self._operator else kept)


class MessageControl:
    """The same commands for one message of one tenant; None when this tenant has no message of that id."""

    def __init__(self, store: ControlStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock

    async def hold(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return await self._steer(self._store.hold, message_id, tenant, actor)

    async def release(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return await self._steer(self._store.release, message_id, tenant, actor)

    async def retry(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return await self._steer(self._store.retry, message_id, tenant, actor)

    async def bounce(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return await self._steer(self._store.bounce, message_id, tenant, actor)

    async def cancel(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        return await self._steer(self._store.cancel, message_id, tenant, actor)

    async def reschedule(self, message_id: int, due_at: datetime, *, tenant: str, actor: str) -> Steered | None:
        return await self._steer(partial(self._store.reschedule, due_at=due_at), message_id, tenant, actor)

    async def _steer(self, command: Steer, message_id: int, tenant: str, actor: str) -> Steered | None:
        if not await self._store.knows(message_id, tenant):
            return None
        return await command(Selection(message=message_id, tenant=tenant), actor=actor, now=self._clock())


def _rows(tag: str) -> int:
    """How many rows a statement has changed, of what the server says when it is done."""
    return int(tag.rpartition(" ")[2])


async def _audit(connection: Connection, command: Command) -> None:
    await connection.execute(AUDIT, command.actor, command.action, msgspec.to_builtins(command.selection))
