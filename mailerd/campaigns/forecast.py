"""When a campaign will be handed over to the end, and what it waits for: pure.

Of all that takes time the one that takes longest is named: the pace, what was measured of late, the window, the clocks
of the recipients. Retries of mail that hosts put off come on top, nobody knows how many.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from mailerd.campaigns.timing import Timing, begin_at, closes_at, open_at
from mailerd.campaigns.values import Status

Limit: TypeAlias = Literal["schedule", "paused", "audience", "pace", "throughput", "window", "local_time", "none"]
SLOW = 0.8  # of the pace: what is measured below that is what counts
SEARCHED = 400  # openings of a window
WORDS: dict[Limit, str] = {
    "schedule": "it begins then",
    "paused": "it is paused",
    "audience": "the audience is still being written",
    "pace": "its pace",
    "throughput": "what was handed over in the last minutes",
    "window": "the hours in which mail may go out",
    "local_time": "the hour has not come in all time zones",
    "none": "nothing is left to do",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a campaign stands. `pace` and `measured` are contacts a minute; `measured` None: too early to tell.

    `waiting` are the contacts not handed over, `next_due` and `last_due` when the first and the last of them
    are due; of one that has not begun `waiting` is about its audience, None when nobody has counted.
    """

    status: Status
    timing: Timing
    pace: float
    schedule_time: datetime | None = None
    waiting: int | None = None
    next_due: datetime | None = None
    last_due: datetime | None = None
    written: bool = True
    measured: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """`finish` None: nobody knows. `limit` is what binds most, `detail` that in words; `until`: it waits till then."""

    finish: datetime | None
    limit: Limit
    detail: str
    until: datetime | None = None


def forecast(progress: Progress, now: datetime) -> Forecast | None:
    """What may be said now; None of campaigns that are no more to be sent, and of drafts."""
    match progress.status:
        case "paused":
            return Forecast(None, "paused", WORDS["paused"])
        case "scheduled" if progress.schedule_time is not None:
            begin = max(begin_at(progress.timing, progress.schedule_time), now)
            finish = None if progress.waiting is None else _finish(progress, begin)[0]
            return Forecast(finish, "schedule", WORDS["schedule"], begin)
        case "sending":
            finish, limit = _finish(progress, now)
            return Forecast(finish, limit, WORDS[limit], None if limit == "audience" else _until(progress, now))
    return None


def _until(progress: Progress, now: datetime) -> datetime | None:
    """Before when nobody's mail is handed over: where hours are those of each recipient the ledger knows it."""
    window = progress.timing.window
    opens = open_at(progress.timing, now, "")
    of_each = window is not None and window.time_zone is None
    first = max(opens, progress.next_due or now) if not of_each else progress.next_due or opens
    return first if first > now else None


def _finish(progress: Progress, begin: datetime) -> tuple[datetime, Limit]:
    """The end of all that waits from `begin` on, and what it hangs on."""
    waiting = progress.waiting or 0
    rate, limit = progress.pace, "pace"
    if progress.measured is not None and progress.measured < SLOW * progress.pace and waiting:
        rate, limit = max(progress.measured, 1 / 60), "throughput"
    work = timedelta(minutes=waiting / rate)
    at_once = begin + work
    finish = _worked(progress.timing, begin, work)
    binding: Limit = "window" if finish - at_once > work else "throughput" if limit == "throughput" else "pace"
    if progress.last_due is not None and progress.last_due > finish:
        # The window has moved due times already, and a campaign without local time has no others.
        finish, binding = progress.last_due, "local_time" if progress.timing.local_time else "window"
    if not progress.written:
        return finish, "audience"
    return finish, binding if waiting else "none"


def _worked(timing: Timing, begin: datetime, work: timedelta) -> datetime:
    """When so much work is done in open hours from `begin` on; those of the campaign's zone stand for all."""
    at = open_at(timing, begin, "")
    for _ in range(SEARCHED):
        closes = closes_at(timing, at, "")
        if closes is None or at + work <= closes:
            return at + work
        work -= closes - at
        at = open_at(timing, closes, "")
    return at + work
