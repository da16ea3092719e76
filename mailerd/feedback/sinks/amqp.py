"""Events to a durable topic exchange (AMQP 0.9.1), persistent and confirmed; the routing key is the event's type.

Which queues get them is for those who bind them: an event that no queue wants is dropped by the broker. Needs the extra
`amqp`.
"""

import asyncio
from collections.abc import Sequence

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aiormq.exceptions import AMQPError

from mailerd.config import Sink as SinkConfig
from mailerd.feedback.names import OutsideEvent
from mailerd.feedback.sinks.base import TIMEOUT, SinkError, encoded, rounds, secret

CLOSING = 2.0  # seconds


class AmqpSink:
    def __init__(self, name: str, config: SinkConfig) -> None:
        self._name = name
        self._config = config
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    async def write(self, events: Sequence[OutsideEvent]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                exchange = await self._connected()
                for some in rounds(events):
                    # They are written in this order, and then confirmed.
                    await asyncio.gather(*(_publish(exchange, event) for event in some))
        except (AMQPError, OSError, RuntimeError, ValueError) as error:
            await self.close()
            raise SinkError(f"sinks.{self._name}: AMQP broker: {str(error) or type(error).__name__}") from error
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            try:
                async with asyncio.timeout(CLOSING):
                    await connection.close()
            except (AMQPError, OSError, RuntimeError):
                pass  # it is as good as closed

    async def _connected(self) -> AbstractExchange:
        if self._exchange is None or self._connection is None or self._connection.is_closed:
            await self.close()
            url = secret(self._name, self._config.url_file) or self._config.url
            self._connection = await aio_pika.connect(url, client_properties={"connection_name": "mailerd"})
            channel = await self._connection.channel(publisher_confirms=True)
            self._exchange = await channel.declare_exchange(
                self._config.topic, aio_pika.ExchangeType.TOPIC, durable=True
            )
        return self._exchange


async def _publish(exchange: AbstractExchange, event: OutsideEvent) -> None:
    message = aio_pika.Message(
        encoded(event),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=event.id,
        type=event.type,
        timestamp=event.created_at,
        app_id="mailerd",
    )
    await exchange.publish(message, routing_key=event.type, mandatory=False)
