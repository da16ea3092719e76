"""What a message is submitted with, who submitted it, and what the submitter gets back."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mailerd.intake.credentials import Credential
from mailerd.queue.suppression import Suppression
from mailerd.wire.smtp import RcptCommand

Priority = Literal["high", "normal", "low"]


@dataclass(frozen=True, slots=True)
class Track:
    """What is to be known of the readers of one message."""

    opens: bool = False
    clicks: bool = False


UNTRACKED = Track()


@dataclass(slots=True)
class Envelope:
    """The envelope of one message. `sender` "" is the null sender; no `stream` or `pool`: those of the credential.

    `campaign`, `priority`, `topic`, `unsubscribe`, `track` and `require_tls` (RFC 8689: True REQUIRETLS, False
    "TLS-Required: No") stand above what the header of the message says; None: the header decides.
    """

    sender: str
    recipients: list[RcptCommand]
    size: int = 0
    smtputf8: bool = False
    eight_bit: bool = False
    ret: str = ""
    envid: str = ""
    stream: str | None = None
    pool: str | None = None
    not_before: datetime | None = None
    expires_at: datetime | None = None
    labels: dict[str, str] = field(default_factory=dict)
    campaign: str | None = None
    priority: Priority | None = None
    require_tls: bool | None = None
    topic: str | None = None
    unsubscribe: bool | None = None
    track: Track | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from. `peer` is an IP address, `tls` such as `TLSv1.3 TLS_AES_256_GCM_SHA384` or ""."""

    protocol: str
    peer: str
    helo: str
    tls: str
    credential: Credential


@dataclass(frozen=True, slots=True)
class Receipt:
    """The message is on disk. `recipients` will get it, by their numbers, `suppressed` will not."""

    message_id: int
    recipients: list[tuple[int, str]]
    suppressed: list[tuple[int, str, Suppression]] = field(default_factory=list)
