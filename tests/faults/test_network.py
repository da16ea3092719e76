"""Peers that reset or fall silent at every step, name servers that are dead or slow, and a clock that jumps."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailerd.config import Config
from mailerd.delivery import destination, resolver, routing
from mailerd.delivery.transaction import Timeouts
from tests.support.dns_server import DnsServer
from tests.support.relay import RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import CLOSE, RESET, SILENCE, Action, ScriptedMx

BEFORE_DOT = ("CONNECT", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "CONTENT")
QUICK = Timeouts(2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
OK = {
    "CONNECT": "220 mx.example.net ESMTP",
    "EHLO": "250 mx.example.net",
    "STARTTLS": "220 2.0.0 go ahead",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go ahead",
    "CONTENT": b"",
    "DOT": "250 2.0.0 queued",
}
OF_BOB = "SELECT type FROM events WHERE address = 'bob@example.net' ORDER BY txid, seq"
DUE = "SELECT due_at, reason FROM recipients"


@pytest.fixture
async def mx() -> AsyncIterator[ScriptedMx]:
    async with ScriptedMx(tls="starttls") as mx:
        yield mx


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as dns:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        yield dns


@pytest.fixture
def config(tmp_path: Path, dns: DnsServer, mx: ScriptedMx) -> Config:
    return relay_config(tmp_path, dns, mx.port)


async def again(relay: RunningRelay) -> None:
    """The next attempt, when it is due."""
    relay.clock.advance(hours=2)
    await relay.run_once()


async def facts(relay: RunningRelay) -> list[dict[str, Any]]:
    """What the events of attempts say, in their order."""
    rows = await relay.pool.fetch("SELECT type, data FROM events WHERE type <> 'message.accepted' ORDER BY txid, seq")
    return [row["data"] | {"type": row["type"]} for row in rows]


@pytest.mark.parametrize("action", [RESET, CLOSE, SILENCE], ids=lambda action: action.name)
@pytest.mark.parametrize("step", BEFORE_DOT)
async def test_a_peer_that_is_lost_before_the_final_dot_gets_the_mail_once(
    database: str, config: Config, mx: ScriptedMx, step: str, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination, "Timeouts", lambda **_: QUICK)
    steps = [action] * 3  # a connection may be tried anew at once, in the clear after TLS has failed
    mx.on(step, *steps, then=OK[step])
    async with running_relay(config, database) as relay:
        receipt = await relay.submit("bob@example.net")
        await relay.settled()
        for _ in range(4):
            if await relay.states(receipt) == ["deferred"]:
                await again(relay)
        assert await relay.states(receipt) == ["delivered"]
        assert len(mx.delivered) == 1
        # Once our kernel has all of a content that is reset, nobody knows whether the dot got through.
        assert step == "CONTENT" or not any("in_doubt" in fact for fact in await facts(relay))


@pytest.mark.parametrize("action", [RESET, CLOSE, SILENCE], ids=lambda action: action.name)
async def test_a_peer_that_is_lost_after_the_final_dot_gets_it_again_and_the_events_say_so(
    database: str, config: Config, mx: ScriptedMx, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination, "Timeouts", lambda **_: QUICK)
    mx.on("DOT", action, then=OK["DOT"])
    async with running_relay(config, database) as relay:
        receipt = await relay.submit("bob@example.net")
        await relay.settled()
        await again(relay)
        assert await relay.states(receipt) == ["delivered"]
        assert [(fact["type"], fact["in_doubt"]) for fact in await facts(relay)] == [
            ("recipient.deferred", True),
            ("recipient.delivered", True),
        ]


@pytest.mark.parametrize("action", [RESET, CLOSE, SILENCE], ids=lambda action: action.name)
async def test_a_peer_that_is_lost_at_quit_has_the_mail(
    database: str, config: Config, mx: ScriptedMx, action: Action
) -> None:
    mx.on("QUIT", action)
    async with running_relay(config, database) as relay:
        receipt = await relay.submit("bob@example.net")
        await relay.settled()
        assert await relay.states(receipt) == ["delivered"]
    assert len(mx.delivered) == 1


@pytest.mark.parametrize("mode", ["drop", "servfail", "refused", "malformed"])
async def test_while_name_servers_are_out_of_order_mail_waits_with_the_reason_and_nothing_bounces(
    database: str, config: Config, dns: DnsServer, mx: ScriptedMx, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (resolver, routing):
        monkeypatch.setattr(module, "FAILED_TTL", 0.0)  # of real time, in which nothing is asked again
    dns.misbehave("example.net", mode)
    async with running_relay(config, database) as relay:
        receipt = await relay.submit("bob@example.net")
        await relay.settled()
        row = await relay.pool.fetchrow(DUE)
        assert row is not None
        assert row["due_at"] > relay.clock.now
        assert "dns" in row["reason"], row["reason"]
        await again(relay)
        assert await relay.states(receipt) == ["deferred"]

        dns.behave("example.net")
        await again(relay)
        assert await relay.states(receipt) == ["delivered"]
        types = [row["type"] for row in await relay.pool.fetch(OF_BOB)]
        assert types == ["message.accepted", "recipient.deferred", "recipient.deferred", "recipient.delivered"]


async def test_slow_name_servers_delay_only_whose_mail_asks_them(
    database: str, config: Config, dns: DnsServer, mx: ScriptedMx
) -> None:
    async with running_relay(config, database) as relay:
        first = await relay.submit("bob@example.net")
        await relay.settled()
        dns.add("slow.example", "MX", "10 mx.example.net.")
        dns.hold = asyncio.Event()
        slow = await relay.submit("ann@slow.example")
        second = await relay.submit("eve@example.net")
        async with asyncio.timeout(60):
            while await relay.states(second) != ["delivered"]:
                await asyncio.sleep(0.01)
        assert await relay.states(slow) != ["delivered"]
        dns.hold.set()
        await relay.settled()
        if await relay.states(slow) == ["deferred"]:
            await again(relay)
        assert await relay.states(slow) == await relay.states(first) == ["delivered"]


@pytest.mark.parametrize("jump", [timedelta(hours=-5), timedelta(hours=5)], ids=["back", "forward"])
async def test_when_the_clock_jumps_by_hours_nothing_is_lost_bounced_or_sent_twice(
    database: str, config: Config, mx: ScriptedMx, jump: timedelta
) -> None:
    mx.on("RCPT TO:<later@", "451 4.7.1 come back later", then=OK["RCPT"])
    async with running_relay(config, database) as relay:
        waiting = await relay.submit("later@example.net")
        await relay.settled()
        relay.clock.now += jump
        relay.relay.dispatcher.claims.wake()
        await relay.relay.sweep()
        during = await relay.submit("now@example.net")
        await relay.settled()
        assert await relay.events(during) == ["message.accepted", "recipient.delivered"]
        assert await relay.states(during) == ["delivered"]

        relay.clock.now -= jump
        await relay.relay.sweep()
        after = await relay.submit("after@example.net")
        await again(relay)
        for receipt in (waiting, after):
            assert await relay.states(receipt) == ["delivered"]
        assert sorted(each.recipient for each in mx.delivered) == [
            "after@example.net",
            "later@example.net",
            "now@example.net",
        ]
