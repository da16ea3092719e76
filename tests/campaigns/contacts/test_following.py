"""What readers say by mail to an address that the contact has left since."""

from typing import Any

import pytest

from mailerd.campaigns.contacts.following import ContactFollowerStore
from mailerd.campaigns.contacts.store import ContactValues
from mailerd.campaigns.contacts.subscriptions import STREAM
from mailerd.events import START, EventStore
from mailerd.feedback.unsubscribing import UnsubscribeStore
from mailerd.queue.suppression import Reason
from mailerd.wire.unsubscribe import Subscription
from tests.campaigns.contacts.conftest import SECRET, TENANT, Contacts

OLD, NEW = "ann@example.com", "ann2@example.com"
LEDGER = """
    INSERT INTO campaign_contacts (campaign_id, contact_id, due_at, waiting, status, message_id)
    VALUES (1, $1, $2, false, 2, 17)
"""


async def moved(contacts: Contacts) -> int:
    """A contact who got mail 17 of campaign 1 at his former address."""
    ann = await contacts.add(OLD)
    await contacts.pool.execute(LEDGER, ann, contacts.clock())
    assert await contacts.book.contacts.change(TENANT, ann, ContactValues(email=NEW))
    return ann


async def leave(contacts: Contacts, address: str = OLD, *, topic: str = "", message_id: int = 17) -> None:
    links = UnsubscribeStore(contacts.pool, contacts.suppressions, SECRET, contacts.clock)
    said = Subscription(TENANT, STREAM, topic, "cmp_1", address, message_id, 1)
    async with contacts.pool.acquire() as connection, connection.transaction():
        assert await links.record(said, "one-click", connection)


async def follow(contacts: Contacts) -> None:
    page = await EventStore(contacts.pool).after(START, limit=100)
    async with contacts.pool.acquire() as connection, connection.transaction():
        await ContactFollowerStore(contacts.suppressions).read(page.events, connection)


async def entries(contacts: Contacts, address: str) -> list[tuple[Any, ...]]:
    found = await contacts.suppressions.list(tenant=TENANT, limit=9, address=address, holding_at=contacts.clock())
    return sorted((each.reason.value, each.stream, each.topic, each.message_id) for each in found)


async def test_who_leaves_by_mail_to_a_former_address_is_not_mailed_at_the_present_one(contacts: Contacts) -> None:
    ann = await moved(contacts)
    await leave(contacts)

    for _ in range(2):  # an event may come twice
        await follow(contacts)
        assert await entries(contacts, NEW) == await entries(contacts, OLD) == [("unsubscribe", STREAM, "", 17)]
    assert await contacts.status(ann) == "unsubscribed"
    assert await contacts.pool.fetchval("SELECT unsubscribed_at FROM contacts WHERE id = $1", ann) == contacts.clock()


async def test_of_a_topic_only_the_topic_is_left(contacts: Contacts) -> None:
    ann = await moved(contacts)
    await leave(contacts, topic="offers")

    await follow(contacts)

    assert await entries(contacts, NEW) == [("unsubscribe", STREAM, "offers", 17)]
    assert await contacts.status(ann) == "active"


async def test_a_complaint_holds_at_the_present_address_for_the_tenant_that_it_is_about(contacts: Contacts) -> None:
    ann = await moved(contacts)
    await contacts.pool.execute(
        """INSERT INTO suppressions (tenant, address, stream, topic, reason, source, detail, message_id, created_at)
           VALUES ('', $1, '', '', 'complaint', 'report', 'abuse', 17, $2)""",
        OLD,
        contacts.clock(),
    )
    await contacts.pool.execute(
        """INSERT INTO events (at, type, message_id, n, address, tenant, stream, campaign)
           VALUES ($1, 'recipient.complained', 17, 1, $2, $3, $4, 'cmp_1')""",
        contacts.clock(),
        OLD,
        TENANT,
        STREAM,
    )

    await follow(contacts)

    assert await entries(contacts, NEW) == [(Reason.COMPLAINT.value, "", "", 17)]
    assert await contacts.status(ann) == "complained"


@pytest.mark.parametrize("message_id", [17, 18])
async def test_another_s_mail_and_a_wish_that_was_taken_back_change_nothing(
    contacts: Contacts, message_id: int
) -> None:
    ann = await moved(contacts)
    await leave(contacts, message_id=message_id)
    if message_id == 17:
        await contacts.pool.execute("DELETE FROM suppressions")

    await follow(contacts)

    assert await entries(contacts, NEW) == []
    assert await contacts.status(ann) == "active"
    assert await contacts.pool.fetchval("SELECT unsubscribed_at FROM contacts WHERE id = $1", ann) is None
