"""What follows a contact to another address, and what it finds there.

What a person withdrew holds for both addresses; what he agreed to goes with him. Lists that were left by the new
address stay left: no change of address puts anybody on a list again. Suppressions are of addresses, and stay as they
are; but the topics and streams that the person left are left by the new address, too.
"""

from datetime import datetime

from mailerd.campaigns.contacts.consent import left_sql
from mailerd.db import Connection
from mailerd.queue.suppression import Reason, Suppression, SuppressionStore

SOURCE = "address"  # of what a change of address leads to

# Of the lists on record of the new address, as it was before anything followed.
LEFT = f"""
    SELECT known.list_id FROM (SELECT DISTINCT tenant, address, list_id FROM consents
                                WHERE tenant = $1 AND address = $2 AND list_id IS NOT NULL) AS known
     WHERE {left_sql("known", "known.list_id")} ORDER BY known.list_id
"""
# A yes of the old address is none of whoever left by the new one.
TAKE_ALONG = """
    UPDATE consents SET address = $4
     WHERE tenant = $1 AND address = $2 AND contact_id = $3 AND action = 'granted'
       AND (list_id IS NULL OR list_id <> ALL ($5::bigint[]))
"""
COPY = """
    INSERT INTO consents (tenant, address, contact_id, list_id, action, method, text_version, ip, actor, at)
    SELECT old.tenant, $4, $3, old.list_id, old.action, old.method, old.text_version, old.ip, old.actor, old.at
      FROM consents AS old
     WHERE old.tenant = $1 AND old.address = $2 AND old.action = 'withdrawn'
       AND NOT EXISTS (SELECT FROM consents AS there
                        WHERE there.tenant = $1 AND there.address = $4 AND there.action = 'withdrawn'
                          AND there.list_id IS NOT DISTINCT FROM old.list_id AND there.at = old.at)
     ORDER BY old.id
"""
LOCK_ROWS = """
    SELECT list_id, status FROM list_contacts
     WHERE contact_id = $1 AND list_id = ANY ($2::bigint[]) AND status <> 'unsubscribed' ORDER BY list_id FOR UPDATE
"""
LEAVE = """
    UPDATE list_contacts SET status = 'unsubscribed', source = $3, changed_at = $4
     WHERE contact_id = $1 AND list_id = ANY ($2::bigint[])
"""
NOTE = """
    INSERT INTO subscription_history (contact_id, list_id, was, became, source, at)
    SELECT $1, list_id, was, 'unsubscribed', $4, $5 FROM unnest($2::bigint[], $3::text[]) AS rows (list_id, was)
"""


# What the person left, for the new address. Mail may be on its way to either: addresses change, and change back.
LEFT_BY_OLD = """
    SELECT tenant, stream, topic, reason, expires_at FROM suppressions
     WHERE tenant = $1 AND address = $2 AND reason IN ('unsubscribe', 'complaint')
       AND (expires_at IS NULL OR expires_at > $3)
"""


class MovingStore:
    """In the transaction of whoever changes the address, and has the contact locked."""

    def __init__(self, suppressions: SuppressionStore) -> None:
        self._suppressions = suppressions

    async def follow(
        self, connection: Connection, tenant: str, contact_id: int, old: str, new: str, now: datetime
    ) -> dict[int, int]:
        """Returns what that adds to the counts of lists: `lists.move_counts`, last in the transaction."""
        said = await connection.fetch(LEFT_BY_OLD, tenant, old, now)
        scopes = (dict(row) | {"reason": Reason(row["reason"])} for row in said)
        entries = [Suppression(new, **scope, source=SOURCE, created_at=now) for scope in scopes]
        await self._suppressions.add(entries, connection)
        left = [row["list_id"] for row in await connection.fetch(LEFT, tenant, new)]
        await connection.execute(TAKE_ALONG, tenant, old, contact_id, new, left)
        await connection.execute(COPY, tenant, old, contact_id, new)
        rows = await connection.fetch(LOCK_ROWS, contact_id, left)
        lists = [row["list_id"] for row in rows]
        await connection.execute(LEAVE, contact_id, lists, SOURCE, now)
        await connection.execute(NOTE, contact_id, lists, [row["status"] for row in rows], SOURCE, now)
        return {row["list_id"]: -(row["status"] == "subscribed") for row in rows}
