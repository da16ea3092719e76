"""What clients send and get, as types: one source for validation and for the OpenAPI document."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from mailerd.intake.envelope import Priority
from mailerd.intake.wishes import MAX_CAMPAIGN
from mailerd.queue.views import AttemptView, RecipientState, RecipientView
from mailerd.web.problems import FieldError

MAX_ADDRESSES = 100_000  # in one list, before anything looks at them; smtp.max_recipients says how many are taken
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w.:/@+-]+(?!\n)$")]
Value = Annotated[str, Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Campaign = Annotated[str, Meta(max_length=MAX_CAMPAIGN, pattern=r"^[^\x00-\x1f\x7f/:!]*(?!\n)$")]
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset: 2026-11-22T09:30:00Z")]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what clients send: unknown fields are refused, so that a typing error is not silently ignored."""


class NamedAddress(Request, frozen=True, kw_only=True):
    email: str
    name: str = ""


Address = Annotated[str | NamedAddress, Meta(description="`ann@example.com`, `Ann <ann@example.com>`, or an object")]
Addresses = str | NamedAddress | Annotated[list[str | NamedAddress], Meta(max_length=MAX_ADDRESSES)]


class Attachment(Request, frozen=True, kw_only=True):
    """`content` is base64. With `content_id` the HTML may show it as `<img src="cid:…">`, and it travels inline.

    Without `content_type` the end of `filename` tells it; `application/octet-stream` when that tells nothing.
    """

    content: bytes
    filename: Annotated[str, Meta(max_length=255)] = ""
    content_type: Annotated[str, Meta(max_length=255)] = ""
    content_id: Annotated[str, Meta(max_length=255)] = ""
    disposition: Literal["attachment", "inline"] | None = None


class Tracking(Request, frozen=True, kw_only=True):
    """What is to be known of the reader of one message."""

    opens: bool = False
    clicks: bool = False


class Options(Request, frozen=True, kw_only=True):
    """How a message is to be sent. A tag is a label without a value.

    Messages of one `campaign` take turns with those of others. Within a stream, `high` goes before `normal` before
    `low`. `require_tls` true: over verified TLS, by hosts that promise the same (REQUIRETLS, RFC 8689), or not at all;
    false: delivery matters more than what the recipients' domains ask for by MTA-STS or DANE. `topic` is what readers
    may unsubscribe from within the stream, the same in upper and lower case (kept in lower case); `unsubscribe`: with
    List-Unsubscribe fields of ours or without, whatever the stream has. On the stream transactional it needs a topic.
    `tracking` is off unless it is asked for, and then of one recipient: a pixel in the HTML, and links of the HTML that
    lead through us, but for those with `data-track="off"`; what readers do becomes `email.opened` and `email.clicked`.
    A campaign and a topic have at most 100 bytes of UTF-8.
    """

    tags: Annotated[list[Name], Meta(max_length=20)] = []
    labels: Annotated[dict[Name, Value], Meta(max_length=50)] = {}
    stream: Annotated[str, Meta(max_length=64)] | None = None
    pool: Annotated[str, Meta(max_length=64)] | None = None
    scheduled_at: Moment | None = None
    expires_at: Moment | None = None
    campaign: Campaign | None = None
    priority: Priority | None = None
    require_tls: bool | None = None
    topic: Campaign | None = None
    unsubscribe: bool | None = None
    tracking: Tracking | None = None


class Email(Options, frozen=True, kw_only=True):
    """One message. All of `to`, `cc` and `bcc` get the same bytes; who is in `bcc` stands in no header.

    At least one recipient, and `html` or `text`, must be there; text is made from the HTML when it is missing.
    """

    from_: Address = msgspec.field(name="from")
    to: Addresses = []
    cc: Addresses = []
    bcc: Addresses = []
    reply_to: Addresses = []
    subject: Annotated[str, Meta(max_length=10_000)] = ""
    html: str | None = None
    text: str | None = None
    headers: Annotated[dict[str, str], Meta(max_length=1000)] = {}
    attachments: Annotated[list[Attachment], Meta(max_length=1000)] = []


class Batch(Request, frozen=True, kw_only=True):
    """Messages that have nothing to do with one another; each is taken or refused by itself."""

    emails: Annotated[list[Email], Meta(min_length=1, max_length=1000)]


class RawBatch(Request, frozen=True, kw_only=True):
    """A `Batch` whose items are looked at one by one, so that one bad item does not spoil the rest."""

    emails: Annotated[list[msgspec.Raw], Meta(min_length=1)]


class RawEmail(Options, frozen=True, kw_only=True):
    """A complete message (RFC 5322) and its envelope: the headers say what is shown, `from` and `to` where it goes."""

    from_: str = msgspec.field(name="from")
    to: str | Annotated[list[str], Meta(max_length=MAX_ADDRESSES)]
    raw: bytes  # base64


class RawQuery(Request, frozen=True, kw_only=True):
    """The envelope of a message that is the body; `to` and `tag` may be repeated."""

    from_: str = msgspec.field(name="from")
    to: list[str]
    tag: Annotated[list[Name], Meta(max_length=20)] = []
    stream: Annotated[str, Meta(max_length=64)] | None = None
    pool: Annotated[str, Meta(max_length=64)] | None = None
    scheduled_at: Moment | None = None
    expires_at: Moment | None = None
    campaign: Campaign | None = None
    priority: Priority | None = None
    require_tls: bool | None = None
    topic: Campaign | None = None
    unsubscribe: bool | None = None


class Search(Request, frozen=True, kw_only=True):
    """`recipient` and `sender` are whole addresses; `after` is inclusive, `before` exclusive."""

    recipient: str | None = None
    sender: str | None = None
    tag: Name | None = None
    state: RecipientState | None = None
    after: Moment | None = None
    before: Moment | None = None
    cursor: Annotated[str, Meta(max_length=200)] | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class Reschedule(Request, frozen=True, kw_only=True):
    scheduled_at: Moment


class Answer(Struct, frozen=True, kw_only=True):
    """Base of what clients get. Fields may be added; clients ignore what they do not know."""


class AcceptedRecipient(Answer, frozen=True, kw_only=True):
    id: str
    email: str
    kind: Literal["to", "cc", "bcc"]


class SuppressedRecipient(AcceptedRecipient, frozen=True, kw_only=True):
    """It must not be mailed, and was left out. `suppression` is the id of the entry, `detail` says why."""

    suppression: str
    reason: str
    since: datetime
    detail: str


class Accepted(Answer, frozen=True, kw_only=True):
    """The message is on disk: it will be delivered to `recipients`, or its end will be told.

    `suppressed` are those of several who will not get it.
    """

    id: str
    status: Literal["queued", "scheduled"]
    recipients: list[AcceptedRecipient]
    suppressed: list[SuppressedRecipient] = []


class ItemRefused(Answer, frozen=True, kw_only=True):
    code: str
    detail: str
    errors: list[FieldError] = []


class BatchItem(Answer, frozen=True, kw_only=True):
    """What became of one item: either `email` (status 202) or `error`."""

    status: int
    email: Accepted | None = None
    error: ItemRefused | None = None


class BatchAccepted(Answer, frozen=True, kw_only=True):
    """The items in the order they were sent."""

    accepted: int
    refused: int
    data: list[BatchItem]


class RecipientDetail(RecipientView, frozen=True, kw_only=True):
    id: str


class AttemptDetail(AttemptView, frozen=True, kw_only=True):
    recipient_id: str


class EmailDetail(Answer, frozen=True, kw_only=True):
    """Where a message stands: every recipient, what each waits for and until when, and every attempt."""

    id: str
    sender: str
    subject: str
    stream: str
    pool: str
    credential: str
    size: int
    accepted_at: datetime
    tags: list[str]
    labels: dict[str, str]
    recipients: list[RecipientDetail]
    attempts: list[AttemptDetail]


class EmailLine(Answer, frozen=True, kw_only=True):
    """One message of a search; `states` counts its recipients by state."""

    id: str
    sender: str
    first_recipient: str
    subject: str
    stream: str
    pool: str
    accepted_at: datetime
    total: int
    states: dict[str, int]
    tags: list[str]
    labels: dict[str, str]


class EmailPage(Answer, frozen=True, kw_only=True):
    """Newest first. `next_cursor` with the same filters goes on; with a rare filter a page may be short, or empty."""

    data: list[EmailLine]
    has_more: bool
    next_cursor: str | None


class SteeredEmail(Answer, frozen=True, kw_only=True):
    """`changed` recipients followed the command, `waiting` have no final state after it, and an operator `kept` some.

    What an operator holds may be cancelled or bounced, but it goes on only when an operator releases it.
    """

    id: str
    changed: int
    waiting: int
    kept: int


class Health(Answer, frozen=True, kw_only=True):
    status: Literal["ok", "ready"]
