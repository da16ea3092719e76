"""The database: connections to it, the embedded server (`embedded`), the schema (`migrate`).

PostgreSQL 15 or later is the only store. `database.url` names a server of yours; without it the daemon runs its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import structlog

from mailerd.errors import DatabaseError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
else:  # asyncpg's classes take no parameters at run time
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

log = structlog.get_logger()

OLDEST = 150_000  # server_version_num: PostgreSQL 15
PATIENCE = 60.0  # seconds for a server that is still starting, or not yet there
COMMAND_TIMEOUT = 60.0  # seconds of one statement: a network that swallows packets must not hang a worker
IDLE_TIMEOUT = "10s"  # within a transaction: one that stands still, with its locks, must not stop the others

# What a server that will be there soon says, or what one says that is not there yet.
NOT_YET = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


async def connect(url: str, *, patience: float = 0.0) -> Connection:
    """Open one connection with our codecs to a server that is new enough.

    Waits up to `patience` seconds for a server that is starting or not reachable yet. `DatabaseError` says what is
    wrong, with the password left out.
    """
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            connection = await asyncpg.connect(url, server_settings={"application_name": "mailerd"}, timeout=10)
            break
        except NOT_YET as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise DatabaseError(f"cannot reach the database {_public(url)}: {_reason(error)}") from error
            log.info("database.awaited", database=_public(url), reason=_reason(error))
            await asyncio.sleep(1.0)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise DatabaseError(f"cannot use the database {_public(url)}: {_reason(error)}") from error
    try:
        await _prepare(connection)
        await _check_version(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


@asynccontextmanager
async def connected(url: str, *, patience: float = 0.0) -> AsyncIterator[Connection]:
    """`connect`, and close the connection at the end."""
    connection = await connect(url, patience=patience)
    try:
        yield connection
    finally:
        await connection.close()


async def connect_pool(
    url: str,
    *,
    min: int = 1,  # noqa: A002 as asyncpg names them, shortened
    max: int = 4,  # noqa: A002
    idle: float = 0.0,
    application_name: str = "mailerd",
) -> Pool:
    """A pool whose connections read and write `json` and `jsonb` as plain Python values.

    A connection is closed after `idle` seconds without use; 0: never, a new backend starts with cold caches.

    Connections are handed on as they are, which saves a round trip at every release: borrowers leave no session state
    (no SET, no LISTEN, no session advisory lock, no open cursor). An open transaction is still rolled back.
    """
    async with connected(url):  # for its errors, and for the version
        pass
    return await asyncpg.create_pool(
        url,
        min_size=min,
        max_size=max,
        init=_prepare_pooled,
        reset=_leave,
        command_timeout=COMMAND_TIMEOUT,
        timeout=10,
        max_inactive_connection_lifetime=idle,
        server_settings={"application_name": application_name, "idle_in_transaction_session_timeout": IDLE_TIMEOUT},
    )


async def _prepare_pooled(connection: Any) -> None:
    """The codecs, and plans by key only.

    A prepared statement keeps its plan. One made while the queue is nearly empty would read whole tables, and go on
    doing so when there are a million rows; all our statements find their rows by an index, whatever the size.
    """
    await _prepare(connection)
    await connection.execute("SET enable_seqscan = off; SET enable_mergejoin = off; SET jit = off")


async def _prepare(connection: Any) -> None:
    """Install the codecs. The binary forms are the text, with a version byte before it for `jsonb`; COPY needs them."""
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="binary", encoder=_encode_jsonb, decoder=_decode_jsonb
    )
    await connection.set_type_codec(
        "json", schema="pg_catalog", format="binary", encoder=msgspec.json.encode, decoder=msgspec.json.decode
    )


async def _leave(_connection: Any) -> None:
    """Reset nothing at release; see `connect_pool`."""


def _encode_jsonb(value: object) -> bytes:
    return b"\x01" + msgspec.json.encode(value)


def _decode_jsonb(data: bytes) -> object:
    return msgspec.json.decode(memoryview(data)[1:])


async def _check_version(connection: Connection) -> None:
    number = int(await connection.fetchval("SELECT current_setting('server_version_num')"))
    if number < OLDEST:
        raise DatabaseError(
            f"the database server is PostgreSQL {number // 10_000}; mailerd needs {OLDEST // 10_000} or later"
        )


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _public(url: str) -> str:
    """The URL without user, password and options: fit for a log."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(malformed URL)"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
