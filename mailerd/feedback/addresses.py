"""The addresses at which something comes back to us, and what each of them means. No database is needed to tell."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import TypeAlias

from mailerd.config import Config
from mailerd.delivery.personal import BOUNCE, RETURN_PATH, UNSUBSCRIBE
from mailerd.queue.ids import milliseconds_of
from mailerd.wire.address import unquoted
from mailerd.wire.srs import Srs, is_srs
from mailerd.wire.tokens import RecipientToken, Tokens
from mailerd.wire.unsubscribe import PURPOSE


@dataclass(frozen=True, slots=True)
class Bounce:
    """The return path of one recipient; of a whole message where `token.n` is 0."""

    token: RecipientToken


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """The recipient of that message unsubscribes by writing here."""

    token: RecipientToken


@dataclass(frozen=True, slots=True)
class Complaint:
    """Feedback loops report here."""


@dataclass(frozen=True, slots=True)
class DmarcReport:
    """The rua of DMARC records."""


@dataclass(frozen=True, slots=True)
class TlsReport:
    """The rua of TLSRPT records."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What comes here goes on to somebody."""

    to: str


@dataclass(frozen=True, slots=True)
class SrsReturn:
    """The return path of mail that we sent on for `address`. Only bounces may use it: whoever knows it could relay."""

    address: str


Ours: TypeAlias = Bounce | Unsubscribe | Complaint | DmarcReport | TlsReport | Forward | SrsReturn


class Addresses:
    """Reads addresses. `secret` is the installation's."""

    def __init__(self, config: Config, secret: bytes, clock: Callable[[], datetime]) -> None:
        self._bounces = Tokens(secret, RETURN_PATH)
        self._unsubscribes = Tokens(secret, PURPOSE)
        self._srs = Srs(secret)
        self._clock = clock
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Read by these domains and names from now on."""
        self._hostname = config.hostname
        self._domains = own_domains(config)
        self._retention = config.retention.events * 1000
        inbound = config.inbound
        self._names: dict[str, Ours] = {name: Forward(to) for name, to in inbound.forward.items()}
        self._names |= dict.fromkeys(inbound.complaints, Complaint())
        self._names |= dict.fromkeys(inbound.dmarc_reports, DmarcReport())
        self._names |= dict.fromkeys(inbound.tls_reports, TlsReport())

    def read(self, address: str) -> Ours | None:
        """What `address` means, an address as RCPT has it or the bare `postmaster`; None when it is none of ours.

        A local part is the same in upper and lower case, and with quotes that it does not need. One that we made is
        ours at any domain, as its MAC says: return paths may change while mail is under way.
        """
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, self._hostname
        local = unquoted(local)
        if is_srs(local):
            sender = self._srs.reverse(address, self._clock())
            return SrsReturn(sender) if sender is not None else None
        if not local.isascii():
            return None
        name = local.lower()
        return self._of_token(name) or (self._names.get(name) if domain.lower() in self._domains else None)

    def _of_token(self, name: str) -> Bounce | Unsubscribe | None:
        if name.startswith(BOUNCE):
            token = self._current(self._bounces.read(name.removeprefix(BOUNCE)))
            return Bounce(token) if token is not None else None
        if name.startswith(UNSUBSCRIBE):
            token = self._current(self._unsubscribes.read(name.removeprefix(UNSUBSCRIBE)))
            return Unsubscribe(token) if token is not None else None
        return None

    def _current(self, token: RecipientToken | None) -> RecipientToken | None:
        """The token, unless nobody knows any more what it was about."""
        if token is None or self._clock().timestamp() * 1000 - milliseconds_of(token.message_id) > self._retention:
            return None
        return token


def own_domains(config: Config) -> frozenset[str]:
    """Where our names are: at the hostname, every return path, and our addresses themselves, as `[192.0.2.1]`."""
    names = {config.hostname.lower()}
    names.update(each.return_path for each in config.domains.values() if each.return_path)
    names.update(each.return_path for each in config.tenants.values() if each.return_path)
    hosts = [each.bind.host for each in config.listeners if each.kind == "inbound"]
    names.update(_literal(host) for host in (*hosts, *(each.address for each in config.sources.values())) if host)
    return frozenset(names - {""})


def _literal(host: str) -> str:
    """RFC 1123 section 5.2.17 wants mail to `[address]` taken; "" for what is no address of this host alone."""
    try:
        address = ip_address(host)
    except ValueError:
        return ""
    if address.is_unspecified:
        return ""
    return f"[ipv6:{address}]" if address.version == 6 else f"[{address}]"
