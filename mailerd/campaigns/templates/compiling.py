"""From what a marketer writes to what is rendered a million times: everything that needs doing once is done here.

    protect tags -> MJML to HTML -> look for what breaks or harms -> inline CSS -> text part -> slots -> tags back

No step reaches for the network or a file. It is slow (milliseconds to a second): call it off the event loop.
"""

import re
from collections.abc import Iterator, Sequence
from html import unescape

import css_inline
import mjml

from mailerd.campaigns.templates import checking, markup
from mailerd.campaigns.templates.inspection import Inspection
from mailerd.campaigns.templates.languages import HTML, TEXT
from mailerd.campaigns.templates.slots import MAX_LINKS, Slots, fill_html, fill_text, take_track
from mailerd.campaigns.templates.tags import Protected, Tag, protect
from mailerd.campaigns.templates.values import CompiledTemplate, Format, TemplateError, TemplateProblem
from mailerd.campaigns.templates.wording import text_of_html

MAX_SOURCE = 1_000_000  # bytes of HTML or text
MAX_SUBJECT = 500  # characters
MAX_VARIABLES = 100
CLIPPED = 102_000  # bytes of HTML from which on Gmail shows only the beginning
MAX_ELEMENTS = 20_000
MOST_STYLING = 80_000_000  # characters of CSS times elements: 40 kB and 2,000
MOST_STYLES = 15_000  # rules and declarations: the inliner compares those of one element with one another
SLOW_SELECTORS = (":has(", ":nth-", ":not(", "~")  # those look at other elements, too
BODY = re.compile(r"<body[\s>]", re.IGNORECASE)
SPACE = re.compile(r"[\s\ufeff]*")
MJML_BEGIN = re.compile(r"<mjml[\s>]", re.IGNORECASE)
BEFORE_MJML = (("<?xml", ">"), ("<!--", "-->"), ("{#", "#}"))
HEAD_END = re.compile(r"</head\s*>", re.IGNORECASE)
HTML_BEGIN = re.compile(r"<html(?:\s[^>]*)?>", re.IGNORECASE)
DOCTYPE = re.compile(r"\s*(<!DOCTYPE[^>]*>)", re.IGNORECASE)
PATH = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9][A-Za-z0-9_]*)*")
ROOTS = {
    "contact": {
        "contact_id",
        "email",
        "first_name",
        "last_name",
        "phone",
        "tags",
        "custom_fields",
        "time_zone",
        "created_at",
    },
    "campaign": {"campaign_id", "name", "subject", "sender_name", "sender_email"},
}
KNOWN = frozenset(
    {*ROOTS, "custom_fields", "unsubscribe_url", "preferences_url", "view_url", "postal_address", "sender_name"}
)

_INLINER = css_inline.CSSInliner(
    inline_style_tags=True,
    keep_style_tags=False,
    keep_at_rules=True,
    keep_link_tags=True,
    load_remote_stylesheets=False,
)
SPACES = re.compile(r"[ \t]{2,}|\t")
LINE_END = re.compile(r" \n")
AS_WRITTEN = re.compile(r"(<(?:pre|textarea)\b.*?</(?:pre|textarea)\s*>)", re.IGNORECASE | re.DOTALL)
KEEPS_SPACE = re.compile(r"white-space\s*:\s*(?:pre|break)", re.IGNORECASE)


def compile_template(
    subject: str,
    html: str,
    text: str,
    format: Format = "html",  # noqa: A002  the name of the field
    variables: Sequence[str] = (),
) -> CompiledTemplate:
    """Make what `rendering.Prepared` renders. Raises `TemplateError` with all that is wrong.

    `text` "": it is made from the HTML. `variables` must be there for every recipient.
    """
    try:
        return _Compiling(subject, html, text, format, list(variables)).run()
    except RecursionError:  # MJML makes more elements in one another than were written
        problem = TemplateProblem("too_complex", "The HTML is nested too deeply.", "/html_content")
        raise TemplateError([problem]) from None


class _Compiling:
    def __init__(self, subject: str, html: str, text: str, format_: Format, variables: list[str]) -> None:
        self.subject, self.html, self.text, self.format, self.variables = subject, html, text, format_, variables
        self.track = ""
        self.problems: list[TemplateProblem] = []

    def run(self) -> CompiledTemplate:
        self._bounds()
        self._check_format()
        self._stop_on_errors()
        used = self._check_tags()
        self._check_variables(used)
        self._stop_on_errors()
        words = protect(HTML, self.html)
        skeleton = self._skeleton(words)
        self._stop_on_errors()
        slots = Slots()
        html = fill_html(skeleton, words, slots)
        if self.text.strip():
            own = protect(TEXT, self.text)
            text = fill_text(own.text, own, slots)
        else:
            text = text_of_html(skeleton, words, slots)
        if len(slots.links) > MAX_LINKS:
            self._add("too_complex", f"The template has more than {MAX_LINKS} links.", "/html_content")
            self._stop_on_errors()
        self._check_result(html, text)
        size = len(html.encode())
        if size > CLIPPED:
            detail = f"The HTML has {size:,} bytes: Gmail shows the first {CLIPPED:,} and hides the rest."
            self._add("clipped", detail, "/html_content", severity="warning")
        self._stop_on_errors()
        return CompiledTemplate(
            subject=self.subject,
            html=html,
            text=text,
            links=slots.links,
            used=used,
            required=self.variables,
            size=size,
            problems=self.problems,
            track=self.track,
        )

    def _add(self, code: str, detail: str, pointer: str, line: int | None = None, *, severity: str = "error") -> None:
        problem = TemplateProblem(code, detail, pointer, line, "warning" if severity == "warning" else "error")
        self.problems.append(problem)

    def _stop_on_errors(self) -> None:
        if any(problem.severity == "error" for problem in self.problems):
            raise TemplateError(sorted(self.problems, key=lambda problem: problem.severity))  # errors first

    def _bounds(self) -> None:
        for name, source in (("html_content", self.html), ("text_content", self.text)):
            if len(source.encode("utf-8", "replace")) > MAX_SOURCE:
                self._add("too_large", f"More than {MAX_SOURCE:,} bytes.", f"/{name}")
        if len(self.subject) > MAX_SUBJECT:
            self._add("too_large", f"More than {MAX_SUBJECT} characters.", "/subject")
        if not self.subject.strip():
            self._add("missing_field", "Mail needs a subject.", "/subject")
        if not self.html.strip():
            self._add("missing_field", "A template needs HTML.", "/html_content")
        for name, source in (("subject", self.subject), ("html_content", self.html), ("text_content", self.text)):
            if any(0xD800 <= ord(character) <= 0xDFFF or character == "\0" for character in source):
                self._add("invalid_text", "A character in it is none.", f"/{name}")

    def _check_tags(self) -> list[str]:
        """All three sources as Jinja; returns the variables they read."""
        used: dict[str, None] = {}
        for language, source, pointer in (
            (TEXT, self.subject, "/subject"),
            (HTML, self.html, "/html_content"),
            (TEXT, self.text, "/text_content"),
        ):
            found = checking.check(language, source, pointer)
            self.problems += found.problems
            used |= dict.fromkeys(found.used)
        return list(used)

    def _check_variables(self, used: list[str]) -> None:
        if len(self.variables) > MAX_VARIABLES:
            self._add("too_many", f"More than {MAX_VARIABLES} variables.", "/variables")
        for n, name in enumerate(self.variables):
            if not PATH.fullmatch(name) or len(name) > 200:
                detail = "A variable is named as in a tag: contact.first_name."
                self._add("invalid_value", detail, f"/variables/{n}")
        declared = set(self.variables) | {name.partition(".")[0] for name in self.variables}
        for name in used:
            root, _, field = name.partition(".")
            known = ROOTS.get(root)
            if root not in KNOWN and root not in declared:
                detail = f"{name} is no variable of campaigns and not declared: it is empty unless given."
                self._add("unknown_variable", detail, "", severity="warning")
            elif known is not None and field and field.partition(".")[0] not in known and name not in declared:
                detail = f"{root} has no {field}: it has {', '.join(sorted(known))}."
                self._add("unknown_variable", detail, "", severity="warning")

    def _skeleton(self, words: Protected) -> str:
        """HTML with CSS inlined and words in place of tags, well-formed: every attribute in double quotes."""
        inspection = Inspection(words, "/html_content", mjml=self.format == "mjml")
        source = inspection.run()
        self.problems += inspection.problems
        self._stop_on_errors()
        source, said = take_track(source)
        self.track = unescape(words.restored(said))
        html = self._from_mjml(source, words) if self.format == "mjml" else with_body(source)
        if too_much := _too_much(html):
            self._add("too_complex", too_much, "/html_content")
            return ""
        try:
            inlined = _INLINER.inline(html)
        except Exception as error:  # whatever the library does not like about the CSS
            self._add("invalid_css", f"The CSS cannot be inlined: {error}.", "/html_content")
            return ""
        written = DOCTYPE.match(html)
        if written:
            inlined = inlined.replace("<!DOCTYPE html>", written[1], 1)
        for n, tag in self._lost(words, inlined + said):
            line = words.line(words.text.index(f"{words.prefix}{n}x"))
            self._add("misplaced_tag", f"{tag.source[:80]} cannot stand there.", "/html_content", line)
        return _tidied(inlined)

    def _from_mjml(self, source: str, words: Protected) -> str:
        try:
            return mjml.mjml2html(source)
        except Exception as error:  # the library raises OSError for everything
            place = re.search(r"position (\d+)", str(error))
            line = 1 + source.count("\n", 0, int(place[1])) if place else None
            detail = words.restored(f"This is not MJML: {error}.")
            self._add("invalid_mjml", detail[:500], "/html_content", line)
            self._stop_on_errors()
            raise AssertionError from error

    def _lost(self, words: Protected, html: str) -> Iterator[tuple[int, Tag]]:
        there = {int(match[1]) for match in words.word.finditer(html)}
        return ((n, tag) for n, tag in enumerate(words.tags) if n not in there)

    def _check_format(self) -> None:
        if self.format == "html" and _is_mjml(self.html):
            self._add("invalid_format", 'The source is MJML: say so with format "mjml".', "/format")

    def _check_result(self, html: str, text: str) -> None:
        """What came out must be a template as good as what went in."""
        for language, source, pointer in (
            (HTML, html, "/html_content"),
            (TEXT, text, "/text_content"),
            (TEXT, self.track, "/html_content"),
        ):
            found = checking.check(language, source, pointer, internal=True)
            for problem in found.problems:
                where = "" if problem.code == "too_complex" else " once it is put together"
                self._add(problem.code, f"{problem.detail[:300]} ({pointer[1:]}{where})", pointer)


def _is_mjml(html: str) -> bool:
    """Step by step: an expression for all of it would try all ways to cut the comments before it."""
    at = 0
    while at >= 0:
        spaces = SPACE.match(html, at)
        at = spaces.end() if spaces else at
        close = next((close for begin, close in BEFORE_MJML if html[at : at + len(begin)].lower() == begin), None)
        if close is None:
            return MJML_BEGIN.match(html, at) is not None
        end = html.find(close, at)
        at = end + len(close) if end >= 0 else -1
    return False


def with_body(html: str) -> str:
    """HTML whose body begins where it is written: else a parser begins it behind the first condition or loop."""
    if BODY.search(html):
        return html
    begins = HEAD_END.search(html) or HTML_BEGIN.search(html) or DOCTYPE.match(html)
    at = begins.end() if begins else 0
    return f"{html[:at]}<body>{html[at:]}"


def _too_much(html: str) -> str:
    """Why inlining might take more than seconds: it is work for each element and rule, and cannot be broken off."""
    elements, styles, slow, parts = 0, 0, 0, 0
    for node in markup.read(html):
        if isinstance(node, markup.Start):
            elements += 1
        elif isinstance(node, markup.Text) and node.raw == "style":
            css = html[node.start : node.end].lower()
            styles += len(css)
            parts += css.count("{") + css.count(":")
            slow += sum(css.count(word) for word in SLOW_SELECTORS)
    if elements > MAX_ELEMENTS:
        return f"The HTML has more than {MAX_ELEMENTS:,} elements."
    if parts > MOST_STYLES or styles * elements > MOST_STYLING or slow * elements**2 > MOST_STYLING:
        return "There are too many styles for so many elements."
    return ""


def _tidied(html: str) -> str:
    """Without white space that nobody sees: it would be sent to everybody, and hashed for each signature."""
    if KEEPS_SPACE.search(html):
        return html
    parts = AS_WRITTEN.split(html)
    parts[::2] = [LINE_END.sub("\n", SPACES.sub(" ", part)) for part in parts[::2]]
    return "".join(parts)
