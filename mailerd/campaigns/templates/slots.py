"""Links found once: their places in HTML and text get slots, and what contacts could smuggle into URLs and styles ends.

A slot of a fixed URL is the variable `_l3`; a URL with tags in it is rendered, checked, and tracked for each recipient.
`data-track="off"` leaves a link alone, and of the body all of a mail; there it may have tags in it.
"""

import re
from html import unescape

from mailerd.campaigns.templates import markup
from mailerd.campaigns.templates.filters import safe_url
from mailerd.campaigns.templates.tags import Protected, Tag
from mailerd.campaigns.templates.values import Link

LINKS = frozenset({("a", "href"), ("area", "href"), ("v:roundrect", "href"), ("v:rect", "href")})
URLS = frozenset({"href", "src", "background", "action", "poster", "cite", "longdesc", "xlink:href", "formaction"})
NOT_TRACKED = re.compile(r"\b(?:unsubscribe_url|preferences_url|view_url)\b")
TRACKED = re.compile(r"https?://", re.IGNORECASE)
OFF = "data-track"
BODIES = frozenset({"body", "mj-body"})
TEXT_URL = re.compile(r"https?://[^\s<>\"'`]+", re.IGNORECASE)
SENTENCE_END = ".,;:!?)]}*_"
PIXEL = "{{ _pixel }}"
MAX_LINKS = 500


class Slots:
    """The links of one template, numbered from 1; the same URL is the same link wherever it stands."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    @property
    def links(self) -> list[Link]:
        return list(self._links.values())

    def of(self, url: str, *, dynamic: bool) -> Link:
        return self._links.setdefault(url, Link(len(self._links) + 1, url, dynamic))


def take_track(html: str) -> tuple[str, str]:
    """The HTML or MJML without what its body says of tracking, and that."""
    for node in markup.read(html):
        if isinstance(node, markup.Start) and node.name in BODIES and (said := node.get(OFF)):
            return html[: said.start] + html[said.end :], said.value
    return html, ""


def says_track(value: str) -> bool:
    """Whether the value of `data-track` is one that means something."""
    return value.strip().lower() in ("off", "on", "")


def is_off(value: str) -> bool:
    return value.strip().lower() == "off"


def fill_html(html: str, words: Protected, slots: Slots) -> str:
    """The HTML with its tags back in their places, with slots for its links and the pixel."""
    html = words.uncommented(html)
    parts: list[str] = []
    at = 0
    body_end = -1
    for node in markup.read(html):
        match node:
            case markup.Start():
                for attribute in node.attributes:
                    replaced = _attribute(node, attribute, words, slots)
                    if replaced is not None:
                        parts += [words.restored(html[at : attribute.start]), replaced]
                        at = attribute.end
            case markup.Text(raw="style"):
                parts += [words.restored(html[at : node.start]), words.restored(html[node.start : node.end], _styled)]
                at = node.end
            case markup.End(name="body", in_comment=False):
                parts.append(words.restored(html[at : node.start]))
                at = node.start
                body_end = len(parts)
    parts.append(words.restored(html[at:]))
    parts.insert(body_end if body_end >= 0 else len(parts), PIXEL)
    return "".join(parts)


def _attribute(node: markup.Start, attribute: markup.Attribute, words: Protected, slots: Slots) -> str | None:
    """The attribute as it is to stand there; None: as it does."""
    if attribute.name == OFF:
        return ""
    tags = words.found_in(attribute.value)
    if attribute.name in URLS:
        value = link_value(attribute.value, words, slots) if _tracks(node, attribute) else None
        if value is None and tags:
            value = "{% filter _source %}" + words.restored(attribute.value) + "{% endfilter %}"
        return None if value is None else f'{attribute.name}="{value}"'
    if attribute.name == "style" and tags:
        return f'style="{words.restored(attribute.value, _styled)}"'
    return None


def _tracks(node: markup.Start, attribute: markup.Attribute) -> bool:
    return (node.name, attribute.name) in LINKS and not is_not_tracked(node)


def is_not_tracked(node: markup.Start) -> bool:
    """Whether the link says that it is to be left alone."""
    said = node.get(OFF)
    return said is not None and is_off(said.value)


def link_value(value: str, words: Protected, slots: Slots) -> str | None:
    """What stands in place of a URL of HTML that is tracked; None when it is not."""
    if (link := find_link(value.strip(), words, slots)) is None:
        return None
    return slot_source(link, words.restored(value.strip()))


def slot_source(link: Link, written: str) -> str:
    if not link.dynamic:
        return f"{{{{ _l{link.link} }}}}"
    return f"{{% filter _link({link.link}) %}}{written}{{% endfilter %}}"


def find_link(value: str, words: Protected, slots: Slots) -> Link | None:
    """The slot of a URL with words in it, in HTML; None when it is not to be tracked."""
    tags = words.found_in(value)
    if any(NOT_TRACKED.search(tag.source) for tag in tags):
        return None
    if not tags:
        url = safe_url(unescape(value))
        return slots.of(url, dynamic=False) if TRACKED.match(url) else None
    if not (TRACKED.match(value) or words.word.match(value)):
        return None  # mailto:{{ … }}, #{{ … }}
    return slots.of(words.restored(unescape(value)), dynamic=True)


def _styled(tag: Tag) -> str:
    return tag.filtered("_css") if tag.kind == "variable" else tag.source


def fill_text(text: str, words: Protected, slots: Slots) -> str:
    """Plain text with its tags back, and slots for the URLs that stand in it."""

    def replaced(match: re.Match[str]) -> str:
        url = match[0]
        for found in words.word.finditer(url):
            if words.tags[int(found[1])].kind == "block":
                url = url[: found.start()]
                break
        url = url.rstrip(SENTENCE_END)
        rest = match[0][len(url) :]
        tags = words.found_in(url)
        if len(url) <= len("https://") or any(NOT_TRACKED.search(tag.source) for tag in tags):
            return match[0]
        written = words.restored(url)
        link = slots.of(written if tags else safe_url(url), dynamic=bool(tags))
        return slot_source(link, written) + rest

    return words.restored(TEXT_URL.sub(replaced, text))
