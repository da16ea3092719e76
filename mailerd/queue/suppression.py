"""Addresses that must not be mailed, and why: in which scope, since when, until when.

A suppression of tenant "" binds all tenants, one of stream "" or topic "" all mail of its tenant or stream. Whoever
adds one and tells the outside waits `GRACE` seconds after the commit before answering; whoever sends begins to write
within that time after asking, or asks again (`mailerd.queue.screening`). So a suppression that was acknowledged before
DATA is always honoured, and nobody holds a lock while mail is under way.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import asyncpg

from mailerd import events
from mailerd.config import Suppression as Rules
from mailerd.db import Connection, Pool
from mailerd.events import Event
from mailerd.queue.ids import SUPPRESSION, format_id, format_message_id
from mailerd.wire.address import domain_to_ascii, quoted, unquoted

CAMPAIGNS = "marketing"  # whoever leaves this stream gets no campaign at all, whichever stream it goes out on
GRACE = 0.1  # seconds between the commit of a suppression and the word that it holds
KEPT = timedelta(days=30)  # for how long those that are over can still be looked at
SWEPT = 20_000  # entries that one sweep looks at


class Reason(StrEnum):
    BOUNCE = "bounce"
    SOFT_BOUNCE = "soft_bounce"
    COMPLAINT = "complaint"
    UNSUBSCRIBE = "unsubscribe"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """One entry. `source` says who found out (smtp, report, one-click, mailto, api, import …), `detail` what was said.

    `message_id` is the mail that led to it, `id` is 0 before it is stored. `expires_at` None: for good.
    """

    address: str = field(kw_only=False)
    tenant: str = ""
    stream: str = ""
    topic: str = ""
    reason: Reason
    source: str
    detail: str = ""
    message_id: int | None = None
    created_at: datetime
    expires_at: datetime | None = None
    id: int = 0

    @property
    def name(self) -> str:
        """Its id as everybody writes it: `sup_17`."""
        return format_id(SUPPRESSION, self.id)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """There is one entry of a kind."""
        return self.address, self.tenant, self.stream, self.topic, self.reason

    def facts(self) -> dict[str, Any]:
        """For events: JSON."""
        facts: dict[str, Any] = {
            "suppression": self.name,
            "reason": self.reason,
            "source": self.source,
            "since": self.created_at.isoformat(),
            "scope": {"tenant": self.tenant, "stream": self.stream, "topic": self.topic},
        }
        if self.expires_at is not None:
            facts["expires_at"] = self.expires_at.isoformat()
        return facts

    def refusal(self, tenant: str) -> dict[str, Any]:
        """For the event of mail of this tenant that it stopped: JSON, with our reply to the sender."""
        code, enhanced = REFUSAL
        return self.facts() | {"code": code, "enhanced": enhanced, "text": self.told_to(tenant), "kind": "suppressed"}

    def told_to(self, tenant: str) -> str:
        """One sentence for the sender of mail to it. The replies to another tenant's mail are none of his business."""
        ours = self.tenant == tenant
        said = f": {self.detail}" if ours and self.detail else ""
        until = f" until {self.expires_at:%Y-%m-%d}" if self.expires_at else ""
        lift = f"remove suppression {self.name} to mail it again" if ours else "only the operator can lift this"
        words = REASONS[self.reason]
        return f"{self.address} is suppressed since {self.created_at:%Y-%m-%d}{until} ({words}{said}); {lift}"


REASONS = {
    Reason.BOUNCE: "its mail bounced",
    Reason.SOFT_BOUNCE: "its mail bounced again and again",
    Reason.COMPLAINT: "it complained",
    Reason.UNSUBSCRIBE: "it unsubscribed",
    Reason.MANUAL: "by hand",
}
REFUSAL = (550, "5.7.1")  # RFC 3463: delivery not authorized


class Wanted(NamedTuple):
    """What is about to be mailed. Whoever left the stream `beside` gets none of it either."""

    address: str
    tenant: str
    stream: str = ""
    topic: str = ""
    beside: str = ""


def normalised(address: str) -> str:
    """The address, or `@example.com` for a domain, as the table has it: lower case, NFC, domain in A-labels.

    Quotes stand only where they must. What is no address comes back in lower case.
    """
    if address.isascii() and '"' not in address:
        return address.lower()
    local, at, domain = address.rpartition("@")
    if local:
        local = quoted(unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquoted(local)).lower()))
    with suppress(ValueError):  # else no domain that any mail goes to
        domain = domain if domain.isascii() else domain_to_ascii(domain)
    return local + at + domain.lower()


def normalised_topic(topic: str) -> str:
    """The topic as the table has it, and messages: `Weekly` and `weekly` are one."""
    return unicodedata.normalize("NFC", topic.lower())


def bound_tenant(rules: Rules, tenant: str) -> str:
    """Whom a bounce or complaint of this tenant's mail binds: the tenant, or "" for all."""
    return "" if rules.scope == "global" else tenant


COLUMNS = "address, tenant, stream, topic, reason, source, detail, message_id, created_at, expires_at"
TYPES = ("text", "text", "text", "text", "text", "text", "text", "bigint", "timestamptz", "timestamptz")
ARRAYS = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(TYPES, 1))

# Found by the index alone: rows are read only for addresses that are suppressed somewhere.
FIND = f"""
    SELECT {COLUMNS}, id FROM suppressions
     WHERE address = ANY ($1::text[]) AND tenant = ANY ($2::text[]) AND (expires_at IS NULL OR expires_at > $3)
"""
# One that is over is none: it makes room for a new one.
FORGET_OVER = """
    DELETE FROM suppressions AS old USING unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
        AS new (address, tenant, stream, topic, reason)
     WHERE old.address = new.address AND old.tenant = new.tenant AND old.stream = new.stream
       AND old.topic = new.topic AND old.reason = new.reason AND old.expires_at <= $6
"""
ADD = f"""
    INSERT INTO suppressions ({COLUMNS}) SELECT * FROM unnest({ARRAYS})
    ON CONFLICT (address, tenant, stream, topic, reason) DO UPDATE SET expires_at = EXCLUDED.expires_at
     WHERE suppressions.expires_at < EXCLUDED.expires_at
        OR (EXCLUDED.expires_at IS NULL AND suppressions.expires_at IS NOT NULL)
 RETURNING {COLUMNS}, id, xmax = 0 AS is_new
"""
COUNT_SOFT = """
    INSERT INTO soft_bounces AS old (address, tenant, bounces, first_at, last_at)
    SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::timestamptz[])
    ON CONFLICT (address, tenant) DO UPDATE
       SET bounces = CASE WHEN old.last_at < EXCLUDED.first_at - $6::interval THEN 0 ELSE old.bounces END
                     + EXCLUDED.bounces,
           first_at = CASE WHEN old.last_at < EXCLUDED.first_at - $6::interval THEN EXCLUDED.first_at
                           ELSE LEAST(old.first_at, EXCLUDED.first_at) END,
           last_at = GREATEST(old.last_at, EXCLUDED.last_at)
 RETURNING address, tenant, bounces, first_at, last_at
"""
# What a host took and sent back later was not delivered.
DELIVERED_SINCE = """
    SELECT EXISTS (
        SELECT FROM events AS sent JOIN events AS done ON done.message_id = sent.message_id AND done.n = sent.n
         WHERE sent.type = 'message.accepted' AND sent.address = ANY ($1::text[]) AND ($2 = '' OR sent.tenant = $2)
           AND done.type = 'recipient.delivered' AND done.at >= $3
           AND NOT EXISTS (SELECT FROM events AS late
                            WHERE late.message_id = done.message_id AND late.n = done.n
                              AND late.type = 'recipient.bounced' AND late.at >= done.at))
"""
BEGIN_AGAIN = "UPDATE soft_bounces SET bounces = 1, first_at = last_at WHERE address = $1 AND tenant = $2"
FORGET_SOFT = "DELETE FROM soft_bounces WHERE address = $1 AND tenant = $2"
SWEEP_SOFT = "DELETE FROM soft_bounces WHERE last_at < $1"
LIST = f"""
    SELECT {COLUMNS}, id FROM suppressions
     WHERE id < $1 AND ($2::text IS NULL OR tenant = $2) AND ($3::text IS NULL OR address = $3)
       AND ($4::text IS NULL OR reason = $4) AND ($5::text IS NULL OR stream = $5) AND ($6::text IS NULL OR topic = $6)
       AND ($7::text IS NULL OR right(address, length($7)) = $7)
       AND ($8::timestamptz IS NULL OR expires_at IS NULL OR expires_at > $8)
     ORDER BY id DESC LIMIT $9
"""
ENTRIES = f"""
    SELECT {COLUMNS}, id FROM suppressions
      JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS asked (a, t, s, o, r)
        ON address = a AND tenant = t AND stream = s AND topic = o AND reason = r
"""
# By parts, in the order of ids: there is no index by their ends, and few of many have one.
SWEEP = """
    WITH part AS MATERIALIZED (SELECT id, expires_at FROM suppressions WHERE id > $1 ORDER BY id LIMIT $2),
         gone AS (DELETE FROM suppressions AS old USING part
                   WHERE old.id = part.id AND part.expires_at <= $3 AND old.expires_at <= $3)
    SELECT count(*) AS seen, max(id) AS last FROM part
"""
GET = f"SELECT {COLUMNS}, id FROM suppressions WHERE id = $1 AND ($2::text IS NULL OR tenant = $2)"
REMOVE = f"DELETE FROM suppressions WHERE id = $1 AND ($2::text IS NULL OR tenant = $2) RETURNING {COLUMNS}, id"
LIFT = f"""
    DELETE FROM suppressions
     WHERE address = $1 AND ($2::text IS NULL OR tenant = $2) AND ($3::text IS NULL OR stream = $3)
       AND ($4::text IS NULL OR topic = $4) AND ($5::text IS NULL OR reason = $5)
    RETURNING {COLUMNS}, id
"""
MAX_ID = (1 << 63) - 1


class SuppressionStore:
    """The table of suppressions, and the count of soft bounces. `rules` are those of the configuration."""

    def __init__(self, pool: Pool, rules: Rules = Rules()) -> None:  # noqa: B008 frozen
        self._pool = pool
        self._rules = rules
        self._swept = 0  # the id of the last entry that a sweep has looked at

    def reconfigure(self, rules: Rules) -> None:
        """What is counted from now on follows these."""
        self._rules = rules

    async def check(
        self, wanted: Sequence[Wanted], now: datetime, connection: Connection | None = None
    ) -> list[Suppression | None]:
        """For each what forbids mailing it now, if anything does: one query, as of its begin.

        Of several the one that lasts longest, the oldest of those.
        """
        keys = [normalised(each.address) for each in wanted]
        domains = {key.rpartition("@")[2] for key in keys}
        tenants = {each.tenant for each in wanted} | {""}
        addresses = [*set(keys), *(f"@{domain}" for domain in domains)]
        rows = await (connection or self._pool).fetch(FIND, addresses, list(tenants), now)
        if not rows:
            return [None] * len(keys)
        entries: dict[str, list[Suppression]] = {}
        for row in rows:
            entries.setdefault(row["address"], []).append(_suppression(row))
        return [_that_binds(each, key, entries) for each, key in zip(wanted, keys, strict=True)]

    async def add(
        self, suppressions: Iterable[Suppression], connection: Connection | None = None, *, quiet: bool = False
    ) -> list[Suppression]:
        """Add these, in the caller's transaction or in one of ours; returns those that were not there before.

        Where there is one of the same address, scope and reason, the later expiry counts and nothing else changes; one
        that is over is none. Each new one is an event suppression.added, unless `quiet`. Whoever tells somebody that
        they hold waits `GRACE` after the commit.
        """
        merged: dict[tuple[str, ...], Suppression] = {}
        for each in suppressions:
            each = _stored(each)
            merged[each.key] = _longer(merged.get(each.key), each)
        if not merged:
            return []
        ordered = [merged[key] for key in sorted(merged)]  # the order in which all lock
        if connection is not None:
            return await self._add(ordered, connection, quiet=quiet)
        async with self._pool.acquire() as own, own.transaction():
            return await self._add(ordered, own, quiet=quiet)

    async def _add(self, ordered: list[Suppression], connection: Connection, *, quiet: bool) -> list[Suppression]:
        columns = list(zip(*(astuple(each)[:-1] for each in ordered), strict=True))
        await connection.execute(FORGET_OVER, *columns[:5], max(each.created_at for each in ordered))
        rows = await connection.fetch(ADD, *columns)
        added = [_suppression(row) for row in rows if row["is_new"]]
        if added and not quiet:
            await connection.execute(events.APPEND, *events.parameters([_added(each) for each in added]))
        return added

    async def soft_bounce(
        self, bounces: Sequence[Suppression], connection: Connection | None = None
    ) -> list[Suppression]:
        """Count soft bounces, each given as the suppression that it may lead to; returns those that it led to.

        That is when there were `soft_bounces` of them over `soft_span`, each within `soft_memory` of the one before,
        and nothing was delivered to the address meanwhile.
        """
        if not bounces:
            return []
        if connection is not None:
            return await self._soft_bounce(bounces, connection)
        async with self._pool.acquire() as own, own.transaction():
            return await self._soft_bounce(bounces, own)

    async def _soft_bounce(self, bounces: Sequence[Suppression], connection: Connection) -> list[Suppression]:
        groups: dict[tuple[str, str], list[Suppression]] = {}
        for each in bounces:
            groups.setdefault((normalised(each.address), each.tenant), []).append(each)
        keys = sorted(groups)
        rows = await connection.fetch(
            COUNT_SOFT,
            [address for address, _ in keys],
            [tenant for _, tenant in keys],
            [len(groups[key]) for key in keys],
            [min(each.created_at for each in groups[key]) for key in keys],
            [max(each.created_at for each in groups[key]) for key in keys],
            timedelta(seconds=self._rules.soft_memory),
        )
        fatal = []
        for row in rows:
            spread = (row["last_at"] - row["first_at"]).total_seconds()
            if row["bounces"] < self._rules.soft_bounces or spread < self._rules.soft_span:
                continue
            key = (row["address"], row["tenant"])
            spellings = list({row["address"], *(each.address for each in groups[key])})
            if await connection.fetchval(DELIVERED_SINCE, spellings, row["tenant"], row["first_at"]):
                await connection.execute(BEGIN_AGAIN, *key)
                continue
            await connection.execute(FORGET_SOFT, *key)
            said = f"{row['bounces']} times since {row['first_at']:%Y-%m-%d}"
            last = max(groups[key], key=lambda each: each.created_at)
            fatal.append(replace(last, detail=f"{said}: {last.detail}" if last.detail else said))
        return await self.add(fatal, connection)

    async def record(self, found: Sequence[Suppression], connection: Connection) -> None:
        """What deliveries led to, in the transaction that records them: soft bounces are counted, others are added."""
        soft = [each for each in found if each.reason is Reason.SOFT_BOUNCE]
        await self.add([each for each in found if each.reason is not Reason.SOFT_BOUNCE], connection)
        await self.soft_bounce(soft, connection)

    async def get(self, id_: int, tenant: str | None) -> Suppression | None:
        """The entry of that number, if it is this tenant's (None: anybody's)."""
        row = await self._pool.fetchrow(GET, id_, tenant)
        return None if row is None else _suppression(row)

    async def remove(self, id_: int, *, tenant: str | None, actor: str, now: datetime) -> Suppression | None:
        """Let that entry go, if it is this tenant's (None: anybody's): an event suppression.removed."""
        removed = await self._remove(REMOVE, (id_, tenant), actor, now)
        return removed[0] if removed else None

    async def lift(
        self,
        address: str,
        *,
        tenant: str | None,
        actor: str,
        now: datetime,
        stream: str | None = None,
        topic: str | None = None,
        reason: str | None = None,
        connection: Connection | None = None,
    ) -> list[Suppression]:
        """Let all entries of an address go that fit (None: any); an event suppression.removed for each.

        In the caller's transaction, or in one of ours.
        """
        which = (normalised(address), tenant, stream, topic, reason)
        if connection is not None:
            return await self._remove_within(connection, LIFT, which, actor, now)
        return await self._remove(LIFT, which, actor, now)

    async def _remove(self, statement: str, which: tuple[Any, ...], actor: str, now: datetime) -> list[Suppression]:
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._remove_within(connection, statement, which, actor, now)

    async def _remove_within(
        self, connection: Connection, statement: str, which: tuple[Any, ...], actor: str, now: datetime
    ) -> list[Suppression]:
        removed = [_suppression(row) for row in await connection.fetch(statement, *which)]
        facts = [_event(each, "suppression.removed", each.facts() | {"actor": actor}, now) for each in removed]
        if facts:
            await connection.execute(events.APPEND, *events.parameters(facts))
        return removed

    async def entries(self, suppressions: Sequence[Suppression]) -> "list[Suppression]":
        """What the table has for each of these: the entry of the same address, scope and reason, in their order."""
        keys = [_stored(each).key for each in suppressions]
        rows = await self._pool.fetch(ENTRIES, *(list(column) for column in zip(*keys, strict=True)))
        found = {each.key: each for each in map(_suppression, rows)}
        return [found[key] for key in dict.fromkeys(keys) if key in found]

    async def forget(self, now: datetime, *, part: int = SWEPT) -> None:
        """Drop the counts of addresses that have not bounced for long, of which it reads all.

        Then entries that have been over for as long as `KEPT`, without an event: of the next so many, from the first
        again after the last.
        """
        await self._pool.execute(SWEEP_SOFT, now - timedelta(seconds=self._rules.soft_memory))
        row = await self._pool.fetchrow(SWEEP, self._swept, part, now - KEPT)
        self._swept = row["last"] if row is not None and row["seen"] == part else 0

    async def list(
        self,
        *,
        tenant: str | None,
        limit: int,
        before: int | None = None,
        address: str | None = None,
        reason: str | None = None,
        stream: str | None = None,
        topic: str | None = None,
        domain: str | None = None,
        holding_at: datetime | None = None,
    ) -> list[Suppression]:
        """Up to `limit` entries that fit (None: any), newest first, ids below `before`.

        `holding_at`: without those that were over then. `domain`: addresses in it, and the entry for all of it.
        """
        address = None if address is None else normalised(address)
        topic = None if topic is None else normalised_topic(topic)
        end = None if domain is None else normalised(f"@{domain}")
        highest = MAX_ID if before is None else before
        rows = await self._pool.fetch(LIST, highest, tenant, address, reason, stream, topic, end, holding_at, limit)
        return [_suppression(row) for row in rows]


def _stored(suppression: Suppression) -> Suppression:
    return replace(suppression, address=normalised(suppression.address), topic=normalised_topic(suppression.topic))


def _suppression(row: asyncpg.Record) -> Suppression:
    fields = dict(row)
    fields.pop("is_new", None)
    return Suppression(**fields | {"reason": Reason(row["reason"])})


def _that_binds(wanted: Wanted, key: str, entries: dict[str, list[Suppression]]) -> Suppression | None:
    found = [
        each
        for each in (*entries.get(key, ()), *entries.get("@" + key.rpartition("@")[2], ()))
        if each.tenant in ("", wanted.tenant)
        and each.stream in ("", wanted.stream, wanted.beside)
        and each.topic in ("", wanted.topic)
    ]
    return min(found, key=lambda each: (-_end(each), each.id)) if found else None


def _longer(one: Suppression | None, other: Suppression) -> Suppression:
    return other if one is None or _end(other) > _end(one) else one


def _end(suppression: Suppression) -> float:
    return float("inf") if suppression.expires_at is None else suppression.expires_at.timestamp()


def _added(suppression: Suppression) -> Event:
    facts = suppression.facts() | {"detail": suppression.detail}
    if suppression.message_id is not None:
        facts["email_id"] = format_message_id(suppression.message_id)
    return _event(suppression, "suppression.added", facts, suppression.created_at)


def _event(suppression: Suppression, type_: str, facts: dict[str, Any], at: datetime) -> Event:
    return Event(
        at, type_, suppression.message_id or 0, 0, suppression.address, suppression.tenant, facts, suppression.stream
    )
