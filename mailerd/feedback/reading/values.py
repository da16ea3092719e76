"""What a report says: values without behaviour."""

from dataclasses import dataclass
from enum import StrEnum

LONGEST_DIAGNOSTIC = 1000  # characters
LONGEST_WORDS = 2000
LONGEST_NAME = 255  # of hosts and subjects
LONGEST_ADDRESS = 320


class ReportKind(StrEnum):
    """What a mail that came back is; a stable word that counters and events use."""

    BOUNCE = "bounce"
    DELAYED = "delayed"
    DELIVERED = "delivered"  # reports of success: delivered, relayed, expanded
    COMPLAINT = "complaint"
    AUTO_REPLY = "auto_reply"  # out of office, vacation, receipts (MDN)
    CHALLENGE = "challenge"  # the sender shall prove that he is a person
    DMARC = "dmarc"  # an aggregate report
    TLS = "tls"  # an aggregate report (RFC 8460)
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Reported:
    """What a report says of one recipient. All text is one printable line."""

    address: str  # the domain in lower case; "" when the report does not say
    original: str = ""  # Original-Recipient
    action: str = ""  # failed, delayed, delivered, relayed, expanded; "" in complaints
    status: str = ""  # enhanced code, "5.1.1"; "" when it does not say
    code: int = 0  # SMTP reply code; 0: unknown
    diagnostic: str = ""  # reply of the remote host, <= 1000 characters
    words: str = ""  # human text around the recipient, <= 2000 characters
    remote: str = ""  # Remote-MTA


@dataclass(frozen=True, slots=True)
class Returned:
    """What came back of our message."""

    header: bytes = b""  # as far as it was returned
    message_id: str = ""  # with its angle brackets


@dataclass(frozen=True, slots=True)
class Report:
    """A mail that came back. `reporter`: the Reporting-MTA, else the domain of who wrote it."""

    kind: ReportKind
    recipients: tuple[Reported, ...] = ()
    returned: Returned = Returned()
    reporter: str = ""
    feedback_type: str = ""  # of complaints (RFC 5965 section 7.3): abuse, fraud, not-spam, opt-out …
    subject: str = ""
