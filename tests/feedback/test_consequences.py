"""What people read of a report: every code once."""

from datetime import UTC, datetime

import pytest

from mailerd.config import Suppression as Rules
from mailerd.delivery import verdict
from mailerd.events import Event
from mailerd.feedback.consequences import Found, of_bounce, of_complaint
from mailerd.feedback.joining import Sent, Subject
from mailerd.feedback.reading import Reported, read_report

NOW = datetime.now(UTC)


def subject() -> Subject:
    sent = Sent(1 << 40, "default", "shop@example.com", "marketing", "", "", NOW)
    delivered = Event(NOW, "recipient.delivered", sent.message_id, 1, "ann@example.net", "default", {})
    return Subject(sent, 1, "ann@example.net", "", (delivered,))


@pytest.mark.parametrize(
    ("diagnostic", "status", "told"),
    [
        ("smtp; 550 5.1.1 no such mailbox", "5.1.1", "550 5.1.1 no such mailbox"),
        ("smtp;550-5.1.1 no such mailbox", "", "550 5.1.1 no such mailbox"),
        ("550 no such mailbox", "5.1.1", "550 5.1.1 no such mailbox"),
        ("550 5.1.1", "5.1.1", "550 5.1.1"),
        ("550 #5.1.1 no such mailbox", "5.1.1", "550 5.1.1 #5.1.1 no such mailbox"),
        (
            "smtp; mx.example.net said: 550 5.1.1 no such mailbox",
            "5.1.1",
            "550 5.1.1 mx.example.net said: 550 5.1.1 no such mailbox",
        ),
        ("smtp; 5503 of them: no such mailbox", "5.1.1", "554 5.1.1 5503 of them: no such mailbox"),
    ],
)
def test_codes_stand_once_where_a_report_begins_with_them(diagnostic: str, status: str, told: str) -> None:
    assert str(verdict.of_report("failed", status, 0, diagnostic, "")) == told


def test_the_suppression_of_a_bounce_says_what_the_host_said() -> None:
    said = Reported("ann@example.net", "", "failed", "5.1.1", 550, "smtp; 550 5.1.1 no such mailbox")

    found = of_bounce(subject(), said, Found(), NOW, Rules())

    assert found.suppression is not None
    assert found.suppression.detail == "550 5.1.1 no such mailbox"
    assert found.event is not None
    assert (found.event.data or {})["text"] == "no such mailbox"


def test_the_suppression_of_a_complaint_says_once_that_it_is_one() -> None:
    found = of_complaint(subject(), "abuse", Found(), NOW, Rules())

    assert found.suppression is not None
    assert "(it complained: abuse)" in found.suppression.told_to("default")


@pytest.mark.parametrize("tag", ["22", "28", "29", "2B", "40", "5C", "20", "3D", "7"])
def test_a_tag_that_looks_like_xtext_is_still_the_address_that_was_mailed(tag: str) -> None:
    address = f"late-bounce+{tag}@example.net"
    sent = Sent(1 << 40, "default", "shop@example.com", "marketing", "", "", NOW)
    delivered = Event(NOW, "recipient.delivered", sent.message_id, 1, address, "default", {})
    report = (
        "Content-Type: multipart/report; report-type=delivery-status; boundary=x\r\n\r\n--x\r\n\r\nNo.\r\n--x\r\n"
        "Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example.net\r\n\r\n"
        f"Final-Recipient: rfc822; {address}\r\nAction: failed\r\nStatus: 5.1.1\r\n"
        "Diagnostic-Code: smtp; 550 5.1.1 no such mailbox\r\n\r\n--x--\r\n"
    )
    (said,) = read_report(report.encode()).recipients

    found = of_bounce(Subject(sent, 1, address, "", (delivered,)), said, Found(), NOW, Rules())

    assert found.suppression is not None
    assert found.suppression.reason == "bounce"
