"""Endpoints in the database, as those who use the API and the command line see and change them.

Whoever changes one counts up its version and notifies `CHANNEL`; whoever tells the endpoints (`teller`) listens.
"""

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from mailerd.db import Pool
from mailerd.events import HORIZON, LAST_SEQ, EventStore, Position
from mailerd.feedback.webhooks.signing import BYTES
from mailerd.feedback.webhooks.values import WEBHOOK, Replay, Told, Webhook, format_id
from mailerd.queue.ids import first_id_at

CHANNEL = "mailerd_webhooks"
TELL = "SELECT pg_notify($1, $2)"
AUDIT = "INSERT INTO audit (actor, action, data) VALUES ($1, $2, $3)"
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('webhooks of ' || $1, 0))"  # so that the count holds
COUNT = "SELECT count(*) FROM webhooks WHERE tenant = $1"

COLUMNS = (
    "id, tenant, url, events, streams, description, batch_events, batch_wait, secret, old_secret, old_until, "
    "disabled_at, disabled_why, failing_since, txid, seq, version, created_at, created_by"
)
ADD = f"""
    INSERT INTO webhooks (id, tenant, url, events, streams, description, batch_events, batch_wait, secret, txid, seq,
                          created_at, created_by)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, {HORIZON} - 1, {LAST_SEQ}, $10, $11)
    RETURNING {COLUMNS}
"""
ONE = f"SELECT {COLUMNS} FROM webhooks WHERE id = $1 AND ($2::text IS NULL OR tenant = $2)"
ALL = f"SELECT {COLUMNS} FROM webhooks WHERE $1::text IS NULL OR tenant = $1 ORDER BY id"
ENABLED = f"""
    SELECT {COLUMNS} FROM webhooks
     WHERE disabled_at IS NULL AND ($1::bigint[] IS NULL OR id = ANY ($1)) ORDER BY id
"""
CHANGE = f"""
    UPDATE webhooks
       SET url = coalesce($3, url), events = coalesce($4, events), streams = coalesce($5, streams),
           description = coalesce($6, description), batch_events = coalesce($7, batch_events),
           batch_wait = coalesce($8, batch_wait),
           disabled_at = CASE $9::bool WHEN true THEN NULL WHEN false THEN coalesce(disabled_at, $10)
                                       ELSE disabled_at END,
           disabled_why = CASE WHEN $9 IS NULL THEN disabled_why WHEN $9 THEN ''
                               WHEN disabled_at IS NULL THEN $11 ELSE disabled_why END,
           failing_since = CASE WHEN $9 THEN NULL ELSE failing_since END,
           version = version + 1
     WHERE id = $1 AND tenant = $2
    RETURNING {COLUMNS}
"""
ROTATE = f"""
    UPDATE webhooks SET secret = $3, old_secret = secret, old_until = $4, version = version + 1
     WHERE id = $1 AND tenant = $2
    RETURNING {COLUMNS}
"""
DELETE = f"DELETE FROM webhooks WHERE id = $1 AND tenant = $2 RETURNING {COLUMNS}"
DELETE_PENDING = "DELETE FROM webhook_pending WHERE webhook_id = $1"
PENDING = "SELECT count(*) FROM webhook_pending WHERE webhook_id = $1"
RETRY = """
    INSERT INTO webhook_pending (webhook_id, id, key, txids, seqs, types, subjects, attempts, due_at, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $8)
"""
REPLAY_COLUMNS = "id, webhook_id, since, until, types, txid, seq, told, created_at, finished_at"
ADD_REPLAY = f"""
    INSERT INTO webhook_replays (id, webhook_id, since, until, types, txid, seq, created_at, created_by)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    RETURNING {REPLAY_COLUMNS}
"""
UNFINISHED = "SELECT count(*) FROM webhook_replays WHERE webhook_id = $1 AND finished_at IS NULL"
REPLAYS = f"SELECT {REPLAY_COLUMNS} FROM webhook_replays WHERE webhook_id = $1 ORDER BY id DESC LIMIT $2"
REPLAY = f"SELECT {REPLAY_COLUMNS} FROM webhook_replays WHERE webhook_id = $1 AND id = $2"
SLACK = timedelta(minutes=5)  # between the time of an event and that of its transaction


class WebhookStore:
    """Endpoints of tenants, who see none of others'."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, webhook: Webhook, *, limit: int, actor: str) -> Webhook | None:
        """Told of events from now on; None when its tenant has `limit` of them already. `position` is ours to set."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK, webhook.tenant)
            if await connection.fetchval(COUNT, webhook.tenant) >= limit:
                return None
            row = await connection.fetchrow(
                ADD,
                webhook.id,
                webhook.tenant,
                webhook.url,
                list(webhook.events),
                list(webhook.streams),
                webhook.description,
                webhook.batch_events,
                webhook.batch_wait,
                webhook.secret,
                webhook.created_at,
                actor,
            )
            assert row is not None
            await self._note(connection, webhook.id, actor, "webhook.create", {"url": webhook.url})
        return webhook_of(row)

    async def get(self, id_: int, tenant: str | None) -> Webhook | None:
        row = await self._pool.fetchrow(ONE, id_, tenant)
        return None if row is None else webhook_of(row)

    async def all(self, tenant: str | None) -> list[Webhook]:
        """Those of a tenant, or of all."""
        return [webhook_of(row) for row in await self._pool.fetch(ALL, tenant)]

    async def enabled(self, ids: Sequence[int] | None = None) -> list[Webhook]:
        """Those to be told, of these or of all."""
        return [webhook_of(row) for row in await self._pool.fetch(ENABLED, ids)]

    async def change(
        self,
        id_: int,
        tenant: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        streams: Sequence[str] | None = None,
        description: str | None = None,
        batch_events: int | None = None,
        batch_wait: int | None = None,
        enabled: bool | None = None,
        now: datetime,
        actor: str,
    ) -> Webhook | None:
        """Change what is not None; None when the tenant has none of that id. Enabled again, it goes on where it was."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(
                CHANGE,
                id_,
                tenant,
                url,
                None if events is None else list(events),
                None if streams is None else list(streams),
                description,
                batch_events,
                batch_wait,
                enabled,
                now,
                f"by {actor}",
            )
            if row is None:
                return None
            await self._note(connection, id_, actor, "webhook.change", {"url": row["url"], "enabled": enabled})
        return webhook_of(row)

    async def rotate(self, id_: int, tenant: str, *, old_until: datetime, actor: str) -> Webhook | None:
        """A new secret; the old one signs too until that time."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(ROTATE, id_, tenant, os.urandom(BYTES), old_until)
            if row is None:
                return None
            await self._note(connection, id_, actor, "webhook.rotate", {})
        return webhook_of(row)

    async def delete(self, id_: int, tenant: str, *, actor: str) -> Webhook | None:
        """With what is pending for it. Its log stays until its time is over."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(DELETE, id_, tenant)
            if row is None:
                return None
            await connection.execute(DELETE_PENDING, id_)
            await self._note(connection, id_, actor, "webhook.delete", {"url": row["url"]})
        return webhook_of(row)

    async def pending(self, id_: int) -> int:
        return int(await self._pool.fetchval(PENDING, id_))

    async def retry(self, webhook_id: int, pending_id: int, told: Told, *, now: datetime, actor: str) -> None:
        """Tell it once more, now, with all attempts before it."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                RETRY,
                webhook_id,
                pending_id,
                told.key,
                [position.txid for position in told.positions],
                [position.seq for position in told.positions],
                list(told.types),
                list(told.subjects),
                now,
            )
            await self._note(connection, webhook_id, actor, "webhook.retry", {"key": told.key})

    # replays

    async def add_replay(self, replay: Replay, *, limit: int, actor: str) -> Replay | None:
        """None when `limit` of its endpoint are not finished. `position` is ours to set."""
        since = int((replay.since - SLACK).timestamp() * 1000)
        position = await EventStore(self._pool).around(first_id_at(max(0, since)))
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK, str(replay.webhook_id))
            if await connection.fetchval(UNFINISHED, replay.webhook_id) >= limit:
                return None
            row = await connection.fetchrow(
                ADD_REPLAY,
                replay.id,
                replay.webhook_id,
                replay.since,
                replay.until,
                list(replay.types),
                *position,
                replay.created_at,
                actor,
            )
            assert row is not None
            await self._note(connection, replay.webhook_id, actor, "webhook.replay", {"since": str(replay.since)})
        return replay_of(row)

    async def replays(self, webhook_id: int, limit: int) -> list[Replay]:
        """The newest first."""
        return [replay_of(row) for row in await self._pool.fetch(REPLAYS, webhook_id, limit)]

    async def replay(self, webhook_id: int, id_: int) -> Replay | None:
        row = await self._pool.fetchrow(REPLAY, webhook_id, id_)
        return None if row is None else replay_of(row)

    async def _note(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        id_: int,
        actor: str,
        action: str,
        data: dict[str, Any],
    ) -> None:
        await connection.execute(AUDIT, actor, action, {"webhook": format_id(WEBHOOK, id_), **data})
        await connection.execute(TELL, CHANNEL, str(id_))


def webhook_of(row: asyncpg.Record) -> Webhook:
    values = dict(row)
    position = Position(values.pop("txid"), values.pop("seq"))
    values["events"], values["streams"] = tuple(values["events"]), tuple(values["streams"])
    return Webhook(position=position, **values)


def replay_of(row: asyncpg.Record) -> Replay:
    values = dict(row)
    position = Position(values.pop("txid"), values.pop("seq"))
    values["types"] = tuple(values["types"])
    return Replay(position=position, **values)
