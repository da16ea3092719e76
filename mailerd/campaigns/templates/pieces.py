"""What a template says to everybody, made ready for mail once: bytes with CRLF, and places for the links of each mail.

The code of a template yields the very same text for what is fixed in it each time, so it is known by its identity. Of
each such piece there is an outline: without the lines of which nothing is left to be found out when it is put together
with others. Whether a line is too long, and the like, is looked for in outlines, which are a fifth of a mail or less.
"""

import re
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import CodeType
from typing import NamedTuple

from jinja2 import nodes

from mailerd.wire.dkim import is_canonical
from mailerd.wire.message import MAX_LINE

BARE = re.compile(r"\r\n?")
LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_OPEN, _CLOSE = f"\0{secrets.token_hex(8)}:", "\0"  # nobody can write it
SLOT = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
SLOT_BYTES = re.compile(f"{_OPEN}[0-9]+{_CLOSE}".encode())
AT_ONCE = 32  # parts after which their size is looked at
PIXEL = 0  # its slot; those of links count from 1
VARIABLE = re.compile(r"_l([0-9]+)|_pixel")


class Body(NamedTuple):
    """Content in UTF-8 with CRLF, in parts that follow one another, and its outline.

    The longest lines of both are as long. Both are ASCII or neither, and in DKIM's canonical form or neither.
    """

    parts: Sequence[bytes]
    outline: bytes


class Piece:
    """One text that is fixed but for its slots."""

    __slots__ = ("_text", "last", "places", "slots")

    def __init__(self, text: str) -> None:
        self.slots = tuple(int(slot) for slot in SLOT.findall(text))
        self._text = text
        full = text.encode("utf-8", "replace").replace(b"\n", b"\r\n")
        *before, last = zip(_between_slots(full), _between_slots(_outline(full)), strict=True)
        # What stands before each slot, in the content and in the outline, and behind the last.
        self.places = [(*each, slot) for each, slot in zip(before, self.slots, strict=True)]
        self.last = last

    def text(self, values: Mapping[int, str]) -> str:
        return SLOT.sub(lambda match: values[int(match[1])], self._text) if self.slots else self._text


def _outline(full: bytes) -> bytes:
    """The first and the last line, those with slots, those too long, the first that is not ASCII or not canonical."""
    lines = LINE.findall(full)
    kept = []
    ascii_ = canonical = True
    for n, line in enumerate(lines):
        odd = len(line) > MAX_LINE + 1 or (ascii_ and not line.isascii()) or (canonical and not is_canonical(line))
        if odd or n in (0, len(lines) - 1) or _OPEN.encode() in line:
            kept.append(line)
            ascii_ = ascii_ and line.isascii()
            canonical = canonical and is_canonical(line)
    return b"".join(kept)


def _between_slots(content: bytes) -> list[bytes]:
    return SLOT_BYTES.split(content)


def slot_of(variable: str) -> int | None:
    """Which slot a variable of the compiler's stands for, if any."""
    name = VARIABLE.fullmatch(variable)
    return int(name[1] or PIXEL) if name else None


def slotted(tree: nodes.Template, slots: Container[int | None]) -> nodes.Template:
    """The template with places for these slots instead of their variables, wherever their text is put out at once."""
    _put_places(tree.body, slots)
    return tree


def _put_places(body: Iterable[nodes.Node], slots: Container[int | None]) -> None:
    for node in body:
        if isinstance(node, nodes.Output):
            node.nodes = [_place(each, slots) or each for each in node.nodes]
        elif not isinstance(node, nodes.AssignBlock | nodes.FilterBlock):  # what these hold is a value first
            _put_places([each for each in node.iter_child_nodes() if isinstance(each, nodes.Stmt)], slots)


def _place(node: nodes.Expr, slots: Container[int | None]) -> nodes.TemplateData | None:
    slot = slot_of(node.name) if isinstance(node, nodes.Name) else None
    return nodes.TemplateData(f"{_OPEN}{slot}{_CLOSE}", lineno=node.lineno) if slot in slots else None


class Pieces:
    """All that is fixed in the code of a template."""

    def __init__(self, code: CodeType) -> None:
        self._pieces = {id(text): Piece(text) for text in _texts(code) if "\r" not in text and not _has_nul(text)}
        self._code = code  # keeps the texts

    def gather(self, parts: Iterable[str], values: Mapping[int, str], most: int) -> "Gathered | None":
        """What was rendered, with what its slots hold; None: it has more characters than that."""
        known = self._pieces
        texts: list[str] = []
        size = 0
        parts = iter(parts)
        while some := list(islice(parts, AT_ONCE)):
            texts += some
            size += sum(map(len, some))
            if size > most:
                return None
        pieces = list(map(known.get, map(id, texts)))
        size += sum([len(values[slot]) for piece in pieces if piece is not None for slot in piece.slots])
        return None if size > most else Gathered(texts, pieces, values)


class Gathered(NamedTuple):
    """One part of one mail: its texts, and the pieces that those are which are fixed.

    A NUL that one of them has is left out of it: some servers do so themselves, and would find a lone dot behind it.
    """

    texts: Sequence[str]
    pieces: Sequence[Piece | None]
    values: Mapping[int, str]

    def text(self) -> str:
        values = self.values
        parts = zip(self.texts, self.pieces, strict=True)
        return "".join([text if piece is None else piece.text(values) for text, piece in parts]).replace("\0", "")

    def body(self) -> Body:
        """The same as content of a mail."""
        filled = {slot: value.encode("utf-8", "replace") for slot, value in self.values.items()}
        contents: list[bytes] = []
        outlines: list[bytes] = []
        for text, piece in zip(self.texts, self.pieces, strict=True):
            if piece is not None:
                for content, outline, slot in piece.places:
                    value = filled[slot]
                    contents += (content, value)
                    outlines += (outline, value)
                content, outline = piece.last
            elif "\r" in text or "\0" in text:  # what lines it makes depends on what is around it
                return body_of(self.text())
            else:
                content = text.encode("utf-8", "replace")
                if b"\n" in content:
                    content = content.replace(b"\n", b"\r\n")
                outline = content
            contents.append(content)
            outlines.append(outline)
        if not contents or not b"".join(contents[-2:]).endswith(b"\r\n"):
            contents.append(b"\r\n")
            outlines.append(b"\r\n")
        return Body(contents, b"".join(outlines))


def body_of(text: str) -> Body:
    """Any text as content; CR, LF and CRLF end its lines."""
    content = BARE.sub("\n", text).encode("utf-8", "replace").replace(b"\n", b"\r\n")
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    return Body([content], content)


def _has_nul(text: str) -> bool:
    return "\0" in text and "\0" in SLOT.sub("", text)


def _texts(code: CodeType) -> Iterator[str]:
    for each in code.co_consts:
        if isinstance(each, str):
            yield each
        elif isinstance(each, CodeType):
            yield from _texts(each)
