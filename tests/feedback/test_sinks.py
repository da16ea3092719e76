"""Sinks together: what each is fed with, and that none holds up anything else."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mailerd import db, metrics
from mailerd.config import FilePath, Sink
from mailerd.config.reader import parse
from mailerd.errors import ConfigError
from mailerd.events import Event, EventStore, FollowerStore
from mailerd.feedback.following import Following
from mailerd.feedback.sink_checks import check_sinks
from mailerd.feedback.sinks import SinkError, Sinks, make_sink
from mailerd.feedback.sinks.base import rounds
from tests.feedback.outside_events import events_of, told


@pytest.fixture
async def pool(database: str) -> AsyncIterator[db.Pool]:
    async with await db.connect_pool(database, min=0, max=4) as pool:
        yield pool


@asynccontextmanager
async def running(url: str, pool: db.Pool, configs: dict[str, Sink]) -> AsyncIterator[Sinks]:
    following = Following(url, pool, poll=0.02)
    sinks = Sinks(following, pool, configs)
    for name in configs:
        await FollowerStore(pool).advance(f"sink:{name}", await EventStore(pool).end())
    sinks.start()
    try:
        yield sinks
    finally:
        await sinks.stop()
        await following.stop()


async def append(pool: db.Pool, *types: str, stream: str = "transactional") -> None:
    async with pool.acquire() as connection, connection.transaction():
        some = [Event(datetime.now(UTC), type_, 1, 1, "a@b.example", "t", {}, stream) for type_ in types]
        await EventStore(pool).append(connection, some)


async def lines(path: Path, count: int) -> list[Any]:
    """The types in a file, when it has so many lines."""
    async with asyncio.timeout(60):
        while not path.exists() or path.read_bytes().count(b"\n") < count:
            await asyncio.sleep(0)
    return [msgspec.json.decode(line)["type"] for line in path.read_bytes().splitlines()]


async def test_a_sink_gets_the_events_and_streams_that_its_configuration_names(database, pool, tmp_path):
    directory = FilePath(str(tmp_path))
    configs = {
        "all": Sink(kind="jsonl", directory=directory),
        "bad": Sink(
            kind="jsonl", directory=directory, events=("email.bounced", "email.failed"), streams=("marketing",)
        ),
    }
    async with running(database, pool, configs):
        await append(pool, "recipient.delivered", "recipient.bounced", "recipient.held")
        await append(pool, "recipient.bounced", "recipient.expired", "recipient.deferred", stream="marketing")
        assert await lines(tmp_path / "bad.jsonl", 2) == ["email.bounced", "email.failed"]
        assert await lines(tmp_path / "all.jsonl", 5) == [
            "email.delivered",
            "email.bounced",
            "email.bounced",
            "email.failed",
            "email.delivery_delayed",
        ]
    assert b'mailerd_sink_events_total{sink="bad"} 2.0' in metrics.render()
    assert b'mailerd_follower_events_behind{follower="sink:all"}' in metrics.render()


async def test_a_sink_that_fails_holds_up_no_other_and_goes_on_when_it_can(database, pool, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a directory should be")
    configs = {
        "good": Sink(kind="jsonl", directory=FilePath(str(tmp_path))),
        "stuck": Sink(kind="jsonl", directory=FilePath(str(blocked))),
    }
    async with running(database, pool, configs):
        await append(pool, "recipient.delivered")
        assert await lines(tmp_path / "good.jsonl", 1) == ["email.delivered"]
        await append(pool, "recipient.bounced")
        assert await lines(tmp_path / "good.jsonl", 2) == ["email.delivered", "email.bounced"]
        blocked.unlink()
        assert await lines(blocked / "stuck.jsonl", 2) == ["email.delivered", "email.bounced"]


async def test_another_configuration_takes_over_where_the_one_before_was(database, pool, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    async with running(database, pool, {"log": Sink(kind="jsonl", directory=FilePath(str(old)))}) as sinks:
        await append(pool, "recipient.delivered")
        await lines(old / "log.jsonl", 1)
        await sinks.reconfigure({"log": Sink(kind="jsonl", directory=FilePath(str(new)))})
        await append(pool, "recipient.bounced")
        assert await lines(new / "log.jsonl", 1) == ["email.bounced"]


@pytest.mark.parametrize(("kind", "package"), [("kafka", "aiokafka"), ("amqp", "aio_pika"), ("nats", "nats")])
def test_a_broker_whose_client_is_not_installed_names_the_extra(kind, package, monkeypatch):
    monkeypatch.delitem(sys.modules, f"mailerd.feedback.sinks.{kind}", raising=False)
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SinkError, match=rf"sinks\.bus needs {package}: pip install mailerd\[{kind}\]"):
        make_sink("bus", Sink(kind=kind))


def test_no_recipient_is_twice_in_a_round():
    events = [told(1, 1), told(1, 2), told(1, 1), told(2, 1), told(1, 1), told(1, 2)]
    assert [[(each.data.email_id[-1], each.data.recipient) for each in some] for some in rounds(events)] == [
        [("1", 1), ("1", 2), ("2", 1)],
        [("1", 1), ("1", 2)],
        [("1", 1)],
    ]
    assert rounds([]) == []
    assert len(rounds(events_of(30))) == 3


@pytest.mark.parametrize(
    ("sink", "problem"),
    [
        ("{kind: jsonl}", "expected directory"),
        ("{kind: jsonl, directory: /tmp, rotate_size: 0B}", "rotate_size and rotate_every above 0"),
        ("{kind: kafka}", "expected servers"),
        ("{kind: amqp}", "expected either url or url_file"),
        ("{kind: nats}", "expected servers or url_file"),
        ("{kind: nats, servers: ['127.0.0.1:4222'], username: ann}", "expected username and password_file"),
        ("{kind: jsonl, directory: /tmp, streams: [bulk]}", "there is no stream 'bulk'"),
    ],
)
def test_a_sink_that_cannot_work_is_a_problem_of_the_configuration(sink, problem):
    with pytest.raises(ConfigError, match=problem):
        parse(f"sinks: {{log: {sink}}}\n", file="mailerd.yaml", environ={})


SINKS = """\
sinks:
  log:
    kind: jsonl
    directory: /tmp
    events: [email.bounced, email.bounce, suppression.*, mail.*, webhook.disabled, "*"]
  bus: {kind: nats, servers: ["127.0.0.1:4222"]}
"""


def test_an_event_that_there_is_not_is_told_with_its_line_and_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        check_sinks(parse(SINKS).sinks, "mailerd.yaml", SINKS)
    first, second = map(str, caught.value.problems)
    assert first.startswith(
        "mailerd.yaml:5: sinks.log.events[1]: there is no event 'email.bounce' (did you mean email."
    )
    assert second.startswith("mailerd.yaml:5: sinks.log.events[3]: there is no event 'mail.*' (did you mean email.*?)")


@pytest.mark.parametrize(("kind", "package"), [("kafka", "aiokafka"), ("amqp", "aio_pika"), ("nats", "nats")])
def test_a_client_that_is_not_installed_is_a_problem_of_the_configuration(kind, package, monkeypatch):
    text = f"sinks:\n  bus: {{kind: {kind}, servers: ['127.0.0.1:1'], url: 'amqp://127.0.0.1/'}}\n"
    check_sinks(parse(text).sinks, "mailerd.yaml", text)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ConfigError, match=rf"yaml:2: sinks.bus.kind: {kind} needs {package}: pip install mailerd\[{kind}\]"
    ):
        check_sinks(parse(text).sinks, "mailerd.yaml", text)
