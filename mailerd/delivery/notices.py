"""Reports to senders about failed, late and relayed mail (RFC 3461, RFC 3464), made into messages of our own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mailerd.config import Config, Stream, precedence
from mailerd.delivery.verdict import Verdict
from mailerd.events import Event
from mailerd.queue.ids import format_message_id
from mailerd.queue.mail import NORMAL, PRIORITIES, Message, Recipient
from mailerd.wire.reports import RecipientReport, build_report

STREAM = "transactional"
CREDENTIAL = "mailerd"  # of mail that we write ourselves
LIFETIME = timedelta(days=2)


@dataclass(slots=True)
class Notice:
    """One recipient to be reported: `action` is failed, delayed or relayed (RFC 3464 2.3.3).

    `replied`: the verdict's code and words are a host's own, not ours.
    """

    recipient: Recipient
    action: str
    verdict: Verdict
    host: str = ""
    replied: bool = False
    will_retry_until: datetime | None = None


def wanted(recipient: Recipient, action: str) -> bool:
    """May the sender be told? Never the null sender, and what NOTIFY of RFC 3461 says."""
    if not recipient.message.sender:
        return False
    notify = recipient.notify.split(",") if recipient.notify else ["FAILURE", "DELAY"]
    return {"failed": "FAILURE", "delayed": "DELAY", "relayed": "SUCCESS"}[action] in notify


def delay_is_due(recipient: Recipient, stream: Stream, now: datetime) -> bool:
    """One delay report for each recipient, after the stream's `delay_notice`."""
    return (
        stream.delay_notice > 0
        and not recipient.delay_notified
        and now - recipient.message.accepted_at >= timedelta(seconds=stream.delay_notice)
        and wanted(recipient, "delayed")
    )


class Notices:
    """Writes the reports."""

    def __init__(self, config: Config, next_id: Callable[[], int]) -> None:
        self._next_id = next_id
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """The name, the pool and the lane of the reports that are written from now on."""
        self._hostname = config.hostname
        self._pool = config.streams[STREAM].pool
        self._lane = precedence(config.streams, STREAM) * len(PRIORITIES) + NORMAL

    def report(
        self, message: Message, content: bytes, notices: Sequence[Notice], now: datetime
    ) -> tuple[Message, Event]:
        """One report about recipients of one message, as a message to its sender, and its event."""
        id_ = self._next_id()
        bytes_ = build_report(
            sender=message.sender,
            hostname=self._hostname,
            envid=message.envid,
            arrival=message.accepted_at,
            now=now,
            recipients=[_recipient_report(notice, now) for notice in notices],
            original=content,
            ret="HDRS" if message.require_tls else message.ret,  # RFC 8689 section 5
            message_id=f"{format_message_id(id_)}@{self._hostname}",
        )
        report = Message(
            id=id_,
            sender="",
            stream=STREAM,
            pool=self._pool,
            credential=CREDENTIAL,
            tenant=message.tenant,
            size=len(bytes_),
            accepted_at=now,
            content=bytes_,
            smtputf8=not message.sender.isascii(),
            eight_bit=not bytes_.isascii(),
            lane=self._lane,
            require_tls=message.require_tls or None,
        )
        recipient = Recipient(
            report, 1, message.sender, message.sender.rpartition("@")[2], now + LIFETIME, now, notify="NEVER"
        )
        report.recipients.append(recipient)
        facts = {
            "sender": "",
            "size": report.size,
            "recipients": 1,
            "stream": report.stream,
            "pool": report.pool,
            "credential": report.credential,
            "protocol": "report",
            "about": format_message_id(message.id),
        }
        return report, Event(
            now, "message.accepted", id_, 1, message.sender, message.tenant, facts, stream=report.stream
        )


def _recipient_report(notice: Notice, now: datetime) -> RecipientReport:
    verdict = notice.verdict
    return RecipientReport(
        address=notice.recipient.address,
        orcpt=notice.recipient.orcpt,
        action=notice.action,
        status=verdict.enhanced or {"failed": "5.0.0", "delayed": "4.0.0", "relayed": "2.0.0"}[notice.action],
        diagnostic=str(verdict) if notice.replied else verdict.text,
        remote_host=notice.host,
        will_retry_until=notice.will_retry_until,
        last_attempt=now if notice.host else None,
    )
