"""Events to a Kafka topic, by an idempotent producer that waits for all replicas; the key is the email's id.

So the events of one email stand in one partition, in their order. Needs the extra `kafka`.
"""

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from mailerd.config import Sink as SinkConfig
from mailerd.feedback.names import OutsideEvent
from mailerd.feedback.sinks.base import TIMEOUT, SinkError, encoded, key_of, rounds, secret

REQUEST = 10_000  # milliseconds
CLOSING = 2.0  # seconds


class KafkaSink:
    def __init__(self, name: str, config: SinkConfig) -> None:
        self._name = name
        self._config = config
        self._producer: AIOKafkaProducer | None = None

    async def write(self, events: Sequence[OutsideEvent]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                producer = await self._connected()
                for some in rounds(events):
                    sent = [await self._send(producer, event) for event in some]
                    await asyncio.gather(*sent)
        except (KafkaError, OSError, ValueError) as error:
            # What was sent may still be under way: nothing of it may arrive after what comes next.
            await self.close()
            where = ", ".join(map(str, self._config.servers))
            raise SinkError(f"sinks.{self._name}: Kafka at {where}: {error or type(error).__name__}") from error
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _end(producer)

    async def _send(self, producer: AIOKafkaProducer, event: OutsideEvent) -> "asyncio.Future[object]":
        made: asyncio.Future[object] = await producer.send(
            self._config.topic,
            encoded(event),
            key=key_of(event).encode(),
            headers=[("id", event.id.encode()), ("type", event.type.encode())],
            timestamp_ms=int(event.created_at.timestamp() * 1000),
        )
        return made

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = self._new()
            try:
                await producer.start()
            except BaseException:
                await _end(producer)
                raise
            self._producer = producer
        return self._producer

    def _new(self) -> AIOKafkaProducer:
        config = self._config
        login = config.username is not None
        return AIOKafkaProducer(
            bootstrap_servers=[str(server) for server in config.servers],
            client_id="mailerd",
            enable_idempotence=True,
            acks="all",
            request_timeout_ms=REQUEST,
            linger_ms=2,
            security_protocol=("SASL_" if login else "") + ("SSL" if config.tls else "PLAINTEXT"),
            ssl_context=create_ssl_context() if config.tls else None,
            sasl_mechanism="PLAIN",
            sasl_plain_username=config.username,
            sasl_plain_password=secret(self._name, config.password_file) if login else None,
        )


async def _end(producer: AIOKafkaProducer) -> None:
    """Without waiting for what cannot be sent: it comes again."""
    try:
        async with asyncio.timeout(CLOSING):
            await producer.stop()
    except (KafkaError, OSError):
        sender = producer._sender  # `stop` waits for all to be sent, for as long as it takes
        await sender.close()
        await producer.client.close()
