"""Tokens of pixels and links: only ours are read, each in one spelling, and what stood in the mail arrives."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.wire.tokens import Tokens
from mailerd.wire.tracking import MAX_LINK, MAX_URL, Click, Open, Tracking, is_target, location

SECRET = b"s" * 32
TRACKING = Tracking(SECRET)
MESSAGE = 116_000_000_000_000_000
URL = "https://shop.example.com/a%2Fb?utm_source=news&x=%C3%BC+1#part"
OPEN = TRACKING.open_token(MESSAGE, 17, 1_234_567)
CLICK = TRACKING.click_token(MESSAGE, 17, 1_234_567, 3, URL)
BASE64 = string.ascii_letters + string.digits + "-_"
IDS = st.integers(0, 2**63 - 1)
URLS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=300).map(
    lambda rest: f"https://a.example/{rest}"
)


@given(IDS, IDS, IDS)
def test_an_open_is_read_as_it_was_made(message_id, campaign_id, contact_id):
    token = TRACKING.open_token(message_id, campaign_id, contact_id)

    assert set(token) <= set(BASE64)
    assert TRACKING.read_open(token) == Open(message_id, campaign_id, contact_id)
    assert TRACKING.read_click(token) is None


@given(IDS, IDS, IDS, st.integers(0, MAX_LINK), URLS.filter(is_target))
def test_a_click_is_read_as_it_was_made_to_the_last_letter_of_the_url(message_id, campaign_id, contact_id, link, url):
    token = TRACKING.click_token(message_id, campaign_id, contact_id, link, url)

    assert set(token) <= set(BASE64)
    assert TRACKING.read_click(token) == Click(message_id, campaign_id, contact_id, link, url)
    assert TRACKING.read_open(token) is None


def test_tokens_are_short():
    assert len(OPEN) == 31
    assert len(CLICK) == 4 * (25 + len(URL)) // 3


@pytest.mark.parametrize("token", [OPEN, CLICK])
def test_every_other_letter_at_every_place_is_refused(token):
    for at, own in enumerate(token):
        for letter in string.printable + "é":
            if letter != own:
                changed = token[:at] + letter + token[at + 1 :]
                assert (TRACKING.read_open(changed), TRACKING.read_click(changed)) == (None, None)


@pytest.mark.parametrize("token", [OPEN, CLICK])
def test_a_cut_or_longer_or_padded_token_is_refused(token):
    changed = [token[:length] for length in range(len(token))] + [token[at:] for at in range(1, len(token))]
    changed += [token + more for more in ("=", "==", "a", "aaaa", "\n", " ", ".", "%00")]
    changed += [" " + token, token[:9] + "\n" + token[9:], token + token]

    assert {TRACKING.read_open(each) for each in changed} | {TRACKING.read_click(each) for each in changed} == {None}


def test_a_token_of_another_purpose_or_installation_is_none():
    other = Tracking(b"t" * 32)

    assert (TRACKING.read_open(CLICK), TRACKING.read_click(OPEN)) == (None, None)
    assert (other.read_open(OPEN), other.read_click(CLICK)) == (None, None)
    for token in (Tokens(SECRET, "unsubscribe").seal(b"facts"), Tokens(SECRET, "return-path").make(MESSAGE, 1)):
        assert (TRACKING.read_open(token), TRACKING.read_click(token)) == (None, None)


@given(st.text(max_size=200) | st.text(BASE64, max_size=200))
def test_any_text_is_read_without_a_complaint(text):
    assert (TRACKING.read_open(text), TRACKING.read_click(text)) == (None, None)


def test_an_endless_text_is_not_even_decoded():
    assert TRACKING.read_click("A" * 10_000_000) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://EXAMPLE.COM/?a=b&c=%0d%0aSet-Cookie:x",
        "https://user@example.com:8443/",
        "https://bücher.example/ä?ö#ü",
        "https://[::1]:80/",
        "https://a.example/with space",
        "https://a.example/" + "x" * (MAX_URL - 18),
    ],
)
def test_links_to_the_web_are_tracked(url):
    assert is_target(url)
    click = TRACKING.read_click(TRACKING.click_token(1, 2, 3, 4, url))
    assert click is not None
    assert click.url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "ftp://example.com/",
        "mailto:ann@example.com",
        "//example.com/",
        "/path",
        "http:example.com",
        "http:///example.com",
        "https://\\example.com",
        "httpſ://example.com",
        " https://example.com",
        "https://example.com ",
        "https://example.com\r\nSet-Cookie: a=b",
        "https://example.com/\n",
        "https://example.com/\x00",
        "https://example.com/\x7f",
        "https://example.com/\x85",
        "https://example.com/\ud800",
        "https://\x01example.com/",
        "https://a.example/" + "x" * (MAX_URL - 17),
        "https://a.example/" + "ü" * 1_000,
    ],
)
def test_nothing_else_is(url):
    assert not is_target(url)
    with pytest.raises(ValueError, match="cannot lead"):
        TRACKING.click_token(1, 2, 3, 4, url)


@pytest.mark.parametrize("ids", [(-1, 1, 1), (1, -1, 1), (1, 1, -1), (2**63, 1, 1), (1, 2**63, 1), (1, 1, 2**64)])
def test_numbers_that_are_no_ids_make_no_token(ids):
    with pytest.raises(ValueError, match="is not an id"):
        TRACKING.open_token(*ids)


@pytest.mark.parametrize("link", [-1, MAX_LINK + 1])
def test_numbers_that_are_no_links_make_no_token(link):
    with pytest.raises(ValueError, match="not the number of a link"):
        TRACKING.click_token(1, 2, 3, link, URL)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, URL),
        ("https://a.example/%zz?{x}|\\^`'\"<>[]#a#b", "https://a.example/%zz?{x}|\\^`'\"<>[]#a#b"),
        ("https://a.example/a b%20c", "https://a.example/a%20b%20c"),
        ("https://bücher.example:8443/ä?q=ö#ü", "https://xn--bcher-kva.example:8443/%C3%A4?q=%C3%B6#%C3%BC"),
        ("https://me@bücher.example", "https://me@xn--bcher-kva.example"),
        ("https://Under_Score.Example/é", "https://Under_Score.Example/%C3%A9"),
        ("https://😀\u2028.example/", "https://%F0%9F%98%80%E2%80%A8.example/"),
    ],
)
def test_a_location_is_the_url_in_ascii(url, expected):
    assert location(url) == expected


@given(URLS.filter(is_target))
def test_no_location_can_hold_more_than_one_line(url):
    assert location(url).isascii()
    assert not any(letter <= " " or letter == "\x7f" for letter in location(url))
