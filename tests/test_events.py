"""The order of events: the same for all who read, whoever writes at the same time, and after a restored dump."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from mailerd import db, events
from mailerd.db.migrate import continue_order, drop_event_partitions, ensure_event_partitions, migrate
from mailerd.events import LAST, START, Event, EventStore, FollowerStore, Position
from mailerd.queue.ids import first_id_at
from tests.support.postgres import TestPostgres

NOW = datetime.now(UTC)


def event(message_id: int = 1, type_: str = "recipient.delivered", **changes: object) -> Event:
    values = {"at": NOW, "type": type_, "message_id": message_id, "n": 1, "address": "ann@example.net"}
    return Event(**(values | {"tenant": "default", "stream": "transactional"} | changes))  # type: ignore[arg-type]


@pytest.fixture
async def pool(database: str) -> AsyncIterator[db.Pool]:
    async with await db.connect_pool(database, min=0, max=12) as pool:
        yield pool


@pytest.fixture
def store(pool: db.Pool) -> EventStore:
    return EventStore(pool)


async def append(pool: db.Pool, *some: Event) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await EventStore(pool).append(connection, some)


async def read_all(store: EventStore, position: Position = START, **filters: object) -> list[Event]:
    found: list[Event] = []
    while True:
        page = await store.after(position, limit=7, **filters)  # type: ignore[arg-type]
        found += [recorded.event for recorded in page.events]
        position = page.position
        if not page.more:
            return found


async def test_a_transaction_that_is_still_under_way_holds_back_all_that_began_after_it(pool, store):
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await store.append(slow, [event(1)])
        await append(pool, event(2))
        assert await read_all(store) == []
        assert (await store.behind(START)).events == 1  # its own is not committed yet
        await transaction.commit()

    assert [each.message_id for each in await read_all(store)] == [1, 2]


async def test_the_end_is_before_what_is_being_written_and_behind_what_was(pool, store):
    await append(pool, event(1))
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await store.append(slow, [event(2)])
        end = await store.end()
        await transaction.commit()

    assert [each.message_id for each in await read_all(store, end)] == [2]


async def test_a_transaction_that_is_given_up_leaves_nothing_and_holds_nothing_back(pool, store):
    async with pool.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await store.append(slow, [event(1)])
        await transaction.rollback()
    await append(pool, event(2))

    assert [each.message_id for each in await read_all(store)] == [2]


@pytest.mark.parametrize("seed", range(3))
async def test_readers_miss_nothing_and_see_nothing_twice_while_many_write(pool, store, seed):
    chance = random.Random(seed)
    done = asyncio.Event()

    async def write(message_id: int) -> None:
        for n in range(1, 31):
            async with pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                for part in range(chance.randint(1, 3)):
                    await store.append(connection, [event(message_id, n=n, data={"part": part})])
                    await asyncio.sleep(0)
                await (transaction.rollback() if chance.random() < 0.2 else transaction.commit())

    async def read(limit: int) -> list[tuple[Position, Event]]:
        position, seen = START, []
        while True:
            last = done.is_set()
            page = await store.after(position, limit=limit)
            seen += page.events
            position = page.position
            if last and not page.more:
                return seen

    readers = [asyncio.create_task(read(limit)) for limit in (1, 5, 1000)]
    await asyncio.gather(*(write(message_id) for message_id in range(8)))
    done.set()
    views = await asyncio.gather(*readers)

    stored = await pool.fetch("SELECT txid, seq FROM events ORDER BY txid, seq")
    assert all([recorded.position for recorded in view] == [tuple(row) for row in stored] for view in views)
    per_message = defaultdict(list)
    for _, each in views[0]:
        per_message[each.message_id].append((each.n, each.data["part"]))
    assert all(steps == sorted(steps) for steps in per_message.values())


async def test_pages_skip_what_does_not_fit_and_say_how_far_they_looked(pool, store):
    await append(pool, *(event(n, stream="marketing" if n % 5 else "transactional") for n in range(20)))

    page = await store.after(START, limit=8, streams=["transactional"])
    assert ([each.event.message_id for each in page.events], page.more) == ([0, 5], True)
    assert [each.message_id for each in await read_all(store, streams=["transactional"])] == [0, 5, 10, 15]
    assert await read_all(store, types=["recipient.bounced"]) == []
    assert await read_all(store, tenant="other") == []


async def test_backwards_the_order_is_the_same(pool, store):
    await append(pool, *(event(n) for n in range(5)))
    await append(pool, event(5))

    first = await store.before(LAST, limit=4)
    second = await store.before(first.position, limit=4)
    assert [each.event.message_id for each in (*first.events, *second.events)] == [5, 4, 3, 2, 1, 0]
    assert (first.more, second.more) == (True, False)


async def test_a_lag_is_counted_when_small_and_estimated_when_large(pool, store):
    assert await store.behind(START) == (0, None)
    await append(pool, *(event(n) for n in range(40)))
    assert await store.behind(START) == (40, NOW)
    await append(pool, *(event(n) for n in range(4000)))
    lag = await store.behind(START)
    assert 4040 <= lag.events < 4500
    assert (await store.behind(await store.end())).events == 0


async def test_a_position_of_a_time_is_before_or_behind_all_events_of_it(pool, store):
    ids = [first_id_at(int((NOW + timedelta(hours=hour)).timestamp() * 1000)) for hour in range(4)]
    for id_ in ids:
        await append(pool, event(id_, "message.accepted"))
        await append(pool, event(id_))

    assert [each.message_id for each in await read_all(store, await store.around(ids[2]))] == [
        ids[1], ids[1], ids[2], ids[2], ids[3], ids[3]
    ]  # fmt: skip
    page = await store.before(await store.around(ids[2], later=True))
    assert page.events[0].event.type == "message.accepted"
    assert page.events[0].event.message_id == ids[2]
    assert await store.around(0) == START
    assert await store.around(ids[3] + 1, later=True) == LAST


async def test_a_page_is_read_from_the_index_of_the_order_of_each_partition(pool):
    async with pool.acquire() as connection:
        for month in range(12):
            await ensure_event_partitions(connection, NOW + timedelta(days=30 * month))
    async with events.in_order(pool) as connection:  # and there is so little in the tables that sorting would be cheap
        for statement in (events.AFTER, events.BEFORE):
            rows = await connection.fetch(f"EXPLAIN (COSTS off) {statement}", 0, 0, 1000, None, None, None, None)
            plan = [row[0].strip() for row in rows]
            scans = [line for line in plan if " on events_" in line]
            assert len(scans) > 12, plan
            assert all("Index Scan" in line and "txid_seq_idx" in line for line in scans), plan
            assert any("Merge Append" in line for line in plan), plan


async def test_a_follower_is_moved_only_from_where_it_stands(pool):
    followers = FollowerStore(pool)
    await followers.advance("log", Position(5, 1))

    assert await followers.move("log", Position(5, 1), Position(6, 2))
    assert not await followers.move("log", Position(5, 1), Position(7, 2))
    assert not await followers.move("other", START, Position(7, 2))
    assert [(each.name, each.position) for each in await followers.all()] == [("log", Position(6, 2))]
    assert await followers.forget("log")
    assert not await followers.forget("log")


# -- after a restored dump


@pytest.fixture
async def elsewhere(postgres: TestPostgres) -> AsyncIterator[str]:
    """A database whose events were written by a cluster with far more transactions."""
    name = await postgres.fresh()
    url = postgres.url_of(name)
    async with db.connected(url) as connection:
        await connection.execute(
            f"INSERT INTO events ({events.COLUMNS}, txid, seq) VALUES (now(), 'recipient.delivered', 1, 1, 'a@b', "
            "'default', NULL, '', '', 5000000000, 77)"
        )
        await connection.execute("INSERT INTO followers VALUES ('log', 5000000000, 77)")
    yield url
    await postgres.drop(name)


async def test_after_a_restored_dump_new_events_stand_behind_the_old_ones(elsewhere):
    async with await db.connect_pool(elsewhere, max=2) as pool:
        store, old = EventStore(pool), Position(5_000_000_000, 77)
        await store.after(START)  # statements are prepared before it is found out
        await append(pool, event(2))
        async with pool.acquire() as connection:
            await connection.execute("DELETE FROM events WHERE message_id = 2")
            assert await continue_order(connection)
            assert not await continue_order(connection)
        await append(pool, event(3), event(4))

        assert [each.message_id for each in await read_all(store, old)] == [3, 4]
        assert [each.message_id for each in await read_all(store)] == [1, 3, 4]
        assert await read_all(store, await store.end()) == []


async def test_a_follower_that_stood_at_the_end_counts_too_when_a_dump_is_restored(elsewhere):
    async with await db.connect_pool(elsewhere, max=2) as pool:
        await pool.execute("DELETE FROM events")
        async with pool.acquire() as connection:
            assert await continue_order(connection)
        await append(pool, event(3))

        position = await FollowerStore(pool).position("log")
        assert [each.message_id for each in await read_all(EventStore(pool), position)] == [3]


async def test_in_the_cluster_where_it_was_written_the_order_needs_nothing(pool):
    await append(pool, event(1))
    async with pool.acquire() as connection:
        assert not await continue_order(connection)
        assert await migrate(connection) == 0


# -- retention


async def old_month(pool: db.Pool) -> datetime:
    """A partition of a past month, with one event in it."""
    at = datetime(2025, 3, 10, tzinfo=UTC)
    async with pool.acquire() as connection:
        await ensure_event_partitions(connection, at)
    await append(pool, event(1, at=at))
    return datetime(2025, 4, 2, tzinfo=UTC)


async def test_a_month_that_a_follower_is_still_reading_stays(pool):
    before = await old_month(pool)
    await FollowerStore(pool).advance("log", START)
    async with pool.acquire() as connection:
        assert await drop_event_partitions(connection, before) == []
        await FollowerStore(pool).advance("log", await EventStore(pool).end())
        assert await drop_event_partitions(connection, before) == ["events_2025_03"]


async def test_a_follower_that_is_gone_for_long_does_not_keep_events_for_ever(pool):
    before = await old_month(pool)
    await FollowerStore(pool).advance("log", START)
    await pool.execute("UPDATE followers SET moved_at = now() - interval '8 days'")
    async with pool.acquire() as connection:
        assert await drop_event_partitions(connection, before) == ["events_2025_03"]


async def test_dropping_a_month_does_not_make_writers_wait_for_a_long_reader(pool, monkeypatch):
    before = await old_month(pool)
    monkeypatch.setattr("mailerd.db.migrate.TRIES", 2)
    monkeypatch.setattr("mailerd.db.migrate.TRY_AGAIN", 0.05)
    async with pool.acquire() as reader, pool.acquire() as connection:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetch("SELECT FROM events LIMIT 1")
        dropping = asyncio.create_task(drop_event_partitions(connection, before))
        async with asyncio.timeout(60):
            while not dropping.done():
                await append(pool, event(2))
        with pytest.raises(asyncpg.LockNotAvailableError):
            await dropping
        await transaction.rollback()
        assert await drop_event_partitions(connection, before) == ["events_2025_03"]
