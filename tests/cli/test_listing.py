"""What a terminal of 80 columns shows: no address and no id in pieces."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from mailerd.cli import output, reports, sandbox, search, webhooks
from mailerd.cli.listing import Listing
from mailerd.events import Position
from mailerd.feedback.aggregates import DmarcSource, TlsResult
from mailerd.feedback.webhooks.values import Attempt, Outcome, Result, Told, Webhook
from mailerd.feedback.webhooks.views import delivery_view, webhook_view
from mailerd.queue.views import MessageSummary
from mailerd.sandbox import Stored

NOW = datetime(2026, 11, 22, 14, tzinfo=UTC)
ANN = "bartholomew.featherstonehaugh@newsletters.example.com"
BOB = "b-7a6n5hlt3qxc3l4cqk5y2v4xw7a6n5h@bounce.marketing.example.org"
SUBJECT = "Your order has left our warehouse and will be with you the day after tomorrow"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a drawing function prints, on a terminal of so many columns."""

    def drawn(draw: Callable[..., None], *arguments: object, width: int = 80) -> str:
        told = StringIO()
        monkeypatch.setattr(
            output, "console", lambda *, errors=False: Console(file=told, width=width, markup=False, highlight=False)
        )
        draw(*arguments)
        text = told.getvalue()
        assert max(map(len, text.splitlines())) <= width
        return text

    return drawn


def words(text: str) -> set[str]:
    return set(re.split(r"\s+", re.sub(r",(?!\d)|[\[\]]", " ", text)))


def test_what_fits_stands_on_one_line_and_the_rest_goes_below_it() -> None:
    listing = Listing(("id", "to", "words"), below=("words", "to"), numbers=("id",))
    listing.add_row("9", "ann@example.com", "hello there")
    listing.add_row("10", "", "")

    def at(width: int) -> list[str]:
        told = StringIO()
        Console(file=told, width=width).print(listing)
        return [line.rstrip() for line in told.getvalue().splitlines()][2:]

    assert at(80) == [" 9  ann@example.com  hello there", "10"]
    assert at(24) == [" 9  ann@example.com", "    words hello there", "10"]
    assert at(20) == [" 9  ann@example.com", "    words hello", "    there", "10"]


def test_the_sandbox_lists_whole_addresses(drawn: Callable[..., str]) -> None:
    kept = [
        Stored(
            id=f"0006442f8b1c2a{n}",
            received_at=NOW - timedelta(minutes=n),
            peer="127.0.0.1",
            helo="mail.example.org",
            sender=BOB,
            parameters="",
            recipients=(ANN, BOB),
            subject=SUBJECT,
            size=123_456,
        )
        for n in range(2)
    ]
    text = drawn(sandbox._draw, kept, NOW)
    assert {ANN, BOB, "0006442f8b1c2a0", "123,456", "tomorrow"} <= words(text)


def test_a_search_lists_whole_addresses(drawn: Callable[..., str]) -> None:
    found = [
        MessageSummary(
            id=1 << 60,
            sender=BOB,
            first_recipient=ANN,
            subject=SUBJECT,
            stream="transactional",
            pool="default",
            accepted_at=NOW - timedelta(hours=3),
            total=1_200,
            states={"delivered": 1_100, "deferred": 100},
            labels={},
        )
    ]
    text = drawn(search._draw, found, NOW, 50)
    assert {ANN, BOB, "transactional", "1,100"} <= words(text)


def test_dmarc_lists_whole_addresses_and_domains(drawn: Callable[..., str]) -> None:
    reporters = ("google.com", "Outlook.com Enterprise", "fastmail.example")
    source = "2001:db8:1234:5678:9abc:def0:1234:5678"
    row = DmarcSource("newsletters.example.com", source, 123_456, 123_000, 9, 9, 1, 2, reporters, NOW)
    text = drawn(reports._draw_dmarc, [row])
    assert {"newsletters.example.com", source, "123,456", "google.com"} <= words(text)


def test_tls_reports_list_whole_hosts(drawn: Callable[..., str]) -> None:
    host = "mx1.mail.newsletters.example.com"
    detail = "certificate of another host was shown to them by this host"
    row = TlsResult("newsletters.example.com", "sts", "sts-webpki-invalid", host, 9, ("google.com",), NOW, detail)
    text = drawn(reports._draw_tls, [row])
    assert {"newsletters.example.com", host, "sts-webpki-invalid"} <= words(text)


def test_deliveries_and_endpoints_are_listed_with_whole_ids(drawn: Callable[..., str]) -> None:
    webhook = Webhook(
        id=1 << 59,
        tenant="default",
        url="https://application.example.com/hooks/mailerd/events?token=abcdefgh",
        events=("email.bounced", "email.complained", "suppression.*"),
        secret=b"x" * 32,
        position=Position(1, 1),
        created_at=NOW,
        failing_since=NOW,
    )
    told = Told(
        key="bat_x", positions=(Position(1, 1),), types=("email.delivery_delayed", "email.bounced"), subjects=()
    )
    attempt = Attempt(
        id=42,
        at=NOW,
        told=told,
        number=3,
        result=Result.FAILED,
        outcome=Outcome(0, "cannot connect to application.example.com: connection refused"),
        next_at=NOW + timedelta(minutes=5),
    )
    view = delivery_view(attempt, webhook)
    text = drawn(webhooks._draw_deliveries, [view])
    assert {view.id, "email.delivery_delayed", "application.example.com:"} <= words(text)
    text = drawn(webhooks._draw_list, [webhook], [webhook_view(webhook, NOW)])
    assert {webhook.outside_id, webhook.url, "suppression.*"} <= words(text)
