"""A key and the effect that it names: both or neither, once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from mailerd.db import Pool, connect_pool
from mailerd.intake.idempotency import Conflict, Idempotency, IdempotencyStore, Replayed

REQUEST = Idempotency("shop", "POST /emails", "order 1001", b"digest")
COUNT = "SELECT count(*) FROM audit"
Connection = asyncpg.pool.PoolConnectionProxy


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=6)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> IdempotencyStore:
    return IdempotencyStore(pool)


async def effect(connection: "Connection[asyncpg.Record]") -> None:
    await connection.execute("INSERT INTO audit (actor, action, data) VALUES ('', '', '{}'::jsonb)")


async def test_a_thing_is_done_once_and_its_answer_is_kept(store: IdempotencyStore, pool: Pool) -> None:
    assert await store.find(REQUEST) is None
    assert await store.once(REQUEST, 202, b"answer", effect) is None
    assert await store.once(REQUEST, 500, b"other", effect) == Replayed(202, b"answer")

    assert await store.find(REQUEST) == Replayed(202, b"answer")
    assert await pool.fetchval(COUNT) == 1


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Idempotency("shop", "POST /emails", "order 1001", b"other"), Conflict.OTHER_REQUEST),
        (Idempotency("else", "POST /emails", "order 1001", b"digest"), None),
        (Idempotency("shop", "POST /other", "order 1001", b"digest"), None),
        (Idempotency("shop", "POST /emails", "order 1002", b"digest"), None),
    ],
)
async def test_a_key_belongs_to_its_owner_path_and_request(
    store: IdempotencyStore, other: Idempotency, expected: Conflict | None
) -> None:
    await store.once(REQUEST, 202, b"answer", effect)

    assert await store.find(other) is expected
    assert await store.once(other, 202, b"", effect) is expected


async def test_an_effect_that_fails_leaves_no_key_and_no_trace(store: IdempotencyStore, pool: Pool) -> None:
    async def failing(connection: "Connection[asyncpg.Record]") -> None:
        await effect(connection)
        raise LookupError

    with pytest.raises(LookupError):
        await store.once(REQUEST, 202, b"answer", failing)
    assert await store.find(REQUEST) is None
    assert await pool.fetchval(COUNT) == 0
    assert await store.once(REQUEST, 202, b"answer", effect) is None


async def test_an_answer_that_cannot_be_stored_undoes_the_effect(store: IdempotencyStore, pool: Pool) -> None:
    with pytest.raises(asyncpg.DataError):
        await store.once(REQUEST, 1 << 40, b"answer", effect)
    assert await pool.fetchval(COUNT) == 0


async def test_at_a_time_only_one_does_it_and_the_others_are_told(store: IdempotencyStore, pool: Pool) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection: "Connection[asyncpg.Record]") -> None:
        await effect(connection)
        begun.set()
        await go_on.wait()

    first = asyncio.create_task(store.once(REQUEST, 202, b"answer", slow))
    await begun.wait()
    assert [await store.once(REQUEST, 202, b"", effect) for _ in range(3)] == [Conflict.IN_PROGRESS] * 3
    go_on.set()

    assert await first is None
    assert await store.once(REQUEST, 202, b"", effect) == Replayed(202, b"answer")
    assert await pool.fetchval(COUNT) == 1


async def test_who_is_cancelled_has_done_nothing(store: IdempotencyStore, pool: Pool) -> None:
    begun = asyncio.Event()

    async def endless(connection: "Connection[asyncpg.Record]") -> None:
        await effect(connection)
        begun.set()
        await asyncio.Event().wait()

    doing = asyncio.create_task(store.once(REQUEST, 202, b"answer", endless))
    await begun.wait()
    doing.cancel()
    await asyncio.wait([doing])

    assert await pool.fetchval(COUNT) == 0
    assert await store.once(REQUEST, 202, b"answer", effect) is None


async def test_old_answers_are_forgotten(store: IdempotencyStore) -> None:
    await store.once(REQUEST, 202, b"answer", effect)
    await store.forget(datetime.now(UTC) - timedelta(hours=1))
    assert await store.find(REQUEST) is not None
    await store.forget(datetime.now(UTC) + timedelta(hours=1))
    assert await store.find(REQUEST) is None
