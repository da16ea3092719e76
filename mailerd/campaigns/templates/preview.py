"""A template tried out on one contact: the mail it makes, and what is wrong with it."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from mailerd.campaigns.templates.compiling import CLIPPED
from mailerd.campaigns.templates.rendering import Prepared, is_missing
from mailerd.campaigns.templates.sandbox import Clock
from mailerd.campaigns.templates.values import RenderError, TemplateProblem


class Preview(Struct, frozen=True, kw_only=True):
    """The mail; when it cannot be rendered its parts are empty and an error among `problems` says why.

    `size` is the bytes of the HTML.
    """

    subject: str
    html: str
    text: str
    problems: list[TemplateProblem]
    size: int


def preview(prepared: Prepared, context: Mapping[str, Any], clock: Clock | None = None) -> Preview:
    """Variables that are wanted and not there are warnings, declared ones errors; links are not tracked."""
    compiled = prepared.compiled
    problems = [each for each in compiled.problems if each.code != "unknown_variable"]
    problems += [
        TemplateProblem("missing_variable", f"{name} is declared and missing or empty.")
        for name in compiled.required
        if is_missing(context, tuple(name.split(".")))
    ]
    missing: list[str] = []
    try:
        mail = prepared.render(context, missing=missing, lenient=True, clock=clock)
    except RenderError as error:
        problems.append(TemplateProblem(error.code, error.detail))
        return Preview(subject="", html="", text="", problems=problems, size=0)
    told = set(compiled.required)
    for name in dict.fromkeys(_whole(name, compiled.used) for name in missing):
        if name not in told:
            detail = f"{name} is not there and comes out empty; {{{{ {name} | default('…') }}}} gives a stand-in."
            problems.append(TemplateProblem("missing_variable", detail, severity="warning"))
    size = len(mail.html.encode("utf-8", "replace"))
    if size > CLIPPED and not any(each.code == "clipped" for each in problems):
        problems.append(
            TemplateProblem("clipped", f"The HTML has {size:,} bytes: Gmail hides the end of it.", severity="warning")
        )
    return Preview(subject=mail.subject, html=mail.html, text=mail.text, problems=problems, size=size)


def _whole(name: str, used: list[str]) -> str:
    """The variable as it is written, of which rendering knows the last part."""
    return next((path for path in used if path == name or path.endswith(f".{name}")), name)
