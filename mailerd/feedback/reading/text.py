"""Text out of bytes: charsets that lie, transfer encodings that break off, HTML, and one clean line."""

import binascii
import codecs
import re
from collections.abc import Iterator
from html import unescape

MAX_HTML = 65_536  # characters

_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_UNPRINTABLE = re.compile(
    r"[\x00-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb\ud800-\udfff]+"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_BREAK = re.compile(
    r"<(?:br|/?p|/?div|/?tr|/?h[1-6]|/?li|/?table|/?blockquote|/?pre|hr)\b[^<>]{0,4000}>", re.IGNORECASE
)
_PREFORMATTED = re.compile(r"(<pre\b[^<>]{0,4000}>(?:[^<]|<(?!/?pre\b))*)", re.IGNORECASE)
_TAG = re.compile(r"<(?![\w.+-]{1,64}@)[/!?a-zA-Z][^<>]{0,4000}>")  # addresses in angle brackets are text
_SPACES = re.compile(r"[ \t\r\f\v]+")
_WRONG_NAMES = {
    "": "utf-8", "us-ascii": "utf-8", "ascii": "utf-8", "unicode-1-1-utf-8": "utf-8", "utf8": "utf-8",
    "unicode-1-1-utf-7": "utf-7",
    "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "ks_c_5601-1987": "cp949", "euc-kr": "cp949",
    "iso-8859-1": "cp1252", "iso-8859-8-i": "iso-8859-8", "shift_jis": "cp932", "x-sjis": "cp932",
    "iso-2022-jp": "iso2022_jp_ext", "x-unknown": "utf-8", "unknown-8bit": "utf-8",
}  # fmt: skip
_NOT_FOR_MAIL = frozenset(  # slow, or no charsets
    [
        "idna",
        "punycode",
        "unicode_escape",
        "raw_unicode_escape",
        "mbcs",
        "oem",
        "undefined",
        "hex",
        "base64",
        "bz2",
        "quopri",
        "rot_13",
        "uu",
        "zlib",
    ]
)


def decode(data: bytes, charset: str) -> str:
    """`data` as text, whatever its charset is called and whether it is the right one; never fails."""
    name = _codec(charset)
    try:
        return data.decode(name)
    except (UnicodeError, ValueError, LookupError):
        pass
    if name != "utf-8":
        try:
            return data.decode("utf-8")
        except UnicodeError:
            return data.decode(name, "replace")
    return _utf8_or_western(data)


def _utf8_or_western(data: bytes) -> str:
    """Mostly UTF-8 with broken places, as where it was cut, or else Windows' western charset."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    sound = len(text) - broken - len(text.encode("ascii", "ignore"))
    return text if sound >= broken else data.decode("cp1252", "replace")


def _codec(charset: str) -> str:
    name = charset.strip().strip("'\"").lower()
    name = _WRONG_NAMES.get(name, name)
    if not name.isascii() or len(name) > 40 or "\0" in name:
        return "utf-8"
    try:
        found = codecs.lookup(name).name.replace("-", "_")
    except (LookupError, ValueError):
        return "utf-8"
    return "utf-8" if found in _NOT_FOR_MAIL else found


def transfer_decode(data: bytes, encoding: str) -> bytes:
    """`data` without its transfer encoding (RFC 2045 section 6), as far as it can be decoded."""
    encoding = encoding.strip().lower()
    if encoding == "quoted-printable":
        return binascii.a2b_qp(data)
    if encoding == "base64":
        data = _NOT_BASE64.sub(b"", data)
        data = data[:-1] if len(data) % 4 == 1 else data  # where it was cut: six bits are no byte
        return binascii.a2b_base64(data + b"=" * (-len(data) % 4))
    return data


def one_line(text: str, longest: int) -> str:
    """`text` on one printable line of at most `longest` characters: no control, no half of a surrogate pair."""
    return _UNPRINTABLE.sub(" ", text[: 4 * longest + 1000]).strip()[:longest].rstrip()


def lines_of(text: str) -> str:
    """`text` with its line ends as \\n and without other controls."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def html_to_text(html: str) -> str:
    """The words of HTML in lines; bounded, and no parser to be led astray."""
    html = html[:MAX_HTML]
    for start, end in (("<!--", "-->"), ("<style", "</style"), ("<script", "</script"), ("<head", "</head")):
        html = _without(html, start, end)
    html = "".join(_line_ends(html))
    text = unescape(_TAG.sub(" ", _BREAK.sub("\n", _SPACES.sub(" ", html))))
    return "\n".join(line.strip() for line in text.split("\n"))


def _line_ends(html: str) -> Iterator[str]:
    """`html` in pieces, its line ends as spaces save where they are meant to be seen, in <pre>."""
    for number, piece in enumerate(_PREFORMATTED.split(html)):
        yield piece if number % 2 else piece.replace("\n", " ")


def _without(html: str, start: str, end: str) -> str:
    """`html` less what stands between two marks; an open one ends nowhere and takes nothing with it."""
    lower = html.lower()
    if len(lower) != len(html):  # some letters grow in lower case
        return html
    kept, at = [], 0
    while (begin := lower.find(start, at)) >= 0 and (stop := lower.find(end, begin)) >= 0:
        kept.append(html[at:begin])
        at = stop + len(end)
    return "".join(kept) + html[at:]
