"""A campaign as it is stored: what it says, to whom, when, and where it stands."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from mailerd.campaigns.recurrence import Recurrence
from mailerd.campaigns.timing import Timing
from mailerd.queue.ids import CAMPAIGN, format_id

Status = Literal["draft", "scheduled", "sending", "sent", "paused", "cancelled", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
MARKETING = "marketing"
CHANNEL = "mailerd_campaigns"  # notified when a campaign begins, pauses, goes on or ends; the payload is its number


class Resend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The audience of a campaign for those whom another did not reach: rows of its ledger, by their status.

    Given by the numbers of `campaigns.ledger.Status`, and of those it was delivered to who have none of the marks
    `unmarked` (`campaigns.ledger.Mark`; 0: none of these). Never who unsubscribed or complained because of it; who said
    no otherwise is found out at the hand-over.
    """

    campaign: int
    statuses: list[int]
    soft_only: bool = False  # of those that bounced only the ones whose address may still be mailed
    unmarked: int = 0


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a campaign is sent. `pace`: recipients handed over a minute; None: that of the configuration.

    `topic`: what its readers unsubscribe from within the stream, "" all of it. `postal_address` "": the tenant's.
    """

    pace: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    track_opens: bool = True
    track_clicks: bool = True
    stream: str = MARKETING
    topic: str = ""
    pool: str | None = None
    postal_address: str = ""
    resend: Resend | None = None  # instead of the audience


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One row. `audience` is a `campaigns.audience.Audience` as JSON; `subject` "": that of the template."""

    id: int
    tenant: str
    name: str
    subject: str
    template_id: int
    sender_email: str
    sender_name: str
    reply_to: str
    status: Status
    status_reason: str
    audience: dict[str, Any]
    schedule_time: datetime | None
    timing: Timing
    recurrence: Recurrence | None
    parent_id: int | None
    options: Options
    ab_test_config: dict[str, Any] | None
    revision: int
    created_by: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def name_outside(self) -> str:
        """`cmp_17`, as messages and events name it."""
        return format_id(CAMPAIGN, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A campaign that has begun: which version of its template goes out, and how far it is."""

    campaign_id: int
    tenant: str
    state: Literal["running", "paused", "ended"]
    version_id: int
    written_to: int
    written: bool
    total: int
    next_at: datetime
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """A campaign, its run once it has begun, and its counts by the names of `campaign_totals`."""

    campaign: Campaign
    run: Run | None
    counts: dict[str, int]

    @property
    def waiting(self) -> int:
        """Contacts of the ledger, as far as it is written, that are not handed over."""
        if self.run is None or self.run.state == "ended":
            return 0
        over = {name: self.counts.get(name, 0) for name in ("queued", "suppressed", "cancelled", "recalled")}
        return max(0, self.run.total - over["queued"] - over["suppressed"] - over["cancelled"] + over["recalled"])
