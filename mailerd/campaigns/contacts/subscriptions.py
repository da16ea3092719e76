"""What people say of the mail they get: no more of it, or of one list; and, with their consent on record, again.

Whoever unsubscribes from all is suppressed for the stream of campaigns and unsubscribed from every list. No import and
no other call revives that: only `subscribe` does, with a consent that is younger than the leaving.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from mailerd import events
from mailerd.campaigns.contacts.consent import ConsentFacts, check_time, is_full, record, too_many
from mailerd.campaigns.contacts.lists import move_counts
from mailerd.campaigns.contacts.members import static_list
from mailerd.campaigns.contacts.refusals import refused
from mailerd.campaigns.contacts.status import status_sql
from mailerd.campaigns.contacts.values import ListStatus
from mailerd.db import Connection, Pool
from mailerd.events import Event
from mailerd.queue.ids import LIST, format_id
from mailerd.queue.suppression import GRACE, Reason, Suppression, SuppressionStore

STREAM = "marketing"  # of campaigns
MAX_HISTORY = 1_000  # changes that are shown

LOCK = "SELECT id, address FROM contacts WHERE tenant = $1 AND id = $2 FOR UPDATE"  # who adds to lists waits
LEAVE = """
    UPDATE contacts SET unsubscribed_at = $2, unsubscribe_reason = $3, updated_at = $2
     WHERE id = $1 AND ($4 OR unsubscribed_at IS NULL)
"""
LOCK_ROWS = """
    SELECT list_id, status FROM list_contacts
     WHERE contact_id = $1 AND ($2::bigint[] IS NULL OR list_id = ANY ($2)) ORDER BY list_id FOR UPDATE
"""
NEW_ROWS = """
    INSERT INTO list_contacts (list_id, contact_id, status, source, added_at, changed_at)
    SELECT list_id, $1, $3, $4, $5, $5 FROM unnest($2::bigint[]) AS list_id ORDER BY list_id
    ON CONFLICT DO NOTHING RETURNING list_id
"""
PUT_ROWS = """
    UPDATE list_contacts SET status = $3, source = $4, changed_at = $5
     WHERE contact_id = $1 AND list_id = ANY ($2::bigint[])
"""
NOTE = """
    INSERT INTO subscription_history (contact_id, list_id, was, became, source, detail, at)
    SELECT $1, list_id, was, $4, $5, $6, $7 FROM unnest($2::bigint[], $3::text[]) AS rows (list_id, was)
"""
# When the person last said no: to all, or to one of these lists.
SAID_NO = """
    SELECT max(at) FROM (
        SELECT at FROM consents
         WHERE tenant = $1 AND address = $2 AND action = 'withdrawn'
           AND (list_id IS NULL OR list_id = ANY ($3::bigint[]))
        UNION ALL
        SELECT created_at FROM suppressions
         WHERE address = $2 AND tenant = $1 AND stream IN ('', $4) AND topic = '' AND reason = 'unsubscribe'
    ) AS said
"""
COME_BACK = """
    UPDATE contacts SET unsubscribed_at = NULL, unsubscribe_reason = '', subscribed_at = $2, updated_at = $3
     WHERE id = $1
"""
STATUS = f"SELECT {status_sql('c', '$2', now='$3')} FROM contacts AS c WHERE c.id = $1"
OF_CONTACT = """
    SELECT l.id AS list_id, l.name, lc.status, lc.source, lc.added_at, lc.changed_at
      FROM contacts AS c JOIN list_contacts AS lc ON lc.contact_id = c.id JOIN contact_lists AS l ON l.id = lc.list_id
     WHERE c.tenant = $1 AND c.id = $2 ORDER BY l.id
"""
HISTORY = """
    SELECT h.list_id, h.was, h.became, h.source, h.detail, h.at
      FROM contacts AS c JOIN subscription_history AS h ON h.contact_id = c.id
     WHERE c.tenant = $1 AND c.id = $2 ORDER BY h.at DESC LIMIT $3
"""


class Subscription(Struct, frozen=True, kw_only=True):
    """One list that a contact is or was on."""

    list_id: int
    name: str
    status: ListStatus
    source: str
    added_at: datetime
    changed_at: datetime


class Change(Struct, frozen=True, kw_only=True):
    """One change of a subscription. `was` is none when there had been none, `became` also removed."""

    list_id: int
    was: str
    became: str
    source: str
    detail: str
    at: datetime


class _Contact(NamedTuple):
    id: int
    address: str


class _Leaving(NamedTuple):
    """Of what somebody wants no more, and what is known of it."""

    tenant: str
    contact_id: int
    list_id: int | None
    reason: str
    source: str
    message_id: int
    campaign: str
    facts: ConsentFacts | None
    now: datetime


class SubscriptionStore:
    """Carries out what people say. Times are those of `clock`."""

    def __init__(self, pool: Pool, suppressions: SuppressionStore, clock: Callable[[], datetime]) -> None:
        self._pool = pool
        self._suppressions = suppressions
        self._clock = clock

    async def unsubscribe(
        self,
        tenant: str,
        contact_id: int,
        *,
        list_id: int | None = None,
        reason: str,
        source: str,
        message_id: int = 0,
        campaign: str = "",
        facts: ConsentFacts | None = None,
        connection: Connection | None = None,
    ) -> bool | None:
        """No more mail of campaigns, or (`list_id`) none for this list. None: no such contact; False: it was so.

        Returns when it holds for all mail whose DATA has not begun; in the transaction of a caller (`connection`) it
        is he who waits `GRACE` after the commit. `source` is api:NAME, page …; `facts` what to record of how it was
        said; `message_id` and `campaign` the mail that led to it, if known. Raises `Refused`: no such list.
        """
        now = self._clock()
        leaving = _Leaving(tenant, contact_id, list_id, reason, source, message_id, campaign, facts, now)
        if connection is not None:
            return await self._leave(connection, leaving)
        async with self._pool.acquire() as own, own.transaction():
            done = await self._leave(own, leaving)
        if done is not None:
            await asyncio.sleep(GRACE)
        return done

    async def _leave(self, connection: Connection, leaving: _Leaving) -> bool | None:
        if leaving.facts is not None:
            check_time(leaving.facts, leaving.now)
        contact = await self._lock(connection, leaving.tenant, leaving.contact_id)
        if contact is None:
            return None
        if leaving.list_id is None:
            changed = await self._suppress(connection, contact, leaving)
            wanted = None
        else:
            await static_list(connection, leaving.tenant, leaving.list_id)
            changed, wanted = False, [leaving.list_id]
        moves = await self._put(
            connection,
            contact,
            wanted,
            "unsubscribed",
            source=leaving.source,
            detail=leaving.reason,
            now=leaving.now,
        )
        changed = changed or bool(moves)
        # What a person said is put on record, also when it changes nothing.
        if changed or (leaving.facts is not None and not await is_full(connection, leaving.tenant, contact.address)):
            await self._tell(connection, contact, leaving)
        await move_counts(connection, moves)
        return changed

    async def _tell(self, connection: Connection, contact: _Contact, leaving: _Leaving) -> None:
        """The record, and the event of the mail that led to it."""
        method = leaving.source.partition(":")[0]
        await record(
            connection,
            leaving.tenant,
            contact.address,
            contact.id,
            "withdrawn",
            leaving.facts or ConsentFacts(method=method, at=leaving.now),
            actor=leaving.source,
            list_ids=[leaving.list_id],
        )
        if leaving.message_id:
            await connection.execute(events.APPEND, *events.parameters([_left(contact, leaving)]))

    async def subscribe(
        self,
        tenant: str,
        contact_id: int,
        *,
        consent: ConsentFacts,
        list_ids: Sequence[int] = (),
        source: str,
        connection: Connection | None = None,
    ) -> bool:
        """The person wants mail again, or of these lists too. False: no such contact.

        It lifts what the person had said, and nothing else. Raises `Refused` when the consent is older than that, when
        the address bounced, complained or is suppressed by hand or for all tenants, and for lists that are not there.
        """
        if connection is not None:
            return await self._come_back(connection, tenant, contact_id, consent, list_ids, source)
        async with self._pool.acquire() as own, own.transaction():
            return await self._come_back(own, tenant, contact_id, consent, list_ids, source)

    async def _come_back(
        self,
        connection: Connection,
        tenant: str,
        contact_id: int,
        consent: ConsentFacts,
        list_ids: Sequence[int],
        source: str,
    ) -> bool:
        now = self._clock()
        check_time(consent, now)
        contact = await self._lock(connection, tenant, contact_id)
        if contact is None:
            return False
        if await is_full(connection, tenant, contact.address):
            raise too_many()
        lists = sorted(set(list_ids))
        for list_id in lists:
            await static_list(connection, tenant, list_id)
        left_at = await connection.fetchval(SAID_NO, tenant, contact.address, lists, STREAM)
        if left_at is not None and consent.at < left_at:
            detail = f"The person unsubscribed at {left_at:%Y-%m-%dT%H:%M:%SZ}: a consent of before holds no more."
            raise refused("stale_consent", detail)
        for stream in ("", STREAM):
            await self._suppressions.lift(
                contact.address,
                tenant=tenant,
                stream=stream,
                topic="",
                reason=Reason.UNSUBSCRIBE,
                actor=source,
                now=now,
                connection=connection,
            )
        status = await connection.fetchval(STATUS, contact.id, STREAM, now)
        if status != "active":
            raise refused(f"contact_{status}", f"The contact is {status}: remove its suppression first.")
        await connection.execute(COME_BACK, contact.id, consent.at, now)
        moves = await self._put(connection, contact, lists, "subscribed", source=source, detail="", now=now)
        await record(
            connection, tenant, contact.address, contact.id, "granted", consent, actor=source, list_ids=lists or [None]
        )
        await move_counts(connection, moves)
        return True

    async def of(self, tenant: str, contact_id: int) -> list[Subscription]:
        """The lists of a contact, with what it is on each."""
        return [Subscription(**row) for row in await self._pool.fetch(OF_CONTACT, tenant, contact_id)]

    async def history(self, tenant: str, contact_id: int, *, limit: int = MAX_HISTORY) -> list[Change]:
        """The changes of a contact's subscriptions, the last first."""
        return [Change(**row) for row in await self._pool.fetch(HISTORY, tenant, contact_id, limit)]

    async def _lock(self, connection: Connection, tenant: str, contact_id: int) -> _Contact | None:
        row = await connection.fetchrow(LOCK, tenant, contact_id)
        return None if row is None else _Contact(*row)

    async def _suppress(self, connection: Connection, contact: _Contact, leaving: _Leaving) -> bool:
        """Whether that is new."""
        entry = Suppression(
            contact.address,
            tenant=leaving.tenant,
            stream=STREAM,
            reason=Reason.UNSUBSCRIBE,
            source=leaving.source,
            detail=leaving.reason,
            message_id=leaving.message_id or None,
            created_at=leaving.now,
        )
        new = bool(await self._suppressions.add([entry], connection))
        await connection.execute(LEAVE, contact.id, leaving.now, leaving.reason, new)
        return new

    async def _put(
        self,
        connection: Connection,
        contact: _Contact,
        list_ids: Sequence[int] | None,
        status: ListStatus,
        *,
        source: str,
        detail: str,
        now: datetime,
    ) -> dict[int, int]:
        """Make these rows (None: those that are there) so; returns what that adds to the count of each list changed."""
        said = (status, source, now)
        new: set[int] = set()
        while True:  # a row that was there, or was not, may have come or gone meanwhile
            rows = await connection.fetch(LOCK_ROWS, contact.id, list_ids)
            missing = sorted(set(list_ids or ()) - {row["list_id"] for row in rows})
            if not missing:
                break
            new |= {row["list_id"] for row in await connection.fetch(NEW_ROWS, contact.id, missing, *said)}
        was = {row["list_id"]: "none" if row["list_id"] in new else row["status"] for row in rows}
        changed = {list_id: before for list_id, before in was.items() if before != status}
        if not changed:
            return {}
        await connection.execute(PUT_ROWS, contact.id, sorted(changed.keys() - new), *said)
        old = list(changed.values())
        await connection.execute(NOTE, contact.id, list(changed), old, status, source, detail, now)
        return {id_: (status == "subscribed") - (before == "subscribed") for id_, before in changed.items()}


def _left(contact: _Contact, leaving: _Leaving) -> Event:
    data = {"source": leaving.source.partition(":")[0], "topic": ""}
    if leaving.reason:
        data["detail"] = leaving.reason
    if leaving.list_id is not None:
        data["list"] = format_id(LIST, leaving.list_id)
    return Event(
        leaving.now,
        "recipient.unsubscribed",
        leaving.message_id,
        1,
        contact.address,
        leaving.tenant,
        data,
        STREAM,
        leaving.campaign,
    )
