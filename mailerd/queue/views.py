"""What the outside sees of the queue: messages, their recipients, every attempt, and what steering did.

Values only. Whoever reads or steers (`web`, `cli`) speaks in these, whoever holds the rows fills them in.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct

RecipientState = Literal["queued", "held", "deferred", "delivered", "bounced", "expired", "cancelled", "suppressed"]
FINAL_STATES: frozenset[str] = frozenset({"delivered", "bounced", "expired", "cancelled", "suppressed"})


class View(Struct, frozen=True, kw_only=True):
    """Base of what is shown: frozen, built by keyword."""


class RecipientView(View, frozen=True, kw_only=True):
    """One recipient as it stands. `queued` waits for its first attempt, `deferred` for another, `held` for a release.

    `due_at` is when it may leave next, `reason` what it waits for until then; `due_at` is None once the state is final.
    """

    n: int
    address: str
    state: RecipientState
    attempts: int = 0
    due_at: datetime | None = None
    expires_at: datetime | None = None
    reason: str = ""
    last_reply: str = ""  # as the remote host gave it: `550 5.1.1 no such user`
    in_doubt: bool = False  # may have been sent already; the final reply was not recorded


class AttemptView(View, frozen=True, kw_only=True):
    """One try at one recipient. `text` is the remote's own words, `kind` the class of our verdict on them."""

    n: int  # the recipient
    at: datetime
    outcome: Literal["delivered", "deferred", "bounced"]
    kind: str = ""
    host: str = ""
    ip: str = ""
    source: str = ""
    tls: str = ""  # version and cipher; "" for clear text
    stage: str = ""  # connect, greeting, ehlo, starttls, auth, mail, rcpt, data, dot
    code: int = 0
    enhanced: str = ""
    text: str = ""
    milliseconds: int = 0


class MessageView(View, frozen=True, kw_only=True):
    """A message, all its recipients by `n`, and all attempts, oldest first."""

    id: int
    sender: str
    subject: str  # for people: encoded words are decoded; it may be cut
    stream: str
    pool: str
    credential: str
    size: int
    accepted_at: datetime
    labels: dict[str, str] = {}
    recipients: tuple[RecipientView, ...] = ()
    attempts: tuple[AttemptView, ...] = ()


class MessageSummary(View, frozen=True, kw_only=True):
    """One line of a search: a message and how many of its recipients are in each state (states with none left out)."""

    id: int
    sender: str
    first_recipient: str
    subject: str
    stream: str
    pool: str
    accepted_at: datetime
    total: int
    states: dict[str, int]
    labels: dict[str, str] = {}


class MailFilters(View, frozen=True, kw_only=True):
    """What a search looks for; None: any. `tag` is the name of a label, whatever its value.

    `recipient` and `sender` are whole addresses, `state` that of any recipient; `after` is inclusive, `before` is not.
    """

    tenant: str | None
    recipient: str | None = None
    sender: str | None = None
    tag: str | None = None
    state: RecipientState | None = None
    after: datetime | None = None
    before: datetime | None = None


class MailPage(View, frozen=True, kw_only=True):
    """Part of a search, newest first. It goes on with ids below `before`; None: that was all."""

    messages: tuple[MessageSummary, ...]
    before: int | None = None


class Steered(View, frozen=True, kw_only=True):
    """What a steering command did: `changed` recipients followed it, `waiting` are without a final state after it.

    `kept` of these are held by an operator, and whoever gave the command is none: no release of theirs lets them go on.
    """

    changed: int
    waiting: int
    kept: int = 0


class QueueView(View, frozen=True, kw_only=True):
    """What waits for one domain of one stream, pool and flow: `name` is `stream/pool/flow/domain`.

    `tenant` and `campaign` are those of the flow, slashes as underscores, `priority` its own within the stream.
    `blocked_until` and `reason` when all of it must wait.
    """

    name: str
    stream: str = ""
    pool: str = ""
    tenant: str = ""
    campaign: str = ""
    priority: str = ""
    domain: str = ""
    recipients: int
    held: int
    in_memory: int
    next_due: datetime | None
    oldest: datetime | None
    blocked_until: datetime | None = None
    reason: str = ""
