"""One SMTP connection to a host: opened with aiosmtplib, then used by our own transactions.

aiosmtplib does the greeting, EHLO, STARTTLS and AUTH. Once that is done its protocol is replaced by `Pipeline` on the
same transport: aiosmtplib waits for each reply before it writes the next command, and drops replies that it did not
expect, so that it can neither pipeline nor notice a peer that is out of step. The TCP connection is ours too: it would
share one timeout between connect and greeting, and bind a source address in a way that runs out of ports.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import aiosmtplib

from mailerd.config import RouteAuth
from mailerd.delivery import tls_client
from mailerd.delivery.pipeline import Pipeline
from mailerd.delivery.transaction import Conversation, Features, Mail, Step, Timeouts, Transaction
from mailerd.delivery.verdict import Verdict, classify, network_verdict
from mailerd.errors import LocalProtocolError, MailerdError
from mailerd.wire.smtp import Reply, parse_ehlo

if TYPE_CHECKING:
    from mailerd.delivery.routing import Host

DEFAULT_TIMEOUTS = Timeouts()
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python 3.11 has no name for it
UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN, errno.ENETDOWN})


class SessionError(MailerdError):
    """No session with `host`: `verdict` is that of every recipient, `steps` how far it came. Try the next host."""

    def __init__(self, verdict: Verdict, host: "Host", stage: str, steps: Sequence[Step] = ()) -> None:
        super().__init__(f"{host.name or host.address}: {stage}: {verdict}")
        self.verdict = verdict
        self.host = host
        self.stage = stage
        self.steps = list(steps)


class Session:
    """An open SMTP connection. One transaction at a time.

    `host`, `extensions` (upper-case keyword → parameters), `features`, `sent` (transactions), `steps` (replies of the
    opening, for the trace). `tls` is `TLSv1.3 TLS_AES_256_GCM_SHA384`, or "" in clear; then `tls_failure` says why, if
    encryption was tried (tls `opportunistic`).
    """

    def __init__(self, host: "Host", opening: "_Opening", timeouts: Timeouts) -> None:
        client = opening.client
        self.host = host
        self.extensions = opening.extensions
        self.features = _features(opening.extensions)
        self.steps = opening.steps
        self.sent = 0
        transport = cast(asyncio.Transport, client.transport)
        self._ssl_object = transport.get_extra_info("ssl_object")
        self._tls_context = opening.context
        self.tls = tls_client.describe(self._ssl_object)
        self.tls_resumed = self._ssl_object is not None and bool(self._ssl_object.session_reused)
        self.tls_failure = opening.tls_failure
        self._timeouts = timeouts
        self._pipeline = Pipeline(transport)

    @classmethod
    async def open(
        cls,
        host: "Host",
        *,
        ehlo: str,
        tls: str = "opportunistic",
        auth: RouteAuth | None = None,
        source: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        trust: str | None = None,
    ) -> "Session":
        """Connect, from the address `source` if given; greet, encrypt by `tls`, log in. Raises SessionError.

        `tls` is that of RouteRule: `opportunistic` encrypts if it can, and after a failed handshake connects once more
        in clear; `required` encrypts whatever the certificate; `verify` wants a certificate for the host's name, and
        so does `implicit`, with TLS from the first byte. A password is only ever sent in clear with tls `none`.
        `trust`: a PEM file of CAs instead of the system's.
        """
        opening = _Opening(host, ehlo, tls, auth, source, timeouts, trust)
        try:
            await opening.run()
        except _HandshakeError as failure:
            if tls != "opportunistic" or auth is not None:
                raise SessionError(
                    network_verdict("tls_failed", str(failure)), host, "starttls", opening.steps
                ) from failure
            steps = opening.steps
            opening = _Opening(host, ehlo, "none", auth, source, timeouts, trust)
            opening.steps = steps
            opening.tls_failure = str(failure)
            await opening.run()
        return cls(host, opening, timeouts)

    @property
    def alive(self) -> bool:
        """False once the peer closed, said 421 or broke the protocol, or has had all the transactions it allows."""
        most = self.features.mail_max
        return self._pipeline.trouble is None and (most is None or self.sent < most)

    @property
    def supports_8bit(self) -> bool:
        """False: 8-bit content has to be converted before it is signed (`wire.downgrade`), else it bounces here."""
        return self.features.eight_bit

    async def transact(
        self,
        sender: str,
        recipients: list[str],
        content: bytes,
        *,
        smtputf8: bool = False,
        eight_bit: bool = False,
        ret: str = "",
        envid: str = "",
        rcpt_params: Sequence[str] = (),
        on_dot: Callable[[], None] | None = None,
    ) -> Transaction:
        """Send `content` (CRLF lines, unstuffed) to `recipients`; whatever the peer does becomes a result for each.

        `rcpt_params`: for each recipient, `transaction.dsn_parameters()`; written if the peer offers DSN. `on_dot` is
        called right before the content is written, if it is. Raises LocalProtocolError for an address that holds a line
        break or the like, before anything is written. When cancelled, the connection is cut.
        """
        mail = Mail(sender, recipients, content, smtputf8, eight_bit, ret, envid, rcpt_params)
        kept = self.sent > 0
        transaction = await Conversation(self._pipeline, self.features, self._timeouts, mail, on_dot).run()
        self.sent += 1
        if not kept and self._tls_context is not None and self._ssl_object is not None:
            self._tls_context.remember(_tls_name(self.host), self._ssl_object.session)
        if transaction.usable and self.alive and (kept or not transaction.stale):
            return transaction
        return transaction._replace(usable=self.alive, stale=transaction.stale and kept)

    async def quit(self) -> None:
        """End in order: QUIT, its reply (or `Timeouts.quit` seconds), close."""
        await self._pipeline.exchange(b"QUIT\r\n", 1, self._timeouts.quit)
        self._pipeline.fail("closed", "closed by us")

    def close(self) -> None:
        """Say QUIT and close without waiting for anything."""
        self._pipeline.close()


class _HandshakeError(Exception):
    """The peer offered STARTTLS, and then the handshake failed."""


class _Opening:
    """The steps from nothing to a connection that may carry transactions."""

    def __init__(
        self,
        host: "Host",
        ehlo: str,
        tls: str,
        auth: RouteAuth | None,
        source: str | None,
        timeouts: Timeouts,
        trust: str | None,
    ) -> None:
        self.steps: list[Step] = []
        self.extensions: dict[str, str] = {}
        self.tls_failure = ""
        self.context: tls_client.ResumingContext | None = None
        self.client: aiosmtplib.SMTP
        self._host = host
        self._ehlo_name = ehlo
        self._tls = tls
        self._auth = auth
        self._source = source
        self._timeouts = timeouts
        if tls != "none":
            self.context = tls_client.client_context(tls in ("verify", "implicit"), trust)
        self._stage = "connect"

    async def run(self) -> None:
        sock = await self._connect()
        implicit = self._tls == "implicit"
        self.client = aiosmtplib.SMTP(
            hostname=_tls_name(self._host),
            sock=sock,
            local_hostname=self._ehlo_name,
            start_tls=False,
            use_tls=implicit,
            tls_context=self.context if implicit else None,
        )
        try:
            await self._converse()
        except BaseException as error:
            self._abort()
            sock.close()
            if isinstance(error, Exception) and not isinstance(error, _HandshakeError | LocalProtocolError):
                raise SessionError(self._verdict(error), self._host, self._stage, self.steps) from error
            raise

    async def _connect(self) -> socket.socket:
        host = self._host
        family = socket.AF_INET6 if ":" in host.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._source is not None:
                with contextlib.suppress(OSError):  # not Linux
                    # Else bind() takes a port for this address alone, and 28,000 connections to anywhere are the end.
                    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((self._source, 0))
            async with asyncio.timeout(self._timeouts.connect):
                await asyncio.get_running_loop().sock_connect(sock, (host.address, host.port))
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):  # TimeoutError is one
                raise SessionError(_connect_verdict(error), host, "connect") from error
            raise
        return sock

    async def _converse(self) -> None:
        timeouts = self._timeouts
        self._stage = "greeting"
        await self._step(self.client.connect(timeout=timeouts.greeting))
        await self._greet()
        if self._tls not in ("none", "implicit"):
            await self._encrypt()
        if self._auth is not None:
            self._stage = "auth"
            await self._log_in(self._auth)

    async def _greet(self) -> None:
        self._stage = "ehlo"
        client, seconds = self.client, self._timeouts.ehlo
        try:
            self.extensions = parse_ehlo(await self._step(client.ehlo(timeout=seconds)))
        except aiosmtplib.SMTPHeloError as error:
            if not 500 <= error.code < 600:
                raise
            self._note(error.code, error.message, 0.0)
            await self._step(client.helo(timeout=seconds))
            self.extensions = {}

    async def _encrypt(self) -> None:
        self._stage = "starttls"
        if "STARTTLS" not in self.extensions:
            if self._tls == "opportunistic":
                return
            raise _UnofferedError(network_verdict("tls_failed", "the host does not offer STARTTLS"))
        assert self.context is not None
        try:
            await self._step(self.client.starttls(tls_context=self.context, timeout=self._timeouts.starttls))
        except aiosmtplib.SMTPResponseException as error:
            if self._tls != "opportunistic" or not 400 <= error.code < 600 or not self.client.is_connected:
                raise
            self._note(error.code, error.message, 0.0)
            self.tls_failure = f"{error.code} {error.message}"
            return  # RFC 3207 section 4: go on in clear, if that is good enough for us
        except (OSError, ValueError) as error:  # SSLError and aiosmtplib's lost connections and timeouts are OSErrors
            raise _HandshakeError(f"TLS handshake: {_reason(error)}") from error
        await self._greet()

    async def _log_in(self, auth: RouteAuth) -> None:
        client, seconds = self.client, self._timeouts.auth
        encrypted = client.get_transport_info("ssl_object") is not None
        if not encrypted and self._tls != "none":
            raise _UnofferedError(
                network_verdict("tls_failed", "no TLS, and a password goes in clear only if tls is none")
            )
        offered = client.server_auth_methods
        # One mechanism, not all in turn as aiosmtplib's login() does: three wrong passwords in a row lock accounts.
        order = ("plain", "login", "cram-md5") if encrypted else ("cram-md5", "plain", "login")
        mechanism = next((name for name in order if name in offered), None)
        if mechanism is None:
            text = f"the host offers none of PLAIN, LOGIN and CRAM-MD5, but {' '.join(offered).upper() or 'no AUTH'}"
            raise _UnofferedError(classify(Reply(504, (f"5.5.4 {text}",)), "auth"))
        methods = {"plain": client.auth_plain, "login": client.auth_login, "cram-md5": client.auth_crammd5}
        await self._step(methods[mechanism](auth.username, _password(auth), timeout=seconds))

    async def _step(self, command: Awaitable[aiosmtplib.SMTPResponse]) -> Reply:
        begun = time.perf_counter()
        response = await command
        return self._note(response.code, response.message, (time.perf_counter() - begun) * 1000)

    def _note(self, code: int, message: str, milliseconds: float) -> Reply:
        reply = _reply(code, message)
        self.steps.append(Step(self._stage, reply, milliseconds))
        return reply

    def _verdict(self, error: Exception) -> Verdict:
        if isinstance(error, _UnofferedError):
            return error.verdict
        if isinstance(error, aiosmtplib.SMTPResponseException):
            if 400 <= error.code < 600:
                return classify(self._note(error.code, error.message, 0.0), self._stage)
            return network_verdict("garbage", f"{error.code} {error.message}" if error.code > 0 else error.message)
        if isinstance(error.__cause__, ssl.SSLError):  # of an implicit handshake
            return network_verdict("tls_failed", f"TLS handshake: {_reason(error.__cause__)}")
        if isinstance(error, TimeoutError):
            return network_verdict("timeout", f"{self._stage}: {_reason(error)}")
        if isinstance(error, OSError):
            return network_verdict("closed", f"{self._stage}: {_reason(error)}")
        if isinstance(error, aiosmtplib.SMTPException | ValueError):
            return network_verdict("garbage", f"{self._stage}: {_reason(error)}")
        raise error

    def _abort(self) -> None:
        transport = self.client.transport
        self.client.close()
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()


class _UnofferedError(Exception):
    """Ours: the peer does not offer what this route needs."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


def _features(extensions: dict[str, str]) -> Features:
    limits = dict(word.upper().partition("=")[::2] for word in extensions.get("LIMITS", "").split())
    return Features(
        pipelining="PIPELINING" in extensions,
        size="SIZE" in extensions,
        max_size=_number(extensions.get("SIZE", "")),
        eight_bit="8BITMIME" in extensions,
        smtputf8="SMTPUTF8" in extensions,
        dsn="DSN" in extensions,
        rcpt_max=_number(limits.get("RCPTMAX", "")),
        mail_max=_number(limits.get("MAILMAX", "")),
    )


def _number(text: str) -> int | None:
    """The number in `text`; None when there is none, or 0, which means no limit (RFC 1870 section 4)."""
    digits = text.strip()
    return int(digits) or None if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None


def _reply(code: int, message: str) -> Reply:
    return Reply(code, tuple(message.split("\n")))


def _tls_name(host: "Host") -> str:
    return host.name.rstrip(".") or host.address


def _connect_verdict(error: OSError) -> Verdict:
    if isinstance(error, TimeoutError):
        return network_verdict("timeout", "connect: no answer in time")
    if isinstance(error, ConnectionRefusedError):
        return network_verdict("connection_refused", "connection refused")
    kind = "unreachable" if error.errno in UNREACHABLE else "reset"
    return network_verdict(kind, f"connect: {_reason(error)}")


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _password(auth: RouteAuth) -> str:
    if auth.password_file is not None:
        return Path(auth.password_file).read_text(encoding="utf-8").strip("\r\n")
    return auth.password or ""
