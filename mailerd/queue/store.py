"""The rows of the queue: accept, claim, settle.

Every statement here is one round trip for many messages: what waits while one transaction runs goes into the next.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import structlog

from mailerd import events, failpoints
from mailerd.db import Connection
from mailerd.db.arrays import any_of, rows, unnested
from mailerd.errors import MailerdError
from mailerd.events import Event
from mailerd.queue import contents
from mailerd.queue.ids import format_message_id
from mailerd.queue.mail import Message, Queue, Recipient, queue_of
from mailerd.queue.suppression import Suppression, SuppressionStore

log = structlog.get_logger()


def queue_up(changed: str) -> str:
    """The statement by which the queues of the rows (queue, due_at, message_id) of `changed` are looked at in time.

    Queues are locked in the order of their names by code point, as Python sorts: every transaction does it so, whatever
    the database's language.
    """
    return f"""
    INSERT INTO queues (name, lane, flow, pool, next_due)
    SELECT queue, COALESCE(min(of.lane), 4), split_part(queue, '/', 3), split_part(queue, '/', 2), min(due_at)
      FROM {changed} LEFT JOIN messages AS of ON of.id = message_id
     GROUP BY queue ORDER BY queue COLLATE "C"
    ON CONFLICT (name) DO UPDATE SET next_due = LEAST(queues.next_due, EXCLUDED.next_due)
    """


MESSAGE_COLUMNS = (
    "id, sender, stream, pool, credential, tenant, size, accepted_at, smtputf8, eight_bit, ret, envid, labels, total,"
    " campaign, lane, require_tls, topic, unsubscribe, render"
)

MESSAGE_TYPES = (
    *("bigint", "text", "text", "text", "text", "text", "int", "timestamptz", "bool", "bool", "text", "text", "jsonb"),
    *("int", "text", "smallint", "bool", "text", "bool"),
)  # without `render`
RECIPIENT_TYPES = ("bigint", "int", "text", "text", "text", "int", "timestamptz", "timestamptz", "text", "text")
QUEUE_TYPES = ("text", "smallint", "text", "text", "timestamptz")
LATER = "message_id, n, due_at, attempts, reason, last_reply, in_doubt, delay_notified"
LATER_TYPES = ("bigint", "int", "timestamptz", "int", "text", "text", "bool", "bool")

# A worker takes mail only while its lease stands: whoever frees the mail of a dead worker first deletes the lease, and
# waits for this lock. Else a transaction that ends after that would give mail to a worker that nobody watches any more.
LEASE = "SELECT number FROM workers WHERE number = $1 FOR KEY SHARE"


def _accept(alike: Container[int]) -> str:
    """The statement that stores messages. `alike`: which parameters are one value for all, see `unnested`.

    One statement is one transaction: message, recipients, queues and events stand together or not at all.
    """
    pending = "$14::int" if 14 in alike else "unnest($14::int[])"
    return f"""
    WITH lease AS MATERIALIZED (
        SELECT number FROM workers WHERE number = $45 FOR KEY SHARE
    ), held AS MATERIALIZED (
        SELECT $45::int IS NULL OR EXISTS (SELECT FROM lease) AS stands
    ), message AS (
        INSERT INTO messages ({MESSAGE_COLUMNS}, pending, content)
        SELECT {unnested(MESSAGE_TYPES, alike=alike)}, unnest($46::text[]), {pending},
               {unnested(("bytea",), first=20, alike=alike)}
         WHERE (SELECT stands FROM held)
    ), recipient AS (
        INSERT INTO recipients (message_id, n, address, domain, queue, owner, due_at, expires_at, notify, orcpt)
        SELECT {unnested(RECIPIENT_TYPES, first=21, alike=alike)}
         WHERE (SELECT stands FROM held)
    ), queue AS (
        INSERT INTO queues (name, lane, flow, pool, next_due)
        SELECT {unnested(QUEUE_TYPES, first=31)}
         WHERE (SELECT stands FROM held)
        ON CONFLICT (name) DO UPDATE SET next_due = LEAST(queues.next_due, EXCLUDED.next_due)
    )
    INSERT INTO events ({events.COLUMNS}) SELECT {unnested(events.TYPES, first=36, alike=alike)}
     WHERE (SELECT stands FROM held)
    """


ACCEPT = _accept(())
# Of a campaign's mail most is the same for all. As a value it is written once, instead of once for each into an array:
# but for ids, address, domain, queue, render and the event's data.
ALIKE = frozenset([*range(2, 20 + 1), 22, *range(26, 30 + 1), 36, 37, 39, 41, 43, 44])
ACCEPT_ALIKE = _accept(ALIKE)

# Events are inserted only for recipients that this statement really took away or put back, so a batch that is sent
# again after a lost connection changes nothing. Finished recipients go whoever owns them now: they were answered.
SETTLING = f"""
    WITH finished AS (
        DELETE FROM recipients USING {rows("message_id, n", ("bigint", "int"))} AS done
         WHERE recipients.message_id = done.message_id AND recipients.n = done.n
     RETURNING recipients.message_id, recipients.n
    ), deferred AS (
        UPDATE recipients
           SET owner = NULL, due_at = later.due_at, attempts = later.attempts,
               reason = CASE WHEN held THEN recipients.reason ELSE later.reason END,
               last_reply = later.last_reply, in_doubt = later.in_doubt, delay_notified = later.delay_notified
          FROM {rows(LATER, LATER_TYPES, first=3)} AS later
         WHERE recipients.message_id = later.message_id AND recipients.n = later.n AND recipients.owner = $11
     RETURNING recipients.message_id, recipients.n
    ), queue AS (
        INSERT INTO queues (name, lane, flow, pool, next_due)
        SELECT {unnested(QUEUE_TYPES, first=12)}
        ON CONFLICT (name) DO UPDATE SET next_due = LEAST(queues.next_due, EXCLUDED.next_due)
    ), single AS (
        DELETE FROM messages WHERE id = {any_of(17, "bigint")}
    ), several AS (
        UPDATE messages SET pending = pending - gone.recipients
          FROM (SELECT message_id, count(*)::int AS recipients FROM finished
                 WHERE message_id = {any_of(18, "bigint")} GROUP BY message_id) AS gone
         WHERE id = gone.message_id
    ), touched AS (
        SELECT message_id, n FROM finished UNION ALL SELECT message_id, n FROM deferred
    )"""
WRITING = f"""
    INSERT INTO events ({events.COLUMNS})
    SELECT {events.COLUMNS} FROM {events.rows_sql(19)} JOIN touched USING (message_id, n)
"""
SETTLE = SETTLING + WRITING
SETTLE_TELLING = f"{SETTLING}, written AS ({WRITING}) SELECT message_id, n FROM touched"  # whom it really was about

DELETE_FINISHED = "DELETE FROM messages WHERE id = ANY ($1::bigint[]) AND pending <= 0"

KNOWN_MESSAGES = "SELECT id FROM messages WHERE id = ANY ($1::bigint[])"
# Of a connection that was lost the server may hear only when it is done with what it was told there.
UNDER_WAY = """
    SELECT EXISTS (SELECT FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
                    WHERE held.relation = 'messages'::regclass AND held.mode = 'RowExclusiveLock'
                      AND activity.datname = current_database() AND activity.xact_start < $1)
"""
NOW = "SELECT clock_timestamp()"
KNOWN_EVENTS = "SELECT DISTINCT message_id FROM events WHERE message_id = ANY ($1::bigint[]) AND at >= $2"
WITHDRAW = """
    WITH recipient AS (DELETE FROM recipients WHERE message_id = ANY ($1::bigint[])),
         event AS (DELETE FROM events WHERE message_id = ANY ($1::bigint[]) AND at >= $2)
    DELETE FROM messages WHERE id = ANY ($1::bigint[])
"""

# In each lane flows take turns: up to `$5` of them from the cursor on, found by jumping through the index from flow to
# flow, and of each those queues that have waited longest. Queues that wait, blocked or not due, are never looked at;
# but a flow of nothing else takes one of the `$5` places, so the last flow comes back also without a queue.
DUE_QUEUES = """
    SELECT lanes.lane, turn.flow, turn.n, ready.name, ready.pool
      FROM unnest($2::smallint[], $3::text[]) AS lanes (lane, after)
     CROSS JOIN LATERAL (
        WITH RECURSIVE turns (flow, n) AS (
            (SELECT flow, 1 FROM queues WHERE lane = lanes.lane AND flow > lanes.after ORDER BY flow LIMIT 1)
            UNION ALL
            SELECT next.flow, n + 1 FROM turns CROSS JOIN LATERAL (
                SELECT flow FROM queues WHERE lane = lanes.lane AND flow > turns.flow ORDER BY flow LIMIT 1) AS next
             WHERE n < $5
        ) SELECT flow, n FROM turns) AS turn
      LEFT JOIN LATERAL (
        SELECT name, pool, ready_at FROM queues
         WHERE lane = lanes.lane AND flow = turn.flow AND ready_at <= $1 AND pool = ANY ($4::text[])
         ORDER BY ready_at LIMIT $6) AS ready ON true
     WHERE ready.name IS NOT NULL OR turn.n = $5
     ORDER BY lanes.lane, turn.n, ready.ready_at
"""
DEPTH = """
    SELECT split_part(queue, '/', 1) AS stream,
           CASE WHEN held THEN 'held' WHEN attempts > 0 THEN 'deferred' ELSE 'queued' END AS state,
           count(*)::int AS recipients
      FROM recipients GROUP BY 1, 2
"""
# By code point, as Python sorts: every transaction locks queues in the same order, whatever the database's language.
LOCK_QUEUES = """SELECT FROM queues WHERE name = ANY ($1::text[]) ORDER BY name COLLATE "C" FOR UPDATE"""
CLAIM = """
    WITH due AS (
        SELECT due.message_id, due.n FROM unnest($1::text[], $2::int[]) AS wanted (queue, room)
         CROSS JOIN LATERAL (
            SELECT message_id, n FROM recipients
             WHERE queue = wanted.queue AND owner IS NULL AND NOT held AND due_at <= $3
             ORDER BY due_at LIMIT wanted.room FOR UPDATE SKIP LOCKED) AS due
    )
    UPDATE recipients SET owner = $4, reason = '' FROM due
     WHERE recipients.message_id = due.message_id AND recipients.n = due.n
 RETURNING recipients.message_id, recipients.n, address, domain, due_at, expires_at, attempts, notify, orcpt, in_doubt,
           delay_notified, returned, last_reply
"""
# What is left and due goes behind the other queues of its flow.
ADVANCE_QUEUES = """
    UPDATE queues SET blocked_until = NULL, reason = '', next_due = COALESCE(
        (SELECT GREATEST(first.due_at, LEAST($2, now())) FROM (
            SELECT due_at FROM recipients WHERE queue = queues.name AND owner IS NULL AND NOT held
             ORDER BY due_at LIMIT 1) AS first),
        'infinity')
     WHERE name = ANY ($1::text[])
"""
# `$2` bounds how many bytes of content come into memory; the rest is read when its attempt begins.
CLAIMED_MESSAGES = f"""
    SELECT {MESSAGE_COLUMNS},
           CASE WHEN render = '' AND sum(size) OVER (ORDER BY id) <= $2 THEN {contents.CONTENT} END AS content
      FROM messages WHERE id = ANY ($1::bigint[])
"""
CLAIM_EXPIRED = """
    WITH lease AS MATERIALIZED (
        SELECT number FROM workers WHERE number = $3 FOR KEY SHARE
    ), due AS (
        SELECT message_id, n FROM recipients
         WHERE owner IS NULL AND expires_at <= $1 AND EXISTS (SELECT FROM lease)
         ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    UPDATE recipients SET owner = $3, held = false, held_by_operator = false FROM due
     WHERE recipients.message_id = due.message_id AND recipients.n = due.n
 RETURNING recipients.message_id, recipients.n, address, domain, due_at, expires_at, attempts, notify, orcpt, in_doubt,
           delay_notified, returned, last_reply
"""
CONTENT = f"SELECT {contents.CONTENT} FROM messages WHERE id = $1"
BLOCK_QUEUES = """
    INSERT INTO queues (name, lane, flow, pool, next_due, blocked_until, reason)
    SELECT name, lane, flow, pool, 'infinity', until, reason
      FROM unnest($1::text[], $2::smallint[], $3::text[], $4::text[], $5::timestamptz[], $6::text[])
        AS blocked (name, lane, flow, pool, until, reason)
    ON CONFLICT (name) DO UPDATE SET blocked_until = EXCLUDED.blocked_until, reason = EXCLUDED.reason
"""
# The same for queues that were due: what another worker has put off meanwhile is not written twice.
PUT_OFF_QUEUES = f"{BLOCK_QUEUES} WHERE queues.ready_at <= $7"
# Up to `$2` queues behind the one named `$1`: so that whoever accepts mail for one of them waits for no more.
UNBLOCK_QUEUES = """
    WITH batch AS MATERIALIZED (
        SELECT name FROM queues WHERE name > $1 ORDER BY name LIMIT $2
    ), locked AS MATERIALIZED (
        SELECT name FROM queues
         WHERE name IN (SELECT name FROM batch) AND blocked_until IS NOT NULL
           AND COALESCE(substring(reason FROM '^effect ([0-9]+):') <> ALL ($3::text[]), true)
         ORDER BY name COLLATE "C" FOR UPDATE
    ), changed AS (
        UPDATE queues SET blocked_until = NULL, reason = '' WHERE name IN (SELECT name FROM locked)
    )
    SELECT name FROM batch ORDER BY name DESC LIMIT 1
"""
HASTEN = f"""
    WITH hastened AS (
        UPDATE recipients SET due_at = $2
         WHERE owner IS NULL AND NOT held AND due_at > $2
           AND (reason ~ ANY ($1::text[])
                OR reason ~ '^effect [0-9]+:' AND substring(reason FROM '^effect ([0-9]+):') <> ALL ($3::text[]))
     RETURNING queue, due_at, message_id
    )
    {queue_up("hastened")}
"""
# Not where others hold the row: who claims from it takes the reason away, and is right.
GIVE_REASONS = """
    WITH waiting AS (
        SELECT q.name, COALESCE(idle.reason, 'there is no pool ' || q.pool || ' any more') AS reason
          FROM queues AS q LEFT JOIN unnest($2::text[], $3::text[]) AS idle (pool, reason) ON idle.pool = q.pool
         WHERE (idle.pool IS NOT NULL OR q.pool <> ALL ($1::text[])) AND q.next_due < 'infinity'
           AND q.blocked_until IS NULL
           FOR UPDATE OF q SKIP LOCKED
    )
    UPDATE queues SET reason = waiting.reason FROM waiting
     WHERE queues.name = waiting.name AND queues.reason <> waiting.reason
"""
# A queue is known by its row; should one ever be missing, its mail would wait for ever. This finds such mail by
# jumping from queue name to queue name in the index of due recipients: up to `$3` of them from the one behind `$2` on.
# It answers with the last name, when there may be more.
MEND_QUEUES = f"""
    WITH RECURSIVE waiting AS (
        (SELECT queue, due_at, message_id, 1 AS n FROM recipients WHERE owner IS NULL AND NOT held AND queue > $2
          ORDER BY queue, due_at LIMIT 1)
        UNION ALL
        SELECT following.queue, following.due_at, following.message_id, n + 1 FROM waiting CROSS JOIN LATERAL (
            SELECT queue, due_at, message_id FROM recipients
             WHERE owner IS NULL AND NOT held AND queue > waiting.queue ORDER BY queue, due_at LIMIT 1) AS following
         WHERE n < $3
    ), missing AS (
        SELECT queue, due_at, message_id FROM waiting LEFT JOIN queues ON queues.name = waiting.queue
         WHERE queues.name IS NULL OR queues.next_due > GREATEST(waiting.due_at, $1)
    ), mended AS (
        {queue_up("missing")}
    )
    SELECT queue FROM waiting WHERE n = $3
"""
# Skips what others have locked, in whatever order: waiting for them could end in a deadlock.
FORGET_EMPTY_QUEUES = """
    DELETE FROM queues WHERE name IN (
        SELECT name FROM queues AS empty
         WHERE next_due = 'infinity' AND (blocked_until IS NULL OR blocked_until <= $1)
           AND NOT EXISTS (SELECT FROM recipients WHERE queue = empty.name AND owner IS NULL AND NOT held)
           FOR UPDATE SKIP LOCKED)
"""
DELETE_ORPHAN = """
    DELETE FROM recipients WHERE message_id = $1 AND n = $2 AND NOT EXISTS (SELECT FROM messages WHERE id = $1)
"""
FORGET_BODIES = "DELETE FROM messages WHERE pending <= 0 AND id < $1"


NOTHING_STORED = "INSERT 0 0"
MEND_AT_ONCE = 10_000  # queues: 100 ms of the database
UNBLOCK_AT_ONCE = 2_000  # queues


class LeaseLostError(MailerdError):
    """This worker was declared dead, so it must not take responsibility for mail."""


@dataclass(slots=True)
class Settled:
    """What became of one recipient: `due_at` None means it is finished, else when to try again and why it waits.

    `suppression` is what follows for the address: to be added, or counted if it is for a soft bounce.
    """

    recipient: Recipient
    event: Event | None
    due_at: datetime | None = None
    reason: str = ""
    suppression: Suppression | None = None


class Report(NamedTuple):
    """A report to a sender: the message, that it was accepted, and whom it is about, as message id and n."""

    message: Message
    accepted: Event
    about: frozenset[tuple[int, int]]


class QueueStore:
    """Messages and recipients as rows; see the package's docstring for who may touch which."""

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        *,
        keep_bodies: bool = False,
        suppressions: SuppressionStore | None = None,
    ) -> None:
        self._pool = pool
        self._suppressions = suppressions or SuppressionStore(pool)
        self._keep_bodies = keep_bodies
        self._mended = ""  # the queue that was looked at last

    async def accept(
        self,
        messages: Sequence[Message],
        accepted: Sequence[Event],
        owners: dict[int, int],
        connection: Connection | None = None,
    ) -> None:
        """Store the messages, durable when this returns. `owners` says which are kept in memory, by this worker.

        Raises LeaseLostError, with nothing stored, when that worker was declared dead.
        """
        beside = contents.beside(messages)
        if beside and connection is None:
            async with self._pool.acquire() as own, own.transaction():
                await self.accept(messages, accepted, owners, own)
            return
        parameters = _accept_parameters(messages, accepted, owners, beside)
        statement, parameters = _alike(parameters) or (ACCEPT, parameters)
        if await (connection or self._pool).execute(statement, *parameters) == NOTHING_STORED:
            raise LeaseLostError
        if beside and connection is not None:
            await contents.store(beside, connection)

    async def known(self, ids: list[int], since: datetime) -> set[int]:
        """Which of these messages were accepted, whether or not they are still in the queue."""
        queued = {row["id"] for row in await self._pool.fetch(KNOWN_MESSAGES, ids)}
        return queued | {row["message_id"] for row in await self._pool.fetch(KNOWN_EVENTS, ids, since)}

    async def server_time(self) -> datetime:
        """What the clock of the server says."""
        now: datetime = await self._pool.fetchval(NOW)
        return now

    async def under_way(self, before: datetime) -> bool:
        """Is a transaction under way that may store messages and was begun before, by the clock of the server?"""
        return bool(await self._pool.fetchval(UNDER_WAY, before))

    async def withdraw(self, ids: list[int], since: datetime) -> None:
        """Take back messages whose submitter was told that they were not accepted."""
        await self._pool.execute(WITHDRAW, ids, since)

    async def settle(
        self,
        batch: Sequence[Settled],
        *,
        worker: int,
        reports: Sequence[Report] = (),
    ) -> None:
        """Record a batch of results in one transaction, with the reports to senders and suppressions that they caused.

        May be called again with the same batch after a lost connection: what was recorded stays as it is. Of results
        that another worker has recorded, while we were thought dead, neither reports nor suppressions follow.
        """
        parameters, several = _settle_parameters(batch, reports, worker, keep_bodies=self._keep_bodies)
        suppressing = [
            ((settled.recipient.message.id, settled.recipient.n), settled.suppression)
            for settled in batch
            if settled.suppression is not None
        ]
        if not several and not reports and not suppressing:
            await self._pool.execute(SETTLE, *parameters)
            return
        async with self._pool.acquire() as connection, connection.transaction():
            # First, for it locks the queues of the reports too, all of them in the order of names.
            recorded = {tuple(row) for row in await connection.fetch(SETTLE_TELLING, *parameters)}
            if due := [report for report in reports if not recorded.isdisjoint(report.about)]:
                await self.accept(
                    [report.message for report in due], [report.accepted for report in due], {}, connection
                )
            if followed := [suppression for key, suppression in suppressing if key in recorded]:
                await self._suppressions.record(followed, connection)
            if several and not self._keep_bodies:
                await connection.execute(DELETE_FINISHED, several)

    async def due_queues(
        self, *, now: datetime, after: dict[int, str], pools: list[str], flows: int, queues: int
    ) -> tuple[list[Queue], dict[int, str]]:
        """Queues of these pools with mail that is due, by lanes, in the order in which flows take turns.

        `after` names the lanes to look at, and for each the flow that had its turn last ("" for the first ones next).
        Up to `flows` flows of a lane are looked at, and of each up to `queues` queues found. Beside the queues: the
        last flow that was looked at in each lane where there may be more.
        """
        rows = await self._pool.fetch(DUE_QUEUES, now, list(after), list(after.values()), pools, flows, queues)
        found = [Queue(row["name"], row["lane"], row["flow"], row["pool"]) for row in rows if row["name"] is not None]
        return found, {row["lane"]: row["flow"] for row in rows if row["n"] == flows}

    async def claim(self, wanted: dict[str, int], *, now: datetime, worker: int, bytes_: int) -> list[Message]:
        """Take up to so many due recipients of each queue for this worker; content comes with `bytes_` of them."""
        names = sorted(wanted)
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(LEASE, worker) is None:
                return []
            await connection.execute(LOCK_QUEUES, names)
            rows = await connection.fetch(CLAIM, names, [wanted[name] for name in names], now, worker)
            await connection.execute(ADVANCE_QUEUES, names, now)
            if failpoints.ON:
                failpoints.reached("claim.before_commit")
        return await self._messages(rows, bytes_)

    async def claim_expired(self, *, now: datetime, worker: int, limit: int) -> list[Message]:
        """Take recipients past their expiry, also held or blocked ones, so that they can be bounced."""
        return await self._messages(await self._pool.fetch(CLAIM_EXPIRED, now, limit, worker), 0)

    async def _messages(self, rows: Sequence[asyncpg.Record], bytes_: int) -> list[Message]:
        ids = list({row["message_id"] for row in rows})
        found = await self._pool.fetch(CLAIMED_MESSAGES, ids, bytes_) if ids else []
        messages = {row["id"]: Message(**row) for row in found}
        orphans = []
        for row in rows:
            fields = {name: value for name, value in row.items() if name != "message_id"}
            if (message := messages.get(row["message_id"])) is None:
                orphans.append((row["message_id"], row["n"]))
            else:
                message.recipients.append(Recipient(message, **fields))
        if orphans:  # cancelled at this very moment, or a database put together from two backups
            log.warning("recipients.orphaned", recipients=len(orphans))
            await self._pool.executemany(DELETE_ORPHAN, orphans)
        return list(messages.values())

    async def content(self, message_id: int) -> bytes | None:
        """The message's bytes; None when it is gone. LookupError: it is there without them, and must not be dropped."""
        row = await self._pool.fetchrow(CONTENT, message_id)
        if row is None:
            return None
        if row[0] is None:
            raise LookupError(f"the content of message {format_message_id(message_id)} is not in the database")
        value: bytes = row[0]
        return value

    async def block(self, blocked: Mapping[Queue, tuple[datetime, str]]) -> None:
        """Nothing of these queues is claimed before the time given, for the reason given."""
        queues = sorted(blocked)  # by name, as all transactions lock them
        untils = [blocked[queue][0] for queue in queues]
        reasons = [blocked[queue][1] for queue in queues]
        await self._pool.execute(BLOCK_QUEUES, *_columns(queues), untils, reasons)

    async def hasten(self, reasons: Sequence[str], *, now: datetime, effects: Sequence[int] | None = None) -> None:
        """Mail that waits for a reason in which one of these patterns is found is due now; reads the whole table.

        So is mail that waits for any effect but `effects`, if they are given.
        """
        await self._pool.execute(HASTEN, reasons, now, None if effects is None else [str(id_) for id_ in effects])

    async def unblock(self, *, but_for: Collection[int] = ()) -> None:
        """Whatever blocked queues is over, or may be: look at them again, but for those that wait for these effects."""
        last: str | None = ""
        while last is not None:
            last = await self._pool.fetchval(UNBLOCK_QUEUES, last, UNBLOCK_AT_ONCE, [str(id_) for id_ in but_for])

    async def put_off(self, queues: Mapping[Queue, tuple[datetime, str]], *, now: datetime) -> None:
        """As `block`, for queues that had mail due at `now`, as long as they still have."""
        names = sorted(queues)
        untils = [queues[queue][0] for queue in names]
        reasons = [queues[queue][1] for queue in names]
        await self._pool.execute(PUT_OFF_QUEUES, *_columns(names), untils, reasons, now)

    async def give_reasons(self, pools: tuple[list[str], dict[str, str]]) -> None:
        """Say of queues that nobody here claims why: their pool cannot send, or is not among those known any more."""
        known, idle = pools
        await self._pool.execute(GIVE_REASONS, known, list(idle), list(idle.values()))

    async def depth(self) -> dict[tuple[str, str], int]:
        """How many recipients wait, by stream and state; reads the whole table."""
        return {(row["stream"], row["state"]): row["recipients"] for row in await self._pool.fetch(DEPTH)}

    async def mend_queues(self, now: datetime) -> None:
        """Make sure that every waiting recipient's queue is known: of so many queues at each call, in turns."""
        self._mended = await self._pool.fetchval(MEND_QUEUES, now, self._mended, MEND_AT_ONCE) or ""

    async def forget(self, *, now: datetime, bodies_before: int | None) -> None:
        """Drop the rows of empty queues, and finished messages with ids below `bodies_before`."""
        await self._pool.execute(FORGET_EMPTY_QUEUES, now)
        if bodies_before is not None:
            await self._pool.execute(FORGET_BODIES, bodies_before)


def _columns(queues: Sequence[Queue]) -> tuple[list[str], list[int], list[str], list[str]]:
    return (
        [queue.name for queue in queues],
        [queue.lane for queue in queues],
        [queue.flow for queue in queues],
        [queue.pool for queue in queues],
    )


def _queues(due: Iterable[tuple[Recipient, datetime]]) -> tuple[Sequence[Any], ...]:
    """The earliest due time of each queue, in the order of names, which is the order all transactions lock them in."""
    earliest: dict[str, tuple[Recipient, datetime]] = {}
    for recipient, at in due:
        name = recipient.queue
        if name not in earliest or at < earliest[name][1]:
            earliest[name] = (recipient, at)
    found = [earliest[name] for name in sorted(earliest)]
    return *_columns([queue_of(recipient) for recipient, _ in found]), [at for _, at in found]


def _accept_parameters(
    messages: Sequence[Message], accepted: Sequence[Event], owners: dict[int, int], beside: Container[int]
) -> tuple[Any, ...]:
    """Parameters of ACCEPT; the contents of those in `beside` are written by themselves."""
    recipients = [recipient for message in messages for recipient in message.recipients]
    return (
        [message.id for message in messages],
        [message.sender for message in messages],
        [message.stream for message in messages],
        [message.pool for message in messages],
        [message.credential for message in messages],
        [message.tenant for message in messages],
        [message.size for message in messages],
        [message.accepted_at for message in messages],
        [message.smtputf8 for message in messages],
        [message.eight_bit for message in messages],
        [message.ret for message in messages],
        [message.envid for message in messages],
        [message.labels for message in messages],
        [message.total for message in messages],
        [message.campaign for message in messages],
        [message.lane for message in messages],
        [message.require_tls for message in messages],
        [message.topic for message in messages],
        [message.unsubscribe for message in messages],
        [b"" if message.render else None if message.id in beside else message.content for message in messages],
        [recipient.message.id for recipient in recipients],
        [recipient.n for recipient in recipients],
        [recipient.address for recipient in recipients],
        [recipient.domain for recipient in recipients],
        [recipient.queue for recipient in recipients],
        [owners.get(recipient.message.id) for recipient in recipients],
        [recipient.due_at for recipient in recipients],
        [recipient.expires_at for recipient in recipients],
        [recipient.notify for recipient in recipients],
        [recipient.orcpt for recipient in recipients],
        *_queues((recipient, recipient.due_at) for recipient in recipients if recipient.message.id not in owners),
        *events.parameters(accepted),
        next(iter(owners.values()), None),
        [message.render for message in messages],
    )


def _alike(parameters: Sequence[Any]) -> tuple[str, tuple[Any, ...]] | None:
    """ACCEPT_ALIKE and its parameters, if these are of several rows that are as alike as that."""
    found = list(parameters)
    for number in ALIKE:
        column = found[number - 1]
        if len(column) < 2 or column.count(column[0]) != len(column):
            return None
        found[number - 1] = column[0]
    return ACCEPT_ALIKE, tuple(found)


def _settle_parameters(
    batch: Sequence[Settled], reports: Sequence[Report], worker: int, *, keep_bodies: bool
) -> tuple[tuple[Any, ...], list[int]]:
    """Parameters of SETTLE, and the messages that are finished only when their last recipient is."""
    finished = [settled.recipient for settled in batch if settled.due_at is None]
    deferred = [settled for settled in batch if settled.due_at is not None]
    messages = {recipient.message.id: recipient.message for recipient in finished}
    several = [message.id for message in messages.values() if keep_bodies or message.total > 1]
    waiting = [(settled.recipient, settled.due_at) for settled in deferred if settled.due_at is not None]
    waiting += [(recipient, recipient.due_at) for report in reports for recipient in report.message.recipients]
    parameters = (
        [recipient.message.id for recipient in finished],
        [recipient.n for recipient in finished],
        [settled.recipient.message.id for settled in deferred],
        [settled.recipient.n for settled in deferred],
        [settled.due_at for settled in deferred],
        [settled.recipient.attempts for settled in deferred],
        [settled.reason for settled in deferred],
        [settled.recipient.last_reply for settled in deferred],
        [settled.recipient.in_doubt for settled in deferred],
        [settled.recipient.delay_notified for settled in deferred],
        worker,
        *_queues(waiting),
        [message.id for message in messages.values() if not (keep_bodies or message.total > 1)],
        several,
        *events.parameters([settled.event for settled in batch if settled.event is not None]),
    )
    return parameters, several
