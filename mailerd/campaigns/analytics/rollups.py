"""The roll-ups of campaigns: written with what they count, in one transaction.

Lock order: whoever adds does so as the last thing of his transaction. Within it rows are locked table by table
(campaign_totals, campaign_quarter_hours, campaign_minutes, campaign_domains, tenant_quarter_hours), each in the order
of its key; so those who add at the same time wait for one another and never in a circle. A minute has its quarter of an
hour, always: who holds that, holds its minutes. Those of tenants outlive both, and the campaigns.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from mailerd.campaigns.analytics.counts import COUNTS, Delta
from mailerd.db import Connection

K = TypeVar("K", bound=Hashable)
Sums = dict[K, dict[str, int]]


def _upsert(table: str, keys: Mapping[str, str], first: str = "") -> str:
    """SQL that adds to the rows of these key columns (with types); `$1…` are arrays: the keys, then `COUNTS`.

    `first` is a column beside the key that comes behind it, and stays what it was where it is given empty.
    """
    columns = {**keys, **({first: "text"} if first else {}), **dict.fromkeys(COUNTS, "bigint")}
    arrays = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(columns.values(), 1))
    changes = [f"{name} = {table}.{name} + EXCLUDED.{name}" for name in COUNTS]
    if first:
        changes.append(f"{first} = CASE EXCLUDED.{first} WHEN '' THEN {table}.{first} ELSE EXCLUDED.{first} END")
    return f"""
        INSERT INTO {table} ({", ".join(columns)}) SELECT * FROM unnest({arrays})
        ON CONFLICT ({", ".join(keys)}) DO UPDATE SET {", ".join(changes)}
    """


TOTALS = _upsert("campaign_totals", {"campaign_id": "bigint"})
QUARTER_HOURS = _upsert("campaign_quarter_hours", {"campaign_id": "bigint", "quarter_hour": "timestamptz"})
MINUTES = _upsert("campaign_minutes", {"campaign_id": "bigint", "minute": "timestamptz"})
DOMAINS = _upsert("campaign_domains", {"campaign_id": "bigint", "domain": "text"}, "site")
TENANTS = _upsert("tenant_quarter_hours", {"tenant": "text", "quarter_hour": "timestamptz"})


class RollUpStore:
    """Adds to the roll-ups; holds nothing and may be shared."""

    async def add(self, connection: Connection, deltas: Iterable[Delta]) -> None:
        """Add in the caller's transaction, as the last thing of it: from here on others wait for its commit."""
        finest: Sums[tuple[int, str, datetime]] = {}
        domains: Sums[tuple[int, str]] = {}
        sites: dict[tuple[int, str], str] = {}
        for campaign_id, tenant, at, domain, counts, site in deltas:
            minute = at.astimezone(UTC).replace(second=0, microsecond=0)
            _add(finest, (campaign_id, tenant, minute), counts)
            _add(domains, (campaign_id, domain), counts)
            if site:
                sites[campaign_id, domain] = site
        if not finest:
            return
        totals: Sums[tuple[int]] = {}
        quarter_hours: Sums[tuple[int, datetime]] = {}
        minutes: Sums[tuple[int, datetime]] = {}
        tenants: Sums[tuple[str, datetime]] = {}
        for (campaign_id, tenant, minute), counts in finest.items():
            _add(totals, (campaign_id,), counts)
            quarter = quarter_hour(minute)
            _add(quarter_hours, (campaign_id, quarter), counts)
            _add(minutes, (campaign_id, minute), counts)
            _add(tenants, (tenant, quarter), counts)
        await connection.execute(TOTALS, *_columns(totals))
        await connection.execute(QUARTER_HOURS, *_columns(quarter_hours))
        await connection.execute(MINUTES, *_columns(minutes))
        keys, values = _split(domains)
        await connection.execute(DOMAINS, *keys, [sites.get(key, "") for key in sorted(domains)], *values)
        await connection.execute(TENANTS, *_columns(tenants))


def quarter_hour(at: datetime) -> datetime:
    """The quarter of an hour that it is in, by when that begins."""
    utc = at.astimezone(UTC)
    return utc.replace(minute=utc.minute - utc.minute % 15, second=0, microsecond=0)


def _add(sums: Sums[Any], key: Hashable, counts: Mapping[str, int]) -> None:
    into = sums.get(key)
    if into is None:
        sums[key] = dict(counts)
        return
    for name, number in counts.items():
        into[name] = into.get(name, 0) + number


def _columns(sums: Sums[Any]) -> list[Sequence[Any]]:
    keys, values = _split(sums)
    return [*keys, *values]


def _split(sums: Sums[Any]) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """Columns of the keys and of the counts, rows in the order of the keys."""
    rows = sorted(sums.items(), key=lambda item: item[0])
    keys: list[Sequence[Any]] = [list(column) for column in zip(*(key for key, _ in rows), strict=True)]
    return keys, [[counts.get(name, 0) for _, counts in rows] for name in COUNTS]
