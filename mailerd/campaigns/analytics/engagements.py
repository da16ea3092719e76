"""Opens and clicks of contacts, one row each, and the clicks of each link."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from mailerd.db import Connection

OPENED, CLICKED = 1, 2  # engagements.kind
KINDS = {"opened": OPENED, "clicked": CLICKED}
MAX_URL = 2_048
INSERT = """
    INSERT INTO engagements (at, contact_id, campaign_id, message_id, kind, machine, link)
    SELECT * FROM unnest($1::timestamptz[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[], $6::boolean[],
                         $7::int[])
"""
# Which of these have been clicked by these contacts before.
CLICKED_BEFORE = f"""
    SELECT asked.contact_id, asked.campaign_id, asked.link
      FROM unnest($1::bigint[], $2::bigint[], $3::int[]) AS asked (contact_id, campaign_id, link)
     WHERE EXISTS (SELECT FROM engagements AS own
                    WHERE own.contact_id = asked.contact_id AND own.kind = {CLICKED} AND NOT own.machine
                      AND own.campaign_id = asked.campaign_id AND own.link = asked.link)
"""
# The URL is that of the first click: it may differ from contact to contact.
ADD_LINKS = """
    INSERT INTO campaign_links AS own (campaign_id, link, url, clicks, clicked, machine_clicks)
    SELECT * FROM unnest($1::bigint[], $2::int[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    ON CONFLICT (campaign_id, link) DO UPDATE
       SET clicks = own.clicks + EXCLUDED.clicks, clicked = own.clicked + EXCLUDED.clicked,
           machine_clicks = own.machine_clicks + EXCLUDED.machine_clicks
"""


class Engagement(NamedTuple):
    """`url` is that of a click; `link` the place in the template, 0 of opens."""

    at: datetime
    contact_id: int
    campaign_id: int
    message_id: int
    kind: int
    machine: bool
    link: int = 0
    url: str = ""


class EngagementStore:
    """Keeps what contacts did."""

    async def record(self, connection: Connection, engagements: Sequence[Engagement]) -> None:
        """Store them in the caller's transaction, and count the clicks of each link."""
        if not engagements:
            return
        clicks = [each for each in engagements if each.kind == CLICKED]
        if clicks:
            await self._count(connection, clicks)
        columns = list(zip(*engagements, strict=True))[:7]
        await connection.execute(INSERT, *columns)

    async def _count(self, connection: Connection, clicks: Sequence[Engagement]) -> None:
        by_people = {(each.contact_id, each.campaign_id, each.link) for each in clicks if not each.machine}
        before: set[tuple[int, int, int]] = set()
        if by_people:
            columns = list(zip(*by_people, strict=True))
            before = {(row[0], row[1], row[2]) for row in await connection.fetch(CLICKED_BEFORE, *columns)}
        links: dict[tuple[int, int], list[int]] = {}
        urls: dict[tuple[int, int], str] = {}
        for each in clicks:
            key = (each.campaign_id, each.link)
            counts = links.setdefault(key, [0, 0, 0])
            counts[2 if each.machine else 0] += 1
            urls.setdefault(key, each.url[:MAX_URL])
        for _, campaign_id, link in by_people - before:
            links[campaign_id, link][1] += 1
        ordered = sorted(links)
        await connection.execute(
            ADD_LINKS,
            [key[0] for key in ordered],
            [key[1] for key in ordered],
            [urls[key] for key in ordered],
            *([links[key][n] for key in ordered] for n in range(3)),
        )
