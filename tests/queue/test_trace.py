"""Looking and searching: pages that end only at the end, whoever else's mail lies between, by index however much."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.queue import trace
from mailerd.queue.ids import first_id_at
from mailerd.queue.store import QueueStore
from mailerd.queue.trace import TraceStore
from mailerd.queue.views import MailFilters, MailPage
from tests.queue.test_commit import accepted, mail

OURS = MailFilters(tenant="default")
START = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)

# A message a millisecond: one in a hundred from ann, one in 25,000 bounced, each with one or two recipients.
MANY = """
    INSERT INTO events (at, type, message_id, n, address, tenant, data)
    SELECT at, type, $1::bigint + (m::bigint << 21), 1, 'user' || m || '@example.net', 'default',
           CASE WHEN type = 'message.accepted'
                THEN jsonb_build_object('sender', CASE WHEN m % 100 = 0 THEN 'ann' ELSE 'bob' END || '@sender.example',
                                        'labels', CASE WHEN m % 1000 = 0 THEN '{"rare": ""}'::jsonb ELSE '{}' END) END
      FROM generate_series(0, $3::int - 1) AS m
     CROSS JOIN LATERAL (SELECT $2::timestamptz + m * interval '1 millisecond' AS at) AS moment
     CROSS JOIN LATERAL (VALUES ('message.accepted'),
           (CASE WHEN m % 25000 = 7 THEN 'recipient.bounced' ELSE 'recipient.delivered' END)) AS kind (type)
"""


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=2)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> TraceStore:
    return TraceStore(pool)


async def fill(pool: Pool, messages: int) -> int:
    """Write so many delivered messages; the first one's id."""
    first = first_id_at(int(START.timestamp() * 1000))
    await pool.execute(MANY, first, START, messages)
    await pool.execute("ANALYZE")
    return first


async def pages(store: TraceStore, filters: MailFilters, limit: int) -> list[MailPage]:
    found = [await store.search(filters, limit, None)]
    while found[-1].before is not None:
        assert len(found) < 1000
        found.append(await store.search(filters, limit, found[-1].before))
    return found


async def test_pages_go_on_until_there_are_no_more(pool: Pool, store: TraceStore) -> None:
    first = await fill(pool, 10)
    found = await pages(store, OURS, 4)

    assert [len(page.messages) for page in found] == [4, 4, 2]
    assert [message.id for page in found for message in page.messages] == [first + (m << 21) for m in range(9, -1, -1)]
    assert [len(page.messages) for page in await pages(store, OURS, 5)] == [5, 5]


async def test_a_search_for_a_rare_state_looks_at_so_many_and_says_where_to_go_on(
    pool: Pool, store: TraceStore
) -> None:
    first = await fill(pool, 5_000)
    bounced = MailFilters(tenant="default", state="bounced")
    found = await pages(store, bounced, 50)

    assert len(found) == 3
    assert found[0].messages == ()
    assert [message.id for page in found for message in page.messages] == [first + (7 << 21)]


async def test_another_tenants_mail_between_ours_hides_none_of_it(pool: Pool, store: TraceStore) -> None:
    await fill(pool, 20_000)
    ours = await pool.fetch(
        "UPDATE events SET tenant = 'small' WHERE address = ANY ($1) RETURNING message_id",
        [f"user{m}@example.net" for m in (3, 9_000, 19_999)],
    )
    found = await pages(store, MailFilters(tenant="small"), 2)

    messages = [message.id for page in found for message in page.messages]
    assert messages == sorted({row["message_id"] for row in ours}, reverse=True)
    assert len(messages) == 3
    assert len(found) <= 4


async def test_a_thousand_messages_to_one_address_are_paged_too(pool: Pool, store: TraceStore) -> None:
    await fill(pool, 1_500)
    await pool.execute("UPDATE events SET address = 'ann@example.net'")
    found = await pages(store, MailFilters(tenant="default", recipient="ann@example.net", tag="rare"), 1)

    assert sum(len(page.messages) for page in found) == 2


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, 3),
        ({"recipient": "two@example.net"}, 1),
        ({"recipient": "two@example.net", "sender": "ann@sender.example"}, 1),
        ({"recipient": "two@example.net", "tag": "x"}, 1),
        ({"recipient": "two@example.net", "state": "queued"}, 1),
        ({"recipient": "two@example.net", "sender": "eve@sender.example"}, 0),
        ({"sender": "ann@sender.example"}, 3),
        ({"tag": "x"}, 1),
        ({"tag": "y"}, 0),
        ({"state": "queued"}, 2),
        ({"state": "held"}, 1),
        ({"state": "delivered"}, 0),
        ({"tenant": "other"}, 0),
        ({"tenant": None}, 3),
    ],
    ids=str,
)
async def test_filters_hold_for_the_message_whichever_recipient_is_named(
    pool: Pool, store: TraceStore, filters: dict[str, Any], expected: int
) -> None:
    for label in ("x", "", ""):
        message = mail()
        events = accepted(message)
        events[0].data = {"sender": message.sender, "labels": {label: ""} if label else {}}
        if label:
            recipient = mail(address="two@example.net").recipients[0]
            recipient.message, recipient.n = message, 2
            message.recipients.append(recipient)
            second = accepted(message)[0]
            second.n, second.address = 2, recipient.address
            second.data = None
            events.append(second)
        await QueueStore(pool).accept([message], events, {})
    await pool.execute("UPDATE recipients SET held = true WHERE message_id = (SELECT max(message_id) FROM recipients)")

    page = await store.search(MailFilters(**({"tenant": "default"} | filters)), 50, None)
    assert (len(page.messages), page.before) == (expected, None)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ("UPDATE queues SET blocked_until = now() + interval '1 h', reason = 'no route'", "no route"),
        ("UPDATE queues SET blocked_until = now() - interval '1 h', reason = 'no route'", "its own"),
        ("UPDATE recipients SET due_at = now() + interval '2 h'; "
         "UPDATE queues SET blocked_until = now() + interval '1 h', reason = 'no route'", "its own"),
        ("UPDATE recipients SET held = true; "
         "UPDATE queues SET blocked_until = now() + interval '1 h', reason = 'no route'", "its own"),
    ],
)  # fmt: skip
async def test_the_reason_told_is_the_one_that_holds_longest(
    pool: Pool, store: TraceStore, update: str, reason: str
) -> None:
    message = mail()
    await QueueStore(pool).accept([message], accepted(message), {})
    await pool.execute("UPDATE recipients SET reason = 'its own'")
    await pool.execute(update)

    view = await store.message(message.id, "default")
    assert view is not None
    assert view.recipients[0].reason == reason


async def test_looking_and_searching_use_indexes(pool: Pool, store: TraceStore) -> None:
    first = await fill(pool, 50_000)  # 100,000 events
    top, since = first + (50_000 << 21), START - timedelta(minutes=5)
    common = (top, 0, since, 51, "default", "ann@sender.example", "rare")
    plans = {
        "events": (trace.EVENTS, ([first], "default", since)),
        "waiting": (trace.WAITING, ([first],)),
        "all": (trace.SEARCH_ALL, common),
        "address": (trace.SEARCH_ADDRESS, (*common, "user77@example.net")),
        "queue": (trace.SEARCH_WAITING, common),
    }
    for name, (statement, parameters) in plans.items():
        rows = await pool.fetch(f"EXPLAIN (ANALYZE, COSTS off) {statement}", *parameters)
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan" not in plan.replace("Seq Scan on queues", ""), f"{name}: {plan}"
        assert "Sort (actual" not in plan.partition("SubPlan")[0] or name in ("events", "address"), f"{name}: {plan}"
        milliseconds = float(rows[-1][0].split()[2])
        assert milliseconds < 100, f"{name}: {plan}"
