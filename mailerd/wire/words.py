"""Encoded words (RFC 2047), read for people."""

import re
from email.errors import HeaderParseError
from email.header import decode_header

CUT = re.compile(r"\s*=\?[^\s?]+\?[BbQq]\?[^\s?]*\??$")


def decode_words(text: str) -> str:
    """A header value with its encoded words decoded; as it is when they cannot be, or name a charset unknown here.

    Instead of a last word that was cut stands `…`.
    """
    if "=?" not in text:
        return text
    try:
        parts = [_decoded(part, charset) for part, charset in decode_header(CUT.sub("…", text))]
    except (HeaderParseError, LookupError, ValueError):
        return text
    return "".join(parts).encode("utf-8", "replace").decode()  # a charset may make half of a surrogate pair


def _decoded(part: bytes | str, charset: str | None) -> str:
    if isinstance(part, str):
        return part
    return part.decode(charset or "raw-unicode-escape", "replace")  # the latter is what decode_header makes of the rest
