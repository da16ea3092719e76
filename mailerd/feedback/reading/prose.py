"""Bounces without fields for machines: whom they name, what the remote host replied, what is said beside.

Mail systems word this in hundreds of ways and dozens of languages, so it is the form that is read: an address alone
on its line, in `RCPT TO:`, or beside an SMTP reply is a recipient; what follows it, up to the next one, is about it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mailerd.feedback.reading.header import Header
from mailerd.feedback.reading.marks import (
    ALONE,
    ALONE_AFTER,
    COPY_FOLLOWS,
    FAILED_AFTER,
    FOOTER,
    HELPERS,
    LABELLED,
    NAMED,
    NOT_MEANT,
    RCPT,
    RULE,
    SUMMARY_LINE,
    TO_LINE,
)
from mailerd.feedback.reading.replies import (
    addresses,
    clean_address,
    enhanced_code,
    one_reply,
    refusal_code,
    reply_at,
    reply_code,
)
from mailerd.feedback.reading.returned import find_copy
from mailerd.feedback.reading.text import one_line
from mailerd.feedback.reading.values import LONGEST_WORDS, Reported

MAX_LINES = 1500
MAX_RECIPIENTS = 100
MAX_SECTION = 100  # lines about one recipient
MAX_SHARED = 20  # lines about several, behind the last of them and before the first
LONGEST_ALONE = 60  # characters of a line that only names a recipient
SURE = 4  # points from which an address is a recipient whatever else there is
LIKELY = 1  # points from which it may be the one when none is sure
_ONLY_CODES = re.compile(r"([45]\d\d)[ \t-]+[45]\.\d{1,3}\.\d{1,3}[ \t.\"')]*(?=\n|\Z)")


@dataclass(frozen=True, slots=True)
class Found:
    """The recipients that a text names; `sure`: its form says so, they are no guess."""

    recipients: tuple[Reported, ...]
    sure: bool


@dataclass(frozen=True, slots=True)
class Named:
    """An address in a text: how sure it is a recipient, and the lines that are about it."""

    address: str
    points: int
    line: int


def human_lines(text: str) -> tuple[list[str], int | None]:
    """The lines that a system wrote, and where in the text's lines a copy of our message begins, if one does."""
    lines = text.split("\n", MAX_LINES)[:MAX_LINES]
    for number, line in enumerate(lines):
        if number and len(line) < 200 and COPY_FOLLOWS.match(line):
            copy = find_copy(lines, number)
            return lines[:number], copy
    copy = find_copy(lines)
    if copy is None:
        return lines, None
    if lines[copy][:1].isspace() and (end := _end_of_summary(lines, copy)):
        return lines[:copy] + lines[end:], copy
    return lines[:copy], copy


def _end_of_summary(lines: list[str], begin: int) -> int:
    """Where an indented block of fields ends that only sums up our message; 0 when it is a copy of it."""
    for number in range(begin, min(begin + 12, len(lines))):
        if lines[number].lstrip().lower().startswith("received:"):
            return 0
        if not lines[number].strip():
            return number
    return 0


def read_prose(lines: list[str], listed: Iterable[str], never: frozenset[str], header: Header, action: str) -> Found:
    """The recipients that a text names.

    `listed`: those that a header names (X-Failed-Recipients), which then are all; `never`: addresses that cannot be
    meant, as the sender's; `header`: that of our message, whose To settles doubts.
    """
    known = [address for text in listed for _, _, found in addresses(text) if (address := clean_address(found))]
    found = _named(lines, never, {clean_address(address) for _, _, address in addresses(header.text("to"))})
    chosen = _listed(known, found) if known else _chosen(found)
    recipients = tuple(reported(name.address, text, action) for name, text in _sections(lines, chosen[:MAX_RECIPIENTS]))
    return Found(recipients, sure=any(name.points >= SURE for name in chosen))


def _footer(lines: list[str], start: int) -> int:
    """Where a disclaimer begins, as companies hang on to whatever leaves them; else where the lines end.

    Exchange draws such a line itself, above its reply.
    """
    for number in range(start + 1, len(lines)):
        if FOOTER.match(lines[number]):
            rest = "\n".join(lines[number : number + MAX_SECTION])
            return len(lines) if reply_at(rest) >= 0 else number
    return len(lines)


def reported(address: str, lines: list[str], action: str) -> Reported:
    """What the lines about one recipient say."""
    said = (
        line.strip() for line in lines[:MAX_SECTION] if not SUMMARY_LINE.match(line)
    )  # our own subject says nothing
    text = "\n".join(said)[: 4 * LONGEST_WORDS]
    diagnostic = reply_in(text)
    return Reported(
        address=address,
        action=action,
        status=enhanced_code(diagnostic) or refusal_code(text),
        code=reply_code(diagnostic) or reply_code(text),
        diagnostic=diagnostic,
        words=one_line(" ".join(text.split()), LONGEST_WORDS),
    )


def reply_in(text: str) -> str:
    """The reply of the remote host in a text: from its code to the end of its paragraph; "" without one."""
    at = _telling_reply(text)
    if at < 0:
        return ""
    before = text[max(0, at - 1) : at]
    reply = text[at : at + 3000].split("\n\n", 1)[0]
    close = {"'": "'", '"': '"', "«": "»", "“": "”"}.get(before)
    if close and (end := reply.rfind(close)) > 0:
        reply = reply[:end]
    kept = []
    for number, line in enumerate(reply.split("\n")):
        if number and (
            RULE.match(line) or line.startswith((">>>", "<<<", "---", "===")) or _other_reply(line, reply[:3])
        ):
            break
        kept.append(line)
    found = one_reply(" ".join(kept))
    return found[:-1] if found.endswith(")") and found.count(")") > found.count("(") else found


def _telling_reply(text: str) -> int:
    """Where the reply begins: the first one, or where that is only codes the first of the same with words to it."""
    first = at = reply_at(text)
    code = _ONLY_CODES.match(text, at) if at >= 0 else None
    while code and (after := reply_at(text[at + 3 :])) >= 0:
        at += 3 + after
        if text.startswith(code[1], at) and not _ONLY_CODES.match(text, at):
            return at
    return first


def _other_reply(line: str, code: str) -> bool:
    return line[:3].isdigit() and line[:3] != code and line[3:4] in (" ", "-")


def _named(lines: list[str], never: frozenset[str], to: set[str]) -> list[Named]:
    found = []
    for number, line in enumerate(lines):
        if "@" not in line:
            continue
        for start, end, text in addresses(line[:2000]):
            address = clean_address(text)
            if address and address.lower() not in never:
                points = _points(lines, number, start, end) + (3 if address in to else 0)
                found.append(Named(address, points, number))
                if len(found) == 2 * MAX_RECIPIENTS:
                    return found
    return found


def _points(lines: list[str], number: int, start: int, end: int) -> int:
    """How much an address looks like a recipient where it stands."""
    line = lines[number]
    before, after = line[max(0, start - 80) : start], line[end : end + 80]
    if not before.strip(" \t<>*-•") and number and len(lines[number - 1].strip()) < 200:
        said_before = lines[number - 1][-80:].rstrip()  # the sentence goes on from the line before
    else:
        said_before = before
    if RCPT.search(before):
        return 6
    if _is_summary(lines, number):
        return 0
    points = 0
    if NOT_MEANT.search(before) or (said_before != before and NOT_MEANT.search(said_before)):
        points -= 4
    if HELPERS.match(line[start:end]):
        points -= 3
    if ALONE_AFTER.match(after):
        points += 4 if ALONE.match(before) else 2 if LABELLED.match(before) else 0
    elif ALONE.match(before):
        points += 1
    if NAMED.search(before) or (said_before is not before and NAMED.search(said_before)):
        points += 2
    if FAILED_AFTER.match(after):
        points += 2
    nearby = " ".join(lines[number : number + 4])[:800]
    if reply_at(nearby) >= 0 or enhanced_code(nearby):
        points += 2
    return points


def _is_summary(lines: list[str], number: int) -> bool:
    """Whether a line `To: …` stands with `Subject: …`: what our message was, not whom it missed."""
    return TO_LINE.match(lines[number]) is not None and any(
        SUMMARY_LINE.match(line) for line in lines[max(0, number - 4) : number + 5]
    )


def _chosen(found: list[Named]) -> list[Named]:
    """The recipients among the addresses named: all that are sure, or else the likeliest one."""
    best = _best(found)
    sure = [name for name in best.values() if name.points >= SURE]
    if sure:
        return sure
    likely = max(best.values(), key=lambda name: name.points, default=None)
    least = LIKELY if len(best) > 1 else 0
    return [likely] if likely and likely.points >= least else []


def _listed(known: list[str], found: list[Named]) -> list[Named]:
    """Recipients known from elsewhere, where the text names them."""
    best = _best(found)
    return [best.get(address.lower()) or Named(address, SURE, 0) for address in dict.fromkeys(known)]


def _best(found: list[Named]) -> dict[str, Named]:
    """The place of each address where it looks most like a recipient."""
    best: dict[str, Named] = {}
    for name in found:
        other = best.get(name.address.lower())
        if other is None or name.points > other.points:
            best[name.address.lower()] = name
    return best


def _sections(lines: list[str], chosen: list[Named]) -> Iterator[tuple[Named, list[str]]]:
    """Each recipient with the lines that are about it: up to the next one's; what all share, for who has no more."""
    if len(chosen) < 2:
        for name in chosen:
            begin = 0 if sum(map(len, lines)) < LONGEST_WORDS else max(0, name.line - 5)
            yield name, lines[begin : _footer(lines, name.line)]
        return
    places = sorted({name.line for name in chosen})
    ends = dict(zip(places, [*places[1:], len(lines)], strict=True))
    shared = [*lines[places[-1] + 1 :][:MAX_SHARED], *lines[: places[0]][-MAX_SHARED:]]
    for name in chosen:
        section = lines[name.line : min(ends[name.line], name.line + MAX_SECTION)] or [""]
        alone = not any(line.strip() for line in section[1:]) and len(section[0]) <= LONGEST_ALONE
        yield name, section + shared if alone else section
