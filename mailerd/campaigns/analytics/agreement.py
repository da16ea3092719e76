"""Do the roll-ups agree with the ledger? To the last unit, at every moment."""

from collections.abc import Mapping
from typing import NamedTuple

from mailerd.campaigns.analytics.counts import COUNTS
from mailerd.campaigns.ledger import Mark, Status
from mailerd.db import Pool

# Statements over all rows of a campaign; see `mailerd.db.connect_pool`.
MANY = "SET LOCAL enable_seqscan = on; SET LOCAL enable_mergejoin = on; SET LOCAL jit = off"
OF_LEDGER = {
    "queued": "message_id IS NOT NULL",
    "suppressed": f"status = {Status.SUPPRESSED:d}",
    "cancelled": f"status = {Status.CANCELLED:d}",
    "recalled": f"status IN ({Status.SUPPRESSED:d}, {Status.CANCELLED:d}) AND message_id IS NOT NULL",
    "sent": f"status IN ({Status.DELIVERED:d}, {Status.BOUNCED:d}, {Status.FAILED:d}, {Status.IN_DOUBT:d})",
    "delivered": f"status = {Status.DELIVERED:d}",
    "bounced": f"status = {Status.BOUNCED:d}",
    "hard_bounced": f"status = {Status.BOUNCED:d} AND marks & {Mark.HARD_BOUNCED:d} <> 0",
    "failed": f"status = {Status.FAILED:d}",
    "in_doubt": f"status = {Status.IN_DOUBT:d}",
    "complained": f"marks & {Mark.COMPLAINED:d} <> 0",
    "unsubscribed": f"marks & {Mark.UNSUBSCRIBED:d} <> 0",
    "opened": f"marks & {Mark.OPENED:d} <> 0",
    "clicked": f"marks & {Mark.CLICKED:d} <> 0",
    "machine_opened": f"marks & {Mark.OPENED | Mark.MACHINE_OPENED:d} = {Mark.MACHINE_OPENED:d}",
    "machine_clicked": f"marks & {Mark.CLICKED | Mark.MACHINE_CLICKED:d} = {Mark.MACHINE_CLICKED:d}",
}
LEDGER = f"""
    SELECT {", ".join(f"count(*) FILTER (WHERE {when}) AS {name}" for name, when in OF_LEDGER.items())}
      FROM campaign_contacts WHERE campaign_id = $1
"""
SUMS = f"""
    SELECT {", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in COUNTS)}
      FROM {{table}} WHERE campaign_id = $1
"""
ROLL_UPS = ("campaign_totals", "campaign_quarter_hours", "campaign_minutes", "campaign_domains")
LINKS = """
    SELECT coalesce(sum(clicks), 0)::bigint AS clicks, coalesce(sum(machine_clicks), 0)::bigint AS machine_clicks
      FROM campaign_links WHERE campaign_id = $1
"""


class Difference(NamedTuple):
    """`place` counts something else than `ledger` (the ledger, or of what it does not have the totals)."""

    place: str
    counted: str
    ledger: int
    found: int


class AgreementStore:
    """Compares."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def differences(self, campaign_id: int) -> list[Difference]:
        """Where the roll-ups of a campaign are wrong: none, also while the follower writes.

        Reads all of its ledger. Minutes that were forgotten are missed, and quarter hours.
        """
        async with self._pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            await connection.execute(MANY)
            ledger, totals, quarter_hours, minutes, domains, links = [
                dict(row)
                for statement in (LEDGER, *(SUMS.format(table=table) for table in ROLL_UPS), LINKS)
                for row in await connection.fetch(statement, campaign_id)
            ]
        return [
            *_compared("totals", ledger, totals),
            *_compared("quarter hours", totals, quarter_hours),
            *_compared("minutes", totals, minutes),
            *_compared("domains", totals, domains),
            *_compared("links", totals, links),
        ]


def _compared(place: str, right: Mapping[str, int], found: Mapping[str, int]) -> list[Difference]:
    both = [name for name in COUNTS if name in right and name in found]
    return [Difference(place, name, right[name], found[name]) for name in both if right[name] != found[name]]
