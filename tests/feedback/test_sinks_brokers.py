"""Sinks into real brokers: durable, at least once, in order for each recipient, whatever the broker does.

RabbitMQ and NATS are Debian's; Kafka is librdkafka's mock cluster, which speaks the real protocol.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aio_pika
import msgspec
import nats
import pytest
from nats.js.api import StorageType, StreamConfig

from mailerd.config import Endpoint, FilePath, Sink
from mailerd.feedback.names import OutsideEvent
from mailerd.feedback.sinks import SinkError, make_sink
from mailerd.feedback.sinks import base as sinks_base
from mailerd.feedback.sinks.base import encoded
from tests.feedback.outside_events import STEPS, events_of, told
from tests.support.brokers import MockKafka, NatsServer, RabbitMq, missing
from tests.support.live import free_port

NEEDS_RABBITMQ = pytest.mark.skipif(bool(missing("rabbitmq-server")), reason=missing("rabbitmq-server"))
NEEDS_NATS = pytest.mark.skipif(bool(missing("nats-server")), reason=missing("nats-server"))


def in_order(bodies: Sequence[bytes]) -> bool:
    """Is, for each recipient, what came first in its order?"""
    seen: dict[str, list[str]] = defaultdict(list)
    for body in bodies:
        event = msgspec.json.decode(body)
        if event["id"] not in seen[event["data"]["email_id"]]:
            seen[event["data"]["email_id"]].append(event["id"])
    return all(ids == sorted(ids) for ids in seen.values())


def ids(bodies: Sequence[bytes]) -> set[str]:
    return {msgspec.json.decode(body)["id"] for body in bodies}


async def written(sink: sinks_base.Sink, events: Sequence[OutsideEvent]) -> None:
    """As a follower does it: the same page until it goes through."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await sink.write(events)
            except SinkError:
                await asyncio.sleep(0.05)


# -- RabbitMQ


@pytest.fixture(scope="module")
def rabbit_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rabbitmq")


@pytest.fixture
async def rabbitmq(rabbit_directory: Path) -> AsyncIterator[RabbitMq]:
    async with RabbitMq(rabbit_directory) as broker:
        yield broker


@NEEDS_RABBITMQ
async def test_rabbitmq_keeps_what_was_written_over_its_own_kill_9_and_gets_the_rest_afterwards(rabbitmq, tmp_path):
    (tmp_path / "url").write_text(rabbitmq.url + "\n")
    sink = make_sink("bus", Sink(kind="amqp", url_file=FilePath(str(tmp_path / "url")), topic="mail"))
    events, more = events_of(50), events_of(30, first=100)
    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("mail", aio_pika.ExchangeType.TOPIC, durable=True)
        for name, key in (("all", "#"), ("delivered", "email.delivered")):
            await (await channel.declare_queue(name, durable=True)).bind(exchange, key)
    await sink.write(events)

    rabbitmq.kill()
    with pytest.raises(SinkError, match=r"sinks\.bus: AMQP broker"):
        await sink.write(more)
    await rabbitmq.start()
    await written(sink, more)
    await sink.close()

    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        messages = []
        for name in ("all", "delivered"):
            queue = await channel.get_queue(name)
            while (message := await queue.get(fail=False, no_ack=True)) is not None:
                messages.append((name, message))
    everything = [message.body for name, message in messages if name == "all"]
    assert ids(everything) == {event.id for event in (*events, *more)}
    assert in_order(everything)
    delivered = [message for name, message in messages if name == "delivered"]
    assert {message.routing_key for message in delivered} == {"email.delivered"}
    assert len({message.message_id for message in delivered}) == 80
    assert delivered[0].delivery_mode == aio_pika.DeliveryMode.PERSISTENT


async def test_a_broker_that_is_not_there_is_an_error_and_no_password_is_told():
    port = free_port()
    for sink in (
        make_sink("bus", Sink(kind="amqp", url=f"amqp://ann:s3cr3t@127.0.0.1:{port}/")),
        make_sink("bus", Sink(kind="nats", servers=(Endpoint("127.0.0.1", port),), username="ann")),
        make_sink("bus", Sink(kind="kafka", servers=(Endpoint("127.0.0.1", port),))),
    ):
        with pytest.raises(SinkError, match=r"sinks\.bus") as caught:
            await sink.write([told(1)])
        assert "s3cr3t" not in str(caught.value)
        await sink.close()


# -- NATS


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        yield server


def nats_sink(server: NatsServer) -> sinks_base.Sink:
    return make_sink("bus", Sink(kind="nats", servers=(Endpoint("127.0.0.1", server.port),)))


async def make_stream(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    stream = StreamConfig(name="mail", subjects=["mailerd.events.>"], storage=StorageType.FILE)
    await client.jetstream().add_stream(stream)
    await client.close()


async def stored(server: NatsServer) -> list[bytes]:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    count = (await stream.stream_info("mail")).state.messages
    bodies = [(await stream.get_msg("mail", seq)).data or b"" for seq in range(1, count + 1)]
    await client.close()
    return bodies


@NEEDS_NATS
async def test_nats_keeps_each_event_once_though_it_is_sent_again(nats_server):
    await make_stream(nats_server)
    sink, events = nats_sink(nats_server), events_of(400)
    await sink.write(events)
    await sink.write(events)
    await sink.close()

    bodies = await stored(nats_server)
    assert len(bodies) == len(events)
    assert in_order(bodies)
    client = await nats.connect(nats_server.url)
    first = await client.jetstream().get_msg("mail", 1)
    assert first.subject == "mailerd.events.email.queued"
    await client.close()


@NEEDS_NATS
async def test_without_a_stream_nats_would_keep_nothing_so_the_sink_waits_and_says_why(nats_server):
    sink = nats_sink(nats_server)
    with pytest.raises(SinkError, match=r"no JetStream stream takes mailerd\.events\.>: create one"):
        await sink.write([told(1)])
    await make_stream(nats_server)
    await sink.write([told(1)])
    await sink.close()
    assert len(await stored(nats_server)) == 1


@NEEDS_NATS
async def test_nats_is_waited_for_when_it_was_killed(nats_server):
    await make_stream(nats_server)
    sink, events, more = nats_sink(nats_server), events_of(20), events_of(20, first=100)
    await sink.write(events)
    nats_server.kill()
    with pytest.raises(SinkError, match=r"sinks\.bus: NATS at 127\.0\.0\.1"):
        await sink.write(more)
    await nats_server.start()
    await written(sink, more)
    await sink.close()
    bodies = await stored(nats_server)
    assert ids(bodies) == {event.id for event in (*events, *more)}
    assert in_order(bodies)


@NEEDS_NATS
async def test_a_broker_that_hangs_is_given_up_and_the_page_comes_again(nats_server, monkeypatch):
    monkeypatch.setattr("mailerd.feedback.sinks.nats.TIMEOUT", 0.5)
    await make_stream(nats_server)
    sink, events = nats_sink(nats_server), events_of(10)
    await sink.write([told(99)])
    nats_server.freeze()
    with pytest.raises(SinkError, match=r"sinks\.bus"):
        await sink.write(events)
    nats_server.thaw()
    await written(sink, events)
    await sink.close()
    bodies = await stored(nats_server)
    assert in_order(bodies)
    assert {event.id for event in events} <= ids(bodies)


# -- Kafka


async def test_kafka_gets_each_event_under_the_key_of_its_email_in_order():
    kafka = await asyncio.to_thread(MockKafka)
    host, _, port = kafka.address.rpartition(":")
    sink = make_sink("lake", Sink(kind="kafka", servers=(Endpoint(host, int(port)),), topic="mail"))
    events = events_of(200)
    await sink.write(events)
    await sink.close()
    await sink.write([told(999)])
    await sink.close()

    messages = await asyncio.to_thread(kafka.read, "mail")
    bodies = [message.value() for message in messages]
    assert len(bodies) == len(events) + 1
    assert {encoded(event) for event in events} <= set(bodies)
    assert in_order(bodies)
    partitions = defaultdict(set)
    for message in messages:
        partitions[message.key()].add(message.partition())
        assert message.key().decode() == msgspec.json.decode(message.value())["data"]["email_id"]
        assert dict(message.headers())["type"].startswith(b"email.")
    assert all(len(where) == 1 for where in partitions.values())
    assert len(set.union(*partitions.values())) > 1
    assert len(partitions) == len(events) / len(STEPS) + 1
