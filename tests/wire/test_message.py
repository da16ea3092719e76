import email
import email.policy
import re
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.wire.message import (
    MAX_HEADER,
    first_address_domain,
    fix_up,
    fold,
    format_date,
    has_header,
    header_problem,
    header_values,
    received_line,
    remove_headers,
    split,
    with_protocol,
)

RECEIVED = b"Received: from us\r\n\tby us; now\r\n"
DATE = "Sun, 22 Nov 2026 01:54:12 +0000"
WHOLE = b"From: ann@example.com\r\nDate: today\r\nMessage-ID: <1@example.com>\r\nSubject: x\r\n"
BODY = b"caf\xe9 \xff\0\r\nlast line without end"


def fixed(content: bytes, **options: str) -> bytes:
    return fix_up(content, message_id="<new@host>", date=DATE, received=RECEIVED, **options)


@pytest.mark.parametrize(
    ("content", "header", "body"),
    [
        (b"", b"", b""),
        (b"A: 1\r\nB: 2\r\n\r\nbody\r\n\r\nmore", b"A: 1\r\nB: 2\r\n", b"body\r\n\r\nmore"),
        (b"A: 1\r\n\r\n", b"A: 1\r\n", b""),
        (b"A: 1\r\n", b"A: 1\r\n", b""),
        (b"A: 1", b"A: 1\r\n", b""),
        (b"A: 1\r\nB: 2", b"A: 1\r\nB: 2\r\n", b""),
        (b"\r\nbody", b"", b"body"),
        (b"\r\n", b"", b""),
        (b"hello\r\nSubject: x\r\n\r\nmore", b"", b"hello\r\nSubject: x\r\n\r\nmore"),
        (b" A: 1\r\n\r\nbody", b"", b" A: 1\r\n\r\nbody"),
        (b"A: 1\r\n b\r\nhello there\r\nmore\r\n", b"A: 1\r\n b\r\n", b"hello there\r\nmore\r\n"),
        (b"A: 1\r\nhello", b"A: 1\r\n", b"hello"),
        (b"From ann Sun Nov 22 01:54:12 2026\r\nA: 1\r\n\r\nbody", b"A: 1\r\n", b"body"),
        (b"From ann Sun Nov 22 01:54:12 2026\r\n\r\nbody", b"", b"body"),
        (b"From ann", b"", b""),
        (b"From : ann@example.com\r\n\r\nbody", b"From : ann@example.com\r\n", b"body"),
        (b"A: \r\n\r\n\r\nbody", b"A: \r\n", b"\r\nbody"),
    ],
)
def test_a_message_is_cut_where_its_header_ends(content, header, body):
    assert split(content) == (header, body)


HEADER = b"To: a@b\r\nX-To: no\r\nSUBJECT :  one\r\n\ttwo \r\nto:\r\n c@d\r\nTo-Do: no\r\nX: to: no\r\n to: neither\r\n"


def test_values_are_found_whatever_their_case_unfolded_and_in_order():
    assert header_values(HEADER, b"to") == [b"a@b", b"c@d"]
    assert header_values(HEADER, b"Subject") == [b"one\ttwo"]
    assert header_values(HEADER, b"X") == [b"to: no to: neither"]
    assert header_values(HEADER, b"Cc") == []
    assert header_values(b"", b"To") == []


def test_presence_is_a_matter_of_whole_names():
    assert has_header(HEADER, b"Subject")
    assert not has_header(HEADER, b"Sub")
    assert not has_header(HEADER, b"Do")


def test_removing_takes_all_fields_of_the_name_with_their_continuations():
    assert remove_headers(HEADER, [b"TO", b"subject"]) == (b"X-To: no\r\nTo-Do: no\r\nX: to: no\r\n to: neither\r\n")
    assert remove_headers(HEADER, [b"Bcc"]) is HEADER
    assert remove_headers(b"Bcc: a\r\n b\r\n", [b"bcc"]) == b""


def test_a_complete_message_only_gets_the_received_line():
    assert fixed(WHOLE + b"\r\n" + BODY) == RECEIVED + WHOLE + b"\r\n" + BODY


def test_what_is_missing_is_added():
    content = b"Subject: x\r\n\r\n" + BODY
    added = b"Date: Sun, 22 Nov 2026 01:54:12 +0000\r\nMessage-ID: <new@host>\r\n"
    assert fixed(content) == RECEIVED + added + content
    assert fixed(content, add_from="ann@example.com") == RECEIVED + b"From: <ann@example.com>\r\n" + added + content


def test_fields_written_in_an_odd_way_are_not_missing():
    odd = b"FROM : ann@example.com\r\ndate\t:today\r\nMessage-Id:\r\n <1@example.com>\r\n"
    mended = b"FROM: ann@example.com\r\ndate:today\r\nMessage-Id:\r\n <1@example.com>\r\n"
    assert fixed(odd + b"\r\nb : c\r\n", add_from="x@y") == RECEIVED + mended + b"\r\nb : c\r\n"


def test_names_in_the_body_or_in_values_do_not_count_as_fields():
    content = b"From: a@b\r\nX: y\r\n Date: no\r\nX-Message-ID: no\r\n\r\nDate: no\r\nBcc: stays\r\n"
    result = fixed(content)
    assert result.count(DATE.encode()) == 1
    assert b"Message-ID: <new@host>\r\n" in result
    assert result.endswith(content)


def test_hidden_recipients_and_return_path_are_removed():
    hidden = b"Bcc: eve@example.com,\r\n\tmallory@example.com\r\nbCC : x@y\r\nResent-Bcc: a@b\r\nReturn-Path: <c@d>\r\n"
    assert fixed(hidden + WHOLE + b"\r\nBcc: body\r\n") == RECEIVED + WHOLE + b"\r\nBcc: body\r\n"


NEW = RECEIVED + b"Date: Sun, 22 Nov 2026 01:54:12 +0000\r\nMessage-ID: <new@host>\r\n"


@pytest.mark.parametrize(
    ("content", "result"),
    [
        (b"", NEW + b"\r\n"),
        (b"hello\r\nworld\r\n", NEW + b"\r\nhello\r\nworld\r\n"),
        (b"\r\nhello\r\n", NEW + b"\r\nhello\r\n"),
        (b"A: 1\r\nhello there\r\n", NEW + b"A: 1\r\n\r\nhello there\r\n"),
        (b"A: 1", NEW + b"A: 1\r\n\r\n"),
        (b"From ann Sun Nov 22 01:54:12 2026\r\nA: 1\r\n\r\nb", NEW + b"A: 1\r\n\r\nb"),
        (b"From ann Sun Nov 22 01:54:12 2026\r\n\r\nb", NEW + b"\r\nb"),
        (b"Bcc: x@y\r\n\r\nb", NEW + b"\r\nb"),
    ],
)
def test_messages_without_a_proper_header_get_one(content, result):
    assert fixed(content) == result


def test_long_header_lines_are_folded_and_8_bit_ones_kept():
    long = b"References:" + b" <0123456789@example.com>" * 80 + b"\r\n"
    stubborn = b"X: " + b"x" * 2000 + b"\r\n"
    result = fixed(WHOLE + long + stubborn + b"X-Name: J\xfcrgen\r\n\r\n" + b"y" * 3000)
    header, body = split(result)
    assert header_values(header, b"References") == [long[12:-2]]
    assert [len(line) for line in header.split(b"\r\n") if len(line) > 998] == [2003]
    assert stubborn in header
    assert b"X-Name: J\xfcrgen\r\n" in header
    assert body == b"y" * 3000


@given(
    fields=st.lists(
        st.sampled_from([b"From: a@b", b"Bcc: c@d", b"Date: x", b" more", b"X : y", b"junk", b""]), max_size=6
    ),
    body=st.binary(max_size=60),
)
def test_the_body_is_never_touched_and_the_result_is_stable(fields, body):
    content = b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body
    result = fixed(content)
    assert split(result)[1] == split(content)[1]
    header = split(result)[0]
    assert not has_header(header, b"Bcc")
    assert has_header(header, b"Date")
    assert has_header(header, b"Message-ID")
    assert fixed(result) == RECEIVED + result


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", None),
        (WHOLE, None),
        (b"A:\r\nB: J\xfcrgen\r\n \r\n c\r\n", None),
        (b"A : 1\r\n", None),
        (b"To: a@b\r\nTo: c@d\r\nReceived: x\r\nReceived: y\r\n", None),
        (b"A: 1\r\nno colon here\r\nB: 2\r\n", "header line 2 has no field name before a colon: 'no colon here'"),
        (b"A: 1\r\nSub ject: x\r\n", "header line 2 has no field name"),
        (b"A: 1\r\n: x\r\n", "header line 2 has no field name"),
        (b"A: 1\r\nB\xfc: x\r\n", "header line 2 has no field name"),
        (b" A: 1\r\n", "continuation"),
        (b"A: \0\r\n", "NUL"),
        (b"A: 1\nB: 2\r\n", "line 1 has a bare CR or LF"),
        (b"A: 1\r\nB: \r2\r\n", "line 2 has a bare CR or LF"),
        (b"A: 1\r\n\r\nB: 2\r\n", "an empty line"),
        (b"A: 1", "does not end in CRLF"),
        (b"From: a@b\r\nTo: x\r\nfrom : c@d\r\n", "more than one From header field"),
        (b"Message-ID: 1\r\nMessage-Id: 2\r\n", "more than one Message-Id header field"),
    ],
)
def test_header_problems(header, problem):
    found = header_problem(header)
    assert found is None if problem is None else problem in str(found)


def test_a_large_header_is_judged_in_linear_time():
    assert header_problem(b"A: " + b"b " * 200_000 + b"\r\n" + b"C: d\r\n \r\n" * 60_000) is None
    assert header_problem(b"A" * 900_000 + b"\r\n") is not None


def test_a_header_has_a_megabyte_and_no_more():
    assert header_problem(b"A: " + b"b" * (MAX_HEADER - 5) + b"\r\n") is None
    assert header_problem(b"A: " + b"b" * (MAX_HEADER - 4) + b"\r\n") == "it has more than 1,000,000 bytes"


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("ann@example.com", "example.com"),
        ("Ann <ann@Example.COM>", "example.com"),
        ("Ann Lee\r\n\t<ann@example.com>", "example.com"),
        ('"Lee, Ann" <ann@example.com>', "example.com"),
        ('"eve@evil.example" <ann@example.com>', "example.com"),
        ('"a \\" <eve@evil.example>" <ann@example.com>', "example.com"),
        ("eve@evil.example <ann@example.com>", "example.com"),
        ("(eve@evil.example) ann@example.com (work)", "example.com"),
        ("(a (nested@x.example \\) b) c) Ann <ann@example.com>", "example.com"),
        ("ann@example.com (<eve@evil.example>)", "example.com"),
        ("ann@example.com, bob@example.net", "example.com"),
        ("Ann <ann@example.com>, bob@example.net", "example.com"),
        (", ann@example.com", "example.com"),
        ('"odd@local"@example.com', "example.com"),
        ('"q" <"odd@local"@example.com>', "example.com"),
        ("Team: ann@example.com, bob@example.net;", "example.com"),
        ("Team: Ann <ann@example.com>;", "example.com"),
        ("<@relay.example,@other.example:ann@example.com>", "example.com"),
        ("ann @ example . com", "example.com"),
        ("=?utf-8?Q?J=C3=BCrgen?= <ann@example.com>", "example.com"),
        ("Jürgen <jürgen@bücher.example>", "xn--bcher-kva.example"),
        ("ann@[192.0.2.1]", ""),
        ("ann", ""),
        ("Ann <ann>", ""),
        ("", ""),
        ("undisclosed:;", ""),
        ("<>", ""),
        ("ann@", ""),
        ("ann@exa mple..com", ""),
        ('"never closed <ann@example.com>', "example.com"),
    ],
)
def test_the_domain_of_the_first_address(value, domain):
    header = b"Subject: x@y.example\r\nFrom: " + value.encode() + b"\r\nTo: z@z.example\r\n"
    assert first_address_domain(header, b"From") == domain


def test_no_field_has_no_domain():
    assert first_address_domain(WHOLE, b"Sender") == ""


@given(value=st.text(alphabet='a@.<>()",:;\\[] \tü', max_size=40) | st.binary(max_size=40).map(repr))
def test_any_address_list_gives_a_domain_or_none(value):
    domain = first_address_domain(b"From: " + value.encode() + b"\r\n", b"from")
    assert re.fullmatch(r"[a-z0-9._-]*", domain)


def test_an_address_list_made_to_be_slow_is_not():
    for piece in (b"(", b"((", b'"', b"\\", b"<", b"a@", b"(\\"):
        assert first_address_domain(b"From: " + piece * 200_000 + b"\r\n", b"From") == ""


def test_white_space_without_end_in_a_domain_is_looked_at_once() -> None:
    header = b"From: a@b.example" + b" " * 300_000 + b"c\r\n"
    start = time.process_time()
    assert first_address_domain(header, b"From") == ""
    assert time.process_time() - start < 1.0


@given(
    words=st.lists(st.text(alphabet="ab:", min_size=1, max_size=120), min_size=1),
    gaps=st.sampled_from([" ", "  ", "\t"]),
)
def test_a_folded_line_unfolds_to_itself(words, gaps):
    line = ("X: " + gaps.join(words)).encode()
    lines = fold(line).split(b"\r\n")
    assert b"".join(lines) == line
    assert all(part.strip() and part[:1] in (b" ", b"\t") for part in lines[1:])
    assert all(len(part) <= 78 or len(part.split()) <= 2 for part in lines)


def test_dates_are_those_of_rfc_5322():
    assert format_date(datetime(2026, 11, 2, 1, 4, 12, tzinfo=UTC)) == "Mon, 02 Nov 2026 01:04:12 +0000"


def test_a_received_line_says_who_how_and_when():
    line = received_line(
        helo="app.example.com",
        peer="2001:db8::1",
        by="mail.example.com",
        protocol=with_protocol(tls=True, authenticated=True),
        message_id="msg_1",
        date=DATE,
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        recipient="bob@example.net",
    )
    assert line == (
        b"Received: from app.example.com ([IPv6:2001:db8::1])\r\n"
        b"\t(TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby mail.example.com (mailerd) with ESMTPSA id msg_1\r\n"
        b"\tfor <bob@example.net>;\r\n"
        b"\tSun, 22 Nov 2026 01:54:12 +0000\r\n"
    )


@pytest.mark.parametrize("helo", ["evil\r\nBcc: x", "a) by b; (c", "ü" * 300, ""])
def test_a_client_cannot_write_into_the_received_line(helo):
    line = received_line(
        helo=helo, peer="192.0.2.1", by="us", protocol="HTTP", message_id="1", date=DATE, recipient="a> <b"
    )
    parsed = email.message_from_bytes(line, policy=email.policy.default)
    assert parsed.keys() == ["Received"]
    assert line.count(b";") == 1
    assert line.count(b"by ") == 1
    assert b"for" not in line
    assert header_problem(line) is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"extended": False}, "SMTP"),
        ({}, "ESMTP"),
        ({"tls": True}, "ESMTPS"),
        ({"authenticated": True}, "ESMTPA"),
        ({"utf8": True, "tls": True, "authenticated": True}, "UTF8SMTPSA"),
    ],
)
def test_protocol_names_are_the_registered_ones(options, name):
    assert with_protocol(**options) == name
