"""Each follower runs in one process of all nodes: session locks in the database, all of a process on one connection.

They end with the connection: at once when the process dies, after half a minute when its machine is gone.
"""

import asyncio
from contextlib import suppress

import asyncpg
import structlog

from mailerd import db
from mailerd.errors import DatabaseError
from mailerd.queue.commit import LOST

log = structlog.get_logger()

LOOK_EVERY = 5.0  # seconds: that the connection still stands
ANSWER = 10.0  # seconds
TROUBLE = (*LOST, DatabaseError, asyncpg.PostgresError)

NOTICE = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
TAKE = "SELECT pg_try_advisory_lock(hashtextextended('mailerd follower ' || $1, 0))"
GIVE = "SELECT pg_advisory_unlock(hashtextextended('mailerd follower ' || $1, 0))"
LOOK = "SELECT 1"


class FollowerLockStore:
    """The locks of one connection."""

    def __init__(self, connection: db.Connection) -> None:
        self._connection = connection

    async def prepare(self) -> None:
        """Let the server notice early that our machine is gone."""
        await self._connection.execute(NOTICE, timeout=ANSWER)

    async def take(self, name: str) -> bool:
        """Whether it is ours now. Not to be asked for one that is: it would be held twice."""
        taken: bool = await self._connection.fetchval(TAKE, name, timeout=ANSWER)
        return taken

    async def give(self, name: str) -> None:
        await self._connection.execute(GIVE, name, timeout=ANSWER)

    async def look(self) -> None:
        """Return when the connection stands."""
        await self._connection.execute(LOOK, timeout=ANSWER)


class _Link:
    """A connection, the names held by it, and whether it is lost, and all of them with it."""

    def __init__(self, connection: db.Connection) -> None:
        self.connection = connection
        self.locks = FollowerLockStore(connection)
        self.held: set[str] = set()
        self.lost = asyncio.Event()
        connection.add_termination_listener(lambda _: self.lost.set())

    def drop(self) -> None:
        self.lost.set()
        self.connection.terminate()


class FollowerLocks:
    """`take` a name, follow until what it returned is set, `give` it back; at the end `close`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._link: _Link | None = None
        self._mutex = asyncio.Lock()  # the connection carries one question at a time
        self._keeping: asyncio.Task[None] | None = None

    async def take(self, name: str) -> asyncio.Event | None:
        """None: somebody else has it, here or elsewhere. Else it is ours until the event is set or `give`.

        Raises one of `TROUBLE` when the database cannot be asked.
        """
        async with self._mutex:
            link = await self._linked()
            if name in link.held:
                return None
            try:
                taken = await link.locks.take(name)
            except BaseException:
                link.drop()  # it may hold the lock, and nobody would know
                raise
            if not taken:
                return None
            link.held.add(name)
            return link.lost

    async def give(self, name: str) -> None:
        """Let somebody else have it."""
        async with self._mutex:
            link = self._link
            if link is None or link.lost.is_set() or name not in link.held:
                return
            try:
                await link.locks.give(name)
            except BaseException as error:
                link.drop()
                if not isinstance(error, TROUBLE):
                    raise
            finally:
                link.held.discard(name)

    async def close(self) -> None:
        """Give all back."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._link is not None:
            self._link.drop()
            self._link = None

    async def _linked(self) -> _Link:
        if self._link is None or self._link.lost.is_set():
            connection = await db.connect(self._url)
            try:
                self._link = _Link(connection)
                await self._link.locks.prepare()
            except BaseException:
                connection.terminate()
                raise
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep(), name="follower locks")
        return self._link

    async def _keep(self) -> None:
        """Find out when the server no longer answers, though nobody closed the connection."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            link = self._link
            if link is None or link.lost.is_set():
                continue
            try:
                async with self._mutex:
                    await link.locks.look()
            except TROUBLE as error:
                log.warning("followers.lock_lost", error=str(error) or type(error).__name__)
                with suppress(*TROUBLE):
                    link.drop()
