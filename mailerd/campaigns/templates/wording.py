"""The text part of a template that has none: what a reader of its HTML sees, in order, with tags and links kept.

A link with a line of its own is `The sale: https://…`, one among words `the sale (https://…)`; one whose words are its
address, and one of a picture without words, the address alone. A picture that is a link has its `alt` for words.
"""

import re
from html import unescape

from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig

from mailerd.campaigns.templates import markup
from mailerd.campaigns.templates.slots import Slots, find_link, is_not_tracked, slot_source
from mailerd.campaigns.templates.tags import Protected

TABLE = re.compile(r"<(/?)(?:table|thead|tbody|tfoot|tr|td|th|caption)(?=[\s>/])", re.IGNORECASE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
BLANK_LINES = re.compile(r"\n{3,}")
SPACES = re.compile(r"[ \t]{2,}|\t")
READ_AS = ParserConfig(css=CSS_PROFILES["strict"])  # strict: no indenting of what is nested
SCHEME = re.compile(r"(?:https?://|mailto:|tel:)", re.IGNORECASE)
BESIDE = " \t*•-"  # what may stand on the line of a link that is alone there


def text_of_html(skeleton: str, words: Protected, slots: Slots) -> str:
    """Made once per version. Tables become blocks one after the other, so that conditions stay around what they had."""
    skeleton = words.uncommented(skeleton)
    links: list[str] = []
    written: list[str] = []  # as the HTML has them
    parts: list[str] = []
    at = 0
    open_: list[int | None] = []
    for node in markup.read(skeleton):
        word = ""
        match node:
            case markup.Start(name="a", in_comment=False):
                href = node.get("href")
                open_.append(None if href is None else len(links))
                if href is not None:
                    word = f"{words.prefix}b{len(links)}x"
                    links.append(_target(href.value.strip(), node, words, slots))
                    written.append(unescape(href.value.strip()))
            case markup.Start(name="img", in_comment=False) if open_ and open_[-1] is not None:
                alt = node.get("alt")
                word = f" {alt.value.replace('<', '&lt;')} " if alt else ""
            case markup.End(name="a", in_comment=False) if open_ and (link := open_.pop()) is not None:
                word = f"{words.prefix}e{link}x"
        if word:
            begun = node.start if isinstance(node, markup.End) else node.end
            parts += [skeleton[at:begun], word]
            at = begun
    parts.append(skeleton[at:])
    html = COMMENT.sub(lambda match: _blocks(match[0], words), "".join(parts))
    text = _with_links(get_text(TABLE.sub(r"<\1div", html), READ_AS), words, written)
    text = re.sub(rf"{words.prefix}u([0-9]+)x", lambda match: links[int(match[1])], _tidy(text, words))
    return words.restored(text)


def _with_links(text: str, words: Protected, written: list[str]) -> str:
    """Where links begin and end, their words and a word for the address."""

    def said(match: re.Match[str]) -> str:
        label, address = " ".join(match[2].split()), f"{words.prefix}u{match[1]}x"
        target = words.restored(written[int(match[1])])
        if target.startswith("#"):  # a place in the HTML
            return label
        if not label or _bare(words.restored(label)) == _bare(target):
            return address
        before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        after = text[match.end() :].partition("\n")[0]
        if _without_blocks(before, words).strip(BESIDE) or _without_blocks(after, words).strip():
            return f"{label} ({address})"
        return f"{label} {address}" if label.endswith((":", "→", ">", "»")) else f"{label}: {address}"

    text = re.sub(rf"{words.prefix}b([0-9]+)x(.*?){words.prefix}e\1x", said, text, flags=re.DOTALL)
    return re.sub(rf"{words.prefix}(?:b([0-9]+)|e[0-9]+)x", lambda match: _alone(match[1], words), text)


def _without_blocks(text: str, words: Protected) -> str:
    return words.word.sub(lambda match: "" if words.tags[int(match[1])].kind == "block" else match[0], text)


def _alone(link: str | None, words: Protected) -> str:
    """For a link whose end is missing."""
    return "" if link is None else f"{words.prefix}u{link}x "


def _bare(address: str) -> str:
    return SCHEME.sub("", address.strip()).rstrip("/").lower()


def _blocks(comment: str, words: Protected) -> str:
    """What a comment for Outlook leaves: the conditions that MJML puts there hold for what is around it."""
    found = words.word.finditer(comment)
    return "".join(match[0] for match in found if words.tags[int(match[1])].kind == "block")


def _target(value: str, node: markup.Start, words: Protected, slots: Slots) -> str:
    link = None if is_not_tracked(node) else find_link(value, words, slots)
    return unescape(value) if link is None else slot_source(link, unescape(value))


def _tidy(text: str, words: Protected) -> str:
    """Lines of which conditions and loops are all there is take no line of the mail."""
    alone = re.compile(rf"[ \t]*((?:{words.prefix}[0-9]+x[ \t]*)+)\n?")
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        match = alone.fullmatch(line)
        only_blocks = match and all(tag.kind == "block" for tag in words.found_in(match[1]))
        lines.append(match[1].replace(" ", "") if match and only_blocks else SPACES.sub(" ", line.rstrip()) + "\n")
    return BLANK_LINES.sub("\n\n", "".join(lines)).strip() + "\n"
