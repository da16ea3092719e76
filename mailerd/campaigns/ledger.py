"""The ledger of a campaign: what became of each contact of its audience, one row for each.

A row waits until it is handed over or found not to be sent; the transaction that decides which of both also writes the
mail into the queue, so that a row leaves its waiting exactly once. What happens after that is moved by the follower
of events (`mailerd.campaigns.analytics`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, IntFlag
from typing import NamedTuple

from mailerd.campaigns.segments.parameters import Compiled
from mailerd.campaigns.values import Resend
from mailerd.db import Connection


class Status(IntEnum):
    """Where a contact of a campaign stands; the numbers are those of `campaign_contacts.status`."""

    PENDING = 0  # not handed over yet
    QUEUED = 1  # handed over, nothing final known
    DELIVERED = 2
    BOUNCED = 3
    FAILED = 4  # expired, or what could not be rendered
    SUPPRESSED = 5  # not to be sent: see the reason
    CANCELLED = 6
    IN_DOUBT = 7  # a crash came between the mail and the note that it was taken

    @property
    def word(self) -> str:
        return self.name.lower()


class Mark(IntFlag):
    """What a contact has done with the mail: bits of `campaign_contacts.marks`."""

    NONE = 0
    OPENED = 1  # by a person
    MACHINE_OPENED = 2  # by a machine; it stays when a person does so as well
    CLICKED = 4
    MACHINE_CLICKED = 8
    UNSUBSCRIBED = 16
    COMPLAINED = 32
    HARD_BOUNCED = 64  # the address is no good: of those that bounced


# Of each campaign in turn the rows that have been due longest, with what is known of their contacts. A contact of whom
# nothing is found is erased. Lists bind while all of them exist: from one that was deleted nobody can have left.
# Arrays come through a SELECT: a planner that sees their length makes each time a plan of its own, which takes longer
# than to carry it out.
# OFFSET 0: one contact after the other; the planner does not know how few rows are taken, and would read all contacts.
TAKE = """
    WITH turn AS MATERIALIZED (
        SELECT campaign_id, tenant, most, consent, lists::bigint[] AS lists,
               alone AND NOT EXISTS (
                   SELECT FROM unnest(lists::bigint[]) AS wanted (id)
                    WHERE NOT EXISTS (SELECT FROM contact_lists AS known
                                       WHERE known.id = wanted.id AND known.type = 'static')) AS bound
          FROM unnest(
               (SELECT $1::bigint[]), (SELECT $2::text[]), (SELECT $3::int[]), (SELECT $4::bool[]),
               (SELECT $5::text[]), (SELECT $6::bool[]))
            AS asked (campaign_id, tenant, most, consent, lists, alone)
    )
    SELECT turn.campaign_id, due.contact_id, due.reason, c.email, c.address, c.time_zone,
           turn.bound AND NOT EXISTS (
               SELECT FROM list_contacts AS member WHERE member.contact_id = due.contact_id
                  AND member.list_id = ANY (turn.lists) AND member.status = 'subscribed') AS has_left,
           turn.consent AND NOT COALESCE((
               SELECT action = 'granted' FROM consents AS said
                WHERE said.tenant = turn.tenant AND said.address = c.address
                  AND (said.list_id IS NULL OR said.list_id = ANY (turn.lists))
                ORDER BY at DESC, id DESC LIMIT 1), false) AS lacks_consent
      FROM turn CROSS JOIN LATERAL (
           SELECT contact_id, due_at, reason FROM campaign_contacts
            WHERE campaign_id = turn.campaign_id AND waiting AND due_at <= $7
            ORDER BY due_at, contact_id LIMIT turn.most) AS due
      LEFT JOIN LATERAL (
           SELECT email, address, time_zone FROM contacts
            WHERE id = due.contact_id AND tenant = turn.tenant OFFSET 0) AS c ON true
"""
MARK = """
    UPDATE campaign_contacts AS row
       SET waiting = false, status = done.status, message_id = done.message_id, reason = done.reason, changed_at = $6
      FROM unnest(
           (SELECT $1::bigint[]), (SELECT $2::bigint[]), (SELECT $3::smallint[]), (SELECT $4::bigint[]),
           (SELECT $5::text[]))
        AS done (campaign_id, contact_id, status, message_id, reason)
     WHERE row.campaign_id = done.campaign_id AND row.contact_id = done.contact_id AND row.waiting
"""
PUT_OFF = """
    UPDATE campaign_contacts AS row SET due_at = later.due_at
      FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) AS later (campaign_id, contact_id, due_at)
     WHERE row.campaign_id = later.campaign_id AND row.contact_id = later.contact_id AND row.waiting
"""
NEXT_DUE = """
    SELECT asked.id, (SELECT min(due_at) FROM campaign_contacts WHERE campaign_id = asked.id AND waiting) AS due_at
      FROM unnest($1::bigint[]) AS asked (id)
"""
CANCEL = """
    WITH part AS MATERIALIZED (
        SELECT contact_id FROM campaign_contacts WHERE campaign_id = $1 AND waiting
         ORDER BY due_at, contact_id LIMIT $2
    ), gone AS (
        UPDATE campaign_contacts AS row SET waiting = false, status = $3, reason = $4, changed_at = $5
          FROM part WHERE row.campaign_id = $1 AND row.contact_id = part.contact_id AND row.waiting
     RETURNING row.contact_id
    )
    SELECT COALESCE(split_part(c.address, '@', -1), '') AS domain, count(*) AS contacts
      FROM gone LEFT JOIN contacts AS c ON c.id = gone.contact_id GROUP BY 1
"""
# `{audience}` gives contact_id, and time_zone where the zones matter.
WRITE = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at)
    SELECT ${campaign}::bigint, contact_id, ${due}::timestamptz FROM ({audience}) AS audience
    ON CONFLICT (campaign_id, contact_id) DO NOTHING
"""
WRITE_BY_ZONE = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, reason)
    SELECT ${campaign}::bigint, contact_id, due.due_at, due.reason FROM ({audience}) AS audience
      JOIN unnest(${zones}::text[], ${dues}::timestamptz[], ${reasons}::text[]) AS due (time_zone, due_at, reason)
        ON due.time_zone = audience.time_zone
    ON CONFLICT (campaign_id, contact_id) DO NOTHING
"""
ZONES = "SELECT DISTINCT time_zone FROM ({audience}) AS audience"
RANGE_OF_LEDGER = """
    SELECT max(contact_id) FROM (
        SELECT contact_id FROM campaign_contacts WHERE campaign_id = $1 AND contact_id > $2
         ORDER BY contact_id LIMIT $3) AS part
"""
# What waits of a campaign that is over is cancelled (6), though nobody has come to it yet.
GIVEN_UP = """
    (waiting AND 6 = ANY ({statuses}::smallint[])
     AND EXISTS (SELECT FROM campaign_runs WHERE campaign_id = $1 AND state = 'ended'))
"""
# Contacts that an earlier campaign has in such a state, or was delivered to without such marks, and who have not said
# no; of the bounced, if asked for, only those whose address may still be mailed.
OF_LEDGER = f"""
    SELECT earlier.contact_id, c.time_zone FROM campaign_contacts AS earlier
      JOIN contacts AS c ON c.id = earlier.contact_id AND c.tenant = $5
     WHERE earlier.campaign_id = $1 AND earlier.contact_id > $2 AND earlier.contact_id <= $3
       AND (earlier.status = ANY ($4::smallint[]) OR earlier.status = 2 AND $7 <> 0 AND earlier.marks & $7 = 0
            OR {GIVEN_UP.format(statuses="$4")})
       AND earlier.marks & 48 = 0
       AND NOT ($6 AND earlier.status = 3 AND EXISTS (
            SELECT FROM suppressions AS s WHERE s.address = c.address AND s.tenant IN (c.tenant, '')
               AND s.reason IN ('bounce', 'soft_bounce') AND (s.expires_at IS NULL OR s.expires_at > now())))
"""


class Turn(NamedTuple):
    """What to take of one campaign: at most so many rows. `consent`: contacts need one, for all mail or its `lists`.

    `alone`: only the lists reach its contacts, so who has left them all is not reached any more.
    """

    campaign_id: int
    tenant: str
    most: int
    consent: bool
    lists: Sequence[int]
    alone: bool


@dataclass(frozen=True, slots=True)
class DueRow:
    """A row that is due, and what is known of its contact; `email` None: there is none any more.

    `reason` is why it is not to be sent, if that was known when it was written.
    """

    campaign_id: int
    contact_id: int
    reason: str
    email: str | None
    address: str | None
    time_zone: str | None
    has_left: bool
    lacks_consent: bool


class Done(NamedTuple):
    """What becomes of a row that was taken: its message, or why there is none."""

    campaign_id: int
    contact_id: int
    status: Status
    message_id: int | None = None
    reason: str = ""


class LedgerStore:
    """The rows of the ledger until they are handed over; all of it within transactions of the caller."""

    async def take(self, connection: Connection, turns: Sequence[Turn], now: datetime) -> list[DueRow]:
        """Rows that are due, those of each campaign that were due first. The caller holds the runs' locks."""
        campaigns, tenants, most, consents, lists, alone = zip(*turns, strict=True)
        texts = ["{" + ",".join(map(str, ids)) + "}" for ids in lists]  # arrays of arrays must all be of one length
        rows = await connection.fetch(TAKE, campaigns, tenants, most, consents, texts, alone, now)
        return [DueRow(*row) for row in rows]

    async def mark(self, connection: Connection, done: Sequence[Done], now: datetime) -> None:
        """These wait no longer. Raises RuntimeError when one did not wait: somebody took it without the lock."""
        if not done:
            return
        tag = await connection.execute(MARK, *zip(*done, strict=True), now)
        if tag != f"UPDATE {len(done)}":
            raise RuntimeError(f"{len(done)} rows of the ledger were taken, but: {tag}")

    async def put_off(self, connection: Connection, rows: Sequence[tuple[int, int, datetime]]) -> None:
        """These (campaign, contact) are due at another time."""
        if rows:
            await connection.execute(PUT_OFF, *zip(*rows, strict=True))

    async def next_due(self, connection: Connection, campaigns: Sequence[int]) -> Mapping[int, datetime | None]:
        """When the first row that waits is due, of each of these; None: none waits."""
        if not campaigns:
            return {}
        return {row["id"]: row["due_at"] for row in await connection.fetch(NEXT_DUE, campaigns)}

    async def cancel(self, connection: Connection, campaign_id: int, now: datetime, *, most: int) -> Mapping[str, int]:
        """Up to so many rows that wait will not be sent: how many of each domain ("": the contact is gone)."""
        rows = await connection.fetch(CANCEL, campaign_id, most, Status.CANCELLED, "cancelled", now)
        return {row["domain"]: row["contacts"] for row in rows}

    async def zones(self, connection: Connection, select: Compiled) -> list[str]:
        """The time zones of these contacts."""
        rows = await connection.fetch(ZONES.format(audience=select.sql), *select.parameters)
        return [row["time_zone"] for row in rows]

    async def write(self, connection: Connection, campaign_id: int, select: Compiled, due_at: datetime) -> int:
        """A row for each of these contacts that has none, due then; how many."""
        n = len(select.parameters)
        statement = WRITE.format(audience=select.sql, campaign=n + 1, due=n + 2)
        return _inserted(await connection.execute(statement, *select.parameters, campaign_id, due_at))

    async def write_by_zone(
        self, connection: Connection, campaign_id: int, select: Compiled, dues: Mapping[str, tuple[datetime, str]]
    ) -> int:
        """The same where each zone has its own time, and a reason where it is not to be sent at all."""
        n = len(select.parameters)
        statement = WRITE_BY_ZONE.format(audience=select.sql, campaign=n + 1, zones=n + 2, dues=n + 3, reasons=n + 4)
        times = [list(dues), [at for at, _ in dues.values()], [reason for _, reason in dues.values()]]
        return _inserted(await connection.execute(statement, *select.parameters, campaign_id, *times))

    async def range_end(self, connection: Connection, campaign_id: int, after: int, size: int) -> int | None:
        """The contact that ends the next so many rows of a ledger; None: there are no more."""
        end: int | None = await connection.fetchval(RANGE_OF_LEDGER, campaign_id, after, size)
        return end

    def reached_so(self, resend: Resend, tenant: str, after: int, end: int) -> Compiled:
        """The contacts in (after, end] that stand so in the ledger of that campaign."""
        wanted = [list(resend.statuses), tenant, resend.soft_only, resend.unmarked]
        return Compiled(OF_LEDGER, [resend.campaign, after, end, *wanted])


def _inserted(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
