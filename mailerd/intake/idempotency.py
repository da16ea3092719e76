"""Doing a thing once, however often it is asked for (IETF draft-ietf-httpapi-idempotency-key-header).

A client names its request by a key. The answer is stored under that key in the transaction of the effect, so there is
never an effect without its stored answer, nor an answer without the effect.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import asyncpg

from mailerd.db import Pool
from mailerd.errors import Unavailable
from mailerd.queue.commit import LOST


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The name of a request: the credential that owns it, where it went, the client's key, a digest of what it said."""

    owner: str
    path: str
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered now."""

    status: int
    response: bytes
    headers: tuple[tuple[str, str], ...] = ()  # not told again


@dataclass(frozen=True, slots=True)
class Replayed:
    """This was done before; the answer given then."""

    status: int
    response: bytes


class Conflict(Enum):
    """Why a key cannot be used now."""

    OTHER_REQUEST = "other request"  # the key stands for a request with another fingerprint
    IN_PROGRESS = "in progress"  # the same request is being worked on at this moment


TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
FIND = "SELECT fingerprint, status, response FROM idempotency_keys WHERE owner = $1 AND path = $2 AND key = $3"
REMEMBER = """
    INSERT INTO idempotency_keys (owner, path, key, fingerprint, status, response) VALUES ($1, $2, $3, $4, $5, $6)
"""
FORGET = "DELETE FROM idempotency_keys WHERE created_at < $1"


class IdempotencyStore:
    """The table of keys."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def once(
        self,
        request: Idempotency,
        status: int,
        response: bytes,
        effect: Callable[["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"], Awaitable[None]],
    ) -> Replayed | Conflict | None:
        """Run `effect` and store the answer in one transaction, unless this was done before. None: it was done now.

        What `effect` raises undoes both. When the database goes away meanwhile nobody knows whether it was done: that
        error comes out as it is, and the same request may be sent again, which tells.
        """

        async def work(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]") -> Answer:
            await effect(connection)
            return Answer(status, response)

        done = await self.answer(request, work)
        return None if isinstance(done, Answer) else done

    async def answer(
        self,
        request: Idempotency,
        work: Callable[["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"], Awaitable[Answer]],
    ) -> Answer | Replayed | Conflict:
        """As `once`, with an answer that only the work knows, such as the id of what it made."""
        name = "\x1f".join(_names(request))
        async with self._pool.acquire() as connection, connection.transaction():
            if not await connection.fetchval(TRY_LOCK, name):
                return Conflict.IN_PROGRESS
            if (earlier := _earlier(request, await connection.fetchrow(FIND, *_names(request)))) is not None:
                return earlier
            answer = await work(connection)
            await connection.execute(REMEMBER, *_names(request), request.fingerprint, answer.status, answer.response)
        return answer

    async def transact(
        self, work: Callable[["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"], Awaitable[Answer]]
    ) -> Answer:
        """The same for a request without a key: in a transaction, and every time."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await work(connection)

    async def find(self, request: Idempotency) -> Replayed | Conflict | None:
        """The answer given to an earlier request of this name, if there was one."""
        try:
            return _earlier(request, await self._pool.fetchrow(FIND, *_names(request)))
        except LOST as error:
            raise Unavailable("the database is away; the same request may be sent again") from error

    async def forget(self, before: datetime) -> None:
        """Drop the answers given before that time."""
        await self._pool.execute(FORGET, before)


def _names(request: Idempotency) -> tuple[str, str, str]:
    return request.owner, request.path, request.key


def _earlier(request: Idempotency, row: asyncpg.Record | None) -> Replayed | Conflict | None:
    if row is None:
        return None
    if row["fingerprint"] != request.fingerprint:
        return Conflict.OTHER_REQUEST
    return Replayed(row["status"], row["response"])
