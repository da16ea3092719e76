"""Mail that is rendered right before it is sent: handed over in somebody's transaction, and what is left of it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from mailerd import metrics
from mailerd.config import Campaigns, Delivery, Duration
from mailerd.delivery.destination import MOST_RENDERED
from mailerd.delivery.rendering import Rendered, Withheld
from mailerd.errors import Refused
from mailerd.intake.hand_over import Deferred
from mailerd.queue import journal
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.workers import WorkerStore
from tests.support.relay import RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import CLOSE, Pause, ScriptedMx


class Rendering:
    """Says to whom and the how manieth time; what stands in `withheld` is not sent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.announced: list[str] = []
        self.most_at_once = 0
        self.withheld: dict[str, Withheld] = {}
        self.rendered = asyncio.Event()

    def ahead(self, mails: Sequence[tuple[Message, Recipient]]) -> None:
        self.announced += [message.render for message, _ in mails]
        self.most_at_once = max(self.most_at_once, len(mails))

    async def render(self, message: Message, recipient: Recipient) -> Rendered | Withheld:
        self.asked.append(message.render)
        if message.render in self.withheld:
            return self.withheld[message.render]
        self.rendered.set()
        text = f"{message.render} to {recipient.address}, number {len(self.asked)}"
        content = f"From: ann@sender.example\r\nSubject: {text}\r\n\r\n{text}\r\n".encode()
        return Rendered(content, time.monotonic())

    async def render_row(self, mails: Sequence[tuple[Message, Recipient]]) -> list[Rendered | Withheld]:
        return [await self.render(*mail) for mail in mails]

    async def still(self, message: Message, recipient: Recipient) -> Withheld | None:
        return self.withheld.get(message.render)


def finished(state: str) -> float:
    """How many recipients were counted that ended so."""
    label = f'state="{state}"'.encode()
    lines = [line for line in metrics.render().splitlines() if line.startswith(b"mailerd_recipients_finished_total{")]
    return sum(float(line.rsplit(b" ", 1)[1]) for line in lines if label in line)


def deferred(address: str, render: str = "1:2:3") -> Deferred:
    return Deferred(
        sender="ann@sender.example",
        address=address,
        render=render,
        tenant="default",
        campaign="cmp_1",
        credential="key",
        stream="marketing",
        size=500,
    )


@pytest.fixture
def rendering() -> Rendering:
    return Rendering()


async def hand_over(relay: RunningRelay, *mails: Deferred) -> list[int]:
    hand = relay.relay.submitter.hand_over()
    async with relay.pool.acquire() as connection, connection.transaction():
        ids = [hand.add(mail) for mail in mails]
        await hand.store(connection)
    hand.done()
    return ids


@pytest.fixture
async def relay(mx, dns, tmp_path, database, rendering):
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, renderer=rendering) as relay:
        yield relay


async def test_deferred_mail_is_rendered_when_it_is_sent_and_again_at_each_attempt(relay, mx, rendering):
    mx.on("RCPT TO:<bob@example.net>", "451 4.3.0 later", then="250 2.1.5 ok")
    [id_] = await hand_over(relay, deferred("bob@example.net"))
    await relay.settled()
    assert await relay.pool.fetchval("SELECT content FROM messages") == b""

    relay.clock.advance(hours=1)
    await relay.run_once()

    assert rendering.asked == ["1:2:3", "1:2:3"]
    [delivery] = mx.delivered
    assert b"number 2" in delivery.content
    told = "SELECT type, campaign FROM events WHERE message_id = $1 ORDER BY txid, seq"
    assert await relay.pool.fetch(told, id_) == [
        ("message.accepted", "cmp_1"),
        ("recipient.deferred", "cmp_1"),
        ("recipient.delivered", "cmp_1"),
    ]
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_what_is_withheld_at_the_last_moment_is_not_sent_and_says_why(relay, mx, rendering):
    rendering.withheld["1:2:9"] = Withheld("erased", "the contact was erased")
    await hand_over(relay, deferred("bob@example.net", "1:2:9"), deferred("cid@example.net"))
    await relay.settled()

    assert [delivery.recipient for delivery in mx.delivered] == ["cid@example.net"]
    data = await relay.pool.fetchval("SELECT data FROM events WHERE type = 'recipient.withheld'")
    assert data == {"reason": "erased", "detail": "the contact was erased"}


@pytest.mark.parametrize(
    ("state", "reply", "withheld"),
    [
        ("in_doubt", CLOSE, False),
        ("expired", "451 4.3.0 never", False),
        ("withheld", "250 ok", True),
    ],
)
async def test_whatever_mail_ends_as_is_counted(relay, mx, rendering, state, reply, withheld):
    before = finished(state)
    mx.on("DOT", reply)
    if withheld:
        rendering.withheld["1:2:3"] = Withheld("erased", "the contact was erased")
    await hand_over(relay, deferred("bob@example.net"))
    await relay.settled()
    for _ in range(40):
        if await relay.pool.fetchval("SELECT count(*) FROM recipients") == 0:
            break
        relay.clock.advance(hours=4)  # the last attempt finds that there is no time for another
        await relay.run_once()

    types = [row["type"] for row in await relay.pool.fetch("SELECT type FROM events ORDER BY txid, seq")]
    assert types[-1] == f"recipient.{state}"
    assert finished(state) == before + 1


async def test_who_says_no_while_the_host_is_slow_at_rcpt_gets_no_content(relay, mx, rendering):
    mx.on("RCPT TO:<bob@example.net>", [Pause(0.6), "250 2.1.5 ok"])
    mx.extensions = ()  # without pipelining DATA comes after the reply to RCPT
    await hand_over(relay, deferred("bob@example.net", "1:2:9"))
    await rendering.rendered.wait()
    rendering.withheld["1:2:9"] = Withheld("left_list", "the contact has left")
    await relay.settled()

    assert mx.delivered == []
    types = [row["type"] for row in await relay.pool.fetch("SELECT type FROM events ORDER BY seq")]
    assert types == ["message.accepted", "recipient.withheld"]


async def test_nobody_is_sent_a_report_about_such_mail(relay, mx):
    mx.on("RCPT TO:<bob@example.net>", "550 5.1.1 no such user")
    await hand_over(relay, deferred("bob@example.net"))
    await relay.settled()

    assert await relay.pool.fetchval("SELECT count(*) FROM recipients") == 0
    assert await relay.pool.fetchval("SELECT count(*) FROM events WHERE type = 'recipient.bounced'") == 1


async def test_a_hand_over_that_is_rolled_back_leaves_nothing_behind(relay, mx):
    hand = relay.relay.submitter.hand_over()
    before = relay.relay.dispatcher.recipients_in_hand
    async with relay.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        hand.add(deferred("bob@example.net"))
        await hand.store(connection)
        await transaction.rollback()
    hand.failed()
    await relay.settled()

    assert relay.relay.dispatcher.recipients_in_hand == before
    assert mx.delivered == []
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_a_hand_over_whose_commit_is_not_heard_of_is_sent_all_the_same_once(relay, mx):
    hand = relay.relay.submitter.hand_over()
    async with relay.pool.acquire() as connection, connection.transaction():
        hand.add(deferred("bob@example.net"))
        await hand.store(connection)
    hand.failed()  # though it was committed
    await relay.settled()

    assert [delivery.recipient for delivery in mx.delivered] == ["bob@example.net"]


async def test_a_bad_address_is_refused_by_itself(relay):
    with pytest.raises(Refused, match="is no address"):
        relay.relay.submitter.hand_over().add(deferred("bob at example.net"))


async def test_mail_whose_reply_was_lost_is_not_sent_again_but_listed(relay, mx):
    mx.on("DOT", CLOSE)
    await hand_over(relay, deferred("bob@example.net"))
    await relay.settled()
    relay.clock.advance(hours=2)
    await relay.run_once()

    types = [row["type"] for row in await relay.pool.fetch("SELECT type FROM events ORDER BY seq")]
    assert types == ["message.accepted", "recipient.in_doubt"]
    assert await relay.pool.fetchval("SELECT count(*) FROM recipients") == 0


async def test_mail_that_a_crash_left_in_doubt_is_sent_again_only_if_the_operator_wants_it(
    mx, dns, tmp_path, database, rendering
):
    import msgspec

    config = msgspec.structs.replace(relay_config(tmp_path, dns, mx.port), campaigns=Campaigns(in_doubt="retry"))
    async with running_relay(config, database, renderer=rendering) as relay:
        mx.on("DOT", CLOSE, then="250 2.0.0 ok")
        await hand_over(relay, deferred("bob@example.net"))
        await relay.settled()
        relay.clock.advance(hours=2)
        await relay.run_once()

        assert len(mx.delivered) >= 1
        assert await relay.pool.fetchval("SELECT count(*) FROM events WHERE type = 'recipient.delivered'") == 1


async def test_what_a_worker_had_delivered_before_it_was_killed_is_recorded_as_delivered(relay, tmp_path):
    workers = WorkerStore(relay.pool)
    dead = await workers.register("test", 2)
    now = relay.clock.now
    for n in (1, 2, 3):
        await relay.pool.execute(
            "INSERT INTO messages (id, sender, stream, pool, credential, tenant, size, accepted_at, smtputf8,"
            " eight_bit, ret, envid, total, pending, content, campaign, render) VALUES ($1, 'a@b.example', 'marketing',"
            " 'default', 'key', 'default', 1, $2, false, false, '', '', 1, 1, '', 'cmp_1', 'x')",
            n,
            now,
        )
        await relay.pool.execute(
            "INSERT INTO recipients (message_id, n, address, domain, queue, owner, due_at, expires_at, held)"
            " VALUES ($1, 1, 'a@b.example', 'b.example', 'marketing/default/default:cmp_1/b.example', $2, $3, $4,"
            " true)",
            n,
            dead,
            now,
            now + timedelta(days=1),
        )
    book = journal.Journal(tmp_path / "journal-of-the-dead")
    book.open(1, 1)
    book.delivered(1, 1)
    book.open(2, 1)

    await workers.release(dead, book.read())

    rows = await relay.pool.fetch("SELECT message_id, in_doubt FROM recipients ORDER BY message_id")
    assert [tuple(row) for row in rows] == [(2, True), (3, False)]
    assert await relay.pool.fetchval("SELECT array_agg(id ORDER BY id) FROM messages") == [2, 3]
    [event] = await relay.pool.fetch("SELECT message_id, campaign, data FROM events WHERE type = 'recipient.delivered'")
    assert event["message_id"] == 1
    assert event["campaign"] == "cmp_1"
    assert event["data"]["recovered"] is True


async def test_a_campaign_to_silent_hosts_leaves_room_for_another(mx, dns, tmp_path, database, rendering):
    delivery = Delivery(port=mx.port, allow_private=True, connect_timeout=Duration(30), memory_messages=60)
    config = relay_config(tmp_path, dns, mx.port, delivery=delivery)
    async with (
        ScriptedMx("127.0.0.79", port=mx.port) as silent,
        running_relay(config, database, renderer=rendering) as on,
    ):
        silent.on("CONNECT", Pause(60))
        domains = [f"d{n}.example" for n in range(20)]
        dns.add("mx.silent.example", "A", "127.0.0.79")
        for domain in domains:
            dns.add(domain, "MX", "10 mx.silent.example.")
        stuck = [deferred(f"u{n}@{domain}") for n in range(10) for domain in domains]
        await hand_over(on, *stuck)
        async with asyncio.timeout(60):
            while not silent.connections:
                await asyncio.sleep(0.01)
        on.relay.dispatcher.claims.wake()
        await hand_over(on, *(replace(deferred(f"u{n}@example.net"), campaign="cmp_2") for n in range(100)))
        async with asyncio.timeout(60):
            while len(mx.delivered) < 100:
                await asyncio.sleep(0.02)

        assert 0 < on.relay.dispatcher.recipients_in_hand <= 50
        async with asyncio.timeout(60):  # what was delivered is in memory until that is recorded
            while not on.relay.submitter.room("default", "cmp_3"):
                await asyncio.sleep(0.02)


async def test_what_waits_behind_a_mail_is_announced_to_the_renderer_before_its_turn(relay, mx, rendering):
    ids = await hand_over(relay, *[deferred(f"c{n}@example.net", f"1:2:{n}") for n in range(60)])
    await relay.settled()

    assert len(mx.delivered) == len(ids)
    assert set(rendering.announced) == {f"1:2:{n}" for n in range(60)}
    assert sorted(rendering.asked) == sorted(set(rendering.announced))


async def test_no_more_is_announced_than_can_be_rendered_and_sent_while_the_answer_is_good(relay, mx, rendering):
    await hand_over(relay, *[deferred(f"c{n}@example.net", f"1:2:{n}") for n in range(400)])
    await relay.settled()

    assert len(mx.delivered) == 400
    assert 1 < rendering.most_at_once <= MOST_RENDERED
