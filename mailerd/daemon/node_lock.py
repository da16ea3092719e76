"""The name of this node is ours alone: a lock in the database, held by one connection for the daemon's life.

A data directory that was copied carries the name with it. Two daemons of one name would each free the mail that the
other is sending, and count limits as if they were one.
"""

import asyncio
import os
import uuid
from contextlib import suppress

import asyncpg
import structlog

from mailerd import db
from mailerd.daemon.data_dir import StartError
from mailerd.errors import DatabaseError

log = structlog.get_logger()

PATIENCE = 10.0  # seconds for the connection of a daemon that was killed
AGAIN_AFTER = 0.5  # seconds
LOOK_EVERY = 5.0  # seconds: that the connection still stands
ANSWER = 10.0  # seconds
LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DatabaseError)

# The server notices after 30 s that a host is gone. Not before: by then its workers send nothing
# (`queue.workers.FENCE`), also when only its network is.
NOTICE = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
NAME = "SELECT set_config('application_name', $1, false)"
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
TAKE = "SELECT pg_try_advisory_lock(hashtextextended('mailerd node ' || $1, 0))"
LOOK = "SELECT 1"


class NodeLockStore:
    """The lock of a node's name, for as long as the connection stands."""

    def __init__(self, connection: db.Connection) -> None:
        self._connection = connection

    async def take(self, node: str, holder: str) -> bool:
        """Whether it is ours now. To be asked once: it would be held twice.

        `holder` is a name of this process. What it holds by connections that it has lost is ended.
        """
        await self._connection.execute(NOTICE, timeout=ANSWER)
        await self._connection.execute(END, holder, timeout=ANSWER)
        await self._connection.execute(NAME, holder, timeout=ANSWER)
        taken: bool = await self._connection.fetchval(TAKE, node, timeout=ANSWER)
        return taken

    async def look(self) -> None:
        """Return when the connection stands; else raise one of `LOST`."""
        await self._connection.execute(LOOK, timeout=ANSWER)


class NodeLock:
    """`take`, then `keep` in a task of its own, at the end `release`."""

    def __init__(self, url: str, node: str, *, patience: float = PATIENCE) -> None:
        self._url = url
        self._node = node
        self._holder = f"mailerd node {uuid.uuid4()}"
        self._patience = patience
        self._connection: db.Connection | None = None
        self._lost = asyncio.Event()

    async def take(self) -> None:
        """Hold the name, or raise `StartError` when another daemon holds it, `DatabaseError` when none can be asked."""
        deadline = asyncio.get_running_loop().time() + self._patience
        while not await self._try():
            if asyncio.get_running_loop().time() >= deadline:
                raise StartError(
                    f"another mailerd runs as node {self._node} on this database. If this data_dir is a copy, remove"
                    " the file `node` in it, and a new name is made; if a machine was lost, its name is free after"
                    " half a minute",
                    os.EX_TEMPFAIL,
                )
            log.info("node.awaited", node=self._node)
            await asyncio.sleep(AGAIN_AFTER)

    async def keep(self) -> None:
        """Hold it until cancelled, over restarts of the database; `StartError` when another has taken it meanwhile."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._lost.wait()
            try:
                if self._connection is None or self._lost.is_set():
                    await self.take()
                else:
                    await NodeLockStore(self._connection).look()
            except LOST as error:
                log.warning("node.lock_lost", error=str(error) or type(error).__name__)
                self.release()
                await asyncio.sleep(AGAIN_AFTER)

    def release(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
        self._lost.set()

    async def _try(self) -> bool:
        self.release()
        lost = asyncio.Event()
        connection = await db.connect(self._url)
        try:
            connection.add_termination_listener(lambda _: lost.set())
            taken = await NodeLockStore(connection).take(self._node, self._holder)
        except BaseException:
            connection.terminate()
            raise
        if taken:
            self._connection, self._lost = connection, lost
        else:
            connection.terminate()
        return taken
