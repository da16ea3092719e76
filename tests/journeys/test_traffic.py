"""Shaping, brakes, turns, warm-up and sources, through the whole relay to a mail exchanger."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mailerd.config import (
    Config,
    Delivery,
    Duration,
    IpAddress,
    Pool,
    PoolSource,
    Source,
    Stream,
    WarmUp,
    WarmUpOf,
    WarmUpPlan,
)
from mailerd.config.shaping import parse_shaping
from mailerd.delivery.effects import CHANNEL, Effect, EffectStore
from mailerd.delivery.source_checks import Check, State
from mailerd.delivery.source_watch import SourceStore
from mailerd.intake.credentials import TRUSTED, Credential
from mailerd.queue.trace import WAITS_FOR, WAITS_UNTIL
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import EXTENSIONS, Pause, ScriptedMx

SOON = 60.0  # seconds
SITE = "mx.example.net"
STREAMS = {"transactional": Stream(), "marketing": Stream()}


class Lab:
    """Starts relays with some shaping; `mx` is the mail exchanger of example.net, example.org and d0 … d99.example."""

    def __init__(self, database: str, dns: DnsServer, mx: ScriptedMx, directory: Path) -> None:
        self.database = database
        self.dns = dns
        self.mx = mx
        self.directory = directory
        self.clock = Clock()
        for number in range(100):
            dns.add(f"d{number}.example", "MX", "10 mx.example.net.")

    @asynccontextmanager
    async def relay(self, shaping: str = "", **changes: Any) -> AsyncIterator[RunningRelay]:
        rules = parse_shaping({"shaping.yaml": shaping})
        config = self.config(**changes)
        async with (
            running_relay(config, self.database, clock=self.clock, rules=rules) as relay,
            listening(relay, self.database),
        ):
            yield relay

    def config(self, **changes: Any) -> Config:
        delivery = Delivery(
            port=self.mx.port,
            allow_private=True,
            idle=Duration(0.3),
            connect_timeout=Duration(2),
            **changes.pop("limits", {}),
        )
        return relay_config(self.directory, self.dns, delivery=delivery, **changes)


@asynccontextmanager
async def listening(relay: RunningRelay, database: str) -> AsyncIterator[None]:
    """What a worker does beside its relay: hear what other workers and operators say."""
    connection = await asyncpg.connect(database)
    await connection.add_listener(CHANNEL, lambda *_: relay.relay.upkeep.changed())
    try:
        yield
    finally:
        await connection.close()


@pytest.fixture
def lab(database: str, dns: DnsServer, mx: ScriptedMx, tmp_path: Path) -> Lab:
    return Lab(database, dns, mx, tmp_path)


async def until(condition: Callable[[], bool], seconds: float = SOON) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def of(tenant: str) -> Credential:
    return replace(TRUSTED, tenant=tenant)


def brake(lab: Lab, kind: str = "pause", *, minutes: float = 60, **which: Any) -> Effect:
    now = lab.clock.now
    effect = Effect(0, kind, "", "", "", "", "", 0.0, "told so", "me", now, now + timedelta(minutes=minutes))
    return replace(effect, **which)


def two_sources(*, weight: int = 1, **warming: Any) -> dict[str, Any]:
    """A pool of sources a (warming up, if so told) and b."""
    sources = {
        "a": Source(address=IpAddress("127.0.0.51"), warmup=WarmUpOf(**warming) if warming else None),
        "b": Source(address=IpAddress("127.0.0.52")),
    }
    pool = Pool(sources=(PoolSource("a", weight=weight), PoolSource("b")))
    return {"sources": sources, "pools": {"default": pool}}


async def waiting(relay: RunningRelay) -> list[asyncpg.Record]:
    """Who waits in the database, until when and for what, as people are told."""
    return await relay.pool.fetch(
        f"SELECT r.address, {WAITS_UNTIL} AS due_at, {WAITS_FOR} AS reason"
        " FROM recipients AS r LEFT JOIN queues AS q ON q.name = r.queue WHERE owner IS NULL"
    )


# turns


async def test_flows_that_wait_keep_no_other_flow_from_its_turn(lab: Lab) -> None:
    """A claim looks at 64 flows; those whose queues are all blocked must not be the same 64 for ever."""
    async with lab.relay() as relay:
        lab.mx.on("RCPT TO:<later", "451 4.3.0 later")
        for number in range(70):
            await relay.submit("later@example.net", credential=of(f"a{number:03}"))
        receipt = await relay.submit(
            "ann@example.net", credential=of("zed"), not_before=lab.clock.now + timedelta(minutes=1)
        )
        await relay.settled()
        lab.clock.advance(minutes=2)
        relay.relay.dispatcher.claims.wake()
        await until(lambda: any(delivery.recipient == "ann@example.net" for delivery in lab.mx.delivered), 60)
        await relay.settled()
        assert await relay.states(receipt) == ["delivered"]


async def test_transactional_mail_goes_before_marketing_on_a_path_with_one_connection(lab: Lab) -> None:
    lab.mx.on("DOT", [Pause(0.05), "250 ok"])
    async with lab.relay("default: {per_path: {connections: 1}}", streams=STREAMS) as relay:
        for number in range(30):
            await relay.submit(f"m{number}@example.net", stream="marketing")
        await until(lambda: len(lab.mx.delivered) >= 3)
        await relay.submit("t@example.net")
        await until(lambda: any(delivery.recipient == "t@example.net" for delivery in lab.mx.delivered))
        assert len(lab.mx.delivered) < 10
        await relay.settled()
        assert lab.mx.most_open == 1


async def test_ten_messages_of_one_tenant_do_not_wait_for_three_hundred_of_another(lab: Lab) -> None:
    async with lab.relay("default: {per_path: {connections: 1}}") as relay:
        lab.mx.on("DOT", [Pause(0.005), "250 ok"])
        await asyncio.gather(*(relay.submit(f"l{n}@example.net", credential=of("large")) for n in range(300)))
        await asyncio.gather(*(relay.submit(f"s{n}@example.net", credential=of("small")) for n in range(10)))
        await relay.settled()
        order = [delivery.recipient for delivery in lab.mx.delivered]
        assert len(order) == len(set(order)) == 310
        assert max(order.index(f"s{n}@example.net") for n in range(10)) < 200


# rates and connections


async def test_a_slow_host_gets_all_that_its_rate_allows(lab: Lab) -> None:
    """Twenty a second at half a second each takes ten connections, all of which have to be woken in turn."""
    lab.mx.on("DOT", [Pause(0.5), "250 ok"])
    async with lab.relay(
        "default: {per_path: {message_rate: 20/s, connections: 20}}", limits={"control": False}
    ) as relay:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(relay.submit(f"u{number}@example.net") for number in range(80)))
        await relay.settled()
        assert asyncio.get_running_loop().time() - begun < 6
        assert len(lab.mx.delivered) == 80


async def test_a_tenant_that_waits_for_its_rate_delays_nobody_else(lab: Lab) -> None:
    async with lab.relay("tenants: {slow: {message_rate: 1/s}}") as relay:
        for number in range(3):
            await relay.submit(f"s{number}@example.net", credential=of("slow"))
        await until(lambda: len(lab.mx.delivered) == 1)
        await asyncio.sleep(0.05)  # a session waits for the second one's time
        await relay.submit("q@example.net")
        await until(lambda: any(d.recipient == "q@example.net" for d in lab.mx.delivered), 0.3)


async def test_sites_that_share_a_limit_take_turns(lab: Lab) -> None:
    """One connection for the whole provider: a backlog for one of its sites starves no other site."""
    shaping = "providers: {big: {match: {mx: [example.net, example.org]}, total: {connections: 1}}}"
    async with ScriptedMx("127.0.0.3", port=lab.mx.port, name="mx.other.example.org") as other:
        lab.dns.add("mx.other.example.org", "A", "127.0.0.3")
        lab.dns.add("other.example", "MX", "10 mx.other.example.org.")
        lab.mx.on("DOT", [Pause(0.02), "250 ok"])
        async with lab.relay(shaping) as relay:
            await asyncio.gather(*(relay.submit(f"u{number}@example.net") for number in range(400)))
            await until(lambda: len(lab.mx.delivered) >= 5)
            for number in range(5):
                await relay.submit(f"o{number}@other.example")
            await until(lambda: len(other.delivered) == 5, 60)
            assert len(lab.mx.delivered) < 250
            assert max(lab.mx.most_open, other.most_open) == 1
            await relay.settled()


async def test_mail_goes_by_another_source_of_its_pool_while_one_is_paused(lab: Lab) -> None:
    async with lab.relay(**two_sources()) as relay:
        await EffectStore(relay.pool).add(brake(lab, source="a"))
        await until(lambda: bool(relay.relay.effects.active))
        for number in range(12):
            await relay.submit(f"u{number}@example.net")
        await until(lambda: len(lab.mx.delivered) == 12)
        await relay.settled()


async def test_who_wants_a_connection_gets_one_and_not_all(lab: Lab) -> None:
    """Every session sees that another site waits; if each gave up its connection for that, nobody would send."""
    shaping = "providers: {big: {match: {mx: [example.net, example.org]}, total: {connections: 6}}}"
    async with ScriptedMx("127.0.0.3", port=lab.mx.port, name="mx.other.example.org") as other:
        lab.dns.add("mx.other.example.org", "A", "127.0.0.3")
        lab.dns.add("other.example", "MX", "10 mx.other.example.org.")
        for mx in (lab.mx, other):
            mx.on("DOT", [Pause(0.01), "250 ok"])
        async with lab.relay(shaping, limits={"control": False}) as relay:
            names = [f"u{number}@{('example.net', 'other.example')[number % 2]}" for number in range(400)]
            await asyncio.gather(*(relay.submit(name) for name in names))
            await until(lambda: len(lab.mx.delivered) + len(other.delivered) == 400, 60)
            assert lab.mx.connections + other.connections < 150
            await relay.settled()


async def test_no_more_connections_are_closed_than_are_too_many(lab: Lab) -> None:
    lab.mx.on("DOT", [Pause(0.1), "250 ok"])
    lab.mx.on("QUIT", [Pause(0.3), "221 bye"])
    async with lab.relay("default: {per_path: {connections: 10}}", limits={"control": False}) as relay:
        for number in range(300):
            await relay.submit(f"u{number}@example.net")
        await until(lambda: lab.mx.open == 10)
        await EffectStore(relay.pool).add(brake(lab, "connections", value=6))
        await until(lambda: lab.mx.commands.count("QUIT") >= 4)
        await asyncio.sleep(0.25)
        assert lab.mx.commands.count("QUIT") == 4
        await relay.pool.execute("DELETE FROM recipients WHERE owner IS NULL")


async def test_a_connection_refused_beside_others_does_not_stop_the_mail_when_those_end(lab: Lab) -> None:
    lab.mx.on("CONNECT", "220 mx", "421 4.7.0 too many connections", then="220 mx")
    lab.mx.on("DOT", [Pause(0.1), "250 ok"])
    limits = {"messages_per_connection": 3, "control": False}
    async with lab.relay("default: {per_path: {connections: 2}}", limits=limits) as relay:
        for number in range(12):
            await relay.submit(f"u{number}@example.net")
        await until(lambda: len(lab.mx.delivered) == 12, 60)


async def test_hosts_that_answer_421_to_all_are_asked_seldom_and_mail_waits_with_that_reason(lab: Lab) -> None:
    lab.mx.on("MAIL", "421 4.7.0 try again later")
    async with lab.relay() as relay:
        for number in range(200):
            await relay.submit(f"u{number}@example.net")
        async with asyncio.timeout(SOON):
            while len(await waiting(relay)) < 200:
                await asyncio.sleep(0.05)
        assert lab.mx.connections <= 20
        rows = await waiting(relay)
        assert all("421 4.7.0" in row["reason"] or "learnt from its replies" in row["reason"] for row in rows), rows
        assert all(row["due_at"] <= lab.clock.now + timedelta(hours=1) for row in rows)


async def test_limits_that_hosts_announce_are_kept(lab: Lab) -> None:
    lab.mx.extensions = (*EXTENSIONS, "LIMITS RCPTMAX=3 MAILMAX=2")
    async with lab.relay() as relay:
        await relay.submit(*(f"u{number}@example.net" for number in range(8)))
        await relay.settled()
        assert len(lab.mx.delivered) == 8
        assert lab.mx.transactions == 3
        assert lab.mx.connections == 2


async def test_what_a_host_says_about_its_limits_is_learnt(lab: Lab) -> None:
    lab.mx.on("MAIL", "250 ok", "250 ok", "451 4.7.0 too many messages in this connection", then="250 ok")
    async with lab.relay("default: {per_path: {connections: 1}}") as relay:
        for number in range(7):
            await relay.submit(f"u{number}@example.net")
        await relay.settled()
        assert len(lab.mx.delivered) == 6
        assert lab.mx.commands.count("QUIT") >= 3  # after three, then after every two


# brakes


async def test_a_reply_that_a_rule_is_for_makes_a_brake_that_is_named_and_ends(lab: Lab) -> None:
    shaping = "default: {rules: [{id: stop, match: 'slow down', effect: pause, for: 10m}]}"
    lab.mx.on("RCPT TO:<u0", "451 4.7.1 slow down", then="250 ok")
    async with lab.relay(shaping) as relay:
        await relay.submit("u0@example.net")
        await relay.settled()
        await until(lambda: bool(relay.relay.effects.of_path("", "default", SITE)))
        receipt = await relay.submit("u1@example.net")
        await relay.settled()
        recipient = (await relay.view(receipt)).recipients[0]
        assert recipient.reason.startswith("effect 1: paused: stop: 451 4.7.1 slow down (shaping.yaml:1)")
        assert lab.mx.delivered == []
        lab.clock.advance(minutes=11)
        await relay.run_once()
        assert await relay.states(receipt) == ["delivered"]


async def test_a_cancelled_brake_lets_mail_flow_at_once(lab: Lab) -> None:
    async with lab.relay() as relay:
        store = EffectStore(relay.pool)
        effect = await store.add(brake(lab, provider="default"))
        await until(lambda: bool(relay.relay.effects.of_path("", "default", SITE)))
        await relay.submit("u1@example.net")  # in memory when it meets the brake
        await relay.submit("u2@example.net", not_before=lab.clock.now + timedelta(minutes=1))
        await relay.settled()
        lab.clock.advance(minutes=2)
        await relay.run_once()
        assert lab.mx.delivered == []
        await store.cancel(effect.id, actor="me", now=lab.clock.now)
        await until(lambda: len(lab.mx.delivered) == 2)


@pytest.mark.parametrize(
    "which", [{"tenant": "acme"}, {"campaign": "spring"}, {"tenant": "acme", "campaign": "spring"}]
)
async def test_a_pause_of_a_tenant_or_campaign_stops_its_mail_only(lab: Lab, which: dict[str, Any]) -> None:
    async with lab.relay() as relay:
        store = EffectStore(relay.pool)
        effect = await store.add(brake(lab, **which))
        await until(lambda: relay.relay.effects.any_of_mail)
        stopped = await relay.submit("u1@example.net", credential=of("acme"), campaign="spring")
        await relay.submit("u2@example.net", credential=of("other"), campaign="autumn")
        await until(lambda: len(lab.mx.delivered) == 1)
        await relay.settled()
        assert "paused: told so" in (await relay.view(stopped)).recipients[0].reason
        await store.cancel(effect.id, actor="me", now=lab.clock.now)
        await until(lambda: len(lab.mx.delivered) == 2)


async def test_a_brake_on_one_source_lets_claimed_mail_go_by_the_other(lab: Lab) -> None:
    async with lab.relay(**two_sources()) as relay:
        await EffectStore(relay.pool).add(brake(lab, source="a"))
        await until(lambda: bool(relay.relay.effects.of_path("a", "default", SITE)))
        due_at = lab.clock.now + timedelta(minutes=1)
        for number in range(40):
            await relay.submit(f"u{number}@example.net", not_before=due_at)
        lab.clock.advance(minutes=2)
        await relay.run_once()
        assert len(lab.mx.delivered) == 40
        assert set(lab.mx.peers) == {"127.0.0.52"}


async def test_a_long_queue_of_which_one_source_may_send_its_part_does_not_wait_for_the_other(lab: Lab) -> None:
    async with lab.relay(**two_sources()) as relay:
        effect = await EffectStore(relay.pool).add(brake(lab, source="a"))
        await until(lambda: bool(relay.relay.effects.of_path("a", "default", SITE)))
        due_at = lab.clock.now + timedelta(minutes=1)
        for start in range(0, 600, 50):
            await asyncio.gather(
                *(relay.submit(f"u{number}@example.net", not_before=due_at) for number in range(start, start + 50))
            )
        lab.clock.advance(minutes=2)
        relay.relay.dispatcher.claims.wake()
        before = 0
        async with asyncio.timeout(60):
            while before != len(lab.mx.delivered) or before < 200:
                before = len(lab.mx.delivered)
                await asyncio.sleep(2)
        assert set(lab.mx.peers) == {"127.0.0.52"}
        assert len(lab.mx.delivered) + len(await waiting(relay)) == 600
        assert len(lab.mx.delivered) > 230
        written = "SELECT pg_current_wal_insert_lsn() - '0/0'"
        lsn = await relay.pool.fetchval(written)
        await asyncio.sleep(2)
        assert await relay.pool.fetchval(written) - lsn < 100_000  # what waits for a is not taken up again and again
        await EffectStore(relay.pool).cancel(effect.id, actor="me", now=lab.clock.now)
        await until(lambda: len(lab.mx.delivered) == 600, 60)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_jumps_leaves_no_mail_behind(lab: Lab, hours: int) -> None:
    lab.mx.on("CONNECT", "421 4.3.2 down", then="220 mx")
    async with lab.relay() as relay:
        store = EffectStore(relay.pool)
        await store.add(brake(lab, minutes=5, tenant="acme"))
        await until(lambda: relay.relay.effects.any_of_mail)
        await relay.submit("u1@example.net")
        await relay.submit("u2@example.net", credential=of("acme"))
        await relay.settled()
        lab.clock.advance(hours=hours)
        relay.relay.dispatcher.forget_unblocked()
        await relay.submit("u3@example.net")
        for _ in range(8):
            lab.clock.advance(minutes=16)
            await relay.relay.sweep()
            await relay.run_once()
        assert {delivery.recipient for delivery in lab.mx.delivered} == {
            f"u{number}@example.net" for number in (1, 2, 3)
        }


# sources


async def test_mail_of_a_source_that_fails_goes_by_the_others(lab: Lab) -> None:
    async with lab.relay(**two_sources()) as relay:
        await fail(relay, "a", "listed at bl.example")
        for number in range(10):
            await relay.submit(f"u{number}@example.net")
        await relay.settled()
        assert set(lab.mx.peers) == {"127.0.0.52"}
        await fail(relay, "a", "")
        for number in range(10, 30):
            await relay.submit(f"u{number}@example.net")
        await relay.settled()
        assert set(lab.mx.peers) == {"127.0.0.51", "127.0.0.52"}


async def test_mail_waits_while_no_source_of_its_pool_may_be_used_and_leaves_when_one_comes_back(lab: Lab) -> None:
    lab.mx.on("DOT", [Pause(0.3), "250 ok"])
    async with lab.relay("default: {per_path: {connections: 1}}", **two_sources()) as relay:
        for number in range(20):
            await relay.submit(f"u{number}@example.net")
        await until(lambda: lab.mx.open == 2)
        await fail(relay, "a", "listed at bl.example")
        await fail(relay, "b", "listed at bl.example")
        async with asyncio.timeout(SOON):
            while await relay.pool.fetchval("SELECT count(*) FROM recipients WHERE owner IS NOT NULL"):
                await asyncio.sleep(0.05)
        sent = len(lab.mx.delivered)
        left = await waiting(relay)
        assert sent + len(left) == 20
        assert sent <= 6
        assert all("listed at bl.example" in row["reason"] for row in left)
        lab.mx.on("DOT", "250 ok")
        await fail(relay, "b", "")
        await until(lambda: len(lab.mx.delivered) == 20)


# warm-up


async def test_a_budget_is_never_exceeded_and_what_is_over_goes_by_the_warm_source(lab: Lab) -> None:
    plan = WarmUp(plans={"tiny": WarmUpPlan(stages=(7, 14))})
    async with lab.relay(warmup=plan, **two_sources(weight=9, plan="tiny")) as relay:
        await asyncio.gather(*(relay.submit(f"u{number}@example.net") for number in range(60)))
        await until(lambda: len(lab.mx.delivered) == 60)
        assert lab.mx.recipients_of["127.0.0.51"] == 7


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_over_waits_for_the_next_window_with_that_reason(lab: Lab, at_once: bool) -> None:
    plan = WarmUp(plans={"tiny": WarmUpPlan(per="hour", stages=(7,))})
    changes = two_sources(plan="tiny", overflow="wait") | {"pools": {"default": Pool(sources=(PoolSource("a"),))}}
    lab.clock.now = lab.clock.now.replace(minute=10)
    async with lab.relay(warmup=plan, **changes) as relay:
        if at_once:
            await relay.submit(*(f"u{number}@example.net" for number in range(17)))
        else:
            await asyncio.gather(*(relay.submit(f"u{number}@example.net") for number in range(17)))
        await until(lambda: len(lab.mx.delivered) == 7)
        await relay.settled()
        left = await waiting(relay)
        assert len(left) == 10
        assert all("warm-up of a" in row["reason"] for row in left)
        assert {row["due_at"].minute for row in left} == {0}
        for hour in (14, 17):
            lab.clock.advance(hours=1)
            await relay.run_once()
            assert len(lab.mx.delivered) == hour


async def test_recipients_over_what_a_host_announces_cost_the_budget_once(lab: Lab) -> None:
    lab.mx.extensions = (*EXTENSIONS, "LIMITS RCPTMAX=2")
    plan = WarmUp(plans={"tiny": WarmUpPlan(stages=(10, 20))})
    changes = two_sources(plan="tiny", overflow="wait") | {"pools": {"default": Pool(sources=(PoolSource("a"),))}}
    async with lab.relay(warmup=plan, **changes) as relay:
        await relay.submit(*(f"u{number}@example.net" for number in range(10)))
        await until(lambda: len(lab.mx.delivered) == 10)


async def test_drawing_a_budget_costs_no_rate(lab: Lab) -> None:
    plan = WarmUp(plans={"tiny": WarmUpPlan(stages=(40, 80))})
    changes = two_sources(plan="tiny", overflow="wait") | {"pools": {"default": Pool(sources=(PoolSource("a"),))}}
    async with lab.relay("default: {per_path: {message_rate: 4/s}}", warmup=plan, **changes) as relay:
        for number in range(10):
            await relay.submit(f"u{number}@example.net")
        begun = asyncio.get_running_loop().time()
        await until(lambda: len(lab.mx.delivered) == 10, 60)
        assert asyncio.get_running_loop().time() - begun < 3.6


# memory


async def test_hosts_that_hold_mail_for_long_leave_room_for_the_others(lab: Lab) -> None:
    """Many sites that take a minute for a message must not fill the memory with mail that waits for them."""
    async with ScriptedMx("127.0.0.4", port=lab.mx.port, name="tar") as tar:
        tar.on("DOT", [Pause(60), "250 ok"])
        for number in range(8):
            lab.dns.add(f"tar{number}.example", "A", "127.0.0.4")
            lab.dns.add(f"mx.tar{number}.example", "A", "127.0.0.4")
            lab.dns.add(f"tar{number}.example", "MX", f"10 mx.tar{number}.example.")
        async with lab.relay(limits={"memory_messages": 400}, streams=STREAMS) as relay:
            due_at = lab.clock.now + timedelta(minutes=1)
            for number in range(8):
                for _ in range(100):
                    await relay.submit(f"u@tar{number}.example", stream="marketing", not_before=due_at)
            for number in range(20):
                await relay.submit(
                    f"u{number}@example.net", stream="marketing", not_before=due_at + timedelta(seconds=1)
                )
            lab.clock.advance(minutes=2)
            relay.relay.dispatcher.claims.wake()
            await until(lambda: len(lab.mx.delivered) == 20)


async def fail(relay: RunningRelay, source: str, reason: str) -> None:
    """Let a check of the source fail for that reason, or be right again, as the watch of the node would write it."""
    now = relay.clock.now
    state = State.FAILING if reason else State.OK
    store = SourceStore(relay.pool)
    await store.write("test", [Check(source, "bl.example", state, reason, now, now)])
    await store.tell()
    states = relay.relay.states
    await until(lambda: (source in states.failing) == bool(reason))
