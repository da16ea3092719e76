"""What is known of an endpoint, of what it did not take yet, and of an attempt. Pure."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mailerd.events import Event, Position
from mailerd.feedback.names import fits
from mailerd.queue.ids import PREFIX as MESSAGE
from mailerd.queue.ids import format_message_id, parse_message_id

WEBHOOK = "whk_"
DELIVERY = "dlv_"
REPLAY = "rpl_"
BATCH = "bat_"
TEST_TYPE = "webhook.test"
DISABLED_TYPE = "webhook.disabled"


def format_id(prefix: str, number: int) -> str:
    """`whk_…`: 13 letters that sort as the numbers do."""
    return prefix + format_message_id(number).removeprefix(MESSAGE)


def parse_id(prefix: str, text: str) -> int:
    """The number behind it; raises ValueError for anything else."""
    try:
        if text.startswith(prefix):
            return parse_message_id(MESSAGE + text.removeprefix(prefix))
    except ValueError:
        pass  # it speaks of messages
    raise ValueError(f"{text[:40]!r} is not an id such as {prefix}38g13rwt40000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An endpoint: a URL of an application, and what it wants to be told.

    `events` are types or patterns (`email.bounced`, `email.*`, `*`); `streams` empty: of any stream, and what has
    none. Up to `batch_events` events go in one request, the first of which waits up to `batch_wait` milliseconds.
    """

    id: int
    tenant: str
    url: str
    events: tuple[str, ...]
    streams: tuple[str, ...] = ()
    description: str = ""
    batch_events: int = 1
    batch_wait: int = 0
    secret: bytes
    old_secret: bytes | None = None
    old_until: datetime | None = None
    disabled_at: datetime | None = None
    disabled_why: str = ""
    failing_since: datetime | None = None
    position: Position
    version: int = 1
    created_at: datetime
    created_by: str = ""

    @property
    def outside_id(self) -> str:
        return format_id(WEBHOOK, self.id)

    def wants(self, type_: str, stream: str) -> bool:
        """Is it to be told of events of this type (as the outside names it) and stream?"""
        return fits(type_, self.events) and (not self.streams or stream in self.streams)

    def secrets(self, now: datetime) -> tuple[bytes, ...]:
        """What requests are signed with: two for a while after the secret was changed."""
        if self.old_secret is not None and self.old_until is not None and now < self.old_until:
            return (self.secret, self.old_secret)
        return (self.secret,)


def subject_of(event: Event) -> int:
    """What an event is about: events of one subject are told in their order. A message, else an address."""
    if event.message_id:
        return event.message_id
    digest = hashlib.blake2b(f"{event.tenant}\0{event.address}".encode(), digest_size=8).digest()
    return -(int.from_bytes(digest) >> 1) - 1  # below all ids of messages


class Result(StrEnum):
    """How an attempt ended. dead: it was the last one."""

    DELIVERED = "delivered"
    FAILED = "failed"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an endpoint answered. `status` 0: nothing, and `error` says why. `retry_after` in seconds, 0: not said."""

    status: int
    error: str = ""
    answer: str = ""  # its beginning
    took: float = 0.0  # seconds
    retry_after: float = 0.0

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """The endpoint wants no more of it."""
        return self.status == 410

    @property
    def rejects(self) -> bool:
        """It is this request that it does not take, and hardly ever will."""
        return self.status in (400, 404, 405, 413, 422)

    @property
    def throttles(self) -> bool:
        """It is the endpoint that cannot now, whatever it is told."""
        return self.status in (429, 502, 503, 504) or self.retry_after > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The events of one request, by their places, and its webhook-id, the same for every attempt."""

    key: str
    positions: tuple[Position, ...]
    types: tuple[str, ...]
    subjects: tuple[int, ...]

    @property
    def batched(self) -> bool:
        return self.key.startswith(BATCH)


@dataclass(slots=True, kw_only=True)
class Pending:
    """A request that the endpoint did not take yet, or that waits behind one. `attempts`: so far.

    `hurried`: it is tried before it is due, because the endpoint is back; that uses up no attempt. `rejected`: the last
    answer was that of one who will not take it.
    """

    id: int
    told: Told
    attempts: int
    due_at: datetime
    created_at: datetime
    hurried: bool = False
    rejected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One line of the log. `next_at`: when it is tried again."""

    at: datetime
    told: Told
    number: int
    result: Result
    outcome: Outcome
    next_at: datetime | None = None
    id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Events of a range of time that are told once more; `types` empty: all that the endpoint wants."""

    id: int
    webhook_id: int
    since: datetime
    until: datetime
    types: tuple[str, ...]
    position: Position
    told: int = 0
    created_at: datetime
    finished_at: datetime | None = None
