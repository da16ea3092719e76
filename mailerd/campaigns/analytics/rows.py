"""Rows of the ledger, as the follower of events reads and writes them: many at once."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from mailerd.db import Connection

Key = tuple[int, int]  # campaign and message

# Both columns are in the index of messages, and the join leaves one partition for each of them.
# Arrays come through a SELECT: a planner that sees their length makes each time a plan of its own, which takes longer
# than to carry it out.
READ = """
    SELECT own.campaign_id, own.message_id, own.contact_id, own.status, own.marks
      FROM unnest((SELECT $1::bigint[]), (SELECT $2::bigint[])) AS asked (campaign_id, message_id)
      JOIN campaign_contacts AS own ON own.campaign_id = asked.campaign_id AND own.message_id = asked.message_id
"""
WRITE = """
    UPDATE campaign_contacts AS own
       SET status = new.status, marks = new.marks, reason = coalesce(new.reason, own.reason),
           changed_at = coalesce(new.changed_at, own.changed_at)
      FROM unnest(
           (SELECT $1::bigint[]), (SELECT $2::bigint[]), (SELECT $3::smallint[]), (SELECT $4::smallint[]),
           (SELECT $5::text[]), (SELECT $6::timestamptz[]))
           AS new (campaign_id, contact_id, status, marks, reason, changed_at)
     WHERE own.campaign_id = new.campaign_id AND own.contact_id = new.contact_id
"""


@dataclass(slots=True)
class Row:
    """Of the ledger. `reason` and `changed_at` are new ones, None: as they were; both change with the status."""

    campaign_id: int
    contact_id: int
    status: int
    marks: int
    reason: str | None = None
    changed_at: datetime | None = None
    changed: bool = False


class LedgerRowStore:
    """Reads rows that were handed over, and writes what has become of them."""

    async def read(self, connection: Connection, keys: Collection[Key]) -> dict[Key, Row]:
        """The rows by campaign and message; messages that are in no ledger are missing."""
        ordered: Sequence[Key] = sorted(keys)
        rows = await connection.fetch(READ, [key[0] for key in ordered], [key[1] for key in ordered])
        return {(row[0], row[1]): Row(row[0], row[2], row[3], row[4]) for row in rows}

    async def write(self, connection: Connection, rows: Iterable[Row]) -> None:
        """Store those that changed."""
        changed = sorted((row for row in rows if row.changed), key=lambda row: (row.campaign_id, row.contact_id))
        if changed:
            await connection.execute(
                WRITE,
                [row.campaign_id for row in changed],
                [row.contact_id for row in changed],
                [row.status for row in changed],
                [row.marks for row in changed],
                [row.reason for row in changed],
                [row.changed_at for row in changed],
            )
