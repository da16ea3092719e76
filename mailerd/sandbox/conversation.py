"""One connection to the sandbox, from the greeting to the end."""

import asyncio
import contextlib
import re
from email.errors import MessageError
from email.header import decode_header, make_header
from typing import TYPE_CHECKING

import structlog

from mailerd.clock import utc_now
from mailerd.sandbox.behaviours import BEHAVIOURS, behaviour_name
from mailerd.sandbox.kept import Stored

if TYPE_CHECKING:
    from mailerd.sandbox import Sandbox

log = structlog.get_logger()

MAX_SIZE = 64 * 1024**2  # bytes of one message
MAX_LINE = 4_096  # bytes of one command (RFC 5321 4.5.3.1.4 and room for parameters)
MAX_RECIPIENTS = 1_000
MAX_ERRORS = 20
SILENCE = 300.0  # seconds until a client is hung up on
CHUNK = 256 * 1024


class Conversation:
    """One connection. Replies to pipelined commands gather until there is nothing left to read (RFC 2920)."""

    def __init__(self, sandbox: "Sandbox", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sandbox = sandbox
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._replies: list[str] = []
        self._open = True
        self._errors = 0
        self._helo = ""
        self._peer = str((writer.get_extra_info("peername") or ("?",))[0])
        self._sender: str | None = None  # None: no transaction under way
        self._parameters = ""
        self._recipients: list[str] = []

    async def run(self) -> None:
        self._say(f"220 {self._sandbox.hostname} ESMTP mailerd sandbox")
        while self._open:
            line = await self._line()
            if line is None:
                self._close("500 5.5.2 line too long")
            elif (text := _text(line)) is None:
                self._fail("500 5.5.2 commands are UTF-8 text without control characters")
            else:
                verb, _, argument = text.partition(" ")
                await self._command(verb.upper(), argument.strip())
        await self._flush()

    async def _command(self, verb: str, argument: str) -> None:
        match verb:
            case "EHLO" | "HELO":
                self._hello(verb, argument)
            case "MAIL":
                self._mail(argument)
            case "RCPT":
                self._rcpt(argument)
            case "DATA":
                await self._data(argument)
            case "RSET":
                self._reset()
                self._say("250 2.0.0 ok")
            case "NOOP":
                self._say("250 2.0.0 ok")
            case "VRFY":
                self._say("252 2.1.5 send and see")
            case "QUIT":
                self._close("221 2.0.0 bye")
            case _:
                self._fail("500 5.5.1 no such command here")

    def _hello(self, verb: str, argument: str) -> None:
        if not argument:
            self._fail(f"501 5.5.4 say {verb} and your name")
            return
        self._reset()
        self._helo = argument
        if verb == "HELO":
            self._say(f"250 {self._sandbox.hostname}")
            return
        keywords = ("PIPELINING", f"SIZE {MAX_SIZE}", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")
        lines = (self._sandbox.hostname, *keywords)
        self._say("\r\n".join(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines))

    def _mail(self, argument: str) -> None:
        match = MAIL.fullmatch(argument)
        if not self._helo:
            self._fail("503 5.5.1 say EHLO first")
        elif self._sender is not None:
            self._fail("503 5.5.1 a transaction is under way")
        elif match is None:
            self._fail("501 5.5.2 expected MAIL FROM:<address>")
        elif (bad := _bad_parameter(match["parameters"], MAIL_PARAMETERS)) is not None:
            self._fail(f"555 5.5.4 bad parameter {bad}")
        elif (size := SIZE.search(match["parameters"])) and int(size[1]) > MAX_SIZE:
            self._say(f"552 5.3.4 at most {MAX_SIZE} bytes")
        elif not match["address"].isascii() and "SMTPUTF8" not in match["parameters"].upper().split():
            self._say("553 5.6.7 this address needs SMTPUTF8")
        else:
            self._sender = match["address"]
            self._parameters = match["parameters"].strip()
            self._say("250 2.1.0 ok")

    def _rcpt(self, argument: str) -> None:
        match = RCPT.fullmatch(argument)
        if self._sender is None:
            self._fail("503 5.5.1 say MAIL first")
        elif match is None:
            self._fail("501 5.5.2 expected RCPT TO:<address>")
        elif (bad := _bad_parameter(match["parameters"], RCPT_PARAMETERS)) is not None:
            self._fail(f"555 5.5.4 bad parameter {bad}")
        elif not match["address"].isascii() and "SMTPUTF8" not in self._parameters.upper().split():
            self._say("553 5.6.7 this address needs SMTPUTF8")
        elif len(self._recipients) == MAX_RECIPIENTS:
            self._say("452 4.5.3 too many recipients")
        else:
            self._take_recipient(self._sender, match["address"])

    def _take_recipient(self, sender: str, address: str) -> None:
        name = behaviour_name(address)
        reply = BEHAVIOURS[name].rcpt if name else ""
        if name == "defer" and not self._sandbox.greylists(sender, address):
            reply = ""
        if name == "421":
            self._close(reply)
        elif reply:
            self._say(reply)
        else:
            self._recipients.append(address)
            self._say("250 2.1.5 ok")

    async def _data(self, argument: str) -> None:
        if argument:
            self._fail("501 5.5.4 DATA takes no argument")
            return
        if not self._recipients:
            self._fail("503 5.5.1 no recipients" if self._sender is not None else "503 5.5.1 say MAIL first")
            return
        self._say("354 end with a dot on a line of its own")
        content = await self._content()
        names = {behaviour_name(address) for address in self._recipients}
        if "drop" in names:
            self._open = False
        elif content is None:
            self._say(f"552 5.3.4 at most {MAX_SIZE} bytes")
        elif "spam" in names:
            self._say(BEHAVIOURS["spam"].dot)
        else:
            if "slow" in names:
                await self._wait()
            self._say(self._keep(content))
        self._reset()

    async def _wait(self) -> None:
        """As long as slow@ takes; not longer than the sandbox lives."""
        await self._flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._sandbox.slow):
                await self._sandbox.stopping.wait()

    def _keep(self, content: bytes) -> str:
        stored = Stored(
            id=self._sandbox.kept.next_id(),
            received_at=utc_now(),
            sender=self._sender or "",
            recipients=tuple(self._recipients),
            peer=self._peer,
            helo=self._helo,
            size=len(content),
            subject=_subject(content),
            parameters=self._parameters,
        )
        try:
            self._sandbox.kept.add(stored, content)
        except OSError as error:
            log.warning("sandbox.write_failed", error=error.strerror)
            return "452 4.3.1 the sandbox cannot write"
        self._sandbox.taken(stored, content)
        log.debug("sandbox.message_taken", id=stored.id, size=stored.size, recipients=len(stored.recipients))
        return f"250 2.0.0 taken as {stored.id}"

    def _reset(self) -> None:
        self._sender = None
        self._parameters = ""
        self._recipients = []

    # Lines in, replies out

    def _say(self, reply: str) -> None:
        self._replies.append(reply)

    def _fail(self, reply: str) -> None:
        """Refuse what makes no sense; too much of it ends the conversation."""
        self._errors += 1
        if self._errors > MAX_ERRORS:
            self._close("421 4.7.0 too many errors")
        else:
            self._say(reply)

    def _close(self, reply: str) -> None:
        self._say(reply)
        self._open = False

    async def _flush(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            self._writer.write("".join(f"{reply}\r\n" for reply in replies).encode())
            await self._writer.drain()

    async def _fill(self) -> None:
        await self._flush()
        async with asyncio.timeout(SILENCE):
            data = await self._reader.read(CHUNK)
        if not data:
            raise asyncio.IncompleteReadError(bytes(self._buffer[:80]), None)
        self._buffer += data

    async def _line(self) -> bytes | None:
        """The next command without its CRLF; None when it is too long."""
        while (end := self._buffer.find(b"\r\n", 0, MAX_LINE)) < 0:
            if len(self._buffer) >= MAX_LINE:
                return None
            await self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _content(self) -> bytes | None:
        """The content up to its final dot, unstuffed (RFC 5321 4.5.2); None when it was too large and thrown away."""
        self._buffer[:0] = b"\r\n"  # so that a dot in the first line looks like any other
        searched, too_large = 0, False
        while (end := self._buffer.find(b"\r\n.\r\n", searched)) < 0:
            searched = max(0, len(self._buffer) - 4)  # the mark may begin in what is here
            if len(self._buffer) > MAX_SIZE + 4:
                too_large = True
                del self._buffer[:searched]
                searched = 0
            await self._fill()
        content = None if too_large or end > MAX_SIZE else bytes(self._buffer[: end + 2])
        del self._buffer[: end + 5]
        return content.replace(b"\r\n..", b"\r\n.")[2:] if content is not None else None


PATH = r"<(?P<address>[^<>\x00-\x1f\x7f]{0,1000})>(?P<parameters>(?: +[^ ]+)*)"
MAIL = re.compile(rf"FROM: *{PATH}", re.IGNORECASE)
RCPT = re.compile(rf"TO: *{PATH.replace('{0,1000}', '{1,1000}')}", re.IGNORECASE)
SIZE = re.compile(r" SIZE=([0-9]{1,20})\b", re.IGNORECASE | re.ASCII)
MAIL_PARAMETERS = re.compile(
    r"SIZE=[0-9]{1,20}|BODY=(7BIT|8BITMIME)|SMTPUTF8|RET=(FULL|HDRS)|ENVID=[!-~]{1,100}", re.IGNORECASE | re.ASCII
)
RCPT_PARAMETERS = re.compile(r"NOTIFY=[A-Z,]{1,40}|ORCPT=[A-Za-z0-9-]{1,40};[^ ]{1,900}", re.IGNORECASE)
SUBJECT = re.compile(rb"^Subject:[ \t]*((?:[^\r\n]|\r\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


def _bad_parameter(parameters: str, known: re.Pattern[str]) -> str | None:
    return next((one for one in parameters.split() if not known.fullmatch(one)), None)


def _text(line: bytes) -> str | None:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _subject(content: bytes) -> str:
    """For people: decoded, on one line, at most 200 characters; an undecodable one as it is."""
    match = SUBJECT.search(content[: content.find(b"\r\n\r\n") + 1 or None])
    raw = " ".join(match[1].decode("utf-8", "replace").split()) if match else ""
    if "=?" in raw:
        with contextlib.suppress(MessageError, LookupError, ValueError):
            raw = str(make_header(decode_header(raw)))
    return "".join(char if char.isprintable() else " " for char in raw)[:200]
