"""What the HTTP side needs from the rest of the daemon."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from mailerd.campaigns.analytics.desk import AnalyticsDesk
from mailerd.campaigns.contacts.book import ContactBook
from mailerd.campaigns.contacts.files import ContactFiles
from mailerd.campaigns.contacts.preferences import PreferenceStore
from mailerd.campaigns.desk import CampaignDesk
from mailerd.campaigns.segments.store import SegmentStore
from mailerd.campaigns.templates.desk import TemplateDesk
from mailerd.campaigns.tracking.service import Tracker
from mailerd.clock import utc_now
from mailerd.delivery.effects import EffectStore
from mailerd.delivery.explain import Explainer
from mailerd.errors import Refused
from mailerd.feedback.event_search import EventSearchStore
from mailerd.feedback.unsubscribing import UnsubscribeStore
from mailerd.feedback.upstreams.receiving import Upstreams
from mailerd.feedback.webhooks.desk import WebhookDesk
from mailerd.intake.allowance import Allowance
from mailerd.intake.credentials import Credential
from mailerd.intake.envelope import Envelope, Origin, Receipt
from mailerd.intake.idempotency import Conflict, Idempotency, IdempotencyStore, Replayed
from mailerd.queue.suppression import SuppressionStore
from mailerd.queue.suppression_files import SuppressionFileStore
from mailerd.queue.views import MailFilters, MailPage, MessageView, Steered

Result = Receipt | Refused
Respond = Callable[[Sequence[Result]], bytes]


class Submitter(Protocol):
    """Takes messages into the queue."""

    async def submit_batch(
        self,
        items: Sequence[tuple[Envelope, bytes]],
        origin: Origin,
        idempotency: Idempotency | None,
        status: int,
        respond: Respond,
    ) -> tuple[Sequence[Result], bytes] | Replayed | Conflict:
        """Check and store messages in one transaction; return one result for each, in order, and `respond(results)`.

        A refused item does not keep the others out. With `idempotency`, before anything else is checked: a stored
        answer with the same fingerprint is returned as `Replayed`, with another one as `Conflict.OTHER_REQUEST`, and a
        key that is being worked on as `Conflict.IN_PROGRESS`; else `status` and the response are stored under the key
        in the transaction of the messages. When every item is refused nothing is stored, not even the key, and
        `respond` is not called: the bytes are then b"". Returns after the commit; raises `Unavailable` when nothing was
        stored, and `RateLimited` when the credential has used its rate. When the database goes away while a key is
        being stored, its error comes out: sent again, the same request tells.
        """
        ...

    def allowances(self, credential: Credential) -> Sequence[Allowance]:
        """What is left of the credential's rates."""
        ...


class Authenticator(Protocol):
    async def token(self, token: str, peer: str) -> Credential | None:
        """The credential of this API key, None when it is wrong; may raise `Refused` and `Unavailable`."""
        ...


class MailStore(Protocol):
    """The reading side of the queue."""

    async def message(self, message_id: int, tenant: str) -> MessageView | None:
        """The message with all recipients and attempts; None when this tenant has none of that id."""
        ...

    async def search(self, filters: MailFilters, limit: int, before: int | None) -> MailPage:
        """Up to `limit` messages that fit, newest (largest id) first, only those with ids below `before`.

        A page may be short or empty, and not be the last.
        """
        ...


class Control(Protocol):
    """The steering side: each acts on the recipients of one message that are not in the middle of an attempt.

    None: this tenant has no message of that id. Each call that changes something is written to the audit table as done
    by `actor`, in the same transaction.
    """

    async def cancel(self, message_id: int, *, tenant: str, actor: str) -> Steered | None: ...

    async def hold(self, message_id: int, *, tenant: str, actor: str) -> Steered | None: ...

    async def release(self, message_id: int, *, tenant: str, actor: str) -> Steered | None: ...

    async def retry(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        """Make waiting recipients due now."""
        ...

    async def bounce(self, message_id: int, *, tenant: str, actor: str) -> Steered | None:
        """Give up on waiting recipients as if they had failed for good: the sender is told."""
        ...

    async def reschedule(self, message_id: int, due_at: datetime, *, tenant: str, actor: str) -> Steered | None: ...


@dataclass(slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds. One for all who look: what is changed here holds at once."""

    max_body: int = 40_000_000  # of one request: http.max_body
    max_message: int = 50_000_000  # smtp.max_size
    max_recipients: int = 1_000  # of one message: smtp.max_recipients
    max_batch: int = 1_000  # messages
    memory: int = 256_000_000  # bodies under way, all connections of this process together
    idle_read: float = 30.0  # between two pieces of a body
    total_read: float = 300.0  # of one body
    handling: float = 60.0  # from the whole body to the answer
    connections: int = 10_000  # of this process
    keep_alive: float = 75.0  # idle between requests; also for all header lines of one request
    linger: float = 3.0  # for the rest of a body that was refused, so that the client sees why
    stop: float = 20.0  # for requests under way when the server is stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    submitter: Submitter
    authenticator: Authenticator
    mail: MailStore
    control: Control
    explainer: Callable[[], Explainer]  # of what is in force now
    effects: EffectStore
    events: EventSearchStore
    suppressions: SuppressionStore
    suppression_files: SuppressionFileStore
    streams: Callable[[], Collection[str]]  # the names of those that are in force now
    unsubscribes: UnsubscribeStore
    upstreams: Upstreams
    webhooks: WebhookDesk
    templates: TemplateDesk
    tracker: Tracker
    idempotency: IdempotencyStore
    preferences: PreferenceStore
    analytics: AnalyticsDesk
    segments: SegmentStore
    contacts: ContactBook
    contact_files: ContactFiles
    campaigns: CampaignDesk
    ping: Callable[[], Awaitable[None]]  # returns when the database answers, raises when it does not
    stopping: Callable[[], bool]
    cursor_key: bytes  # installation.secret
    sender: Callable[[str], str]  # what a tenant calls itself, for the pages that readers see; "": nothing
    now: Callable[[], datetime] = utc_now
    limits: Limits = field(default_factory=Limits)
