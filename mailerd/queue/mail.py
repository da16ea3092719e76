"""The message and its recipients, as a worker holds them in memory."""

from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import NamedTuple

PRIORITIES = ("high", "normal", "low")
NORMAL = PRIORITIES.index("normal")
UNRENDERED = 2_000  # bytes of a message without content, and its recipient, in memory


class Queue(NamedTuple):
    """The recipients that wait for one stream, pool, flow and domain; `name` is `stream/pool/flow/domain`."""

    name: str
    lane: int
    flow: str
    pool: str

    @property
    def domain(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def stream(self) -> str:
        return self.name.partition("/")[0]


@dataclass(slots=True, eq=False)
class Message:
    """One accepted message. `content` is the RFC 5322 bytes with CRLF lines, unstuffed; None: not read yet.

    `sender` is the envelope sender, "" the null sender. `recipients` are those in the hands of this worker, `total`
    counts all, `in_hand` those not settled yet. `ret` is FULL, HDRS or "", `envid` the decoded ENVID of RFC 3461 or "".
    `labels` is the sender's own map, given back on every event. `signature` holds the DKIM-Signature headers once they
    are made, and of what is rendered the other fields that we put before it. Mail of a lower `lane` goes first:
    precedence of the stream * 3 + priority (0 high, 1 normal, 2 low). `require_tls` is that of RFC 8689: True
    REQUIRETLS, False "TLS-Required: No". `topic` is what its reader may unsubscribe from within the stream,
    `unsubscribe` asks for the header fields by which. `render` is what its content is made from right before it is
    sent, in the words of whoever renders; such a message has one recipient, and in the database no content;
    `rendered_at` is when it was asked last whether it may be sent, of the monotonic clock of this process, `canonical`
    whether its body is known to be in DKIM's relaxed form. `flow`, made of the others, says who competes for a turn.
    """

    id: int
    sender: str
    stream: str
    pool: str
    credential: str
    tenant: str
    size: int
    accepted_at: datetime
    content: bytes | None = None
    smtputf8: bool = False
    eight_bit: bool = False
    ret: str = ""
    envid: str = ""
    labels: dict[str, str] | None = None
    total: int = 1
    campaign: str = ""
    lane: int = 4
    require_tls: bool | None = None
    topic: str = ""
    unsubscribe: bool = False
    render: str = ""
    recipients: list["Recipient"] = field(default_factory=list)
    in_hand: int = 0
    signature: bytes | None = None
    rendered_at: float = -inf
    canonical: bool = False
    flow: str = field(init=False)

    @property
    def weight(self) -> int:
        """Bytes that it takes in memory while it waits."""
        return UNRENDERED if self.render else self.size

    def __post_init__(self) -> None:
        self.flow = flow_name(self.tenant, self.campaign, self.lane)


@dataclass(slots=True, eq=False)
class Recipient:
    """One address of a message: the unit of queueing. `domain` is lower-case ASCII (A-labels) or an address literal.

    `notify` is the upper-case NOTIFY list of RFC 3461 ("" when not given: failure), `orcpt` the ORCPT, `type;address`.
    `returned`: given up on an operator's word. `cleared`: when the question began whose answer was that the address is
    not suppressed, of the monotonic clock of this process. `queue`, made of the others, is where it waits.
    """

    message: Message
    n: int
    address: str
    domain: str
    expires_at: datetime
    due_at: datetime
    notify: str = ""
    orcpt: str = ""
    attempts: int = 0
    in_doubt: bool = False
    delay_notified: bool = False
    returned: bool = False
    last_reply: str = ""
    cleared: float = -inf
    queue: str = field(init=False)

    def __post_init__(self) -> None:
        message = self.message
        self.queue = f"{message.stream}/{message.pool}/{message.flow}/{self.domain}"


def parts_of_queue(name: str) -> dict[str, str]:
    """What stands in a queue's name: stream, pool, tenant, campaign, priority and domain."""
    stream, pool, flow, domain = (name.split("/", 3) + [""] * 3)[:4]
    tenant, campaign, priority = parts_of_flow(flow)
    return {
        "stream": stream,
        "pool": pool,
        "tenant": tenant,
        "campaign": campaign,
        "priority": priority,
        "domain": domain,
    }


def queue_of(recipient: Recipient) -> Queue:
    """Where this recipient waits."""
    message = recipient.message
    return Queue(recipient.queue, message.lane, message.flow, message.pool)


def flow_name(tenant: str, campaign: str, lane: int) -> str:
    """`acme`, `acme:spring`, `acme:spring!high`: the messages that take turns as one."""
    name = (f"{tenant}:{campaign}" if campaign else tenant).replace("/", "_")
    priority = lane % 3
    return name if priority == NORMAL else f"{name}!{PRIORITIES[priority]}"


def parts_of_flow(flow: str) -> tuple[str, str, str]:
    """Tenant, campaign and priority of a flow's name."""
    who, _, priority = flow.partition("!")
    tenant, _, campaign = who.partition(":")
    return tenant, campaign, priority or PRIORITIES[NORMAL]
