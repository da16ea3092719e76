"""What is wrong with HTML or MJML before it is compiled, with lines: what breaks, what harms, what no reader shows.

Scripts, frames, plug-ins, event handlers and `javascript:` are refused. Forms, video and linked style sheets are
warnings: most readers leave them out. An element that opens in one branch of a condition must close in it, since CSS is
inlined, and the HTML tidied, once for all recipients.
"""

import re
from collections import Counter
from html import unescape

from mailerd.campaigns.templates import markup
from mailerd.campaigns.templates.filters import UNSAFE_URL, safe_url
from mailerd.campaigns.templates.slots import OFF, URLS, says_track
from mailerd.campaigns.templates.tags import Protected
from mailerd.campaigns.templates.values import Severity, TemplateProblem

REFUSED = frozenset({"script", "iframe", "frame", "frameset", "object", "embed", "applet", "base", "portal", "xmp"})
NOT_SHOWN = frozenset({"form", "input", "button", "select", "textarea", "video", "audio", "canvas", "svg", "math"})
VOID = frozenset(
    {
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
        "v:fill",
        "v:stroke",
        "v:imagedata",
    }
)
CLOSE_BY_THEMSELVES = frozenset(
    {
        "p",
        "li",
        "dt",
        "dd",
        "tr",
        "td",
        "th",
        "thead",
        "tbody",
        "tfoot",
        "colgroup",
        "option",
        "optgroup",
        "html",
        "head",
        "body",
        "rt",
        "rp",
    }
)
SIBLINGS = CLOSE_BY_THEMSELVES - {"html", "head", "body"}
MJML_STRUCTURE = frozenset(
    {
        "mjml",
        "mj-head",
        "mj-body",
        "mj-attributes",
        "mj-section",
        "mj-column",
        "mj-group",
        "mj-wrapper",
        "mj-hero",
        "mj-navbar",
        "mj-social",
        "mj-accordion",
        "mj-accordion-element",
        "mj-carousel",
        "mj-html-attributes",
        "mj-selector",
    }
)
MJML_CONTENT = frozenset(
    {
        "mj-all",
        "mj-class",
        "mj-breakpoint",
        "mj-font",
        "mj-html-attribute",
        "mj-preview",
        "mj-style",
        "mj-title",
        "mj-accordion-text",
        "mj-accordion-title",
        "mj-button",
        "mj-carousel-image",
        "mj-divider",
        "mj-image",
        "mj-navbar-link",
        "mj-raw",
        "mj-social-element",
        "mj-spacer",
        "mj-table",
        "mj-text",
        "mj-include",
    }
)
JSON_LD = "application/ld+json"
OPENING = re.compile(r"\{%[-+]?\s*(if|for|filter|with|set)\b")
BRANCH = re.compile(r"\{%[-+]?\s*(elif|else)\b")
CLOSING = re.compile(r"\{%[-+]?\s*end(if|for|filter|with|set)\b")
REFRESH = re.compile(r"refresh", re.IGNORECASE)
BODY = re.compile(r"<body[\s>]", re.IGNORECASE)
ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:|#|//", re.IGNORECASE)
MAX_PROBLEMS = 50  # of each severity
MAX_DEPTH = 200  # elements in one another
MAX_NODES = 120_000  # tags, and texts between them


class Inspection:
    """Looks at all of a source; `run` gives it back with words in text turned into comments, which parsers keep."""

    def __init__(self, words: Protected, pointer: str, *, mjml: bool) -> None:
        self._words = words
        self._pointer = pointer
        self._mjml = mjml
        self.problems: list[TemplateProblem] = []
        self._said: Counter[Severity] = Counter()
        self._open: list[tuple[str, int]] = []  # elements: name, place
        self._blocks: list[tuple[int, int]] = []  # conditions and loops: how many elements were open, place
        self._before_body = not mjml and BODY.search(words.text) is not None

    def run(self) -> str:
        parts: list[str] = []
        table: int | None = None  # where the parts of a table begin that has had no row yet
        owed = ""  # to MJML, which wants all elements closed
        for n, node in enumerate(markup.read(self._words.text)):
            if n == MAX_NODES or len(self._open) == MAX_DEPTH:  # readers have trouble then, and libraries
                self._add("too_complex", "The HTML has too many tags, or too many are open.", node.start)
                break
            source = self._words.text[node.start : node.end]
            match node:
                case markup.Text():
                    source = self._text(node, source)
                case markup.Start():
                    self._start(node)
                    if node.name == "tr" and table is not None and not node.in_comment:
                        parts.insert(table, "<tbody>")  # else a parser puts it behind the condition or loop
                        owed = "</tbody>" if self._mjml else ""
                    if not node.in_comment:
                        table = len(parts) + 1 if node.name in ("table", "mj-table") else None
                case markup.End():
                    self._end(node)
                    table = None
                    if owed and node.name in ("table", "mj-table"):
                        parts.append(owed)
                        owed = ""
                case markup.Broken():
                    self._add(node.code, node.what, node.start)
                case markup.Comment() if any(tag.kind == "block" for tag in self._words.found_in(source)):
                    detail = "Conditions and loops do not stand in HTML comments; {# … #} takes them out."
                    self._add("misplaced_tag", detail, node.start)
            parts.append(source)
        for name, place in self._open:
            if name not in CLOSE_BY_THEMSELVES:
                self._add("malformed", f"<{name}> is not closed.", place, severity=self._lenient())
        return "".join(parts)

    def _lenient(self) -> Severity:
        return "error" if self._mjml else "warning"

    def _add(self, code: str, detail: str, place: int, *, severity: Severity = "error") -> None:
        self._said[severity] += 1
        if self._said[severity] <= MAX_PROBLEMS:  # warnings take no place of errors
            line = self._words.line(place)
            self.problems.append(TemplateProblem(code, detail, self._pointer, line, severity))

    # --- text

    def _text(self, node: markup.Text, source: str) -> str:
        holder = self._open[-1][0] if self._open else ""
        if holder in MJML_STRUCTURE and self._words.word.sub("", source).strip():
            self._add("malformed", f"Text stands in <{holder}>; it belongs into <mj-text>.", node.start)
        if self._before_body and not node.raw and not node.in_comment and self._words.word.sub("", source).strip():
            self._add("malformed", "Text stands before <body>.", node.start)
        if not self._words.found_in(source):
            return source
        for match in self._words.word.finditer(source):
            tag = self._words.tags[int(match[1])]
            if tag.kind == "block":
                self._block(tag.source, node, node.start + match.start())
            elif node.raw == "script":
                self._add("misplaced_tag", "There are no variables in scripts.", node.start + match.start())
            elif holder in MJML_STRUCTURE:
                detail = f"A variable stands in <{holder}>; it belongs into <mj-text>."
                self._add("misplaced_tag", detail, node.start + match.start())
        if holder == "mj-wrapper":  # MJML puts what stands there into a comment for Outlook, where no other may be
            return self._words.word.sub(r"<mj-raw>\g<0></mj-raw>", source)
        in_raw = node.raw or holder in ("mj-style", "mj-title", "mj-preview")
        return source if in_raw else self._words.commented(source)

    def _block(self, tag: str, node: markup.Text, place: int) -> None:
        if node.raw in ("style", "script") or (self._open and self._open[-1][0] == "mj-style"):
            detail = "CSS is inlined once for all recipients: a condition cannot stand in it, a variable can."
            self._add("misplaced_tag", detail, place)
        elif OPENING.match(tag) and not re.match(r"\{%[-+]?\s*set\b[^%]*[^=!<>]=[^=]", tag):
            self._blocks.append((len(self._open), place))
        elif BRANCH.match(tag):
            self._same_depth(place)
        elif CLOSING.match(tag):
            self._same_depth(place)
            if self._blocks:
                self._blocks.pop()

    def _same_depth(self, place: int) -> None:
        """All elements that were opened in this branch are closed in it, and no others."""
        if not self._blocks:
            return
        depth, began = self._blocks[-1]
        if len(self._open) > depth:
            name, opened = self._open[depth]
            detail = f"<{name}> opens in a condition or loop and does not close in it."
            self._add("unbalanced", detail, opened)
            del self._open[depth:]
        elif len(self._open) < depth:
            detail = "An element that was opened before this condition or loop is closed in it."
            self._add("unbalanced", detail, place)
            self._blocks[-1] = (len(self._open), began)

    # --- elements

    def _start(self, node: markup.Start) -> None:
        self._before_body = self._before_body and (node.name != "body" or node.in_comment)
        self._look_at(node)
        names = [attribute.name for attribute in node.attributes]
        if self._words.found_in(node.name) or any(self._words.found_in(name) for name in names):
            detail = 'A tag stands between attributes; put it into the value of one: class="{{ … }}".'
            self._add("misplaced_tag", detail, node.start)
        for name in (name for name, times in Counter(names).items() if times > 1):
            self._add("malformed", f"<{node.name}> has two attributes {name}.", node.start, severity=self._lenient())
        if node.name in VOID or node.closed or node.in_comment:
            return
        if node.name in SIBLINGS and self._open and self._open[-1][0] == node.name:
            self._open.pop()
        self._open.append((node.name, node.start))

    def _end(self, node: markup.End) -> None:
        if node.in_comment or node.name in VOID:
            return
        limit = self._blocks[-1][0] if self._blocks else 0
        for at in range(len(self._open) - 1, -1, -1):
            name = self._open[at][0]
            if name == node.name:
                if at < limit:
                    detail = f"</{node.name}> closes an element that was opened before this condition or loop."
                    self._add("unbalanced", detail, node.start)
                    self._blocks[-1] = (at, self._blocks[-1][1])
                for skipped, opened in self._open[at + 1 :]:
                    if skipped not in CLOSE_BY_THEMSELVES:
                        detail = f"<{skipped}> is not closed before </{node.name}>."
                        self._add("malformed", detail, opened, severity=self._lenient())
                del self._open[at:]
                return
            if name in ("table", "td", "th", "body") and node.name not in ("table", "body", "html"):
                break  # nobody closes across a cell
        if node.name not in ("p", "br", "html", "body"):
            self._add("malformed", f"</{node.name}> closes nothing.", node.start, severity=self._lenient())

    def _look_at(self, node: markup.Start) -> None:
        name = node.name
        if name.startswith("mj") and self._mjml and name not in MJML_STRUCTURE | MJML_CONTENT:
            self._add("malformed", f"MJML has no <{name}>.", node.start)
        if name in REFUSED and not self._is_annotation(node):
            self._add("not_allowed", f"<{name}> is not for mail: no reader runs or loads it.", node.start)
        elif name in NOT_SHOWN:
            self._add("not_shown", f"Many readers do not show <{name}>.", node.start, severity="warning")
        elif name == "mj-include":
            self._add("not_allowed", "Templates cannot include others.", node.start)
        elif name == "link" and "stylesheet" in (found.value.lower() if (found := node.get("rel")) else ""):
            detail = "Linked style sheets are not loaded, and readers leave them out; use <style>."
            self._add("not_shown", detail, node.start, severity="warning")
        elif name == "meta" and (found := node.get("http-equiv")) and REFRESH.search(unescape(found.value)):
            self._add("not_allowed", "Mail does not go to other pages by itself.", node.start)
        for attribute in node.attributes:
            self._look_at_attribute(node, attribute)

    def _is_annotation(self, node: markup.Start) -> bool:
        found = node.get("type")
        return node.name == "script" and found is not None and found.value.strip().lower() == JSON_LD

    def _look_at_attribute(self, node: markup.Start, attribute: markup.Attribute) -> None:
        quoted = self._words.text[attribute.end - 1] in "\"'"
        if self._mjml and not quoted:
            self._add("malformed", f"In MJML every attribute has a value in quotes: {attribute.name}.", attribute.start)
        if attribute.name.startswith("on"):
            self._add("not_allowed", f"Mail has no event handlers ({attribute.name}).", attribute.start)
        elif attribute.name == "srcdoc":
            self._add("not_allowed", "Mail has no frames (srcdoc).", attribute.start)
        elif attribute.name in URLS:
            self._url(attribute)
        elif attribute.name == OFF and not self._words.found_in(attribute.value) and not says_track(attribute.value):
            detail = f'{OFF} is "off" or "on", not "{attribute.value[:80]}": it is tracked.'
            self._add("unknown_track", detail, attribute.start, severity="warning")
        elif any(tag.kind == "block" for tag in self._words.found_in(attribute.value)):
            self._closed_inside(attribute)

    def _url(self, attribute: markup.Attribute) -> None:
        value = unescape(attribute.value).strip()
        self._closed_inside(attribute)
        if not self._words.word.match(value) and value != UNSAFE_URL and safe_url(value) == UNSAFE_URL:
            self._add("unsafe_url", f"{value[:80]} is no URL for mail.", attribute.start)
        elif attribute.name == "href" and value and not self._words.found_in(value) and not ABSOLUTE.match(value):
            detail = f"{value[:80]} has no https:// before it: it leads nowhere."
            self._add("relative_url", detail, attribute.start, severity="warning")

    def _closed_inside(self, attribute: markup.Attribute) -> None:
        """Conditions in a value end in it."""
        depth = 0
        for tag in self._words.found_in(attribute.value):
            if tag.kind == "block":
                depth += 1 if OPENING.match(tag.source) else -1 if CLOSING.match(tag.source) else 0
                if depth < 0:
                    break
        if depth:
            detail = f"A condition in {attribute.name} does not begin and end in it."
            self._add("unbalanced", detail, attribute.start)
