"""Campaigns as clients write and read them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, field

from mailerd.campaigns.audience import AudienceBody
from mailerd.campaigns.recurrence import Recurrence
from mailerd.campaigns.timing import Day, Timing
from mailerd.campaigns.values import Status
from mailerd.intake.wishes import MAX_CAMPAIGN
from mailerd.web.bodies import Answer, Moment, Request

Line = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*(?!\n)$"
Lines = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
Title = Annotated[str, Meta(min_length=1, max_length=255, pattern=Line)]
Subject = Annotated[str, Meta(max_length=500, pattern=Line)]
Sender = Annotated[str, Meta(min_length=3, max_length=320, pattern=Line)]
SenderName = Annotated[str, Meta(max_length=255, pattern=Line)]
Id = Annotated[str, Meta(max_length=40)]
Ids = Annotated[list[Id], Meta(max_length=200)]
Reason = Annotated[str, Meta(max_length=500, pattern=Line)]
RecipientStatus = Literal["pending", "queued", "delivered", "bounced", "failed", "suppressed", "cancelled", "in_doubt"]


Again = Literal["failed", "in_doubt", "bounced", "suppressed", "cancelled", "not_opened", "not_clicked"]


class Variant(Request, frozen=True, kw_only=True):
    subject: Subject
    weight: Annotated[int, Meta(ge=0, le=100)]


class AbTest(Request, frozen=True, kw_only=True):
    """Kept as it is given; `enabled` true is not supported yet."""

    enabled: bool = False
    variants: Annotated[list[Variant], Meta(max_length=10)] = field(default_factory=list)
    test_duration_hours: Annotated[int, Meta(ge=1, le=720)] | None = None


class CampaignOptions(Request, frozen=True, kw_only=True):
    """`pace`: recipients a minute; null: that of the installation (10,000 unless an operator says otherwise).

    `topic` is what readers unsubscribe from within the stream, in lower case; "": all of the stream. `postal_address`:
    where who writes can be reached by post, in one or more lines; "": that of the tenant. Whoever leaves the stream
    marketing gets no campaign at all, whichever `stream` it goes out on.
    """

    pace: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    track_opens: bool = True
    track_clicks: bool = True
    stream: Annotated[str, Meta(max_length=64, pattern=Line)] = "marketing"
    topic: Annotated[str, Meta(max_length=MAX_CAMPAIGN, pattern=r"^[^\x00-\x1f\x7f/:!<>,]*(?!\n)$")] = ""
    pool: Annotated[str, Meta(max_length=64, pattern=Line)] | None = None
    postal_address: Annotated[str, Meta(max_length=500, pattern=Lines)] = ""


class RecurrenceBody(Request, frozen=True, kw_only=True):
    """`every` day, week (on `days`) or month (on `day`; 31 is the last one of shorter months) `at` a time of the zone.

    Until a moment or so many times, or for good. `made` may be given back as it is shown: it is counted here.
    """

    every: Literal["day", "week", "month"]
    at: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9](?!\n)$")]
    days: Annotated[list[Day], Meta(max_length=7)] = field(default_factory=list)
    day: Annotated[int, Meta(ge=1, le=31)] | None = None
    time_zone: Annotated[str, Meta(max_length=64)] = "UTC"
    until: Moment | None = None
    count: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    made: Annotated[int, Meta(ge=0)] = 0


class NewCampaign(Request, frozen=True, kw_only=True):
    """A draft; with `schedule_time` it is scheduled, and begins then.

    `subject` "": that of the template. `contact_list_ids` may name lists and segments; `audience` says more, and takes
    the place of it. With `timing.local_time` the wall clock of `schedule_time` in `timing.time_zone` is meant for the
    own zone of each contact. With `recurrence` a campaign is made for each time, the first after `schedule_time`.
    """

    name: Title
    template_id: Id
    sender_email: Sender
    sender_name: SenderName = ""
    subject: Subject = ""
    reply_to: Annotated[str, Meta(max_length=320, pattern=Line)] = ""
    contact_list_ids: Ids | None = None
    audience: AudienceBody | None = None
    schedule_time: Moment | None = None
    timing: Timing = Timing()
    recurrence: RecurrenceBody | None = None
    options: CampaignOptions = CampaignOptions()
    ab_test_config: AbTest | None = None


class ChangedCampaign(Request, frozen=True, kw_only=True):
    """What is given changes, the rest stays; of `options` too. `schedule_time` null makes a draft of it again."""

    name: Title | UnsetType = UNSET
    template_id: Id | UnsetType = UNSET
    sender_email: Sender | UnsetType = UNSET
    sender_name: SenderName | UnsetType = UNSET
    subject: Subject | UnsetType = UNSET
    reply_to: Annotated[str, Meta(max_length=320, pattern=Line)] | UnsetType = UNSET
    contact_list_ids: Ids | UnsetType = UNSET
    audience: AudienceBody | UnsetType = UNSET
    schedule_time: Moment | UnsetType | None = UNSET
    timing: Timing | UnsetType = UNSET
    recurrence: RecurrenceBody | UnsetType | None = UNSET
    options: dict[str, Any] | UnsetType = UNSET
    ab_test_config: AbTest | UnsetType | None = UNSET


class Schedule(Request, frozen=True, kw_only=True):
    """When to begin; what is left out stays as it was. A recurring campaign needs no `schedule_time`."""

    schedule_time: Moment | None = None
    timing: Timing | None = None
    recurrence: RecurrenceBody | None = None


class Because(Request, frozen=True, kw_only=True):
    """Why, for those who look later."""

    reason: Reason = ""


class Copy(Request, frozen=True, kw_only=True):
    name: Title | None = None


class Resending(Request, frozen=True, kw_only=True):
    """To whom again, by what became of them; bounced: only those whose address may still be mailed.

    not_opened and not_clicked: to whom it was delivered, and who has done nothing of the kind himself (opens and clicks
    of machines do not count; who clicked has opened). Never to who unsubscribed or complained. `send`: at once; else it
    is a draft.
    """

    statuses: Annotated[list[Again], Meta(min_length=1, max_length=7)]
    name: Title | None = None
    subject: Subject | None = None
    send: bool = False


class TestMail(Request, frozen=True, kw_only=True):
    """`contact_id`: as that contact would get it, which needs the scope read, too; else as a made-up one would."""

    to: Annotated[list[Sender], Meta(min_length=1, max_length=20)]
    contact_id: Id | None = None


class CampaignQuery(Request, frozen=True, kw_only=True):
    status: Status | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class RecipientFilter(Request, frozen=True, kw_only=True):
    """`opened` and `clicked` are by people; false: those who did not, whether or not it was delivered to them."""

    status: RecipientStatus | None = None
    reason: Annotated[str, Meta(max_length=100)] | None = None
    opened: bool | None = None
    clicked: bool | None = None
    unsubscribed: bool | None = None
    complained: bool | None = None


class RecipientQuery(RecipientFilter, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(max_length=200)] | None = None


class CampaignStatus(Answer, frozen=True, kw_only=True):
    """The campaign that it is about, and where it stands now."""

    campaign_id: str
    status: Status


class Finish(Answer, frozen=True, kw_only=True):
    """When the last contact will have been handed over (null: nobody knows), and what that hangs on most.

    `until`: nothing is handed over before that. Retries of mail that hosts put off come on top.
    """

    finish: datetime | None
    limit: Literal["schedule", "paused", "audience", "pace", "throughput", "window", "local_time", "none"]
    detail: str
    until: datetime | None


class CampaignLine(Answer, frozen=True, kw_only=True):
    """A campaign and its counts: `sent_count` has its end, delivered or not; opens and clicks are those of people.

    `waiting_count` are not handed over yet, `handed_over_count` all that ever were. One with `resend_of` is for those
    of that campaign who stand as `resend_to` says, instead of an audience.
    """

    campaign_id: str
    name: str
    subject: str
    template_id: str
    sender_email: str
    sender_name: str
    reply_to: str
    status: Status
    status_reason: str
    contact_list_ids: list[str]
    schedule_time: datetime | None
    timing: Timing
    recurrence: Recurrence | None
    parent_id: str | None
    resend_of: str | None
    resend_to: list[Again]
    options: CampaignOptions
    ab_test_config: dict[str, Any] | None
    total_recipients: int
    waiting_count: int
    handed_over_count: int
    sent_count: int
    delivered_count: int
    opened_count: int
    clicked_count: int
    bounced_count: int
    unsubscribed_count: int
    complained_count: int
    failed_count: int
    suppressed_count: int
    cancelled_count: int
    in_doubt_count: int
    created_by: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class CampaignView(CampaignLine, frozen=True, kw_only=True):
    """All of it; `forecast` is null of drafts and of campaigns that are over."""

    audience: AudienceBody
    forecast: Finish | None


class CampaignPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[CampaignLine]
    has_more: bool
    next_cursor: str | None


class FindingView(Answer, frozen=True, kw_only=True):
    code: str
    severity: Literal["error", "warning"]
    detail: str
    pointer: str


class CheckResult(Answer, frozen=True, kw_only=True):
    """`ready`: nothing keeps it from being sent. Some contacts of the audience are tried, and it is counted about."""

    ready: bool
    findings: list[FindingView]


class RecipientOfCampaign(Answer, frozen=True, kw_only=True):
    """One contact and what became of the mail to it; `reason` says why it was not reached.

    `email` is null when the contact was erased. `opened` and `clicked` are by people, `machine_opened` and
    `machine_clicked` by machines only, so far.
    """

    contact_id: str
    email: str | None
    status: RecipientStatus
    reason: str
    email_id: str | None
    due_at: datetime
    changed_at: datetime | None
    opened: bool
    clicked: bool
    machine_opened: bool
    machine_clicked: bool
    unsubscribed: bool
    complained: bool


class RecipientPage(Answer, frozen=True, kw_only=True):
    """In the order of contacts; with a rare status a page may be short, or empty, and not be the last."""

    data: list[RecipientOfCampaign]
    has_more: bool
    next_cursor: str | None


class TestedMail(Answer, frozen=True, kw_only=True):
    """`email_id` is null when it was not taken: `detail` says why."""

    to: str
    email_id: str | None
    detail: str


class TestResult(Answer, frozen=True, kw_only=True):
    """What became of each address, in the order of the request."""

    campaign_id: str
    subject: str
    data: list[TestedMail]
