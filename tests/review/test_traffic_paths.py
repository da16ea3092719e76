"""What once let some mail hold up other mail, exceed a limit, or leave by an address that was taken away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from mailerd.config import DomainPattern, Endpoint, Pool, PoolSource, RouteMatch, RouteRule
from mailerd.config.shaping import parse_shaping
from tests.journeys.test_traffic import STREAMS, Lab, of, two_sources, until, waiting
from tests.support.dns_server import DnsServer
from tests.support.scripted_mx import Pause, ScriptedMx

BIG = "providers: {big: {match: {mx: [big.example]}, per_source: {connections: 1}}}"


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def mx(dns: DnsServer) -> AsyncIterator[ScriptedMx]:
    async with ScriptedMx("127.0.0.2", name="mx.example.net") as server:
        dns.add("mx.example.net", "A", "127.0.0.2")
        for domain in ("example.net", "example.org"):
            dns.add(domain, "MX", "10 mx.example.net.")
        yield server


@pytest.fixture
def lab(database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path) -> Lab:
    return Lab(database, dns, mx, tmp_path)


async def until_by_the_clock(lab: Lab, condition: Callable[[], bool], seconds: float) -> None:
    """As `until`; the date goes on meanwhile, for what waits in the database waits by it."""
    loop = asyncio.get_running_loop()
    begun, start = loop.time(), lab.clock.now
    async with asyncio.timeout(seconds):
        while not condition():
            lab.clock.now = start + timedelta(seconds=loop.time() - begun)
            await asyncio.sleep(0.02)


def companies(lab: Lab, count: int, address: str) -> None:
    """Domains c0.example … with a mail host of their own each, all of the provider big."""
    for number in range(count):
        lab.dns.add(f"mx{number}.big.example", "A", address)
        lab.dns.add(f"c{number}.example", "MX", f"10 mx{number}.big.example.")


async def test_many_sites_behind_one_connection_leave_the_memory_to_other_mail(lab: Lab) -> None:
    companies(lab, 30, "127.0.0.3")
    async with ScriptedMx("127.0.0.3", port=lab.mx.port, name="slow") as slow:
        slow.on("DOT", [Pause(1.0), "250 ok"])
        async with lab.relay(BIG, limits={"memory_messages": 120}, streams=STREAMS) as relay:
            soon = lab.clock.now + timedelta(seconds=1)
            for number in range(30):
                for n in range(12):
                    await relay.submit(f"u{n}@c{number}.example", not_before=soon, stream="marketing")
            for n in range(200):
                await relay.submit(f"u{n}@example.net", not_before=soon, stream="marketing")
            lab.clock.advance(seconds=2)
            relay.relay.dispatcher.claims.wake()
            await until(lambda: len(lab.mx.delivered) == 200, 60)
            await until(lambda: relay.relay.dispatcher.recipients_in_hand < 40, 60)
            lab.clock.advance(seconds=20)
            before = len(slow.delivered)
            await until(lambda: len(slow.delivered) > before + 1)
            assert slow.most_open == 1
            assert any("connections" in row["reason"] for row in await waiting(relay))


async def test_transactional_mail_for_many_sites_behind_one_connection_delays_no_other(lab: Lab) -> None:
    companies(lab, 60, "127.0.0.3")
    async with ScriptedMx("127.0.0.3", port=lab.mx.port, name="slow") as slow:
        slow.on("DOT", [Pause(2.0), "250 ok"])
        async with lab.relay(BIG, limits={"memory_messages": 120}) as relay:
            soon = lab.clock.now + timedelta(seconds=1)
            for number in range(60):
                for n in range(6):
                    await relay.submit(f"u{n}@c{number}.example", not_before=soon, credential=of("noisy"))
            lab.clock.advance(seconds=2)
            relay.relay.dispatcher.claims.wake()
            await asyncio.sleep(3)
            for number in range(5):
                await relay.submit(f"reset{number}@example.net", credential=of("victim"))
                await until(lambda: len(lab.mx.delivered) > number, 1.5)  # noqa: B023 - called here only


async def test_many_small_sites_of_one_provider_keep_its_connections_busy(lab: Lab) -> None:
    """Forty companies with a message each: whoever has a connection is followed by the next one."""
    companies(lab, 40, "127.0.0.3")
    async with ScriptedMx("127.0.0.3", port=lab.mx.port, name="big") as big:
        big.on("DOT", [Pause(0.1), "250 ok"])
        shaping = "providers: {big: {match: {mx: [big.example]}, total: {connections: 10}}}"
        async with lab.relay(shaping) as relay:
            for number in range(40):
                await relay.submit(f"u@c{number}.example", not_before=lab.clock.now + timedelta(seconds=1))
            lab.clock.advance(seconds=2)
            await until_by_the_clock(lab, lambda: len(big.delivered) == 40, 12)
            assert big.most_open <= 10


async def test_a_domain_with_a_limit_shares_no_transaction_with_others_of_its_site(lab: Lab) -> None:
    async with lab.relay("domains: {d0.example: {message_rate: 6/min}}") as relay:
        for number in range(20):
            await relay.submit("x@example.net", f"y{number}@d0.example")
        await until(lambda: sum(d.recipient == "x@example.net" for d in lab.mx.delivered) == 20)
        await asyncio.sleep(0.5)
        assert 1 <= sum(d.recipient.endswith("@d0.example") for d in lab.mx.delivered) <= 6


async def test_domains_without_limits_share_a_transaction(lab: Lab) -> None:
    async with lab.relay("domains: {d0.example: {message_rate: 6/min}}") as relay:
        await relay.submit("x@example.net", "y@d1.example")
        await relay.settled()
        assert sum(command.startswith("MAIL") for command in lab.mx.commands) == 1
        assert len(lab.mx.delivered) == 2


@pytest.mark.parametrize("what", ["taken out of the pool", "removed", "at another address"])
async def test_a_source_that_a_reload_takes_away_sends_no_more(lab: Lab, what: str) -> None:
    shaping = "default: {per_path: {message_rate: 5/s}}"
    both = two_sources()
    only = Pool(sources=(PoolSource("b"),))
    after = {
        "taken out of the pool": {"sources": both["sources"], "pools": {"default": only}},
        "removed": {"sources": {"b": both["sources"]["b"]}, "pools": {"default": only}},
        "at another address": {
            "sources": {"a": both["sources"]["b"]},
            "pools": {"default": Pool(sources=(PoolSource("a"),))},
        },
    }[what]
    async with lab.relay(shaping, **both) as relay:
        for number in range(40):
            await relay.submit(f"u{number}@example.net")
        await until(lambda: lab.mx.recipients_of["127.0.0.51"] >= 2 and lab.mx.recipients_of["127.0.0.52"] >= 2)
        relay.relay.reconfigure(lab.config(**after), relay.relay.identity, parse_shaping({"shaping.yaml": shaping}))
        before = lab.mx.recipients_of["127.0.0.51"]
        await until_by_the_clock(lab, lambda: len(lab.mx.delivered) == 40, 15)
        assert lab.mx.recipients_of["127.0.0.51"] <= before + 1


async def test_a_blocked_route_of_one_sender_leaves_the_mail_of_others_alone(lab: Lab) -> None:
    """Their mail for one domain waits in the same queue."""
    rule = RouteRule(match=RouteMatch(sender=DomainPattern("other.example")), hosts=(Endpoint("127.0.0.9", 1),))
    async with lab.relay(routes=(rule,)) as relay:
        soon = lab.clock.now + timedelta(seconds=1)
        for _ in range(20):
            await relay.submit("u@example.net", sender="bob@other.example", not_before=soon)
        lab.clock.advance(seconds=2)
        await relay.run_once()
        assert {row["due_at"] > lab.clock.now for row in await waiting(relay)} == {True}
        good = await relay.submit("u@example.net", not_before=lab.clock.now + timedelta(seconds=1))
        lab.clock.advance(seconds=2)
        await relay.run_once()
        assert await relay.states(good) == ["delivered"]


async def test_a_blocked_way_of_most_mail_leaves_the_route_of_one_sender_alone(lab: Lab) -> None:
    """The other way round: what the claims look at is the way of mail of nobody in particular."""
    rule = RouteRule(
        match=RouteMatch(sender=DomainPattern("other.example")), hosts=(Endpoint("127.0.0.2", lab.mx.port),)
    )
    lab.dns.add("mx.away.example", "A", "127.0.0.9")
    lab.dns.add("away.example", "MX", "10 mx.away.example.")
    async with lab.relay(routes=(rule,)) as relay:
        await relay.submit("u@away.example")
        await relay.settled()
        soon = lab.clock.now + timedelta(seconds=1)
        for _ in range(50):
            await relay.submit("u@away.example", not_before=soon)
        good = await relay.submit("u@away.example", sender="bob@other.example", not_before=soon)
        lab.clock.advance(seconds=2)
        await relay.run_once()
        assert await relay.states(good) == ["delivered"]


async def test_mail_that_asks_for_no_tls_holds_no_queue_up(lab: Lab) -> None:
    lab.mx.on("CONNECT", "421 4.3.2 down")
    async with lab.relay() as relay:
        soon = lab.clock.now + timedelta(seconds=1)
        for _ in range(5):
            await relay.submit("u@example.net", require_tls=False, not_before=soon)
        lab.clock.advance(seconds=2)
        await relay.run_once()
        blocked = "SELECT count(*) FROM queues WHERE blocked_until > $1"
        assert await relay.pool.fetchval(blocked, lab.clock.now) == 0
        assert [row["due_at"] > lab.clock.now for row in await waiting(relay)] == [True] * 5
