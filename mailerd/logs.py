"""Logging: structlog, one line for each event, JSON or for people, on standard error.

A line that cannot be written stops nothing: it is left out, and `log.lines_lost` says how many were when one can be.
"""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import BinaryIO

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
        factory: Callable[..., object] = structlog.WriteLoggerFactory(file=TextLines(sys.stderr.buffer))  # type: ignore[arg-type]
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_encode)]
        factory = structlog.BytesLoggerFactory(file=Lines(sys.stderr.buffer))  # type: ignore[arg-type]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[config.level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's; ours says it in our words


class Lines:
    """As much of a file as structlog needs to write whole lines into it. Never raises `OSError`.

    The disk may be full, or whoever reads from the pipe gone: neither is a reason to give up the mail that the line is
    about. Not buffered, so that no line has to wait for the next one to find out.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = getattr(file, "raw", file)
        self._lost = 0
        self._cut = False  # the last line that was written has no end

    def write(self, line: bytes) -> None:
        if self._lost:
            line = self._lines_lost() + line
        if self._cut:
            line = b"\n" + line
        written = 0
        try:
            while written < len(line):
                count = self._file.write(line[written:])
                if count is None:  # it would have to wait
                    break
                written += count
        except OSError:
            pass
        if written == len(line):
            self._lost, self._cut = 0, False
        else:
            self._lost += 1
            self._cut |= written > 0

    def flush(self) -> None:
        """There is nothing to flush."""

    def _lines_lost(self) -> bytes:
        at = datetime.now(UTC).isoformat()
        return _encode({"event": "log.lines_lost", "lines": self._lost, "level": "warning", "timestamp": at}) + b"\n"


class TextLines(Lines):
    """The same for text."""

    def write(self, line: str) -> None:  # type: ignore[override]
        super().write(line.encode("utf-8", "backslashreplace"))


def _add_level_and_time(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["level"] = method
    event["timestamp"] = datetime.now(UTC).isoformat()
    return event


def _encode(value: object, **_: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)
