"""From one configuration to the next without a restart: what of it can be had, and what is different."""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from mailerd.config.tree import Config, Http, Listener, Node

# Sockets, processes, the database and what is made of them at the start; loggers keep what they were made with, and
# the statements of the queue do or do not keep bodies (`retention.bodies`).
UNTIL_RESTART = ("data_dir", "database", "workers", "resolver", "sandbox", "log", "first_key")


def attainable(started: Config, wanted: Config) -> Config:
    """What of `wanted` a daemon can take on that was started with `started`: the sockets stay, with new settings."""
    return replace(
        wanted,
        **{name: getattr(started, name) for name in UNTIL_RESTART},
        listeners=tuple(_listeners(started, wanted)),
        http=_http(started.http, wanted.http),
        retention=replace(wanted.retention, bodies=started.retention.bodies),
    )


def _listeners(started: Config, wanted: Config) -> Iterator[Listener]:
    """One for each socket, in the order of the start. One that is no longer wanted stays as it was."""
    left = list(wanted.listeners)
    for listener in started.listeners:
        same = next((each for each in left if _socket(each) == _socket(listener)), None)
        if same is not None:
            left.remove(same)
        yield same or listener


def _socket(listener: Listener) -> tuple[object, ...]:
    return listener.bind, listener.kind, listener.name


def _http(started: Http | None, wanted: Http | None) -> Http | None:
    return started if started is None or wanted is None else replace(wanted, bind=started.bind)


def changed(old: Config, new: Config) -> list[str]:
    """The keys with different values, as problems write them (`pools.marketing.sources`); never the values."""
    return [key.removeprefix(".") for key in _differences("", old, new)]


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, Node) and isinstance(new, type(old)):
        for name in old.__struct_fields__:
            yield from _differences(f"{key}.{name}", getattr(old, name), getattr(new, name))
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            yield from _differences(f"{key}.{name}", old.get(name), new.get(name))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{key}[{index}]", before, after)
    else:
        yield key
