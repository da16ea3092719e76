"""Events to NATS JetStream: each is acknowledged by a stream, and carries its id, so a second one is dropped there.

The subject is the topic with the event's type, `mailerd.events.email.bounced`. A stream for `mailerd.events.>` has to
be there: without one nothing would be kept. Needs the extra `nats`.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import NoStreamResponseError

from mailerd.config import Sink as SinkConfig
from mailerd.feedback.names import OutsideEvent
from mailerd.feedback.sinks.base import TIMEOUT, SinkError, encoded, rounds, secret

AT_ONCE = 256  # events published before the first of them is acknowledged
CONNECT = 5  # seconds
CLOSING = 2.0


class NatsSink:
    def __init__(self, name: str, config: SinkConfig) -> None:
        self._name = name
        self._config = config
        self._client: Client | None = None
        self._lost = asyncio.Event()

    async def write(self, events: Sequence[OutsideEvent]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                client = await self._connected()
                for some in rounds(events):
                    for start in range(0, len(some), AT_ONCE):
                        await self._publish(client, some[start : start + AT_ONCE])
        except NoStreamResponseError as error:
            await self.close()
            subject = f"{self._config.topic}.>"
            raise SinkError(f"sinks.{self._name}: no JetStream stream takes {subject}: create one") from error
        except (NatsError, OSError, ValueError) as error:
            await self.close()
            where = ", ".join(map(str, self._config.servers))
            raise SinkError(f"sinks.{self._name}: NATS at {where}: {str(error) or type(error).__name__}") from error
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(CLOSING):
                    await client.close()
            except (NatsError, OSError):
                pass  # it is as good as closed

    async def _publish(self, client: Client, events: Sequence[OutsideEvent]) -> None:
        """Publish, and wait for all to be acknowledged; a lost connection is not waited for."""
        stream = client.jetstream(timeout=TIMEOUT)
        publishing = [
            asyncio.ensure_future(
                stream.publish(f"{self._config.topic}.{event.type}", encoded(event), headers={"Nats-Msg-Id": event.id})
            )
            for event in events
        ]
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            acks = asyncio.gather(*publishing)
            either: set[asyncio.Future[Any]] = {acks, lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not acks.done():
                raise NatsError("the connection was lost")
            await acks
        finally:
            for task in (lost, *publishing):
                task.cancel()
            await asyncio.gather(lost, *publishing, return_exceptions=True)

    async def _connected(self) -> Client:
        if self._client is None or not self._client.is_connected:
            await self.close()
            config = self._config
            client, self._lost = Client(), asyncio.Event()
            url = secret(self._name, config.url_file) or config.url
            await client.connect(
                servers=[url]
                if url
                else [f"{'tls' if config.tls else 'nats'}://{server}" for server in config.servers],
                name="mailerd",
                allow_reconnect=False,
                max_reconnect_attempts=1,  # of this first connection, to each server
                reconnect_time_wait=1,
                connect_timeout=CONNECT,
                tls=ssl.create_default_context() if config.tls else None,
                error_cb=_heard,
                disconnected_cb=self._on_lost,
                closed_cb=self._on_lost,
                user=config.username,
                password=secret(self._name, config.password_file),
            )
            self._client = client
        return self._client

    async def _on_lost(self) -> None:
        self._lost.set()


async def _heard(_error: Exception) -> None:
    """What fails comes out of `publish` too."""
