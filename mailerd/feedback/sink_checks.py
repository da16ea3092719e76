"""What is wrong with sinks that `mailerd.config` cannot know: names of events, and clients of brokers."""

import difflib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from mailerd.config import Sink as SinkConfig
from mailerd.config.places import line_in
from mailerd.errors import ConfigError, ConfigProblem
from mailerd.feedback.names import FAMILIES, NAMES, is_pattern

EXTRAS = {"kafka": "aiokafka", "amqp": "aio_pika", "nats": "nats"}  # what each extra installs


def check_sinks(sinks: Mapping[str, SinkConfig], path: str, text: str) -> None:
    """Raises `ConfigError` with every problem, at its line of the configuration `path`, which reads `text`."""
    found = [
        ConfigProblem(path, line_in(text, key), key, message)
        for name, sink in sinks.items()
        for key, message in (*_unknown_events(name, sink), *_missing_client(name, sink))
    ]
    if found:
        raise ConfigError(found)


def _unknown_events(name: str, sink: SinkConfig) -> Iterator[tuple[str, str]]:
    for index, event in enumerate(sink.events):
        if not is_pattern(event):
            close = difflib.get_close_matches(event, (*NAMES, *FAMILIES), n=1)
            near = f" (did you mean {close[0]}?)" if close else ""
            known = ", ".join((*NAMES, *FAMILIES))
            yield f"sinks.{name}.events[{index}]", f"there is no event {event[:60]!r}{near}: events are {known}, *"


def _missing_client(name: str, sink: SinkConfig) -> Iterator[tuple[str, str]]:
    package = EXTRAS.get(sink.kind)
    if package is not None and find_spec(package) is None:
        yield f"sinks.{name}.kind", f"{sink.kind} needs {package}: pip install mailerd[{sink.kind}]"
