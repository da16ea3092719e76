"""Jinja's tags under names that HTML, MJML and CSS tools leave alone, so that they survive those."""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mailerd.campaigns.templates.sandbox import Language

Kind = Literal["variable", "block"]


@dataclass(frozen=True, slots=True)
class Tag:
    """One `{{ … }}`, `{% … %}` or whole `{% raw %}` as it was written."""

    kind: Kind
    source: str
    inside: str  # the expression of a variable

    def filtered(self, name: str) -> str:
        """The tag with one more filter behind its expression."""
        at = self.source.index(self.inside)
        return f"{self.source[:at]}({self.inside}) | {name} {self.source[at + len(self.inside) :]}"


@dataclass(slots=True)
class Protected:
    """A source with a word in the place of each tag: `text`; the words are ASCII letters and digits in lower case."""

    text: str
    prefix: str
    tags: list[Tag]
    _starts: list[int] = field(default_factory=list)  # where the pieces of `text` begin
    _lines: list[int] = field(default_factory=list)

    @property
    def word(self) -> re.Pattern[str]:
        return re.compile(rf"{self.prefix}([0-9]+)x")

    def found_in(self, text: str) -> list[Tag]:
        """The tags whose words stand in a text."""
        return [self.tags[int(match[1])] for match in self.word.finditer(text)] if self.prefix in text else []

    def restored(self, text: str, how: Callable[[Tag], str] = lambda tag: tag.source) -> str:
        """The text with its tags."""
        return self.word.sub(lambda match: how(self.tags[int(match[1])]), text) if self.prefix in text else text

    def commented(self, text: str) -> str:
        """HTML text with its words as comments: parsers leave those where they are, even in tables."""
        return self.word.sub(r"<!--\g<0>-->", text)

    def uncommented(self, html: str) -> str:
        return re.sub(rf"<!--({self.prefix}[0-9]+x)-->", r"\1", html)

    def line(self, offset: int) -> int:
        """The line of the source, from 1, for a place in `text`."""
        piece = bisect_right(self._starts, offset) - 1
        if piece < 0:
            return 1
        return self._lines[piece] + self.text.count("\n", self._starts[piece], offset)


def protect(language: Language, source: str) -> Protected:
    """Raises jinja2's TemplateSyntaxError when the tags themselves are broken. Comments go."""
    lowered, number = source.lower(), 0
    while f"jt{number}q" in lowered:
        number += 1
    found = Protected("", f"jt{number}q", [])
    parts: list[str] = []
    size = 0

    def add(text: str, line: int) -> None:
        nonlocal size
        if text:
            found._starts.append(size)
            found._lines.append(line)
            parts.append(text)
            size += len(text)

    held: list[str] = []  # of the tag under way
    begun, ends, started = "", "", 0
    for line, kind, value in language.lex(source):
        if not begun:
            if kind == "data":
                add(value, line)
            elif kind.endswith("_begin"):
                begun, ends, started, held = kind, kind.replace("_begin", "_end"), line, [value]
            continue
        held.append(value)
        if kind != ends:
            continue
        if begun != "comment_begin":
            add(f"{found.prefix}{len(found.tags)}x", started)
            variable = begun == "variable_begin"
            inside = "".join(held[1:-1]).strip() if variable else ""
            # The lexer keeps white space around {%- for itself and gives the rest as it was written.
            found.tags.append(Tag("variable" if variable else "block", "".join(held), inside))
        begun = ""
    found.text = "".join(parts)
    return found
