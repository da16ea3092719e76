"""The schema: numbered SQL files, each applied once, in order, and the monthly partitions of `events`."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable

import asyncpg
import structlog

from mailerd.db import Connection
from mailerd.errors import DatabaseError

log = structlog.get_logger()

LOCK = 0x6D61696C  # of every change of the schema, all nodes together
FILE = re.compile(r"(?P<version>\d{4})_(?P<name>\w+)\.sql")
PARTITION = re.compile(r"events_[0-9]{4}_[0-9]{2}")
MONTHS = 3  # of partitions kept ready: this one and the next two
# All writers of events wait behind somebody who waits for their table: not for long, and rather more often.
LOCK_TIMEOUT = "200ms"
TRIES = 20
TRY_AGAIN = 1.0  # seconds
SPARED = timedelta(days=7)  # a month that a follower is still reading, counted from its last step
ERA_BITS = 40  # of transaction numbers within one era: a trillion

WATCHED = 7.0  # seconds, in which a living worker beats twice
BEATS = "SELECT number, node, beat FROM workers"

TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version    int PRIMARY KEY,
        name       text NOT NULL,
        checksum   text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped(directory: Traversable | None = None) -> list[Migration]:
    """The migrations of this mailerd, in their order."""
    found = [
        Migration(int(match["version"]), match["name"], file.read_text(encoding="utf-8"))
        for file in (directory or files("mailerd") / "migrations").iterdir()
        if (match := FILE.fullmatch(file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


async def migrate(connection: Connection, migrations: Sequence[Migration] | None = None) -> int:
    """Apply what is missing, each in a transaction of its own; how many that were.

    Several nodes may call this at the same time: one works, the others wait. Raises `DatabaseError`, having changed
    nothing, when a newer mailerd was here, when an applied migration has been edited since, or when a mailerd that
    does not know the new schema is still at work with this database: it would misread what newer ones write.
    """
    known = shipped() if migrations is None else migrations
    if await _is_behind(connection, known) and (nodes := await _at_work(connection)):
        raise DatabaseError(
            f"this database has to be migrated, and an older mailerd still works with it (node {', '.join(nodes)}): "
            "stop mailerd on all nodes, then start the new one"
        )
    count = 0
    while await _apply_next(connection, known):
        count += 1
    return count


async def _is_behind(connection: Connection, known: Sequence[Migration]) -> bool:
    """Was it made by an older mailerd?"""
    if await connection.fetchval("SELECT to_regclass('schema_migrations') IS NULL OR to_regclass('workers') IS NULL"):
        return False
    latest = await connection.fetchval("SELECT max(version) FROM schema_migrations")
    return latest is not None and latest < max(migration.version for migration in known)


async def _at_work(connection: Connection) -> list[str]:
    """The nodes whose workers are seen to beat. What a crash left does not, and that takes a while to see."""
    before = {row["number"]: row["beat"] for row in await connection.fetch(BEATS)}
    if not before:
        return []
    await asyncio.sleep(WATCHED)
    rows = await connection.fetch(BEATS)
    return sorted({row["node"] for row in rows if before.get(row["number"], -1) != row["beat"]})


async def _apply_next(connection: Connection, known: Sequence[Migration]) -> bool:
    async with connection.transaction():
        # Of the transaction, not of the session: it also holds behind a transaction-pooling PgBouncer.
        await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})", timeout=None)
        await connection.execute(TABLE)
        rows = await connection.fetch("SELECT version, name, checksum FROM schema_migrations")
        applied = {row["version"]: row["checksum"] for row in rows}
        _check(applied, known)
        missing = next((migration for migration in known if migration.version not in applied), None)
        if missing is None:
            return False
        try:
            await connection.execute(missing.sql, timeout=None)
        except asyncpg.PostgresError as error:
            raise DatabaseError(f"migration {missing.version:04}_{missing.name} failed: {error}") from error
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            missing.version,
            missing.name,
            missing.checksum,
        )
    log.info("schema.migrated", version=missing.version, name=missing.name)
    return True


def _check(applied: dict[int, str], known: Sequence[Migration]) -> None:
    ours = {migration.version: migration for migration in known}
    if unknown := sorted(applied.keys() - ours.keys()):
        raise DatabaseError(
            f"this database was migrated by a newer mailerd: its schema is at version {unknown[-1]}, "
            f"this mailerd knows {max(ours, default=0)}. "
            "Start the newer mailerd, or restore the backup made before the upgrade"
        )
    for version, checksum in applied.items():
        if ours[version].checksum != checksum:
            raise DatabaseError(
                f"migration {version:04}_{ours[version].name} was changed after it was applied to this database: "
                "install the mailerd that applied it; a change of the schema belongs into a new migration"
            )


async def continue_order(connection: Connection) -> bool:
    """See that new events stand behind all others, also when the database came from a dump of another cluster.

    Whether it did. Call at start, before anything is written.
    """
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})", timeout=None)
        row = await connection.fetchrow(
            "SELECT greatest((SELECT max(txid) FROM events), (SELECT max(txid) FROM followers),"
            " (SELECT max(txid) FROM webhooks), (SELECT max(txid) FROM webhook_replays), 0) AS last, "
            "pg_snapshot_xmax(pg_current_snapshot())::text::bigint + events_era() AS next"
        )
        assert row is not None
        if row["last"] < row["next"]:
            return False
        era = ((row["last"] >> ERA_BITS) + 1) << ERA_BITS
        await connection.execute(
            "CREATE OR REPLACE FUNCTION events_era() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE "
            f"AS 'SELECT {era}::bigint'"
        )
    log.warning("events.continued", era=era >> ERA_BITS, reason="the database was restored into another cluster")
    return True


async def ensure_event_partitions(connection: Connection, now: datetime) -> list[str]:
    """Have a partition of `events` for the month of `now` and the next two; the names of those made.

    Events that `events_rest` caught for such a month move into it. Call at start and daily. Waits for a long reader of
    events without holding up others; raises `LockNotAvailableError` when it does not end.
    """
    made = []
    for offset in range(MONTHS):
        first, next_first = _month(now, offset), _month(now, offset + 1)
        name = f"events_{first:%Y_%m}"
        if not await _exists(connection, name):
            await _soon(connection, partial(_make_partition, connection, name, first, next_first))
            made.append(name)
    return made


async def _exists(connection: Connection, table: str) -> bool:
    return await connection.fetchval("SELECT to_regclass($1)", table) is not None


async def _make_partition(connection: Connection, name: str, first: datetime, next_first: datetime) -> None:
    if await _exists(connection, name):  # another node was faster
        return
    await connection.execute("LOCK TABLE events_rest IN ACCESS EXCLUSIVE MODE")  # nothing falls in while we move
    await connection.execute(f"CREATE TABLE {name} (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    await connection.execute(
        f"WITH moved AS (DELETE FROM events_rest WHERE at >= $1 AND at < $2 RETURNING *) "
        f"INSERT INTO {name} SELECT * FROM moved",
        first,
        next_first,
    )
    await connection.execute(
        f"ALTER TABLE events ATTACH PARTITION {name} "
        f"FOR VALUES FROM ('{first.isoformat()}') TO ('{next_first.isoformat()}')"
    )


async def drop_event_partitions(connection: Connection, before: datetime) -> list[str]:
    """Drop the months of `events` that ended before that time; the names of those dropped.

    A month that somebody who follows events has not read yet stays while that follower moves on, and for a week after
    its last step. Then it goes all the same: a follower that is gone, or stuck, for longer than the retention of events
    loses what it has not read, and the log says so. Nobody who writes events waits for this for longer than
    `LOCK_TIMEOUT`; raises `LockNotAvailableError` when a long reader does not end.
    """
    rows = await connection.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'events'::regclass"
    )
    dropped = []
    for name in sorted(row["relname"] for row in rows):
        if not PARTITION.fullmatch(name) or name >= f"events_{before:%Y_%m}":
            continue
        unread = await _unread_by(connection, name)
        if spared := [follower for follower, alive in unread if alive]:
            log.warning("events.spared", partition=name, unread_by=spared)
            continue
        if unread:
            log.error("events.dropped_unread", partition=name, lost_by=[follower for follower, _ in unread])
        await _soon(connection, partial(_drop, connection, name))
        log.info("events.dropped", partition=name)
        dropped.append(name)
    return dropped


async def _drop(connection: Connection, partition: str) -> None:
    # Not DETACH ... CONCURRENTLY: that is not for a table with a default partition.
    await connection.execute(f"DROP TABLE IF EXISTS {partition}")


async def _unread_by(connection: Connection, partition: str) -> list[tuple[str, bool]]:
    """The followers that have not read it to its end, and whether each has moved on lately."""
    rows = await connection.fetch(
        f"SELECT name, moved_at > now() - $1::interval AS alive FROM followers "
        f"WHERE EXISTS (SELECT FROM {partition} AS e WHERE (e.txid, e.seq) > (followers.txid, followers.seq)) "
        "ORDER BY name",
        SPARED,
    )
    return [(row["name"], row["alive"]) for row in rows]


async def _soon(connection: Connection, change: Callable[[], Awaitable[None]]) -> None:
    """Make a change of the table in a transaction that does not wait long for its locks, but is tried again."""
    for left in reversed(range(TRIES)):
        try:
            async with connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})", timeout=None)
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                return await change()
        except asyncpg.LockNotAvailableError:
            if not left:
                raise
        await asyncio.sleep(TRY_AGAIN)
    return None


def _month(now: datetime, offset: int) -> datetime:
    """The first moment of the month `offset` months after that of `now`, in UTC."""
    utc = now.astimezone(UTC)
    years, month = divmod(utc.month - 1 + offset, 12)
    return datetime(utc.year + years, month + 1, 1, tzinfo=UTC)
