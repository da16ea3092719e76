"""What comes back, written as receiving hosts write it, and an inbound end beside a running relay."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mailerd.config import Config, Http, Inbound, SendingDomain
from mailerd.feedback.inbound import Inbound as InboundEnd
from mailerd.feedback.inbound import build_inbound
from mailerd.intake.credentials import CredentialStore
from mailerd.intake.envelope import Receipt
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx

BOUNCES = "bounce.sender.example"


def bounce(
    address: str = "bob@example.net",
    status: str = "5.1.1",
    diagnostic: str = "550 5.1.1 <bob@example.net>: no such user",
    returned: str = "",
    action: str = "failed",
    to: str = "somebody@bounce.sender.example",
) -> bytes:
    """A DSN (RFC 3464) about one recipient; `returned` is the header of our message."""
    lines = [
        "From: MAILER-DAEMON@mx.example.net (Mail Delivery System)",
        f"To: <{to}>",
        "Subject: Undelivered Mail Returned to Sender",
        "Auto-Submitted: auto-replied",
        "Message-ID: <report.1@mx.example.net>",
        "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"',
        "",
        "--=_b",
        "Content-Type: text/plain",
        "",
        f"<{address}>: {diagnostic}",
        "",
        "--=_b",
        "Content-Type: message/delivery-status",
        "",
        "Reporting-MTA: dns; mx.example.net",
        "",
        f"Final-Recipient: rfc822; {address}",
        f"Action: {action}",
        f"Status: {status}",
        f"Diagnostic-Code: smtp; {diagnostic}",
        "",
        "--=_b",
        "Content-Type: text/rfc822-headers",
        "",
        returned or "Subject: hello\r\n",
        "--=_b--",
        "",
    ]
    return "\r\n".join(lines).encode()


def complaint(feedback_type: str = "abuse", returned: str = "", recipient: str = "") -> bytes:
    """An ARF report (RFC 5965); without `recipient` a redacted one."""
    lines = [
        "From: <complaints@provider.example>",
        "To: <fbl@mail.sender.example>",
        "Subject: complaint about message",
        "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=feedback-report; boundary="=_c"',
        "",
        "--=_c",
        "Content-Type: text/plain",
        "",
        "This is an email abuse report.",
        "",
        "--=_c",
        "Content-Type: message/feedback-report",
        "",
        f"Feedback-Type: {feedback_type}",
        "User-Agent: Feedback/1.0",
        "Version: 1",
        *([f"Original-Rcpt-To: <{recipient}>"] if recipient else []),
        "",
        "--=_c",
        "Content-Type: message/rfc822",
        "",
        returned or "Subject: hello\r\n",
        "",
        "text",
        "--=_c--",
        "",
    ]
    return "\r\n".join(lines).encode()


class ReturningWorld:
    """A relay that signs return paths, its mail exchangers, and the end where their reports come in."""

    def __init__(self, config: Config, relay: RunningRelay, mx: ScriptedMx, inbound: InboundEnd) -> None:
        self.config = config
        self.relay = relay
        self.mx = mx
        self.inbound = inbound
        self.pool = relay.pool
        self.clock = relay.clock

    async def sent(self, *to: str, **options: Any) -> Receipt:
        """Deliver a message to all of them."""
        receipt = await self.relay.submit(*(to or ("bob@example.net",)), **options)
        await self.relay.settled()
        return receipt

    @property
    def path(self) -> str:
        """The return path of what was delivered last."""
        return self.mx.delivered[-1].sender

    @property
    def header(self) -> str:
        """The header of what was delivered last, as a report returns it."""
        return self.mx.delivered[-1].content.partition(b"\r\n\r\n")[0].decode() + "\r\n"

    async def receive(self, content: bytes, *to: str, sender: str = "") -> None:
        """It comes in, to the last return path if nowhere else."""
        addresses = to or (self.path,)
        for address in addresses:
            self.inbound.accepts(address)
        await self.inbound.receive(sender, addresses, content, "127.0.0.9", "mx.example.net", "")

    async def suppressions(self) -> list[tuple[str, str, str, str]]:
        rows = await self.pool.fetch("SELECT address, tenant, stream, reason FROM suppressions ORDER BY id")
        return [tuple(row) for row in rows]

    async def event(self, type_: str) -> dict[str, Any]:
        """The data of the one event of that type."""
        rows = await self.pool.fetch("SELECT data FROM events WHERE type = $1", type_)
        assert len(rows) == 1, rows
        data: dict[str, Any] = rows[0]["data"]
        return data

    async def state(self) -> dict[str, int]:
        """How many rows there are of all that a report may change."""
        tables = ("events", "suppressions", "soft_bounces", "messages", "dmarc_reports", "tls_reports_received")
        counts = {table: await self.pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables}
        counts["books"] = await self.pool.fetchval("SELECT COALESCE(sum(bounced + complained), 0) FROM traffic_days")
        return counts


@asynccontextmanager
async def returning_world(
    database: str, dns: DnsServer, mx: ScriptedMx, directory: Path, clock: Clock, **changes: Any
) -> AsyncIterator[ReturningWorld]:
    settings: dict[str, Any] = {
        "domains": {"sender.example": SendingDomain(return_path=BOUNCES)},
        "http": Http(public_url="https://mail.sender.example"),
        "inbound": Inbound(forward={"postmaster": "ops@example.org", "abuse": "ops@example.org"}),
    }
    config = relay_config(directory, dns, mx.port, **settings | changes)
    async with running_relay(config, database, clock=clock) as running:
        inbound = build_inbound(
            config,
            running.pool,
            submitter=running.relay.submitter,
            suppressions=running.relay.suppressions,
            provider_of=running.relay.traffic.provider_of,
            secret=await CredentialStore(running.pool).secret(),
            clock=clock,
        )
        yield ReturningWorld(config, running, mx, inbound)
