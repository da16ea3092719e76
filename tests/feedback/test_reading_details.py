"""Where reports mislead: what is said first counts, quoted subjects do not, and neighbours are told apart."""

# ruff: noqa: E501 - mails have long lines

import pytest

from mailerd.feedback.reading import Report, ReportKind, read_report
from tests.feedback.test_reading_systems import DAEMON, FAILED, ORIGINAL, SAMPLES, arf, dsn, parts, plain


def read(text: str) -> Report:
    return read_report(text.replace("\n", "\r\n").encode())


@pytest.mark.parametrize("subject", ["Plan your vacation", "On holiday with us", "Automatic reply: how it works"])
def test_a_bounce_that_quotes_a_subject_about_holidays_stays_a_bounce(subject: str) -> None:
    report = read(plain(DAEMON, f"Undeliverable: {subject}", "<ann@far.example>: 550 5.1.1 no such user"))

    assert report.kind is ReportKind.BOUNCE


def test_an_automatic_reply_to_a_subject_about_failures_stays_one() -> None:
    report = read(
        plain(
            "Ann <ann@far.example>", "Automatic reply: Delivery failed", "I am away.", "Auto-Submitted: auto-replied\n"
        )
    )

    assert report.kind is ReportKind.AUTO_REPLY


def test_an_automatic_reply_that_mentions_a_full_mailbox_says_what_it_is() -> None:
    body = "My mailbox is full and I read nothing before Monday."
    marked = read(plain("Ann <ann@far.example>", "Re: news", body, "Auto-Submitted: auto-replied\n"))
    from_system = read(plain("postmaster@far.example", "Mailbox full", "ann@far.example: mailbox is full"))

    assert marked.kind is ReportKind.AUTO_REPLY
    assert from_system.kind is ReportKind.BOUNCE


def test_a_parcel_that_could_not_be_delivered_is_no_bounce() -> None:
    text = "From: parcels@post.example\nSubject: Delivery failed\n\nYour parcel could not be delivered. We try again.\n"

    assert read(text).kind is ReportKind.OTHER


def test_each_recipient_has_its_own_reply_and_words() -> None:
    report = read(
        plain(
            DAEMON,
            "Undelivered Mail Returned to Sender",
            "<ann@far.example>: host mx.far.example said: 550 5.1.1 no such user\n\n"
            "<bob@far.example>: host mx.far.example said: 552 5.2.2 mailbox full\n",
        )
    )

    assert [(one.address, one.code, one.status) for one in report.recipients] == [
        ("ann@far.example", 550, "5.1.1"),
        ("bob@far.example", 552, "5.2.2"),
    ]
    assert "mailbox full" not in report.recipients[0].words


def test_the_sender_and_who_helps_are_no_recipients() -> None:
    report = read(
        plain(
            "Mail System <mailer@far.example>",
            "Undelivered mail",
            "A message from news@sender.example to <ann@far.example> could not be delivered.\n"
            "Questions? Contact postmaster@far.example or mailer@far.example.\n",
        )
    )

    assert [one.address for one in report.recipients] == ["ann@far.example"]


def test_a_disclaimer_is_not_taken_for_words_about_the_recipient() -> None:
    body = (
        "ann@far.example\nunknown user\n\n________________________________\nThis email has been scanned for viruses.\n"
    )

    assert "virus" not in read(plain(DAEMON, "Undelivered", body)).recipients[0].words


def test_text_in_a_script_without_spaces_does_not_join_the_address() -> None:
    report = read(plain(DAEMON, "配信エラー", "宛先ann@far.exampleへのメールは配信できませんでした。"))

    assert [one.address for one in report.recipients] == ["ann@far.example"]


def test_the_diagnostic_is_the_reply_without_what_the_reporter_adds() -> None:
    report = read(dsn(FAILED + "Status: 5.0.0\nDiagnostic-Code: smtp; host mx[192.0.2.1] said: 550 5.7.1 blocked"))

    assert report.recipients[0].diagnostic == "550 5.7.1 blocked"
    assert report.recipients[0].status == "5.7.1"


def test_an_address_of_a_host_is_no_status() -> None:
    report = read(plain(DAEMON, "Undelivered Mail", "<ann@far.example>: 5.1.1.9 did not answer"))

    assert report.recipients[0].status == ""


def test_the_failure_counts_before_the_delay_and_the_success() -> None:
    fields = "Final-Recipient: rfc822;bob@far.example\nAction: delivered\nStatus: 2.0.0\n\n" + FAILED + "Status: 5.1.1"

    report = read(dsn(fields))

    assert report.kind is ReportKind.BOUNCE
    assert [one.action for one in report.recipients] == ["delivered", "failed"]


def test_the_reporter_is_the_host_that_reports_or_the_senders_domain() -> None:
    assert read(dsn(FAILED)).reporter == "mx.far.example"
    assert (
        read(plain("MAILER-DAEMON@Far.Example", "Undelivered Mail", "<ann@far.example>: gone")).reporter
        == "far.example"
    )


def test_encoded_words_are_read_in_the_subject_and_the_fields() -> None:
    report = read(
        plain(DAEMON, "=?utf-8?B?VW56dXN0ZWxsYmFy?=", "<ann@far.example>: weg").replace("Date:", "X: y\nDate:")
    )

    assert report.subject == "Unzustellbar"
    assert report.kind is ReportKind.BOUNCE


def test_the_returned_header_is_given_as_it_came() -> None:
    report = read(dsn(FAILED))

    assert report.returned.header.startswith(b"Return-Path: <b-tok123@bounces.sender.example>\r\nReceived:")
    assert report.returned.message_id == "<20260302.1@sender.example>"


@pytest.mark.parametrize("field", ["X-HmXmrOriginalRecipient", "X-Original-To", "Delivered-To"])
def test_a_complaint_finds_its_recipient_in_the_returned_header(field: str) -> None:
    original = f"{field}: ann@far.example\n" + ORIGINAL.replace("To: ann@far.example", "To: undisclosed-recipients:;")

    assert [one.address for one in read(arf("Feedback-Type: abuse\n", original)).recipients] == ["ann@far.example"]


def test_a_redacted_recipient_is_none() -> None:
    report = read(arf("Feedback-Type: abuse\nOriginal-Rcpt-To: a***@far.example\n"))

    assert [one.address for one in report.recipients] == [""]


def test_a_rejection_in_the_form_of_a_receipt_is_a_bounce() -> None:
    report = read(
        parts(
            "Mail Delivery Subsystem <postmaster@far.example>",
            "Automatically rejected mail",
            "multipart/report; report-type=disposition-notification",
            "Content-Type: text/plain\n\nYour message to <ann@far.example> was automatically rejected:\nQuota exceeded\n",
            "Content-Type: message/disposition-notification\n\nFinal-Recipient: rfc822; ann@far.example\nDisposition: automatic-action/MDN-sent-automatically; deleted\n",
        )
    )

    assert report.kind is ReportKind.BOUNCE
    assert [one.address for one in report.recipients] == ["ann@far.example"]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@pytest.mark.parametrize("end", ["\n", "\r"], ids=["LF", "CR"])
def test_lines_may_end_as_they_like(sample, end: str) -> None:
    usual, unusual = read_report(sample.content), read_report(sample.text.replace("\n", end).encode())

    assert unusual.kind is usual.kind
    assert [one.address for one in unusual.recipients] == [one.address for one in usual.recipients]


def test_our_own_subject_is_not_among_the_words_about_a_recipient() -> None:
    body = (
        "Your message\n  Subject: your mailbox is full\n  Sent: Monday\ndid not reach:\nann@far.example\nNo such user\n"
    )
    (one,) = read(plain(DAEMON, "Undeliverable", body)).recipients

    assert "mailbox is full" not in one.words
    assert "No such user" in one.words


def test_a_version_number_is_no_status() -> None:
    body = "RELEASED Mailman 2.0.12 did not reach the following recipient:\nann@far.example\nThe user is not known\n"
    (one,) = read(plain(DAEMON, "Undeliverable", body)).recipients

    assert one.status == ""


def test_a_recipient_that_is_reported_twice_in_the_same_words_counts_once() -> None:
    fields = "Final-Recipient: rfc822; ann@far.example\nAction: failed\nStatus: 5.1.1\n"
    report = read(dsn(f"Reporting-MTA: dns; mx.far.example\n\n{fields}\n{fields}"))

    assert [one.address for one in report.recipients] == ["ann@far.example"]


def test_a_reply_of_codes_alone_gives_way_to_the_same_with_words() -> None:
    body = (
        "ann@far.example wasn't found at far.example.\n\nStatus code: 550 5.1.10\n\n"
        "ann@far.example\n550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup\n"
    )
    (one,) = read(plain(DAEMON, "Undeliverable: news", body)).recipients

    assert one.diagnostic.startswith("550 5.1.10 RESOLVER.ADR.RecipientNotFound")


def test_a_reply_of_codes_alone_stays_where_there_is_no_other() -> None:
    body = "ann@far.example\n\nStatus code: 550 5.1.10\n\n554 5.7.1 something else\n"
    (one,) = read(plain(DAEMON, "Undeliverable: news", body)).recipients

    assert one.code == 550


def test_headers_of_our_message_are_found_in_preformatted_html() -> None:
    body = (
        "<p>Delivery has failed to these recipients:</p><p>ann@far.example</p><p>550 5.1.1 not found</p>\n"
        "<p>Original message headers:</p><pre>Received: from relay.example\nFrom: us@ours.example\n"
        "To: ann@far.example\nSubject: news\nMessage-ID: &lt;1@ours.example&gt;\n</pre>"
    )
    report = read(plain(DAEMON, "Undeliverable: news", body, "Content-Type: text/html\n"))

    assert report.returned.message_id == "<1@ours.example>"


def test_a_daemon_that_calls_its_bounce_automatic_sends_a_bounce() -> None:
    body = "You sent mail to otto@far.example. That's not a valid user here.\n"
    report = read(plain(DAEMON, "[AUTOREPLY] Returned mail", body, "Return-Path: <>\n"))

    assert report.kind is ReportKind.BOUNCE
    assert [one.address for one in report.recipients] == ["otto@far.example"]


def test_a_worm_that_calls_itself_a_postmaster_is_no_bounce() -> None:
    text = (
        "Return-Path: <postmaster@far.example>\nFrom: postmaster@far.example\nSubject: Mail delivery failed\n\n"
        "Please open the attached document to read the details.\n"
    )

    assert read(text).kind is ReportKind.OTHER
