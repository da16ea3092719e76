"""Reading HTML as far as templates need it: tags, attributes, comments and raw text, each with its place.

It changes nothing and gives up on nothing: what is cut off in the middle comes as `Broken`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

RAW = frozenset({"script", "style", "title", "textarea", "xmp", "noframes", "noembed", "iframe"})
NEXT = re.compile(r"<(?:!--|(?=[!?])|(/?)([A-Za-z][^\s/>]*))")
ATTRIBUTE = re.compile(
    r"""[\s/]*([^\s"'<>/=]+)(?:\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'<>]+)))?"""
)
MAX_ATTRIBUTES = 200  # of an element
CONDITION = re.compile(r"\[if [^\]]{1,100}\]>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str  # in lower case
    value: str  # as it stands there, entities and all
    start: int  # of the name
    value_start: int
    end: int  # behind the closing quote


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of the source, `start` to `end`; what it is tells its class."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Text(Node):
    raw: str = ""  # the element whose raw text it is
    in_comment: bool = False  # for Outlook only


@dataclass(frozen=True, slots=True)
class Start(Node):
    name: str  # in lower case
    attributes: tuple[Attribute, ...]
    closed: bool  # by itself: <br/>
    in_comment: bool = False  # for Outlook only

    def get(self, name: str) -> Attribute | None:
        return next((each for each in self.attributes if each.name == name), None)


@dataclass(frozen=True, slots=True)
class End(Node):
    name: str
    in_comment: bool = False


@dataclass(frozen=True, slots=True)
class Comment(Node):
    """A comment, or a declaration. Of a conditional one only the brackets: what it holds comes as nodes."""


@dataclass(frozen=True, slots=True)
class Broken(Node):
    what: str
    code: str = "malformed"


def read(source: str) -> Iterator[Node]:
    """All of a source, in order, without gaps."""
    return _read(source, 0, len(source), in_comment=False)


def _read(source: str, at: int, stop: int, *, in_comment: bool) -> Iterator[Node]:
    while at < stop:
        found = NEXT.search(source, at, stop)
        if found is None:
            yield Text(at, stop, in_comment=in_comment)
            return
        if found.start() > at:
            yield Text(at, found.start(), in_comment=in_comment)
        at = found.start()
        if found[0] == "<!--":
            end = source.find("-->", at + 4, stop)
            if end < 0:
                yield Broken(at, stop, "A comment has no end.")
                return
            condition = CONDITION.match(source, at + 4, end)
            if condition:
                inner_end = source.rfind("<![", at, end)
                inner_end = end if inner_end < condition.end() else inner_end
                yield Comment(at, condition.end())
                yield from _read(source, condition.end(), inner_end, in_comment=True)
                yield Comment(inner_end, end + 3)
            else:
                yield Comment(at, end + 3)
            at = end + 3
        elif found[2] is None:
            end = source.find(">", at, stop)
            if end < 0:
                yield Broken(at, stop, "A declaration has no end.")
                return
            yield Comment(at, end + 1)
            at = end + 1
        else:
            tag = _tag(source, found, stop, in_comment=in_comment)
            yield tag
            at = tag.end
            if isinstance(tag, Start) and tag.name in RAW and not tag.closed:
                closing = re.compile(rf"</{re.escape(tag.name)}[\s/>]", re.IGNORECASE).search(source, at, stop)
                behind = closing.start() if closing else stop
                if closing is None:
                    yield Broken(tag.start, tag.start, f"<{tag.name}> has no end.")
                if behind > at:
                    yield Text(at, behind, tag.name, in_comment)
                at = behind


def _tag(source: str, found: re.Match[str], stop: int, *, in_comment: bool) -> Start | End | Broken:
    start, at = found.start(), found.end()
    name = found[2].lower()
    attributes: list[Attribute] = []
    while match := ATTRIBUTE.match(source, at, stop):
        if len(attributes) == MAX_ATTRIBUTES:
            end = source.find(">", at, stop)
            what = f"<{name}> has more than {MAX_ATTRIBUTES} attributes."
            return Broken(start, stop if end < 0 else end + 1, what, "too_complex")
        group = match.lastgroup
        value = match[group] if group else ""
        value_start = match.start(group) if group else match.end()
        attributes.append(Attribute(match[1].lower(), value, match.start(1), value_start, match.end()))
        at = match.end()
    while at < stop and source[at] not in "<>\"'":
        at += 1
    if at >= stop or source[at] != ">":
        wrong = "has a quotation mark too many or too few" if at < stop and source[at] in "\"'" else "has no end"
        end = source.find(">", at, stop)
        return Broken(start, stop if end < 0 else end + 1, f"The tag <{found[1]}{name}> {wrong}.")
    if found[1]:
        return End(start, at + 1, name, in_comment)
    return Start(start, at + 1, name, tuple(attributes), source[at - 1] == "/", in_comment)
