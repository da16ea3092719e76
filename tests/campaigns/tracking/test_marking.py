"""One message with a pixel and tracked links: nothing else of it changes, whatever it is made of."""

import base64
import quopri
from email import message_from_bytes
from email.policy import default
from typing import Any

import pytest

from mailerd.campaigns.tracking.marking import Marking, mark_html
from mailerd.config import Config, SendingDomain
from mailerd.errors import Refused
from mailerd.intake.envelope import Track
from mailerd.wire.tracking import Click, Open, Tracking

SECRET = b"secret"
TOKENS = Tracking(SECRET)
DOMAINS = {"shop.example": SendingDomain(tracking_url="https://t.example")}
MARKING = Marking(Config(domains=DOMAINS), SECRET)
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
        HEAD + part(HTML, "8bit").replace(b"utf-8", b"utf-16"),
        HEAD + b"Content-Type: multipart/mixed\r\n\r\n" + part(HTML, "8bit"),
        b"",
        HEAD,
    ],
)
def test_what_has_no_html_that_may_change_stays_as_it_is(content: bytes) -> None:
    assert marked(content) == content


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
