"""By what a report leads to mail of ours, and what is decided about one recipient (no database)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mailerd.config import Suppression as Rules
from mailerd.events import Event
from mailerd.feedback.consequences import LATE, Consequences, Found, of_bounce, of_complaint, of_unsubscribe
from mailerd.feedback.joining import Sent, Subject, Trail, Trails, Trust, choose
from mailerd.feedback.reading import Report, Reported, ReportKind, Returned
from mailerd.wire.tokens import RecipientToken, Tokens
from mailerd.wire.unsubscribe import PURPOSE, Subscription

SECRET = b"s" * 32
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TOKEN = RecipientToken(5_000_000_000_000, 3)
PATH = Tokens(SECRET, "return-path").make(*TOKEN)
LEAVE = Tokens(SECRET, PURPOSE).make(*TOKEN)
LINK = Subscription("default", "marketing", "", "", "bob@example.net", *TOKEN).seal(Tokens(SECRET, PURPOSE))


def report(header: str = "", message_id: str = "") -> Report:
    return Report(ReportKind.BOUNCE, (), Returned(header.encode(), message_id))


@pytest.mark.parametrize(
    "header",
    [
        f"Return-Path: <b-{PATH}@bounce.example>",
        f"RETURN-PATH: <B-{PATH.upper()}@BOUNCE.EXAMPLE>",
        f"Return-Path: <SRS0=abc=tt=bounce.example=b-{PATH}@forwarder.example>",
        f"X-Something: b-{'a' * 31}@x.example b-{PATH}@bounce.example",
        f"List-Unsubscribe: <mailto:u-{LEAVE}@bounce.example>\r\nX-Mailerd-Recipient: b-{PATH}",
    ],
)
def test_a_token_of_ours_is_found_wherever_the_returned_header_has_it(header):
    trail = Trails(SECRET).of((), report(header, "<a@b>"))

    assert (trail.how, trail.tokens) == ("header", (TOKEN,))


@pytest.mark.parametrize(
    "header",
    [
        f"List-Unsubscribe: <https://m.example/u/{LINK}>,\r\n <mailto:u-{LEAVE}@bounce.example?subject=unsubscribe>",
        f"List-Unsubscribe:\r\n <https://m.example/u/{LINK}>",
    ],
)
def test_a_way_to_unsubscribe_leads_to_its_recipient_but_no_bounce_there(header):
    trail = Trails(SECRET).of((), report(header, "<a@b>"))

    assert (trail.how, trail.tokens, trail.trust(TOKEN)) == ("link", (TOKEN,), Trust.LINK)
    assert Trails(SECRET).of((), report(header, "<a@b>"), links=False) == Trail("message_id", message_id="<a@b>")


def test_a_token_is_sure_of_its_own_recipient_only():
    whole = RecipientToken(TOKEN.message_id, 0)

    assert Trail("token", (TOKEN,)).trust((TOKEN.message_id, 3)) is Trust.SURE
    assert Trail("token", (whole,)).trust((TOKEN.message_id, 3)) is Trust.NAMED
    assert Trail("message_id", message_id="<a@b>").trust(TOKEN) is Trust.NAMED
    assert Trail("message_id", message_id="<a@b>", vouched=True).trust(TOKEN) is Trust.SURE


@pytest.mark.parametrize("header", [f"To: b-{'a' * 31}@x.example", f"To: u-{PATH}@x.example", "X: /u/" + "A" * 300, ""])
def test_what_others_made_up_leads_nowhere(header):
    assert Trails(SECRET).of((), report(header)).how == ""


def test_the_address_comes_before_the_header_and_the_message_id_last():
    other = RecipientToken(TOKEN.message_id, 9)
    header = f"Return-Path: <b-{PATH}@bounce.example>"

    assert Trails(SECRET).of([other, other], report(header)).tokens == (other,)
    assert Trails(SECRET).of([], report("", "<a@b>")).message_id == "<a@b>"


def test_only_so_many_tokens_are_checked():
    header = " ".join(f"b-{'a' * 31}@x.example" for _ in range(1000)) + f" b-{PATH}@bounce.example"

    assert Trails(SECRET).of((), report(header)).tokens == ()


def test_of_several_recipients_the_one_who_is_meant_is_chosen():
    other = Reported("carl@example.net", action="failed")
    delayed = Reported("dan@example.net", action="delayed")
    as_alias = Reported("robert@inner.example", original="Bob@example.net", action="failed")

    assert choose([delayed, other, as_alias], "bob@EXAMPLE.net") is as_alias
    assert choose([delayed, other], "bob@example.net") is other
    assert choose([delayed], "bob@example.net") is delayed
    assert choose([], "bob@example.net") is None


# ---- what follows


def subject(*past: Event, accepted_at: datetime = NOW) -> Subject:
    sent = Sent(TOKEN.message_id, "acme", "app@acme.example", "marketing", "offers", "spring", accepted_at)
    return Subject(sent, 3, "Bob@example.net", "", past)


def event(type_: str, **data: object) -> Event:
    return Event(NOW, type_, TOKEN.message_id, 3, "Bob@example.net", "acme", dict(data))


DELIVERED = event("recipient.delivered", source="mta1", site="mx.example.net")
UNKNOWN = Reported("bob@example.net", action="failed", status="5.1.1", diagnostic="550 5.1.1 no such user")


def bounce(*past: Event, said: Reported | None = UNKNOWN, scope: str = "tenant", **options):
    return of_bounce(subject(*past, **options), said, Found("mx.example.net"), NOW, Rules(scope=scope))


def test_a_bounce_of_delivered_mail_suppresses_within_the_tenant_or_globally():
    follows = bounce(DELIVERED)
    assert follows.what == "late"
    assert (follows.suppression.address, follows.suppression.tenant) == ("bob@example.net", "acme")
    assert (follows.entry.source, follows.entry.site, follows.entry.outcome) == ("mta1", "mx.example.net", "bounced")
    assert bounce(DELIVERED, scope="global").suppression.tenant == ""


@pytest.mark.parametrize(
    ("past", "what"),
    [
        ((), "waiting"),
        ((event("recipient.deferred"),), "waiting"),
        ((event("recipient.bounced", late=True),), "known"),
        ((event("recipient.bounced", late=True), DELIVERED), "late"),
        ((DELIVERED, event("recipient.bounced", late=True)), "known"),
        ((event("recipient.bounced"),), "known"),
        ((event("recipient.expired"),), "late"),
    ],
)
def test_what_happened_before_decides_what_a_bounce_means(past, what):
    assert bounce(*past).what == what


def test_a_bounce_that_says_nothing_is_recorded_and_suppresses_nobody():
    follows = bounce(DELIVERED, said=None)

    assert follows.event is not None
    assert follows.suppression is None or follows.suppression.reason == "soft_bounce"


PERSONAL = event("recipient.delivered", personal=True)


def test_a_message_id_alone_counts_within_the_tenant_and_against_mail_with_a_token_says_nothing():
    said = {"said": UNKNOWN, "found": Found(), "now": NOW, "rules": Rules(scope="global"), "trust": Trust.NAMED}

    follows = of_bounce(subject(DELIVERED), **said)
    assert (follows.what, follows.suppression.reason, follows.suppression.tenant) == ("late", "soft_bounce", "acme")
    assert of_bounce(subject(PERSONAL), **said) == Consequences("unverified")
    assert of_bounce(subject(), **said) == Consequences("waiting")
    assert of_bounce(subject(PERSONAL), **said | {"trust": Trust.SURE}).suppression.reason == "bounce"


@pytest.mark.parametrize("feedback_type", ["abuse", "opt-out"])
def test_a_complaint_by_message_id_binds_the_tenant_and_none_where_there_was_a_token(feedback_type):
    said = {"feedback_type": feedback_type, "found": Found(), "now": NOW, "rules": Rules(scope="global")}

    assert of_complaint(subject(PERSONAL), **said, trust=Trust.NAMED) == Consequences("unverified")
    follows = of_complaint(subject(DELIVERED), **said, trust=Trust.NAMED)
    assert (follows.subscription or follows.suppression).tenant == "acme"


def test_a_complaint_by_the_link_to_unsubscribe_ends_the_stream():
    follows = of_complaint(subject(PERSONAL), "abuse", Found(), NOW, Rules(scope="global"), Trust.LINK)

    assert (follows.suppression.tenant, follows.suppression.stream) == ("acme", "marketing")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Reported("robert@inner.example", original="bob@EXAMPLE.net"), "bounce"),
        (Reported("bob@example.net", original="team@inner.example"), "bounce"),
        (Reported('"bob"@example.net'), "bounce"),
        (Reported("bob"), "bounce"),
        (Reported(""), "bounce"),
        (Reported("robert@inner.example"), "soft_bounce"),
        (Reported("robert@inner.example", original="team@inner.example"), "soft_bounce"),
    ],
)
def test_a_bounce_of_another_address_than_was_mailed_only_counts(said, reason):
    said = replace(UNKNOWN, address=said.address, original=said.original)

    assert bounce(DELIVERED, said=said).suppression.reason == reason


def test_after_thirty_days_a_bounce_is_too_old():
    assert bounce(DELIVERED, accepted_at=NOW - LATE).what == "late"
    assert bounce(DELIVERED, accepted_at=NOW - LATE - timedelta(seconds=1)).what == "old"


@pytest.mark.parametrize(
    ("feedback_type", "what"),
    [
        ("abuse", "complained"),
        ("fraud", "complained"),
        ("", "complained"),
        ("not-spam", "harmless"),
        ("opt-out", "unsubscribed"),
        ("Opt-Out-List", "unsubscribed"),
    ],
)
def test_a_complaint_means_what_its_type_says(feedback_type, what):
    assert of_complaint(subject(DELIVERED), feedback_type, Found(), NOW, Rules()).what == what


def test_who_complained_once_has_complained():
    again = of_complaint(subject(DELIVERED, event("recipient.complained")), "abuse", Found(), NOW, Rules())

    assert (again.what, again.event) == ("known", None)


def test_a_reader_leaves_the_topic_of_the_stream():
    subscription = of_unsubscribe(subject(DELIVERED)).subscription

    assert subscription == Subscription("acme", "marketing", "offers", "spring", "Bob@example.net", *TOKEN)


@pytest.mark.parametrize(("campaign", "stream"), [("cmp_17", "marketing"), ("spring", "promo")])
def test_whoever_leaves_by_mail_of_a_campaign_leaves_campaigns(campaign, stream):
    sent = Sent(TOKEN.message_id, "acme", "app@acme.example", "promo", "", campaign, NOW)

    assert of_unsubscribe(Subject(sent, 3, "bob@example.net", "", ())).subscription.stream == stream
