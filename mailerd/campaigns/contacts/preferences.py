"""The preferences of a contact, as the person sees and changes them: which lists, mail at all, being tracked.

The link that leads there is a token of the mail; whoever has it may see the address and the lists, and change them.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from msgspec import Struct

from mailerd.campaigns.contacts.consent import ConsentFacts
from mailerd.campaigns.contacts.refusals import refused
from mailerd.campaigns.contacts.status import status_sql
from mailerd.campaigns.contacts.subscriptions import STREAM, SubscriptionStore
from mailerd.db import Connection, Pool
from mailerd.queue.suppression import GRACE
from mailerd.wire.preferences import PURPOSE, Preferences, read_preferences
from mailerd.wire.tokens import Tokens

SOURCE = "page"
CHANGES = 20  # times that a contact may come back, to a list or at all, within `SPAN`: each makes records
SPAN = timedelta(hours=1)
CONTACT = f"""
    SELECT c.id, c.email, c.tracking, {status_sql("c", "$3", now="$4")} AS status
      FROM contacts AS c WHERE c.tenant = $1 AND c.id = $2
"""
LISTS = """
    SELECT l.id, l.name, l.description, lc.status = 'subscribed' AS subscribed
      FROM list_contacts AS lc JOIN contact_lists AS l ON l.id = lc.list_id
     WHERE lc.contact_id = $1 AND l.tenant = $2 ORDER BY l.name, l.id
"""
# Who changes his mind waits for who does so at this moment.
LOCK = "SELECT address FROM contacts WHERE tenant = $1 AND id = $2 FOR UPDATE"
CAME_BACK = """
    SELECT count(DISTINCT at) FROM consents
     WHERE tenant = $1 AND address = $2 AND at > $3 AND action = 'granted' AND actor = $4
"""
TRACK = "UPDATE contacts SET tracking = $3, updated_at = $4 WHERE tenant = $1 AND id = $2 AND tracking <> $3"


class ListChoice(Struct, frozen=True):
    """A list that the person is or was on."""

    id: int
    name: str
    description: str
    subscribed: bool


class Choices(Struct, frozen=True):
    """What holds now. `status` is that of the contact: other than active, no campaign reaches the address."""

    email: str
    status: str
    tracking: bool
    lists: list[ListChoice]


class PreferenceStore:
    """Reads and changes preferences. `secret` is the installation's."""

    def __init__(
        self, pool: Pool, subscriptions: SubscriptionStore, secret: bytes, clock: Callable[[], datetime]
    ) -> None:
        self._pool = pool
        self._subscriptions = subscriptions
        self._tokens = Tokens(secret, PURPOSE)
        self._clock = clock

    def read(self, token: str) -> Preferences | None:
        """Whose they are; None for a token that is none of ours."""
        return read_preferences(self._tokens, token)

    async def choices(self, who: Preferences) -> Choices | None:
        """What holds now; None when the contact is gone."""
        async with self._pool.acquire() as connection:
            return await self._choices(who, connection)

    async def leave_all(self, who: Preferences) -> bool:
        """No more mail of campaigns. It holds for all mail whose DATA has not begun when this returns.

        False when the contact is gone.
        """
        done = await self._subscriptions.unsubscribe(
            who.tenant, who.contact_id, reason="", source=SOURCE, message_id=who.message_id, campaign=who.campaign
        )
        return done is not None

    async def choose(self, who: Preferences, lists: Collection[int], *, tracking: bool, ip: str) -> Choices | None:
        """Be on these of the lists that the person is or was on, and on no other; whoever had left all comes back.

        None when the contact is gone. Raises `Refused` when the address cannot be mailed, whatever the person wants,
        and too_often: then nothing is changed.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK, who.tenant, who.contact_id)
            before = await self._choices(who, connection)
            if before is None:
                return None
            await connection.execute(TRACK, who.tenant, who.contact_id, tracking, self._clock())
            wanted = sorted(each.id for each in before.lists if each.id in lists)
            for each in before.lists:
                if each.subscribed and each.id not in lists:
                    await self._leave(who, each.id, connection)
            if wanted and (
                before.status != "active" or any(not each.subscribed for each in before.lists if each.id in lists)
            ):
                await self._come_back(who, wanted, ip, connection)
            after = await self._choices(who, connection)
        await asyncio.sleep(GRACE)
        return after

    async def come_back(self, who: Preferences, *, ip: str) -> None:
        """Mail again for somebody who is on no list. Raises `Refused` as `choose`."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK, who.tenant, who.contact_id)
            before = await self._choices(who, connection)
            if before is not None and before.status != "active":
                await self._come_back(who, [], ip, connection)

    async def _leave(self, who: Preferences, list_id: int, connection: Connection) -> None:
        await self._subscriptions.unsubscribe(
            who.tenant,
            who.contact_id,
            list_id=list_id,
            reason="",
            source=SOURCE,
            message_id=who.message_id,
            campaign=who.campaign,
            connection=connection,
        )

    async def _come_back(self, who: Preferences, lists: list[int], ip: str, connection: Connection) -> None:
        now = self._clock()
        address = await connection.fetchval(LOCK, who.tenant, who.contact_id)
        if await connection.fetchval(CAME_BACK, who.tenant, address, now - SPAN, SOURCE) >= CHANGES:
            detail = "You changed your mind very often within an hour. Please come back later; leaving always works."
            raise refused("too_often", detail, http=429)
        consent = ConsentFacts(method=SOURCE, ip=ip, at=now)
        await self._subscriptions.subscribe(
            who.tenant, who.contact_id, consent=consent, list_ids=lists, source=SOURCE, connection=connection
        )

    async def _choices(self, who: Preferences, connection: Connection) -> Choices | None:
        row = await connection.fetchrow(CONTACT, who.tenant, who.contact_id, STREAM, self._clock())
        if row is None:
            return None
        lists = [ListChoice(**each) for each in await connection.fetch(LISTS, row["id"], who.tenant)]
        return Choices(row["email"], row["status"], row["tracking"], lists)
