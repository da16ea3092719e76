"""The message and its recipients, as a worker holds them in memory."""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(slots=True, eq=False)
class Message:
    """One accepted message. `content` is the RFC 5322 bytes with CRLF lines, unstuffed; None: not read yet.

    `sender` is the envelope sender, "" the null sender. `recipients` are those in the hands of this worker, `total`
    counts all, `in_hand` those not settled yet. `ret` is FULL, HDRS or "", `envid` the decoded ENVID of RFC 3461 or "".
    `labels` is the sender's own map, given back on every event. `signature` holds the DKIM-Signature headers once they
    are made.
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
    recipients: list["Recipient"] = field(default_factory=list)
    in_hand: int = 0
    signature: bytes | None = None


@dataclass(slots=True, eq=False)
class Recipient:
    """One address of a message: the unit of queueing. `domain` is lower-case ASCII (A-labels) or an address literal.

    `notify` is the upper-case NOTIFY list of RFC 3461 ("" when not given: failure), `orcpt` the ORCPT, `type;address`.
    `returned`: given up on an operator's word.
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

    @property
    def queue(self) -> str:
        return f"{self.message.stream}/{self.message.pool}/{self.domain}"
