"""Takes the content of one message off the wire, by DATA or BDAT, within the limits of size and memory.

The only end of DATA is CRLF, dot, CRLF. Everything that other servers have taken for it (bare LF, bare CR, NUL, and
their mixtures: "SMTP smuggling") stays content, and content that is not made of CRLF lines is refused as a whole.
"""

from collections.abc import Awaitable, Callable

from mailerd.errors import Refused
from mailerd.wire.smtp import dot_unstuff, line_problem

END_OF_DATA = b"\r\n.\r\n"
MAX_LINE = 998  # bytes without CRLF, RFC 5322 section 2.1.1


class Memory:
    """The bytes of all messages that one worker is receiving."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    def reconfigure(self, limit: int) -> None:
        """Holds for what comes from now on."""
        self._limit = limit

    def has_room(self, size: int) -> bool:
        return self.used + size <= self._limit

    def take(self, size: int) -> None:
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class Incoming:
    """A message being received: kept as long as it is within its limits, else counted and thrown away.

    Must be closed, whatever happens, so that its memory is given back.
    """

    __slots__ = ("_bytes", "_held", "_max_size", "_memory", "refusal", "size")

    def __init__(self, memory: Memory, max_size: int, refusal: Refused | None = None) -> None:
        self._memory = memory
        self._max_size = max_size
        self._bytes: bytes | bytearray = b""
        self._held = 0
        self.size = 0
        self.refusal = refusal

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.refusal is not None:
            return
        if self.size > self._max_size:
            self._drop(too_big(self._max_size))
        elif not self._memory.has_room(len(chunk)):
            self._drop(no_memory())
        else:
            self._memory.take(len(chunk))
            self._held += len(chunk)
            if not self._bytes:
                self._bytes = chunk  # most messages come in one piece and are not copied
            else:
                if isinstance(self._bytes, bytes):
                    self._bytes = bytearray(self._bytes)
                self._bytes += chunk

    @property
    def hopeless(self) -> bool:
        """Whether so much more than the limit came that it is not worth waiting for the end."""
        return self.size > 2 * self._max_size + 1_000_000

    def take(self) -> bytes:
        """The bytes, once; they are counted until `close`."""
        content, self._bytes = bytes(self._bytes), b""
        return content

    def close(self) -> None:
        self._bytes = b""
        self._memory.give_back(self._held)
        self._held = 0

    def _drop(self, refusal: Refused) -> None:
        self.refusal = refusal
        self.close()


async def read_data(rest: bytes, read: Callable[[], Awaitable[bytes]], incoming: Incoming) -> bytes | None:
    """Put what comes up to CRLF.CRLF into `incoming`, still dot-stuffed; return what was read behind that end.

    `rest` is what was read behind the DATA line. None when the peer went away, or sends far too much: then the end has
    not been seen, and nothing that follows may be taken for a command.
    """
    held = b"\r\n"  # the end of the DATA line: `.` CRLF right behind it is an empty message
    skip = len(held)
    chunk = rest
    while True:
        if chunk:
            seen = held + chunk
            end = seen.find(END_OF_DATA)
            if end >= 0:
                incoming.add(seen[skip : end + 2])
                return seen[end + len(END_OF_DATA) :]
            cut = max(0, len(seen) - len(END_OF_DATA) + 1)
            incoming.add(seen[skip:cut])
            skip = max(0, skip - cut)
            held = seen[cut:]
        chunk = b"" if incoming.hopeless else await read()
        if not chunk:
            return None


async def read_chunk(rest: bytes, size: int, read: Callable[[], Awaitable[bytes]], incoming: Incoming) -> bytes | None:
    """Put the `size` bytes of a BDAT into `incoming`; return what was read behind them, None as `read_data` does."""
    chunk = rest
    while True:
        incoming.add(chunk[:size])
        if len(chunk) >= size:
            return chunk[size:]
        size -= len(chunk)
        chunk = b"" if incoming.hopeless else await read()
        if not chunk:
            return None


def finished(incoming: Incoming, *, stuffed: bool, long_lines: bool) -> bytes:
    """The content: CRLF lines, unstuffed, the last line ended. Raises `Refused` for what cannot be taken."""
    if incoming.refusal is not None:
        raise incoming.refusal
    content = incoming.take()
    problem = line_problem(content)
    if problem is not None:
        raise Refused(554, "5.6.0", f"message refused: {problem}; lines must end in CRLF", name="bad_line_endings")
    if stuffed:
        content = dot_unstuff(content)
    elif content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    if not long_lines and _has_long_line(content):
        raise Refused(554, "5.6.0", f"message refused: a line is longer than {MAX_LINE} bytes", name="line_too_long")
    return content


def _has_long_line(content: bytes) -> bool:
    """Is a line longer than `MAX_LINE`? Looks at one end of a line in a thousand bytes only."""
    at = 0
    while len(content) - at > MAX_LINE:
        at = content.rfind(b"\r\n", at, at + MAX_LINE + 2) + 2
        if at == 1:
            return True
    return False


def too_big(max_size: int) -> Refused:
    return Refused(552, "5.3.4", f"message is larger than {max_size} bytes", name="message_too_large", http=413)


def no_memory() -> Refused:
    return Refused(452, "4.3.1", "too many messages are coming in, try again later", name="busy", http=503)
