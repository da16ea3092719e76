"""Templates as clients write and read them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from mailerd.campaigns.templates.values import TemplateProblem
from mailerd.web.bodies import Answer, Request

MAX_TESTS = 10  # addresses
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Subject = Annotated[str, Meta(max_length=500)]
Content = Annotated[str, Meta(max_length=1_000_000)]
Variables = Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=100)]
Format = Literal["html", "mjml"]
Values = Annotated[dict[str, Any], Meta(description='{"contact": {"first_name": "Ann"}, "coupon": "X1"}')]
Given = Annotated[str, Meta(max_length=50)]


class NewTemplate(Request, frozen=True, kw_only=True):
    """Jinja in all three parts. Without `text_content` the text part is made from the HTML.

    `variables` are those that every recipient must have: one who has not gets no mail.
    """

    name: Name
    subject: Subject
    html_content: Content
    text_content: Content = ""
    variables: Variables = []  # noqa: RUF012  msgspec copies it
    format: Format = "html"


class TemplateChange(Request, frozen=True, kw_only=True):
    """What is not given stays. A new version is made when the content changes, not for a new name."""

    name: Name | None = None
    subject: Subject | None = None
    html_content: Content | None = None
    text_content: Content | None = None
    variables: Variables | None = None
    format: Format | None = None


class TemplateCheck(Request, frozen=True, kw_only=True):
    """A template that is not saved."""

    subject: Subject = "Subject"
    html_content: Content
    text_content: Content = ""
    variables: Variables = []  # noqa: RUF012  msgspec copies it
    format: Format = "html"


class TemplatePreviewAsked(Request, frozen=True, kw_only=True):
    """Shown with this contact, or a made-up one, and above it with `variables`; `version`: that in force."""

    variables: Values = {}  # noqa: RUF012
    contact_id: Given | None = None
    version: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class TemplateTest(TemplatePreviewAsked, frozen=True, kw_only=True):
    """To whom the mail goes; `stream`: that of the API key. Showing a contact needs the scope read, too."""

    to: Annotated[list[Annotated[str, Meta(max_length=320)]], Meta(min_length=1, max_length=MAX_TESTS)]
    sender_email: Annotated[str, Meta(max_length=320)]
    sender_name: Annotated[str, Meta(max_length=200)] = ""
    stream: Annotated[str, Meta(max_length=64)] | None = None


class TemplateQuery(Request, frozen=True, kw_only=True):
    """`cursor` is the `next_cursor` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class DeleteQuery(Request, frozen=True, kw_only=True):
    """`force`: also when scheduled campaigns are made from it; those fail then."""

    force: bool = False


class DiffQuery(Request, frozen=True, kw_only=True):
    """`against`: the older one, the version before when it is not given."""

    against: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class TemplateLink(Answer, frozen=True, kw_only=True):
    """A link that is tracked; clicks are counted by its number."""

    link: int
    url: str


class TemplateSaved(Answer, frozen=True, kw_only=True):
    """`problems` are warnings; `variables_used` are those that the content reads."""

    template_id: str
    version: int
    problems: list[TemplateProblem]
    variables_used: list[str]


class TemplateView(Answer, frozen=True, kw_only=True):
    template_id: str
    name: str
    version: int
    format: Format
    subject: str
    html_content: str
    text_content: str
    variables: list[str]
    variables_used: list[str]
    links: list[TemplateLink]
    problems: list[TemplateProblem]
    size: int
    created_by: str
    created_at: datetime
    updated_at: datetime


class TemplateLine(Answer, frozen=True, kw_only=True):
    template_id: str
    name: str
    version: int
    format: Format
    subject: str
    created_by: str
    created_at: datetime
    updated_at: datetime


class TemplatePage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[TemplateLine]
    has_more: bool
    next_cursor: str | None


class TemplateVersionLine(Answer, frozen=True, kw_only=True):
    """`restored`: the version that this one is a copy of."""

    version: int
    format: Format
    subject: str
    restored: int | None
    created_by: str
    created_at: datetime


class TemplateVersionPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[TemplateVersionLine]
    has_more: bool
    next_cursor: str | None


class TemplateVersionView(TemplateVersionLine, frozen=True, kw_only=True):
    template_id: str
    html_content: str
    text_content: str
    variables: list[str]
    variables_used: list[str]
    links: list[TemplateLink]
    problems: list[TemplateProblem]
    size: int


class TemplateDifference(Answer, frozen=True, kw_only=True):
    """Unified diffs from `against` to `version`, "" where nothing differs."""

    version: int
    against: int
    subject: str
    html_content: str
    text_content: str
    variables: str
    format: str


class TemplatePreview(Answer, frozen=True, kw_only=True):
    """The mail as that contact would get it, links as they are written; `size` is bytes of HTML."""

    html: str
    text: str
    subject: str
    problems: list[TemplateProblem]
    size: int


class TemplateChecked(Answer, frozen=True, kw_only=True):
    """`valid`: it can be saved. Without it `variables_used` and `links` are empty."""

    valid: bool
    problems: list[TemplateProblem]
    variables_used: list[str]
    links: list[TemplateLink]
    size: int


class TemplateTestMail(Answer, frozen=True, kw_only=True):
    """One mail: its `email_id`, or why there is none."""

    to: str
    email_id: str | None
    detail: str


class TemplateTestSent(Answer, frozen=True, kw_only=True):
    template_id: str
    version: int
    subject: str
    data: list[TemplateTestMail]
