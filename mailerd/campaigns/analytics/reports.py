"""Reports of campaigns and tenants: read from roll-ups by their keys, whatever there is besides."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from mailerd.campaigns.analytics.agreement import AgreementStore, Difference
from mailerd.campaigns.analytics.counts import COUNTS, Counts
from mailerd.campaigns.analytics.rates import RATES
from mailerd.campaigns.analytics.reading import Reading
from mailerd.campaigns.analytics.rollups import quarter_hour
from mailerd.db import Connection

ALL = ", ".join(COUNTS)
DOMAINS_OF_SITES = 1_000
MAX_SITES = 5_000
REST = "*"
CAMPAIGN = """
    SELECT c.id, c.tenant, c.name, c.status, c.created_at, c.started_at, c.finished_at,
           coalesce(r.total, 0) AS audience, coalesce(r.written, false) AS written
      FROM campaigns AS c LEFT JOIN campaign_runs AS r ON r.campaign_id = c.id
     WHERE c.id = $1 AND c.tenant = $2
"""
TOTALS = f"SELECT campaign_id, {ALL} FROM campaign_totals WHERE campaign_id = ANY ($1::bigint[])"
# Rows go by the bounds that they stand between; `$2` has one more than there are periods.
SERIES = """
    SELECT width_bucket({moment}, $2::timestamptz[]) AS period, {sums}
      FROM {table} WHERE {key} = $1 AND {moment} >= $3 AND {moment} < $4 GROUP BY 1
"""
LINKS = """
    SELECT link, url, clicks, clicked, machine_clicks FROM campaign_links
     WHERE campaign_id = $1 ORDER BY clicks DESC, link LIMIT $2
"""
DOMAINS = f"""
    SELECT domain, site, {ALL} FROM campaign_domains WHERE campaign_id = $1
     ORDER BY {{sort}} DESC, domain LIMIT $2 OFFSET $3
"""
# The largest domains by themselves, the others by who takes their mail, and in one row what is left when that is much.
SITES = """
    WITH each AS (
        SELECT site, {columns},
               CASE WHEN row_number() OVER (ORDER BY sent DESC, domain) <= {domains} THEN domain ELSE '' END AS domain
          FROM campaign_domains WHERE campaign_id = $1
    ), grouped AS (
        SELECT domain, site, {sums}, row_number() OVER (ORDER BY sum(sent) DESC, domain, site) <= {rows} AS large
          FROM each GROUP BY domain, site
    )
    SELECT CASE WHEN large THEN domain ELSE '' END, CASE WHEN large THEN site ELSE '{rest}' END, {sums}
      FROM grouped GROUP BY 1, 2
"""
CAMPAIGNS = f"""
    SELECT c.id, c.name, c.status, c.started_at, {", ".join(f"t.{name}" for name in COUNTS)}
      FROM campaigns AS c JOIN campaign_totals AS t ON t.campaign_id = c.id
     WHERE c.tenant = $1 AND c.started_at >= $2 AND c.started_at < $3
     ORDER BY {{sort}} DESC, c.id DESC LIMIT $4 OFFSET $5
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """A campaign that is reported on. `audience`: rows of its ledger; `written`: these are all."""

    id: int
    tenant: str
    name: str
    status: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    audience: int
    written: bool


class Link(NamedTuple):
    """`clicks` by people, `clicked` how many of them; the URL is that of the first click."""

    link: int
    url: str
    clicks: int
    clicked: int
    machine_clicks: int


class OfDomain(NamedTuple):
    """`site`: who took its mail last, "" when nobody answered."""

    domain: str
    site: str
    counts: Counts


class OfCampaign(NamedTuple):
    campaign_id: int
    name: str
    status: str
    started_at: datetime
    counts: Counts


class ReportStore:
    """Reads. Whose a campaign is, is asked once, by `campaign`; the other calls take its id."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def campaign(self, campaign_id: int, tenant: str) -> Subject | None:
        """The campaign, None when this tenant has none of that id."""
        row = await self._reading.now(lambda connection: connection.fetchrow(CAMPAIGN, campaign_id, tenant))
        return None if row is None else Subject(**row)

    async def totals(self, campaign_ids: Collection[int], *, late: bool = False) -> dict[int, dict[str, int]]:
        """All counts of each, 0 where there is nothing; `late`: they may be as late as the replica."""
        ids = list(campaign_ids)
        read = self._reading.soon if late else self._reading.now
        rows = await read(lambda connection: connection.fetch(TOTALS, ids))
        found = {row["campaign_id"]: {name: row[name] for name in COUNTS} for row in rows}
        return {id_: found.get(id_) or dict.fromkeys(COUNTS, 0) for id_ in ids}

    async def series(
        self, campaign_id: int, bounds: Sequence[datetime], names: Collection[str], *, late: bool = True
    ) -> list[dict[str, int]]:
        """These counts for each period between two bounds, whole minutes.

        Where all bounds are whole quarter hours, as those of hours and longer are in every zone, a fifteenth of the
        rows is read.
        """
        coarse = all(bound == quarter_hour(bound) for bound in bounds)
        table, moment = ("campaign_quarter_hours", "quarter_hour") if coarse else ("campaign_minutes", "minute")
        statement = _series(table, "campaign_id", moment, names)
        return await self._series(statement, campaign_id, bounds, names, late=late)

    async def tenant_series(
        self, tenant: str, bounds: Sequence[datetime], names: Collection[str]
    ) -> list[dict[str, int]]:
        """The same of all campaigns of a tenant, also those that were deleted; bounds are whole quarter hours.

        Of what was counted before there were quarter hours (migration 0013), some is kept by whole hours of UTC: such
        an hour belongs to the period in which it begins.
        """
        statement = _series("tenant_quarter_hours", "tenant", "quarter_hour", names)
        return await self._series(statement, tenant, bounds, names, late=True)

    async def _series(
        self, statement: str, key: object, bounds: Sequence[datetime], names: Collection[str], *, late: bool
    ) -> list[dict[str, int]]:
        read = self._reading.soon if late else self._reading.now
        rows = await read(lambda connection: connection.fetch(statement, key, bounds, bounds[0], bounds[-1]))
        found = {row["period"]: row for row in rows}
        empty = dict.fromkeys(names, 0)
        return [
            {name: row[name] for name in names} if (row := found.get(number)) is not None else dict(empty)
            for number in range(1, len(bounds))
        ]

    async def links(self, campaign_id: int, limit: int) -> list[Link]:
        """The most clicked first."""
        rows = await self._reading.soon(lambda connection: connection.fetch(LINKS, campaign_id, limit))
        return [Link(*row) for row in rows]

    async def domains(self, campaign_id: int, *, sort: str, limit: int, offset: int) -> list[OfDomain]:
        """Those with the largest count or rate `sort` first."""
        statement = DOMAINS.format(sort=_value(sort))
        rows = await self._reading.soon(lambda connection: connection.fetch(statement, campaign_id, limit, offset))
        return [OfDomain(row["domain"], row["site"], _counts(row)) for row in rows]

    async def sites(self, campaign_id: int, names: Sequence[str]) -> list[tuple[str, str, list[int]]]:
        """Domain, site and these counts, `sent` among them; the sums are those of the campaign.

        Only the `DOMAINS_OF_SITES` largest domains are named, the others are "" and summed by site; where there are
        more than `MAX_SITES`, the rest is of site `REST`.
        """
        sums = ", ".join(f"sum({name})::bigint AS {name}" for name in _known(names))
        statement = SITES.format(
            columns=", ".join(names), sums=sums, domains=DOMAINS_OF_SITES, rows=MAX_SITES, rest=REST
        )
        rows = await self._reading.soon(lambda connection: connection.fetch(statement, campaign_id))
        return [(row[0], row[1], list(row[2:])) for row in rows]

    async def campaigns(
        self, tenant: str, start: datetime, end: datetime, *, sort: str, limit: int, offset: int
    ) -> list[OfCampaign]:
        """Campaigns that began in that time, those with the largest count or rate `sort` first."""
        statement = CAMPAIGNS.format(sort="c.started_at" if sort == "started_at" else _value(sort, "t."))

        async def read(connection: Connection) -> list[Any]:
            return await connection.fetch(statement, tenant, start, end, limit, offset)

        rows = await self._reading.soon(read)
        return [OfCampaign(row["id"], row["name"], row["status"], row["started_at"], _counts(row)) for row in rows]

    async def differences(self, campaign_id: int) -> list[Difference]:
        """Where the roll-ups disagree with the ledger: nowhere. Reads all of it."""
        return await AgreementStore(self._reading.pool).differences(campaign_id)


def _series(table: str, key: str, moment: str, names: Collection[str]) -> str:
    sums = ", ".join(f"sum({name})::bigint AS {name}" for name in _known(names))
    return SERIES.format(table=table, key=key, moment=moment, sums=sums)


def _known(names: Collection[str]) -> Collection[str]:
    """They become SQL."""
    if unknown := set(names) - set(COUNTS):
        raise ValueError(f"no counts: {unknown}")
    return names


def _value(sort: str, alias: str = "") -> str:
    """SQL of a count or a rate."""
    if sort in COUNTS:
        return alias + sort
    part, whole = RATES[sort]
    return f"CASE WHEN {alias}{whole} > 0 THEN {alias}{part}::float8 / {alias}{whole} ELSE 0 END"


def _counts(row: asyncpg.Record) -> dict[str, int]:
    return {name: row[name] for name in COUNTS}
