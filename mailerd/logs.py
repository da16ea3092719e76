"""Logging: structlog, one line for each event, JSON or for people, on standard error."""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog

from mailerd.config import Log

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up(config: Log) -> None:
    """Call once in each process, before anything is logged."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [_add_level_and_time]
    if console:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
        factory: Callable[..., object] = structlog.WriteLoggerFactory(file=sys.stderr)
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_encode)]
        factory = structlog.BytesLoggerFactory(file=sys.stderr.buffer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[config.level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's; ours says it in our words


def _add_level_and_time(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["level"] = method
    event["timestamp"] = datetime.now(UTC).isoformat()
    return event


def _encode(value: object, **_: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)
