"""Much mail waits for a provider that takes none: nobody else notices, and it flows when the provider does again."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.blocked import FILL, PROVIDER, READY
from mailerd.config import DomainPattern, Endpoint, RouteMatch, RouteRule, Stream
from mailerd.config.shaping import parse_shaping
from mailerd.db import Pool, connect_pool
from mailerd.delivery.effects import EffectStore
from mailerd.queue import store as queue_store
from mailerd.queue.mail import Queue
from mailerd.queue.store import QueueStore
from tests.support.dns_server import DnsServer
from tests.support.relay import RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import CLOSE, ScriptedMx

BLOCKED = 3_000  # recipients, nearly each of a queue of its own
OVERLOADED = "421 4.7.0 overloaded, try again later"
SHAPING = f"""
providers:
  big:
    match: {{domain: [{PROVIDER}]}}
    source: test
    date: 2026-01-01
    rules:
      - {{id: overloaded, match: overloaded, effect: pause, for: 1h, samples: ["{OVERLOADED}"]}}
"""
PAUSES = "SELECT count(*) FROM effects WHERE kind = 'pause'"
REASONS = "SELECT reason, count(*) FROM queues WHERE blocked_until > now() GROUP BY reason"
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database)
    yield pool
    await pool.close()


@pytest.fixture
async def mx() -> AsyncIterator[ScriptedMx]:
    async with ScriptedMx() as mx:
        yield mx


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    """Where example.net is, which is not the provider's."""
    async with DnsServer() as dns:
        dns.add("example.net", "MX", "10 mx.example.net.")
        dns.add("mx.example.net", "A", "127.0.0.1")
        yield dns


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedMx]:
    """Takes no connection for now."""
    async with ScriptedMx() as provider:
        provider.on("CONNECT", [OVERLOADED, CLOSE])
        yield provider


@asynccontextmanager
async def blocked(
    database: str, dns: DnsServer, mx: ScriptedMx, provider: ScriptedMx, directory: Path, rules: str = SHAPING
) -> AsyncIterator[RunningRelay]:
    """A relay whose provider has refused, with everything put off that waits for it."""
    config = relay_config(
        directory,
        dns,
        mx.port,
        routes=(
            RouteRule(
                match=RouteMatch(domain=DomainPattern(f"*.{PROVIDER}")),
                hosts=(Endpoint("127.0.0.1", provider.port),),
                tls="none",
            ),
        ),
        streams={"transactional": Stream(), "marketing": Stream()},
    )
    async with running_relay(config, database, rules=parse_shaping({"shaping.yaml": rules})) as relay:
        await relay.submit(f"first@d0.{PROVIDER}")
        await relay.settled()
        milliseconds = int((NOW - timedelta(hours=1)).timestamp() * 1000)
        await relay.pool.execute(FILL, 1, BLOCKED, milliseconds, b"Subject: news\r\n\r\nnews\r\n")
        relay.clock.now = datetime.now(UTC)  # else what was just put in the queue would not be due yet
        relay.relay.dispatcher.claims.wake()

        async def none_due() -> bool:
            return not await relay.pool.fetchval(READY)

        await until(none_due)
        yield relay


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)


async def test_mail_for_others_is_not_delayed_and_all_that_waits_says_which_rule_it_waits_for(
    database: str, dns: DnsServer, mx: ScriptedMx, provider: ScriptedMx, tmp_path: Path
) -> None:
    async with blocked(database, dns, mx, provider, tmp_path) as relay:
        reasons = {row["reason"]: row["count"] for row in await relay.pool.fetch(REASONS)}
        begun = time.monotonic()
        receipt = await relay.submit("ann@example.net")
        await relay.settled()

        assert time.monotonic() - begun < 1.0
        assert await relay.states(receipt) == ["delivered"]
        assert sum(count for reason, count in reasons.items() if "shaping.yaml:8" in reason) > BLOCKED * 0.9
        assert await relay.pool.fetchval(PAUSES) == 1
        assert relay.relay.dispatcher.recipients_in_hand == 0


async def test_a_provider_that_refuses_is_asked_once_not_for_each_of_its_queues(
    database: str, dns: DnsServer, mx: ScriptedMx, provider: ScriptedMx, tmp_path: Path
) -> None:
    async with blocked(database, dns, mx, provider, tmp_path, "") as relay:
        assert await relay.pool.fetchval(PAUSES) == 0
        assert provider.connections == 1


async def test_when_the_pause_is_cancelled_all_of_it_flows_without_gaps(
    database: str, dns: DnsServer, mx: ScriptedMx, provider: ScriptedMx, tmp_path: Path
) -> None:
    async with blocked(database, dns, mx, provider, tmp_path) as relay:
        provider.on("CONNECT", "220 well again")
        effects = EffectStore(relay.pool)
        [effect] = await effects.active(relay.clock())
        await effects.cancel(effect.id, actor="test", now=relay.clock())
        relay.relay.upkeep.changed()

        async def half_are_there() -> bool:
            relay.clock.now = datetime.now(UTC)
            return len(provider.delivered) >= BLOCKED / 2

        await until(half_are_there)


async def test_what_another_worker_has_put_off_is_not_put_off_again(pool: Pool) -> None:
    store, queue = QueueStore(pool), Queue("s/default/f/d.example", 4, "f", "default")
    await pool.execute("INSERT INTO queues VALUES ($1, 4, 'f', 'default', $2)", queue.name, NOW)

    await store.put_off({queue: (NOW + timedelta(hours=1), "the first")}, now=NOW)
    await store.put_off({queue: (NOW + timedelta(hours=2), "the second")}, now=NOW)

    assert await pool.fetchval("SELECT reason FROM queues") == "the first"


async def test_many_blocked_queues_are_opened_in_several_transactions(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_store, "UNBLOCK_AT_ONCE", 2)
    store = QueueStore(pool)
    queues = [Queue(f"s/default/f/d{number}.example", 4, "f", "default") for number in range(5)]
    await store.block(dict.fromkeys(queues, (NOW + timedelta(hours=1), "away")))

    await store.unblock()

    assert await pool.fetchval("SELECT count(*) FROM queues WHERE blocked_until IS NOT NULL") == 0


async def test_lost_queues_are_found_again_some_at_a_time(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_store, "MEND_AT_ONCE", 2)
    store = QueueStore(pool)
    await pool.execute(FILL, 1, 5, 1, b"\r\n")
    await pool.execute("DELETE FROM queues")

    found = []
    for _ in range(3):
        await store.mend_queues(datetime.now(UTC))
        found.append(await pool.fetchval("SELECT count(*) FROM queues"))
    await pool.execute("DELETE FROM queues")
    await store.mend_queues(datetime.now(UTC))  # from the first one again

    assert found == [2, 4, 5]
    assert await pool.fetchval("SELECT count(*) FROM queues") == 2
