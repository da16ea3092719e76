"""Taking over mail that is rendered when it is sent, in the transaction of whoever writes to many.

    hand = submitter.hand_over()
    try:
        async with connection.transaction():
            …
            ids = [hand.add(deferred) for deferred in …]
            await hand.store(connection)
    except BaseException:
        hand.failed()
        raise
    hand.done()

What is stored belongs to this worker as far as its memory has room, and leaves from there; the rest is claimed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from mailerd import failpoints, metrics
from mailerd.config import Config, precedence
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.events import Event
from mailerd.queue.ids import IdMaker, format_message_id
from mailerd.queue.mail import NORMAL, PRIORITIES, UNRENDERED, Message, Recipient, flow_name
from mailerd.queue.store import QueueStore
from mailerd.wire.address import parse_mailbox

NEVER = {"notify": "NEVER"}  # a campaign has its ledger: nobody is sent reports about its mail


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """One mail to one address. `render` says to the renderer what it is made from; `size` is about what it will have.

    `sender` is the envelope sender. `pool` None: that of the stream; `expires_at` None: as the stream has it.
    """

    sender: str
    address: str
    render: str
    tenant: str
    campaign: str
    credential: str
    stream: str
    pool: str | None = None
    topic: str = ""
    unsubscribe: bool = True
    size: int = 0
    expires_at: datetime | None = None
    subject: str = ""
    labels: dict[str, str] | None = None


class Memory(Protocol):
    """The worker's dispatcher."""

    def keep(self, message: Message) -> bool: ...
    def offer(self, messages: list[Message]) -> None: ...
    def left(self, messages: list[Message]) -> None: ...
    def drop(self, message: Message) -> None: ...
    def strayed(self) -> None: ...
    def room_of_campaign(self, flow: str, weight: int) -> int: ...
    def held_of_campaign(self, flow: str) -> int: ...


def message_id_field(message_id: int, campaign: str, sender: str) -> str:
    """The Message-ID of such mail: the same however often it is rendered."""
    return f"<{format_message_id(message_id)}.{campaign}@{sender.rpartition('@')[2]}>"


class HandOver:
    """The mail of one transaction. Call `done` after its commit, and `failed` in every other case."""

    def __init__(
        self,
        config: Config,
        *,
        worker: int,
        store: QueueStore,
        memory: Memory,
        ids: IdMaker,
        clock: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._worker = worker
        self._store = store
        self._memory = memory
        self._ids = ids
        self._now = clock()
        self._messages: list[Message] = []
        self._events: list[Event] = []
        self._kept: set[int] = set()

    def add(self, mail: Deferred) -> int:
        """Take it in; its message id. Raises Refused for what cannot be sent: a bad address, a stream that is none."""
        stream = self._config.streams.get(mail.stream)
        if stream is None:
            raise Refused(550, "5.5.4", f"there is no stream {mail.stream}", name="unknown_stream")
        pool = mail.pool or stream.pool
        if pool not in self._config.pools:
            raise Refused(550, "5.5.4", f"there is no pool {pool}", name="unknown_pool")
        try:
            mailbox = parse_mailbox(mail.address)
        except ValueError as error:
            raise Refused(
                501, "5.1.3", f"{mail.address[:100]!r} is no address: {error}", name="invalid_address"
            ) from None
        message = Message(
            id=self._ids.next(),
            sender=mail.sender,
            stream=mail.stream,
            pool=pool,
            credential=mail.credential,
            tenant=mail.tenant,
            size=mail.size,
            accepted_at=self._now,
            smtputf8=mailbox.needs_smtputf8,
            labels=mail.labels,
            campaign=mail.campaign,
            lane=precedence(self._config.streams, mail.stream) * len(PRIORITIES) + NORMAL,
            topic=mail.topic,
            unsubscribe=mail.unsubscribe,
            render=mail.render,
        )
        expires_at = mail.expires_at or self._now + timedelta(seconds=stream.expires)
        message.recipients.append(Recipient(message, 1, mailbox.address, mailbox.domain, expires_at, self._now))
        self._messages.append(message)
        self._events.append(_accepted(message, mail))
        return message.id

    async def store(self, connection: Connection) -> None:
        """Write all of it, in the caller's transaction. Raises LeaseLostError when this worker was declared dead."""
        if not self._messages:
            return
        self._kept = {message.id for message in self._messages if self._memory.keep(message)}
        owners = dict.fromkeys(self._kept, self._worker)
        await self._store.accept(self._messages, self._events, owners, connection)
        if failpoints.ON:
            failpoints.reached("hand_over.before_commit")

    def kept(self, message_id: int) -> bool:
        """Does this worker hold it in memory? Else its path, or the part of its campaign, was full."""
        return message_id in self._kept

    def done(self) -> None:
        """It is committed: what was kept is sent from memory."""
        if failpoints.ON:
            failpoints.reached("hand_over.after_commit")
        for message in self._messages:
            metrics.accepted(message.stream, "campaign", 1, message.size)
        self._memory.offer([message for message in self._messages if message.id in self._kept])
        if left := [message for message in self._messages if message.id not in self._kept]:
            self._memory.left(left)

    def failed(self) -> None:
        """It is not committed, or nobody knows: what was kept is given up, and looked for among what is ours."""
        for message in self._messages:
            if message.id in self._kept:
                self._memory.drop(message)
        if self._kept:
            self._memory.strayed()
        self._kept = set()


def room(memory: Memory, tenant: str, campaign: str) -> int:
    """How much of such mail of one campaign this worker would keep in memory now."""
    return memory.room_of_campaign(flow_name(tenant, campaign, NORMAL), UNRENDERED)


def held(memory: Memory, tenant: str, campaign: str) -> int:
    """How much of it this worker has in memory."""
    return memory.held_of_campaign(flow_name(tenant, campaign, NORMAL))


def _accepted(message: Message, mail: Deferred) -> Event:
    facts: dict[str, Any] = NEVER | {
        "sender": message.sender,
        "size": message.size,
        "recipients": 1,
        "stream": message.stream,
        "pool": message.pool,
        "credential": message.credential,
        "protocol": "campaign",
        "peer": "",
        "subject": mail.subject,
        "message_id": message_id_field(message.id, mail.campaign, mail.sender),
        "campaign": mail.campaign,
    }
    if mail.topic:
        facts["topic"] = mail.topic
    if mail.labels:
        facts["labels"] = mail.labels
    return Event(
        message.accepted_at,
        "message.accepted",
        message.id,
        1,
        message.recipients[0].address,
        message.tenant,
        facts,
        message.stream,
        message.campaign,
    )
