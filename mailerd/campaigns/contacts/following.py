"""Follows what readers say outside of these modules, so that contacts and the ledger of consents show it.

They say it by a click in their mail program, by mail, or to a service that reports to us.

Who must not be mailed stands in `suppressions` from the moment when it is said. One thing is added here: who says it by
mail of a campaign to an address that he has left since is not mailed at his present one, either.
"""

import asyncio
from collections.abc import Sequence

from mailerd.campaigns.contacts.moving import SOURCE
from mailerd.campaigns.contacts.subscriptions import STREAM
from mailerd.db import Connection
from mailerd.events import Event, Recorded
from mailerd.feedback.following import Following
from mailerd.queue.ids import CAMPAIGN, names_campaign, parse_id
from mailerd.queue.suppression import Reason, Suppression, SuppressionStore, normalised

NAME = "contacts"
TYPES = ("recipient.unsubscribed", "recipient.complained", "suppression.removed")
# Whoever has left already said so here, and it is recorded.
LEAVE = """
    WITH gone AS (
        UPDATE contacts SET unsubscribed_at = $3, unsubscribe_reason = $4, updated_at = $3
         WHERE tenant = $1 AND address = $2 AND unsubscribed_at IS NULL RETURNING id
    )
    INSERT INTO consents (tenant, address, contact_id, action, method, actor, at)
    SELECT $1, $2, id, 'withdrawn', $4, $5, $3 FROM gone
"""
# Only what the person has said is a consent: an operator may take an entry away, too.
COME_BACK = """
    WITH back AS (
        UPDATE contacts SET unsubscribed_at = NULL, unsubscribe_reason = '', subscribed_at = $3, updated_at = $3
         WHERE tenant = $1 AND address = $2 AND unsubscribed_at < $3 RETURNING id
    )
    INSERT INTO consents (tenant, address, contact_id, action, method, actor, at)
    SELECT $1, $2, id, 'granted', $4, $4, $3 FROM back WHERE $4 = 'page'
"""
# Where the person is now whom this mail was for; locked, as whoever leaves is before he is suppressed.
PRESENT_ADDRESS = """
    SELECT c.address FROM campaign_contacts AS own JOIN contacts AS c ON c.id = own.contact_id AND c.tenant = $1
     WHERE own.campaign_id = $2 AND own.message_id = $3 AND c.address <> $4 FOR UPDATE OF c
"""
SAID = """
    SELECT stream, topic, reason, expires_at FROM suppressions
     WHERE tenant IN ($1, '') AND address = $2 AND message_id = $3 AND reason IN ('unsubscribe', 'complaint')
"""


class ContactFollowerStore:
    """Brings contacts up to what the events say."""

    def __init__(self, suppressions: SuppressionStore) -> None:
        self._suppressions = suppressions

    async def read(self, events: Sequence[Recorded], connection: Connection) -> None:
        """In the caller's transaction."""
        following: list[Suppression] = []
        for _, event in events:
            data = event.data or {}
            if event.type != "suppression.removed" and names_campaign(event.campaign):
                following += await self._at_present_address(event, connection)
            if event.type == "recipient.unsubscribed" and _is_of_all(event):
                source = str(data.get("source", ""))
                address = normalised(event.address)
                await connection.execute(LEAVE, event.tenant, address, event.at, source, source)
            elif event.type == "suppression.removed" and data.get("reason") == Reason.UNSUBSCRIBE:
                scope = data.get("scope") or {}
                if scope.get("stream") in ("", STREAM) and not scope.get("topic"):
                    actor = str(data.get("actor", ""))
                    await connection.execute(COME_BACK, event.tenant, normalised(event.address), event.at, actor)
        await self._suppressions.add(following, connection)

    async def _at_present_address(self, event: Event, connection: Connection) -> list[Suppression]:
        """What the event says, for the address that the contact has had since; nothing when it is the same."""
        campaign, said_by = parse_id(CAMPAIGN, event.campaign), normalised(event.address)
        present = await connection.fetchval(PRESENT_ADDRESS, event.tenant, campaign, event.message_id, said_by)
        if present is None:
            return []
        said = await connection.fetch(SAID, event.tenant, said_by, event.message_id)
        if said and event.type == "recipient.unsubscribed" and _is_of_all(event):
            await connection.execute(LEAVE, event.tenant, present, event.at, SOURCE, SOURCE)
        return [
            Suppression(
                present,
                tenant=event.tenant,
                stream=row["stream"],
                topic=row["topic"],
                reason=Reason(row["reason"]),
                source=SOURCE,
                message_id=event.message_id,
                created_at=event.at,
                expires_at=row["expires_at"],
            )
            for row in said
        ]


class ContactFollower:
    """One of all nodes follows, each event once."""

    def __init__(self, following: Following, suppressions: SuppressionStore) -> None:
        self._following = following
        self._store = ContactFollowerStore(suppressions)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        work = self._following.run_within(NAME, self._store.read, start="beginning", types=TYPES)
        self._task = asyncio.create_task(work, name=f"follower {NAME}")

    async def stop(self) -> None:
        """Finish the page under way."""
        if self._task is not None:
            await self._following.end(NAME)
            await self._task


def _is_of_all(event: Event) -> bool:
    """Does the reader want nothing of campaigns any more, and not only less?"""
    data = event.data or {}
    return event.stream in ("", STREAM) and not data.get("topic") and not data.get("list")
