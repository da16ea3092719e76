"""Two PostgreSQL servers: every commit of the first is on the second before its client hears of it."""

import asyncio
import subprocess
from pathlib import Path

from mailerd import db
from mailerd.db.embedded import USER, EmbeddedPostgres, _programs
from tests.support.postgres import SMALL

REPLICATING = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}
SYNCHRONOUS = "ALTER SYSTEM SET synchronous_standby_names = '*'"
IN_STEP = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"


class Replicated:
    """`start()`, then `first.url` takes writes; `fail_over()` loses the first and makes the second one take them."""

    def __init__(self, directory: Path, *, connections: int = 60) -> None:
        self._directories = directory / "first", directory / "second"
        self._connections = connections
        self.first = self._server(self._directories[0])
        self.second = self._server(self._directories[1])

    def _server(self, directory: Path) -> EmbeddedPostgres:
        return EmbeddedPostgres(directory, SMALL, connections=self._connections, settings=REPLICATING)

    async def start(self) -> None:
        await self.first.start()
        await asyncio.to_thread(self._copy)
        await self.second.start()
        async with db.connected(self.first.url) as connection:
            await connection.execute(SYNCHRONOUS)
            await connection.execute("SELECT pg_reload_conf()")
            async with asyncio.timeout(60):
                while not await connection.fetchval(IN_STEP):
                    await asyncio.sleep(0.05)

    def _copy(self) -> None:
        """A base backup that follows the first server."""
        self._directories[1].mkdir(mode=0o700)
        host = self._directories[0] / "run"
        command = [_programs() / "pg_basebackup", "-h", host, "-U", USER, "-D", self._directories[1] / "postgres"]
        subprocess.run([*command, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"], check=True)

    def lose_first(self) -> None:
        """kill -9 of the first server; what it has not sent is gone with it."""
        assert self.first.pid is not None
        subprocess.run(["kill", "-9", str(self.first.pid)], check=True)

    async def promote(self) -> None:
        """The second one takes writes when this returns."""
        async with db.connected(self.second.url) as connection:
            await connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            assert await connection.fetchval("SELECT pg_promote()")

    async def stop(self) -> None:
        await self.second.stop(5.0)
        await self.first.stop(5.0)
