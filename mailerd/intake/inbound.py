"""Where an `inbound` listener leaves what comes back to us: bounces, complaints, reports, wishes to be left alone."""

from collections.abc import Sequence
from typing import Protocol


class TakesInbound(Protocol):
    """Asked for each recipient, given each message."""

    def accepts(self, address: str) -> None:
        """Return when `address` is one of ours; raise `Refused` (550 5.1.1) else. Asks no database, waits for nothing.

        `address` is as RCPT has it, its domain in lower case and A-labels, or the bare `postmaster`.
        """

    async def receive(
        self, sender: str, recipients: Sequence[str], content: bytes, peer: str, helo: str, tls: str
    ) -> None:
        """Return when everything that follows from the message is durable; raise `Refused` or `Unavailable` else.

        `sender` is "" for the null sender, `recipients` were all accepted, `content` has CRLF lines, `peer` is an IP
        address, `tls` such as `TLSv1.3 TLS_AES_256_GCM_SHA384` or "".
        """
