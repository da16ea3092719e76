"""Attacks that once worked: peers that lie, steering at the wrong moment, senders that pretend."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from mailerd.delivery.settler import Settler
from mailerd.errors import Refused
from mailerd.events import Event
from mailerd.intake.credentials import Credential
from mailerd.queue.control import ControlStore, Selection
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Message
from mailerd.queue.store import QueueStore, Report, Settled
from tests.queue.test_commit import accepted, mail
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import CLOSE, Pause, ScriptedMx


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def mx(dns: DnsServer) -> AsyncIterator[ScriptedMx]:
    async with ScriptedMx("127.0.0.2", name="mx.example.net") as server:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        yield server


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
async def relay(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> AsyncIterator[RunningRelay]:
    config = relay_config(tmp_path, dns, mx.port)
    unlearning = msgspec.structs.replace(config.delivery, control=False)  # so that nothing waits for an earlier failure
    async with running_relay(msgspec.structs.replace(config, delivery=unlearning), database, clock=now) as running:
        yield running


HOSTILE = [
    b"299 nul \0 in a code nobody expects\r\n",
    b"299 \xff\xfe no UTF-8\r\n",
    b"199 \0\xff\r\n",
    b"-12 \0\r\n",
    b"0x\0 \xff\r\n",
    b"354 \0\r\n",
    b"554 5.7.1 \0 \xff\r\n",
    b"421 \0\xff\r\n",
    b"\0\xff\r\n",
    b"220" + b"\xff" * 3000 + b"\r\n",
]


@pytest.mark.timeout(40)
@pytest.mark.parametrize("moment", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
async def test_no_bytes_of_a_peer_keep_results_from_being_recorded(
    relay: RunningRelay, mx: ScriptedMx, moment: str
) -> None:
    """A reply that PostgreSQL cannot store would be tried for ever, and every later result with it."""
    for hostile in HOSTILE:
        mx.on(moment, hostile)
        receipt = await relay.submit("ann@example.net")
        async with asyncio.timeout(60):
            await relay.settled()
        assert (await relay.states(receipt))[0] in ("deferred", "bounced", "delivered")
        relay.clock.advance(hours=1)  # whatever was blocked is not any more


@pytest.mark.timeout(20)
async def test_mail_bounced_by_an_operator_while_it_is_being_sent_is_not_held_when_it_comes_back(
    relay: RunningRelay, mx: ScriptedMx, now: Clock
) -> None:
    mx.on("DOT", [Pause(3.0), "451 4.3.0 later"])
    receipt = await relay.submit("ann@example.net")
    while not mx.transactions and not await relay.pool.fetchval(
        "SELECT count(*) FROM recipients WHERE owner IS NOT NULL"
    ):
        await asyncio.sleep(0.01)
    await ControlStore(relay.pool).bounce(Selection(message=receipt.message_id), actor="op", now=now())
    await relay.settled()
    assert await relay.pool.fetchval("SELECT count(*) FROM recipients WHERE held") == 0


async def test_an_operators_retry_reaches_a_site_that_was_away_a_moment_ago(
    relay: RunningRelay, mx: ScriptedMx, now: Clock
) -> None:
    mx.on("CONNECT", CLOSE, then="220 mx.example.net ESMTP")
    receipt = await relay.submit("ann@example.net")
    await relay.settled()
    assert await relay.states(receipt) == ["deferred"]
    now.advance(seconds=5)
    await ControlStore(relay.pool).retry(Selection(message=receipt.message_id), actor="op", now=now())
    relay.relay.dispatcher.unblock()  # which the worker does when it hears of the command
    await relay.run_once()
    assert await relay.states(receipt) == ["delivered"]


@pytest.mark.parametrize(
    "field",
    [
        "From: ceo@bank.example.",
        "From: <ceo@bank.example.>",
        "From: ceo@bank..example",
        "From: <ceo@ba nk.example>",
        "From: ceo@bank_.example",
        "From: <@x:ceo@bank.example>",
        "From: ceo@[bank.example]",
        "From: =?utf-8?q?ceo=40bank.example?=",
        "From: me@mine.example, ceo@bank.example",
        "From: <me@mine.example> <ceo@bank.example>",
        'From: "x" <ceo@bank.example',
        "From: :;ceo@bank.example",
        "From: (<me@mine.example>) ceo@bank.example",
        "From: ceo@bank.example\u00ad",
        "From:\r\n ceo@bank.example",
        "from : ceo@bank.example",
        "From: ceo@bank.example\r\nFrom : me@mine.example",
        "X: y\r\nFrom\t:\tceo@bank.example",
    ],
)
async def test_a_limited_credential_cannot_pretend_in_the_from_field(relay: RunningRelay, field: str) -> None:
    credential = Credential("shop", "default", frozenset({"send"}), ("mine.example",))
    with pytest.raises(Refused):
        await relay.submit(
            "ann@example.net",
            sender="me@mine.example",
            content=field.encode() + b"\r\nSubject: x\r\n\r\nbody\r\n",
            credential=credential,
        )


@pytest.mark.timeout(20)
async def test_mail_that_waits_for_a_dead_site_is_reported_as_late_and_says_why_when_it_expires(
    relay: RunningRelay, mx: ScriptedMx, now: Clock
) -> None:
    """Mail put back because its site is blocked has no attempt of its own; its sender must hear all the same."""
    mx.on("CONNECT", CLOSE)
    receipts = [await relay.submit("ann@example.net") for _ in range(12)]
    await relay.settled()
    for _ in range(60):
        now.advance(hours=2)
        await relay.run_once()
        await relay.relay.sweep()
    await relay.settled()
    expiries = await relay.pool.fetch(
        "SELECT data FROM events WHERE type = 'recipient.expired' AND message_id = ANY($1)",
        [receipt.message_id for receipt in receipts],
    )
    mute = [row for row in expiries if not (row["data"] or {}).get("text")]
    assert len(expiries) == 12
    assert not mute


class LeapingClock(Clock):
    """Shows a wrong time once."""

    leap: datetime | None = None

    def __call__(self) -> datetime:
        shown, self.leap = self.leap or self.now, None
        return shown


@pytest.mark.timeout(20)
async def test_mail_is_not_lost_sight_of_when_the_clock_is_set_back_while_it_expires(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    clock = LeapingClock()
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, clock=clock) as relay:
        await relay.submit("ann@example.net", not_before=clock.now + timedelta(hours=1))
        clock.leap = clock.now + timedelta(days=30)
        await relay.relay.dispatcher.claims.expire()
        await relay.relay.drained()
        assert await relay.pool.fetchval("SELECT owner FROM recipients") is None


async def claimed(relay: RunningRelay, *to: str) -> list[Message]:
    """Messages in our own hands, of which the relay knows nothing."""
    later = relay.clock.now + timedelta(hours=1)
    for address in to:
        await relay.submit(address, not_before=later)
    names = [row["name"] for row in await relay.pool.fetch("SELECT name FROM queues")]
    store = QueueStore(relay.pool)
    return await store.claim(dict.fromkeys(names, 9), now=later, worker=relay.number, bytes_=0)


@pytest.mark.timeout(20)
async def test_a_result_that_cannot_be_stored_loses_its_words_and_holds_up_nobody(
    relay: RunningRelay, now: Clock, tmp_path: Path
) -> None:
    messages = await claimed(relay, "a@example.net", "b@example.net", "c@example.net")
    first, second, third = [message.recipients[0] for message in messages]
    settler = Settler(
        QueueStore(relay.pool),
        Journal(tmp_path / "j", 64),
        worker=relay.number,
        settled=lambda recipients: None,
        claimed=relay.relay.dispatcher.claims.claimed,
        taken_again=relay.relay.dispatcher.taken_again,
    )
    first.last_reply = "\0"
    data = {"text": "\ud800"}
    event = Event(now(), "recipient.deferred", first.message.id, 1, first.address, "default", data)
    settler.add([Settled(first, event, now() + timedelta(hours=2), "\0")])
    settler.add([Settled(second, None, now() + timedelta(hours=2), "fine")])
    reports = [mail(sender="\0"), mail(domain="sender.example")]
    about = [first, third]
    settler.add(
        [Settled(third, None, now() + timedelta(hours=2), "fine")],
        [
            Report(report, accepted(report)[0], frozenset({(recipient.message.id, recipient.n)}))
            for report, recipient in zip(reports, about, strict=True)
        ],
    )
    async with asyncio.timeout(60):
        await settler.drained()
    rows = await relay.pool.fetch(
        "SELECT owner, reason FROM recipients WHERE message_id <> $1 ORDER BY address", reports[1].id
    )
    assert [(row["owner"], row["reason"]) for row in rows] == [(None, ""), (None, "fine"), (None, "fine")]
    assert await relay.pool.fetchval("SELECT count(*) FROM messages WHERE id = $1", reports[1].id) == 1
    assert await relay.pool.fetchval("SELECT count(*) FROM messages WHERE id = $1", reports[0].id) == 0
