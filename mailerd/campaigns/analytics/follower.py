"""Follows the events of campaigns: ledger, roll-ups and engagements change in the transaction that moves it on.

    CampaignFollower(following).start()
    …
    await following.stop()

Of all nodes one follows. After a crash it goes on behind the last event that it has counted; each counts once.
"""

import asyncio
from collections.abc import Iterator, Sequence

from mailerd.campaigns.analytics.counts import Delta
from mailerd.campaigns.analytics.engagements import KINDS, Engagement, EngagementStore
from mailerd.campaigns.analytics.progress import PREFIX, TYPES, by_people, progress
from mailerd.campaigns.analytics.rollups import RollUpStore
from mailerd.campaigns.analytics.rows import Key, LedgerRowStore, Row
from mailerd.db import Connection
from mailerd.events import Event, Recorded
from mailerd.feedback.following import Following
from mailerd.queue.ids import CAMPAIGN, parse_id
from mailerd.queue.suppression import normalised

NAME = "campaigns"
LIMIT = 2_000  # events that are looked at for one transaction


class CampaignFollower:
    """Counts what becomes of campaigns."""

    def __init__(self, following: Following, *, limit: int = LIMIT) -> None:
        self._following = following
        self._limit = limit
        self._rows = LedgerRowStore()
        self._engagements = EngagementStore()
        self._roll_ups = RollUpStore()

    def start(self) -> None:
        """From the first event on, wherever it was left."""
        work = self._following.run_within(
            NAME, self.read, start="beginning", types=TYPES, campaigns=CAMPAIGN, limit=self._limit
        )
        self._task = asyncio.create_task(work, name=f"follower {NAME}")

    async def read(self, events: Sequence[Recorded], connection: Connection) -> None:
        """Count these, in the caller's transaction. Mail that is in no ledger is not counted, whatever it says."""
        ours = [(key, recorded.event) for recorded in events if (key := _key(recorded.event)) is not None]
        if not ours:
            return
        rows = await self._rows.read(connection, {key for key, _ in ours})
        known = [(row, event) for key, event in ours if (row := rows.get(key)) is not None]
        engagements = [_engagement(row, event) for row, event in known if event.type[len(PREFIX) :] in KINDS]
        deltas = list(_deltas(known))
        await self._rows.write(connection, rows.values())
        await self._engagements.record(connection, engagements)
        await self._roll_ups.add(connection, deltas)


def _key(event: Event) -> Key | None:
    try:
        return parse_id(CAMPAIGN, event.campaign), event.message_id
    except ValueError:  # whoever submits mail names its campaigns as he likes
        return None


def _deltas(known: Sequence[tuple[Row, Event]]) -> Iterator[Delta]:
    """What the events change in the counts; the rows are moved on."""
    for row, event in known:
        new = progress(row.status, row.marks, event.type, event.data)
        if new.status != row.status or new.marks != row.marks:
            row.changed = True
            row.status, row.marks = new.status, new.marks
        if new.reason is not None:
            row.reason, row.changed_at = new.reason, event.at
        if new.counts:
            domain = normalised(event.address).rpartition("@")[2]
            site = str((event.data or {}).get("site") or "")
            yield Delta(row.campaign_id, event.tenant, event.at, domain, new.counts, site)


def _engagement(row: Row, event: Event) -> Engagement:
    data = event.data or {}
    kind = KINDS[event.type[len(PREFIX) :]]
    machine = not by_people(data)
    link, url = data.get("link"), data.get("url")
    return Engagement(
        event.at,
        row.contact_id,
        row.campaign_id,
        event.message_id,
        kind,
        machine,
        link if isinstance(link, int) else 0,
        str(url or ""),
    )
