"""Everything that is known of one person, for that person (GDPR articles 15 and 20)."""

from datetime import datetime

import asyncpg
from msgspec import Struct

from mailerd.campaigns.contacts.consent import Consent, ConsentStore
from mailerd.campaigns.contacts.store import ContactStore
from mailerd.campaigns.contacts.subscriptions import Change, Subscription, SubscriptionStore
from mailerd.campaigns.contacts.values import Contact, spellings
from mailerd.campaigns.ledger import Mark, Status
from mailerd.db import Pool
from mailerd.feedback.event_search import EventFilters, EventSearchStore
from mailerd.feedback.names import OutsideEvent

MOST = 10_000  # of each kind, the last ones
MOST_EVENTS = 2_000
KINDS = {1: "opened", 2: "clicked"}  # of engagements

CAMPAIGNS = """
    SELECT l.campaign_id, coalesce(c.name, '') AS name, l.status, l.marks, l.message_id, l.due_at, l.changed_at,
           l.reason
      FROM campaign_contacts AS l LEFT JOIN campaigns AS c ON c.id = l.campaign_id AND c.tenant = $1
     WHERE l.contact_id = $2 ORDER BY l.campaign_id DESC LIMIT $3
"""
ENGAGEMENTS = """
    SELECT at, campaign_id, message_id, kind, machine, link FROM engagements
     WHERE contact_id = $1 ORDER BY at DESC LIMIT $2
"""
SUPPRESSIONS = """
    SELECT address, tenant = '' AS everybody, stream, topic, reason,
           CASE WHEN tenant = '' THEN '' ELSE detail END AS detail, created_at, expires_at
      FROM suppressions
     WHERE address IN ($2, '@' || split_part($2, '@', -1)) AND tenant IN ($1, '') ORDER BY id DESC LIMIT $3
"""


class ReceivedCampaign(Struct, frozen=True, kw_only=True):
    """What became of one campaign's mail to the person; `marks` is what the person did: opened, clicked …"""

    campaign_id: int
    name: str
    status: str
    marks: list[str]
    message_id: int | None
    due_at: datetime
    changed_at: datetime | None
    reason: str


class Engagement(Struct, frozen=True, kw_only=True):
    """One open or click; `machine`: most likely not by the person."""

    at: datetime
    campaign_id: int
    message_id: int
    kind: str
    machine: bool
    link: int


class Binding(Struct, frozen=True, kw_only=True):
    """Why mail does not go to the address, or to its domain; `everybody`: of no tenant."""

    address: str
    everybody: bool
    stream: str
    topic: str
    reason: str
    detail: str
    created_at: datetime
    expires_at: datetime | None


class Person(Struct, frozen=True, kw_only=True):
    """All of it. Of each kind there are at most `MOST`, of events `MOST_EVENTS`, the last ones."""

    contact: Contact
    subscriptions: list[Subscription]
    history: list[Change]
    consents: list[Consent]
    campaigns: list[ReceivedCampaign]
    engagements: list[Engagement]
    suppressions: list[Binding]
    events: list[OutsideEvent]


class PersonStore:
    """Gathers what other stores have of one contact, and of its address."""

    def __init__(
        self, pool: Pool, contacts: ContactStore, subscriptions: SubscriptionStore, consents: ConsentStore
    ) -> None:
        self._pool = pool
        self._contacts = contacts
        self._subscriptions = subscriptions
        self._consents = consents
        self._events = EventSearchStore(pool)

    async def export(self, tenant: str, contact_id: int) -> Person | None:
        """None: no such contact."""
        contact = await self._contacts.get(tenant, contact_id)
        if contact is None:
            return None
        return Person(
            contact=contact,
            subscriptions=await self._subscriptions.of(tenant, contact_id),
            history=await self._subscriptions.history(tenant, contact_id),
            consents=await self._consents.of(tenant, contact_id) or [],
            campaigns=[_received(row) for row in await self._pool.fetch(CAMPAIGNS, tenant, contact_id, MOST)],
            engagements=[_engagement(row) for row in await self._pool.fetch(ENGAGEMENTS, contact_id, MOST)],
            suppressions=[
                Binding(**row) for row in await self._pool.fetch(SUPPRESSIONS, tenant, contact.address, MOST)
            ],
            events=await self._told(tenant, contact),
        )

    async def _told(self, tenant: str, contact: Contact) -> list[OutsideEvent]:
        """The events of the address in its usual spellings, the last first."""
        found: list[OutsideEvent] = []
        for address in spellings(contact.email, contact.address):
            position, more = None, True
            while more and len(found) < MOST_EVENTS:
                page = await self._events.search(
                    EventFilters(tenant=tenant, address=address), MOST_EVENTS - len(found), position
                )
                found += page.events
                position, more = page.position, page.more
        return sorted(found, key=lambda event: event.created_at, reverse=True)


def _received(row: asyncpg.Record) -> ReceivedCampaign:
    facts = dict(row) | {"status": Status(row["status"]).word, "marks": _words(Mark(row["marks"]))}
    return ReceivedCampaign(**facts)


def _words(marks: Mark) -> list[str]:
    return [mark.name.lower() for mark in marks if mark.name]


def _engagement(row: asyncpg.Record) -> Engagement:
    return Engagement(**dict(row) | {"kind": KINDS.get(row["kind"], "")})
