"""Leases: who is dead, and what becomes of what it owned."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.queue.workers import BEAT_EVERY, FENCE, LEASE, Watch, Worker, WorkerStore

NOW = datetime.now(UTC)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=3)
    yield pool
    await pool.close()


def test_a_worker_is_dead_when_its_beat_stands_still_for_the_length_of_a_lease() -> None:
    watch = Watch()
    moving, still = (lambda beat: Worker(1, "n", 1, beat)), Worker(2, "n", 2, 7)
    looks = [n * BEAT_EVERY for n in range(int(LEASE / BEAT_EVERY))]
    assert [watch.dead([moving(n), still], at, at + 0.1) for n, at in enumerate(looks)] == [[] for _ in looks]
    assert watch.dead([moving(98), still], LEASE, LEASE + 0.1) == [], "it was seen at 0.1"
    assert watch.dead([moving(99), still], LEASE + 0.1, LEASE + 0.2) == [still]


def test_an_observer_that_was_blind_starts_counting_anew() -> None:
    watch = Watch()
    still = Worker(2, "n", 2, 7)
    watch.dead([still], 0.0, 0.0)
    watch.blind()
    assert not [at for at in range(3, 33, 3) if watch.dead([still], at, at)]
    assert watch.dead([still], 33, 33) == [still]


@pytest.mark.parametrize("asked", [3.0, 33.0], ids=["the database stood still", "the machine stood still"])
def test_an_observer_that_stood_still_proves_nothing(asked: float) -> None:
    watch = Watch()
    watch.dead([Worker(2, "n", 2, 5)], 0.0, 0.0)
    assert watch.dead([Worker(2, "n", 2, 5)], asked, 33.0) == [], "it stood still with us"
    assert watch.dead([Worker(2, "n", 2, 6)], 36.0, 36.1) == []
    assert watch.dead([Worker(2, "n", 2, 6)], 39.0, 39.1) == []


def test_a_beat_that_was_long_under_way_is_as_old_as_its_answer() -> None:
    watch = Watch()
    slow = FENCE - 1  # seconds that each look takes
    watch.dead([Worker(2, "n", 2, 5)], 0.0, slow)
    assert watch.dead([Worker(2, "n", 2, 5)], slow, 2 * slow) == []
    assert watch.dead([Worker(2, "n", 2, 5)], 2 * slow + 3, 2 * slow + 4) == [], "seen from 14 to 31 only"


async def test_numbers_are_not_given_twice_while_in_use(pool: Pool) -> None:
    store = WorkerStore(pool)
    first = await store.register("node", 1)
    await pool.execute("SELECT setval('worker_numbers', $1, false)", first)
    assert await store.register("node", 2) == first + 1


async def test_a_worker_that_was_released_learns_it_at_its_next_beat(pool: Pool) -> None:
    store = WorkerStore(pool)
    number = await store.register("node", 1)
    assert await store.beat(number)
    await store.release(number, [])
    assert not await store.beat(number)


async def _recipient(pool: Pool, message: int, n: int, owner: int | None) -> None:
    await pool.execute(
        "INSERT INTO recipients (message_id, n, address, domain, queue, owner, due_at, expires_at)"
        " VALUES ($1, $2, 'a@b.example', 'b.example', 'transactional/default/b.example', $3, $4, $5)",
        message,
        n,
        owner,
        NOW,
        NOW + timedelta(days=1),
    )


@pytest.mark.parametrize(("open_dots", "doubtful"), [([(1, 2)], [2]), ([], []), (None, [1, 2])])
async def test_what_a_dead_worker_owned_is_due_again_and_only_what_was_open_is_in_doubt(
    pool: Pool, open_dots: list[tuple[int, int]] | None, doubtful: list[int]
) -> None:
    store = WorkerStore(pool)
    dead, alive = await store.register("node", 1), await store.register("node", 2)
    await _recipient(pool, 1, 1, dead)
    await _recipient(pool, 1, 2, dead)
    await _recipient(pool, 2, 1, alive)

    assert await store.release(dead, open_dots) == 2
    rows = await pool.fetch("SELECT message_id, n, owner, in_doubt FROM recipients ORDER BY message_id, n")
    assert [row["owner"] for row in rows] == [None, None, alive]
    assert [row["n"] for row in rows if row["in_doubt"]] == doubtful
    assert await pool.fetchval("SELECT next_due FROM queues") == NOW
    assert [worker.number for worker in await store.all()] == [alive]
