"""From a compiled template and one contact to one mail, in well under a millisecond."""

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jinja2 import Template, nodes
from markupsafe import Markup, escape

from mailerd.campaigns.templates import checking
from mailerd.campaigns.templates.languages import HTML, TEXT
from mailerd.campaigns.templates.pieces import PIXEL, Body, Gathered, Pieces, slot_of, slotted
from mailerd.campaigns.templates.sandbox import MAX_OUTPUT, MOST_TIME, Clock, Language, LinkFor, Rendering
from mailerd.campaigns.templates.slots import is_off
from mailerd.campaigns.templates.values import CompiledTemplate, RenderedMail, RenderError, TemplateError

NOT_IN_SUBJECT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
SPACES = re.compile(r" {2,}")
MAX_SUBJECT = 1_000  # characters, rendered
CACHED_BYTES = 64_000_000
BYTES_PER_SOURCE = 6  # how much larger a prepared template is than its sources


class Written(NamedTuple):
    """One mail, ready to be put together. The subject is one line without control characters."""

    subject: str
    html: Body
    text: Body


class Output(NamedTuple):
    """What a template put out for one mail."""

    subject: str
    html: Gathered
    text: Gathered

    def written(self) -> Written:
        return Written(self.subject, self.html.body(), self.text.body())


class Prepared:
    """A compiled template as code. Making one takes milliseconds; rendering it changes nothing in it.

    Raises `TemplateError` for sources that are no templates, as a subject may be that came by another way.
    """

    def __init__(self, compiled: CompiledTemplate) -> None:
        self.compiled = compiled
        self.fixed = [(link.link, link.url) for link in compiled.links if not link.dynamic]
        slots = frozenset([PIXEL, *(slot for slot, _ in self.fixed)])
        self._subject = _Code(TEXT, compiled.subject, "/subject")
        self._html = _Code(HTML, compiled.html, "/html_content", slots)
        self._text = _Code(TEXT, compiled.text, "/text_content", slots)
        self._track = _Code(TEXT, compiled.track, "/html_content") if compiled.track else None
        self._required = [(name, tuple(name.split("."))) for name in compiled.required]
        self.size = BYTES_PER_SOURCE * (len(compiled.html) + len(compiled.text) + len(compiled.subject))

    def render(
        self,
        context: Mapping[str, Any],
        *,
        link: LinkFor | None = None,
        pixel: str = "",
        missing: list[str] | None = None,
        lenient: bool = False,
        clock: Clock | None = None,
    ) -> RenderedMail:
        """The mail of one recipient; raises `RenderError` when there is none.

        `context` is plain data: dicts, lists, texts, numbers. `link(slot, url)` gives the tracked URL, or None for one
        that is not; `pixel` is the URL of the pixel, "" for none. `missing` collects the variables that were wanted and
        not there. Declared ones that are missing or empty are an error, unless it is `lenient`. `clock` (`thread_time`)
        is for who renders what others wrote: more than `MOST_TIME` of it is an error; budgets hold without it.
        """
        if not lenient:
            self._check_required(context)
        fixed = None if link is None else {slot: link(slot, url) or url for slot, url in self.fixed}
        subject, html, text = self._render(context, link, fixed, pixel, missing, clock)
        return RenderedMail(subject, html.text(), text.text())

    def gather(
        self,
        context: Mapping[str, Any],
        *,
        link: LinkFor | None = None,
        fixed: Mapping[int, str] | None = None,
        pixel: str = "",
        clock: Clock | None = None,
    ) -> Output:
        """The same for who writes to many, as bytes in the end. `fixed`: the tracked URLs of `self.fixed`, by slot."""
        self._check_required(context)
        return self._render(context, link, fixed, pixel, None, clock)

    def _render(
        self,
        context: Mapping[str, Any],
        link: LinkFor | None,
        fixed: Mapping[int, str] | None,
        pixel: str,
        missing: list[str] | None,
        clock: Clock | None,
    ) -> Output:
        until = 0.0 if clock is None else clock() + MOST_TIME

        def output(code: _Code, values: Mapping[int, str]) -> Gathered:
            rendering = Rendering(code.language, {**context, **code.variables(values)}, None, {})
            rendering.link, rendering.clock, rendering.until = link, clock, until
            return code.run(rendering, values, missing)

        try:
            if self._track is not None and is_off(output(self._track, {}).text()):
                link, fixed, pixel = None, None, ""
            plain: dict[int, str] = {**dict(self.fixed), **(fixed or {}), PIXEL: ""}
            marked: dict[int, str] = {slot: escape(url) for slot, url in plain.items()}
            marked[PIXEL] = _pixel(pixel)
            subject = one_line(output(self._subject, plain).text())
            if not subject:
                raise RenderError("empty_subject", "The subject is empty.")
            return Output(subject, output(self._html, marked), output(self._text, plain))
        except RenderError:
            raise
        except RecursionError:
            raise RenderError("render_failed", "A value is nested too deeply.") from None
        except Exception as error:  # of a filter that got what it is not for; the template's fault, not ours
            raise RenderError("render_failed", f"{type(error).__name__}: {error}"[:300]) from None

    def _check_required(self, context: Mapping[str, Any]) -> None:
        absent = [name for name, path in self._required if is_missing(context, path)]
        if absent:
            raise RenderError("missing_variable", f"{', '.join(absent)}: missing or empty.")


def is_missing(context: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Whether a declared variable is not there, or empty."""
    value: Any = context
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


class _Code:
    """One source as code. `slots` is given for one that compiling has been through."""

    def __init__(self, language: Language, source: str, pointer: str, slots: frozenset[int] | None = None) -> None:
        found = checking.check(language, source, pointer, internal=slots is not None, stored=True)
        if found.tree is None or found.problems:
            raise TemplateError(found.problems)
        tree = slotted(checking.bind(found.tree, language), slots or ())
        # Links within what is a value first, such as {% set %}, are variables.
        names = {node.name for node in tree.find_all(nodes.Name)}
        self._names = [(name, slot) for name in names if (slot := slot_of(name)) is not None]
        code = language.compile(tree)
        self.language = language
        self._pieces = Pieces(code)
        self._run = Template.from_code(language, code, {}).root_render_func

    def variables(self, values: Mapping[int, str]) -> dict[str, str]:
        return {name: values[slot] for name, slot in self._names if slot in values}

    def run(self, rendering: Rendering, values: Mapping[int, str], missing: list[str] | None) -> Gathered:
        gathered = self._pieces.gather(self._run(rendering), values, MAX_OUTPUT)
        if gathered is None:
            raise RenderError("output_too_large", f"A part of the mail has more than {MAX_OUTPUT:,} characters.")
        if missing is not None:
            missing += [name for name in rendering.missing if name not in missing]
        return gathered


def _pixel(url: str) -> Markup:
    if not url:
        return Markup("")
    return Markup('<img src="{}" width="1" height="1" alt="" style="display:block;border:0">').format(url)


def one_line(subject: str) -> str:
    """A subject: one line, no control characters, whatever the contact is called."""
    line = SPACES.sub(" ", NOT_IN_SUBJECT.sub(" ", subject)).strip()
    return unicodedata.normalize("NFC", line)[:MAX_SUBJECT]


class PreparedCache:
    """The templates used last, by the id of their version and, where they have one of its own, the subject of the
    campaign; as many as fit. Versions never change."""

    def __init__(self, size: int = CACHED_BYTES) -> None:
        self._size = size
        self._held = 0
        self._prepared: OrderedDict[tuple[int, str], Prepared] = OrderedDict()

    def get(self, version_id: int, subject: str = "") -> Prepared | None:
        found = self._prepared.get((version_id, subject))
        if found is not None:
            self._prepared.move_to_end((version_id, subject))
        return found

    def put(self, version_id: int, prepared: Prepared, subject: str = "") -> None:
        if (old := self._prepared.pop((version_id, subject), None)) is not None:
            self._held -= old.size
        self._prepared[version_id, subject] = prepared
        self._held += prepared.size
        while self._held > self._size and len(self._prepared) > 1:
            _, oldest = self._prepared.popitem(last=False)
            self._held -= oldest.size

    def prepare(self, version_id: int, compiled: Callable[[], CompiledTemplate]) -> Prepared:
        """The one that is held, or a new one."""
        found = self.get(version_id)
        if found is None:
            found = Prepared(compiled())
            self.put(version_id, found)
        return found
