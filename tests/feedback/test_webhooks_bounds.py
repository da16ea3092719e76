"""What many endpoints, bad ones and a busy database may cost: the telling goes on, in bounded memory and time."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from mailerd.config import Host
from mailerd.config.values import parse_host
from mailerd.delivery.https import Poster
from mailerd.delivery.resolver import Resolver
from mailerd.errors import Refused
from mailerd.events import Event, EventStore
from mailerd.feedback.webhooks import budget, records, schedule
from mailerd.feedback.webhooks.desk import MOST_CHANGES, Wanted
from mailerd.feedback.webhooks.values import Outcome
from tests.feedback import test_webhooks
from tests.feedback.test_webhooks import Bench, bench_of
from tests.support.dns_server import DnsServer
from tests.support.webhook_receiver import Receiver

NOW = datetime(2026, 5, 1, tzinfo=UTC)
dns, receiver = test_webhooks.dns, test_webhooks.receiver


@pytest.fixture
async def bench(database: str, dns: DnsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_of(database, dns, tmp_path) as made:
        yield made


async def fill(bench: Bench, count: int, tenants: int = 1, **data: Any) -> None:
    """So many events of as many messages, to `0@example.net` and so on, in a few transactions."""
    for start in range(0, count, 500):
        events = []
        for number in range(start, min(start + 500, count)):
            bench.id += 1
            tenant = f"t{number % tenants}" if tenants > 1 else "default"
            to = f"{number}@example.net"
            events.append(Event(bench.clock.now, "recipient.delivered", bench.id, 1, to, tenant, data, "transactional"))
        async with bench.pool.acquire() as connection, connection.transaction():
            await EventStore(bench.pool).append(connection, events)


async def test_many_endpoints_that_are_behind_share_a_reading_of_the_events(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.crash()
    for number in range(40):
        await bench.add(receiver.url(f"/{number}"), tenant=f"t{number}")
        await fill(bench, 50, 40)
    looked_at = 0
    after = EventStore.after

    async def counted(self: EventStore, *args: Any, **kwargs: Any) -> Any:
        nonlocal looked_at
        page = await after(self, *args, **kwargs)
        looked_at += kwargs["limit"] if page.more else 0
        return page

    monkeypatch.setattr(EventStore, "after", counted)
    bench.start()
    # endpoint `number` gets all that came after it: 40 rounds of one or two for each
    expected = sum((50 // 40 + (number < 50 % 40)) * (40 - number) for number in range(40))
    await receiver.until(lambda: len(receiver.taken) == expected, 60)
    turn = bench.teller._turn
    assert turn is not None
    await bench.until(lambda: all(endpoint.in_step for endpoint in turn._endpoints.values()))
    assert len({(taken.path, taken.key) for taken in receiver.taken}) == expected
    assert looked_at <= 4 * 2_000


async def test_an_endpoint_that_rejects_some_events_gets_all_others_and_is_not_disabled(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.feedback.webhooks.window.MOST_PENDING", 20)
    webhook = await bench.add(receiver.url())

    async def some(request: web.Request) -> web.Response:
        number = int((await request.json())["data"]["to"].partition("@")[0])
        return web.Response(status=422 if number % 5 == 0 else 200)

    receiver.answer = some
    await fill(bench, 500)
    await receiver.until(lambda: len(receiver.taken) == 400, 60)
    assert await bench.desk.pending(webhook.id) <= 24
    async with asyncio.timeout(60):  # it is recorded a little later
        while len(await bench.desk.log(webhook.id, before=1 << 62, outcome="dead", limit=500)) < 70:
            await asyncio.sleep(0.05)

    for _ in range(50):
        bench.clock.advance(hours=3)
        await bench.look(webhook)
        await asyncio.sleep(0.02)
    await fill(bench, 10)
    await receiver.until(lambda: len(receiver.taken) == 408)
    assert (await bench.look(webhook)).disabled_at is None


def test_what_is_rejected_has_five_attempts_over_five_hours() -> None:
    now: datetime = NOW
    waits: list[timedelta] = []
    while (due := schedule.next_attempt(len(waits) + 1, now, Outcome(422), 0.0)) is not None:
        waits.append(due - now)
        now = due
    assert len(waits) == 4
    assert timedelta(hours=5) < sum(waits, timedelta()) < timedelta(hours=6)
    assert schedule.most_attempts(Outcome(404)) == 5
    assert schedule.most_attempts(Outcome(500)) == 10


def test_what_fails_again_is_no_outage() -> None:
    health = schedule.Health()
    for _ in range(100):
        health.failed(NOW, Outcome(500), new=False)
    assert not health.down
    assert health.failing_since is None
    for _ in range(schedule.DOWN_AFTER):
        health.failed(NOW, Outcome(500), new=True)
    assert health.down
    assert not health.hopeless(NOW + timedelta(days=4.9))
    assert health.hopeless(NOW + timedelta(days=5))


async def test_one_event_that_never_works_does_not_hide_that_the_endpoint_is_back(
    bench: Bench, receiver: Receiver
) -> None:
    webhook = await bench.add(receiver.url())
    receiver.answer = 500
    await fill(bench, 30)
    await bench.logged(webhook, schedule.DOWN_AFTER)

    async def all_but_one(request: web.Request) -> web.Response:
        return web.Response(status=500 if "10@example.net" in await request.text() else 200)

    receiver.answer = all_but_one
    for _ in range(20):
        bench.clock.advance(minutes=6)
        await bench.look(webhook)
        await asyncio.sleep(0.05)
    await receiver.until(lambda: len({taken.key for taken in receiver.taken}) == 29)


async def test_nobody_is_skipped_whose_position_is_behind_all_events_there_will_be(
    bench: Bench, receiver: Receiver
) -> None:
    await bench.crash()
    webhook = await bench.add(receiver.url("/new"))
    await bench.add(receiver.url("/old"))
    await bench.pool.execute("UPDATE webhooks SET txid = txid + 5000 WHERE id = $1", webhook.id)
    bench.start()
    await bench.until(lambda: bench.teller._turn is not None and len(bench.teller._turn._endpoints) == 2)
    for _ in range(5):
        await bench.happen("message.accepted")
    await receiver.until(lambda: len(receiver.taken) == 10)


async def test_a_dump_stops_neither_the_start_nor_the_record(
    bench: Bench, receiver: Receiver, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.crash()
    await bench.pool.execute("TRUNCATE webhook_log")
    webhook = await bench.add(receiver.url())
    dump = await asyncpg.connect(database)
    transaction = dump.transaction(isolation="repeatable_read", readonly=True)
    await transaction.start()
    await dump.execute("LOCK TABLE webhook_log, webhook_log_rest, webhooks, webhook_pending IN ACCESS SHARE MODE")
    begun = time.monotonic()
    bench.start()
    await bench.happen("message.accepted")
    await bench.logged(webhook, 1)
    assert time.monotonic() - begun < 5
    turn = bench.teller._turn
    assert turn is not None
    with pytest.raises(asyncpg.LockNotAvailableError):
        await turn._tidy(tries=1)
    await transaction.rollback()
    await dump.close()
    monkeypatch.setattr(records, "TRY_AGAIN", 0.1)
    await turn._tidy()
    assert await bench.pool.fetchval("SELECT count(*) FROM webhook_log_rest") == 0
    assert len(await bench.log(webhook)) == 1


async def test_a_locked_log_does_not_hold_up_the_stop(bench: Bench, receiver: Receiver, database: str) -> None:
    await bench.add(receiver.url())
    await bench.happen("message.accepted")
    await receiver.until(lambda: len(receiver.taken) == 1)
    other = await asyncpg.connect(database)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("LOCK TABLE webhook_log IN ACCESS EXCLUSIVE MODE")
    await bench.happen("message.accepted")
    await receiver.until(lambda: len(receiver.taken) == 2)
    async with asyncio.timeout(60):
        await bench.stop()
    await transaction.rollback()
    await other.close()


async def test_endpoints_that_hang_hold_little_in_memory(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MOST_ITEMS", 1_000)
    forever = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        if request.path == "/well":
            return web.Response()
        await forever.wait()
        return web.Response()

    receiver.answer = hang
    await bench.crash()
    for number in range(20):
        await bench.add(receiver.url(f"/{number}"), batch_events=500)
    await bench.add(receiver.url("/well"))
    await fill(bench, 2_000, text="x" * 300)
    bench.start()
    await receiver.until(lambda: len([taken for taken in receiver.taken if taken.path == "/well"]) == 2_000, 60)
    turn = bench.teller._turn
    assert turn is not None
    held = sum(len(endpoint.window.main.entries) for endpoint in turn._endpoints.values())
    assert held == turn._budget.items <= 1_000
    forever.set()


async def test_an_endpoint_that_is_down_holds_one_event(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 500
    webhook = await bench.add(receiver.url())
    await fill(bench, 200)
    turn = bench.teller._turn
    assert turn is not None
    await bench.until(lambda: webhook.id in turn._endpoints and turn._endpoints[webhook.id].window.health.down)
    await bench.until(lambda: turn._budget.items == 1)


@pytest.mark.parametrize(
    "text",
    ["Mon, 01 Jan 99999999999999 00:00:00 GMT", "Mon, 1 Jan 0001 00:00:00 +2359", "Mon, 1 Jan 2026 00:00:00 +99999999"],
)
def test_dates_that_nobody_can_reckon_with_ask_for_nothing(text: str) -> None:
    assert schedule.retry_after(text, NOW) == 0.0


async def test_a_replay_is_recorded_as_it_goes(bench: Bench, receiver: Receiver) -> None:
    webhook = await bench.add(receiver.url())
    since = bench.clock.now
    await fill(bench, 1_000)
    await receiver.until(lambda: len(receiver.taken) == 1_000, 60)
    halfway = asyncio.Event()

    async def to_the_half(request: web.Request) -> web.Response:
        if len(receiver.taken) >= 1_500:
            await halfway.wait()
        return web.Response()

    receiver.answer = to_the_half
    bench.clock.advance(minutes=1)
    replay = await bench.desk.start_replay(
        webhook.id, since=since, until=None, types=(), tenant="default", actor="test"
    )
    assert replay is not None
    await bench.look(webhook)

    async def told() -> bool:
        found = await bench.desk.replay(webhook.id, replay.id)
        return found is not None and found.told >= 490

    await bench.until(told)
    halfway.set()


async def test_a_tenant_changes_its_endpoints_sixty_times_a_minute(bench: Bench, receiver: Receiver) -> None:
    webhook = await bench.add(receiver.url())
    for number in range(MOST_CHANGES):
        await bench.desk.change(webhook.id, Wanted(description=str(number)), tenant="default", actor="test")
    with pytest.raises(Refused) as refused:
        await bench.desk.change(webhook.id, Wanted(description="more"), tenant="default", actor="test")
    assert refused.value.http == 429
    bench.clock.advance(minutes=1)
    assert await bench.desk.change(webhook.id, Wanted(description="later"), tenant="default", actor="test")


@pytest.mark.parametrize("year", [1, 9999])
@pytest.mark.parametrize("field", ["since", "until"])
async def test_a_replay_of_a_year_that_was_not_is_refused(
    bench: Bench, receiver: Receiver, year: int, field: str
) -> None:
    webhook = await bench.add(receiver.url())
    times = {"since": bench.clock.now, "until": None, field: datetime(year, 1, 1, tzinfo=UTC)}
    with pytest.raises(Refused) as refused:
        await bench.desk.start_replay(webhook.id, **times, types=(), tenant="default", actor="test")  # type: ignore[arg-type]
    assert (refused.value.http, refused.value.field) == (422, field)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://inside.example/", True),
        ("http://inside.example./", True),
        ("http://inside.example:8080/", True),
        ("http://inside.example:25/", False),
        ("http://inside.example../", False),
        ("http://narrow.example:25/", True),
        ("http://narrow.example:8080/", False),
        ("http://[::1]:99/", True),
        ("http://[::1]/", False),
        ("https://127.0.0.1./", False),
        ("https://a..b/", False),
    ],
)
def test_private_hosts_are_allowed_with_their_ports_only(url: str, good: bool) -> None:
    entries = ("inside.example", parse_host("narrow.example:25"), parse_host("[::1]:99"))
    resolver: Resolver = None  # type: ignore[assignment]  # nothing is looked up
    poster = Poster(resolver, private_hosts=entries)
    if good:
        assert not str(poster.check(url).host).endswith(".")
    else:
        with pytest.raises(ValueError, match=r".+"):
            poster.check(url)


@pytest.mark.parametrize("text", ["inside.example:0", "inside.example:99999", "::1:", ":80", "[::1]:x", "[1.2.3.4]:80"])
def test_an_entry_with_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_host(text)


def test_an_entry_may_be_an_address_with_a_port() -> None:
    assert parse_host("10.1.2.3:8080") == Host("10.1.2.3:8080")
