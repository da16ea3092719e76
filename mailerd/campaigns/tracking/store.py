"""Hits in the database, and how far each file of them is stored."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncpg

from mailerd.campaigns.tracking.records import Hit
from mailerd.db import Connection, Pool
from mailerd.queue.ids import milliseconds_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FIELDS = "at, kind, message_id, campaign_id, contact_id, link, url, method, ip, user_agent, times"
TYPES = ("timestamptz", "text", "bigint", "bigint", "bigint", "int", "text", "text", "text", "text", "int")
SLACK = timedelta(minutes=5)  # between the clock that made an id and the one that made its events
OF_ONE = 500  # hits of one message read at a time

STORED = "SELECT bytes FROM hit_files WHERE name = $1"
# Whoever else is storing the same piece waits here, and then finds that it is stored.
BEGIN = "INSERT INTO hit_files (name, bytes) VALUES ($1, $3::bigint - $2::bigint) ON CONFLICT DO NOTHING RETURNING true"
GO_ON = "UPDATE hit_files SET bytes = $3 WHERE name = $1 AND bytes = $2 RETURNING true"
ADD = f"""
    INSERT INTO hits ({FIELDS})
    SELECT * FROM unnest({", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(TYPES, 1))})
"""
NAMES = "SELECT name FROM hit_files WHERE starts_with(name, $1)"
FORGET = "DELETE FROM hit_files WHERE name = ANY ($1::text[])"
# Held until the end of the transaction: of all nodes, one tells.
ALONE = "SELECT pg_try_advisory_xact_lock(hashtextextended('mailerd hits', 0))"
SETTLED = """
    SELECT DISTINCT message_id FROM (
        SELECT message_id FROM hits WHERE at <= $1 ORDER BY id LIMIT $2) AS oldest
"""
OF_MESSAGES = f"""
    SELECT hit.id, {", ".join(f"hit.{field}" for field in FIELDS.split(", "))}
      FROM unnest($1::bigint[]) AS wanted (message_id) CROSS JOIN LATERAL (
           SELECT * FROM hits WHERE hits.message_id = wanted.message_id ORDER BY at, id LIMIT {OF_ONE}) AS hit
     ORDER BY hit.message_id, hit.at, hit.id
"""
# Locked: who is erased meanwhile is erased after the events are there, or before they are written.
PEOPLE = """
    SELECT id, tenant, address, tracking FROM contacts WHERE id = ANY ($1::bigint[]) ORDER BY id FOR KEY SHARE
"""
MAILINGS = """
    SELECT c.id, c.tenant, coalesce(c.options->>'stream', '') AS stream,
           CASE WHEN jsonb_typeof(v.compiled->'links') = 'array'
                THEN jsonb_array_length(v.compiled->'links') ELSE 0 END AS links
      FROM campaigns AS c
      LEFT JOIN campaign_runs AS r ON r.campaign_id = c.id
      LEFT JOIN template_versions AS v ON v.id = r.version_id
     WHERE c.id = ANY ($1::bigint[])
"""
# Mail that is of no campaign and no contact is known by its event; one address, as it is tracked. Who of its tenant's
# contacts wants no tracking wants none there either.
MAILS = """
    SELECT e.message_id, e.tenant, e.address, e.stream, e.campaign, NOT EXISTS (
           SELECT FROM contacts AS c WHERE c.tenant = e.tenant AND c.address = e.address AND NOT c.tracking) AS tracking
      FROM events AS e
     WHERE e.message_id = ANY ($1::bigint[]) AND e.type = 'message.accepted' AND e.n = 1 AND e.at >= $2
"""
REMOVE = "DELETE FROM hits WHERE id = ANY ($1::bigint[]) RETURNING id"


class Stored(NamedTuple):
    id: int
    hit: Hit


class Person(NamedTuple):
    """Whom the mail was for; `tracking` is false for those who want nothing kept."""

    tenant: str
    address: str
    tracking: bool


class Mailing(NamedTuple):
    """What is true of all mail of a campaign. `links`: how many its template has, 0 when nobody knows."""

    tenant: str
    stream: str
    links: int


class Mail(NamedTuple):
    """One message that is of no campaign."""

    person: Person
    stream: str
    campaign: str  # as its sender calls it


class HitStore:
    """Each hit of a file is stored once, and leaves the table in the transaction of its event."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    # files

    async def stored(self, name: str) -> int:
        """So many bytes of this file are stored."""
        return await self._pool.fetchval(STORED, name) or 0

    async def add(self, name: str, begin: int, end: int, hits: Sequence[Hit]) -> bool:
        """Store what stands from `begin` to `end` in a file; False, and nothing is done, when that is not what is next.

        When the connection is lost it is not known: ask `stored()`.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            # What is first is inserted and never updated, so that a late try for a file that is done with fails.
            statement = GO_ON if begin else BEGIN
            if not await connection.fetchval(statement, name, begin, end):
                return False
            if hits:
                await connection.execute(ADD, *_columns(hits))
            return True

    async def files(self, node: str) -> list[str]:
        """The names of files of a node that something is stored of."""
        return [row["name"] for row in await self._pool.fetch(NAMES, f"{node}.")]

    async def forget(self, names: Collection[str]) -> None:
        """These files are no more."""
        await self._pool.execute(FORGET, list(names))

    # hits, in the caller's transaction

    async def alone(self, connection: Connection) -> bool:
        """Whether nobody else is at work on hits, until the transaction ends."""
        return bool(await connection.fetchval(ALONE))

    async def settled(self, connection: Connection, before: datetime, limit: int) -> list[int]:
        """The messages of the `limit` hits stored first, of those until `before`."""
        return [row["message_id"] for row in await connection.fetch(SETTLED, before, limit)]

    async def of_messages(self, connection: Connection, messages: Sequence[int]) -> list[Stored]:
        """The hits of these messages, by message and time; of each the first `OF_ONE`."""
        return [_stored(row) for row in await connection.fetch(OF_MESSAGES, messages)]

    @staticmethod
    def is_cut(hits: Sequence[Stored]) -> bool:
        """Whether a message may have more hits than these, which `of_messages` found."""
        return len(hits) == OF_ONE

    async def people(self, connection: Connection, contacts: Collection[int]) -> dict[int, Person]:
        """Those of these contacts who are still there, and stay until the transaction ends."""
        rows = await connection.fetch(PEOPLE, sorted(contacts))
        return {row["id"]: Person(row["tenant"], row["address"], row["tracking"]) for row in rows}

    async def mailings(self, connection: Connection, campaigns: Collection[int]) -> dict[int, Mailing]:
        rows = await connection.fetch(MAILINGS, sorted(campaigns))
        return {row["id"]: Mailing(row["tenant"], row["stream"], row["links"]) for row in rows}

    async def mails(self, connection: Connection, messages: Collection[int]) -> dict[int, Mail]:
        """Those of these messages of which is known that they were accepted."""
        if not messages:
            return {}
        since = datetime.fromtimestamp(milliseconds_of(min(messages)) / 1000, UTC) - SLACK
        rows = await connection.fetch(MAILS, sorted(messages), since)
        return {
            row["message_id"]: Mail(
                Person(row["tenant"], row["address"], row["tracking"]), row["stream"], row["campaign"]
            )
            for row in rows
        }

    async def remove(self, connection: Connection, ids: Collection[int]) -> set[int]:
        """Take these out of the table; those that were in it."""
        return {row["id"] for row in await connection.fetch(REMOVE, sorted(ids))}


def moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


def _columns(hits: Sequence[Hit]) -> tuple[list[object], ...]:
    return (
        [moment(hit.at) for hit in hits],
        [hit.kind for hit in hits],
        [hit.message_id for hit in hits],
        [hit.campaign_id for hit in hits],
        [hit.contact_id for hit in hits],
        [hit.link for hit in hits],
        [hit.url for hit in hits],
        [hit.method for hit in hits],
        [hit.ip for hit in hits],
        [hit.user_agent for hit in hits],
        [hit.times for hit in hits],
    )


def _stored(row: asyncpg.Record) -> Stored:
    id_, at, *rest = row.values()
    return Stored(id_, Hit(at=microseconds(at), **dict(zip(NAMED, rest, strict=True))))


NAMED = FIELDS.split(", ")[1:]
