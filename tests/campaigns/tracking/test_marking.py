"""One message with a pixel and tracked links: nothing else of it changes, whatever it is made of."""

import base64
import binascii
import quopri
import re
from email import message_from_bytes
from email.policy import default
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.campaigns.tracking.marking import MAX_HTML, MAX_LINKS, MAX_MARKED, MAX_PARTS, Marking, mark_html
from mailerd.config import Config, SendingDomain, Size, Smtp
from mailerd.errors import Refused
from mailerd.intake.envelope import Track
from mailerd.wire.message import MAX_LINE
from mailerd.wire.smtp import line_problem
from mailerd.wire.tracking import Click, Open, Tracking

SECRET = b"secret"
TOKENS = Tracking(SECRET)
DOMAINS = {"shop.example": SendingDomain(tracking_url="https://t.example")}
MARKING = Marking(Config(domains=DOMAINS), SECRET)
MULTIPART = b"From: a@shop.example\r\nContent-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\n"
MESSAGE = 116_000_000_000_000_000
HEAD = b"From: a@shop.example\r\nSubject: x\r\nMIME-Version: 1.0\r\n"
HTML = '<p>Grüße <a class=b href="https://a.example/?x=1&amp;y=ü">a</a></p>'.encode()


def marked(content: bytes, *, opens: bool = True, clicks: bool = True) -> bytes:
    return MARKING(content, MESSAGE, "news.shop.example", Track(opens, clicks))


def html_of(content: bytes) -> str:
    message: Any = message_from_bytes(content, policy=default)
    html: str = message.get_body(("html",)).get_content()
    return html


def part(body: bytes, encoding: str, more: str = "") -> bytes:
    return (
        f"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n{more}\r\n".encode() + body
    )


def test_tokens_name_the_message_and_where_the_link_leads() -> None:
    html = html_of(marked(HEAD + part(HTML, "8bit")))

    click, pixel = html.split("https://t.example/c/")[1], html.split("https://t.example/o/")[1]
    assert TOKENS.read_click(click.partition('"')[0]) == Click(MESSAGE, 0, 0, 1, "https://a.example/?x=1&y=ü")
    assert TOKENS.read_open(pixel.partition('"')[0]) == Open(MESSAGE, 0, 0)
    assert html.startswith('<p>Grüße <a class=b href="https://t.example/c/')


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("8bit", HTML),
        ("quoted-printable", quopri.encodestring(HTML)),
        ("base64", base64.encodebytes(HTML).replace(b"\n", b"\r\n")),
        ("7bit", HTML.replace("ü".encode(), b"u")),
    ],
)
def test_html_is_found_in_whatever_encoding_and_part_and_all_else_stays_byte_for_byte(
    encoding: str, body: bytes
) -> None:
    before = HEAD + b"Content-Type: multipart/mixed; boundary=m\r\n\r\nprologue\r\n--m\r\n"
    before += b'Content-Type: multipart/alternative;\r\n boundary="a b"\r\n\r\n'
    before += b"--a b\r\n\r\nhttps://a.example/\r\n--a b\r\n"
    after = b"\r\n--a b--\r\n--m\r\n" + part(HTML, "8bit", "Content-Disposition: attachment\r\n")
    after += b"\r\n--m\r\nContent-Type: message/rfc822\r\n\r\n" + HEAD + part(HTML, "8bit") + b"\r\n--m--\r\nepilogue"

    content = marked(before + part(body, encoding) + after)

    assert content.startswith(before)
    assert content.endswith(after)
    assert html_of(content).count("https://t.example/") == 2
    assert f"Transfer-Encoding: {encoding}\r\n".encode() in content[len(before) : -len(after)]


def test_a_line_that_becomes_too_long_is_folded_by_its_encoding() -> None:
    html = f'<a href="https://a.example/{"x" * 700}">a</a>'.encode()

    content = marked(HEAD + part(html, "7bit"))

    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert "https://t.example/c/" in html_of(content)


@pytest.mark.parametrize(
    "content",
    [
        HEAD + b"\r\nhttps://a.example/\r\n",
        HEAD + b"Content-Type: multipart/signed; boundary=m\r\n\r\n--m\r\n" + part(HTML, "8bit") + b"\r\n--m--\r\n",
        HEAD + part(HTML, "x-uuencode"),
        *(
            HEAD + part(HTML, "8bit").replace(b"charset=utf-8", charset)
            for charset in (
                b"charset=utf-16",
                b"charset=csUTF16",
                b"charset=ucs2",
                b"charset=unicode",
                b"charset=cp037",
                b"charset=iso-2022-jp",
                b"charset=hz-gb-2312",
                b"charset=utf-7",
                b"charset=x-unheard-of",
                b"charset*=utf-8''utf-8",
                b"charset*0=ut; charset*1=f-16",
            )
        ),
        HEAD + part(base64.encodebytes(HTML.decode().encode("utf-16")).replace(b"\n", b"\r\n"), "base64"),
        HEAD + part(b"", "8bit"),
        HEAD + part(b"", "8bit").removesuffix(b"\r\n"),
        MULTIPART + part(b"", "8bit").removesuffix(b"\r\n") + b"\r\n--m--\r\n",
        HEAD + b"Content-Type: multipart/mixed\r\n\r\n" + part(HTML, "8bit"),
        b"",
        HEAD,
    ],
)
def test_what_has_no_html_that_may_change_stays_as_it_is(content: bytes) -> None:
    assert marked(content) == content


@pytest.mark.parametrize("charset", ["US-ASCII", "ISO-8859-15", "latin1", "Windows-1252", "cp1251", "gb2312", "UTF8"])
def test_html_in_the_common_charsets_is_marked(charset: str) -> None:
    content = HEAD + part(b'<a href="https://a.example/">\xe4</a>', "8bit").replace(b"utf-8", charset.encode())

    assert marked(content).count(b"https://t.example/") == 2


DECODED = st.lists(
    st.one_of(
        st.sampled_from(
            [b"\r", b"\n", b"\r\n", b".", b" ", b"=", b"<p>", b"</body>", b'<a href="https://a.example/">']
        ),
        st.sampled_from(
            [b"x" * 80, b"y" * 990, b"\xc3\xbc" * 500, b'<a href="https://a.example/' + b"z" * 900 + b'">']
        ),
        st.binary(max_size=20),
    ),
    max_size=12,
).map(b"".join)


@given(DECODED, st.sampled_from(["7bit", "8bit", "binary", "quoted-printable", "base64"]), st.booleans())
def test_what_is_marked_could_come_in_by_smtp_whatever_was_encoded(html: bytes, encoding: str, inside: bool) -> None:
    if encoding == "base64":
        body = base64.encodebytes(html).replace(b"\n", b"\r\n")
    elif encoding == "quoted-printable":
        body = binascii.b2a_qp(html, istext=False).replace(b"\n", b"\r\n")
    else:
        body = re.sub(rb"[\r\n\0]", b"", html.replace(b"\r\n", b"\0")).replace(b"\0", b"\r\n")
    before, after = (MULTIPART, b"\r\n--m--\r\n") if inside else (HEAD, b"\r\n")
    content = before + part(body, encoding) + after

    result = marked(content)

    if result != content:
        assert line_problem(result) is None
        assert max(map(len, result.split(b"\r\n"))) <= MAX_LINE
        assert html_of(result).count("https://t.example/o/") == 1


def test_bare_line_ends_in_quoted_printable_stay_encoded() -> None:
    content = marked(HEAD + part(b"<p>a</p>\r\n=0D.=0DMAIL FROM: =0A .\r\n", "quoted-printable"), clicks=False)

    assert b"\r\n=0D.=0DMAIL FROM: =0A .\r\n" in content


def refusal(content: bytes, max_size: int = 50_000_000) -> str:
    marking = Marking(Config(domains=DOMAINS, smtp=Smtp(max_size=Size(max_size))), SECRET)
    with pytest.raises(Refused) as caught:
        marking(content, MESSAGE, "shop.example", Track(True, True))
    assert caught.value.name == "too_large_to_track"
    return caught.value.text


def test_the_html_of_all_parts_together_is_bounded() -> None:
    third = part(b"x" * (MAX_HTML // 3), "8bit")

    assert marked(MULTIPART + b"\r\n--m\r\n".join([third] * 3)).count(b"https://t.example/") == 3
    assert "300,000 bytes" in refusal(MULTIPART + b"\r\n--m\r\n".join([third, third, third, part(b"x", "8bit")]))


def test_the_links_of_all_parts_together_are_bounded_and_each_url_has_one_token() -> None:
    half = part(b'<a href="https://a.example/">\r\n' * (MAX_MARKED // 2), "8bit")
    content = marked(MULTIPART + b"\r\n--m\r\n".join([half] * 2), opens=False)

    assert content.count(b"https://t.example/c/") == MAX_MARKED
    assert len(set(re.findall(rb"https://t.example/c/[^\"]+", content))) == 1
    one_more = part(b'<a href="https://a.example/">', "8bit")
    assert "1,000 links" in refusal(MULTIPART + b"\r\n--m\r\n".join([half, half, one_more]))


def test_of_too_many_urls_the_first_are_tracked() -> None:
    links = b"".join(b'<a href="https://a.example/%d">\r\n' % number for number in range(2 * MAX_LINKS))

    assert marked(HEAD + part(links, "8bit"), opens=False).count(b"https://t.example/c/") == MAX_LINKS


def test_the_parts_are_bounded_whatever_they_are() -> None:
    for each in (part(b"x", "8bit"), b"\r\n"):
        assert f"{MAX_PARTS} parts" in refusal(MULTIPART + b"\r\n--m\r\n".join([each] * MAX_PARTS))
    most = MULTIPART + b"\r\n--m\r\n".join([part(b"x", "8bit")] * (MAX_PARTS - 1))
    assert marked(most).count(b"https://t.example/o/") == MAX_PARTS - 1


def test_what_would_be_larger_than_a_message_may_be_is_refused() -> None:
    content = HEAD + part(HTML, "8bit")

    assert "larger than" in refusal(content, len(content))


def test_parts_in_parts_without_end_are_no_work() -> None:
    content = HEAD + b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(10_000)
    )

    assert marked(content + part(HTML, "8bit")) == content + part(HTML, "8bit")


@pytest.mark.parametrize(
    "link",
    [
        '<a href="mailto:a@b.example">',
        '<a href="#top">',
        '<a href="javascript:alert(1)">',
        '<a href="https://a.example/" data-track="off">',
        '<a href="https://t.example/u/x">',
        '<!-- <a href="https://a.example/"> -->',
        '<img src="https://a.example/">',
        '<a href="https://a.example/',
        b'<a href="https://a.example/\xfc">'.decode("iso-8859-1"),
    ],
)
def test_other_links_are_left_alone(link: str) -> None:
    assert MARKING(HEAD + part(link.encode("iso-8859-1"), "8bit"), 1, "shop.example", Track(clicks=True)).endswith(
        link.encode("iso-8859-1")
    )


def test_the_pixel_ends_the_body_and_a_body_may_forbid_all() -> None:
    ends = "<html><body>x<!--[if mso]></body><![endif]--></body></html>"

    assert mark_html(ends, None, "https://p/").endswith('display:block;border:0"></body></html>')
    assert mark_html('<body data-track="off"><a href="https://a/">x</a></body>', str.upper, "https://p/") == (
        '<body ><a href="https://a/">x</a></body>'
    )


def test_without_a_host_of_ours_nothing_can_be_tracked() -> None:
    with pytest.raises(Refused, match=r"http\.public_url"):
        MARKING(HEAD, 1, "other.example", Track(opens=True))
