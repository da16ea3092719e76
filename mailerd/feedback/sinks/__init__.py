"""Sinks: events written where others read them, files or a broker, each by a follower `sink:NAME`.

    sinks = Sinks(following, pool, config.sinks)
    sinks.start()
    …
    await sinks.reconfigure(new.sinks)
    await sinks.stop()

Each event at least once, those of one recipient in their order; no sink holds up mail or another sink.
"""

from mailerd.feedback.sinks.base import Sink, SinkError, Sinks, make_sink

__all__ = ["Sink", "SinkError", "Sinks", "make_sink"]
