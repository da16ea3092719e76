"""Where reports are read: on a replica when there is one, so that they do not slow what sends.

While the replica is away, or too far behind to answer, they are read from the database itself: these reads are small,
and late reports are worse than a little more load. What must be of this moment is read there always.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import asyncpg
import structlog

from mailerd.db import Connection, Pool, connect_pool
from mailerd.errors import DatabaseError

log = structlog.get_logger()

T = TypeVar("T")
Read = Callable[[Connection], Awaitable[T]]

CONNECTIONS = 2
IDLE = 60.0  # seconds after which a connection is closed
AGAIN = 15.0  # seconds before a replica that was away is asked again
AWAY = (
    OSError,
    TimeoutError,
    DatabaseError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,
    asyncpg.SerializationError,  # "conflict with recovery": the replica gave up the read for its own sake
    asyncpg.UndefinedTableError,  # not that far yet
    asyncpg.UndefinedColumnError,
)


class Reading:
    """Connections of reports: few, and none of those that send. `replica_url` None: there is none."""

    def __init__(self, pool: Pool, replica_url: str | None = None) -> None:
        self.pool = pool
        self._url = replica_url
        self._replica: Pool | None = None
        self._ask_after = 0.0  # of the monotonic clock
        self._opening = asyncio.Lock()

    async def now(self, read: Read[T]) -> T:
        """Read what is true at this moment."""
        async with self.pool.acquire() as connection:
            return await read(connection)

    async def soon(self, read: Read[T]) -> T:
        """Read what may be as late as the replica is. `read` may be called twice, and changes nothing."""
        replica = await self._open()
        if replica is not None:
            try:
                async with replica.acquire() as connection:
                    return await read(connection)
            except AWAY as error:
                self._away(error)
        return await self.now(read)

    async def close(self) -> None:
        if self._replica is not None:
            self._replica.terminate()

    async def _open(self) -> Pool | None:
        if self._url is None or time.monotonic() < self._ask_after:
            return None
        async with self._opening:
            if self._replica is None and time.monotonic() >= self._ask_after:
                with suppress(_Away):
                    self._replica = await self._connected(self._url)
        return self._replica

    async def _connected(self, url: str) -> Pool:
        try:
            return await connect_pool(url, min=0, max=CONNECTIONS, idle=IDLE, application_name="mailerd reports")
        except AWAY as error:
            self._away(error)
            raise _Away from error

    def _away(self, error: BaseException) -> None:
        self._ask_after = time.monotonic() + AGAIN
        log.warning("replica.away", error=str(error) or type(error).__name__)


class _Away(Exception):  # noqa: N818 - not our doing
    """The replica cannot be asked."""
