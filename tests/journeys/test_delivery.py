"""From a submission to the mail exchanger and the events, over real sockets and a real database."""

import asyncio
import gc
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dkim as dkimpy
import msgspec
import pytest

from mailerd.config import (
    Delivery,
    DkimKey,
    Duration,
    Endpoint,
    RouteAuth,
    RouteMatch,
    RouteRule,
    SendingDomain,
    Stream,
)
from mailerd.delivery import identity
from mailerd.queue.store import QueueStore
from mailerd.wire import dkim
from tests.support.dns_server import DnsServer
from tests.support.relay import CONTENT, Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import CLOSE, RESET, ScriptedMx


async def test_a_message_is_delivered_once_and_leaves_only_events(relay: RunningRelay, mx: ScriptedMx) -> None:
    receipt = await relay.submit("bob@example.net")
    await relay.settled()

    assert [delivery.recipient for delivery in mx.delivered] == ["bob@example.net"]
    assert mx.delivered[0].sender == "ann@sender.example"
    assert mx.delivered[0].content.endswith(CONTENT.partition(b"\r\n\r\n")[2])
    assert b"\r\nMessage-ID: <msg_" in mx.delivered[0].content
    assert await relay.events(receipt) == ["message.accepted", "recipient.delivered"]
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0
    assert await relay.pool.fetchval("SELECT count(*) FROM recipients") == 0


async def test_recipients_of_one_site_share_a_transaction(relay: RunningRelay, mx: ScriptedMx) -> None:
    await relay.submit("x@example.net", "y@example.org")  # both routes are known then
    await relay.settled()
    before = mx.transactions
    await relay.submit("a@example.net", "b@example.net", "c@example.org")
    await relay.settled()

    recipients = [delivery.recipient for delivery in mx.delivered]
    assert recipients[2:] == ["a@example.net", "b@example.net", "c@example.org"]
    assert mx.transactions == before + 1
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_each_recipient_gets_its_own_verdict(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    mx.on("RCPT TO:<later@example.net>", "451 4.3.0 later", then="250 2.1.5 ok")
    receipt = await relay.submit("yes@example.net", "no@example.net NOTIFY=NEVER", "later@example.net")
    await relay.settled()

    assert await relay.states(receipt) == ["delivered", "bounced", "deferred"]
    assert await relay.pool.fetchval("SELECT pending FROM messages") == 1

    relay.clock.advance(hours=1)
    await relay.run_once()
    assert await relay.states(receipt) == ["delivered", "bounced", "delivered"]
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0


async def test_a_greylisted_recipient_is_tried_again_when_the_retry_is_due(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<ann@example.net>", "451 4.7.1 greylisted, come back later", then="250 2.1.5 ok")
    receipt = await relay.submit("ann@example.net")
    await relay.settled()
    assert await relay.events(receipt) == ["message.accepted", "recipient.deferred"]
    waiting = (await relay.view(receipt)).recipients[0]
    assert waiting.state == "deferred"
    assert waiting.reason.startswith("greylisted: 451 4.7.1")
    assert waiting.due_at is not None

    relay.clock.advance(minutes=1)
    await relay.run_once()
    assert mx.delivered == []

    relay.clock.advance(minutes=14)
    await relay.run_once()
    assert [delivery.recipient for delivery in mx.delivered] == ["ann@example.net"]
    assert (await relay.view(receipt)).recipients[0].attempts == 2


async def test_a_dead_first_mx_is_passed_over(relay: RunningRelay, mx: ScriptedMx, dns: DnsServer) -> None:
    dns.add("dead.example", "A", "127.0.0.77")
    dns.add("two.example", "MX", "5 dead.example.", "10 mx.example.net.")
    receipt = await relay.submit("bob@two.example")
    await relay.settled()
    assert await relay.states(receipt) == ["delivered"]


async def test_a_null_mx_bounces_at_once_and_the_sender_is_told(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("nomail.example", "MX", "0 .")
    dns.add("sender.example", "MX", "10 mx.example.net.")
    receipt = await relay.submit("bob@nomail.example")
    await relay.settled()
    assert await relay.events(receipt) == ["message.accepted", "recipient.bounced"]
    report = mx.delivered[0]
    assert (report.sender, report.recipient) == ("", "ann@sender.example")
    assert b"Status: 5.1.10" in report.content
    assert b"Final-Recipient: rfc822; bob@nomail.example" in report.content


async def test_a_failed_report_is_not_reported(relay: RunningRelay, mx: ScriptedMx, dns: DnsServer) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    mx.on("RCPT TO:<", "550 5.1.1 nobody here")
    await relay.submit("bob@example.net")
    await relay.settled()
    assert mx.delivered == []
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0
    types = await relay.pool.fetch("SELECT type, count(*) FROM events GROUP BY type ORDER BY type")
    assert [tuple(row) for row in types] == [
        ("message.accepted", 2),
        ("recipient.bounced", 2),
        ("suppression.added", 2),
    ]


@pytest.mark.parametrize(
    ("parameters", "reported"),
    [("", True), ("NOTIFY=FAILURE", True), ("NOTIFY=NEVER", False), ("NOTIFY=SUCCESS", False)],
)
async def test_notify_decides_who_hears_of_a_failure(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer, parameters: str, reported: bool
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    mx.on("RCPT TO:<no@example.net>", "550 5.1.1 no such user")
    await relay.submit(f"no@example.net {parameters}", envid="order 7")
    await relay.settled()
    assert [delivery.sender for delivery in mx.delivered] == ([""] if reported else [])
    if reported:
        assert b"Original-Envelope-Id: order 7" in mx.delivered[0].content


async def test_success_is_reported_by_us_when_the_host_does_not_do_it(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    mx.extensions = ("PIPELINING", "8BITMIME")
    await relay.submit("bob@example.net NOTIFY=SUCCESS")
    await relay.settled()
    assert [delivery.recipient for delivery in mx.delivered] == ["bob@example.net", "ann@sender.example"]
    assert b"Action: relayed" in mx.delivered[1].content


async def test_mail_that_cannot_be_delivered_in_time_expires_and_the_sender_is_told(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    mx.on("RCPT TO:<bob@example.net>", "451 4.3.0 never")
    receipt = await relay.submit("bob@example.net")
    await relay.settled()
    relay.clock.advance(days=2)
    await relay.relay.sweep()
    await relay.settled()
    assert (await relay.events(receipt))[-1] == "recipient.expired"
    assert b"5.4.7" in mx.delivered[-1].content


async def test_a_late_message_gets_one_delay_report(relay: RunningRelay, mx: ScriptedMx, dns: DnsServer) -> None:
    dns.add("sender.example", "MX", "10 mx.example.net.")
    mx.on("RCPT TO:<bob@example.net>", "451 4.3.0 later")
    await relay.submit("bob@example.net")
    await relay.settled()
    for _ in range(3):
        relay.clock.advance(hours=5)
        await relay.run_once()
    reports = [delivery for delivery in mx.delivered if delivery.sender == ""]
    assert len(reports) == 1
    assert b"Action: delayed" in reports[0].content


async def test_a_host_that_vanishes_after_the_dot_leaves_the_recipient_in_doubt(
    relay: RunningRelay, mx: ScriptedMx
) -> None:
    mx.on("DOT", RESET, then="250 2.0.0 ok")
    receipt = await relay.submit("bob@example.net")
    await relay.settled()
    waiting = (await relay.view(receipt)).recipients[0]
    assert (waiting.state, waiting.in_doubt) == ("deferred", True)
    relay.clock.advance(hours=1)
    await relay.run_once()
    assert (await relay.view(receipt)).recipients[0].in_doubt


async def test_a_kept_connection_that_was_closed_meanwhile_costs_no_attempt(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    delivery = Delivery(port=mx.port, allow_private=True, idle=Duration(10), connections_per_path=1)
    mx.on("MAIL FROM:<ann@sender.example>", "250 ok", CLOSE, "250 ok")
    async with running_relay(relay_config(tmp_path, dns, delivery=delivery), database) as relay:
        first = await relay.submit("a@example.net")
        await relay.settled()
        second = await relay.submit("b@example.net")
        await relay.settled()
        assert await relay.events(first) == ["message.accepted", "recipient.delivered"]
        assert await relay.events(second) == ["message.accepted", "recipient.delivered"]


async def test_an_unreachable_site_is_left_alone_and_the_wait_has_a_reason(
    relay: RunningRelay, mx: ScriptedMx, dns: DnsServer
) -> None:
    dns.add("away.example", "A", "127.0.0.78")
    first = await relay.submit("a@away.example")
    await relay.settled()
    second = await relay.submit("b@away.example")
    await relay.settled()
    waiting = (await relay.view(second)).recipients[0]
    assert waiting.attempts == 0
    assert "cannot be reached" in waiting.reason
    assert waiting.due_at is not None
    assert await relay.states(first) == ["deferred"]

    good = await relay.submit("c@example.net")
    await relay.settled()
    assert await relay.states(good) == ["delivered"]

    async with ScriptedMx("127.0.0.78", port=mx.port) as late:
        relay.clock.advance(hours=1)
        await relay.run_once()
        assert sorted(delivery.recipient for delivery in late.delivered) == ["a@away.example", "b@away.example"]


async def test_dns_that_fails_defers_and_dns_that_says_no_bounces(relay: RunningRelay, dns: DnsServer) -> None:
    dns.misbehave("broken.example", "servfail")
    broken = await relay.submit("a@broken.example NOTIFY=NEVER")
    absent = await relay.submit("a@absent.example NOTIFY=NEVER")
    await relay.settled()
    assert await relay.states(broken) == ["deferred"]
    assert await relay.states(absent) == ["bounced"]
    attempt = (await relay.view(absent)).attempts[0]
    assert (attempt.kind, attempt.enhanced) == ("bad_domain", "5.1.2")


async def test_mail_scheduled_for_later_waits_in_the_database(relay: RunningRelay, now: Clock) -> None:
    later = await relay.submit("eve@example.net", not_before=now.now + timedelta(hours=3))
    await relay.settled()
    assert await relay.states(later) == ["queued"]

    now.advance(hours=3)
    await relay.run_once()
    assert await relay.states(later) == ["delivered"]


async def test_mail_scheduled_for_later_is_not_looked_for_now(
    relay: RunningRelay, now: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.delivery.claims.POLL", 3600.0)
    await relay.run_once()
    await asyncio.sleep(0.2)  # it may have been woken once more
    looks: list[object] = []
    monkeypatch.setattr(QueueStore, "due_queues", lambda *_, **__: looks.append(1))
    for n in range(5):
        await relay.submit(f"eve{n}@example.net", not_before=now.now + timedelta(hours=3))
    await asyncio.sleep(0.1)
    assert looks == []


async def test_more_mail_than_fits_into_memory_comes_by_way_of_the_database(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    delivery = Delivery(port=mx.port, allow_private=True, memory_messages=10, connections_per_path=2)
    async with running_relay(relay_config(tmp_path, dns, delivery=delivery), database) as relay:
        for n in range(60):
            await relay.submit(f"user{n}@example.net")
        await relay.settled()
    assert sorted(delivery.recipient for delivery in mx.delivered) == sorted(f"user{n}@example.net" for n in range(60))


@pytest.mark.parametrize("domains", [1, 500])
async def test_a_backlog_leaves_without_a_poll(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domains: int
) -> None:
    """A queue that found no room, and one that was put off, are looked at again as soon as there may be some."""
    monkeypatch.setattr("mailerd.delivery.claims.POLL", 3600.0)
    monkeypatch.setattr("mailerd.delivery.memory.QUEUE_SHARE", 0.02)  # 40 messages
    clock = _RunningClock()
    route = RouteRule(match=RouteMatch(domain="*.bulk.example"), hosts=(Endpoint("127.0.0.2", mx.port),), tls="none")
    delivery = Delivery(port=mx.port, allow_private=True, memory_messages=2_000)
    config = relay_config(tmp_path, dns, delivery=delivery, routes=(route,))
    async with running_relay(config, database, clock=clock) as relay:
        for arrived in (500, 1_000):  # the second time the routes are known
            later = clock() + timedelta(hours=1)
            for n in range(500):
                await relay.submit(f"user{n}@d{n % domains}.bulk.example", not_before=later)
            clock.late += timedelta(hours=2)
            relay.relay.dispatcher.claims.wake()
            async with asyncio.timeout(60):
                while len(mx.delivered) < arrived:
                    await asyncio.sleep(0.05)


class _RunningClock(Clock):
    """The date as it goes on, so much later."""

    late = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.late


async def test_a_message_with_more_recipients_than_memory_or_a_transaction_takes(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    delivery = Delivery(
        port=mx.port, allow_private=True, memory_messages=40, recipients_per_transaction=7, connections_per_path=3
    )
    async with running_relay(relay_config(tmp_path, dns, delivery=delivery), database) as relay:
        await relay.submit(*(f"user{n}@example.net" for n in range(100)))
        await relay.settled()
        assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0
    assert len({delivery.recipient for delivery in mx.delivered}) == len(mx.delivered) == 100
    assert mx.transactions >= 100 // 7


async def test_a_route_to_a_smart_host_logs_in(database: str, dns: DnsServer, tmp_path: Path) -> None:
    async with ScriptedMx("127.0.0.3", users={"app": "secret"}, extensions=("AUTH PLAIN",)) as smart:
        rule = RouteRule(
            match=RouteMatch(domain="*.corp.example"),
            hosts=(Endpoint("127.0.0.3", smart.port),),
            tls="none",
            auth=RouteAuth(username="app", password="secret"),
        )
        async with running_relay(relay_config(tmp_path, dns, routes=(rule,)), database) as relay:
            receipt = await relay.submit("bob@eu.corp.example")
            await relay.settled()
            assert await relay.states(receipt) == ["delivered"]
        assert smart.logins != []


async def test_a_signed_message_verifies(database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path) -> None:
    keys = {
        name: identity.generate(tmp_path / f"{name}.pem", kind) for name, kind in (("r1", "rsa"), ("e1", "ed25519"))
    }
    domains = {
        "sender.example": SendingDomain(dkim=tuple(DkimKey(selector=name, key_file=f"{name}.pem") for name in keys))
    }
    async with running_relay(relay_config(tmp_path, dns, mx.port, domains=domains), database) as relay:
        await relay.submit("bob@example.net")
        await relay.settled()
    content = mx.delivered[0].content
    records = {f"{name}._domainkey.sender.example.": dkim.dns_record(key).encode() for name, key in keys.items()}
    verifier = dkimpy.DKIM(content)
    for index in range(2):
        assert verifier.verify(idx=index, dnsfunc=lambda name, timeout=5: records[name.decode()])


async def test_eight_bit_mail_is_converted_for_a_host_that_cannot_take_it(relay: RunningRelay, mx: ScriptedMx) -> None:
    mx.extensions = ("PIPELINING",)
    content = (
        b"From: a@sender.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n"
    )
    receipt = await relay.submit("bob@example.net", content=content, eight_bit=True)
    await relay.settled()
    assert await relay.states(receipt) == ["delivered"]
    assert mx.delivered[0].content.isascii()


async def test_a_worker_that_lost_its_lease_sends_nothing(
    database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path
) -> None:
    silence = 0.0
    async with running_relay(relay_config(tmp_path, dns, mx.port), database, silent_for=lambda: silence) as relay:
        silence = 1000.0
        await relay.submit("bob@example.net")
        await relay.relay.drained()
        assert mx.delivered == []
        silence = 0.0
        await relay.run_once()
        assert len(mx.delivered) == 1


async def test_streams_have_their_own_expiry(database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path) -> None:
    streams = {"transactional": Stream(expires=Duration(3600)), "marketing": Stream(expires=Duration(7200))}
    mx.on("RCPT TO:<", "451 4.3.0 later")
    config = msgspec.structs.replace(relay_config(tmp_path, dns, mx.port), streams=streams)
    async with running_relay(config, database) as relay:
        one = await relay.submit("a@example.net NOTIFY=NEVER")
        two = await relay.submit("a@example.net NOTIFY=NEVER", stream="marketing")
        await relay.settled()
        relay.clock.advance(hours=1.5)
        await relay.relay.sweep()
        await relay.settled()
        assert await relay.states(one) == ["expired"]
        assert await relay.states(two) == ["deferred"]


async def test_content_does_not_wait_for_the_garbage_collector(relay: RunningRelay) -> None:
    content = CONTENT + b"x" * 990 + b"\r\n"
    content += (b"x" * 998 + b"\r\n") * 1000
    gc.disable()
    tracemalloc.start()
    try:
        for n in range(20):
            await relay.submit(f"user{n}@example.net", content=content)
            await relay.settled()
        held = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([]).traces if trace.size > 900_000)
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 5_000_000 + 20 * len(content)  # the mail exchanger keeps what it got
