"""How large the events are, month by month, and how large they will be."""

from datetime import datetime
from typing import NamedTuple

from mailerd.db import Connection

# Rows are those of the last ANALYZE, carried on by the size of the table since; 0 where there was none.
SIZES = """
    SELECT relname AS name, pg_table_size(oid) AS data, pg_indexes_size(oid) AS indexes,
           greatest(0, CASE WHEN relpages > 0 THEN reltuples * pg_relation_size(oid) / (relpages * 8192.0)
                            ELSE reltuples END)::bigint AS estimated
      FROM pg_class JOIN pg_inherits ON oid = inhrelid WHERE inhparent = 'events'::regclass ORDER BY relname
"""
SMALL = 50_000_000  # bytes: counted, since that is quick


class PartitionSize(NamedTuple):
    """`rows` are counted where there are few, else estimated. Sizes are in bytes."""

    name: str
    rows: int
    data: int
    indexes: int
    first_at: datetime | None
    last_at: datetime | None

    @property
    def bytes(self) -> int:
        return self.data + self.indexes


async def event_sizes(connection: Connection) -> list[PartitionSize]:
    """Each partition, the oldest first, `events_rest` last."""
    sizes = []
    for row in await connection.fetch(SIZES):
        name, rows = row["name"], row["estimated"]
        if row["data"] < SMALL:
            rows = await connection.fetchval(f"SELECT count(*) FROM {name}")
        # By the order of transactions, of which there is an index; that of time differs by seconds.
        first = await connection.fetchval(f"SELECT at FROM {name} ORDER BY txid, seq LIMIT 1")
        last = await connection.fetchval(f"SELECT at FROM {name} ORDER BY txid DESC, seq DESC LIMIT 1")
        sizes.append(PartitionSize(name, rows, row["data"], row["indexes"], first, last))
    return sizes


class Growth(NamedTuple):
    """Per day, of the newest days with events; and all of it once the retention is full of such days."""

    rows_per_day: float
    bytes_per_day: float
    forecast: int


def growth(sizes: list[PartitionSize], retention: float, now: datetime) -> Growth:
    """What the partitions of the last two months say; `retention` in seconds. Whole months go, so one more is kept."""
    lately = [size for size in sizes if size.first_at is not None and size.rows and size.first_at <= now][-2:]
    if not lately:
        return Growth(0.0, 0.0, sum(size.bytes for size in sizes))
    assert lately[0].first_at is not None
    days = max((now - lately[0].first_at).total_seconds() / 86_400, 1.0)
    per_day = sum(size.bytes for size in lately) / days
    return Growth(sum(size.rows for size in lately) / days, per_day, round(per_day * (retention / 86_400 + 31)))
