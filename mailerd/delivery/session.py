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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import aiosmtplib

from mailerd.clock import utc_now
from mailerd.config import RouteAuth
from mailerd.delivery import dane, tls_client, tls_policy
from mailerd.delivery.pipeline import Pipeline
from mailerd.delivery.tls_policy import TlsOutcome, TlsPolicy
from mailerd.delivery.transaction import Conversation, Features, Mail, Permit, Step, Timeouts, Transaction
from mailerd.delivery.verdict import Verdict, classify, network_verdict
from mailerd.errors import LocalProtocolError, MailerdError
from mailerd.wire.smtp import Reply, parse_ehlo

if TYPE_CHECKING:
    from mailerd.delivery.routing import Host

DEFAULT_TIMEOUTS = Timeouts()
OPPORTUNISTIC = TlsPolicy()
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python 3.11 has no name for it
CERTIFICATE_RESULTS = {  # by X509_V_ERR_… of OpenSSL
    10: tls_policy.CERTIFICATE_EXPIRED,
    62: tls_policy.CERTIFICATE_HOST_MISMATCH,
    64: tls_policy.CERTIFICATE_HOST_MISMATCH,
}
UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN, errno.ENETDOWN})


class SessionError(MailerdError):
    """No session with `host`: `verdict` is that of every recipient, `steps` how far it came. Try the next host.

    `tls_outcome` is for the report to the domain; None when it did not come to TLS, or a route of ours decides on it.
    """

    def __init__(
        self,
        verdict: Verdict,
        host: "Host",
        stage: str,
        steps: Sequence[Step] = (),
        tls_outcome: TlsOutcome | None = None,
    ) -> None:
        super().__init__(f"{host.name or host.address}: {stage}: {verdict}")
        self.tls_outcome = tls_outcome
        self.verdict = verdict
        self.host = host
        self.stage = stage
        self.steps = list(steps)


class Session:
    """An open SMTP connection. One transaction at a time.

    `host`, `extensions` (upper-case keyword → parameters), `features`, `sent` (transactions), `steps` (replies of the
    opening, for the trace). `tls` is `TLSv1.3 TLS_AES_256_GCM_SHA384`, or "" in clear; then `tls_failure` says why,
    unless clear is what was asked for. `verified`: it is certain that the peer is `host`, and that mail belongs there.
    `tls_outcome` is for the report to the domain that the session was opened for; None where a route of ours decides
    on TLS.
    """

    def __init__(
        self,
        host: "Host",
        opening: "_Opening",
        timeouts: Timeouts,
        tls: TlsPolicy,
        tls_outcome: TlsOutcome | None = None,
    ) -> None:
        client = opening.client
        self.host = host
        self.extensions = opening.extensions
        self.verified = opening.terms.check != "" and tls.proves(host.name, signed=host.dane is not None)
        self.features = _features(opening.extensions, verified=self.verified)
        self.tls_outcome = tls_outcome
        self.steps = opening.steps
        self.sent = 0
        transport = cast(asyncio.Transport, client.transport)
        self._ssl_object = transport.get_extra_info("ssl_object")
        # A resumed session does not show the chain of certificates, so that DANE would have nothing to look at.
        self._tls_context = opening.context if opening.terms.check != "dane" else None
        self.tls = tls_client.describe(self._ssl_object)
        self.tls_resumed = self._ssl_object is not None and bool(self._ssl_object.session_reused)
        self.tls_failure = ""
        self._timeouts = timeouts
        self._pipeline = Pipeline(transport)

    @classmethod
    async def open(
        cls,
        host: "Host",
        *,
        ehlo: str,
        tls: TlsPolicy = OPPORTUNISTIC,
        auth: RouteAuth | None = None,
        source: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        trust: str | None = None,
    ) -> "Session":
        """Connect, from the address `source` if given; greet, encrypt as `tls` says, log in. Raises SessionError.

        Where a policy asks for less than authenticated TLS, a failed handshake leads to another connection: after
        `sts` in testing to an opportunistic one, after an opportunistic one to one in clear. A password is only ever
        sent in clear with tls `none`. `trust`: a PEM file of CAs instead of the system's.
        """
        if tls.mx and not tls.testing and host.dane is None and not tls.allows_host(host.name):
            raise _unlisted(tls, host)
        first: _TlsError | None = None  # what is wrong with TLS there, for the report
        steps: list[Step] = []
        for terms in (tries := _tries(tls, host, clear=auth is None)):
            opening = _Opening(host, ehlo, terms, auth, source, timeouts, trust)
            opening.steps = steps
            try:
                await opening.run()
            except _TlsError as failure:
                first = first or failure
                if terms is tries[-1]:
                    outcome = _outcome(tls, host, first)
                    raise SessionError(failure.verdict, host, opening.stage, steps, outcome) from failure
            except SessionError as error:
                error.tls_outcome = _outcome(tls, host, first) if first is not None else None
                raise
            else:
                break
        first = first or opening.tls_refusal
        if first is None and tls.testing and host.dane is None and not tls.allows_host(host.name):
            first = _TlsError(tls_policy.VALIDATION_FAILURE, _not_listed(host.name))
        session = cls(host, opening, timeouts, tls, _outcome(tls, host, first))
        if not session.tls and first is not None:
            session.tls_failure = first.verdict.text
        return session

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
        head: bytes = b"",
        smtputf8: bool = False,
        eight_bit: bool = False,
        ret: str = "",
        envid: str = "",
        rcpt_params: Sequence[str] = (),
        require_tls: bool = False,
        on_dot: Callable[[], None] | None = None,
        permit: Permit | None = None,
    ) -> Transaction:
        """Send `content` (CRLF lines, unstuffed) to `recipients`; whatever the peer does becomes a result for each.

        `head`: header fields of ours that stand before it, for who does not want to copy all of it to put them there.

        `rcpt_params`: for each recipient, `transaction.dsn_parameters()`; written if the peer offers DSN. `require_tls`
        (RFC 8689): bounces the mail unless the session is `verified` and the peer promises to go on in the same way.
        `on_dot` is called right before the content is written, if it is. The `permit` is asked right before DATA is
        written and right after; if it is not good, the transaction is `called_off`, and no content was sent. Raises
        LocalProtocolError for an address that holds a line break or the like, before anything is written. When
        cancelled, the connection is cut.
        """
        mail = Mail(sender, recipients, content, smtputf8, eight_bit, ret, envid, rcpt_params, require_tls, head)
        kept = self.sent > 0
        transaction = await Conversation(self._pipeline, self.features, self._timeouts, mail, on_dot, permit).run()
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


class _TlsError(Exception):
    """No TLS as asked for: `result` as in RFC 8460 section 4.3, `verdict` if nothing else can be tried."""

    def __init__(self, result: str, text: str, verdict: Verdict | None = None) -> None:
        super().__init__(text)
        self.result = result
        self.verdict = verdict or network_verdict("tls_failed", text)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What one connection has to achieve. `check`: how the peer's certificate is checked, "" if not at all."""

    tls: bool = True
    implicit: bool = False
    mandatory: bool = True
    check: Literal["", "names", "dane"] = ""
    minimum: str = "TLSv1.2"


def _tries(policy: TlsPolicy, host: "Host", *, clear: bool) -> list[_Terms]:
    """What to try, one connection after the other, until one succeeds; `clear`: an opportunistic one may end there."""
    terms = _Terms(minimum=policy.minimum)
    verified = replace(terms, check="names")
    opportunistic = [replace(terms, mandatory=False), *([_Terms(tls=False)] if clear else [])]
    if host.dane is not None and policy.mode == "dane":
        return [replace(terms, check="dane") if host.dane.authenticates else terms]
    if policy.mx and policy.testing:
        return [*([verified] if policy.allows_host(host.name) else []), *opportunistic]
    if policy.mx:
        return [verified]
    match policy.mode:
        case "none":
            return [_Terms(tls=False)]
        case "required":
            return [terms]
        case "verify":
            return [verified]
        case "implicit":
            return [replace(verified, implicit=True)]
    return opportunistic


def _outcome(policy: TlsPolicy, host: "Host", failure: _TlsError | None) -> TlsOutcome | None:
    """For the report to the domain; there is none where a route of ours decides on TLS."""
    if not policy.domain or policy.mode not in ("opportunistic", "sts", "dane"):
        return None
    result, detail = (failure.result, str(failure)) if failure is not None else (tls_policy.SUCCESS, "")
    if policy.mode == "dane" and host.dane is not None:
        return TlsOutcome(policy.domain, "tlsa", host.dane.lines, host.name, host.address, result, detail)
    kind: tls_policy.PolicyType = "sts" if policy.mx else "no-policy-found"
    return TlsOutcome(policy.domain, kind, policy.lines, host.name, host.address, result, detail)


def _not_listed(name: str) -> str:
    return f"the MTA-STS policy does not list {name}"


def _unlisted(policy: TlsPolicy, host: "Host") -> SessionError:
    failure = _TlsError(tls_policy.VALIDATION_FAILURE, _not_listed(host.name))
    return SessionError(failure.verdict, host, "starttls", (), _outcome(policy, host, failure))


class _Opening:
    """The steps from nothing to a connection that may carry transactions."""

    def __init__(
        self,
        host: "Host",
        ehlo: str,
        terms: _Terms,
        auth: RouteAuth | None,
        source: str | None,
        timeouts: Timeouts,
        trust: str | None,
    ) -> None:
        self.steps: list[Step] = []
        self.extensions: dict[str, str] = {}
        self.tls_refusal: _TlsError | None = None  # why it goes on in clear, on the same connection
        self.context: tls_client.ResumingContext | None = None
        self.client: aiosmtplib.SMTP
        self.stage = "connect"
        self.terms = terms
        self._host = host
        self._ehlo_name = ehlo
        self._auth = auth
        self._source = source
        self._timeouts = timeouts
        if terms.tls:
            self.context = tls_client.client_context(terms.check, terms.minimum, trust)

    async def run(self) -> None:
        sock = await self._connect()
        implicit = self.terms.implicit
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
            if isinstance(error, Exception) and not isinstance(error, _TlsError | LocalProtocolError):
                raise SessionError(self._verdict(error), self._host, self.stage, self.steps) from error
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
        self.stage = "greeting"
        await self._step(self.client.connect(timeout=timeouts.greeting))
        await self._greet()
        if self.terms.tls and not self.terms.implicit:
            await self._encrypt()
        if self._auth is not None:
            self.stage = "auth"
            await self._log_in(self._auth)

    async def _greet(self) -> None:
        self.stage = "ehlo"
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
        self.stage = "starttls"
        if "STARTTLS" not in self.extensions:
            missing = _TlsError(tls_policy.STARTTLS_NOT_SUPPORTED, "the host does not offer STARTTLS")
            if self.terms.mandatory:
                raise missing
            self.tls_refusal = missing
            return
        assert self.context is not None
        seconds = self._timeouts.starttls
        name = _tls_name(self._host)
        try:
            await self._step(self.client.starttls(server_hostname=name, tls_context=self.context, timeout=seconds))
        except aiosmtplib.SMTPResponseException as error:
            if not 400 <= error.code < 600 or not (self.terms.mandatory or self.client.is_connected):
                raise
            verdict = classify(self._note(error.code, error.message, 0.0), self.stage)
            refusal = _TlsError(tls_policy.STARTTLS_NOT_SUPPORTED, f"{error.code} {error.message}", verdict)
            if self.terms.mandatory:
                raise refusal from error
            self.tls_refusal = refusal
            return  # RFC 3207 section 4: go on in clear, if that is good enough for us
        except (OSError, ValueError) as error:  # SSLError and aiosmtplib's lost connections and timeouts are OSErrors
            raise _TlsError(_result(error), f"TLS handshake: {_reason(error)}") from error
        if self.terms.check == "dane":
            self._authenticate()
        await self._greet()

    def _authenticate(self) -> None:
        """Hold the certificates against the TLSA records, before anything is said to whoever that is."""
        wanted = self._host.dane
        assert wanted is not None
        chain = tls_client.peer_chain(self.client.get_transport_info("ssl_object"))
        # The recipient's domain is no name for it, as RFC 7672 section 3.2.2 would have it: others share the session.
        failure = dane.authenticate(wanted.records, chain, (wanted.base, self._host.name), utc_now())
        if failure is not None:
            raise _TlsError(failure.result, f"DANE: {failure.text}")

    async def _log_in(self, auth: RouteAuth) -> None:
        client, seconds = self.client, self._timeouts.auth
        encrypted = client.get_transport_info("ssl_object") is not None
        if not encrypted and self.terms.tls:
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
        self.steps.append(Step(self.stage, reply, milliseconds))
        return reply

    def _verdict(self, error: Exception) -> Verdict:
        if isinstance(error, _UnofferedError):
            return error.verdict
        if isinstance(error, aiosmtplib.SMTPResponseException):
            if 400 <= error.code < 600:
                return classify(self._note(error.code, error.message, 0.0), self.stage)
            return network_verdict("garbage", f"{error.code} {error.message}" if error.code > 0 else error.message)
        if isinstance(error.__cause__, ssl.SSLError):  # of an implicit handshake
            return network_verdict("tls_failed", f"TLS handshake: {_reason(error.__cause__)}")
        if isinstance(error, TimeoutError):
            return network_verdict("timeout", f"{self.stage}: {_reason(error)}")
        if isinstance(error, OSError):
            return network_verdict("closed", f"{self.stage}: {_reason(error)}")
        if isinstance(error, aiosmtplib.SMTPException | ValueError):
            return network_verdict("garbage", f"{self.stage}: {_reason(error)}")
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


def _features(extensions: dict[str, str], *, verified: bool) -> Features:
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
        no_requiretls=_no_requiretls(extensions, verified=verified),
    )


def _no_requiretls(extensions: dict[str, str], *, verified: bool) -> str:
    if not verified:
        return "nothing proves that the host is the right one (DANE, MTA-STS)"
    return "" if "REQUIRETLS" in extensions else "the host does not support it"


def _number(text: str) -> int | None:
    """The number in `text`; None when there is none, or 0, which means no limit (RFC 1870 section 4)."""
    digits = text.strip()
    return int(digits) or None if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None


def _reply(code: int, message: str) -> Reply:
    return Reply(code, tuple(message.split("\n")))


def _tls_name(host: "Host") -> str:
    if host.dane is not None:
        return host.dane.base
    return host.name.rstrip(".") or host.address


def _connect_verdict(error: OSError) -> Verdict:
    if isinstance(error, TimeoutError):
        return network_verdict("timeout", "connect: no answer in time")
    if isinstance(error, ConnectionRefusedError):
        return network_verdict("connection_refused", "connection refused")
    kind = "unreachable" if error.errno in UNREACHABLE else "reset"
    return network_verdict(kind, f"connect: {_reason(error)}")


def _result(error: BaseException) -> str:
    """The result type of RFC 8460 for a failed handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CERTIFICATE_RESULTS.get(error.verify_code, tls_policy.CERTIFICATE_NOT_TRUSTED)
    return tls_policy.VALIDATION_FAILURE


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
