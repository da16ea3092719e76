"""Erasure: a person asks to be forgotten (GDPR article 17), and everything we know of them goes.

What stays, and why: the rows of the ledger with the number of the contact, so that counts stay right; a keyed hash of
the address, so that no import brings it back; the suppressions of the address, without what was said: nobody could keep
to what the person asked for without them (article 17 paragraph 3 b, article 21); and the events of its mail as facts
about a message, with `con_17@erased.invalid` for the address and without replies, links, subjects, IP addresses and
clients. What is in the queue at that moment is not mailed when it is a campaign's; of other mail the events that are
still to come have the address until they are forgotten (retention.events).

Events are found by the messages of the ledger, those that suppressions name, and those accepted for the address as it
was given, normalised, or in lower case; of a message found all spellings go. What is left out: mail that is no
campaign's, to a spelling that is none of these (`AnN@example.net`), of which no suppression came. To find that, events
would need an index by lower(address).
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from mailerd.campaigns.contacts.refusals import unknown
from mailerd.campaigns.contacts.store import delete_contact, erased, erasure_hash
from mailerd.campaigns.contacts.values import spellings
from mailerd.db import Pool
from mailerd.queue.ids import CONTACT, format_id

STEP = 500  # messages whose events one statement changes
DOMAIN = "erased.invalid"  # RFC 2606: no mail goes there
SPOKEN = ("text", "detail", "subject", "labels", "url", "ip", "user_agent")  # of the person, or to them

ADDRESS = "SELECT address, email FROM contacts WHERE tenant = $1 AND id = $2"
# Of the contact's mail, by whatever tells of it; a message may come by several ways.
MESSAGES = """
    SELECT message_id FROM (
        (SELECT message_id FROM events
          WHERE type = 'message.accepted' AND address = ANY ($1::text[]) AND message_id > $2 AND tenant = $3
          ORDER BY message_id LIMIT $4)
        UNION
        (SELECT message_id FROM campaign_contacts WHERE contact_id = $5 AND message_id > $2
          ORDER BY message_id LIMIT $4)
        UNION
        (SELECT message_id FROM suppressions WHERE address = ANY ($1::text[]) AND tenant = $3 AND message_id > $2
          ORDER BY message_id LIMIT $4)
    ) AS told ORDER BY message_id LIMIT $4
"""
# What is true of all recipients of a message stands in the event of the first: it goes when there is only one. What
# binds all tenants (tenant = '') goes with the message that it came of.
FORGET = """
    UPDATE events SET address = $4,
           data = CASE WHEN type = 'message.accepted' AND coalesce(data ->> 'recipients', '1') <> '1' THEN data
                       ELSE data - $5::text[] END
     WHERE message_id = ANY ($1::bigint[]) AND (address = ANY ($2::text[]) OR lower(address) = ANY ($2::text[]))
       AND tenant IN ($3, '')
"""
FORGET_OWN = """
    UPDATE events SET address = $3, data = data - $4::text[]
     WHERE address = ANY ($1::text[]) AND message_id = 0 AND tenant = $2
"""
FORGET_CONSENTS = "DELETE FROM consents WHERE tenant = $1 AND address = $2"
# What was said by earlier addresses of the person; not where somebody else has the address now.
FORGET_EARLIER = """
    DELETE FROM consents AS said
     WHERE said.tenant = $1 AND said.contact_id = $2
       AND NOT EXISTS (SELECT FROM contacts AS other WHERE other.tenant = $1 AND other.address = said.address)
 RETURNING address
"""
FORGET_WORDS = """
    UPDATE suppressions SET detail = '', message_id = NULL WHERE address = $2 AND tenant = $1 RETURNING id
"""
FORGET_BOUNCES = "DELETE FROM soft_bounces WHERE address = $2 AND tenant = $1"
REMEMBER = """
    INSERT INTO erasures (tenant, hash, erased_at) VALUES ($1, $2, $3)
    ON CONFLICT (tenant, hash) DO UPDATE SET erased_at = EXCLUDED.erased_at
"""


def is_erased(address: str) -> bool:
    """Is this what stands in events for the address of somebody who was erased?"""
    return address.endswith(f"@{DOMAIN}")


class Erased(Struct, frozen=True, kw_only=True):
    """What was done: `events` were made anonymous, `suppressions` of the address stay."""

    contact_id: int
    erased_at: datetime
    events: int
    suppressions: int


class ErasureStore:
    """Erases, and knows what was erased. `secret` is the installation's."""

    def __init__(self, pool: Pool, secret: bytes, clock: Callable[[], datetime]) -> None:
        self._pool = pool
        self._secret = secret
        self._clock = clock

    async def erased(self, tenant: str, addresses: Sequence[str]) -> dict[str, datetime]:
        """Those of these normalised addresses that must not come back by import, and since when.

        Who writes contacts asks after the rows are in, by `store.erased` in the same transaction.
        """
        return await erased(self._pool, self._secret, tenant, addresses)

    async def erase(self, tenant: str, contact_id: int) -> Erased:
        """Forget a contact; raises `Refused` when there is none. Cut off before the end, it is called again.

        The events come first, by steps: as long as the contact is there it is known what is left to do. Once more
        afterwards, for those that came meanwhile.
        """
        row = await self._pool.fetchrow(ADDRESS, tenant, contact_id)
        if row is None:
            raise unknown("contact")
        events = await self._forget_events(tenant, contact_id, spellings(row["email"], row["address"]))
        now = self._clock()
        async with self._pool.acquire() as connection, connection.transaction():
            gone = await delete_contact(connection, tenant, contact_id)
            if gone is None:
                raise unknown("contact")
            await connection.execute(FORGET_CONSENTS, tenant, gone.address)
            for earlier in {row["address"] for row in await connection.fetch(FORGET_EARLIER, tenant, contact_id)}:
                await connection.execute(REMEMBER, tenant, erasure_hash(self._secret, tenant, earlier), now)
            await connection.execute(FORGET_BOUNCES, tenant, gone.address)
            kept = await connection.fetch(FORGET_WORDS, tenant, gone.address)
            await connection.execute(REMEMBER, tenant, erasure_hash(self._secret, tenant, gone.address), now)
        events += await self._forget_events(tenant, contact_id, spellings(gone.email, gone.address))
        return Erased(contact_id=contact_id, erased_at=now, events=events, suppressions=len(kept))

    async def _forget_events(self, tenant: str, contact_id: int, known: Sequence[str]) -> int:
        name, spoken = f"{format_id(CONTACT, contact_id)}@{DOMAIN}", list(SPOKEN)
        changed, last = 0, 0
        while rows := await self._pool.fetch(MESSAGES, known, last, tenant, STEP, contact_id):
            ids = [row["message_id"] for row in rows]
            changed += _count(await self._pool.execute(FORGET, ids, known, tenant, name, spoken))
            last = ids[-1]
        return changed + _count(await self._pool.execute(FORGET_OWN, known, tenant, name, spoken))


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
