"""Tracks one message that asks for it: a pixel in its HTML, and links that lead through us. Pure.

It has no campaign and no contact, so its tokens name the message alone. All else of it stays byte for byte, and what is
signed or encrypted (S/MIME, PGP) stays as a whole; so do attachments, plain text, HTML in letters that `<` may be part
of, and links with `data-track="off"`. A body with that is not tracked at all.

It is done while others wait: how much HTML, how many links and parts a message may have is bounded.
"""

import binascii
import re
from collections.abc import Callable, Iterator
from encodings import normalize_encoding
from encodings.aliases import aliases
from html import escape, unescape
from typing import NamedTuple

from mailerd.campaigns.templates import markup
from mailerd.campaigns.templates.slots import LINKS, MAX_LINKS, is_not_tracked, is_off, take_track
from mailerd.campaigns.tracking.links import tracking_base
from mailerd.config import Config
from mailerd.errors import Refused
from mailerd.feedback.attachments import spans
from mailerd.feedback.reading.header import Header, media_type, parse_header, split_header
from mailerd.intake.envelope import Track
from mailerd.wire.compose import encoded_base64
from mailerd.wire.message import MAX_LINE, remove_headers
from mailerd.wire.tracking import Tracking, is_target

MAX_HTML = 300_000  # bytes of all HTML of a message; three times of what Gmail shows
MAX_MARKED = 1_000  # links of a message, of the same URL or not
MAX_PARTS = 300  # of a message, HTML or not
MAX_DEPTH = 6
SEALED = frozenset({"multipart/signed", "multipart/encrypted"})
# Python's names of those in which no byte of another letter is one that markup is made of. Shift states are in none.
CHARSETS = frozenset(
    {"utf_8", "ascii", "latin_1", "koi8_r", "koi8_u", "gb2312", "gbk", "gb18030", "big5", "euc_jp", "euc_kr"}
    | {"shift_jis", "cp932", "cp949"}
    | {f"iso8859_{number}" for number in range(1, 17)}
    | {f"cp125{number}" for number in range(9)}
)
EXTENDED = re.compile(r"charset\s*\*", re.IGNORECASE)  # RFC 2231: in pieces, or encoded itself
PLAIN = frozenset({"", "7bit", "8bit", "binary"})
ENCODING = "Content-Transfer-Encoding"
LATIN = "iso-8859-1"  # bytes as letters, and back: what we look for is ASCII in all that is left
PIXEL = '<img src="{}" width="1" height="1" alt="" style="display:block;border:0">'

LinkFor = Callable[[str], str | None]


class _Part(NamedTuple):
    """HTML: where its header begins, its content begins, and that ends."""

    start: int
    body: int
    end: int
    encoding: str


class Marking:
    """An intake.submission.Mark. `secret` is the installation's."""

    def __init__(self, config: Config, secret: bytes) -> None:
        self._config = config
        self._tokens = Tracking(secret)

    def reconfigure(self, config: Config) -> None:
        """What is tracked from now on has the hosts of `config`."""
        self._config = config

    def __call__(self, content: bytes, message_id: int, domain: str, track: Track) -> bytes:
        """`content` with opens and clicks tracked as `track` has it; `domain` sends it. Raises Refused."""
        base = tracking_base(self._config, domain) if domain else ""
        if not base:
            text = f"tracking needs http.public_url, or domains.{domain}.tracking_url"
            raise Refused(550, "5.5.4", text, name="tracking_unavailable", field="tracking")
        made: dict[str, str] = {}
        marked = 0

        def link(url: str) -> str | None:
            nonlocal marked
            if not is_target(url) or url.startswith((f"{base}/u/", f"{base}/p/")):
                return None
            if url not in made:
                if len(made) == MAX_LINKS:
                    return None
                made[url] = f"{base}/c/{self._tokens.click_token(message_id, 0, 0, len(made) + 1, url)}"
            marked += 1
            if marked > MAX_MARKED:
                raise _too_large(f"HTML with more than {MAX_MARKED:,} links is not tracked")
            return made[url]

        pixel = f"{base}/o/{self._tokens.open_token(message_id, 0, 0)}" if track.opens else ""
        tracked = _marked(content, link if track.clicks else None, pixel)
        if len(tracked) > max(len(content), self._config.smtp.max_size):
            raise _too_large(f"with its tracking the message is larger than {self._config.smtp.max_size} bytes")
        return tracked


def _too_large(text: str) -> Refused:
    return Refused(552, "5.3.4", text, name="too_large_to_track", field="tracking")


def _marked(content: bytes, link: LinkFor | None, pixel: str) -> bytes:
    pieces: list[bytes] = []
    at = 0
    size = 0
    for part in _html_parts(content, 0, len(content), 0, iter(range(MAX_PARTS))):
        html = _decoded(content[part.body : part.end], part.encoding)
        if html is None or b"\0" in html:  # that is UTF-16 or no text, whatever it says
            continue
        size += len(html)
        if size > MAX_HTML:
            raise _too_large(f"HTML of more than {MAX_HTML:,} bytes is not tracked")
        marked = mark_html(html.decode(LATIN), link, pixel).encode(LATIN)
        if marked == html:
            continue
        header, body = _encoded(marked, content[part.start : part.body], part.encoding)
        pieces += [content[at : part.start], header, body]
        at = part.end
    return b"".join([*pieces, content[at:]]) if pieces else content


def _html_parts(content: bytes, start: int, end: int, depth: int, places: Iterator[int]) -> Iterator[_Part]:
    """In order. Of messages within the message nothing is looked at. Every part takes one of the `places`."""
    if next(places, None) is None:
        raise _too_large(f"a message of more than {MAX_PARTS} parts is not tracked")
    header_end, body = split_header(content, start, end)
    header = parse_header(content[start:header_end])
    content_type = header.text("content-type")
    kind, parameters = media_type(content_type)
    if kind == "text/html":
        if body < end and _is_shown(header) and _is_readable(content_type, parameters.get("charset", "")):
            yield _Part(start, body, end, header.text("content-transfer-encoding", 40).strip().lower())
    elif kind.startswith("multipart/") and kind not in SEALED and depth < MAX_DEPTH:
        boundary = parameters.get("boundary", "").encode("utf-8", "replace")
        for begin, stop in spans(content, body, end, boundary) if boundary else ():
            line_end = content[stop - 1 : stop] == b"\r" and stop > begin  # its LF begins the delimiter
            yield from _html_parts(content, begin, stop - line_end, depth + 1, places)


def _is_shown(header: Header) -> bool:
    return not header.text("content-disposition").strip().lower().startswith("attachment")


def _is_readable(content_type: str, charset: str) -> bool:
    name = normalize_encoding(charset).lower()  # no codec is looked for: names that are none would be kept for good
    return EXTENDED.search(content_type) is None and (not charset or aliases.get(name, name) in CHARSETS)


def _decoded(body: bytes, encoding: str) -> bytes | None:
    """None: it is encoded in no way that we know."""
    if encoding in PLAIN:
        return body
    try:
        if encoding == "quoted-printable":
            return binascii.a2b_qp(body)
        return binascii.a2b_base64(body) if encoding == "base64" else None
    except binascii.Error:
        return None


def _encoded(html: bytes, header: bytes, encoding: str) -> tuple[bytes, bytes]:
    """Header and content, in the encoding that it had unless a line has become too long for it."""
    if encoding == "base64":
        return header, encoded_base64(html)
    if encoding in PLAIN and max(map(len, html.split(b"\n"))) > MAX_LINE:
        fields = remove_headers(header.removesuffix(b"\r\n"), [ENCODING.lower().encode()])
        header = fields + f"{ENCODING}: quoted-printable\r\n\r\n".encode()
    elif encoding in PLAIN:
        return header, html
    # Line by line: a CR or LF that was encoded for itself stays so, or it would go out bare.
    lines = [binascii.b2a_qp(line, istext=False).replace(b"\n", b"\r\n") for line in html.split(b"\r\n")]
    return header, b"\r\n".join(lines)


def mark_html(html: str, link: LinkFor | None, pixel: str) -> str:
    """HTML with each link replaced by what `link` gives for its URL, if anything, and the pixel at the body's end."""
    html, said = take_track(html)
    if is_off(said):
        return html
    parts: list[str] = []
    at = 0
    body_end = -1
    for node in markup.read(html):
        match node:
            case markup.Start() if link is not None and not is_not_tracked(node):
                for attribute in node.attributes:
                    url = _url(attribute.value) if (node.name, attribute.name) in LINKS else ""
                    if url and (tracked := link(url)):
                        parts += [html[at : attribute.start], f'{attribute.name}="{escape(tracked)}"']
                        at = attribute.end
            case markup.End(name="body", in_comment=False):
                parts.append(html[at : node.start])
                at = node.start
                body_end = len(parts)
    parts.append(html[at:])
    if pixel:
        parts.insert(body_end if body_end >= 0 else len(parts), PIXEL.format(escape(pixel)))
    return "".join(parts)


def _url(value: str) -> str:
    """The URL in an attribute that was read as `LATIN`; "": nobody knows which letters it has."""
    try:
        return unescape(value.encode(LATIN).decode().strip())
    except UnicodeError:
        return ""
