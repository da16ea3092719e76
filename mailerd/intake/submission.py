"""The front door: SMTP, HTTP and whoever else has mail to send end here, at the moment we become responsible for it."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from mailerd import metrics
from mailerd.config import Config, Rate
from mailerd.errors import Refused
from mailerd.events import Event
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.idempotency import Conflict, Idempotency, IdempotencyStore, Replayed
from mailerd.queue.commit import GroupCommit
from mailerd.queue.ids import IdMaker, format_message_id
from mailerd.queue.mail import Message, Recipient
from mailerd.queue.store import QueueStore
from mailerd.wire import message as wire

log = structlog.get_logger()

MAX_HOPS = 100  # Received fields; RFC 5321 6.3
MAX_FACT = 200  # characters of a subject kept in the event
LONGEST_WAIT = timedelta(days=365)  # of scheduled mail
STREAM = "transactional"  # when neither the credential nor the submitter says

Item = tuple[Envelope, bytes]
Result = Receipt | Refused


@dataclass(slots=True)
class _Bucket:
    """What is left of a rate: refilled steadily, at most one period's worth."""

    left: float
    at: float


class Submitter:
    """Checks, completes and commits. One for each worker."""

    def __init__(
        self,
        config: Config,
        *,
        commit: GroupCommit,
        store: QueueStore,
        wake: Callable[[], None],
        idempotency: IdempotencyStore,
        ids: IdMaker,
        clock: Callable[[], datetime],
        workers: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._commit = commit
        self._store = store
        self._wake = wake
        self._idempotency = idempotency
        self._ids = ids
        self._clock = clock
        self._workers = workers
        self._monotonic = monotonic
        self._buckets: dict[tuple[str, str], _Bucket] = {}

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

    async def submit(self, envelope: Envelope, content: bytes, origin: Origin) -> Receipt:
        """Take responsibility for the message: it is durable when this returns. Raises Refused or Unavailable."""
        self._spend(origin.credential, 1, len(envelope.recipients))
        message, accepted = self._prepare(envelope, content, origin)
        await self._commit.add([message], accepted)
        _log_accepted(message, origin)
        return _receipt(message)

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
        answer and `status` are stored in the same transaction, and given back when the request comes again.
        """
        if idempotency is not None and (earlier := await self._idempotency.find(idempotency)) is not None:
            return earlier
        self._spend(origin.credential, len(items), sum(len(envelope.recipients) for envelope, _ in items))
        messages: list[Message] = []
        events: list[Event] = []
        results: list[Result] = []
        for envelope, content in items:
            try:
                message, accepted = self._prepare(envelope, content, origin)
            except Refused as refusal:
                results.append(refusal)
            else:
                messages.append(message)
                events += accepted
                results.append(_receipt(message))
        if not messages:
            return results, b""
        response = respond(results)
        if idempotency is None:
            await self._commit.add(messages, events)
        else:
            effect = partial(self._store.accept, messages, events, {})
            if (earlier := await self._idempotency.once(idempotency, status, response, effect)) is not None:
                return earlier
            self._wake()
        for message in messages:
            _log_accepted(message, origin)
        return results, response

    def _prepare(self, envelope: Envelope, content: bytes, origin: Origin) -> tuple[Message, list[Event]]:
        now = self._clock()
        credential = origin.credential
        self.check_sender(credential, envelope.sender)
        header, _ = wire.split(content)
        self._check_header(header, credential)
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
        content = wire.fix_up(
            content,
            message_id=f"{public_id}.{secrets.token_hex(4)}@{self._config.hostname}",
            date=date,
            received=received,
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
        )
        for n, command in enumerate(envelope.recipients, 1):
            mailbox = command.address
            domain = mailbox.domain or self._config.hostname
            address = mailbox.address if mailbox.domain else f"{mailbox.address}@{domain}"
            message.recipients.append(
                Recipient(message, n, address, domain, expires_at, due_at, command.notify, command.orcpt)
            )
        return message, _accepted(message, origin, header)

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
            domain = wire.first_address_domain(header, b"From")
            if domain and not credential.may_send_as(domain):
                raise Refused(
                    550,
                    "5.7.1",
                    f"{credential.name} may not send as {domain} (From field)",
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
        return due_at, expires_at

    def _spend(self, credential: Credential, messages: int, recipients: int) -> None:
        """Count against the credential's rates; each worker grants its share of them."""
        for what, rate, amount in (
            ("messages", credential.message_rate, messages),
            ("recipients", credential.recipient_rate, recipients),
        ):
            if rate is not None and not self._allows(credential.name, what, rate, amount):
                text = f"{credential.name} may submit {rate.count} {what} in {rate.period:g} s; try again later"
                raise Refused(451, "4.7.1", text, name="rate_limited", http=429)

    def _allows(self, name: str, what: str, rate: Rate, amount: int) -> bool:
        now = self._monotonic()
        most = max(1.0, rate.count / self._workers)
        bucket = self._buckets.setdefault((name, what), _Bucket(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.at) * most / rate.period)
        bucket.at = now
        if bucket.left < min(amount, most):
            return False
        bucket.left -= amount
        return True


def _receipt(message: Message) -> Receipt:
    return Receipt(message.id, [(recipient.n, recipient.address) for recipient in message.recipients])


def _protocol(origin: Origin, *, smtputf8: bool) -> str:
    """The "with" word of the Received field (RFC 3848, RFC 6531 4.3)."""
    if origin.protocol != "smtp":
        return "HTTP"
    return wire.with_protocol(tls=bool(origin.tls), authenticated=origin.credential.kind != "trusted", utf8=smtputf8)


def _accepted(message: Message, origin: Origin, header: bytes) -> list[Event]:
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
        "message_id": _fact(header, b"Message-ID"),
    }
    if origin.tls:
        facts["tls"] = origin.tls
    if message.labels:
        facts["labels"] = message.labels
    return [
        Event(
            message.accepted_at,
            "message.accepted",
            message.id,
            recipient.n,
            recipient.address,
            message.tenant,
            None if index else facts,
        )
        for index, recipient in enumerate(message.recipients)
    ]


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
    return values[0].decode("utf-8", "replace")[:MAX_FACT] if values else ""
