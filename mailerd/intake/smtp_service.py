"""What all connections of one SMTP listener share, and what they offer."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from mailerd import config
from mailerd.config import Config, Listener, Smtp
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.inbound import TakesInbound
from mailerd.intake.smtp_content import Memory

INBOUND_RECIPIENTS = 100  # of one transaction: what RFC 5321 section 4.5.3.1.8 asks for


class Accepts(Protocol):
    """Where submitted messages go."""

    def check_sender(self, credential: Credential, sender: str) -> None:
        """Raise `Refused` when this credential may not send as `sender` ("" is the null sender), or not now."""

    async def submit(self, envelope: Envelope, content: bytes, origin: Origin) -> Receipt:
        """Return when the message is on disk; raise `Refused` or `Unavailable` when it is not."""


def limits_of(listener: Listener, settings: Config) -> Smtp:
    """The limits of a listener: those of `smtp`, and for what comes back to us smaller ones."""
    if listener.kind != "inbound":
        return settings.smtp
    return msgspec.structs.replace(
        settings.smtp,
        max_size=settings.inbound.max_size,
        max_recipients=min(settings.smtp.max_recipients, INBOUND_RECIPIENTS),
        long_lines="accept",  # nobody would learn from our refusal of a report
    )


@dataclass(frozen=True, slots=True)
class Service:
    """`trusts` says whether a peer may submit without AUTH; `inbound` is asked where the listener is of that kind."""

    listener: config.Listener
    limits: config.Smtp
    hostname: str
    submitter: Accepts
    inbound: TakesInbound | None
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

    def offers_requiretls(self, encrypted: bool) -> bool:
        """Never in the clear (RFC 8689 section 2), and not for what ends or is sent on here."""
        return encrypted and self.listener.kind != "inbound"

    @property
    def offers_dsn(self) -> bool:
        """Not where mail ends here: whoever hands it in reports that it was relayed (RFC 3461 section 5.2.2)."""
        return self.listener.kind != "inbound"

    def ehlo_lines(self, encrypted: bool) -> list[str]:
        lines = [self.hostname, "PIPELINING", f"SIZE {int(self.limits.max_size)}", "8BITMIME", "SMTPUTF8"]
        lines.append("ENHANCEDSTATUSCODES")
        if self.offers_dsn:
            lines.append("DSN")
        lines += ["CHUNKING", f"LIMITS RCPTMAX={self.limits.max_recipients}"]
        if self.offers_requiretls(encrypted):
            lines.append("REQUIRETLS")
        if not encrypted and self.offers_starttls:
            lines.append("STARTTLS")
        if self.offers_auth(encrypted):
            lines.append("AUTH PLAIN LOGIN")
        return lines
