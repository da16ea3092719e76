"""The bytes of one SMTP connection: lines in, replies out, deadlines, TLS and the end. What is said is for a subclass.

aiosmtpd's class with a command loop of our own. A read may hold many pipelined commands, answered by one write. What
the stock class finds out by introspection for each connection is here a table made once.
"""

import asyncio
import secrets
import ssl
from asyncio.streams import FlowControlMixin
from collections.abc import Callable
from typing import cast

import structlog
from aiosmtpd.smtp import SMTP

from mailerd import metrics
from mailerd.errors import Refused
from mailerd.intake.smtp_service import Service

log = structlog.get_logger()

BUFFER = 1 << 16  # bytes unread at which the kernel is left to hold the peer back; twice that is the most we hold
HANDSHAKE = 30.0  # seconds for TLS
MANY_REPLIES = 100  # are not kept to be written at once: they fill memory, and others wait for their turn
FOREVER = float("inf")
LINGER = 5.0  # seconds for a closed connection to get its last reply out, and for what is under way to be thrown away
MAX_ANY_LINE = 12_288  # RFC 4954 section 4


class Gone(Exception):  # noqa: N818 (nothing went wrong)
    """The peer is no longer there, or may no longer be listened to."""


class Connection(SMTP):
    """Serves one client until it leaves, is silent or wrong for too long, or `stop` is called.

    Deadlines are not timers but a number, `deadline`, that the listener compares now and then: ten thousand idle
    connections have no timer each. `forget` is called once, when all is over.
    """

    def __init__(
        self, service: Service, peer: str, forget: Callable[["Connection"], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        # Not SMTP.__init__: it inspects the class and the handler again for each connection. Nor a StreamReader: what
        # it does for each read costs as much as a command.
        FlowControlMixin.__init__(self, loop=loop)
        self._arrived = b""  # and not read yet
        self._eof = False
        self._failure: Exception | None = None  # how the connection ended
        self._reading: asyncio.Future[None] | None = None
        self._held_back = False
        self._attentive = False  # the dialogue waits for a command
        self.loop = loop
        self.transport = None
        self._handler_coroutine = None
        self.service = service
        self.peer = peer
        self.deadline = loop.time() + HANDSHAKE
        self._ends = FOREVER  # no command moves the deadline beyond this
        self._forget = forget
        self._buffer = b""  # received, from `_at` on not yet looked at
        self._at = 0
        self._overlong = False  # the line that is coming is being thrown away
        self._replies: list[bytes] = []
        self._closing = False  # no more commands are taken
        self._stopping = False  # the same, after the transaction that is open
        self._submitting = False  # somebody else has the pace: what was begun is carried out
        self._flooded = False  # more was sent than is read
        self._lingering = False  # all has been said; what still comes is thrown away
        self._errors = 0
        self._encrypted = ""

    # -- for the dialogue to say ---------------------------------------------------------------------------------------

    async def _command(self, line: bytes) -> None:
        """Answer one line, its end included."""
        raise NotImplementedError

    def _answers_at_once(self, line: bytes) -> bool:
        """Is it a command that `_command` answers without waiting for anything?"""
        raise NotImplementedError

    @property
    def _in_transaction(self) -> bool:
        raise NotImplementedError

    def _left(self) -> None:
        """No line comes any more: give back what is held."""
        raise NotImplementedError

    # -- the connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self._transport = transport
        self._encrypted = _tls_version(transport)
        self.deadline = self.loop.time() + self.service.limits.command_timeout
        self._handler_coroutine = self.loop.create_task(self._handle_client())

    def connection_lost(self, error: Exception | None) -> None:
        # The handler is not cancelled: it may be waiting for a commit. It finds out at its next read.
        self._failure = error
        self._eof = True
        self._wake_reader()
        FlowControlMixin.connection_lost(self, error)
        self.transport = None
        if self._handler_coroutine is None or self._handler_coroutine.done():
            self._forget(self)

    def eof_received(self) -> bool:
        # A client may close its half behind its last command and still read our replies; with TLS there are no halves.
        self._eof = True
        self._wake_reader()
        return not (self._encrypted or self._lingering)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        busy = self._arrived or self._closing or self._stopping or self._paused  # type: ignore[attr-defined]
        if self._attentive and not busy and self._answers_at_once(data):
            self._answer(data)
            return
        self._arrived = self._arrived + data if self._arrived else data
        self._wake_reader()
        if len(self._arrived) > 2 * BUFFER and not self._held_back and self.transport is not None:
            self._held_back = True
            cast(asyncio.Transport, self.transport).pause_reading()

    def _answer(self, line: bytes) -> None:
        """Answer a command here: to wake the task that runs the dialogue costs as much as most commands."""
        try:
            self._command(line).send(None)
        except StopIteration:
            pass
        except Exception as error:
            self._failure = error  # for the task to say
        self.deadline = min(self.loop.time() + self.service.limits.command_timeout, self._ends)
        transport = cast(asyncio.Transport | None, self.transport)
        if self._closing or self._failure is not None or transport is None or transport.is_closing():
            self._wake_reader()
        else:
            transport.write(b"".join(self._replies))
            self._replies.clear()

    def _wake_reader(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def expire(self, now: float) -> None:
        """The deadline is over: say so and close; called again, because that did not get through, cut it off."""
        if self._closing:
            self.cut()
        else:
            self._hang_up(b"421 4.4.2 Timeout, closing connection\r\n", now)

    def stop(self) -> None:
        """Close now if no transaction is open, else after it."""
        self._stopping = True
        if not (self._in_transaction or self._closing or self._submitting):
            self._hang_up(b"421 4.3.2 Shutting down\r\n", self.loop.time())

    def abandon(self) -> None:
        """Close, unless a message is being committed."""
        if self._lingering:
            self.cut()
        elif not self._submitting:
            self._hang_up(b"421 4.3.2 Shutting down\r\n", self.loop.time())

    def cut(self) -> None:
        """Close at once and say nothing."""
        self._closing = True
        if self.transport is not None:
            cast(asyncio.Transport, self.transport).abort()

    def _hang_up(self, reply: bytes, now: float) -> None:
        if self._lingering:
            return
        self._closing = True
        self.deadline = now + LINGER
        transport = cast(asyncio.Transport | None, self.transport)
        if transport is not None and not transport.is_closing():
            if self._replies or reply:
                transport.write(b"".join([*self._replies, reply]))
            flooded = self._flooded or self._arrived or self._buffer.find(b"\n", self._at) >= 0
            if flooded and not self._eof:
                self._linger(transport)
            else:
                transport.close()
        self._replies.clear()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Close our half only: a socket closed on bytes nobody read resets the peer, who then never sees our reply."""
        self._lingering = True
        self._arrived = b""
        if transport.can_write_eof():
            transport.write_eof()
        if self._held_back:
            transport.resume_reading()

    # -- the command loop ----------------------------------------------------------------------------------------------

    async def _handle_client(self) -> None:
        try:
            self._say(f"220 {self.service.hostname} ESMTP mailerd")
            await self._converse()
            await self._flush()
        except (Gone, ConnectionError, ssl.SSLError):
            pass  # clients come and go; what was lost in content has been logged
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("connection.crashed", peer=self.peer, incident=incident)
            self._replies.append(f"421 4.3.0 Internal error, incident {incident}\r\n".encode())
        finally:
            self._left()
            if self.transport is None:
                self._forget(self)
            elif not self.transport.is_closing():
                self._hang_up(b"", self.loop.time())

    async def _converse(self) -> None:
        while not self._closing:
            line = self._next_line()
            if line is not None:
                await self._command(line)
                self.deadline = min(self.loop.time() + self.service.limits.command_timeout, self._ends)
                if len(self._replies) >= MANY_REPLIES:
                    await self._flush()
                    await asyncio.sleep(0)
                continue
            if self._stopping and not self._in_transaction:
                self._close(421, "4.3.2", "Shutting down")
                return
            await self._flush()
            self._attentive = self._at >= len(self._buffer) and not self._overlong
            try:
                await self._read_more()
            finally:
                self._attentive = False

    def _next_line(self) -> bytes | None:
        """The next line with its end, None when it has not come whole; an endless one is thrown away as it comes."""
        end = self._buffer.find(b"\n", self._at) + 1
        if end == 0:
            if len(self._buffer) - self._at > MAX_ANY_LINE:
                self._overlong = True
            if self._overlong:
                self._at = len(self._buffer)
            return None
        line = self._buffer[self._at : end]
        self._at = end
        if self._overlong:
            self._overlong = False
            return b"x" * MAX_ANY_LINE + b"\r\n"
        return line

    # -- TLS -----------------------------------------------------------------------------------------------------------

    @property
    def _unread(self) -> bool:
        """Has more come than was looked at?"""
        return self._at < len(self._buffer) or bool(self._arrived)

    async def _start_tls(self) -> None:
        """Shake hands. Raises `Gone` when that fails, or when something came before."""
        if self._unread:  # the flush of the 220 may have waited for a peer slow to read
            log.warning("tls.injected", peer=self.peer)
            raise Gone
        self.deadline = self.loop.time() + HANDSHAKE + LINGER
        plain = cast(asyncio.Transport, self.transport)
        try:
            transport = await self.loop.start_tls(
                plain, self, cast(ssl.SSLContext, self.service.tls), server_side=True, ssl_handshake_timeout=HANDSHAKE
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            log.info("tls.failed", peer=self.peer, reason=type(error).__name__)
            plain.abort()
            self.transport = None  # asyncio tells the protocol under TLS of the end, not us
            raise Gone from None
        if transport is None:
            raise Gone
        self.transport = transport
        self._transport = transport  # what asyncio's flow control looks at
        self._over_ssl = True
        self._encrypted = _tls_version(transport)
        self._buffer, self._at = b"", 0

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _rest(self) -> bytes:
        rest = self._buffer[self._at :] if self._at < len(self._buffer) else b""
        self._buffer, self._at = b"", 0
        return rest

    async def _read_more(self) -> None:
        data = await self._read()
        if not data:
            raise Gone
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    async def _read(self) -> bytes:
        """What has come, at least one byte; b"" when the peer has closed. Raises `Gone` when we have."""
        if not self._arrived and not self._eof:
            self._reading = self.loop.create_future()
            try:
                await self._reading
            finally:
                self._reading = None
        if self._closing:
            raise Gone
        if self._failure is not None:
            raise self._failure
        data, self._arrived = self._arrived, b""
        if self._held_back:
            self._held_back = False
            if self.transport is not None:
                cast(asyncio.Transport, self.transport).resume_reading()
        return data

    async def _flush(self) -> None:
        if self._replies:
            transport = cast(asyncio.Transport | None, self.transport)
            if transport is None or transport.is_closing() or self._lingering:
                raise Gone
            transport.write(b"".join(self._replies))
            self._replies.clear()
            if self._paused:  # type: ignore[attr-defined]  # of asyncio's FlowControlMixin
                await self._drain_helper()  # type: ignore[attr-defined]

    def _say(self, reply: str) -> None:
        self._replies.append(f"{reply}\r\n".encode("ascii", "replace"))

    def _refuse_with(self, refused: Refused) -> None:
        metrics.refused("smtp", refused.name)
        self._refuse(refused.code, refused.enhanced, refused.text)

    def _refuse(self, code: int, enhanced: str, text: str) -> None:
        """Say no; a client that is told so too often is sent away."""
        self._errors += code >= 500
        if self._errors > self.service.limits.max_errors:
            return self._close(421, "4.7.0", "Too many errors")
        self._say(f"{code} {enhanced} {one_line(text)}")
        return None

    def _close(self, code: int, enhanced: str, text: str) -> None:
        self._closing = True
        self._say(f"{code} {enhanced} {text}")


def _tls_version(transport: asyncio.BaseTransport) -> str:
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return ""
    cipher = tls.cipher()
    return f"{tls.version()} {cipher[0] if cipher else ''}"


def one_line(text: str) -> str:
    """Words of ours that fit a reply."""
    return " ".join(text.split())[:400]
