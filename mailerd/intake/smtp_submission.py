"""Mail that is submitted: who may, as whom, and the envelope that goes on to `intake.submission`."""
# ruff: noqa: N802 (smtp_AUTH is named by aiosmtpd)

import base64
import binascii
import re

import structlog

from mailerd.errors import Refused, Unavailable
from mailerd.intake.credentials import TOKEN_PREFIX, TRUSTED, Credential
from mailerd.intake.envelope import Envelope, Origin
from mailerd.intake.smtp_connection import FOREVER
from mailerd.intake.smtp_server import SmtpConnection
from mailerd.intake.smtp_service import Service
from mailerd.queue.ids import format_message_id
from mailerd.wire.smtp import MailCommand, RcptCommand

log = structlog.get_logger()

WRONG = Refused(535, "5.7.8", "Authentication credentials invalid", name="bad_credentials")
_LOGGABLE_NAME = re.compile(r"[\w.@+-]{1,64}")


class SubmissionConnection(SmtpConnection):
    """A client that is trusted for its address, or logs in."""

    _auth_failures = 0
    _credential: Credential | None = None

    def _forget_client(self) -> None:
        self._authenticated = False
        self._judge()
        super()._forget_client()

    def _set_rset_state(self) -> None:
        super()._set_rset_state()
        self._origin: Origin | None = None

    def _judge(self) -> None:
        """Is the client trusted for its address? Not asked of one that has logged in."""
        self._judged = True
        may_submit = self.service.listener.auth != "required" and self.service.listener.kind != "inbound"
        self._credential = TRUSTED if may_submit and self.service.trusts(self.peer) else None
        self._origin = None

    def reconfigure(self, service: Service) -> None:
        """Serve by other rules from the next command on; whether the client is trusted is seen at its next MAIL."""
        super().reconfigure(service)
        self._judged = self._authenticated

    # -- what is taken -------------------------------------------------------------------------------------------------

    def _check_client(self) -> None:
        if not self._judged:
            self._judge()
        # With auth optional MAIL is harmless: each RCPT is refused.
        if self._credential is None and self.service.listener.auth != "optional":
            raise Refused(530, "5.7.0", "Authentication required", name="no_credential")

    def _check_mail(self, mail: MailCommand) -> None:
        if self._credential is not None:
            self.service.submitter.check_sender(self._credential, mail.sender)

    def _check_recipient(self, recipient: RcptCommand) -> None:
        if self._credential is None:
            raise Refused(550, "5.7.1", "Relaying denied", name="relay_denied")

    async def _take(self, mail: MailCommand, recipients: list[RcptCommand], content: bytes) -> str:
        envelope = Envelope(
            sender=mail.sender,
            recipients=recipients,
            size=len(content),
            smtputf8=mail.smtputf8,
            eight_bit=not content.isascii(),  # many clients send it unannounced
            ret=mail.ret,
            envid=mail.envid,
            require_tls=mail.require_tls or None,
        )
        submitting = self.service.submitter.submit(envelope, content, self._known_origin())
        del content  # see `_hand_in`
        receipt = await submitting
        left_out = f", but for {len(receipt.suppressed)} suppressed recipients" if receipt.suppressed else ""
        return f"Ok: queued as {format_message_id(receipt.message_id)}{left_out}"

    def _known_origin(self) -> Origin:
        if self._origin is None:
            assert self._credential is not None  # or no recipient was taken
            self._origin = Origin("smtp", self.peer, self._helo, self._encrypted, self._credential)
        return self._origin

    # -- logging in ----------------------------------------------------------------------------------------------------

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
