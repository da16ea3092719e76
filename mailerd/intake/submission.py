"""The front door: SMTP, HTTP and whoever else has mail to send end here, at the moment we become responsible for it."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog

from mailerd import metrics
from mailerd.config import Config, precedence, unsubscribes
from mailerd.delivery.notices import Notices
from mailerd.errors import Refused, Unavailable
from mailerd.events import Event
from mailerd.intake.allowance import Allowance, Allowances
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import UNTRACKED, Envelope, Origin, Receipt, Track
from mailerd.intake.hand_over import HandOver, held, room
from mailerd.intake.hand_over import Memory as HandOverMemory
from mailerd.intake.idempotency import Conflict, Idempotency, IdempotencyStore, Replayed
from mailerd.intake.suppressed import leave_out
from mailerd.intake.wishes import FOR_US, TLS_NOT_REQUIRED, Wishes, read_wishes
from mailerd.queue.commit import BAD_DATA, LOST, GroupCommit
from mailerd.queue.ids import IdMaker, format_message_id
from mailerd.queue.mail import PRIORITIES, Message, Recipient
from mailerd.queue.screening import Suppressed, Suppressions
from mailerd.queue.store import QueueStore
from mailerd.wire import message as wire
from mailerd.wire.smtp import parse_rcpt

log = structlog.get_logger()

MAX_HOPS = 100  # Received fields; RFC 5321 6.3
MAX_FACT = 200  # characters of a subject kept in the event
LONGEST_WAIT = timedelta(days=365)  # of scheduled mail
TURN = 0.01  # seconds that a batch is prepared for before others get their turn: one that is tracked may take several
STREAM = "transactional"  # when neither the credential nor the submitter says
REMOVED = (*wire.REMOVED, *FOR_US)
OWN = Credential(name="mailerd", kind="trusted")  # of mail that we write ourselves
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # what PostgreSQL's text and jsonb cannot hold

Item = tuple[Envelope, bytes]
Result = Receipt | Refused
# Content, message id, domain that sends it and what to track; gives the content that goes out, or raises Refused.
Mark = Callable[[bytes, int, str, Track], bytes]


class Submitter:
    """Checks, completes and commits. One for each worker."""

    def __init__(
        self,
        config: Config,
        *,
        commit: GroupCommit,
        store: QueueStore,
        suppressions: Suppressions,
        notices: Notices,
        wake: Callable[[], None],
        idempotency: IdempotencyStore,
        ids: IdMaker,
        clock: Callable[[], datetime],
        worker: int,
        memory: HandOverMemory,
        mark: Mark,
        workers: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._worker = worker
        self._memory = memory
        self._commit = commit
        self._mark = mark
        self._store = store
        self._suppressions = suppressions
        self._notices = notices
        self._wake = wake
        self._idempotency = idempotency
        self._ids = ids
        self._clock = clock
        self._allowances = Allowances(workers, monotonic)

    def reconfigure(self, config: Config) -> None:
        """What is submitted from now on follows `config`."""
        self._config = config

    def check_sender(self, credential: Credential, sender: str) -> None:
        """May this credential use this envelope sender ("" is the null sender)? Raises Refused."""
        domain = sender.rpartition("@")[2]
        if sender and not credential.may_send_as(domain):
            raise Refused(
                550,
                "5.7.1",
                f"{credential.name} may not send as {domain}",
                name="sender_not_allowed",
                field="from",
                http=403,
            )

    def allowances(self, credential: Credential) -> list[Allowance]:
        """What is left of the credential's rates in this worker; none when it has no rate."""
        return self._allowances.left(credential)

    async def submit(self, envelope: Envelope, content: bytes, origin: Origin) -> Receipt:
        """Take responsibility for the message: it is durable when this returns. Raises Refused or Unavailable.

        That holds for the recipients of the receipt: those that must not be mailed are left out.
        """
        message, accepted = self._prepare(envelope, content, origin)
        del content  # the message has a copy of its own, and one is enough to wait for the disk
        self._allowances.take(origin.credential, 1, message.total)
        found = await self._screen([message])
        if found:
            messages, events, result = leave_out(message, accepted, found[message.id], origin, self._notices)
        else:
            messages, events, result = [message], accepted, _receipt(message)
        await self._commit.add(messages, events)
        if isinstance(result, Refused):
            raise result
        _log_accepted(message, origin)
        return result

    async def _screen(self, messages: Sequence[Message]) -> dict[int, list[Suppressed]]:
        """Who must not be mailed, by message."""
        await self._commit.drained()  # nothing is stored before: who waits for it is asked for in one query
        recipients = [recipient for message in messages for recipient in message.recipients]
        try:
            found = await self._suppressions.screen(recipients)
        except (*LOST, asyncpg.InsufficientResourcesError) as error:
            raise Unavailable("the database cannot be asked who must not be mailed") from error
        by_message: dict[int, list[Suppressed]] = {}
        for each in found:
            by_message.setdefault(each.recipient.message.id, []).append(each)
        return by_message

    async def submit_report(self, sender: str, recipient: str, content: bytes) -> None:
        """Submit a report of ours about TLS: whatever ails TLS must not hold it up (RFC 8460 section 3).

        Nobody is told when it cannot be delivered. Raises Refused or Unavailable.
        """
        envelope = Envelope(sender, [parse_rcpt(f"TO:<{recipient}> NOTIFY=NEVER")], len(content), require_tls=False)
        await self.submit(envelope, content, Origin("report", "127.0.0.1", self._config.hostname, "", OWN))

    async def submit_within(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        envelope: Envelope,
        content: bytes,
        origin: Origin,
    ) -> Receipt:
        """Submit in the caller's transaction: the message is accepted when that is committed. Call `wake` then."""
        message, accepted = self._prepare(envelope, content, origin)
        await self._store.accept([message], accepted, {}, connection)
        _log_accepted(message, origin)
        return _receipt(message)

    def hand_over(self) -> HandOver:
        """For mail that is rendered when it is sent, of one transaction of whoever writes to many."""
        return HandOver(
            self._config,
            worker=self._worker,
            store=self._store,
            memory=self._memory,
            ids=self._ids,
            clock=self._clock,
        )

    def room(self, tenant: str, campaign: str) -> int:
        """How much of such mail of a campaign this worker would keep in memory now."""
        return room(self._memory, tenant, campaign)

    def held(self, tenant: str, campaign: str) -> int:
        """How much of such mail of a campaign this worker has in memory."""
        return held(self._memory, tenant, campaign)

    def wake(self) -> None:
        """Mail has come into the queue by `submit_within`."""
        self._wake()

    async def submit_batch(
        self,
        items: Sequence[Item],
        origin: Origin,
        idempotency: Idempotency | None,
        status: int,
        respond: Callable[[Sequence[Result]], bytes],
    ) -> tuple[Sequence[Result], bytes] | Replayed | Conflict:
        """Take several messages in one transaction, each accepted or refused on its own.

        Returns the results and what `respond` makes of them (b"" when every item was refused). With `idempotency` that
        answer and `status` are stored in the same transaction, and given back when the request comes again, whatever
        the credential's rates say by then.
        """
        if idempotency is not None and (earlier := await self._idempotency.find(idempotency)) is not None:
            return earlier
        prepared = []
        turn_ends = time.monotonic() + TURN
        for envelope, content in items:
            if time.monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.monotonic() + TURN
            prepared.append(self._try_to_prepare(envelope, content, origin))
        found = await self._screen([each[0] for each in prepared if not isinstance(each, Refused)])
        taken: list[Message] = []
        messages: list[Message] = []  # with the reports about them
        events: list[Event] = []
        results: list[Result] = []
        for each in prepared:
            if isinstance(each, Refused):
                result: Result = each
            elif each[0].id in found:
                stored, facts, result = leave_out(*each, found[each[0].id], origin, self._notices)
                messages += stored
                events += facts
            else:
                messages.append(each[0])
                events += each[1]
                result = _receipt(each[0])
            if isinstance(result, Refused):
                metrics.refused(origin.protocol, result.name)
            elif not isinstance(each, Refused):
                taken.append(each[0])
            results.append(result)
        if not messages:
            if events:
                self._allowances.take(origin.credential, len(found), len(events))
                await self._commit.add([], events)
            return results, b""
        response = respond(results)
        if idempotency is None:
            self._take(taken, origin)
            await self._commit.add(messages, events)
        else:

            async def effect(connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]") -> None:
                self._take(taken, origin)  # only now: a request that another one has overtaken costs nothing
                await self._store.accept(messages, events, {}, connection)

            try:
                earlier = await self._idempotency.once(idempotency, status, response, effect)
            except BAD_DATA as error:
                raise Refused(554, "5.6.0", "the message cannot be stored", name="unstorable") from error
            if earlier is not None:
                return earlier
            self._wake()
        for message in taken:
            _log_accepted(message, origin)
        return results, response

    def _try_to_prepare(
        self, envelope: Envelope, content: bytes, origin: Origin
    ) -> tuple[Message, list[Event]] | Refused:
        try:
            return self._prepare(envelope, content, origin)
        except Refused as refusal:
            return refusal

    def _take(self, messages: Sequence[Message], origin: Origin) -> None:
        self._allowances.take(origin.credential, len(messages), sum(message.total for message in messages))

    def _prepare(self, envelope: Envelope, content: bytes, origin: Origin) -> tuple[Message, list[Event]]:
        now = self._clock()
        credential = origin.credential
        self.check_sender(credential, envelope.sender)
        header = wire.header_block(content)
        self._check_header(header, credential)
        _check_text(envelope)
        wishes = read_wishes(envelope, header)
        stream, pool = self._stream(envelope, credential)
        due_at, expires_at = self._times(envelope, stream, now)
        id_ = self._ids.next()
        public_id = format_message_id(id_)
        date = wire.format_date(now)
        received = wire.received_line(
            helo=origin.helo,
            peer=origin.peer,
            by=self._config.hostname,
            protocol=_protocol(origin, smtputf8=envelope.smtputf8),
            message_id=public_id,
            date=date,
            tls=origin.tls,
        )
        if wishes.track != UNTRACKED:
            if len(envelope.recipients) > 1:
                text = "what is tracked has one recipient: of several nobody could tell who read it"
                raise Refused(550, "5.5.4", text, name="tracking_one_recipient", field="tracking")
            domain = wire.first_address_domain(header, b"From") or envelope.sender.rpartition("@")[2]
            content = self._mark(content, id_, domain, wishes.track)
        own_id = f"<{public_id}.{secrets.token_hex(4)}@{self._config.hostname}>"  # if it has none
        content = wire.fix_up(
            content,
            message_id=own_id,
            date=date,
            received=received + TLS_NOT_REQUIRED if wishes.require_tls is False and not wishes.said else received,
            remove=REMOVED,
        )
        message = Message(
            id=id_,
            sender=envelope.sender,
            stream=stream,
            pool=pool,
            credential=credential.name,
            tenant=credential.tenant,
            size=len(content),
            accepted_at=now,
            content=content,
            smtputf8=envelope.smtputf8,
            eight_bit=envelope.eight_bit or not content.isascii(),
            ret=envelope.ret,
            envid=envelope.envid,
            labels=envelope.labels or None,
            total=len(envelope.recipients),
            campaign=wishes.campaign,
            lane=precedence(self._config.streams, stream) * len(PRIORITIES) + PRIORITIES.index(wishes.priority),
            require_tls=wishes.require_tls,
            topic=wishes.topic,
            unsubscribe=self._unsubscribes(wishes, stream, header),
        )
        for n, command in enumerate(envelope.recipients, 1):
            mailbox = command.address
            domain = mailbox.domain or self._config.hostname
            address = mailbox.address if mailbox.domain else f"{mailbox.address}@{domain}"
            message.recipients.append(
                Recipient(message, n, address, domain, expires_at, due_at, command.notify, command.orcpt)
            )
        return message, _accepted(message, origin, header, wishes, own_id)

    def _check_header(self, header: bytes, credential: Credential) -> None:
        problem = wire.header_problem(header)
        if problem is not None:
            raise Refused(
                554, "5.6.0", f"the message header is malformed: {problem}", name="malformed_header", field="raw"
            )
        if header.count(b"\nReceived:") + header.startswith(b"Received:") > MAX_HOPS:
            raise Refused(
                554, "5.4.6", f"more than {MAX_HOPS} Received fields: a mail loop", name="mail_loop", field="raw"
            )
        if credential.sender_domains:
            for domain in wire.address_domains(header, b"From"):
                if not domain or not credential.may_send_as(domain):  # what we cannot read, others may
                    shown = domain or "what it has for a domain"
                    raise Refused(
                        550,
                        "5.7.1",
                        f"{credential.name} may not send as {shown} (From field)",
                        name="sender_not_allowed",
                        field="from",
                        http=403,
                    )

    def _stream(self, envelope: Envelope, credential: Credential) -> tuple[str, str]:
        stream = credential.stream or envelope.stream or STREAM
        if envelope.stream not in (None, stream):
            raise Refused(
                550,
                "5.7.1",
                f"{credential.name} sends on stream {stream} only",
                name="stream_not_allowed",
                field="stream",
                http=403,
            )
        if stream not in self._config.streams:
            known = ", ".join(sorted(self._config.streams))
            raise Refused(
                550, "5.5.4", f"there is no stream {stream}; known: {known}", name="unknown_stream", field="stream"
            )
        pool = credential.pool or envelope.pool or self._config.streams[stream].pool
        if pool not in self._config.pools:
            known = ", ".join(sorted(self._config.pools))
            raise Refused(550, "5.5.4", f"there is no pool {pool}; known: {known}", name="unknown_pool", field="pool")
        return stream, pool

    def _unsubscribes(self, wishes: Wishes, stream: str, header: bytes) -> bool:
        """Whether it goes out with List-Unsubscribe fields of ours: as asked, else by stream; never beside others."""
        wanted = unsubscribes(self._config.streams, stream) if wishes.unsubscribe is None else wishes.unsubscribe
        ours = wanted and not wire.header_values(header, b"List-Unsubscribe")
        if ours and stream == STREAM and not wishes.topic:
            text = f"unsubscribe on stream {stream} needs a topic: without one a click would stop all of its mail"
            raise Refused(550, "5.5.4", text, name="topic_needed", field="topic")
        return ours

    def _times(self, envelope: Envelope, stream: str, now: datetime) -> tuple[datetime, datetime]:
        due_at = max(envelope.not_before or now, now)
        if due_at - now > LONGEST_WAIT:
            raise Refused(
                550,
                "5.5.4",
                f"mail can be scheduled {LONGEST_WAIT.days} days ahead",
                name="too_far_ahead",
                field="scheduled_at",
            )
        expires_at = envelope.expires_at or due_at + timedelta(seconds=self._config.streams[stream].expires)
        if expires_at <= due_at:
            raise Refused(
                550, "5.5.4", "the message would expire before it is due", name="expires_too_soon", field="expires_at"
            )
        if expires_at - due_at > LONGEST_WAIT:
            text = f"mail can be tried for {LONGEST_WAIT.days} days"
            raise Refused(550, "5.5.4", text, name="expires_too_late", field="expires_at")
        return due_at, expires_at


def _check_text(envelope: Envelope) -> None:
    """One message that the database cannot take must not hold up those that are committed with it."""
    texts = [envelope.sender, envelope.envid, *envelope.labels, *envelope.labels.values()]
    for command in envelope.recipients:
        texts += (command.address.address, command.orcpt)
    if UNSTORABLE.search(" ".join(texts)):
        raise Refused(501, "5.5.2", "an address, label or ENVID has characters that no text has", name="invalid_text")


def _receipt(message: Message) -> Receipt:
    return Receipt(message.id, [(recipient.n, recipient.address) for recipient in message.recipients])


def _protocol(origin: Origin, *, smtputf8: bool) -> str:
    """The "with" word of the Received field (RFC 3848, RFC 6531 4.3)."""
    if origin.protocol != "smtp":
        return "HTTP" if origin.protocol == "http" else "local"
    return wire.with_protocol(tls=bool(origin.tls), authenticated=origin.credential.kind != "trusted", utf8=smtputf8)


def _accepted(message: Message, origin: Origin, header: bytes, wishes: Wishes, own_id: str) -> list[Event]:
    facts: dict[str, Any] = {
        "sender": message.sender,
        "size": message.size,
        "recipients": message.total,
        "stream": message.stream,
        "pool": message.pool,
        "credential": message.credential,
        "protocol": origin.protocol,
        "peer": origin.peer,
        "subject": _fact(header, b"Subject"),
        "message_id": _fact(header, b"Message-ID") or own_id,
    }
    if origin.tls:
        facts["tls"] = origin.tls
    if message.labels:
        facts["labels"] = message.labels
    if wishes.campaign:
        facts["campaign"] = wishes.campaign
    if wishes.priority != "normal":
        facts["priority"] = wishes.priority
    if wishes.require_tls is not None:
        facts["require_tls"] = wishes.require_tls
    if wishes.track != UNTRACKED:
        facts["tracking"] = [what for what in ("opens", "clicks") if getattr(wishes.track, what)]
    if wishes.topic:
        facts["topic"] = wishes.topic
    if (due_at := message.recipients[0].due_at) > message.accepted_at:
        facts["due_at"] = due_at.isoformat()
    return [
        Event(
            message.accepted_at,
            "message.accepted",
            message.id,
            recipient.n,
            recipient.address,
            message.tenant,
            _wanted(recipient) or None if index else facts | _wanted(recipient),
            message.stream,
            message.campaign,
        )
        for index, recipient in enumerate(message.recipients)
    ]


def _wanted(recipient: Recipient) -> dict[str, Any]:
    """Of what its sender wants to be told (RFC 3461), where that is not the default: for reports that come later."""
    return {"notify": recipient.notify} if recipient.notify else {}


def _log_accepted(message: Message, origin: Origin) -> None:
    metrics.accepted(message.stream, origin.protocol, message.total, message.size)
    log.info(
        "message.accepted",
        message=format_message_id(message.id),
        sender=message.sender,
        recipients=message.total,
        size=message.size,
        stream=message.stream,
        credential=message.credential,
        protocol=origin.protocol,
        peer=origin.peer,
    )


def _fact(header: bytes, name: bytes) -> str:
    values = wire.header_values(header, name)
    text = values[0].decode("utf-8", "replace")[:MAX_FACT] if values else ""
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
