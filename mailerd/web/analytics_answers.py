"""What reports look like: the documents' keys, and beside them what machines did, said apart."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, field

from mailerd.campaigns.analytics.periods import Granularity
from mailerd.web.bodies import Answer, Moment, Request

Cursor = Annotated[str, Meta(max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=500)]
Sort = Literal[
    "sent",
    "delivered",
    "bounced",
    "failed",
    "deferred",
    "complained",
    "unsubscribed",
    "opened",
    "clicked",
    "open_rate",
    "click_rate",
    "click_to_open_rate",
    "bounce_rate",
    "complaint_rate",
    "unsubscribe_rate",
    "deliverability_rate",
]
Metrics = Annotated[
    list[Annotated[str, Meta(max_length=500)]],
    Meta(max_length=50, description="Names of counts and rates, repeated or with commas between; none: all"),
]
LocalMoment = Annotated[
    str,
    Meta(
        description="The same moment by the clocks of the zone, with their offset: 2026-11-23T00:00:00+05:30",
        extra_json_schema={"format": "date-time"},
    ),
]
Zone = Annotated[str, Meta(max_length=64, description="IANA: Europe/Berlin")]


class SeriesQuery(Request, frozen=True, kw_only=True):
    """`from` is inclusive, `to` exclusive; both are widened to whole periods. At most 10,000 of them.

    Without them it is all of the campaign, without `granularity` one that gives some hundred periods.
    """

    from_: Moment | None = field(default=None, name="from")
    to: Moment | None = None
    granularity: Granularity | None = None
    time_zone: Zone = "UTC"
    metrics: Metrics = field(default_factory=list)


class ReportQuery(Request, frozen=True, kw_only=True):
    """As of a campaign's time series; without `from` the last 30 days. The finest granularity is an hour.

    Periods are those of the zone, to the quarter of an hour. Of what was counted by a mailerd that kept whole hours of
    UTC only, some is kept so: such an hour belongs to the period in which it begins.
    """

    from_: Moment | None = field(default=None, name="from")
    to: Moment | None = None
    granularity: Literal["hour", "day", "week", "month"] | None = None
    time_zone: Zone = "UTC"
    metrics: Metrics = field(default_factory=list)


class RealtimeQuery(Request, frozen=True, kw_only=True):
    """`minutes`: how many of the last are shown."""

    minutes: Annotated[int, Meta(ge=1, le=1440)] = 30


class TopQuery(Request, frozen=True, kw_only=True):
    """Campaigns that began from `from` on and before `to`, by default in the last 30 days; the largest first."""

    from_: Moment | None = field(default=None, name="from")
    to: Moment | None = None
    sort: Sort | Literal["started_at"] = "started_at"
    cursor: Cursor | None = None
    limit: Limit = 50


class DomainQuery(Request, frozen=True, kw_only=True):
    """The largest first. What is counted meanwhile may move a domain from one page to another."""

    sort: Sort = "sent"
    cursor: Cursor | None = None
    limit: Limit = 50


class HistoryQuery(Request, frozen=True, kw_only=True):
    """Of the history; `cursor` is the `next_cursor` of the page before."""

    cursor: Cursor | None = None
    limit: Limit = 50


class MachineFigures(Answer, frozen=True, kw_only=True):
    """What was not done by people: prefetching, scanners, and whoever cannot be told.

    `opened` and `clicked` are contacts whose mail only machines have opened or clicked so far; the rates are of these.
    """

    opened: int
    clicked: int
    opens: int
    clicks: int
    open_rate: float
    click_rate: float


class CampaignAnalytics(Answer, frozen=True, kw_only=True):
    """Rates are percent. `opened`, `clicked`, `unsubscribed` and `complained` are contacts, each counted once.

    `sent` is delivered + bounced + failed + in_doubt. open_rate = opened / delivered, click_rate = clicked / delivered,
    click_to_open_rate = clicked / opened, bounce_rate = bounced / sent, unsubscribe_rate = unsubscribed / delivered,
    complaint_rate = complained / delivered, deliverability_rate = delivered / sent. `opens` and `clicks` are all of
    those that people made. `recipients` is the audience as far as it is written, `queued` what was handed over so far,
    `suppressed` who was not mailed on purpose. `hard_bounced` of the bounced are addresses that are no good; mail that
    comes back later counts as bounced, no longer as delivered. `deferred` counts attempts since the
    beginning that the other side put off, several of one mail: it never falls. `in_queue` waits there now.
    """

    campaign_id: str
    status: str
    started_at: datetime | None
    finished_at: datetime | None
    recipients: int
    queued: int
    in_queue: int
    sent: int
    delivered: int
    opened: int
    clicked: int
    bounced: int
    hard_bounced: int
    soft_bounced: int
    failed: int
    in_doubt: int
    suppressed: int
    cancelled: int
    deferred: int
    unsubscribed: int
    complained: int
    opens: int
    clicks: int
    open_rate: float
    click_rate: float
    click_to_open_rate: float
    bounce_rate: float
    unsubscribe_rate: float
    complaint_rate: float
    deliverability_rate: float
    machine: MachineFigures


class MinuteFigures(Answer, frozen=True, kw_only=True):
    """What happened in the minute that begins at `start`."""

    start: datetime
    queued: int
    sent: int
    delivered: int
    bounced: int
    deferred: int
    opened: int
    clicked: int


class CampaignRealtime(Answer, frozen=True, kw_only=True):
    """Where a campaign is at this moment.

    `waiting` are not handed over yet, `in_queue` are and have no outcome; all of the audience is in `recipients` when
    `complete`. The rates `…_per_minute` are means of the last five full minutes. `minutes`: oldest first, the last one
    is still going on. `deferred` counts attempts that were put off, so far or in that minute: it never falls, and such
    mail is in `in_queue` until it has an outcome.
    """

    campaign_id: str
    status: str
    at: datetime
    recipients: int
    complete: bool
    waiting: int
    in_queue: int
    queued: int
    sent: int
    delivered: int
    bounced: int
    failed: int
    in_doubt: int
    suppressed: int
    cancelled: int
    deferred: int
    opened: int
    clicked: int
    unsubscribed: int
    complained: int
    queued_per_minute: float
    sent_per_minute: float
    delivered_per_minute: float
    minutes: list[MinuteFigures]


class Figures(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Those that were asked for. A period counts what happened in it, whenever the mail was sent; where a late bounce
    takes back a delivery, `delivered` of that period may be below zero."""

    queued: int | UnsetType = UNSET
    suppressed: int | UnsetType = UNSET
    cancelled: int | UnsetType = UNSET
    recalled: int | UnsetType = UNSET
    sent: int | UnsetType = UNSET
    delivered: int | UnsetType = UNSET
    bounced: int | UnsetType = UNSET
    hard_bounced: int | UnsetType = UNSET
    failed: int | UnsetType = UNSET
    in_doubt: int | UnsetType = UNSET
    deferred: int | UnsetType = UNSET
    complained: int | UnsetType = UNSET
    unsubscribed: int | UnsetType = UNSET
    opened: int | UnsetType = UNSET
    clicked: int | UnsetType = UNSET
    opens: int | UnsetType = UNSET
    clicks: int | UnsetType = UNSET
    machine_opened: int | UnsetType = UNSET
    machine_clicked: int | UnsetType = UNSET
    machine_opens: int | UnsetType = UNSET
    machine_clicks: int | UnsetType = UNSET
    open_rate: float | UnsetType = UNSET
    click_rate: float | UnsetType = UNSET
    click_to_open_rate: float | UnsetType = UNSET
    bounce_rate: float | UnsetType = UNSET
    unsubscribe_rate: float | UnsetType = UNSET
    complaint_rate: float | UnsetType = UNSET
    deliverability_rate: float | UnsetType = UNSET
    machine_open_rate: float | UnsetType = UNSET
    machine_click_rate: float | UnsetType = UNSET


class PeriodFigures(Figures, frozen=True, kw_only=True, omit_defaults=True):
    """Of one period, which ends where the next begins. `local_start` is `start` in the `time_zone` of the report."""

    start: datetime
    local_start: LocalMoment


class Report(Answer, frozen=True, kw_only=True):
    """Every period from `from` to `to`, also those in which nothing happened, and all of them together."""

    from_: datetime = field(name="from")
    to: datetime
    granularity: Granularity
    time_zone: str
    totals: Figures
    data: list[PeriodFigures]


class LinkFigures(Answer, frozen=True, kw_only=True):
    """`unique_clicks` are people, `clicks` how often they did, `click_rate` how many of a hundred who got the mail.

    `url` is that of the first click, where it differs from contact to contact.
    """

    link: int
    url: str
    clicks: int
    unique_clicks: int
    click_rate: float
    machine_clicks: int


class LinkList(Answer, frozen=True, kw_only=True):
    """The most clicked first, at most 1,000."""

    data: list[LinkFigures]


class DomainFigures(Answer, frozen=True, kw_only=True):
    """Of the addresses of one domain."""

    domain: str
    sent: int
    delivered: int
    bounced: int
    failed: int
    deferred: int
    complained: int
    unsubscribed: int
    opened: int
    clicked: int
    machine_opened: int
    open_rate: float
    click_rate: float
    bounce_rate: float
    complaint_rate: float
    unsubscribe_rate: float
    deliverability_rate: float


class DomainPage(Answer, frozen=True, kw_only=True):
    data: list[DomainFigures]
    has_more: bool
    next_cursor: str | None


class ProviderFigures(Answer, frozen=True, kw_only=True):
    """Of all domains of a mailbox provider, as the shaping rules name it; `default` are all others.

    `unknown`: nothing of that domain was answered for yet.
    """

    provider: str
    sent: int
    delivered: int
    bounced: int
    failed: int
    deferred: int
    complained: int
    unsubscribed: int
    opened: int
    clicked: int
    machine_opened: int
    open_rate: float
    click_rate: float
    bounce_rate: float
    complaint_rate: float
    unsubscribe_rate: float
    deliverability_rate: float


class ProviderList(Answer, frozen=True, kw_only=True):
    """The one with the most mail first."""

    data: list[ProviderFigures]


class CampaignFigures(Answer, frozen=True, kw_only=True):
    campaign_id: str
    name: str
    status: str
    started_at: datetime
    sent: int
    delivered: int
    bounced: int
    failed: int
    deferred: int
    complained: int
    unsubscribed: int
    opened: int
    clicked: int
    machine_opened: int
    open_rate: float
    click_rate: float
    click_to_open_rate: float
    bounce_rate: float
    complaint_rate: float
    unsubscribe_rate: float
    deliverability_rate: float


class CampaignFiguresPage(Answer, frozen=True, kw_only=True):
    data: list[CampaignFigures]
    has_more: bool
    next_cursor: str | None


class MachineHits(Answer, frozen=True, kw_only=True):
    opens: int
    clicks: int


class HistoryEntry(Answer, frozen=True, kw_only=True):
    """`type`: delivered, bounced, failed, suppressed, cancelled, in_doubt, opened, clicked, unsubscribed, complained.

    `actor` is of opened and clicked.
    """

    at: datetime
    type: str
    campaign_id: str
    campaign_name: str
    email_id: str | None
    actor: Literal["human", "machine"] | None = None
    link: int | None = None
    url: str | None = None


class ContactEngagement(Answer, frozen=True, kw_only=True):
    """What a contact got from campaigns and did with them. Opens and clicks are those of people, for as long as events
    are kept; those of machines stand apart. `history` is newest first."""

    contact_id: str
    total_emails_sent: int
    total_opens: int
    total_clicks: int
    last_opened: datetime | None
    last_clicked: datetime | None
    last_sent: datetime | None
    total_delivered: int
    total_bounced: int
    campaigns_opened: int
    campaigns_clicked: int
    machine: MachineHits
    history: list[HistoryEntry]
    has_more: bool
    next_cursor: str | None
