"""Looking: one message with all that happened to it, searches, and what waits where."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from mailerd.queue.ids import first_id_at, milliseconds_of
from mailerd.queue.mail import parts_of_queue
from mailerd.queue.views import (
    FINAL_STATES,
    AttemptView,
    MailFilters,
    MailPage,
    MessageSummary,
    MessageView,
    QueueView,
    RecipientView,
)
from mailerd.wire.words import decode_words

MAX_ID = (1 << 63) - 1
EVER = datetime.min.replace(tzinfo=UTC)
SLACK = timedelta(minutes=5)  # between the clock that made an id and the one that made its events

EVENTS = """
    SELECT at, type, message_id, n, address, data FROM events
     WHERE message_id = ANY ($1::bigint[]) AND ($2::text IS NULL OR tenant = $2) AND at >= $3
     ORDER BY message_id DESC, txid, seq
"""
# What a recipient `r` in the queue `q` waits for, and until when: its own due time, or the longer block of its queue.
WAITS_FOR = """
    CASE WHEN r.owner IS NULL AND NOT r.held AND (q.blocked_until > r.due_at OR r.reason = '')
         THEN COALESCE(q.reason, '') ELSE r.reason END
"""
WAITS_UNTIL = "GREATEST(r.due_at, CASE WHEN r.owner IS NULL AND NOT r.held THEN q.blocked_until END)"
WAITING = f"""
    SELECT r.message_id, r.n, r.owner, r.held, r.due_at, r.expires_at, r.attempts, r.last_reply, r.in_doubt,
           {WAITS_FOR} AS reason, {WAITS_UNTIL} AS until
      FROM recipients AS r LEFT JOIN queues AS q ON q.name = r.queue
     WHERE r.message_id = ANY ($1::bigint[])
"""
# The messages that a search looks at, newest first; each way is an index read backwards that ends when it has enough.
ALL = """
    SELECT message_id FROM events
     WHERE type = 'message.accepted' AND n = 1 AND message_id < $1 AND message_id >= $2 AND at >= $3
     ORDER BY message_id DESC LIMIT $4
"""
OF_ADDRESS = """
    SELECT DISTINCT message_id FROM events
     WHERE type = 'message.accepted' AND address = $8 AND message_id < $1 AND message_id >= $2 AND at >= $3
     ORDER BY message_id DESC LIMIT $4
"""
STILL_WAITING = """
    SELECT DISTINCT message_id FROM recipients
     WHERE message_id < $1 AND message_id >= $2 ORDER BY message_id DESC LIMIT $4
"""
# What is true of all of a message stands in the event of its first recipient.
FITS = """
    SELECT seen.message_id, EXISTS (
        SELECT FROM events AS first
         WHERE first.message_id = seen.message_id AND first.type = 'message.accepted' AND first.n = 1
           AND first.at >= $3 AND ($5::text IS NULL OR first.tenant = $5)
           AND ($6::text IS NULL OR first.data->>'sender' = $6)
           AND ($7::text IS NULL OR first.data->'labels' ? $7)) AS fits
      FROM ({source}) AS seen ORDER BY seen.message_id DESC
"""
SEARCH_ALL = FITS.format(source=ALL)
SEARCH_ADDRESS = FITS.format(source=OF_ADDRESS)
SEARCH_WAITING = FITS.format(source=STILL_WAITING)
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
    "recipient.suppressed": "suppressed",
    "recipient.deferred": "deferred",
}
OUTCOMES = {"recipient.delivered": "delivered", "recipient.deferred": "deferred", "recipient.bounced": "bounced"}
WAITING_STATES = frozenset({"queued", "held", "deferred"})
LOOK_AT = 10_000  # messages in one call of a search,
READ = 2_000  # of them whole, with all that happened to them, because only that tells their state
STEP = 500  # messages looked at in one statement


class TraceStore:
    """Reads events and rows; writes nothing."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def message(self, message_id: int, tenant: str | None) -> MessageView | None:
        """The message with all recipients and attempts; None when this tenant (None: any) has none of that id."""
        views = await self._views([message_id], tenant)
        return views[0] if views else None

    async def search(self, filters: MailFilters, limit: int, before: int | None) -> MailPage:
        """Up to `limit` messages that fit, newest first, with ids below `before`.

        One call looks at a bounded number of messages, so there may be fewer, or none, and more to come: a search is
        over when its page says so.
        """
        highest, lowest = _bounds(filters, before)
        found: list[MessageSummary] = []
        looked_at = read = 0
        while looked_at < LOOK_AT and read < READ:
            step = STEP if filters.state or looked_at else min(limit + 1, STEP)
            rows = await self._candidates(filters, highest, lowest, step)
            for row in await self._views([row["message_id"] for row in rows if row["fits"]], filters.tenant):
                read += 1
                if filters.state is None or any(recipient.state == filters.state for recipient in row.recipients):
                    found.append(_summary(row))
            if len(found) > limit:
                return MailPage(messages=tuple(found[:limit]), before=found[limit - 1].id)
            if len(rows) < step:
                return MailPage(messages=tuple(found))
            highest = rows[-1]["message_id"]
            looked_at += len(rows)
        return MailPage(messages=tuple(found), before=highest)

    async def _candidates(
        self, filters: MailFilters, highest: int, lowest: int, limit: int
    ) -> Sequence[asyncpg.Record]:
        """The next messages to look at, and whether each fits all filters but the state."""
        common = (highest, lowest, _since(lowest), limit, filters.tenant, filters.sender, filters.tag)
        if filters.recipient is not None:
            return await self._pool.fetch(SEARCH_ADDRESS, *common, filters.recipient)
        return await self._pool.fetch(SEARCH_WAITING if filters.state in WAITING_STATES else SEARCH_ALL, *common)

    async def queues(self, domain: str | None = None, limit: int = 100) -> list[QueueView]:
        """What waits, by queue, the longest first."""
        return [
            QueueView(**{**row, **parts_of_queue(row["name"]), "reason": row["reason"] or ""})
            for row in await self._pool.fetch(QUEUES, domain, limit)
        ]

    async def _views(self, ids: list[int], tenant: str | None) -> list[MessageView]:
        if not ids:
            return []
        # First, for what does not wait any more by then has its last event.
        waiting = {(row["message_id"], row["n"]): row for row in await self._pool.fetch(WAITING, ids)}
        of_message: dict[int, list[asyncpg.Record]] = {}
        for row in await self._pool.fetch(EVENTS, ids, tenant, _since(min(ids))):
            of_message.setdefault(row["message_id"], []).append(row)
        if missing := [id_ for id_ in ids if id_ not in of_message]:  # ids go on when a clock is set back by hours
            for row in await self._pool.fetch(EVENTS, missing, tenant, EVER):
                of_message.setdefault(row["message_id"], []).append(row)
        return [_view(id_, rows, waiting) for id_, rows in of_message.items()]


def _bounds(filters: MailFilters, before: int | None) -> tuple[int, int]:
    """The ids looked at are below the first and not below the second."""
    highest = MAX_ID if before is None else before
    if filters.before is not None:
        highest = min(highest, _first_id(filters.before))
    return highest, 0 if filters.after is None else _first_id(filters.after)


def _first_id(at: datetime) -> int:
    """The smallest id made at that time, or the end of all ids when no id can be that old or new."""
    return max(0, min(first_id_at(int(at.timestamp() * 1000)), MAX_ID))


def _since(id_: int) -> datetime:
    """Events of this message and of later ones are not older; this spares the partitions of earlier months."""
    return datetime.fromtimestamp(milliseconds_of(id_) / 1000, UTC) - SLACK


def _view(id_: int, rows: list[asyncpg.Record], waiting: dict[tuple[int, int], asyncpg.Record]) -> MessageView:
    facts: dict[str, Any] = next((row["data"] for row in rows if row["type"] == "message.accepted" and row["data"]), {})
    addresses = {row["n"]: row["address"] for row in rows if row["n"]}  # 0: about an address, not about mail to it
    recipients = [
        _waiting(n, addresses[n], waiting[id_, n]) if (id_, n) in waiting else _finished(n, addresses[n], rows)
        for n in sorted(addresses)
    ]
    return MessageView(
        id=id_,
        sender=facts.get("sender", ""),
        subject=decode_words(facts.get("subject", "")),
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
        attempts=sum(row["type"] in OUTCOMES and not _is_late(row) for row in mine),
        last_reply=reply,
        in_doubt=bool(data.get("in_doubt")),
    )


def _is_late(row: asyncpg.Record) -> bool:
    """A report tells of it; nothing was tried."""
    return bool((row["data"] or {}).get("late"))


def _attempt(row: asyncpg.Record) -> AttemptView:
    data = row["data"] or {}
    return AttemptView(
        n=row["n"],
        at=row["at"],
        outcome=OUTCOMES[row["type"]],  # type: ignore[arg-type]
        kind=data.get("kind", ""),
        host=data.get("host") or data.get("remote") or data.get("reporter", ""),
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
        first_recipient=view.recipients[0].address if view.recipients else "",
        subject=view.subject,
        stream=view.stream,
        pool=view.pool,
        accepted_at=view.accepted_at,
        total=len(view.recipients),
        states=dict(Counter(recipient.state for recipient in view.recipients)),
        labels=view.labels,
    )
