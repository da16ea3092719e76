"""Mail that comes in and goes on: bounces to whoever sent the message, postmaster's mail to a person.

It goes on as it is, with Delivered-To fields in front by which a loop is seen. What is a bounce has the null sender,
so that nothing comes back of it; the sender of other mail is rewritten to an address of ours (SRS). However often a
mail names us, it goes on once to each; and only so many an hour go on for strangers (`Pace`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address, ip_network
from itertools import groupby

import asyncpg
import structlog

from mailerd.config import Config, forwards_bounces
from mailerd.delivery.identity import FOREIGN
from mailerd.errors import Refused, Unavailable
from mailerd.feedback.addresses import Addresses, Forward, SrsReturn, own_domains
from mailerd.feedback.joining import Subject
from mailerd.feedback.reading import Report, ReportKind
from mailerd.feedback.recording import Recorded, Said
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin
from mailerd.intake.submission import Submitter
from mailerd.queue.suppression import normalised
from mailerd.wire.message import header_values, split
from mailerd.wire.smtp import parse_rcpt
from mailerd.wire.srs import Srs

log = structlog.get_logger()

# Which of the words of NOTIFY (RFC 3461) lets the sender be told; None: nothing but NEVER keeps it from him.
NOTIFY: dict[ReportKind, str | None] = {
    ReportKind.BOUNCE: "FAILURE",
    ReportKind.DELAYED: "DELAY",
    ReportKind.DELIVERED: "SUCCESS",
    ReportKind.AUTO_REPLY: None,
    ReportKind.CHALLENGE: None,
    ReportKind.OTHER: None,
}
BY_DEFAULT = ("FAILURE", "DELAY")
MAX_HEADER = 131_072  # bytes of the header of what goes on
MAX_TRACES = 20  # Delivered-To fields that we put in front
OF_A_PEER, OF_ALL = 60, 1_000  # mails that go on for strangers in an hour, in one process


@dataclass(frozen=True, slots=True)
class Onward:
    """The mail goes on to `to`; it had come to `addresses`. `keep_sender`: bounces of it go back to who sent it.

    `quiet`: when it cannot go on it ends here, since what else it says has been taken.
    """

    to: str
    addresses: tuple[str, ...]
    keep_sender: bool = False
    tenant: str = "default"
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """Where mail has been: its Delivered-To fields, in lower case. `header_size` is in bytes."""

    delivered_to: frozenset[str] = frozenset()
    header_size: int = 0


@dataclass(slots=True)
class Sent:
    """To how many it goes on, and why it does not go to others who were named."""

    count: int = 0
    refusal: Refused | None = None

    def keep(self, count: int, refusal: Refused | None) -> None:
        self.count += count
        self.refusal = self.refusal or refusal


class Pace:
    """How many mails go on in an hour of the clock: `OF_A_PEER` (an IPv6 network of 64 bits is one), and `OF_ALL`."""

    def __init__(self) -> None:
        self._hour = -1
        self._counts: Counter[str] = Counter()

    def take(self, peer: str, now: datetime) -> None:
        """Count one. Raises Unavailable for one too many."""
        if (hour := int(now.timestamp()) // 3600) != self._hour:
            self._hour = hour
            self._counts.clear()
        who = _network(peer)
        if self._counts[who] >= OF_A_PEER or self._counts.total() >= OF_ALL:
            raise Unavailable("too much mail of this kind for now")
        self._counts[who] += 1


def _network(peer: str) -> str:
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else peer


class Forwarder:
    """Sends on. `secret` is the installation's."""

    def __init__(
        self,
        config: Config,
        submitter: Submitter,
        *,
        addresses: Addresses,
        secret: bytes,
        clock: Callable[[], datetime],
    ) -> None:
        self._submitter = submitter
        self._addresses = addresses
        self._srs = Srs(secret)
        self._clock = clock
        self._pace = Pace()
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """What goes on from now on follows `config`."""
        self._streams = config.streams
        self._hostname = config.hostname
        self._ours = own_domains(config)

    def origin(self, peer: str, helo: str, tls: str) -> Origin:
        """Of mail that came from this peer."""
        return Origin("inbound", peer, helo, tls, Credential(FOREIGN, kind="trusted"))

    def wake(self) -> None:
        """What was sent on is committed."""
        self._submitter.wake()

    def back(self, recorded: Recorded, report: Report, from_somebody: bool, address: str) -> list[Onward]:
        """To whom a report goes back: the senders of the messages it is about, if they are to see it.

        A bounce goes back once, when it changes something. What nothing follows from only by a return path of ours;
        and what is no report at all only with the null sender: else it would be anybody's way into a mailbox.
        """
        if report.kind not in NOTIFY or (report.kind is ReportKind.OTHER and from_somebody):
            return []
        found: dict[str, Onward] = {}
        for outcome in recorded.outcomes:
            bounced = outcome.claim.said is Said.BOUNCED and outcome.consequences.what == "late"
            told = outcome.claim.said is Said.NOTHING and outcome.claim.trail.how == "token"
            if (bounced or told) and _wants(outcome.subject, report.kind):
                sent = outcome.subject.sent
                if forwards_bounces(self._streams, sent.stream) and (to := self._home(sent.sender)):
                    found[to] = Onward(to, (address,), tenant=sent.tenant, quiet=True)
        return list(found.values())

    def _home(self, sender: str) -> str:
        """Where mail to that sender of a message goes; "" when it would come back to us."""
        if sender.rpartition("@")[2].lower() not in self._ours:
            return sender
        match self._addresses.read(sender):
            case SrsReturn(address) | Forward(address):
                return address if address.rpartition("@")[2].lower() not in self._ours else ""
        return ""

    def admit(self, onward: Sequence[Onward], peer: str) -> None:
        """Count a mail that is to go on for a stranger. Raises Unavailable for one too many."""
        if onward:
            self._pace.take(peer, self._clock())

    async def send(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        onward: Sequence[Onward],
        sender: str,
        content: bytes,
        way: Way,
        origin: Origin,
    ) -> Sent:
        """Queue it for all of them in the caller's transaction, one message for those of a kind.

        What does not go on, for a loop or its form, is logged, and the first reason given back.
        """
        sent = Sent()
        for kind, group in groupby(sorted(_once(onward), key=_kind), key=_kind):
            targets = sorted(group, key=lambda each: (each.to.rpartition("@")[2], each.to))
            sent.keep(*await self._send_to(connection, targets, sender, content, way, _of_tenant(origin, kind[0])))
        return sent

    async def _send_to(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        targets: Sequence[Onward],
        sender: str,
        content: bytes,
        way: Way,
        origin: Origin,
    ) -> tuple[int, Refused | None]:
        first = targets[0]
        looping = [each for each in targets if self._leads_back(each, way)]
        targets = [each for each in targets if each not in looping]
        refusal = _mail_loop(looping[0]) if looping and not first.quiet else None
        if not targets:
            return 0, refusal
        path = self._srs.forward(sender, self._hostname, self._clock()) if first.keep_sender else ""
        came_to = list(dict.fromkeys(address for each in targets for address in each.addresses))[:MAX_TRACES]
        trace = "".join(f"Delivered-To: {address}\r\n" for address in came_to).encode()
        try:
            if way.header_size > MAX_HEADER:
                raise Refused(554, "5.3.4", "the message header is too large", name="header_too_large")
            envelope = _envelope(path, [each.to for each in targets], content)
            await self._submitter.submit_within(connection, envelope, trace + content, origin)
        except Refused as error:
            log.warning("report.not_forwarded", to=[each.to for each in targets], reason=error.text)
            return 0, refusal if first.quiet else error
        return len(targets), refusal

    def _leads_back(self, onward: Onward, way: Way) -> bool:
        seen = any(address.lower() in way.delivered_to for address in onward.addresses)
        return seen or onward.to.rpartition("@")[2].lower() in self._ours


def _mail_loop(onward: Onward) -> Refused:
    return Refused(554, "5.4.6", f"{onward.addresses[0]} leads back to itself: a mail loop", name="mail_loop")


def _once(onward: Iterable[Onward]) -> list[Onward]:
    """Each target once, with all the addresses that lead to it."""
    found: dict[tuple[str, bool, bool, str], Onward] = {}
    for each in onward:
        key = (*_kind(each), normalised(each.to))
        before = found.get(key)
        found[key] = each if before is None else replace(before, addresses=(*before.addresses, *each.addresses))
    return list(found.values())


def _kind(onward: Onward) -> tuple[str, bool, bool]:
    """What may go on as one message."""
    return onward.tenant, onward.keep_sender, onward.quiet


def way_of(content: bytes) -> Way:
    """Read the way that mail has come; takes its time on a large header."""
    header = split(b"Delivered-To:\r\n" + content)[0]  # as it will be read behind a field of ours
    names = header_values(header[:MAX_HEADER], b"Delivered-To")
    return Way(frozenset(name.decode("utf-8", "replace").lower() for name in names), len(header))


def _envelope(sender: str, to: Sequence[str], content: bytes) -> Envelope:
    """What the mail's header asks of us was not meant for us: all of it is said here."""
    return Envelope(
        sender,
        [parse_rcpt(f"TO:<{address}> NOTIFY=NEVER") for address in to],
        len(content),
        smtputf8=not "".join((sender, *to)).isascii(),
        campaign="",
        priority="normal",
        topic="",
        unsubscribe=False,
    )


def _of_tenant(origin: Origin, tenant: str) -> Origin:
    credential = Credential(FOREIGN, tenant=tenant, kind="trusted")
    return Origin(origin.protocol, origin.peer, origin.helo, origin.tls, credential)


def _wants(subject: Subject, kind: ReportKind) -> bool:
    """Does its sender want to be told (RFC 3461)?"""
    notify = subject.notify.split(",") if subject.notify else BY_DEFAULT
    word = NOTIFY[kind]
    return word in notify if word is not None else "NEVER" not in notify
