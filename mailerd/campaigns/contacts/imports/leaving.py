"""Mode unsubscribe: the people of a block want no more mail, or none for one list, whether they are contacts or not."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from mailerd.campaigns.contacts.imports.store import Import
from mailerd.campaigns.contacts.lists import move_counts
from mailerd.campaigns.contacts.subscriptions import STREAM
from mailerd.db import Connection
from mailerd.queue.suppression import Reason, Suppression, SuppressionStore

REASON = "import"
LOCK_CONTACTS = """
    SELECT id, address FROM contacts WHERE tenant = $1 AND address = ANY ($2::text[]) ORDER BY id FOR NO KEY UPDATE
"""
LEAVE = """
    UPDATE contacts SET unsubscribed_at = $2, unsubscribe_reason = $3, updated_at = $4
     WHERE id = ANY ($1::bigint[]) AND unsubscribed_at IS NULL
"""
LOCK_ROWS = """
    SELECT list_id, contact_id, status FROM list_contacts
     WHERE contact_id = ANY ($1::bigint[]) AND ($2::bigint IS NULL OR list_id = $2) AND status <> 'unsubscribed'
     ORDER BY list_id, contact_id FOR UPDATE
"""
LEAVE_LISTS = """
    UPDATE list_contacts AS row SET status = 'unsubscribed', source = $3, changed_at = $4
      FROM unnest($1::bigint[], $2::bigint[]) AS given (list_id, contact_id)
     WHERE row.list_id = given.list_id AND row.contact_id = given.contact_id
"""
NOTE = """
    INSERT INTO subscription_history (contact_id, list_id, was, became, source, at)
    SELECT contact_id, list_id, was, 'unsubscribed', $4, $5
      FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS given (list_id, contact_id, was)
"""
# Of whom it is not on record already that he left this list.
STILL_HERE = """
    SELECT given.address FROM unnest($2::text[]) AS given (address)
     WHERE NOT coalesce((SELECT said.action = 'withdrawn' FROM consents AS said
                          WHERE said.tenant = $1 AND said.address = given.address AND said.list_id = $3
                          ORDER BY said.at DESC, said.id DESC LIMIT 1), false)
"""
SUPPRESSED = """
    SELECT count(*) FROM unnest($2::text[]) AS given (address)
     WHERE EXISTS (SELECT FROM suppressions AS s
                    WHERE s.address = given.address AND s.tenant = $1 AND s.stream = $3 AND s.topic = ''
                      AND s.reason = 'unsubscribe')
"""


class LeavingStore:
    """Over the connection, and in the transaction, of whoever writes a block."""

    def __init__(self, connection: Connection, suppressions: SuppressionStore) -> None:
        self._connection = connection
        self._suppressions = suppressions

    async def unsubscribe(self, work: Import, addresses: Sequence[str], now: datetime) -> int:
        """How many of these (sorted) that is new for. Of a dry run nothing is written."""
        connection = self._connection
        if work.list_id is not None:
            rows = await connection.fetch(STILL_HERE, work.tenant, addresses, work.list_id)
            new = [row["address"] for row in rows]
        elif work.dry_run:
            return len(addresses) - int(await connection.fetchval(SUPPRESSED, work.tenant, addresses, STREAM))
        else:
            # First, as everybody does it: a contact who leaves at this moment is locked before he is suppressed.
            await connection.fetch(LOCK_CONTACTS, work.tenant, addresses)
            entries = [self._entry(work, address, now) for address in addresses]
            # One import is not a million events, as with files of suppressions.
            added = await self._suppressions.add(entries, connection, quiet=True)
            new = [each.address for each in added]
        if not work.dry_run:
            await self._mark(work, addresses, new, now)
        return len(new)

    def _entry(self, work: Import, address: str, now: datetime) -> Suppression:
        source = f"import:{work.name}"
        return Suppression(
            address, tenant=work.tenant, stream=STREAM, reason=Reason.UNSUBSCRIBE, source=source, created_at=now
        )

    async def _mark(self, work: Import, addresses: Sequence[str], new: Sequence[str], now: datetime) -> None:
        connection, source = self._connection, f"import:{work.name}"
        rows = await connection.fetch(LOCK_CONTACTS, work.tenant, addresses)
        ids = {row["address"]: row["id"] for row in rows}
        if work.list_id is None:
            await connection.execute(LEAVE, list(ids.values()), now, REASON, work.created_at)
        moves = await self._leave_lists(list(ids.values()), work.list_id, source, now)
        await self._record(work, {address: ids.get(address) for address in new}, source, now)
        await move_counts(connection, moves)

    async def _leave_lists(self, ids: list[int], list_id: int | None, source: str, now: datetime) -> dict[int, int]:
        """What that adds to the counts of lists."""
        rows = await self._connection.fetch(LOCK_ROWS, ids, list_id)
        lists, contacts = [row["list_id"] for row in rows], [row["contact_id"] for row in rows]
        await self._connection.execute(LEAVE_LISTS, lists, contacts, source, now)
        await self._connection.execute(NOTE, lists, contacts, [row["status"] for row in rows], source, now)
        moves: dict[int, int] = {}
        for row in rows:
            moves[row["list_id"]] = moves.get(row["list_id"], 0) - (row["status"] == "subscribed")
        return moves

    async def _record(self, work: Import, ids: Mapping[str, int | None], source: str, now: datetime) -> None:
        await self._connection.copy_records_to_table(
            "consents",
            columns=("tenant", "address", "contact_id", "list_id", "action", "method", "actor", "at"),
            records=[
                (work.tenant, address, id_, work.list_id, "withdrawn", REASON, source, now)
                for address, id_ in ids.items()
            ],
        )
