"""Telling endpoints: real HTTPS on loopback, the published verifier, a real database; only the date is ours."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook as Verifier

from mailerd import config
from mailerd.config import Duration, Hostname
from mailerd.db import Pool, connect_pool
from mailerd.delivery.https import Poster
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.tls_client import web_context
from mailerd.events import Event, EventStore
from mailerd.feedback.webhooks import schedule
from mailerd.feedback.webhooks.desk import Wanted, WebhookDesk
from mailerd.feedback.webhooks.signing import format_secret
from mailerd.feedback.webhooks.teller import Teller
from mailerd.feedback.webhooks.values import Webhook
from mailerd.queue.ids import first_id_at
from tests.support import authority
from tests.support.dns_server import DnsServer
from tests.support.live import free_port
from tests.support.relay import Clock
from tests.support.webhook_receiver import Receiver

ROOT = authority.root()
SERVER = authority.issue(ROOT, "hooks.example", "other.example")
HOUR = 3600.0


class Bench:
    """A teller that runs, the desk that steers it, and events to tell."""

    def __init__(self, pool: Pool, url: str, poster: Poster, clock: Clock, settings: config.Webhooks) -> None:
        self.pool, self.url, self.poster, self.clock = pool, url, poster, clock
        self.settings = settings
        self.desk = WebhookDesk(pool, lambda: poster, clock=clock)
        self.teller = self.new_teller()
        self.id = first_id_at(int(clock.now.timestamp() * 1000))
        self._running: list[tuple[Teller, asyncio.Task[None]]] = []

    def new_teller(self) -> Teller:
        return Teller(self.url, self.pool, self.settings, self.poster, clock=self.clock, chance=lambda: 0.0)

    def start(self) -> None:
        self._running.append((self.teller, asyncio.create_task(self.teller.run())))

    async def crash(self) -> None:
        """As kill -9: nothing more is recorded."""
        for teller, task in self._running:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await teller._locks.close()
        self._running.clear()
        self.teller = self.new_teller()

    async def stop(self) -> None:
        for teller, task in self._running:
            await teller.stop()
            await task
        self._running.clear()

    async def add(self, url: str, *events: str, tenant: str = "default", **wanted: Any) -> Webhook:
        made = Wanted(url=url, events=events or ("*",), **wanted)
        webhook = await self.desk.add(made, tenant=tenant, actor="test")
        self.teller.heard(str(webhook.id))
        return webhook

    async def happen(
        self,
        *types: str,
        message_id: int | None = None,
        tenant: str = "default",
        stream: str = "transactional",
        to: str = "ann@example.net",
        **data: Any,
    ) -> int:
        """Append events of one message in a transaction; its id."""
        if message_id is None:
            self.id += 1
            message_id = self.id
        at = self.clock.now
        events = [Event(at, type_, message_id, 1, to, tenant, data, stream) for type_ in types]
        async with self.pool.acquire() as connection, connection.transaction():
            await EventStore(self.pool).append(connection, events)
        return message_id

    async def look(self, webhook: Webhook) -> Webhook:
        """As the database has it, after the teller looked at what is due by the date."""
        self.teller.heard(str(webhook.id))
        found = await self.desk.get(webhook.id, webhook.tenant)
        assert found is not None
        return found

    async def log(self, webhook: Webhook) -> list[tuple[int, str, int]]:
        """Number, outcome and status of the attempts, the oldest first."""
        attempts = await self.desk.log(webhook.id, before=1 << 62, outcome=None, limit=100_000)
        return [(one.number, one.result.value, one.outcome.status) for one in reversed(attempts)]

    async def until(self, done: Callable[[], Any], seconds: float = 60.0) -> None:
        """Wait until what `done` returns, or its awaited result, is true."""
        async with asyncio.timeout(seconds):
            while True:
                found = done()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.02)

    async def logged(self, webhook: Webhook, count: int) -> list[tuple[int, str, int]]:
        """The log, once it has so many lines."""

        async def enough() -> bool:
            return len(await self.log(webhook)) >= count

        await self.until(enough)
        return await self.log(webhook)

    async def recorded(self, webhook: Webhook) -> None:
        """Wait until the endpoint has come to the end of the events."""

        async def at_end() -> bool:
            found = await self.desk.get(webhook.id, webhook.tenant)
            last = await self.pool.fetchrow("SELECT txid, seq FROM events ORDER BY txid DESC, seq DESC LIMIT 1")
            return found is not None and tuple(found.position) >= tuple(last or (0, 0))

        await self.until(at_end, 60)


def context() -> ssl.SSLContext:
    return SERVER.context()


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        for name in ("hooks.example", "other.example"):
            server.add(name, "A", "127.0.0.1")
        yield server


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver(context()) as server:
        yield server


@asynccontextmanager
async def bench_of(database: str, dns: DnsServer, tmp_path: Path, **settings: Any) -> AsyncIterator[Bench]:
    resolver = Resolver(config.Resolver(nameservers=(dns.address,), timeout=Duration(2), min_ttl=Duration(0)))
    values: dict[str, Any] = {
        "allow_private": (Hostname("hooks.example"), Hostname("other.example")),
        "timeout": Duration(1),
    }
    webhooks = config.Webhooks(**(values | settings))
    poster = Poster(resolver, private_hosts=webhooks.allow_private, tls=web_context(ROOT.save(tmp_path)))
    pool = await connect_pool(database, min=1, max=4)
    bench = Bench(pool, database, poster, Clock(), webhooks)
    bench.start()
    try:
        yield bench
    finally:
        await bench.crash()
        await poster.close()
        await resolver.close()
        await pool.close()


@pytest.fixture
async def bench(database: str, dns: DnsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_of(database, dns, tmp_path) as made:
        yield made


async def test_an_endpoint_where_nobody_listens_is_told_in_one_sentence(bench: Bench) -> None:
    webhook = await bench.add(f"http://hooks.example:{free_port()}/")
    outcome = await bench.desk.test(webhook.id, webhook.tenant)
    assert outcome is not None
    assert (outcome.status, outcome.error) == (0, "cannot connect: connection refused")


async def test_an_endpoint_is_told_what_it_wants_and_the_published_verifier_believes_it(
    bench: Bench, receiver: Receiver
) -> None:
    webhook = await bench.add(receiver.url("/a"), "email.bounced", "email.delivered")
    receiver.secrets["/a"] = format_secret(webhook.secret)
    message = await bench.happen("message.accepted", subject="Hello", sender="me@here.example")
    await bench.happen("recipient.delivered", message_id=message, code=250)
    await bench.happen("recipient.bounced", kind="invalid_recipient", code=550, text="no such user")
    await receiver.until(lambda: len(receiver.taken) == 2)

    first, second = sorted(receiver.taken, key=lambda taken: taken.key)
    assert set(first.json) == {"id", "type", "timestamp", "created_at", "data"}
    assert first.json["created_at"] == first.json["timestamp"]
    assert (first.json["type"], second.json["type"]) == ("email.delivered", "email.bounced")
    assert first.json["data"]["subject"] == "Hello"
    assert second.json["data"]["outcome"]["class"] == "invalid_recipient"
    assert first.key.startswith("evt_")
    assert first.headers["content-type"] == "application/json"
    assert await bench.logged(webhook, 2) == [(1, "delivered", 200)] * 2


async def test_other_tenants_other_streams_and_what_happened_before_are_not_told(
    bench: Bench, receiver: Receiver
) -> None:
    await bench.happen("recipient.delivered", to="before@example.net")
    await bench.add(receiver.url(), "email.*", streams=("marketing",))
    await bench.happen("recipient.delivered", tenant="other", stream="marketing", to="other@example.net")
    await bench.happen("recipient.delivered", stream="transactional", to="stream@example.net")
    await bench.happen("recipient.held", stream="marketing", to="inside@example.net")
    await bench.happen("recipient.delivered", stream="marketing", to="right@example.net")
    await receiver.until(lambda: bool(receiver.taken))

    assert [event["data"]["to"] for event in receiver.events] == ["right@example.net"]


async def test_a_request_is_tried_ten_times_over_75_hours_with_one_id_and_then_given_up(
    bench: Bench, receiver: Receiver
) -> None:
    receiver.answer = 500
    webhook = await bench.add(receiver.url())
    await bench.happen("recipient.delivered")
    begun = bench.clock.now
    for number, delay in enumerate(schedule.DELAYS, 1):
        bench.clock.now += delay
        await bench.look(webhook)
        await bench.logged(webhook, number)
    taken = {request.key for request in receiver.requests}

    log = await bench.log(webhook)
    assert log == [(number, "failed", 500) for number in range(1, 10)] + [(10, "dead", 500)]
    assert len(taken) == 1
    assert timedelta(hours=75) < bench.clock.now - begun < timedelta(hours=76)
    assert await bench.pool.fetchval("SELECT count(*) FROM webhook_pending") == 0
    stamps = [int(request.headers["webhook-timestamp"]) for request in receiver.requests]
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] > 75 * HOUR


async def test_between_its_attempts_nothing_is_tried(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 500
    webhook = await bench.add(receiver.url())
    await bench.happen("recipient.delivered")
    await bench.logged(webhook, 1)
    bench.clock.advance(seconds=4.9)
    await bench.look(webhook)
    await bench.happen("recipient.bounced")
    await bench.logged(webhook, 2)
    assert len({request.key for request in receiver.requests}) == 2


async def test_what_fails_holds_back_later_events_of_the_same_message_and_of_no_other(
    bench: Bench, receiver: Receiver
) -> None:
    poison = await bench.happen("recipient.held")
    webhook = await bench.add(receiver.url())

    async def refuse(request: web.Request) -> web.Response:
        data = (await request.json())["data"]
        return web.Response(status=500 if data["to"] == "bad@example.net" else 204)

    receiver.answer = refuse
    await bench.happen("recipient.deferred", message_id=poison, to="bad@example.net")
    await bench.logged(webhook, 1)
    await bench.happen("recipient.delivered", message_id=poison, to="good@example.net")
    others = [await bench.happen("recipient.delivered", to=f"{n}@example.net") for n in range(20)]
    await receiver.until(lambda: len(receiver.taken) == len(others))
    assert "good@example.net" not in {event["data"]["to"] for event in receiver.events}

    receiver.answer = 200
    bench.clock.advance(seconds=5)
    await bench.look(webhook)
    await receiver.until(lambda: len(receiver.taken) == len(others) + 2)
    assert [event["data"]["to"] for event in receiver.events][-2:] == ["bad@example.net", "good@example.net"]


async def test_events_of_each_message_come_in_their_order(bench: Bench, receiver: Receiver) -> None:
    types = ("message.accepted", "recipient.deferred", "recipient.delivered", "recipient.complained")
    await bench.add(receiver.url())
    failing = 0

    async def sometimes(request: web.Request) -> web.Response:
        nonlocal failing
        failing += 1
        return web.Response(status=500 if failing % 7 == 0 else 200)

    receiver.answer = sometimes
    messages = [await bench.happen(*types) for _ in range(30)]
    receiver_seen: Callable[[], int] = lambda: len({taken.key for taken in receiver.taken})  # noqa: E731
    for _ in range(60):
        bench.clock.advance(minutes=10)
        for webhook in await bench.desk.all("default"):
            await bench.look(webhook)
        await asyncio.sleep(0.02)
        if receiver_seen() == len(messages) * len(types):
            break
    await receiver.until(lambda: receiver_seen() == len(messages) * len(types))

    by_message: dict[str, list[str]] = {}
    for event in receiver.events:
        by_message.setdefault(event["data"]["email_id"], []).append(event["type"])
    wanted = ["email.queued", "email.delivery_delayed", "email.delivered", "email.complained"]
    assert list(by_message.values()) == [wanted] * 30


async def test_an_endpoint_that_is_down_for_hours_gets_everything_in_order_when_it_is_back(
    bench: Bench, receiver: Receiver
) -> None:
    webhook = await bench.add(receiver.url())
    await receiver.go_down()
    messages = [await bench.happen("message.accepted", "recipient.delivered") for _ in range(300)]
    await bench.until(lambda: bench.teller._turn is not None)
    for _ in range(40):
        bench.clock.advance(minutes=6)
        await bench.look(webhook)
        await asyncio.sleep(0.03)
    pending = await bench.pool.fetchval("SELECT count(*) FROM webhook_pending")
    attempts = len(await bench.log(webhook))
    assert 1 <= pending < 40
    assert attempts < 200

    await receiver.come_back()
    bench.clock.advance(minutes=6)
    await bench.look(webhook)
    await receiver.until(lambda: len({taken.key for taken in receiver.taken}) == 600, 60)
    by_message: dict[str, list[str]] = {}
    for event in receiver.events:
        by_message.setdefault(event["data"]["email_id"], []).append(event["type"])
    assert len(by_message) == len(messages)
    assert set(map(tuple, by_message.values())) == {("email.queued", "email.delivered")}


async def test_after_a_crash_it_goes_on_where_its_record_says(bench: Bench, receiver: Receiver) -> None:
    webhook = await bench.add(receiver.url())
    for _ in range(20):
        await bench.happen("message.accepted", "recipient.delivered")
    await receiver.until(lambda: len(receiver.taken) > 5)
    await bench.crash()
    await bench.happen("message.accepted", "recipient.delivered")
    bench.start()
    await receiver.until(lambda: len({taken.key for taken in receiver.taken}) == 42)

    await bench.recorded(webhook)
    await bench.stop()
    bench.teller = bench.new_teller()
    count = len(receiver.requests)
    bench.start()
    await bench.happen("recipient.delivered", to="last@example.net")
    await receiver.until(lambda: len(receiver.requests) > count)
    assert [request.json["data"]["to"] for request in receiver.requests[count:]] == ["last@example.net"]


async def test_410_disables_the_endpoint_and_tells_the_others(bench: Bench, receiver: Receiver) -> None:
    other = await bench.add(receiver.url("/other", host="other.example"), "webhook.disabled")
    webhook = await bench.add(receiver.url("/gone"), "email.*")
    receiver.secrets["/other"] = format_secret(other.secret)

    async def gone(request: web.Request) -> web.Response:
        return web.Response(status=410 if request.path == "/gone" else 200)

    receiver.answer = gone
    await bench.happen("recipient.delivered")
    await receiver.until(lambda: bool(receiver.taken))
    assert receiver.events[0]["type"] == "webhook.disabled"
    assert receiver.events[0]["data"]["webhook"]["id"] == webhook.outside_id
    disabled = await bench.look(webhook)
    assert disabled.disabled_at is not None
    assert "410" in disabled.disabled_why

    receiver.answer = 200
    await bench.happen("recipient.bounced", to="meanwhile@example.net")
    await bench.desk.change(webhook.id, Wanted(enabled=True), tenant="default", actor="test")
    await bench.look(webhook)
    bench.clock.advance(seconds=6)
    await bench.look(webhook)
    await receiver.until(lambda: len(receiver.taken) == 3)
    assert {event["type"] for event in receiver.events[1:]} == {"email.delivered", "email.bounced"}


async def test_five_days_of_failures_disable_it_and_keep_its_place(bench: Bench, receiver: Receiver) -> None:
    receiver.answer = 503
    webhook = await bench.add(receiver.url(), "email.*")
    for _ in range(12):
        await bench.happen("recipient.delivered")
    await bench.logged(webhook, 1)
    for _ in range(45):
        bench.clock.advance(hours=3)
        await bench.look(webhook)
        await asyncio.sleep(0.05)
    await bench.until(lambda: bench.pool.fetchval("SELECT true FROM webhooks WHERE disabled_at IS NOT NULL"))

    receiver.answer = 200
    await bench.desk.change(webhook.id, Wanted(enabled=True), tenant="default", actor="test")
    await bench.look(webhook)
    bench.clock.advance(days=1)
    await bench.look(webhook)
    dead = [line for line in await bench.log(webhook) if line[1] == "dead"]
    await receiver.until(lambda: len(receiver.taken) == 12 - len(dead))


@pytest.mark.parametrize(("status", "least"), [(429, 40), (503, 40), (500, 0)])
async def test_retry_after_is_honoured_for_all_requests(
    bench: Bench, receiver: Receiver, status: int, least: int
) -> None:
    webhook = await bench.add(receiver.url())
    receiver.answer, receiver.headers = status, {"Retry-After": "40"} if least else {}
    await bench.happen("recipient.delivered")
    await bench.logged(webhook, 1)
    receiver.answer = 200
    bench.clock.advance(seconds=6)
    await bench.happen("recipient.delivered")
    await bench.look(webhook)
    if least:
        await asyncio.sleep(0.6)  # that nothing comes cannot be waited for
        assert not receiver.taken
        bench.clock.advance(seconds=least)
        await bench.look(webhook)
    await receiver.until(lambda: len(receiver.taken) == 2)


async def test_a_batch_is_an_array_and_what_it_holds_comes_once(bench: Bench, receiver: Receiver) -> None:
    webhook = await bench.add(receiver.url("/b"), "email.*", batch_events=50, batch_wait=200)
    receiver.secrets["/b"] = format_secret(webhook.secret)
    for _ in range(60):
        await bench.happen("message.accepted", "recipient.delivered")
    await asyncio.sleep(0.3)
    bench.clock.advance(seconds=1)
    await bench.look(webhook)
    await receiver.until(lambda: len(receiver.events) == 120)

    assert len(receiver.taken) <= 6
    assert all(taken.key.startswith("bat_") and len(taken.json) <= 50 for taken in receiver.taken)
    assert set(receiver.events[0]) == {"id", "type", "timestamp", "created_at", "data"}
    assert len({event["id"] for event in receiver.events}) == 120


async def test_two_secrets_sign_for_a_day_after_rotation(bench: Bench, receiver: Receiver) -> None:
    old = await bench.add(receiver.url("/a"))
    new = await bench.desk.rotate(old.id, tenant="default", actor="test")
    assert new is not None
    await bench.look(old)
    await bench.happen("recipient.delivered")
    await receiver.until(lambda: len(receiver.requests) == 1)
    request = receiver.requests[0]
    for secret in (old.secret, new.secret):
        Verifier(format_secret(secret)).verify(request.body, request.headers)

    bench.clock.advance(hours=25)
    await bench.happen("recipient.delivered")
    await receiver.until(lambda: len(receiver.requests) == 2)
    assert receiver.requests[1].headers["webhook-signature"].count("v1,") == 1


async def test_what_was_given_up_is_told_again_by_hand_and_a_range_by_a_replay(
    bench: Bench, receiver: Receiver
) -> None:
    webhook = await bench.add(receiver.url())
    since = bench.clock.now
    for n in range(50):
        await bench.happen("message.accepted", "recipient.delivered", to=f"{n}@example.net")
    await receiver.until(lambda: len(receiver.taken) == 100)
    await bench.logged(webhook, 100)
    last = (await bench.desk.log(webhook.id, before=1 << 62, outcome=None, limit=1))[0]
    await bench.desk.retry(webhook.id, last.id, tenant="default", actor="test")
    await bench.look(webhook)
    await receiver.until(lambda: len(receiver.taken) == 101)
    assert receiver.taken[-1].key == last.told.key

    bench.clock.advance(minutes=1)
    replay = await bench.desk.start_replay(
        webhook.id, since=since, until=None, types=("email.delivered",), tenant="default", actor="test"
    )
    assert replay is not None
    await bench.look(webhook)
    await receiver.until(lambda: len(receiver.taken) == 151)

    async def finished() -> bool:
        found = await bench.desk.replay(webhook.id, replay.id)
        return found is not None and found.finished_at is not None and found.told == 50

    await bench.until(finished)
    assert {event["type"] for event in receiver.events[101:]} == {"email.delivered"}


async def test_a_hanging_endpoint_has_few_connections_and_stops_nobody_else(bench: Bench, receiver: Receiver) -> None:
    forever = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    async with Receiver(context()) as hanging:
        hanging.answer = hang
        slow = await bench.add(hanging.url())
        await bench.add(receiver.url())
        for _ in range(100):
            await bench.happen("message.accepted", "recipient.delivered")
        await receiver.until(lambda: len(receiver.taken) == 200)
        await bench.logged(slow, 8)
        assert hanging.most_open == 4
        assert (
            "no answer within 1 s"
            in (await bench.desk.log(slow.id, before=1 << 62, outcome=None, limit=1))[0].outcome.error
        )
        forever.set()


async def test_a_redirect_to_the_metadata_address_is_a_failure_that_nobody_follows(
    bench: Bench, receiver: Receiver
) -> None:
    webhook = await bench.add(receiver.url())
    receiver.answer, receiver.headers = 302, {"Location": "http://169.254.169.254/latest/meta-data/"}
    await bench.happen("recipient.delivered")
    assert await bench.logged(webhook, 1) == [(1, "failed", 302)]
    assert len(receiver.requests) == 1


async def test_an_endless_answer_is_cut_off_and_its_status_counts(bench: Bench, receiver: Receiver) -> None:
    webhook = await bench.add(receiver.url())
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Length": str(10 * 1024**3)})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
                sent += 65536
        except ConnectionError:
            return response

    receiver.answer = flood
    await bench.happen("recipient.delivered")
    assert await bench.logged(webhook, 1) == [(1, "delivered", 200)]
    assert sent < 20_000_000
    answer = (await bench.desk.log(webhook.id, before=1 << 62, outcome=None, limit=1))[0].outcome.answer
    assert answer == ""  # it is a host inside


async def test_garbage_instead_of_tls_is_a_failure(bench: Bench) -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(os.urandom(5000))
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    webhook = await bench.add(f"https://hooks.example:{port}/")
    await bench.happen("recipient.delivered")
    assert await bench.logged(webhook, 1) == [(1, "failed", 0)]
    server.close()


async def test_pending_rows_are_bounded_and_the_rest_waits_behind_the_position(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailerd.feedback.webhooks.window.MOST_PENDING", 20)
    webhook = await bench.add(receiver.url())
    turn = 0

    async def every_second(request: web.Request) -> web.Response:
        nonlocal turn
        turn += 1
        return web.Response(status=500 if turn % 2 else 200)

    receiver.answer = every_second
    for _ in range(200):
        await bench.happen("recipient.delivered")
    await bench.until(lambda: bench.pool.fetchval("SELECT count(*) >= 20 FROM webhook_pending"))
    await asyncio.sleep(0.5)  # that no more come cannot be waited for
    assert await bench.pool.fetchval("SELECT count(*) FROM webhook_pending") <= 24

    receiver.answer = 200
    bench.clock.advance(seconds=6)
    await bench.look(webhook)
    await receiver.until(lambda: len({taken.key for taken in receiver.taken}) == 200)


async def test_many_endpoints_share_one_reading_of_the_events(
    bench: Bench, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        await bench.add(receiver.url(f"/{number}"), "email.bounced")
    await bench.until(lambda: bench.teller._turn is not None and len(bench.teller._turn._feed._members) == 30)
    reads = 0
    after = EventStore.after

    async def counted(self: EventStore, *args: Any, **kwargs: Any) -> Any:
        nonlocal reads
        page = await after(self, *args, **kwargs)
        reads += bool(page.events)
        return page

    monkeypatch.setattr(EventStore, "after", counted)
    for _ in range(50):
        await bench.happen("recipient.delivered")
    await bench.happen("recipient.bounced")
    await receiver.until(lambda: len(receiver.taken) == 30)
    assert reads == 1


async def test_the_log_is_kept_in_days_that_are_dropped(bench: Bench, receiver: Receiver) -> None:
    webhook = await bench.add(receiver.url())
    await bench.happen("recipient.delivered")
    await bench.logged(webhook, 1)
    turn = bench.teller._turn
    assert turn is not None
    names = "SELECT relname FROM pg_class WHERE relname ~ '^webhook_log_2' AND relkind = 'r' ORDER BY 1"
    today = f"webhook_log_{datetime.now(UTC):%Y_%m_%d}"
    assert today in [row["relname"] for row in await bench.pool.fetch(names)]
    bench.clock.advance(days=9)
    await turn._tidy()
    assert today not in [row["relname"] for row in await bench.pool.fetch(names)]
    assert await bench.log(webhook) == []
