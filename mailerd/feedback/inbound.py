"""What an `inbound` listener leaves here: told apart by the address it came to and by what it says, and acted upon.

A message is read in a thread, two at a time, and all that follows from it is one transaction: the peer gets its 250
after that. Aggregate reports, which unpack to megabytes, wait for each other and not for those. What nothing follows
from is counted and logged; its content never is. Of a mail that cannot do all that its addresses ask, what it can do
happens; it is refused when that is nothing.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import asyncpg
import structlog

from mailerd import metrics
from mailerd.config import Config
from mailerd.config.shaping import DEFAULT
from mailerd.delivery.explain import hosts_of
from mailerd.delivery.personal import BOUNCE, UNSUBSCRIBE
from mailerd.errors import Refused, Unavailable
from mailerd.feedback.addresses import (
    Addresses,
    Bounce,
    Complaint,
    DmarcReport,
    Forward,
    SrsReturn,
    TlsReport,
    Unsubscribe,
)
from mailerd.feedback.aggregates import dmarc_reports, tls_reports
from mailerd.feedback.consequences import Found
from mailerd.feedback.dmarc import DmarcReport as Dmarc
from mailerd.feedback.forwarding import Forwarder, Onward, Sent, Way, way_of
from mailerd.feedback.joining import Trails
from mailerd.feedback.reading import Report, ReportKind, read_report
from mailerd.feedback.reading.automatic import from_daemon
from mailerd.feedback.reading.dsn import read_status
from mailerd.feedback.reading.mime import Mail, read_mail
from mailerd.feedback.recording import Claim, Outcome, Recorded, Recorder, Said
from mailerd.feedback.unsubscribing import UnsubscribeStore
from mailerd.intake.envelope import Origin
from mailerd.intake.submission import Submitter
from mailerd.queue.ids import format_message_id
from mailerd.queue.suppression import SuppressionStore
from mailerd.wire.tls_report import Report as Tls
from mailerd.wire.tokens import RecipientToken

log = structlog.get_logger()

AT_ONCE = 2  # messages being read
NOWHERE = Way()
UNPACK = 20.0  # seconds for the aggregate reports of one mail; those that take longer are not kept
WAIT_TO_UNPACK = 60.0  # seconds for those before
UNWANTED = "<> is the only sender of what comes to this address"
AUTOMATIC = frozenset(
    (
        ReportKind.BOUNCE,
        ReportKind.DELAYED,
        ReportKind.DELIVERED,
        ReportKind.AUTO_REPLY,
        ReportKind.CHALLENGE,
        ReportKind.COMPLAINT,
    )
)


@dataclass(slots=True)
class _Post:
    """The addresses that a message came to, sorted by what they mean.

    `reports`: one of them is for reports about our own mail. `refusal`: why one of them has no part in it.
    """

    bounces: list[RecipientToken] = field(default_factory=list)
    leaving: list[RecipientToken] = field(default_factory=list)
    onward: list[Onward] = field(default_factory=list)
    dmarc: bool = False
    tls: bool = False
    reports: bool = False
    refusal: Refused | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """What a message says. `incident`: of the log line about a bug of ours that it met, else ""."""

    report: Report
    way: Way = NOWHERE
    dmarc: Sequence[Dmarc] = ()
    tls: Sequence[Tls] = ()
    incident: str = ""


class Inbound:
    """Takes what comes back (`mailerd.intake.inbound.TakesInbound`)."""

    def __init__(
        self,
        *,
        addresses: Addresses,
        trails: Trails,
        recorder: Recorder,
        forwarder: Forwarder,
    ) -> None:
        self._addresses = addresses
        self._trails = trails
        self.recorder = recorder
        self._forwarder = forwarder
        self._reading = asyncio.Semaphore(AT_ONCE)
        self._unpacking = asyncio.Semaphore(1)

    def reconfigure(self, config: Config) -> None:
        """What comes from now on is treated by `config`."""
        self._addresses.reconfigure(config)
        self.recorder.reconfigure(config)
        self._forwarder.reconfigure(config)

    def accepts(self, address: str) -> None:
        """Return when it is one of ours, raise Refused else; asks nobody."""
        if self._addresses.read(address) is None:
            forged = address[:2].lower() in (BOUNCE, UNSUBSCRIBE)
            metrics.inbound_refused("forged" if forged else "unknown")
            raise _unknown()

    async def receive(
        self, sender: str, recipients: Sequence[str], content: bytes, peer: str, helo: str, tls: str
    ) -> None:
        """Act on it; see `TakesInbound.receive`. The same message again changes nothing."""
        post = self._sort(sender, recipients)
        async with self._reading:
            read = await asyncio.to_thread(_read, sender, content)
        if post.dmarc or post.tls:
            read = await self._unpack(post, content, read)
        claims = self._claims(post, read.report) if post.reports else []
        origin = self._forwarder.origin(peer, helo, tls)
        sent = Sent()

        async def forward(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", recorded: Recorded) -> None:
            nonlocal sent
            effective = bool(read.dmarc or read.tls) or any(map(_changes, recorded.outcomes))
            onward = self._admitted(post.onward, peer, effective=effective)
            onward += self._forwarder.back(recorded, read.report, bool(sender), recipients[0])
            sent = await self._forwarder.send(connection, onward, sender, content, read.way, origin)
            if sent.refusal is not None and not sent.count and not effective:
                raise sent.refusal

        recorded = await self.recorder.record(claims, dmarc=read.dmarc, tls=read.tls, also=forward)
        if sent.count:
            self._forwarder.wake()
        _tell(post, read, claims, recorded, sent.count, origin)

    async def _unpack(self, post: _Post, content: bytes, read: _Read) -> _Read:
        """With the aggregate reports that the mail carries, if they can be read in time."""
        try:
            await asyncio.wait_for(self._unpacking.acquire(), WAIT_TO_UNPACK)
        except TimeoutError:
            raise Unavailable("too many reports at once") from None
        reading = asyncio.ensure_future(asyncio.to_thread(_aggregates, post, content, read))
        reading.add_done_callback(lambda _: self._unpacking.release())  # a thread cannot be stopped
        try:
            return await asyncio.wait_for(asyncio.shield(reading), UNPACK)
        except TimeoutError:
            log.warning("report.too_slow", seconds=UNPACK, size=len(content))
            return read

    def _admitted(self, onward: Sequence[Onward], peer: str, *, effective: bool) -> list[Onward]:
        try:
            self._forwarder.admit(onward, peer)
        except Unavailable as error:
            if not effective:
                raise
            log.warning("report.not_forwarded", to=[each.to for each in onward], reason=str(error))
            return []
        return list(onward)

    def _sort(self, sender: str, recipients: Sequence[str]) -> _Post:
        post, taken = _Post(), 0
        for address in recipients:
            taken += 1
            match self._addresses.read(address):
                case Bounce(token):
                    post.bounces.append(token)
                    post.reports = True
                case Unsubscribe(token):
                    post.leaving.append(token)
                    post.reports = True
                case Forward(to):
                    post.onward.append(Onward(to, (address,), keep_sender=True))
                    post.reports = True
                case SrsReturn() if sender:
                    post.refusal, taken = Refused(550, "5.7.1", UNWANTED, name="not_a_bounce"), taken - 1
                case SrsReturn(to):  # it is about mail of others
                    post.onward.append(Onward(to, (address,)))
                case DmarcReport():
                    post.dmarc = post.reports = True
                case TlsReport():
                    post.tls = post.reports = True
                case Complaint():  # what it says counts, wherever it comes to
                    post.reports = True
                case None:  # it has grown too old since RCPT, or the configuration has changed
                    post.refusal, taken = _unknown(), taken - 1
        if post.refusal is not None and not taken:
            raise post.refusal
        return post

    def _claims(self, post: _Post, report: Report) -> list[Claim]:
        """What the message says of whom. Whoever writes to an unsubscribe address means it (RFC 2369)."""
        found = Found(report.reporter)
        claims = []
        if post.leaving and (report.kind not in AUTOMATIC or report.subject[:11].casefold() == "unsubscribe"):
            trail = self._trails.of(post.leaving, report)
            claims.append(Claim(Said.UNSUBSCRIBED, trail, found=Found(report.reporter, "mailto")))
        if report.kind in (ReportKind.DMARC, ReportKind.TLS):
            return claims
        trail = self._trails.of(post.bounces, report, links=report.kind is ReportKind.COMPLAINT)
        if report.kind is ReportKind.BOUNCE:
            claims.append(Claim(Said.BOUNCED, trail, report.recipients, found))
        elif report.kind is ReportKind.COMPLAINT:
            claims.append(Claim(Said.COMPLAINED, trail, report.recipients, found, report.feedback_type))
        elif post.bounces:  # nothing follows but that the message's sender may want to see it
            claims.append(Claim(Said.NOTHING, trail, report.recipients, found, kind=str(report.kind)))
        return claims


def _unknown() -> Refused:
    return Refused(550, "5.1.1", "no such address here", name="unknown_recipient")


def _changes(outcome: Outcome) -> bool:
    """Has a report been acted upon, now or when it came before?"""
    return outcome.claim.said is not Said.NOTHING and outcome.consequences.what != "unverified"


def _read(sender: str, content: bytes) -> _Read:
    """Whatever bug a mail meets, it shall not come again and again: it is one that says nothing."""
    try:
        report = read_report(content)
        if report.kind is ReportKind.BOUNCE and sender and not _from_a_system(content):
            report = replace(report, kind=ReportKind.OTHER, recipients=())
        return _Read(report, way_of(content))
    except Exception:
        return _Read(Report(ReportKind.OTHER), incident=_crashed(content))


def _from_a_system(content: bytes) -> bool:
    """People write about mail that came back, too; not in fields for machines, nor as a mail system."""
    mail = read_mail(content)
    first = next((part for part in mail.parts if part.raw.strip()), None)
    inner = read_mail(first.content()) if first is not None and first.is_message else None
    return _of_a_system(mail) or (inner is not None and _of_a_system(inner))


def _of_a_system(mail: Mail) -> bool:
    return from_daemon(mail.header) or "x-failed-recipients" in mail.header or read_status(mail) is not None


def _aggregates(post: _Post, content: bytes, read: _Read) -> _Read:
    try:
        dmarc = dmarc_reports(content) if post.dmarc else ()
        return replace(read, dmarc=dmarc, tls=tls_reports(content) if post.tls else ())
    except Exception:
        return replace(read, incident=_crashed(content))


def _crashed(content: bytes) -> str:
    incident = secrets.token_hex(4)
    log.exception("report.crashed", incident=incident, size=len(content))
    return incident


def _tell(
    post: _Post, read: _Read, claims: Sequence[Claim], recorded: Recorded, forwarded: int, origin: Origin
) -> None:
    """Count and log what came and what followed, never what it says."""
    report = read.report
    about = {claim.said: claim.trail.how for claim in claims}
    joined = next((how for how in about.values() if how), "") if recorded.outcomes else ""
    metrics.report_received(report.kind, joined or "none")
    effects = [outcome.consequences.what for outcome in recorded.outcomes]
    for effect in [*effects, "crashed"] if read.incident else effects:
        metrics.report_followed(effect)
    log.info(
        "report.received",
        kind=str(report.kind),
        peer=origin.peer,
        reporter=report.reporter,
        joined=joined or "none",
        recipients=len(report.recipients),
        effects=effects[:20],
        messages=[format_message_id(outcome.subject.sent.message_id) for outcome in recorded.outcomes[:20]],
        forwarded=forwarded,
        aggregates=recorded.aggregates,
        **{"incident": read.incident} if read.incident else {},
        **{"unreadable": True} if (post.dmarc or post.tls) and not (read.dmarc or read.tls) else {},
    )


def build_inbound(
    config: Config,
    pool: "asyncpg.Pool[asyncpg.Record]",
    *,
    submitter: Submitter,
    suppressions: SuppressionStore,
    provider_of: Callable[[str, Sequence[str]], str],
    secret: bytes,
    clock: Callable[[], datetime],
) -> Inbound:
    """Put it together. `provider_of` names the provider of a domain at these hosts (`Traffic.provider_of`)."""

    def book(domain: str, site: str) -> str:
        provider = provider_of(domain, hosts_of(site))
        return site if provider == DEFAULT else provider

    addresses = Addresses(config, secret, clock)
    recorder = Recorder(
        config,
        pool,
        suppressions=suppressions,
        unsubscribes=UnsubscribeStore(pool, suppressions, secret, clock),
        book=book,
        clock=clock,
    )
    forwarder = Forwarder(config, submitter, addresses=addresses, secret=secret, clock=clock)
    return Inbound(addresses=addresses, trails=Trails(secret), recorder=recorder, forwarder=forwarder)
