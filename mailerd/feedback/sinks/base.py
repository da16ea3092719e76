"""What all sinks share: the follower that feeds them, and the order they keep."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from mailerd import metrics
from mailerd.clock import utc_now
from mailerd.config import Sink as SinkConfig
from mailerd.db import Pool
from mailerd.events import Recorded
from mailerd.feedback.facts import FactStore
from mailerd.feedback.following import FollowerError, Following
from mailerd.feedback.names import OutsideEvent, fits, inside
from mailerd.feedback.sink_checks import EXTRAS

PREFIX = "sink:"  # of the names of followers
TIMEOUT = 30.0  # seconds that a broker has for a page


class SinkError(FollowerError):
    """Not written, or not known to be: the same events come again. The text says what is wrong and where."""


class Sink(Protocol):
    async def write(self, events: Sequence[OutsideEvent]) -> None:
        """Return when all of it is durable there; raise `SinkError` else. It is called again after that."""
        ...

    async def close(self) -> None:
        """Let go of files and connections. May be followed by another `write`."""
        ...


def make_sink(name: str, config: SinkConfig) -> Sink:
    """The sink of this configuration; nothing is opened yet. Raises `SinkError` when its extra is not installed."""
    try:
        return _make(name, config)
    except ImportError as error:
        extra = config.kind
        raise SinkError(f"sinks.{name} needs {EXTRAS[extra]}: pip install mailerd[{extra}] ({error})") from error


def _make(name: str, config: SinkConfig) -> Sink:
    # Each only where it is used: the brokers' clients are extras, and large.
    if config.kind == "jsonl":
        from mailerd.feedback.sinks.jsonl import JsonlSink

        return JsonlSink(name, config, clock=utc_now)
    if config.kind == "kafka":
        from mailerd.feedback.sinks.kafka import KafkaSink

        return KafkaSink(name, config)
    if config.kind == "amqp":
        from mailerd.feedback.sinks.amqp import AmqpSink

        return AmqpSink(name, config)
    from mailerd.feedback.sinks.nats import NatsSink

    return NatsSink(name, config)


def encoded(event: OutsideEvent) -> bytes:
    """The event as all sinks write it: one JSON object, no line end."""
    return msgspec.json.encode(event)


def key_of(event: OutsideEvent) -> str:
    """What events are about: those with the same key are kept in order."""
    return event.data.email_id or event.data.to


def rounds(events: Sequence[OutsideEvent]) -> list[list[OutsideEvent]]:
    """The events in rounds, with no recipient twice in one.

    What is sent together may arrive in part. When a round is not begun before the one before has arrived, no recipient
    is told its end before its beginning.
    """
    made: list[list[OutsideEvent]] = []
    count: dict[tuple[str, int], int] = {}
    for event in events:
        key = (key_of(event), event.data.recipient)
        number = count.get(key, 0)
        count[key] = number + 1
        if number == len(made):
            made.append([])
        made[number].append(event)
    return made


def secret(name: str, path: str | None) -> str | None:
    """The content of a file that the configuration names, without line ends; read when used, so it may change."""
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SinkError(f"sinks.{name}: {path} cannot be read: {error}") from error


class Sinks:
    """The sinks of a configuration, each with its follower."""

    def __init__(self, following: Following, pool: Pool, configs: Mapping[str, SinkConfig]) -> None:
        self._following = following
        self._facts = FactStore(pool)
        self._configs = dict(configs)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        for name in self._configs:
            self._start(name)

    async def reconfigure(self, configs: Mapping[str, SinkConfig]) -> None:
        """Start what is new, end what is gone; what is different begins again where it was left."""
        changed = [name for name, config in self._configs.items() if configs.get(name) != config]
        await self._end(changed)
        self._configs = dict(configs)
        for name in self._configs:
            if name not in self._tasks:
                self._start(name)

    async def stop(self) -> None:
        """End all, each after what it is writing; what hangs is cut off."""
        await self._end(list(self._tasks))

    def _start(self, name: str) -> None:
        self._tasks[name] = asyncio.create_task(self._feed(name, self._configs[name]), name=PREFIX + name)

    async def _end(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._following.end(PREFIX + name) for name in names))
        tasks = [self._tasks.pop(name) for name in names]
        for task in tasks:
            task.cancel()  # of one that has not begun to follow
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self, name: str, config: SinkConfig) -> None:
        sink: Sink | None = None

        async def read(events: Sequence[Recorded]) -> None:
            nonlocal sink
            if sink is None:
                sink = make_sink(name, config)
            told = [event for event in await self._facts.told(events) if fits(event.type, config.events)]
            if told:
                await sink.write(told)
                metrics.sunk(name, len(told))

        try:
            await self._following.run(PREFIX + name, read, types=inside(config.events), streams=config.streams or None)
        finally:
            if sink is not None:
                await sink.close()
