"""What goes into a template, what compiling makes of it, and what comes out."""

from typing import Literal, NamedTuple

from msgspec import Struct

Format = Literal["html", "mjml"]
Severity = Literal["error", "warning"]


class TemplateProblem(Struct, frozen=True, omit_defaults=True):
    """One thing wrong with a template: in which field (a JSON pointer), in which line of it, and what, for people.

    An `error` keeps the template from being saved; a `warning` is worth reading.
    """

    code: str
    detail: str
    pointer: str = ""
    line: int | None = None
    severity: Severity = "error"


class TemplateError(Exception):
    """The template cannot be used; `problems` has all that was found, warnings too."""

    def __init__(self, problems: list[TemplateProblem]) -> None:
        super().__init__("; ".join(problem.detail for problem in problems if problem.severity == "error"))
        self.problems = problems


class RenderError(Exception):
    """This recipient gets no mail from this template: `code` for programs, the text for people.

    Codes: missing_variable, too_much_work, too_slow, output_too_large, render_failed, empty_subject.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Link(Struct, frozen=True):
    """A link that may be tracked. `link` counts from 1; `url` may have Jinja tags in it, then `dynamic` is true."""

    link: int
    url: str
    dynamic: bool = False


class CompiledTemplate(Struct, frozen=True, kw_only=True):
    """A version, ready to be rendered: Jinja sources with slots for links and the pixel. Stored as JSON.

    `used` are the variables it reads, dotted (`contact.first_name`); `required` those that must not be missing or
    empty; `size` the bytes of the HTML as it stands here; `track` what its body says of tracking: nothing of a mail
    for which it is rendered as `off` is tracked.
    """

    subject: str
    html: str
    text: str
    links: list[Link]
    used: list[str]
    required: list[str]
    size: int
    problems: list[TemplateProblem] = []
    track: str = ""


class RenderedMail(NamedTuple):
    """One mail. The subject is one line without control characters."""

    subject: str
    html: str
    text: str
