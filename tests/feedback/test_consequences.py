"""What people read of a report: every code once."""

from datetime import UTC, datetime

import pytest

from mailerd.config import Suppression as Rules
from mailerd.delivery import verdict
from mailerd.events import Event
from mailerd.feedback.consequences import Found, of_bounce, of_complaint
from mailerd.feedback.joining import Sent, Subject
from mailerd.feedback.reading import Reported

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
