"""A PostgreSQL of its own for several nodes: `python -m benchmarks.database DIRECTORY` says its URL, and serves until
standard input ends. The programs and the settings are those of the embedded one."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

from benchmarks.cgroup import accounting
from mailerd.db.embedded import EmbeddedPostgres

CONNECTIONS = 100
WAL = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"  # bytes written since the beginning
# Bytes of a partitioned table: its partitions and their indexes are tables of their own.
SIZE_OF = """
    SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits
     WHERE inhparent = '{table}'::regclass
"""
KEPT = SIZE_OF.format(table="events")  # what a message leaves behind when it has gone


class SharedPostgres:
    """The driver's end: `url`, and `group`, which counts what it uses."""

    def __init__(self, directory: Path, name: str) -> None:
        self.group = accounting(name)
        words = [sys.executable, "-m", "benchmarks.database", str(directory)]
        self._process = subprocess.Popen(self.group.command(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.group.adopt(self._process.pid)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url:
            raise RuntimeError("PostgreSQL did not start")

    def stop(self) -> None:
        self._process.communicate(timeout=60)
        self.group.close()


async def serve(directory: Path) -> None:
    server = EmbeddedPostgres(directory, connections=CONNECTIONS)
    await server.start()
    print(server.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    import structlog

    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # standard output is the driver's
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    asyncio.run(serve(Path(sys.argv[1])))
