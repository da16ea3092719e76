"""The dialogue of RFC 5321 and the extensions that we offer, as far as it is the same whatever a listener is for.

What is taken, and from whom, is for the subclasses: mail that is submitted (`smtp_submission`) and what comes back
(`smtp_inbound`).
"""
# ruff: noqa: N802 (smtp_MAIL and its like are named by aiosmtpd)

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import cast

import structlog

from mailerd.errors import Refused, Unavailable
from mailerd.intake.smtp_connection import FOREVER, Connection, Gone, one_line
from mailerd.intake.smtp_content import Incoming, finished, no_memory, read_chunk, read_data, too_big
from mailerd.intake.smtp_service import Service
from mailerd.wire.smtp import MailCommand, RcptCommand, parse_mail, parse_rcpt

log = structlog.get_logger()

MAX_LINE = 512  # RFC 5321 section 4.5.3.1.4
MAX_LINES = {b"MAIL": 2_048, b"RCPT": 2_048, b"AUTH": 12_288}  # with room for the parameters of RFC 3461, 4954, 6531

# A web page can have the browser of somebody we trust post to us; commands would follow among the headers and the body.
HTTP_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"})
BEFORE_TLS = frozenset({b"EHLO", b"HELO", b"NOOP", b"RSET", b"QUIT", b"HELP", b"STARTTLS"})
COMMANDS = {
    verb.encode(): f"smtp_{verb}"
    for verb in (
        *("HELO", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA"),
        *("BDAT", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP"),
    )
}
AT_ONCE = (b"MAIL ", b"RCPT ")  # commands of each message that wait for nothing
_HELO_NAME = re.compile(r"[!-~]{1,255}")
_BDAT = re.compile(r"([0-9]{1,20})(?: +(LAST))?", re.IGNORECASE)


class SmtpConnection(Connection):
    """Takes message after message. 250 is said after `_take` returned; a client that goes away does not stop that."""

    def __init__(
        self, service: Service, peer: str, forget: Callable[[Connection], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(service, peer, forget, loop)
        self._incoming: Incoming | None = None
        self._forget_client()

    def _forget_client(self) -> None:
        """Know nothing of the client, as at the start or after STARTTLS (RFC 3207 section 4.2)."""
        self._helo = ""
        self._set_rset_state()

    def reconfigure(self, service: Service) -> None:
        """Serve by other rules from the next command on."""
        self.service = service

    def _set_rset_state(self) -> None:
        self._mail: MailCommand | None = None
        self._recipients: list[RcptCommand] = []
        self._end_incoming()

    @property
    def _in_transaction(self) -> bool:
        return self._mail is not None

    def _left(self) -> None:
        self._end_incoming()

    # -- for the purpose of the listener to say ------------------------------------------------------------------------

    def _check_client(self) -> None:
        """Raise `Refused` when this client may not begin a transaction."""

    def _check_mail(self, mail: MailCommand) -> None:
        """Raise `Refused` when mail like this is not taken."""
        raise NotImplementedError

    def _check_recipient(self, recipient: RcptCommand) -> None:
        """Raise `Refused` when this recipient is not taken."""
        raise NotImplementedError

    async def _take(self, mail: MailCommand, recipients: list[RcptCommand], content: bytes) -> str:
        """Take responsibility, and return what to say behind the 250. Raises `Refused` or `Unavailable`."""
        raise NotImplementedError

    def _answers_at_once(self, line: bytes) -> bool:
        return line.startswith(AT_ONCE) and line.find(b"\n") == len(line) - 1

    # -- commands ------------------------------------------------------------------------------------------------------

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
            await getattr(self, method)(text)
        except Refused as refused:
            self._refuse_with(refused)
        return None

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
        if self._unread:
            # Somebody in the middle may have put it there, to be executed as if it had come encrypted (CVE-2011-0411).
            return self._close(501, "5.5.2", "Nothing may follow STARTTLS before the handshake")
        self._say("220 2.0.0 Ready to start TLS")
        await self._flush()
        await self._start_tls()
        self._forget_client()
        return None

    async def smtp_AUTH(self, arg: str) -> None:
        self._refuse(502, "5.5.1", "AUTH is not available")

    async def smtp_MAIL(self, arg: str | None) -> None:
        if not self._helo:
            return self._refuse(503, "5.5.1", "Send EHLO first")
        if self._mail is not None:
            return self._refuse(503, "5.5.1", "Nested MAIL command")
        self._check_client()
        mail = parse_mail(arg or "")
        if mail.require_tls and not self._encrypted:
            return self._refuse(530, "5.7.10", "REQUIRETLS needs TLS here too: STARTTLS first")
        if mail.size is not None and mail.size > self.service.limits.max_size:
            raise too_big(self.service.limits.max_size)
        if not self.service.memory.has_room(mail.size or 0):
            raise no_memory()
        self._check_mail(mail)
        self._mail = mail
        self._replies.append(b"250 2.1.0 Ok\r\n")
        return None

    async def smtp_RCPT(self, arg: str | None) -> None:
        mail = self._mail
        if mail is None:
            return self._refuse(503, "5.5.1", "Need MAIL command")
        if len(self._recipients) >= self.service.limits.max_recipients:
            return self._refuse(452, "4.5.3", "Too many recipients")
        recipient = parse_rcpt(arg or "", smtputf8=mail.smtputf8)
        self._check_recipient(recipient)
        self._recipients.append(recipient)
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
        await self._hand_in(incoming, stuffed=True)
        return None

    async def smtp_BDAT(self, arg: str) -> None:
        match = _BDAT.fullmatch(arg)
        if match is None:  # where the chunk ends cannot be known, so nothing more can be a command
            return self._close(501, "5.5.4", "Syntax: BDAT size [LAST]")
        if self._incoming is None:
            self._ends = self.loop.time() + self.service.limits.data_timeout  # of all chunks together
            self._incoming = Incoming(self.service.memory, self.service.limits.max_size, self._no_recipients())
        incoming, self.deadline = self._incoming, self._ends
        rest = await read_chunk(self._rest(), int(match[1]), self._read, incoming)
        if rest is None:
            raise self._cut_off(incoming)
        self._buffer, self._at = rest, 0
        if match[2]:
            await self._hand_in(incoming, stuffed=False)
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

    async def _hand_in(self, incoming: Incoming, *, stuffed: bool) -> None:
        """Hand the message in and say what became of it; the transaction is over then, in any case."""
        self._submitting, self.deadline = True, FOREVER
        try:
            long_lines = self.service.limits.long_lines == "accept"
            # Held by who takes it alone: until it is on disk, a copy of another would make it twice as large.
            words = await self._take(
                cast(MailCommand, self._mail),
                self._recipients,
                finished(incoming, stuffed=stuffed, long_lines=long_lines),
            )
            self._errors = 0
            self._say(f"250 2.0.0 {words}")
        except Refused as refused:  # no error of the dialogue: not counted
            self._say(f"{refused.code} {refused.enhanced} {one_line(refused.text)}")
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

    def _end_transaction(self) -> None:
        self._mail = None
        self._recipients = []
        self._end_incoming()

    def _end_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
        self._incoming, self._ends = None, FOREVER

    def _cut_off(self, incoming: Incoming) -> Gone:
        """The end of the content was not seen: whatever comes is content, and is not read."""
        if incoming.hopeless:
            self._flooded = True
            self._say("552 5.3.4 Message is much too large")
        else:
            log.info("connection.lost", peer=self.peer, during="content", size=incoming.size)
        return Gone()
