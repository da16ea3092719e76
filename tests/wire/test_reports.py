import email
import email.policy
import quopri
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.errors import LocalProtocolError
from mailerd.wire.reports import MAX_ORIGINAL, RecipientReport, build_report
from mailerd.wire.smtp import line_problem

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
ARRIVAL = NOW - timedelta(hours=5)
ORIGINAL = b"From: ann@b.example\r\nMessage-ID: <one@b.example>\r\nSubject: hello\r\n\r\nDear Bob\r\n"


def recipient(action: str = "failed", **changes: object) -> RecipientReport:
    values: dict[str, object] = {
        "address": "bob@c.example",
        "orcpt": "",
        "action": action,
        "status": "5.1.1",
        "diagnostic": "550 5.1.1 no such user",
        "remote_host": "mx.c.example",
    }
    return RecipientReport(**{**values, **changes})  # type: ignore[arg-type]


def build(*recipients: RecipientReport, **changes: object) -> bytes:
    values: dict[str, object] = {
        "sender": "ann@b.example",
        "hostname": "mail.a.example",
        "envid": "",
        "arrival": ARRIVAL,
        "now": NOW,
        "recipients": recipients or (recipient(),),
        "original": ORIGINAL,
        "ret": "",
        "message_id": "msg_1@mail.a.example",
    }
    report = build_report(**{**values, **changes})  # type: ignore[arg-type]
    assert line_problem(report) is None
    assert report.endswith(b"\r\n")
    assert max(map(len, report.split(b"\r\n"))) <= 998
    return report


def parse(report: bytes) -> tuple[EmailMessage, list[EmailMessage]]:
    message = email.message_from_bytes(report, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    parts = list(message.iter_parts())
    return message, parts  # type: ignore[return-value]


def status_blocks(report: bytes) -> list[dict[str, str]]:
    """The fields of message/delivery-status: first of the message, then of each recipient."""
    _, parts = parse(report)
    assert parts[1].get_content_type() == "message/delivery-status"
    return [{name: str(value) for name, value in block.items()} for block in parts[1].get_payload()]  # type: ignore[union-attr]


def global_fields(report: bytes) -> str:
    """The text of message/global-delivery-status, which the standard library does not decode."""
    raw = report.partition(b"Content-Type: message/global-delivery-status\r\n")[2]
    header, _, rest = raw.partition(b"\r\n\r\n")
    body = rest.partition(b"\r\n--=_report_")[0]
    return (quopri.decodestring(body) if b"quoted-printable" in header else body).decode()


def words(report: bytes) -> str:
    return " ".join(parse(report)[1][0].get_content().split())


def test_a_report_is_a_multipart_report_that_nobody_answers():
    message, parts = parse(build())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["To"] == "ann@b.example"
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@mail.a.example>"
    assert message["Message-ID"] == "<msg_1@mail.a.example>"
    assert message["In-Reply-To"] == message["References"] == "<one@b.example>"
    assert message["Date"].datetime == NOW
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["MIME-Version"] == "1.0"
    assert [part.get_content_type() for part in parts] == ["text/plain", "message/delivery-status", "message/rfc822"]
    assert build() == build()


def test_a_failure_is_reported_field_by_field():
    report = build(
        recipient(orcpt="rfc822;Bob@old.example", last_attempt=NOW),
        recipient(address="eve@d.example", status="nonsense", diagnostic="the domain does not exist", remote_host=""),
        envid="QQ 314+159",
    )
    assert status_blocks(report) == [
        {
            "Reporting-MTA": "dns; mail.a.example",
            "Original-Envelope-Id": "QQ 314+159",
            "Arrival-Date": "Sat, 21 Nov 2026 21:00:00 +0000",
        },
        {
            "Original-Recipient": "rfc822; Bob@old.example",
            "Final-Recipient": "rfc822; bob@c.example",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": "dns; mx.c.example",
            "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
            "Last-Attempt-Date": "Sun, 22 Nov 2026 02:00:00 +0000",
        },
        {
            "Final-Recipient": "rfc822; eve@d.example",
            "Action": "failed",
            "Status": "5.0.0",
            "Diagnostic-Code": "x-mailerd; the domain does not exist",
        },
    ]


def test_a_failure_is_told_in_words_with_what_to_do():
    report = build()
    assert parse(report)[0]["Subject"] == "Undelivered mail returned to sender"
    text = words(report)
    assert "Your message of Sat, 21 Nov 2026 21:00:00 +0000 could not be delivered" in text
    assert "<bob@c.example> The address does not exist there." in text
    assert "mx.c.example answered: 550 5.1.1 no such user" in text
    assert "What you can do: Check the spelling" in text


def test_a_delay_says_until_when_it_is_tried_and_that_nothing_need_be_done():
    until = NOW + timedelta(days=3)
    report = build(recipient("delayed", status="4.2.2", diagnostic="452 4.2.2 mailbox full", will_retry_until=until))
    message, parts = parse(report)
    assert message["Subject"] == "Delayed mail: still being retried"
    assert status_blocks(report)[1]["Will-Retry-Until"] == "Wed, 25 Nov 2026 02:00:00 +0000"
    assert status_blocks(report)[1]["Status"] == "4.2.2"
    text = words(report)
    assert "you need not send it again" in text
    assert "It will be tried until Wed, 25 Nov 2026 02:00:00 +0000." in text
    assert "What you can do" not in text
    assert parts[2].get_content_type() == "text/rfc822-headers"  # the message itself is still on its way


@pytest.mark.parametrize(
    ("action", "subject", "words_"),
    [
        ("delivered", "Your mail was delivered", "was delivered to the recipients"),
        ("relayed", "Your mail was relayed", "sends no delivery reports"),
        ("expanded", "Your mail was delivered to a list", "to the lists below"),
    ],
)
def test_success_is_told_without_advice(action, subject, words_):
    report = build(recipient(action, status="", diagnostic="250 ok"))
    assert parse(report)[0]["Subject"] == subject
    assert status_blocks(report)[1]["Status"] == "2.0.0"
    assert words_ in words(report)
    assert "What you can do" not in words(report)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        ("5.1.2", "after the @"),
        ("5.2.2", "mailbox is full"),
        ("5.3.4", "too large"),
        ("4.4.7", "time for trying ran out"),
        ("4.4.1", "could not be reached"),
        ("5.7.26", "refused the message by its rules"),
        ("5.0.0", "did not take the message"),
        ("5.6.7", "plain ASCII"),
    ],
)
def test_each_kind_of_failure_has_its_advice(status, advice):
    assert advice in words(build(recipient(status=status)))


@pytest.mark.parametrize(
    ("ret", "size", "content_type"),
    [
        ("", 100, "message/rfc822"),
        ("FULL", 100, "message/rfc822"),
        ("HDRS", 100, "text/rfc822-headers"),
        ("FULL", MAX_ORIGINAL, "text/rfc822-headers"),
    ],
)
def test_the_original_goes_back_whole_when_it_is_small_and_wanted(ret, size, content_type):
    original = ORIGINAL + b"x" * 70 + b"\r\n" * (size // 2)
    report = build(ret=ret, original=original)
    part = parse(report)[1][2]
    assert part.get_content_type() == content_type
    assert b"Subject: hello" in part.as_bytes()
    assert (b"Dear Bob" in report) == (content_type == "message/rfc822")


def test_an_original_that_is_gone_is_left_out():
    assert len(parse(build(original=b""))[1]) == 2


def test_headers_without_end_are_cut_at_a_line():
    report = build(original=b"X-Filler: abc\r\n" * 10_000 + b"\r\nbody\r\n", ret="HDRS")
    assert len(report) < MAX_ORIGINAL + 3000
    assert set(report.partition(b"text/rfc822-headers\r\n\r\n")[2].split(b"\r\n--")[0].split(b"\r\n")) <= {
        b"X-Filler: abc",
        b"",
    }


def test_nothing_goes_to_the_null_sender():
    with pytest.raises(LocalProtocolError, match="null sender"):
        build(sender="")
    with pytest.raises(LocalProtocolError, match="recipient"):
        build(recipients=())


EVIL = (
    "550 no\r\nBcc: eve@evil.example\r\n\r\n--=_report_\r\nContent-Type: text/html\r\n\n.\r\n"
    "\x00\x85\u2028Action: delivered caf\udce9 é"
)


def test_what_a_peer_says_makes_no_line_of_its_own():
    report = build(
        recipient(diagnostic=EVIL, remote_host="mx\r\nX-Evil: 1", status="5.1.1\r\nX: y"), envid="a\r\nX-Evil: 1"
    )
    assert report.isascii()
    message, parts = parse(report)
    assert len(parts) == 3
    assert message["Bcc"] is None
    top, block = status_blocks(report)
    assert top["Original-Envelope-Id"] == "a X-Evil: 1"
    assert block["Action"] == "failed"
    assert block["Remote-MTA"] == "dns; mx X-Evil: 1"
    assert block["Diagnostic-Code"].startswith("smtp; 550 no Bcc: eve@evil.example --=_report_ Content-Type")
    assert block["Diagnostic-Code"].endswith(r"Action: delivered caf\xe9 \xe9")
    assert set(block) == {"Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code"}


def test_a_long_reply_is_folded_and_cut():
    report = build(recipient(diagnostic="550 " + "word " * 5000), recipient(diagnostic="550 " + "x" * 5000))
    _, many, one = status_blocks(report)
    assert many["Diagnostic-Code"].endswith("[...]")
    assert one["Diagnostic-Code"].endswith("[...]")
    assert len(report) < 10_000


def test_the_longest_address_stays_in_one_piece():
    address = "a" * 64 + "@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 61
    assert status_blocks(build(recipient(address=address)))[1]["Final-Recipient"] == f"rfc822; {address}"


@pytest.mark.parametrize(("sender", "eight_bit"), [("ann@b.example", False), ("änn@b.example", True)])
def test_an_address_beyond_ascii_makes_a_global_status(sender, eight_bit):
    report = build(
        recipient(address="用户@c.example", orcpt="utf-8;用户@old.example", diagnostic="550 né"), sender=sender
    )
    assert report.isascii() != eight_bit
    message, parts = parse(report)
    assert message.get_param("report-type") == "delivery-status"
    assert parts[1].get_content_type() == "message/global-delivery-status"
    fields = global_fields(report)
    assert "Original-Recipient: utf-8; 用户@old.example\r\n" in fields
    assert "Final-Recipient: utf-8; 用户@c.example\r\n" in fields
    assert r"Diagnostic-Code: smtp; 550 n\xe9" in fields
    assert "<用户@c.example>" in words(report)


@pytest.mark.parametrize(
    ("original", "ret", "content_type", "ascii_only"),
    [
        ("Subject: grün\r\n\r\nüber\r\n".encode(), "FULL", "message/global", True),
        ("Subject: grün\r\n\r\nüber\r\n".encode(), "HDRS", "message/global-headers", True),
        ("Subject: hi\r\n\r\nüber\r\n".encode(), "FULL", "message/rfc822", False),
        ("Subject: hi\r\n\r\nüber\r\n".encode(), "HDRS", "text/rfc822-headers", True),
        ("Subject: grün\r\n\r\n".encode("latin-1"), "HDRS", "text/rfc822-headers", True),
    ],
)
def test_an_original_beyond_ascii_has_a_type_that_may_carry_it(original, ret, content_type, ascii_only):
    report = build(original=original, ret=ret)
    assert report.isascii() == ascii_only
    message, parts = parse(report)
    assert parts[2].get_content_type() == content_type
    assert message.get("Content-Transfer-Encoding", "7bit") == ("7bit" if ascii_only else "8bit")


def test_an_original_without_a_line_end_gets_one():
    assert b"Subject: " in build(original=b"Subject: " + "ü".encode() * 100)
    assert b"Dear Bob\r\n\r\n--" in build(original=ORIGINAL[:-2])


def test_the_boundary_is_in_no_part_and_line_ends_of_the_original_are_mended():
    boundary = parse(build())[0].get_boundary()
    assert boundary is not None
    report = build(original=f"Subject: x\nX: y\r\n\r\n--{boundary}--\n\0\r".encode())
    message, parts = parse(report)
    assert message.get_boundary() != boundary
    assert len(parts) == 3


FIELDS = {
    *("Date", "From", "To", "Subject", "Message-ID", "In-Reply-To", "References", "Auto-Submitted"),
    *("MIME-Version", "Content-Type", "Content-Transfer-Encoding"),
}


@given(
    st.text(),
    st.text(),
    st.binary(max_size=200),
    st.sampled_from(["", "FULL", "HDRS"]),
    st.sampled_from(["failed", "delayed"]),
)
def test_whatever_comes_in_the_report_has_its_three_parts(diagnostic, host, rest, ret, action):
    report = build(
        recipient(action, diagnostic=diagnostic, remote_host=host, orcpt=f"rfc822;{host}"),
        original=b"Subject: x\r\n" + rest,
        ret=ret,
    )
    message, parts = parse(report)
    assert len(parts) == 3
    assert set(message.keys()) <= FIELDS
    assert [part.get_content_type() for part in parts[:2]] in (
        ["text/plain", "message/delivery-status"],
        ["text/plain", "message/global-delivery-status"],
    )
