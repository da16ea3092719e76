"""One try at one message over one session, as a list of steps, and what its results mean for each recipient."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any

import asyncpg
import structlog

from mailerd import failpoints, metrics
from mailerd.config import Config
from mailerd.delivery import consequences
from mailerd.delivery.identity import FOREIGN, Identity
from mailerd.delivery.notices import Notice, Notices, delay_is_due, wanted
from mailerd.delivery.personal import Personal
from mailerd.delivery.ready import Ready, Readying
from mailerd.delivery.rendering import Rendered, Renderer, Withheld
from mailerd.delivery.routing import Route
from mailerd.delivery.session import Session
from mailerd.delivery.settler import Settler
from mailerd.delivery.transaction import Result, Transaction, dsn_parameters
from mailerd.delivery.verdict import Kind, Outcome, Verdict, expired, local_verdict
from mailerd.errors import LocalProtocolError
from mailerd.events import Event
from mailerd.queue.commit import LOST
from mailerd.queue.ids import format_message_id
from mailerd.queue.journal import Journal
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.retry import next_attempt
from mailerd.queue.screening import FRESH, HOLDS, SlowDatabaseError, Suppressed, Suppressions
from mailerd.queue.store import QueueStore, Report, Settled
from mailerd.queue.suppression import REFUSAL, Suppression
from mailerd.wire import dkim
from mailerd.wire.downgrade import downgrade
from mailerd.wire.message import header_block

log = structlog.get_logger()

AWAY = (*LOST, asyncpg.InsufficientResourcesError)
RETRY_AFTER = 0.5  # seconds, while the database is away
DOUBTFUL = "its host may have taken the mail already: the reply was lost; it is not sent again"
RETURNED = "returned to its sender by the operator of this mail system"


@dataclass(slots=True)
class Job:
    """The recipients of one message that go to one site in one transaction.

    `asked_at`: when it was asked last, ahead of its turn, whether it may be sent; of the loop's clock. `ready`: what it
    is made ready by, ahead of its turn.
    """

    message: Message
    recipients: list[Recipient]
    asked_at: float = -inf
    ready: "asyncio.Future[Ready | None] | None" = None


@dataclass(frozen=True, slots=True)
class Where:
    """Over which way an attempt went, for its event and log line."""

    site: str = ""
    host: str = ""
    ip: str = ""
    source: str = ""
    tls: str = ""
    upstream: str = ""


class Attempts:
    """Carries jobs out and settles them."""

    def __init__(
        self,
        config: Config,
        *,
        store: QueueStore,
        identity: Identity,
        settler: Settler,
        notices: Notices,
        journal: Journal,
        clock: Callable[[], datetime],
        personal: Personal,
        renderer: Renderer,
        suppressions: Suppressions,
        signers: Executor | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._identity = identity
        self._settler = settler
        self._notices = notices
        self._journal = journal
        self._clock = clock
        self._signers = signers
        self._personal = personal
        self._renderer = renderer
        self._readying = Readying(renderer.render_row, self._signed_ahead if signers is None else None)
        self._suppressions = suppressions

    def alone(self, message: Message, route: Route) -> bool:
        """Does each recipient of this message need a job of its own, by this route?"""
        return self._personal.alone(message, route.upstream)

    def reconfigure(self, config: Config, identity: Identity) -> None:
        """What is attempted from now on follows these."""
        self._config = config
        self._identity = identity

    def ahead(self, jobs: Sequence[Job]) -> None:
        """These are about to be run: what is asked of each right before it leaves is asked now, of all together."""
        self._suppressions.ahead(
            [recipient for job in jobs if job.message.credential != FOREIGN for recipient in job.recipients]
        )
        jobs = [job for job in jobs if job.message.render and job.message.content is None and job.ready is None]
        if jobs:
            mails = [(job.message, job.recipients[0]) for job in jobs]
            self._renderer.ahead(mails)
            for job, ready in zip(jobs, self._readying.begin(mails), strict=True):
                job.ready = ready

    async def run(self, session: Session, job: Job, where: Where) -> Sequence[Result] | None:
        """Send the job over the session and settle it; what the host said of each recipient, nothing if not asked.

        None: the kept connection was gone, or the database, which has to be asked right before DATA; the job is to be
        tried again. Raises SlowDatabaseError; what is left of the job is untried.
        """
        now = self._clock()
        for recipient in job.recipients:
            if recipient.expires_at <= now or recipient.in_doubt:
                await self.give_up_expired(job)
                await self._give_up_doubtful(job)
                break
        if not job.recipients or ((job.message.render or job.message.content is None) and not await self._load(job)):
            return ()
        field = self._personal.field(job.message, job.recipients)
        personal = bool(field)
        if where.upstream:
            field += self._personal.upstream_field(job.message, job.recipients, where.upstream)
        head, content = await self._content(job, session)
        head = field + head
        while session.alive:
            try:
                await self._screen(job)
            except AWAY:
                await asyncio.sleep(RETRY_AFTER)
                return None
            if not job.recipients or (job.message.render and not await self._still(job)):
                return ()
            kept = session.sent > 0
            try:
                if failpoints.ON:
                    failpoints.reached("attempt.begun")
                transaction = await self._transact(session, job, head, content)
            except LocalProtocolError as error:
                text = f"this message cannot be put into SMTP commands: {error}"
                verdict = local_verdict(Kind.PROTOCOL, 554, "5.5.4", text)
                await self.settle(job, [Result(verdict, "mail")] * len(job.recipients), where)
                return ()
            if failpoints.ON:
                failpoints.reached("attempt.after_reply")
            if transaction.called_off:
                continue
            if transaction.stale or (kept and _dismissed(transaction)):
                return None
            relays_dsn = session.features.dsn
            await self.settle(
                job, transaction.results, where, transaction.milliseconds, relays_dsn=relays_dsn, personal=personal
            )
            return transaction.results
        return None

    async def _transact(self, session: Session, job: Job, head: bytes, content: bytes) -> Transaction:
        message = job.message
        return await session.transact(
            self._personal.path(message, job.recipients),
            [recipient.address for recipient in job.recipients],
            content,
            head=head,
            smtputf8=message.smtputf8,
            eight_bit=message.eight_bit,
            ret=message.ret,
            envid=message.envid,
            require_tls=message.require_tls is True,
            rcpt_params=[dsn_parameters(recipient.notify, recipient.orcpt) for recipient in job.recipients],
            on_dot=lambda: self._open(job),
            permit=None if message.credential == FOREIGN else _Permit(self._suppressions, self._renderer, job),
        )

    async def _screen(self, job: Job) -> None:
        """Take out of the job, and settle, who must not be mailed; the answer is fresh when this returns.

        What strangers wrote to our postmaster goes on whatever is suppressed: no outsider shall cut him off. Raises
        what asking the database raises, and SlowDatabaseError.
        """
        if job.message.credential == FOREIGN:
            return
        while job.recipients and (found := await self._suppressions.clear(job.recipients)):
            await self._give_up_suppressed(job, found)

    async def _give_up_suppressed(self, job: Job, found: Sequence[Suppressed]) -> None:
        now = self._clock()
        message = job.message
        notices: list[Notice] = []
        settled = []
        for recipient, suppression in found:
            verdict = local_verdict(Kind.SUPPRESSED, *REFUSAL, suppression.told_to(message.tenant))
            _notify(notices, Notice(recipient, "failed", verdict))
            log.info("recipient.suppressed", message=format_message_id(message.id), to=recipient.address)
            facts = suppression.refusal(message.tenant) | {"at": "data"}
            settled.append(Settled(recipient, _end(recipient, "suppressed", facts, now)))
        out = {recipient.n for recipient, _ in found}
        job.recipients = [recipient for recipient in job.recipients if recipient.n not in out]
        await self._finish(message, settled, notices, now)

    async def refuse(self, job: Job, verdict: Verdict, where: Where, stage: str) -> None:
        """Settle the whole job with a verdict that no transaction was needed for."""
        await self.give_up_expired(job)
        await self.settle(job, [Result(verdict, stage)] * len(job.recipients), where)

    async def settle(
        self,
        job: Job,
        results: Sequence[Result],
        where: Where,
        milliseconds: float = 0.0,
        *,
        relays_dsn: bool = False,
        personal: bool = False,
    ) -> None:
        """Turn the results into due times, events and reports, and hand them to the settler.

        `personal`: the mail named its recipient, so that a report which does not is not believed.
        """
        now = self._clock()
        if milliseconds:
            metrics.transacted(job.message.stream, milliseconds / 1000)
        settled: list[Settled] = []
        notices: list[Notice] = []
        for recipient, result in zip(job.recipients, results, strict=True):
            recipient.attempts += 1
            verdict = result.verdict
            _log_attempt(recipient, result, where, milliseconds)
            metrics.attempted(recipient.message.stream, where.site, verdict.outcome, verdict.kind)
            if where.source:
                metrics.attempted_from(where.source, verdict.outcome, verdict.kind)
            data = _facts(recipient, result, where, milliseconds)
            if verdict.outcome is Outcome.DELIVERED:
                self._journal.delivered(job.message.id, recipient.n)
            elif verdict.outcome is Outcome.DEFERRED:
                settled.append(self._deferred(recipient, result, where, data, now, notices))
                continue
            if verdict.outcome is Outcome.BOUNCED:
                _notify(notices, Notice(recipient, "failed", verdict, where.host, result.reply is not None))
            elif recipient.notify and not relays_dsn:
                _notify(notices, Notice(recipient, "relayed", verdict, where.host, result.reply is not None))
            if personal and verdict.outcome is Outcome.DELIVERED:
                data["personal"] = True
            event = _end(recipient, verdict.outcome, data, now)
            settled.append(Settled(recipient, event, suppression=self._consequence(recipient, result, now)))
        job.recipients = []  # whoever is broken off behind this gives nobody back who is settled
        if notices:
            await self._finish(job.message, settled, notices, now)
        else:
            self._settler.add(settled)

    def broken_off(self, job: Job) -> None:
        """The attempt ended by a fault of ours: whoever may have the mail already is in doubt from now on."""
        for recipient in job.recipients:
            recipient.in_doubt |= self._journal.has(job.message.id, recipient.n)

    def _deferred(
        self,
        recipient: Recipient,
        result: Result,
        where: Where,
        data: dict[str, Any],
        now: datetime,
        notices: list[Notice],
    ) -> Settled:
        verdict = result.verdict
        recipient.last_reply = str(verdict)
        recipient.in_doubt |= result.in_doubt
        if self._gives_up(recipient):
            return Settled(recipient, _end(recipient, "in_doubt", data, now))
        due_at = next_attempt(
            verdict.kind,
            recipient.attempts,
            now,
            recipient.expires_at,
            random.random(),  # noqa: S311 - spreads retries
            self._config.delivery.retry,
            text=verdict.text,
        )
        if due_at is None:
            over = expired(recipient.last_reply)
            _notify(notices, Notice(recipient, "failed", over, where.host))
            consequence = consequences.of_expiry(recipient, over, self._config.suppression, now)
            return Settled(recipient, _end(recipient, "expired", data, now), suppression=consequence)
        data["due_at"] = due_at.isoformat()
        stream = self._config.streams.get(recipient.message.stream)
        if stream is not None and delay_is_due(recipient, stream, now):
            recipient.delay_notified = True
            notice = Notice(recipient, "delayed", verdict, where.host, result.reply is not None, recipient.expires_at)
            notices.append(notice)
        event = _event(recipient, "recipient.deferred", data, now)
        return Settled(recipient, event, due_at, f"{verdict.kind}: {recipient.last_reply}")

    def _consequence(self, recipient: Recipient, result: Result, now: datetime) -> Suppression | None:
        if result.verdict.outcome is not Outcome.BOUNCED or result.reply is None:
            return None
        return consequences.of_reply(recipient, result.verdict, result.stage, self._config.suppression, now)

    async def give_up_expired(self, job: Job) -> None:
        """Recipients whose time is over are not tried again, however they came here."""
        now = self._clock()
        late = [recipient for recipient in job.recipients if recipient.expires_at <= now]
        if not late:
            return
        job.recipients = [recipient for recipient in job.recipients if recipient.expires_at > now]
        notices: list[Notice] = []
        settled = []
        for recipient in late:
            verdict = (
                local_verdict(Kind.POLICY, 554, "5.7.1", RETURNED)
                if recipient.returned
                else expired(recipient.last_reply)
            )
            _notify(notices, Notice(recipient, "failed", verdict))
            state = "bounced" if recipient.returned else "expired"
            facts = {"attempts": recipient.attempts, "kind": verdict.kind, "text": recipient.last_reply}
            if recipient.returned:
                facts |= {"code": verdict.code, "enhanced": verdict.enhanced, "text": verdict.text}
            consequence = (
                None
                if recipient.returned
                else consequences.of_expiry(recipient, verdict, self._config.suppression, now)
            )
            event = _end(recipient, state, facts, now)
            settled.append(Settled(recipient, event, suppression=consequence))
        await self._finish(job.message, settled, notices, now)

    def _gives_up(self, recipient: Recipient) -> bool:
        """Is this recipient, who may have the mail already, not to get it once more?"""
        return recipient.in_doubt and recipient.message.render != "" and self._config.campaigns.in_doubt == "give_up"

    async def _give_up_doubtful(self, job: Job) -> None:
        doubtful = [recipient for recipient in job.recipients if self._gives_up(recipient)]
        if not doubtful:
            return
        now = self._clock()
        job.recipients = [recipient for recipient in job.recipients if not self._gives_up(recipient)]
        facts = {"text": DOUBTFUL}
        await self._finish(
            job.message,
            [
                Settled(recipient, _end(recipient, "in_doubt", facts | {"attempts": recipient.attempts}, now))
                for recipient in doubtful
            ],
            [],
            now,
        )

    async def _load(self, job: Job) -> bool:
        """Make sure that the content is in memory; False when there is none, and the job is over."""
        message = job.message
        if message.render:
            return message.content is not None or await self._render(job)
        message.content = await self._read(message)
        if message.content is not None:
            return True
        log.warning("message.missing", message=format_message_id(message.id))
        self._settler.add([Settled(recipient, None) for recipient in job.recipients])
        return False

    async def _render(self, job: Job) -> bool:
        message, recipient = job.message, job.recipients[0]
        ready = None if job.ready is None else await job.ready
        job.ready = None
        rendered, signature = ready or (await self._rendered(message, recipient), None)
        if isinstance(rendered, Withheld):
            await self._withhold(job, rendered)
            return False
        message.rendered_at = rendered.asked_at
        message.content = rendered.content
        message.eight_bit = not rendered.content.isascii()
        message.canonical = rendered.canonical
        message.signature = signature
        return True

    async def _withhold(self, job: Job, why: Withheld) -> None:
        now = self._clock()
        (recipient,) = job.recipients
        log.info("recipient.withheld", message=format_message_id(job.message.id), reason=why.reason)
        facts = {"reason": why.reason, "detail": why.detail}
        event = _end(recipient, "withheld", facts, now)
        await self._finish(job.message, [Settled(recipient, event)], [], now)

    async def _still(self, job: Job) -> bool:
        """May what was rendered still be sent? If not, that is settled."""
        try:
            why = await _still(self._renderer, job)
        except AWAY as error:
            log.warning("rendering.awaited", message=format_message_id(job.message.id), error=str(error))
            await asyncio.sleep(RETRY_AFTER)
            return True  # it is asked again before DATA
        if why is not None:
            await self._withhold(job, why)
        return why is None

    async def _rendered(self, message: Message, recipient: Recipient) -> Rendered | Withheld:
        """What the renderer says, however long the database is away."""
        while True:
            try:
                return await self._renderer.render(message, recipient)
            except AWAY as error:
                log.warning("rendering.awaited", message=format_message_id(message.id), error=str(error))
            await asyncio.sleep(RETRY_AFTER)

    async def _read(self, message: Message) -> bytes | None:
        """The content, from memory or the database, however long that is away; None when the message is gone."""
        while message.content is None and not message.render:
            try:
                return await self._store.content(message.id)
            except AWAY as error:
                log.warning("content.awaited", message=format_message_id(message.id), error=str(error))
            await asyncio.sleep(RETRY_AFTER)
        return message.content

    async def _content(self, job: Job, session: Session) -> tuple[bytes, bytes]:
        """What goes over the wire, in the form that the peer takes, and before it our fields with its signatures."""
        message = job.message
        content = message.content
        assert content is not None
        if message.eight_bit and not session.supports_8bit and (converted := downgrade(content)) is not None:
            message.content = content = converted
            message.eight_bit = not converted.isascii()
            message.canonical = False
            message.signature = None
        if message.render:
            if message.signature is None:
                head = self._personal.header(message, job.recipients)
                message.signature = await self._sign(message, head, content) + head
            return message.signature, content
        if head := self._personal.header(message, job.recipients):  # others get other fields
            return await self._sign(message, b"", head + content) + head, content
        if message.signature is None:
            message.signature = await self._sign(message, b"", content)
        return message.signature, content

    async def _sign(self, message: Message, head: bytes, content: bytes) -> bytes:
        if self._signers is None:
            return self._signed(message, head, content, message.canonical)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._signers, self._signed, message, head, content, message.canonical)

    def _signed(self, message: Message, head: bytes, content: bytes, canonical: bool) -> bytes:
        """The fields of its signatures, which stand before the head."""
        if message.credential == FOREIGN:
            return b""
        keys = self._identity.signing_keys(head + header_block(content), message.sender)
        if not keys:
            return b""
        return dkim.sign(content, keys, now=int(self._clock().timestamp()), canonical=canonical, head=head)

    def _signed_ahead(self, message: Message, recipient: Recipient, rendered: Rendered) -> bytes:
        head = self._personal.header(message, [recipient])
        return self._signed(message, head, rendered.content, rendered.canonical) + head

    def _open(self, job: Job) -> None:
        for recipient in job.recipients:
            self._journal.open(job.message.id, recipient.n)
        if failpoints.ON:
            failpoints.reached("journal.written")

    async def _finish(self, message: Message, settled: list[Settled], notices: list[Notice], now: datetime) -> None:
        """Write the reports, one for each kind, and hand all of it over."""
        if not notices:
            self._settler.add(settled)
            return
        try:
            content = await self._read(message) or b""
        except Exception:  # a verdict must stand, also when the content cannot be read any more
            log.exception("content.failed", message=format_message_id(message.id))
            content = b""
        reports = []
        for action in ("failed", "delayed", "relayed"):
            group = [notice for notice in notices if notice.action == action]
            try:
                if group:
                    about = frozenset((message.id, notice.recipient.n) for notice in group)
                    reports.append(Report(*self._notices.report(message, content, group, now), about))
            except Exception:  # a verdict must stand, also when it cannot be put into a report
                log.exception("report.failed", message=format_message_id(message.id), action=action)
        self._settler.add(settled, reports)


class _Permit:
    """May the job be sent, as far as suppressions and whoever renders it go? A transaction.Permit."""

    __slots__ = ("_job", "_renderer", "_suppressions")

    def __init__(self, suppressions: Suppressions, renderer: Renderer, job: Job) -> None:
        self._suppressions = suppressions
        self._renderer = renderer
        self._job = job

    def good(self) -> bool:
        return self._suppressions.cleared(self._job.recipients) and _since(self._job.message, FRESH)

    def was_good(self) -> bool:
        return self._suppressions.held(self._job.recipients) and _since(self._job.message, HOLDS)

    async def renew(self) -> bool:
        try:
            if await self._suppressions.clear(self._job.recipients):
                return False
            return not self._job.message.render or await _still(self._renderer, self._job) is None
        except (*AWAY, SlowDatabaseError):
            return False


def _since(message: Message, seconds: float) -> bool:
    """Was it asked so lately whether the mail may be sent, if anybody is to be asked?"""
    return not message.render or message.rendered_at >= time.monotonic() - seconds


async def _still(renderer: Renderer, job: Job) -> Withheld | None:
    """Ask again, unless it was asked just now."""
    if _since(job.message, FRESH):
        return None
    asked_at = time.monotonic()
    why = await renderer.still(job.message, job.recipients[0])
    if why is None:
        job.message.rendered_at = asked_at
    return why


def _dismissed(transaction: Transaction) -> bool:
    """The peer answered 421 to the MAIL of a further transaction: it wants a new connection, not to delay the mail."""
    return all(result.stage == "mail" and result.verdict.code == 421 for result in transaction.results)


def _notify(notices: list[Notice], notice: Notice) -> None:
    if not notice.recipient.message.render and wanted(notice.recipient, notice.action):  # campaigns have their ledger
        notices.append(notice)


def _end(recipient: Recipient, state: str, data: dict[str, Any], now: datetime) -> Event:
    """The event of a recipient's final state, which is counted."""
    message = recipient.message
    metrics.finished(message.stream, state, (now - message.accepted_at).total_seconds())
    return _event(recipient, f"recipient.{state}", data, now)


def _event(recipient: Recipient, type_: str, data: dict[str, Any], now: datetime) -> Event:
    message = recipient.message
    return Event(
        now, type_, message.id, recipient.n, recipient.address, message.tenant, data, message.stream, message.campaign
    )


def _facts(recipient: Recipient, result: Result, where: Where, milliseconds: float) -> dict[str, Any]:
    verdict = result.verdict
    facts: dict[str, Any] = {
        "attempt": recipient.attempts,
        "kind": verdict.kind,
        "code": verdict.code,
        "enhanced": verdict.enhanced,
        "text": verdict.text,
        "stage": result.stage,
        "site": where.site,
        "host": where.host,
        "ip": where.ip,
        "ms": round(milliseconds),
    }
    if where.tls:
        facts["tls"] = where.tls
    if where.source:
        facts["source"] = where.source
    if recipient.in_doubt or result.in_doubt:
        facts["in_doubt"] = True
    return facts


def _log_attempt(recipient: Recipient, result: Result, where: Where, milliseconds: float) -> None:
    verdict = result.verdict
    log.info(
        f"recipient.{verdict.outcome}",
        message=format_message_id(recipient.message.id),
        n=recipient.n,
        to=recipient.address,
        attempt=recipient.attempts,
        kind=verdict.kind,
        reply=str(verdict),
        stage=result.stage,
        site=where.site,
        host=where.host,
        ip=where.ip,
        source=where.source,
        pool=recipient.message.pool,
        tls=where.tls,
        ms=round(milliseconds),
    )
