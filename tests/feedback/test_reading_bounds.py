"""Whatever comes in: nothing raises, nothing takes long, and what comes out is clean."""

# ruff: noqa: E501 - bombs are written in one piece

import re
import time
from email.message import EmailMessage

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailerd.feedback.reading import Report, ReportKind, read_report
from tests.feedback.test_reading_systems import DAEMON, FAILED, SAMPLES, dsn, plain

HEADER = b"From: MAILER-DAEMON@far.example\r\nSubject: Undelivered\r\nMIME-Version: 1.0\r\n"
REPORT = HEADER + (
    b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\nSorry.\r\n"
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
)
MB = 1_000_000
DIRTY = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")
LONGEST_CPU = 1.0  # seconds; the promise is 0.1, and this machine may be busy with others


def texts(report: Report) -> list[str]:
    found = [report.reporter, report.feedback_type, report.subject, report.returned.message_id]
    for one in report.recipients:
        found += [one.address, one.original, one.action, one.status, one.diagnostic, one.words, one.remote]
    return found


def assert_clean(report: Report) -> None:
    for text in texts(report):
        assert not DIRTY.search(text), ascii(text)
        assert len(text) <= 2000
        text.encode("utf-8")
    assert all(len(one.diagnostic) <= 1000 for one in report.recipients)
    assert all(len(one.address) <= 320 and len(one.original) <= 320 for one in report.recipients)
    assert all(not one.status or re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", one.status) for one in report.recipients)
    assert len(report.recipients) <= 500
    assert len(report.returned.header) <= 65_536
    assert len(report.reporter) <= 255


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_report_that_is_cut_off_anywhere_is_read(sample) -> None:
    content = sample.content
    for end in range(0, len(content), 3):
        assert_clean(read_report(content[:end]))


def nested(depth: int, kind: bytes = b"multipart/mixed") -> bytes:
    return HEADER + b"".join(b"Content-Type: %s; boundary=b%d\r\n\r\n--b%d\r\n" % (kind, n, n) for n in range(depth))


BOMBS = {
    "nothing": b"",
    "zeros": b"\0" * 10 * MB,
    "empty lines": b"\r\n" * 5 * MB,
    "spaces": b" " * 10 * MB,
    "a thousand levels": nested(1000) + b"x" * MB,
    "a thousand messages": HEADER + b"Content-Type: message/rfc822\r\n\r\n" * 10_000,
    "one boundary at every level": HEADER + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" * 50_000,
    "boundaries only": HEADER + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * 2 * MB,
    "a boundary that never comes": HEADER + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--bx\r\n" * MB,
    "no boundary": HEADER + b"Content-Type: multipart/mixed\r\n\r\n" + b"--x-y\n" * MB,
    "header fields": HEADER + b"X: y\r\n" * MB,
    "one folded field": HEADER + b"X: y\r\n" + b" z\r\n" * 2 * MB,
    "encoded words": b"Subject: " + b"=?utf-8?q?=41?= " * 500_000,
    "broken encoded words": b"Subject: " + b"=?" * 2 * MB,
    "parameters": b"Content-Type: multipart/mixed" + b'; a="' * MB,
    "ten megabytes of refusals": HEADER + b"\r\n" + b"a@b.example could not 550 5.1.1 no\r\n" * 300_000,
    "at signs": HEADER + b"\r\n" + b"@" * 10 * MB,
    "short addresses": HEADER + b"\r\n" + b"a@b.c " * MB,
    "a long domain": HEADER + b"\r\na@" + b"b." * MB,
    "quotes": HEADER + b"\r\n" + (b'"' + b"x" * 60 + b'"@a.b ') * 100_000,
    "tags that never end": HEADER + b"Content-Type: text/html\r\n\r\n" + b"<a " * 3 * MB,
    "angle brackets": HEADER + b"Content-Type: text/html\r\n\r\n" + b"<" * 10 * MB,
    "styles": HEADER + b"Content-Type: text/html\r\n\r\n" + b"<style " * MB,
    "broken base64": HEADER + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=*\n" * MB,
    "base64": HEADER + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QUFB\n" * MB,
    "quoted-printable": HEADER + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=41=\n" * MB,
    "recipients": REPORT + b"Final-Recipient: rfc822;a@b.example\r\nAction: failed\r\n\r\n" * 100_000,
    "field names": REPORT + b"Final-Recipient: " * 500_000,
    "a long diagnostic": REPORT + b"Final-Recipient: rfc822;a@b.c\r\nDiagnostic-Code: smtp; " + b"550-5.1.1 a " * MB,
    "a folded diagnostic": REPORT
    + b"Final-Recipient: rfc822;a@b.c\r\nDiagnostic-Code: smtp\r\n"
    + b" 550-5.1.1 a\r\n" * MB,
    "comments": REPORT + b"Final-Recipient: rfc822;" + b"(" * MB,
    "header lines": HEADER + b"\r\n" + b"Received: a\r\nFrom: x\r\n\r\n" * 400_000,
    "forty big parts": HEADER
    + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + (b"--b\r\nContent-Type: text/html\r\n\r\n" + b"<p>a@b.example 550 x\r\n" * 7000) * 60,
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_read_in_bounded_time(content: bytes) -> None:
    begin = time.process_time()
    report = read_report(content)

    assert time.process_time() - begin < LONGEST_CPU
    assert_clean(report)


def test_a_usual_report_costs_little() -> None:
    content = dsn(
        FAILED + "Status: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 no", human="x" * 70 + "\n" + "y\n" * 4000
    ).encode()
    begin = time.process_time()
    for _ in range(20):
        read_report(content)

    assert (time.process_time() - begin) / 20 < 0.06  # 5,000 a minute are 12 ms each; this machine may be busy


CHARSETS = ("utf-16", "utf-7", "idna", "punycode", "hex", "rot13", "zlib", "undefined", "unicode_escape", "mbcs", "hz", "\xff", "utf-8-sig", "x" * 300, "utf-8\0")  # fmt: skip


@pytest.mark.parametrize("charset", CHARSETS)
def test_a_charset_that_is_none_hurts_nobody(charset: str) -> None:
    content = plain(DAEMON, "Undelivered Mail", "<ann@far.example>: 550 5.1.1 no such user \xe9\xff")
    content = content.replace("charset=utf-8", f'charset="{charset}"')

    report = read_report(content.encode("latin-1"))

    assert_clean(report)
    assert report.kind is ReportKind.BOUNCE


def test_controls_and_halves_of_surrogate_pairs_do_not_come_through() -> None:
    body = "Final-Recipient: rfc822;ann@far.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp;550 a\0b\x1b[31m\u202ec\u2028d"
    report = read_report(dsn(body).encode() + b"\xed\xa0\x80")

    assert report.recipients[0].diagnostic == "550 ab[31mc d"
    assert_clean(report)


def test_a_part_with_a_broken_transfer_encoding_is_read_as_far_as_it_goes() -> None:
    message = EmailMessage()
    message["From"] = "MAILER-DAEMON@far.example"
    message["Subject"] = "Undelivered Mail"
    message.set_content("<ann@far.example>: 550 5.1.1 no such user\n" * 5, cte="base64")

    report = read_report(bytes(message)[:-3])

    assert [one.address for one in report.recipients] == ["ann@far.example"]


@pytest.mark.parametrize("damage", ["boundary=", "boundary=wrong", ""])
def test_a_boundary_that_is_missing_or_wrong_is_found(damage: str) -> None:
    content = dsn(FAILED + "Status: 5.1.1").replace('boundary="=_b1"', damage, 1)

    assert [one.address for one in read_report(content.encode()).recipients] == ["ann@far.example"]


contents = st.sampled_from([sample.content for sample in SAMPLES])
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(contents, st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=12), st.integers(0, 40)), max_size=8))
def test_no_mutation_raises(content: bytes, cuts: list[tuple[float, bytes, int]]) -> None:
    for place, piece, gone in cuts:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + gone :]

    assert_clean(read_report(content))


WORDS = (
    b"\r\n", b"\n", b"\r", b"--b", b"--b--", b"\r\n\r\n", b"Content-Type: ", b"multipart/report; boundary=b", b"message/rfc822", b"text/html",
    b"text/plain; charset=", b"utf-16", b"message/delivery-status", b"Final-Recipient: ", b"rfc822;", b"a@b.example", b"<", b">", b"@", b":",
    b"Action: failed", b"Status: 5.1.1", b"Diagnostic-Code: smtp; 550-5.1.1 ", b"550 5.1.1 no", b"From: MAILER-DAEMON@x.example", b"Subject: ",
    b"Undelivered Mail", b"=?utf-8?b?/w==?=", b"Content-Transfer-Encoding: base64", b"\xff", b"\0", b" ", b"\t", b"message/feedback-report",
    b"Feedback-Type: abuse", b"Original-Rcpt-To: ", b"Received: x", b"Message-ID: <x@y>", b"To: a@b.example", b"+2B", b"\\x{D800}", b"\xed\xa0\x80", b'"', b"(", b")",
)  # fmt: skip


@FUZZ
@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_no_mixture_of_what_mails_are_made_of_raises(words: list[bytes]) -> None:
    assert_clean(read_report(b"".join(words)))


@FUZZ
@given(st.binary(max_size=400))
def test_no_bytes_raise(content: bytes) -> None:
    assert_clean(read_report(content))
    assert_clean(read_report(REPORT + content))
    assert_clean(read_report(HEADER + b"\r\n" + content))
