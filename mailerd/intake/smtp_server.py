"""One SMTP connection of a client: the dialogue of RFC 5321 and the extensions that we offer.

aiosmtpd's class with a command loop of our own. A read may hold many pipelined commands, answered by one write. What
the stock class finds out by introspection for each connection is here a table made once.
"""
# ruff: noqa: N802 (smtp_MAIL and its like are named by aiosmtpd)

import asyncio
import base64
import binascii
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, cast

import structlog
from aiosmtpd.smtp import SMTP

from mailerd import config, metrics
from mailerd.errors import Refused, Unavailable
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import TOKEN_PREFIX, TRUSTED, Credential
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.smtp_content import Incoming, Memory, finished, no_memory, read_chunk, read_data, too_big
from mailerd.queue.ids import format_message_id
from mailerd.wire.smtp import MailCommand, RcptCommand, parse_mail, parse_rcpt

log = structlog.get_logger()

READ = 1 << 18  # bytes, at most, that one read takes from the buffer of the connection
BUFFER = 1 << 16  # bytes unread at which the kernel is left to hold the peer back; twice that is the most we hold
HANDSHAKE = 30.0  # seconds for TLS
LINGER = 5.0  # seconds for a closed connection to get its last reply out
FOREVER = float("inf")

MAX_LINE = 512  # RFC 5321 section 4.5.3.1.4
MAX_LINES = {b"MAIL": 2_048, b"RCPT": 2_048, b"AUTH": 12_288}  # with room for the parameters of RFC 3461, 4954, 6531
MAX_ANY_LINE = 12_288  # RFC 4954 section 4

# A web page can have the browser of somebody we trust post to us; commands would follow among the headers and the body.
HTTP_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"})
BEFORE_TLS = frozenset({b"EHLO", b"HELO", b"NOOP", b"RSET", b"QUIT", b"HELP", b"STARTTLS"})
_HELO_NAME = re.compile(r"[!-~]{1,255}")
_BDAT = re.compile(r"([0-9]{1,20})(?: +(LAST))?", re.IGNORECASE)
_LOGGABLE_NAME = re.compile(r"[\w.@+-]{1,64}")

WRONG = Refused(535, "5.7.8", "Authentication credentials invalid", name="bad_credentials")


class Accepts(Protocol):
    """Where messages go."""

    def check_sender(self, credential: Credential, sender: str) -> None:
        """Raise `Refused` when this credential may not send as `sender` ("" is the null sender), or not now."""

    async def submit(self, envelope: Envelope, content: bytes, origin: Origin) -> Receipt:
        """Return when the message is on disk; raise `Refused` or `Unavailable` when it is not."""


@dataclass(frozen=True, slots=True)
class Service:
    """What all connections of one listener share. `trusts` says whether a peer may submit without AUTH."""

    listener: config.Listener
    limits: config.Smtp
    hostname: str
    submitter: Accepts
    authenticator: Authenticator
    memory: Memory
    tls: ssl.SSLContext | None
    trusts: Callable[[str], bool]

    @property
    def offers_starttls(self) -> bool:
        return self.tls is not None and self.listener.kind != "submissions" and self.listener.starttls != "off"

    def offers_auth(self, encrypted: bool) -> bool:
        """AUTH needs TLS, except where only this machine can listen in, or the operator says so."""
        if self.listener.kind == "inbound":
            return False
        return encrypted or self.listener.takes_auth_in_clear

    def ehlo_lines(self, encrypted: bool) -> list[str]:
        lines = [
            self.hostname,
            "PIPELINING",
            f"SIZE {int(self.limits.max_size)}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "DSN",
            "CHUNKING",
            f"LIMITS RCPTMAX={self.limits.max_recipients}",
        ]
        if encrypted:
            lines.append("REQUIRETLS")  # RFC 8689 section 2: never in the clear
        elif self.offers_starttls:
            lines.append("STARTTLS")
        if self.offers_auth(encrypted):
            lines.append("AUTH PLAIN LOGIN")
        return lines


class Gone(Exception):  # noqa: N818 (nothing went wrong)
    """The peer is no longer there, or may no longer be listened to."""


class SmtpConnection(SMTP):
    """Serves one client until it leaves, is silent or wrong for too long, or `stop` is called.

    Content is passed to `Accepts.submit`, and 250 is said after that returned. A client that goes away in the meantime
    does not interrupt it. Deadlines are not timers but a number, `deadline`, that the listener compares now and then:
    ten thousand idle connections have no timer each.
    """

    def __init__(
        self, service: Service, peer: str, forget: Callable[["SmtpConnection"], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        # Not SMTP.__init__: it inspects the class and the handler again for each connection.
        self._reader = asyncio.StreamReader(limit=BUFFER, loop=loop)
        asyncio.StreamReaderProtocol.__init__(self, self._reader, loop=loop)
        self.loop = loop
        self.transport = None
        self._handler_coroutine = None
        self.service = service
        self.peer = peer
        self.deadline = loop.time() + HANDSHAKE
        self._forget = forget
        self._buffer = b""  # received, from `_at` on not yet looked at
        self._at = 0
        self._overlong = False  # the line that is coming is being thrown away
        self._replies: list[bytes] = []
        self._closing = False  # no more commands are taken
        self._stopping = False  # the same, after the transaction that is open
        self._submitting = False
        self._incoming: Incoming | None = None
        self._errors = 0
        self._auth_failures = 0
        self._origin: Origin | None = None
        self._encrypted = ""
        self._forget_client()

    def _forget_client(self) -> None:
        """Know nothing of the client, as at the start or after STARTTLS (RFC 3207 section 4.2)."""
        self._helo = ""
        self._authenticated = False
        self._judge()
        self._set_rset_state()

    def _judge(self) -> None:
        """Is the client trusted for its address? Not asked of one that has logged in."""
        self._judged = True
        may_submit = self.service.listener.auth != "required" and self.service.listener.kind != "inbound"
        self._credential = TRUSTED if may_submit and self.service.trusts(self.peer) else None
        self._origin = None

    def reconfigure(self, service: Service) -> None:
        """Serve by other rules from the next command on; whether the client is trusted is seen at its next MAIL."""
        self.service = service
        self._judged = self._authenticated

    def _set_rset_state(self) -> None:
        self._mail: MailCommand | None = None
        self._recipients: list[RcptCommand] = []
        self._origin = None
        self._end_incoming()

    # -- the connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        asyncio.StreamReaderProtocol.connection_made(self, transport)
        self.transport = transport
        self._encrypted = _tls_version(transport)
        self.deadline = self.loop.time() + self.service.limits.command_timeout
        self._handler_coroutine = self.loop.create_task(self._handle_client())

    def connection_lost(self, error: Exception | None) -> None:
        # The handler is not cancelled: it may be waiting for a commit. It finds out at its next read.
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        if self._handler_coroutine is None or self._handler_coroutine.done():
            self._forget(self)

    def eof_received(self) -> bool:
        # A client may close its half behind its last command and still read our replies; with TLS there are no halves.
        self._reader.feed_eof()
        return not self._encrypted

    def expire(self, now: float) -> None:
        """The deadline is over: say so and close; called again, because that did not get through, cut it off."""
        if self._closing:
            self.cut()
        else:
            self._hang_up(b"421 4.4.2 Timeout, closing connection\r\n", now)

    def stop(self) -> None:
        """Close now if no transaction is open, else after it."""
        self._stopping = True
        if self._mail is None and not self._closing and not self._submitting:
            self._hang_up(b"421 4.3.2 Shutting down\r\n", self.loop.time())

    def abandon(self) -> None:
        """Close, unless a message is being committed."""
        if not self._submitting:
            self._hang_up(b"421 4.3.2 Shutting down\r\n", self.loop.time())

    def cut(self) -> None:
        """Close at once and say nothing."""
        self._closing = True
        if self.transport is not None:
            cast(asyncio.Transport, self.transport).abort()

    def _hang_up(self, reply: bytes, now: float) -> None:
        self._closing = True
        self.deadline = now + LINGER
        transport = cast(asyncio.Transport | None, self.transport)
        if transport is not None and not transport.is_closing():
            if self._replies or reply:
                transport.write(b"".join([*self._replies, reply]))
            transport.close()
        self._replies.clear()

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
            self._end_incoming()
            if self.transport is None:
                self._forget(self)
            elif not self.transport.is_closing():
                self._hang_up(b"", self.loop.time())

    async def _converse(self) -> None:
        while not self._closing:
            line = self._next_line()
            if line is not None:
                await self._command(line)
                self.deadline = self.loop.time() + self.service.limits.command_timeout
                continue
            if self._stopping and self._mail is None:
                self._close(421, "4.3.2", "Shutting down")
                return
            await self._flush()
            await self._read_more()

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

    async def _command(self, line: bytes) -> None:
        verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
        verb = verb.upper()
        # The chunk behind a BDAT that we do not understand must not be taken for commands.
        no = self._close if verb == b"BDAT" else self._refuse
        if not line.endswith(b"\r\n") or line.find(b"\r", 0, -2) >= 0 or b"\0" in line:
            return no(500, "5.5.2", "Command lines end in CRLF and hold no other CR, LF or NUL")
        if len(line) > MAX_LINES.get(verb, MAX_LINE):
            return no(500, "5.5.6", "Line too long")
        if verb in HTTP_METHODS:
            return self._close(421, "5.5.2", "This is not a web server")
        method = COMMANDS.get(verb)
        if method is None:
            return no(500, "5.5.2", "Command not recognized")
        try:
            text = argument.strip(b" \t").decode()
        except UnicodeDecodeError:
            return no(501, "5.5.2", "Command is neither ASCII nor UTF-8")
        if self.service.listener.starttls == "required" and not self._encrypted and verb not in BEFORE_TLS:
            return no(530, "5.7.0", "Must issue a STARTTLS command first")
        try:
            await method(self, text)
        except Refused as refused:
            self._refuse_with(refused)
        return None

    # -- commands ------------------------------------------------------------------------------------------------------

    async def smtp_HELO(self, hostname: str) -> None:
        if not _HELO_NAME.fullmatch(hostname):
            return self._refuse(501, "5.5.4", "Syntax: HELO hostname")
        self._set_rset_state()
        self._helo = hostname
        self._say(f"250 {self.service.hostname}")
        return None

    async def smtp_EHLO(self, hostname: str) -> None:
        if not _HELO_NAME.fullmatch(hostname):
            return self._refuse(501, "5.5.4", "Syntax: EHLO hostname")
        self._set_rset_state()
        self._helo = hostname
        *lines, last = self.service.ehlo_lines(bool(self._encrypted))
        self._say("".join(f"250-{line}\r\n" for line in lines) + f"250 {last}")
        return None

    async def smtp_STARTTLS(self, arg: str) -> None:
        if not self.service.offers_starttls:
            return self._refuse(502, "5.5.1", "STARTTLS is not available")
        if self._encrypted:
            return self._refuse(503, "5.5.1", "TLS is on already")
        if arg:
            return self._refuse(501, "5.5.4", "Syntax: STARTTLS")
        if self._at < len(self._buffer) or self._reader._buffer:  # type: ignore[attr-defined]
            # Somebody in the middle may have put it there, to be executed as if it had come encrypted (CVE-2011-0411).
            return self._close(501, "5.5.2", "Nothing may follow STARTTLS before the handshake")
        self._say("220 2.0.0 Ready to start TLS")
        await self._flush()
        if self._reader._buffer:  # type: ignore[attr-defined]  # the flush may have waited for a peer slow to read
            log.warning("tls.injected", peer=self.peer)
            raise Gone
        self.deadline = self.loop.time() + HANDSHAKE + LINGER
        await self._start_tls()
        self._forget_client()
        return None

    async def _start_tls(self) -> None:
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
        self._reader._transport = transport  # type: ignore[attr-defined]
        self._transport = transport  # what asyncio's flow control looks at
        self._over_ssl = True
        self._encrypted = _tls_version(transport)
        self._buffer, self._at = b"", 0

    async def smtp_AUTH(self, arg: str) -> None:
        mechanism, _, initial = arg.partition(" ")
        mechanism = mechanism.upper()
        if not self._helo:
            return self._refuse(503, "5.5.1", "Send EHLO first")
        if self._authenticated or self._mail is not None:
            return self._refuse(503, "5.5.1", "Not now: authenticated already, or a transaction is open")
        if not self.service.offers_auth(bool(self._encrypted)):
            if self.service.offers_auth(encrypted=True) and self.service.offers_starttls:
                return self._refuse(538, "5.7.11", "Encryption required: STARTTLS first")
            return self._refuse(502, "5.5.1", "AUTH is not available")
        if mechanism == "PLAIN":
            username, password = await self._ask_plain(initial)
        elif mechanism == "LOGIN":
            username = _text(_base64(initial) if initial else await self._challenge(b"Username:"))
            password = _text(await self._challenge(b"Password:"))
        else:
            return self._refuse(504, "5.5.4", "Mechanisms are PLAIN and LOGIN")
        await self._check_login(username, password)
        return None

    async def _ask_plain(self, initial: str) -> tuple[str, str]:
        response = _base64(initial) if initial else await self._challenge(b"")
        identity, *rest = response.split(b"\0")
        if len(rest) != 2 or (identity and identity != rest[0]):  # nobody acts for somebody else here
            raise Refused(501, "5.5.2", "PLAIN is NUL, name, NUL, password", name="bad_auth")
        return _text(rest[0]), _text(rest[1])

    async def _challenge(self, challenge: bytes) -> bytes:
        self._say(f"334 {base64.b64encode(challenge).decode()}")
        await self._flush()
        while (line := self._next_line()) is None:
            await self._read_more()
        answer = line.rstrip(b"\r\n")
        if answer == b"*":
            raise Refused(501, "5.7.0", "Authentication cancelled", name="auth_cancelled")
        return _base64(answer.decode("latin-1"))

    async def _check_login(self, username: str, password: str) -> None:
        self._submitting, self.deadline = True, FOREVER  # as with a commit: the database sets the pace
        try:
            credential = await self.service.authenticator.password(username, password, self.peer)
        except Unavailable:
            log.warning("auth.unavailable", peer=self.peer)
            return self._refuse(454, "4.7.0", "Temporary authentication failure")
        except Refused as refused:
            return self._auth_failed(username, refused)
        finally:
            self._submitting = False
        if credential is None:
            return self._auth_failed(username, WRONG)
        if "send" not in credential.scopes:
            return self._refuse(535, "5.7.8", "This credential may not send mail: it lacks the scope send")
        self._credential, self._authenticated, self._origin = credential, True, None
        self._say("235 2.7.0 Authentication succeeded")
        return None

    def _auth_failed(self, username: str, refusal: Refused) -> None:
        self._auth_failures += 1
        named = _LOGGABLE_NAME.fullmatch(username) and not username.startswith(TOKEN_PREFIX)
        log.warning("auth.failed", peer=self.peer, username=username if named else "?", reason=refusal.name)
        if self._auth_failures >= self.service.limits.max_auth_failures:
            self._close(421, "4.7.0", "Too many authentication failures")
        else:
            self._refuse_with(refusal)

    async def smtp_MAIL(self, arg: str | None) -> None:
        if not self._helo:
            return self._refuse(503, "5.5.1", "Send EHLO first")
        if self._mail is not None:
            return self._refuse(503, "5.5.1", "Nested MAIL command")
        if not self._judged:
            self._judge()
        if self._credential is None and self._needs_credential:
            return self._refuse(530, "5.7.0", "Authentication required")
        mail = parse_mail(arg or "")
        if mail.require_tls and not self._encrypted:
            return self._refuse(530, "5.7.10", "REQUIRETLS needs TLS here too: STARTTLS first")
        if mail.size is not None and mail.size > self.service.limits.max_size:
            raise too_big(self.service.limits.max_size)
        if not self.service.memory.has_room(mail.size or 0):
            raise no_memory()
        if self._credential is not None:
            self.service.submitter.check_sender(self._credential, mail.sender)
        self._mail = mail
        self._replies.append(b"250 2.1.0 Ok\r\n")
        return None

    @property
    def _needs_credential(self) -> bool:
        """Whether MAIL is refused without one. Elsewhere MAIL is harmless: each RCPT is refused."""
        return self.service.listener.kind != "inbound" and self.service.listener.auth != "optional"

    async def smtp_RCPT(self, arg: str | None) -> None:
        mail = self._mail
        if mail is None:
            return self._refuse(503, "5.5.1", "Need MAIL command")
        if self._credential is None:
            return self._refuse(550, "5.7.1", "Relaying denied")
        if len(self._recipients) >= self.service.limits.max_recipients:
            return self._refuse(452, "4.5.3", "Too many recipients")
        self._recipients.append(parse_rcpt(arg or "", smtputf8=mail.smtputf8))
        self._replies.append(b"250 2.1.5 Ok\r\n")
        return None

    async def smtp_DATA(self, arg: str) -> None:
        if arg:
            return self._refuse(501, "5.5.4", "Syntax: DATA")
        if self._incoming is not None:
            return self._refuse(503, "5.5.1", "DATA after BDAT")
        refusal = self._no_recipients()
        if refusal is not None:
            raise refusal
        self._replies.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        await self._flush()
        self.deadline = self.loop.time() + self.service.limits.data_timeout
        self._incoming = incoming = Incoming(self.service.memory, self.service.limits.max_size)
        rest = await read_data(self._rest(), self._read, incoming)
        if rest is None:
            raise self._cut_off(incoming)
        self._buffer, self._at = rest, 0
        await self._submit(incoming, stuffed=True)
        return None

    async def smtp_BDAT(self, arg: str) -> None:
        match = _BDAT.fullmatch(arg)
        if match is None:  # where the chunk ends cannot be known, so nothing more can be a command
            return self._close(501, "5.5.4", "Syntax: BDAT size [LAST]")
        if self._incoming is None:
            self.deadline = self.loop.time() + self.service.limits.data_timeout
            self._incoming = Incoming(self.service.memory, self.service.limits.max_size, self._no_recipients())
        incoming = self._incoming
        rest = await read_chunk(self._rest(), int(match[1]), self._read, incoming)
        if rest is None:
            raise self._cut_off(incoming)
        self._buffer, self._at = rest, 0
        if match[2]:
            await self._submit(incoming, stuffed=False)
        elif incoming.refusal is not None:
            self._refuse_with(incoming.refusal)
        else:
            self._say(f"250 2.0.0 {int(match[1])} bytes")
        return None

    async def smtp_RSET(self, arg: str) -> None:
        self._set_rset_state()
        self._replies.append(b"250 2.0.0 Ok\r\n")

    async def smtp_NOOP(self, arg: str) -> None:
        self._say("250 2.0.0 Ok")

    async def smtp_QUIT(self, arg: str) -> None:
        self._closing = True
        self._say("221 2.0.0 Bye")

    async def smtp_VRFY(self, arg: str) -> None:
        self._say("252 2.0.0 Cannot VRFY user, send the mail to find out")

    async def smtp_EXPN(self, arg: str) -> None:
        self._refuse(502, "5.5.1", "EXPN is not available")

    async def smtp_HELP(self, arg: str) -> None:
        self._say("214 2.0.0 See RFC 5321")

    # -- a message -----------------------------------------------------------------------------------------------------

    def _no_recipients(self) -> Refused | None:
        if self._mail is None:
            return Refused(503, "5.5.1", "Need MAIL command", name="bad_sequence")
        if not self._recipients:
            return Refused(554, "5.5.1", "No valid recipients", name="no_recipients")
        return None

    async def _submit(self, incoming: Incoming, *, stuffed: bool) -> None:
        """Hand the message in and say what became of it; the transaction is over then, in any case."""
        self._submitting, self.deadline = True, FOREVER
        try:
            content = finished(incoming, stuffed=stuffed, long_lines=self.service.limits.long_lines == "accept")
            receipt = await self.service.submitter.submit(self._envelope(content), content, self._known_origin())
            self._errors = 0
            self._say(f"250 2.0.0 Ok: queued as {format_message_id(receipt.message_id)}")
        except Refused as refused:  # no error of the dialogue: not counted
            self._say(f"{refused.code} {refused.enhanced} {_one_line(refused.text)}")
        except Unavailable as error:
            log.warning("submission.unavailable", peer=self.peer, reason=str(error))
            self._say("451 4.3.0 Cannot take mail now, try again later")
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("submission.crashed", peer=self.peer, incident=incident)
            self._say(f"451 4.3.0 Internal error, incident {incident}")
        finally:
            self._submitting = False
            self._end_transaction()

    def _envelope(self, content: bytes) -> Envelope:
        mail = cast(MailCommand, self._mail)
        return Envelope(
            sender=mail.sender,
            recipients=self._recipients,
            size=len(content),
            smtputf8=mail.smtputf8,
            eight_bit=not content.isascii(),  # many clients send it unannounced
            ret=mail.ret,
            envid=mail.envid,
            require_tls=mail.require_tls or None,
        )

    def _known_origin(self) -> Origin:
        if self._origin is None:
            self._origin = Origin("smtp", self.peer, self._helo, self._encrypted, cast(Credential, self._credential))
        return self._origin

    def _end_transaction(self) -> None:
        self._mail = None
        self._recipients = []
        self._end_incoming()

    def _end_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
        self._incoming = None

    def _cut_off(self, incoming: Incoming) -> Gone:
        """The end of the content was not seen: whatever comes is content, and is not read."""
        if incoming.hopeless:
            self._say("552 5.3.4 Message is much too large")
        else:
            log.info("connection.lost", peer=self.peer, during="content", size=incoming.size)
        return Gone()

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
        data = await self._reader.read(READ)
        if self._closing:
            raise Gone
        return data

    async def _flush(self) -> None:
        if self._replies:
            transport = cast(asyncio.Transport | None, self.transport)
            if transport is None or transport.is_closing():
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
        self._say(f"{code} {enhanced} {_one_line(text)}")
        return None

    def _close(self, code: int, enhanced: str, text: str) -> None:
        self._closing = True
        self._say(f"{code} {enhanced} {text}")


COMMANDS: dict[bytes, Callable[[SmtpConnection, str], Awaitable[None]]] = {
    b"HELO": SmtpConnection.smtp_HELO,
    b"EHLO": SmtpConnection.smtp_EHLO,
    b"STARTTLS": SmtpConnection.smtp_STARTTLS,
    b"AUTH": SmtpConnection.smtp_AUTH,
    b"MAIL": SmtpConnection.smtp_MAIL,
    b"RCPT": SmtpConnection.smtp_RCPT,
    b"DATA": SmtpConnection.smtp_DATA,
    b"BDAT": SmtpConnection.smtp_BDAT,
    b"RSET": SmtpConnection.smtp_RSET,
    b"NOOP": SmtpConnection.smtp_NOOP,
    b"QUIT": SmtpConnection.smtp_QUIT,
    b"VRFY": SmtpConnection.smtp_VRFY,
    b"EXPN": SmtpConnection.smtp_EXPN,
    b"HELP": SmtpConnection.smtp_HELP,
}


def _tls_version(transport: asyncio.BaseTransport) -> str:
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return ""
    cipher = tls.cipher()
    return f"{tls.version()} {cipher[0] if cipher else ''}"


def _base64(text: str) -> bytes:
    try:
        return b"" if text == "=" else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(501, "5.5.2", "Not base64", name="bad_auth") from None


def _text(data: bytes) -> str:
    """A name or password as text. NUL is in neither, and PostgreSQL would not take it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Refused(501, "5.5.2", "Name and password are UTF-8", name="bad_auth") from None
    if "\0" in text:
        raise Refused(501, "5.5.2", "No NUL in name or password", name="bad_auth")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]
