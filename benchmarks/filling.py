"""Very many rows for a benchmark: written without indexes and without WAL, and it is said how far that is."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console

from mailerd.db import Connection

console = Console(stderr=True)

CONSTRAINTS = """
    SELECT own.conrelid::regclass::text AS of, own.conname AS name, pg_get_constraintdef(own.oid) AS made_by
      FROM pg_constraint AS own
     WHERE own.conrelid = ANY ($1::text[]::regclass[]) AND own.contype IN ('p', 'u')
       AND NOT EXISTS (SELECT FROM pg_constraint AS other WHERE other.conindid = own.conindid AND other.contype = 'f')
     ORDER BY 1, 2
"""
# Of a partitioned table the definition says ONLY: made so, its partitions would have none.
INDEXES = """
    SELECT i.indexrelid::regclass::text AS name, replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ') AS made_by
      FROM pg_index AS i
     WHERE i.indrelid = ANY ($1::text[]::regclass[])
       AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.indexrelid)
     ORDER BY 1
"""


class Steps:
    """Says on stderr what takes how long; a run of an hour without a word is nobody's."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def say(self, what: str) -> None:
        console.print(f"[dim]{time.monotonic() - self._begun:7.0f} s  {what}[/dim]")


@asynccontextmanager
async def bare(connection: Connection, *tables: str, steps: Steps) -> AsyncIterator[None]:
    """Empties these tables and takes their indexes away; what is written meanwhile gets them at the end.

    All in one transaction: in a table that is made or emptied in it nothing needs WAL (`wal_level` minimal). What a
    foreign key refers to stays.
    """
    names = list(tables)
    async with connection.transaction():
        await connection.execute(f"TRUNCATE {', '.join(names)} CASCADE")
        constraints = await connection.fetch(CONSTRAINTS, names)
        for each in constraints:
            await connection.execute(f"ALTER TABLE {each['of']} DROP CONSTRAINT {each['name']}")
        indexes = await connection.fetch(INDEXES, names)
        for each in indexes:
            await connection.execute(f"DROP INDEX {each['name']}")
        yield
        await connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
        for each in constraints:
            steps.say(f"{each['name']} of {each['of']}")
            statement = f"ALTER TABLE {each['of']} ADD CONSTRAINT {each['name']} {each['made_by']}"
            await connection.execute(statement, timeout=None)
        for each in indexes:
            steps.say(str(each["name"]))
            await connection.execute(each["made_by"], timeout=None)
        steps.say("commit")
