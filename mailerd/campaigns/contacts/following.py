"""Follows what readers say outside of these modules, so that contacts and the ledger of consents show it.

They say it by a click in their mail program, by mail, or to a service that reports to us.

Nothing is decided here: who must not be mailed stands in `suppressions` from the moment when it is said.
"""

import asyncio
from collections.abc import Sequence

from mailerd.campaigns.contacts.subscriptions import STREAM
from mailerd.db import Connection
from mailerd.events import Event, Recorded
from mailerd.feedback.following import Following
from mailerd.queue.suppression import Reason, normalised

NAME = "contacts"
TYPES = ("recipient.unsubscribed", "suppression.removed")
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


class ContactFollowerStore:
    """Brings contacts up to what the events say."""

    async def read(self, events: Sequence[Recorded], connection: Connection) -> None:
        """In the caller's transaction."""
        for _, event in events:
            data = event.data or {}
            if event.type == "recipient.unsubscribed" and _is_of_all(event):
                source = str(data.get("source", ""))
                address = normalised(event.address)
                await connection.execute(LEAVE, event.tenant, address, event.at, source, source)
            elif event.type == "suppression.removed" and data.get("reason") == Reason.UNSUBSCRIBE:
                scope = data.get("scope") or {}
                if scope.get("stream") in ("", STREAM) and not scope.get("topic"):
                    actor = str(data.get("actor", ""))
                    await connection.execute(COME_BACK, event.tenant, normalised(event.address), event.at, actor)


class ContactFollower:
    """One of all nodes follows, each event once."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._store = ContactFollowerStore()
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
