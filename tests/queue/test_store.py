"""The rows of the queue: who takes what, and what a second telling of the same result changes."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from mailerd.db import Pool, connect_pool
from mailerd.events import Event
from mailerd.queue.contents import LARGE, PART, SMALLEST
from mailerd.queue.mail import Message, queue_of
from mailerd.queue.store import LeaseLostError, QueueStore, Report, Settled
from mailerd.queue.suppression import Reason, Suppression
from mailerd.queue.trace import TraceStore
from mailerd.queue.workers import WorkerStore
from tests.queue.test_commit import accepted, mail

HOUR = timedelta(hours=1)
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
ROWS = "SELECT count(*) FROM large_contents"
SIZES = [LARGE, SMALLEST, SMALLEST - 1, PART, PART + 1, 8 * PART, 8 * PART + 1, 16 * PART]


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=5)
    yield pool
    await pool.close()


@pytest.fixture
def store(pool: Pool) -> QueueStore:
    return QueueStore(pool)


@pytest.fixture
async def worker(pool: Pool) -> int:
    return await WorkerStore(pool).register("test", 1)


async def accept(store: QueueStore, *messages: Message, owner: int | None = None) -> None:
    owners = {} if owner is None else {message.id: owner for message in messages}
    await store.accept(messages, [event for message in messages for event in accepted(message)], owners)


async def claim(store: QueueStore, worker: int, room: int = 100, after: timedelta = HOUR) -> list[Message]:
    now = datetime.now(UTC) + after
    queues, _ = await store.due_queues(now=now, after=dict.fromkeys(range(9), ""), pools=["default"], flows=9, queues=9)
    names = [queue.name for queue in queues]
    return await store.claim(dict.fromkeys(names, room), now=now, worker=worker, bytes_=1_000_000)


def delivered(message: Message) -> Settled:
    now = datetime.now(UTC)
    return Settled(
        message.recipients[0], Event(now, "recipient.delivered", message.id, 1, "bob@example.net", "default")
    )


def bounced(message: Message, reason: Reason | None = None) -> Settled:
    now, recipient = datetime.now(UTC), message.recipients[0]
    follows = reason and Suppression(recipient.address, tenant="default", reason=reason, source="smtp", created_at=now)
    event = Event(now, "recipient.bounced", message.id, 1, recipient.address, "default")
    return Settled(recipient, event, suppression=follows)


def report_of(report: Message, about: Message) -> Report:
    return Report(report, accepted(report)[0], frozenset({(about.id, 1)}))


async def taken_over(store: QueueStore, pool: Pool, worker: int, *messages: Message) -> int:
    """The messages as `worker` had them in hand when it was declared dead; who has them now."""
    await accept(store, *messages, owner=worker)
    other = await WorkerStore(pool).register("other", 2)
    await pool.execute("UPDATE recipients SET owner = $1", other)
    return other


async def test_what_is_claimed_comes_whole_and_to_one_only(store: QueueStore, pool: Pool, worker: int) -> None:
    messages = [mail() for _ in range(40)]
    await accept(store, *messages)
    claims = await asyncio.gather(*(claim(store, worker, 10) for _ in range(4)))

    taken = [message.id for claimed in claims for message in claimed]
    assert sorted(taken) == sorted({message.id for message in messages})
    assert {message.content for claimed in claims for message in claimed} == {b"x\r\n\r\n"}
    assert await claim(store, worker) == []


async def test_mail_in_somebodys_memory_or_not_due_yet_is_left_alone(store: QueueStore, worker: int) -> None:
    late = mail()
    late.recipients[0].due_at += 2 * HOUR
    await accept(store, mail(), owner=worker)
    await accept(store, late)

    assert await claim(store, worker) == []
    assert len(await claim(store, worker, after=3 * HOUR)) == 1


async def test_a_blocked_queue_waits(store: QueueStore, worker: int) -> None:
    message = mail()
    await accept(store, message)
    await store.block({queue_of(message.recipients[0]): (datetime.now(UTC) + 2 * HOUR, "no route")})

    assert await claim(store, worker) == []
    assert len(await claim(store, worker, after=3 * HOUR)) == 1


async def test_a_result_told_twice_counts_once(store: QueueStore, pool: Pool, worker: int) -> None:
    message = mail()
    await accept(store, message, owner=worker)
    for _ in range(2):
        await store.settle([delivered(message)], worker=worker)

    assert await pool.fetchval("SELECT count(*) FROM messages") == 0
    assert await pool.fetchval("SELECT count(*) FROM recipients") == 0
    assert await pool.fetchval("SELECT count(*) FROM events WHERE type = 'recipient.delivered'") == 1


async def test_nothing_follows_from_a_result_after_another_was_recorded(
    store: QueueStore, pool: Pool, worker: int
) -> None:
    """A worker that was thought dead tells of a bounce of what was delivered by another; beside it of something new."""
    message, fresh = mail(), mail(domain="other.example")
    other = await taken_over(store, pool, worker, message, fresh)
    await store.settle([delivered(message)], worker=other)

    report, wanted = mail(domain="sender.example"), mail(domain="sender.example")
    results = [bounced(message, Reason.BOUNCE), bounced(fresh)]
    await store.settle(results, worker=worker, reports=[report_of(report, message), report_of(wanted, fresh)])
    types = await pool.fetch("SELECT type FROM events WHERE message_id = $1 ORDER BY at", message.id)
    assert [row["type"] for row in types] == ["message.accepted", "recipient.delivered"]
    assert await pool.fetchval("SELECT count(*) FROM suppressions") == 0
    assert [row["id"] for row in await pool.fetch("SELECT id FROM messages")] == [wanted.id]


async def test_a_bounce_told_by_two_counts_once_and_is_reported_once(
    store: QueueStore, pool: Pool, worker: int
) -> None:
    message, fresh = mail(), mail(domain="other.example")
    other = await taken_over(store, pool, worker, message, fresh)
    reports = [mail(domain="sender.example") for _ in range(2)]
    soft = bounced(message, Reason.SOFT_BOUNCE)
    await store.settle([soft], worker=other, reports=[report_of(reports[0], message)])
    await store.settle([soft], worker=other, reports=[report_of(reports[0], message)])  # the same once more
    await store.settle([soft, delivered(fresh)], worker=worker, reports=[report_of(reports[1], message)])
    assert await pool.fetchval("SELECT bounces FROM soft_bounces") == 1
    assert [row["id"] for row in await pool.fetch("SELECT id FROM messages")] == [reports[0].id]


async def test_mail_that_is_settled_while_it_is_traced_is_shown_as_it_was_or_as_it_is(
    store: QueueStore, pool: Pool, worker: int
) -> None:
    message = mail()
    await accept(store, message, owner=worker)

    class Between:
        """The database, with something happening behind each question."""

        async def fetch(self, *asked: object) -> object:
            rows = await pool.fetch(*asked)
            await store.settle([delivered(message)], worker=worker)
            return rows

    view = await TraceStore(cast(Pool, Between())).message(message.id, None)
    assert view is not None
    assert (view.recipients[0].state, view.recipients[0].expires_at is None) in (("queued", False), ("delivered", True))


async def test_a_deferral_counts_only_from_who_owns_the_recipient(store: QueueStore, pool: Pool, worker: int) -> None:
    message = mail()
    await accept(store, message, owner=worker)
    other = await WorkerStore(pool).register("other", 2)
    due = datetime.now(UTC) + HOUR
    later = Settled(message.recipients[0], None, due, "later")
    await store.settle([later], worker=other)
    assert await pool.fetchval("SELECT owner FROM recipients") == worker

    await store.settle([later], worker=worker)
    assert tuple(await pool.fetchrow("SELECT owner, due_at, reason FROM recipients") or ()) == (None, due, "later")
    assert await pool.fetchval("SELECT next_due FROM queues") == due


async def test_a_result_and_its_report_lock_their_queues_in_the_order_of_all_others(
    store: QueueStore, pool: Pool, worker: int
) -> None:
    """Each such deadlock costs a second, in which nobody else gets at these queues."""
    first, last, report = mail(domain="a.example"), mail(domain="z.example"), mail(domain="z.example")
    queues = [each.recipients[0].queue for each in (first, last)]
    await accept(store, first, owner=worker)
    await accept(store, mail(domain="a.example"), last)  # the queues are there
    due = datetime.now(UTC) + HOUR
    async with pool.acquire() as other:
        claiming = other.transaction()
        await claiming.start()
        await other.execute("SELECT FROM queues WHERE name = $1 FOR UPDATE", queues[0])
        later = Settled(first.recipients[0], None, due, "later")
        settling = asyncio.create_task(store.settle([later], worker=worker, reports=[report_of(report, first)]))
        while not await pool.fetchval(WAITS):
            await asyncio.sleep(0.01)
        assert await other.fetchval("SELECT name FROM queues WHERE name = $1 FOR UPDATE NOWAIT", queues[1]) == queues[1]
        await claiming.commit()
    await settling

    assert await pool.fetchval("SELECT count(*) FROM recipients WHERE message_id = $1", report.id) == 1


async def test_mail_held_while_it_is_in_memory_keeps_the_reason(store: QueueStore, pool: Pool, worker: int) -> None:
    message = mail()
    await accept(store, message, owner=worker)
    await pool.execute("UPDATE recipients SET held = true, reason = 'held by ann'")
    await store.settle([Settled(message.recipients[0], None, datetime.now(UTC), "")], worker=worker)
    assert tuple(await pool.fetchrow("SELECT owner, reason FROM recipients") or ()) == (None, "held by ann")


async def test_expired_mail_is_taken_in_whatever_state_it_waits(store: QueueStore, pool: Pool, worker: int) -> None:
    message = mail()
    await accept(store, message)
    await pool.execute("UPDATE recipients SET held = true")

    assert await store.claim_expired(now=datetime.now(UTC), worker=worker, limit=10) == []
    expired = await store.claim_expired(now=datetime.now(UTC) + 48 * HOUR, worker=worker, limit=10)
    assert [claimed.id for claimed in expired] == [message.id]


async def test_mail_whose_queue_was_lost_is_found_again(store: QueueStore, pool: Pool, worker: int) -> None:
    await accept(store, mail())
    await pool.execute("DELETE FROM queues")
    assert await claim(store, worker) == []
    await store.mend_queues(datetime.now(UTC))
    assert len(await claim(store, worker)) == 1


async def test_empty_queues_are_forgotten_and_others_not(store: QueueStore, pool: Pool, worker: int) -> None:
    await accept(store, mail())
    now = datetime.now(UTC)
    await store.forget(now=now, bodies_before=None)
    assert await pool.fetchval("SELECT count(*) FROM queues") == 1
    await claim(store, worker)
    await store.forget(now=now, bodies_before=None)
    assert await pool.fetchval("SELECT count(*) FROM queues") == 0


async def test_what_was_withdrawn_leaves_nothing(store: QueueStore, pool: Pool) -> None:
    message, other = mail(), mail()
    await accept(store, message, other)
    since = datetime.now(UTC) - HOUR
    assert await store.known([message.id, 7], since) == {message.id}
    await store.withdraw([message.id], since)

    assert await store.known([message.id, other.id], since) == {other.id}
    assert await store.content(message.id) is None
    assert await pool.fetchval("SELECT count(*) FROM recipients") == 1


async def test_a_worker_without_a_lease_takes_no_mail(store: QueueStore, pool: Pool) -> None:
    with pytest.raises(LeaseLostError):
        await accept(store, mail(), owner=99)
    assert await pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_flows_take_turns_and_lower_lanes_come_first(store: QueueStore, worker: int) -> None:
    """A tenant with many queues gets no more turns than one with a single queue."""
    for number in range(30):
        await accept(store, mail(tenant="big", domain=f"d{number}.example"))
    await accept(store, mail(tenant="small", domain="d1.example"))
    await accept(store, mail(tenant="big", lane=1, stream="urgent", domain="d2.example"))
    now = datetime.now(UTC) + HOUR

    queues, _ = await store.due_queues(now=now, after={1: "", 4: ""}, pools=["default"], flows=9, queues=3)
    assert [(queue.lane, queue.flow) for queue in queues] == [(1, "big"), *[(4, "big")] * 3, (4, "small")]
    queues, _ = await store.due_queues(now=now, after={4: "big"}, pools=["default"], flows=9, queues=3)
    assert [queue.flow for queue in queues] == ["small"]
    assert await store.due_queues(now=now, after={4: ""}, pools=["other"], flows=9, queues=3) == ([], {})


async def test_a_queue_that_was_served_goes_behind_the_others(store: QueueStore, worker: int) -> None:
    for domain in ("a.example", "a.example", "b.example"):
        await accept(store, mail(domain=domain))
    now = datetime.now(UTC) + HOUR

    async def first() -> str:
        found, _ = await store.due_queues(now=now, after={4: ""}, pools=["default"], flows=9, queues=1)
        return found[0].domain

    assert await first() == "a.example"
    name = (await store.due_queues(now=now, after={4: ""}, pools=["default"], flows=9, queues=1))[0][0].name
    assert len(await store.claim({name: 1}, now=now, worker=worker, bytes_=1_000)) == 1
    assert await first() == "b.example"


async def test_recipients_without_a_message_stop_nobody(store: QueueStore, pool: Pool, worker: int) -> None:
    lost, whole = mail(), mail()
    await accept(store, lost, whole)
    await pool.execute("DELETE FROM messages WHERE id = $1", lost.id)

    assert [message.id for message in await claim(store, worker)] == [whole.id]
    assert await pool.fetchval("SELECT count(*) FROM recipients") == 1


async def test_mail_of_a_pool_that_nobody_serves_says_so(store: QueueStore, pool: Pool, worker: int) -> None:
    await accept(store, mail(pool="gone"), mail(pool="idle"), mail())
    await store.give_reasons((["default", "idle"], {"idle": "no source of pool idle may be used here: a: not bound"}))

    reasons = {row["pool"]: row["reason"] for row in await pool.fetch("SELECT pool, reason FROM queues")}
    assert reasons == {
        "gone": "there is no pool gone any more",
        "idle": "no source of pool idle may be used here: a: not bound",
        "default": "",
    }


async def test_what_waits_for_an_effect_that_holds_stays_blocked(store: QueueStore, pool: Pool, worker: int) -> None:
    reasons = {
        "a.example": "effect 7: paused",
        "b.example": "effect 8: paused",
        "c.example": "a limit",
        "d.example": "",
    }
    until = datetime.now(UTC) + 2 * HOUR
    messages = [mail(domain=domain) for domain in reasons]
    await accept(store, *messages)
    await store.block(
        {queue_of(message.recipients[0]): (until, reasons[message.recipients[0].domain]) for message in messages}
    )

    await store.unblock(but_for=[7])
    blocked = await pool.fetch("SELECT name FROM queues WHERE blocked_until IS NOT NULL")
    assert [row["name"].rpartition("/")[2] for row in blocked] == ["a.example"]
    await store.unblock()
    assert await pool.fetchval("SELECT count(*) FROM queues WHERE blocked_until IS NOT NULL") == 0


# contents beside their messages


def holding(content: bytes) -> Message:
    message = mail()
    message.content, message.size = content, len(content)
    return message


async def test_contents_of_every_size_come_back_as_they_were(store: QueueStore, pool: Pool, worker: int) -> None:
    sent = [holding(os.urandom(size)) for size in SIZES]
    await accept(store, *sent)
    got = await claim(store, worker)

    assert {message.id: message.content for message in got} == {message.id: message.content for message in sent}
    assert [await store.content(message.id) for message in sent] == [message.content for message in sent]
    assert await pool.fetchval("SELECT count(*) FROM messages WHERE content IS NULL") == len(SIZES) - 1


async def test_a_message_whose_content_is_missing_is_not_taken_for_one_that_is_gone(
    store: QueueStore, pool: Pool, worker: int
) -> None:
    message = holding(os.urandom(LARGE))
    await accept(store, message)
    await pool.execute("DELETE FROM large_contents WHERE message_id = $1", message.id)

    with pytest.raises(LookupError, match="is not in the database"):
        await store.content(message.id)
    assert await store.content(message.id + 1) is None


async def test_a_few_small_messages_need_no_rows_of_their_own(store: QueueStore, pool: Pool, worker: int) -> None:
    await accept(store, *(holding(os.urandom(10_000)) for _ in range(10)))

    assert await pool.fetchval(ROWS) == 0
    assert [len(message.content or b"") for message in await claim(store, worker)] == [10_000] * 10


async def test_they_go_with_their_message(store: QueueStore, pool: Pool, worker: int) -> None:
    delivered_one, withdrawn, other = sent = [holding(os.urandom(LARGE)) for _ in range(3)]
    await accept(store, *sent, owner=worker)
    await store.settle([delivered(delivered_one)], worker=worker)
    await store.withdraw([withdrawn.id], datetime.now(UTC) - HOUR)

    assert await pool.fetch("SELECT DISTINCT message_id FROM large_contents") == [(other.id,)]
    assert await store.content(other.id) == other.content


async def test_without_a_lease_nothing_of_them_is_stored(store: QueueStore, pool: Pool) -> None:
    dead = await WorkerStore(pool).register("test", 1)
    await pool.execute("DELETE FROM workers WHERE number = $1", dead)
    with pytest.raises(LeaseLostError):
        await accept(store, holding(os.urandom(LARGE)), owner=dead)

    assert await pool.fetchval(ROWS) == await pool.fetchval("SELECT count(*) FROM messages") == 0


@pytest.mark.parametrize("unlike", ["", "sender", "size", "labels", "require_tls", "owner"])
async def test_mail_that_is_alike_is_stored_as_mail_that_is_not(
    store: QueueStore, pool: Pool, worker: int, unlike: str
) -> None:
    now = datetime.now(UTC)
    several = [mail(accepted_at=now, labels={"a": "b"}) for _ in range(3)]
    for message in several:
        message.recipients[0].due_at, message.recipients[0].expires_at = now, now + HOUR
    owners = {message.id: worker for message in several}
    match unlike:
        case "sender":
            several[1].sender = ""
        case "size":
            several[2].size += 1
        case "labels":
            several[0].labels = None
        case "require_tls":
            several[1].require_tls = False
        case "owner":
            del owners[several[1].id]
    await store.accept(several, [event for message in several for event in accepted(message)], owners)

    rows = await pool.fetch("SELECT * FROM messages ORDER BY id")
    assert [(row["id"], row["sender"], row["size"], row["labels"], row["require_tls"]) for row in rows] == [
        (message.id, message.sender, message.size, message.labels, message.require_tls) for message in several
    ]
    assert [row["pending"] for row in rows] == [message.total for message in several]
    rows = await pool.fetch("SELECT message_id, owner, address FROM recipients ORDER BY message_id")
    assert [tuple(row) for row in rows] == [
        (message.id, owners.get(message.id), message.recipients[0].address) for message in several
    ]
    assert await pool.fetchval("SELECT count(DISTINCT message_id) FROM events") == len(several)
