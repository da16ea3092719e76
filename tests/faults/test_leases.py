"""Mail belongs to a living worker, or to nobody: what transactions do that end at the wrong moment."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.events import Event
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.store import CLAIM, LEASE, LeaseLostError, QueueStore
from mailerd.queue.workers import WorkerStore

NOW = datetime.now(UTC)
QUEUE = "transactional/default/t/b.example"


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database)
    yield pool
    await pool.close()


def message(id_: int) -> tuple[Message, Event]:
    made = Message(id_, "a@a.example", "transactional", "default", "c", "t", 3, NOW, content=b"\r\n.")
    made.recipients.append(Recipient(made, 1, "b@b.example", "b.example", NOW + timedelta(days=1), NOW))
    return made, Event(NOW, "message.accepted", id_, 1, "b@b.example", "t")


async def store_one(pool: Pool, id_: int, owner: int | None = None) -> None:
    made, accepted = message(id_)
    await QueueStore(pool).accept([made], [accepted], {} if owner is None else {id_: owner})


async def owners(pool: Pool) -> list[int | None]:
    return [row["owner"] for row in await pool.fetch("SELECT owner FROM recipients ORDER BY message_id")]


async def test_a_worker_that_was_declared_dead_cannot_accept_for_itself(pool: Pool) -> None:
    number = await WorkerStore(pool).register("node", 1)
    await WorkerStore(pool).release(number, [])

    with pytest.raises(LeaseLostError):
        await store_one(pool, 1, owner=number)
    assert await pool.fetchval("SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM events)") == 0
    await store_one(pool, 2)
    assert await owners(pool) == [None]


async def test_a_worker_that_was_declared_dead_claims_nothing(pool: Pool) -> None:
    number = await WorkerStore(pool).register("node", 1)
    await store_one(pool, 1)
    await WorkerStore(pool).release(number, [])

    store = QueueStore(pool)
    assert await store.claim({QUEUE: 10}, now=NOW, worker=number, bytes_=1_000) == []
    late = NOW + timedelta(days=2)
    assert await store.claim_expired(now=late, worker=number, limit=10) == []
    assert await owners(pool) == [None]


async def test_what_a_worker_killed_in_its_commit_had_claimed_is_freed_too(pool: Pool) -> None:
    """The database goes on with a COMMIT whose client is dead, while the daemon frees what the dead one owned."""
    workers = WorkerStore(pool)
    number = await workers.register("node", 1)
    await store_one(pool, 1)
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetchval(LEASE, number) == number
        await connection.fetch(CLAIM, [QUEUE], [10], NOW, number)
        release = asyncio.create_task(workers.release(number, []))
        await waiting_for_a_lock(pool)
        await transaction.commit()
        assert await release == 1
    assert await owners(pool) == [None]


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_what_a_dead_worker_had_delivered_is_recorded_with_the_doubt_of_an_attempt_before(
    pool: Pool, in_doubt: bool
) -> None:
    """The reply was lost to one worker, and the next died with the reply to its own attempt in the journal."""
    workers = WorkerStore(pool)
    number = await workers.register("node", 1)
    await store_one(pool, 1, owner=number)
    await pool.execute("UPDATE recipients SET in_doubt = $1", in_doubt)
    await workers.release(number, [(1, -1)])

    data = await pool.fetchval("SELECT data FROM events WHERE type = 'recipient.delivered'")
    assert data.get("in_doubt", False) is in_doubt
    assert data["recovered"] is True


async def test_a_claim_whose_answer_was_lost_is_given_up_and_nothing_else(pool: Pool) -> None:
    workers = WorkerStore(pool)
    number = await workers.register("node", 1)
    for id_ in (1, 2, 3):
        await store_one(pool, id_, owner=number)

    assert await workers.free_strays(number, lambda: [(2, 1)], lambda: [(3, 1)]) == 2
    assert await owners(pool) == [None, number, None]
    rows = await pool.fetch("SELECT message_id FROM recipients WHERE in_doubt")
    assert [row["message_id"] for row in rows] == [3]
    assert await pool.fetchval("SELECT next_due FROM queues") == NOW


async def waiting_for_a_lock(pool: Pool) -> None:
    async with asyncio.timeout(60):
        while not await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await asyncio.sleep(0.01)
