"""What may leave on a path, what binds it and where that is set; nothing waits longer than it has to."""

import heapq
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mailerd.config import Config, Delivery
from mailerd.config.shaping import Limits, parse_shaping
from mailerd.db import Pool, connect_pool
from mailerd.delivery.attempt import Job
from mailerd.delivery.destination import PATIENCE
from mailerd.delivery.effects import Effect, Effects, EffectStore
from mailerd.delivery.grants import Grants, GrantStore
from mailerd.delivery.ledger import Ledger
from mailerd.delivery.paths import Wait, of_meter
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.traffic import MOST_POSTPONED, Traffic
from mailerd.delivery.transaction import Result
from mailerd.delivery.upkeep import OF_LIMITS
from mailerd.delivery.verdict import classify
from mailerd.delivery.warmup_budgets import WarmUps, WarmUpStore
from mailerd.queue.mail import Message, Queue, Recipient
from mailerd.wire.smtp import Reply

NOW = datetime(2026, 11, 1, 9, tzinfo=UTC)
SHAPING = """\
providers:
  big:
    match: {mx: [big.example]}
    per_path: {connections: 2, messages_per_connection: 7}
    per_source:
      connections: 3
    per_site:
      message_rate: 1/s
  open: {match: {mx: [open.example]}, per_path: {connections: 4, connection_rate: 6/min}}
  slow: {match: {mx: [slow.example]}, per_path: {message_rate: 6/min}}
  both: {match: {mx: [both.example]}, total: {connections: 3, message_rate: 10/s}}
domains: {corp.example: {message_rate: 10/min}}
tenants: {acme: {message_rate: 60/h}}
campaigns:
  spring: {byte_rate: 1KB/s}
credentials: {shop: {message_rate: 1/min}}
"""


# Each limit that there is, in each place.
ALL_LIMITS = """\
providers:
  other:
    match: {mx: [other.example]}
    per_path: {connections: 1, connection_rate: 6/min, message_rate: 6/h, byte_rate: 1KB/s}
    per_source: {connections: 4, connection_rate: 6/min, message_rate: 6/min, byte_rate: 1KB/s}
    per_site: {connections: 4, connection_rate: 6/min, message_rate: 6/min, byte_rate: 1KB/s}
    total: {connections: 4, connection_rate: 6/min, message_rate: 6/min, byte_rate: 1KB/s}
domains: {x.example: {message_rate: 1/min, byte_rate: 1KB/s}}
tenants: {t: {message_rate: 1/min, byte_rate: 1KB/s}}
campaigns: {spring: {message_rate: 1/min, byte_rate: 1KB/s}}
credentials: {c: {message_rate: 1/min, byte_rate: 1KB/s}}
"""


class World:
    """Traffic of one worker on a clock of its own."""

    def __init__(
        self,
        pool: Pool,
        directory: Path,
        slot: int = 0,
        slots: int = 1,
        *,
        shaping: str = SHAPING,
    ) -> None:
        self.seconds = 1_000.0
        self.ledger = Ledger(directory / "ledger", slot, slots, clock=lambda: self.seconds)
        self.effects = Effects(EffectStore(pool), self.now)
        self.brakes: list[Effect] = []
        self.grants = Grants(GrantStore(pool), self.ledger, "one", monotonic=lambda: self.seconds)
        config = Config(delivery=Delivery(control=shaping is not SHAPING))
        self.traffic = Traffic(
            config,
            RuleBook(parse_shaping({"f (old).yaml" if shaping is ALL_LIMITS else "f.yaml": shaping}), config.delivery),
            ledger=self.ledger,
            effects=self.effects,
            warmups=WarmUps(config, WarmUpStore(pool), self.now),
            grants=self.grants,
            clock=self.now,
            brake=self.brakes.append,
            monotonic=lambda: self.seconds,
        )

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds - 1_000)

    async def brake(self, kind: str, *, hours: float = 1.0, **which: Any) -> None:
        until = self.now() + timedelta(hours=hours)
        effect = Effect(0, kind, "", "", "", "", "", 0.0, "too fast", "f.yaml:99", self.now(), until)
        await self.effects.add(replace(effect, **which))


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=5)
    yield pool
    await pool.close()


@pytest.fixture
def world(pool: Pool, tmp_path: Path) -> Iterator[World]:
    world = World(pool, tmp_path)
    yield world
    world.ledger.close()


def job(domain: str = "x.example", *, tenant: str = "t", campaign: str = "", credential: str = "c") -> Job:
    message = Message(1, "", "marketing", "default", credential, tenant, 3_000, NOW, campaign=campaign)
    message.recipients = [Recipient(message, 1, f"u@{domain}", domain, NOW, NOW)]
    return Job(message, list(message.recipients))


def test_how_fast_mail_leaves_is_known_after_some_of_it_and_forgotten(world: World) -> None:
    """Queues are looked at the sooner again the less is known, and at four times the rate."""
    traffic, nothing = world.traffic, Wait(0.0, "1 message is before it")
    path = traffic.path("a", "mx.x.example", "")
    assert traffic.measure(path) == 0
    first = [traffic.postpone(path, nothing) for _ in range(3_000)]
    assert 0.2 < first[-1] < 0.4
    world.seconds += 0.1
    path.departed = 49
    assert traffic.measure(path) == 0
    path.departed = 50
    assert traffic.measure(path) == pytest.approx(500)
    world.seconds += 1
    path.departed = 1_500
    assert traffic.measure(path) == pytest.approx(1_000)
    later = [traffic.postpone(path, nothing) for _ in range(2_000)]
    assert later[-1] == pytest.approx(0.5, rel=0.01)
    world.seconds += 11
    path.departed = 1
    assert traffic.measure(path) == 0
    path.departed = 50
    world.seconds += 0.1
    assert traffic.measure(path) == pytest.approx(500)


def test_what_binds_is_named_with_its_file_and_line(world: World) -> None:
    traffic = world.traffic
    big = traffic.path("a", "mx.big.example", "big")
    held = [traffic.connect(big) for _ in range(2)]
    full = traffic.connect(big)
    assert isinstance(full, Wait)
    assert (full.seconds, full.why) == (0.0, "a to mx.big.example: connections (f.yaml:4)")
    second = traffic.path("a", "mx2.big.example", "big")
    assert not isinstance(traffic.connect(second), Wait)
    full = traffic.connect(second)
    assert isinstance(full, Wait)
    assert full.why == "a to all of big: connections (f.yaml:6)"
    for holds in held:
        assert not isinstance(holds, Wait)
        traffic.disconnect(holds)
    assert not isinstance(traffic.connect(big), Wait)

    assert traffic.admit(big, job()) is None
    wait = traffic.admit(big, job())
    assert wait is not None
    assert wait.why == "all sources to mx.big.example: message rate (f.yaml:8)"
    assert 0.9 < wait.seconds < 1.2
    assert not wait.alone


def test_a_worker_sees_that_another_has_fewer_connections_and_use_for_more(pool: Pool, tmp_path: Path) -> None:
    rich, poor = (World(pool, tmp_path, slot, 2) for slot in (0, 1))
    path, same = (world.traffic.path("a", "mx.x.example", "default") for world in (rich, poor))
    limit = path.limits.per_path.connections or 0
    held = [rich.traffic.connect(path) for _ in range(limit - 1)]
    assert not isinstance(poor.traffic.connect(same), Wait)
    assert not rich.traffic.uneven(path, 2)  # nobody has said that he has mail for more

    full = poor.traffic.connect(same)
    assert isinstance(full, Wait)
    poor.traffic.could_use_more(full)
    assert {of_meter(record.name) for record in poor.ledger.records()} - {None} == {("a", "mx.x.example")}
    assert rich.traffic.uneven(path, 2)
    assert not poor.traffic.uneven(same, 1)

    while rich.traffic.uneven(path, 2):
        given = held.pop()
        assert not isinstance(given, Wait)
        rich.traffic.disconnect(given)
        assert not isinstance(poor.traffic.connect(same), Wait)
    assert len(held) in (limit // 2, limit // 2 + 1)
    for world in (rich, poor):
        world.ledger.close()


def test_nobody_takes_his_own_wish_for_that_of_another(pool: Pool, tmp_path: Path) -> None:
    rich, poor = (World(pool, tmp_path, slot, 2) for slot in (0, 1))
    path, same = (world.traffic.path("a", "mx.x.example", "default") for world in (rich, poor))
    assert not isinstance(poor.traffic.connect(same), Wait)
    while not isinstance(full := rich.traffic.connect(path), Wait):
        pass
    rich.traffic.could_use_more(full)
    assert not rich.traffic.uneven(path, 1)
    for world in (rich, poor):
        world.ledger.close()


def test_how_many_connections_others_have_matters_for_as_long_as_they_have_mail(pool: Pool, tmp_path: Path) -> None:
    rich, poor = (World(pool, tmp_path, slot, 2) for slot in (0, 1))
    path, same = (world.traffic.path("a", "mx.x.example", "default") for world in (rich, poor))
    for _ in range((path.limits.per_path.connections or 0) - 1):
        rich.traffic.connect(path)
    poor.traffic.connect(same)
    full = poor.traffic.connect(same)
    assert isinstance(full, Wait)
    poor.traffic.could_use_more(full)
    rich.seconds += 1.5
    assert not rich.traffic.uneven(path, 2)
    for world in (rich, poor):
        world.ledger.close()


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ({"domain": "corp.example"}, "message rate of domain corp.example (f.yaml:12)"),
        ({"tenant": "acme"}, "message rate of tenant acme (f.yaml:13)"),
        ({"campaign": "spring"}, "byte rate of campaign spring (f.yaml:15)"),
        ({"credential": "shop"}, "message rate of credential shop (f.yaml:16)"),
    ],
)
def test_what_binds_only_some_mail_leaves_the_rest_of_the_path_alone(
    world: World, which: dict[str, str], why: str
) -> None:
    path = world.traffic.path("", "mx.other.example", "default")
    assert world.traffic.admit(path, job(**which)) is None
    wait = world.traffic.admit(path, job(**which))
    assert wait is not None
    assert (wait.why, wait.alone) == (why, True)
    assert world.traffic.admit(path, job()) is None


def test_what_is_refused_for_one_limit_uses_up_nothing_of_the_others(world: World) -> None:
    path = world.traffic.path("a", "mx.slow.example", "slow")
    assert world.traffic.admit(path, job(tenant="acme")) is None
    for _ in range(20):
        assert world.traffic.admit(path, job(tenant="other")) is not None  # the path is not free yet
    world.seconds += 11
    assert world.traffic.admit(path, job(tenant="acme")) is not None  # the tenant has to wait
    assert world.traffic.admit(path, job(tenant="other")) is None


async def test_brakes_hold_until_they_end(world: World) -> None:
    path = world.traffic.path("a", "mx.big.example", "big")
    await world.brake("pause", source="a", provider="big")
    for refused in (world.traffic.admit(path, job()), world.traffic.connect(path), world.traffic.wait_of(path)):
        assert isinstance(refused, Wait)
        assert refused.why == "effect 1: paused: too fast (f.yaml:99)"
        assert refused.seconds == pytest.approx(3_600)
    assert world.traffic.admit(world.traffic.path("b", "mx.big.example", "big"), job()) is None
    world.seconds += 3_601
    assert not isinstance(world.traffic.connect(path), Wait)
    assert world.traffic.admit(path, job()) is None


async def test_the_strictest_of_several_limits_and_brakes_holds(world: World) -> None:
    path = world.traffic.path("a", "mx.open.example", "open")
    await world.brake("connections", value=1)
    await world.brake("slow", value=0.5, site="mx.open.example")
    assert not isinstance(world.traffic.connect(path), Wait)
    full = world.traffic.connect(path)
    assert isinstance(full, Wait)
    assert "1 connections at most: too fast (f.yaml:99)" in full.why
    assert world.traffic.interval(path) == pytest.approx(2.0)
    assert world.traffic.admit(path, job()) is None
    wait = world.traffic.admit(path, job())
    assert wait is not None
    assert "slowed to 30 messages a minute" in wait.why


async def test_mail_that_waits_for_whatever_limit_is_found_by_its_reason_when_limits_are_others(
    pool: Pool, tmp_path: Path
) -> None:
    reply = Reply(421, ("4.7.0 too many messages",))
    causes = []
    for shaping in (ALL_LIMITS, "providers: {other: {match: {mx: [other.example]}, per_path: {connections: 1000}}}"):
        world = World(pool, tmp_path, shaping=shaping)
        for source in ("", "a"):
            path = world.traffic.path(source, "mx.other.example", "other")
            for _ in range(3):
                world.seconds += 10
                world.traffic.lessons.note(path, [Result(classify(reply, "mail"), "mail", reply)], 1)
            world.traffic.free(path)
            causes += [*path.hold_causes, *path.opening_causes, *path.causes]
        own = world.traffic._bounds.of_mail("t", "spring", "c", "x.example")
        causes += own[1]
        world.ledger.close()
    named = {cause.name.rpartition(": ")[2].partition(" of ")[0] for cause in causes}
    limits = {key.replace("_", " ") for key in Limits.__struct_fields__ if "_per_" not in key}
    assert named == limits | {"connections learnt from its replies", "rate learnt from its replies"}
    for cause in causes:
        assert await pool.fetchval("SELECT $1 ~ ANY ($2::text[])", str(cause), OF_LIMITS), str(cause)


def test_connections_are_opened_at_their_rate(world: World) -> None:
    path = world.traffic.path("a", "mx.open.example", "open")
    first = world.traffic.connect(path)
    assert not isinstance(first, Wait)
    world.traffic.disconnect(first)
    wait = world.traffic.connect(path)
    assert isinstance(wait, Wait)
    assert 9.9 < wait.seconds < 13
    assert wait.why == "a to mx.open.example: connection rate (f.yaml:9)"
    assert world.traffic.free(path) == 4  # nothing is held by what was refused


@pytest.mark.parametrize("queues", [3, 50, 1_000])
def test_many_queues_of_a_slow_path_come_in_turn_and_leave_it_no_pause(world: World, queues: int) -> None:
    """Each queue that finds no room is put off; at any time one of them has to be there to use the path."""
    path = world.traffic.path("a", "mx.slow.example", "slow")
    begin = world.seconds
    due = [(begin, number) for number in range(queues)]
    sent = 0
    looks = 0
    while due[0][0] < begin + 3_000:
        at, number = heapq.heappop(due)
        world.seconds = max(world.seconds, at)
        looks += 1
        if world.traffic.admit(path, job()) is None:
            sent += 1
            later = world.seconds + 0.2
        else:
            wait = world.traffic.wait_of(path)
            assert wait is not None
            # The dispatcher takes into memory what may leave within a second, and puts off the rest.
            later = world.seconds + (world.traffic.postpone(path, wait) if wait.seconds > PATIENCE else wait.seconds)
            assert later <= world.seconds + MOST_POSTPONED + 20
        heapq.heappush(due, (later, number))
    assert sent >= 300 / 1.01 * 0.9
    assert looks <= 300 * max(8, queues / 10)


def test_many_queues_of_a_slow_tenant_come_in_turn_and_leave_it_no_pause(world: World) -> None:
    path = world.traffic.path("a", "mx.other.example", "default")
    begin = world.seconds
    due = [(begin, number) for number in range(300)]
    sent = 0
    while due[0][0] < begin + 3_600:
        at, number = heapq.heappop(due)
        world.seconds = max(world.seconds, at)
        wait = world.traffic.wait_of_queue(Queue(f"marketing/default/acme/d{number}.example", 4, "acme", "default"))
        if wait is None:
            assert world.traffic.admit(path, job(tenant="acme")) is None
            sent += 1
        heapq.heappush(due, (world.seconds + (wait.seconds if wait else 0.2), number))
    assert sent >= 60 * 0.9


def test_connections_and_messages_of_one_scope_are_granted_each_by_itself(world: World) -> None:
    """Connections are granted whole, rates by fractions: taken for one another, 0.5 of 3 connections would be 2."""
    world.grants.seen(["one", "two"])
    path = world.traffic.path("a", "mx.both.example", "both")
    assert isinstance(world.traffic.connect(path), Wait)
    limits = sorted(record.state[2] for record in world.ledger.records() if record.name.startswith("grant "))
    assert limits == [0.0, 3.0]
