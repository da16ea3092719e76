"""Logging: structlog, one line for each event, JSON or for people, on standard error.

A line that cannot be written stops nothing: it is left out, and `log.lines_lost` says how many were when one can be.
"""

import asyncio
import atexit
import json
import logging
import re
import sys
import threading
import time
from typing import Any, BinaryIO

import msgspec
import structlog

from mailerd.clock import utc_now
from mailerd.config import Log

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FREQUENT = frozenset({"message.accepted", "recipient.delivered"})  # of such events a line may wait for others
HELD = 0.05  # seconds, at most
AT_ONCE = 4_096  # bytes of one write: in a pipe that several processes write to, no line is torn then (PIPE_BUF)

NEWLINE = ord("\n")

_SURROGATE = re.compile("[\ud800-\udfff]")
_ENCODER = msgspec.json.Encoder(enc_hook=str)


def _encode(fields: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(fields)
    except UnicodeEncodeError:  # bytes of others that were no UTF-8 (`surrogateescape`)
        text = json.dumps(msgspec.to_builtins(fields, enc_hook=str, str_keys=True), ensure_ascii=False)
        return _SURROGATE.sub(lambda match: rf"\\u{ord(match[0]):04x}", text).encode()


class Output:
    """As much of a file as is needed to write whole lines into it. Never raises `OSError`.

    The disk may be full, or whoever reads from the pipe gone: neither is a reason to give up the mail that the line is
    about. Not buffered, so that no line has to wait for the next one to find out.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = getattr(file, "raw", file)
        self._lost = 0
        self._cut = False  # the last line that was written has no end

    def write(self, lines: bytes) -> None:
        """`lines` end with a line end each."""
        before = (b"\n" if self._cut else b"") + (self._lines_lost() if self._lost else b"")
        data = before + lines
        written = 0
        try:
            while written < len(data):
                count = self._file.write(data[written:])
                if count is None:  # it would have to wait
                    break
                written += count
        except OSError:
            pass
        if written >= len(before):
            self._lost = data.count(b"\n", written)
            self._cut = written > 0 and data[written - 1] != NEWLINE
        else:
            self._lost += lines.count(b"\n")
            self._cut |= written > 1

    def flush(self) -> None:
        """There is nothing to flush."""

    def _lines_lost(self) -> bytes:
        at = utc_now().isoformat()
        return _encode({"event": "log.lines_lost", "lines": self._lost, "level": "warning", "timestamp": at}) + b"\n"


class TextOutput(Output):
    """The same for text."""

    def write(self, line: str) -> None:  # type: ignore[override]
        super().write(line.encode("utf-8", "backslashreplace"))


class Lines:
    """Writes lines several at a time: a system call for each costs as much as making it.

    Lines that are not urgent are held for `HELD` seconds at most, as long as an event loop runs in the thread that
    logs; elsewhere not at all. So the sudden end of a process takes no line with it that is older, unless its loop was
    kept from running, and never one that is urgent, or came before one.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._held: list[bytes] = []
        self._size = 0
        self._since = 0.0  # of the monotonic clock: when the first of them came

    def write(self, line: bytes, *, urgent: bool = False) -> None:
        """`line` without its end."""
        with self._lock:
            if self._size + len(line) >= AT_ONCE:
                self._write()
            self._held.append(line)
            self._size += len(line) + 1
            if urgent:
                self._write()
            elif len(self._held) == 1:
                self._since = time.monotonic()
                try:
                    asyncio.get_running_loop().call_later(HELD, self.flush)
                except RuntimeError:
                    self._write()
            elif time.monotonic() > self._since + HELD:
                self._write()

    def flush(self) -> None:
        """Write what is held."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._held:
            lines = b"\n".join([*self._held, b""])
            self._held.clear()
            self._size = 0
            self._output.write(lines)


def set_up(config: Log) -> None:
    """Call once in each process, before anything is logged."""
    level = LEVELS[config.level]
    if config.format == "console" or (config.format == "auto" and sys.stderr.isatty()):
        structlog.configure(
            processors=[_add_level_and_time, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.WriteLoggerFactory(file=TextOutput(sys.stderr.buffer)),  # type: ignore[arg-type]
            cache_logger_on_first_use=True,
        )
    else:
        lines = Lines(Output(sys.stderr.buffer))
        atexit.register(lines.flush)
        structlog.configure(
            processors=[],
            wrapper_class=_json_logger(level),
            logger_factory=lambda *_: lines,
            cache_logger_on_first_use=True,
        )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's; ours says it in our words


def _json_logger(level: int) -> type[Any]:
    """A logger that makes the line itself: two of each message are ours, and processors cost thrice as much."""
    base: Any = structlog.make_filtering_bound_logger(level)

    class JsonLogger(base):  # type: ignore[misc]
        def _proxy_to_logger(self, method: str, event: str | None = None, /, **fields: Any) -> None:
            if self._processors:  # somebody listens in: structlog.testing
                super()._proxy_to_logger(method, event, **fields)
                return
            if self._context:
                fields = {**self._context, **fields}
            fields["event"] = event
            _add_level_and_time(None, method, fields)
            if "exc_info" in fields:
                structlog.processors.format_exc_info(None, method, fields)
            self._logger.write(_encode(fields), urgent=event not in FREQUENT)

    return JsonLogger


def _add_level_and_time(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["level"] = method
    event["timestamp"] = utc_now().isoformat()
    return event
