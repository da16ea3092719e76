"""Looking: one message with all that happened to it, searches, and what waits where."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from mailerd.queue.ids import first_id_at, milliseconds_of
from mailerd.queue.views import (
    FINAL_STATES,
    AttemptView,
    MailFilters,
    MessageSummary,
    MessageView,
    QueueView,
    RecipientView,
)

SLACK = timedelta(minutes=5)  # between the clock that made an id and the one that made its events

EVENTS = """
    SELECT at, type, message_id, n, address, data FROM events
     WHERE message_id = ANY ($1::bigint[]) AND ($2::text IS NULL OR tenant = $2) AND at >= $3
     ORDER BY message_id DESC, at, n
"""
WAITING = """
    SELECT r.message_id, r.n, r.owner, r.held, r.due_at, r.expires_at, r.attempts, r.last_reply, r.in_doubt,
           CASE WHEN r.owner IS NULL AND q.blocked_until > now() THEN q.reason ELSE r.reason END AS reason,
           GREATEST(r.due_at, CASE WHEN r.owner IS NULL THEN q.blocked_until END) AS until
      FROM recipients AS r LEFT JOIN queues AS q ON q.name = r.queue
     WHERE r.message_id = ANY ($1::bigint[])
"""
SEARCH = """
    SELECT DISTINCT message_id FROM events
     WHERE type = 'message.accepted' AND ($1::text IS NULL OR tenant = $1) AND message_id < $2 AND message_id >= $3
       AND ($4::text IS NULL OR address = $4) AND ($5::text IS NULL OR data->>'sender' = $5)
       AND ($6::text IS NULL OR data->'labels' ? $6)
     ORDER BY message_id DESC LIMIT $7
"""
QUEUES = """
    SELECT r.queue AS name, count(*)::int AS recipients, count(*) FILTER (WHERE r.held)::int AS held,
           count(*) FILTER (WHERE r.owner IS NOT NULL)::int AS in_memory, min(r.due_at) AS next_due,
           max(q.blocked_until) AS blocked_until, max(q.reason) AS reason,
           min(m.accepted_at) AS oldest
      FROM recipients AS r JOIN messages AS m ON m.id = r.message_id LEFT JOIN queues AS q ON q.name = r.queue
     WHERE $1::text IS NULL OR r.domain = $1
     GROUP BY r.queue ORDER BY count(*) DESC LIMIT $2
"""
STATES = {
    "recipient.delivered": "delivered",
    "recipient.bounced": "bounced",
    "recipient.expired": "expired",
    "recipient.cancelled": "cancelled",
    "recipient.deferred": "deferred",
}
OUTCOMES = {"recipient.delivered": "delivered", "recipient.deferred": "deferred", "recipient.bounced": "bounced"}
SEARCH_PAGES = 20  # of a search by state, which is decided after reading


class TraceStore:
    """Reads events and rows; writes nothing."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def message(self, message_id: int, tenant: str | None) -> MessageView | None:
        """The message with all recipients and attempts; None when this tenant (None: any) has none of that id."""
        views = await self._views([message_id], tenant)
        return views[0] if views else None

    async def search(self, filters: MailFilters, limit: int, before: int | None) -> Sequence[MessageSummary]:
        """Up to `limit` messages that fit, newest first, with ids below `before`."""
        found: list[MessageSummary] = []
        highest = before or (1 << 63) - 1
        if filters.before is not None:
            highest = min(highest, first_id_at(_milliseconds(filters.before)))
        lowest = first_id_at(_milliseconds(filters.after)) if filters.after is not None else 0
        for _ in range(SEARCH_PAGES):
            rows = await self._pool.fetch(
                SEARCH, filters.tenant, highest, lowest, filters.recipient, filters.sender, filters.tag, limit
            )
            ids = [row["message_id"] for row in rows]
            found += [
                _summary(view)
                for view in await self._views(ids, filters.tenant)
                if filters.state is None or any(recipient.state == filters.state for recipient in view.recipients)
            ]
            if len(ids) < limit or len(found) >= limit:
                break
            highest = ids[-1]
        return found[:limit]

    async def queues(self, domain: str | None = None, limit: int = 100) -> list[QueueView]:
        """What waits, by queue, the longest first."""
        return [
            QueueView(**{**row, "reason": row["reason"] or ""}) for row in await self._pool.fetch(QUEUES, domain, limit)
        ]

    async def _views(self, ids: list[int], tenant: str | None) -> list[MessageView]:
        if not ids:
            return []
        since = datetime.fromtimestamp(milliseconds_of(min(ids)) / 1000, UTC) - SLACK
        of_message: dict[int, list[asyncpg.Record]] = {}
        for row in await self._pool.fetch(EVENTS, ids, tenant, since):
            of_message.setdefault(row["message_id"], []).append(row)
        waiting = {(row["message_id"], row["n"]): row for row in await self._pool.fetch(WAITING, ids)}
        return [_view(id_, rows, waiting) for id_, rows in of_message.items()]


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _view(id_: int, rows: list[asyncpg.Record], waiting: dict[tuple[int, int], asyncpg.Record]) -> MessageView:
    facts: dict[str, Any] = next((row["data"] for row in rows if row["type"] == "message.accepted" and row["data"]), {})
    addresses = {row["n"]: row["address"] for row in rows}
    recipients = [
        _waiting(n, addresses[n], waiting[id_, n]) if (id_, n) in waiting else _finished(n, addresses[n], rows)
        for n in sorted(addresses)
    ]
    return MessageView(
        id=id_,
        sender=facts.get("sender", ""),
        stream=facts.get("stream", ""),
        pool=facts.get("pool", ""),
        credential=facts.get("credential", ""),
        size=facts.get("size", 0),
        accepted_at=rows[0]["at"],
        labels=facts.get("labels", {}),
        recipients=tuple(recipients),
        attempts=tuple(_attempt(row) for row in rows if row["type"] in OUTCOMES),
    )


def _waiting(n: int, address: str, row: asyncpg.Record) -> RecipientView:
    reason = row["reason"] or ("in memory, about to be sent" if row["owner"] is not None else "")
    return RecipientView(
        n=n,
        address=address,
        state="held" if row["held"] else "deferred" if row["attempts"] else "queued",
        attempts=row["attempts"],
        due_at=row["until"],
        expires_at=row["expires_at"],
        reason=reason,
        last_reply=row["last_reply"],
        in_doubt=row["in_doubt"],
    )


def _finished(n: int, address: str, rows: list[asyncpg.Record]) -> RecipientView:
    mine = [row for row in rows if row["n"] == n and row["type"] in STATES]
    mine.sort(key=lambda row: STATES[row["type"]] in FINAL_STATES)  # whatever the clocks say, the end comes last
    data = (mine[-1]["data"] or {}) if mine else {}
    reply = " ".join(str(data[key]) for key in ("code", "enhanced", "text") if data.get(key))
    return RecipientView(
        n=n,
        address=address,
        state=STATES[mine[-1]["type"]] if mine else "queued",  # type: ignore[arg-type]
        attempts=sum(row["type"] in OUTCOMES for row in mine),
        last_reply=reply,
        in_doubt=bool(data.get("in_doubt")),
    )


def _attempt(row: asyncpg.Record) -> AttemptView:
    data = row["data"] or {}
    return AttemptView(
        n=row["n"],
        at=row["at"],
        outcome=OUTCOMES[row["type"]],  # type: ignore[arg-type]
        kind=data.get("kind", ""),
        host=data.get("host", ""),
        ip=data.get("ip", ""),
        source=data.get("source", ""),
        tls=data.get("tls", ""),
        stage=data.get("stage", ""),
        code=data.get("code", 0),
        enhanced=data.get("enhanced", ""),
        text=data.get("text", ""),
        milliseconds=data.get("ms", 0),
    )


def _summary(view: MessageView) -> MessageSummary:
    return MessageSummary(
        id=view.id,
        sender=view.sender,
        stream=view.stream,
        pool=view.pool,
        accepted_at=view.accepted_at,
        total=len(view.recipients),
        states=dict(Counter(recipient.state for recipient in view.recipients)),
        labels=view.labels,
    )
