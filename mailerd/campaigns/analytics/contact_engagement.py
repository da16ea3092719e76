"""What one contact got from campaigns, and what it did with them."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import msgspec

from mailerd.campaigns.analytics.engagements import CLICKED, OPENED
from mailerd.campaigns.analytics.reading import Reading
from mailerd.campaigns.ledger import Status
from mailerd.db import Connection

EXISTS = "SELECT EXISTS (SELECT FROM contacts WHERE id = $1 AND tenant = $2)"
SENT = f"{Status.DELIVERED:d}, {Status.BOUNCED:d}, {Status.FAILED:d}, {Status.IN_DOUBT:d}"
MAIL = f"""
    SELECT count(*) FILTER (WHERE status IN ({SENT})) AS sent,
           count(*) FILTER (WHERE status = {Status.DELIVERED:d}) AS delivered,
           count(*) FILTER (WHERE status = {Status.BOUNCED:d}) AS bounced,
           count(*) FILTER (WHERE marks & 1 <> 0) AS campaigns_opened,
           count(*) FILTER (WHERE marks & 4 <> 0) AS campaigns_clicked,
           max(changed_at) FILTER (WHERE status IN ({SENT})) AS last_sent
      FROM campaign_contacts WHERE contact_id = $1
"""
HITS = f"""
    SELECT count(*) FILTER (WHERE kind = {OPENED} AND NOT machine) AS opens,
           count(*) FILTER (WHERE kind = {CLICKED} AND NOT machine) AS clicks,
           count(*) FILTER (WHERE kind = {OPENED} AND machine) AS machine_opens,
           count(*) FILTER (WHERE kind = {CLICKED} AND machine) AS machine_clicks,
           max(at) FILTER (WHERE kind = {OPENED} AND NOT machine) AS last_opened,
           max(at) FILTER (WHERE kind = {CLICKED} AND NOT machine) AS last_clicked
      FROM engagements WHERE contact_id = $1
"""
# That somebody said no stands in the ledger, when he did in the events as long as these are kept.
SAID_NO = """
    SELECT coalesce((SELECT min(e.at) FROM events AS e WHERE e.message_id = m.message_id
                        AND e.type = 'recipient.' || said.what), m.changed_at, m.due_at) AS at,
           said.what, m.campaign_id, m.message_id
      FROM campaign_contacts AS m JOIN (VALUES (16, 'unsubscribed'), (32, 'complained')) AS said (mark, what)
        ON m.marks & said.mark <> 0
     WHERE m.contact_id = $1
"""
# Newest first, at a place that does not move: what is of one moment stands in a fixed order.
HISTORY = f"""
    SELECT own.at, own.what, own.campaign_id, coalesce(c.name, '') AS campaign, own.message_id, own.machine, own.link,
           coalesce(l.url, '') AS url
      FROM (SELECT changed_at AS at,
                   CASE status WHEN {Status.DELIVERED:d} THEN 'delivered' WHEN {Status.BOUNCED:d} THEN 'bounced'
                               WHEN {Status.FAILED:d} THEN 'failed' WHEN {Status.SUPPRESSED:d} THEN 'suppressed'
                               WHEN {Status.CANCELLED:d} THEN 'cancelled' ELSE 'in_doubt' END AS what,
                   campaign_id, message_id, false AS machine, 0 AS link
              FROM campaign_contacts
             WHERE contact_id = $1 AND status >= {Status.DELIVERED:d} AND changed_at <= $2
             UNION ALL
            SELECT at, CASE kind WHEN {OPENED} THEN 'opened' ELSE 'clicked' END, campaign_id, message_id, machine, link
              FROM engagements WHERE contact_id = $1 AND at <= $2
             UNION ALL
            SELECT at, what, campaign_id, message_id, false, 0 FROM ({SAID_NO}) AS said WHERE at <= $2) AS own
      LEFT JOIN campaigns AS c ON c.id = own.campaign_id
      LEFT JOIN campaign_links AS l ON own.what = 'clicked' AND l.campaign_id = own.campaign_id AND l.link = own.link
     ORDER BY own.at DESC, own.campaign_id DESC, own.message_id DESC, own.what DESC, own.machine, own.link DESC
     LIMIT $3 OFFSET $4
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engagement:
    """Of campaigns. `sent` and so on count mail, `opens` and `clicks` hits for as long as these are kept."""

    sent: int
    delivered: int
    bounced: int
    campaigns_opened: int
    campaigns_clicked: int
    last_sent: datetime | None
    opens: int
    clicks: int
    machine_opens: int
    machine_clicks: int
    last_opened: datetime | None
    last_clicked: datetime | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `what`: delivered, bounced, opened, unsubscribed …; `machine`: not by a person."""

    at: datetime
    what: str
    campaign_id: int
    campaign: str  # its name
    message_id: int | None
    machine: bool
    link: int
    url: str


class Place(NamedTuple):
    """In a history: behind the first `skip` entries of that moment."""

    at: datetime
    skip: int


class ContactEngagementStore:
    """Reads what is known of one contact."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def of(self, contact_id: int, tenant: str) -> Engagement | None:
        """The sums; None when this tenant has no such contact."""
        if not await self._reading.now(lambda connection: connection.fetchval(EXISTS, contact_id, tenant)):
            return None

        async def read(connection: Connection) -> Engagement:
            (mail,) = await connection.fetch(MAIL, contact_id)
            (hits,) = await connection.fetch(HITS, contact_id)
            return Engagement(**mail, **hits)

        return await self._reading.soon(read)

    async def history(self, contact_id: int, place: Place, limit: int) -> list[Entry]:
        """Up to `limit` entries from `place` on, newest first."""
        at, skip = place

        async def read(connection: Connection) -> list[Entry]:
            return [Entry(**row) for row in await connection.fetch(HISTORY, contact_id, at, limit, skip)]

        return await self._reading.soon(read)


def behind(place: Place, entries: list[Entry]) -> Place:
    """The place behind these entries, which were read from `place` on."""
    if not entries:
        return place
    last = entries[-1].at
    skip = sum(1 for entry in entries if entry.at == last)
    return Place(last, skip + place.skip if last == place.at else skip)
