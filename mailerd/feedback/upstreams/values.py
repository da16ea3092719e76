"""What an upstream service says of one recipient, whichever service it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

TOKEN = "mailerd"  # noqa: S105 - the name under which our token travels with the mail and comes back


class Happened(StrEnum):
    """As far as it matters to us: opens and clicks are counted by our own links."""

    DELIVERED = "delivered"
    DELAYED = "delayed"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"


@dataclass(frozen=True, slots=True)
class UpstreamEvent:
    """One event about one recipient.

    `token` is ours of the return-path kind, or ""; `message_id` the Message-ID field of the mail, or "". `permanent` is
    the service's own word, None when it gives none. `status` is an enhanced code, `code` a reply code, `text` what the
    recipient's host said, or the service.
    """

    happened: Happened
    address: str
    token: str = ""
    message_id: str = ""
    permanent: bool | None = None
    status: str = ""
    code: int = 0
    text: str = ""
    feedback_type: str = ""


class Forged(Exception):  # noqa: N818 - nothing went wrong here
    """The signature is not the service's, or what it signs is not for us; the text says which."""


class Unreadable(Exception):  # noqa: N818
    """It is signed, but it is not what the service documents."""


def is_recent(timestamp: str, now: datetime, span: timedelta) -> bool:
    """Are the seconds since 1970 that a request gives about now?"""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    return abs(int(timestamp) - now.timestamp()) <= span.total_seconds()


Headers = Mapping[str, str]  # names of any case are found
