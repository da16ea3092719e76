"""When each recipient of a campaign is due: its schedule, the recipient's own clock, and hours that mail may go out.

Recipient-local time. `schedule_time` is a moment; its wall clock in the campaign's `time_zone` is meant for each
contact's own zone: 10:00 in Berlin is 10:00 in Tokyo for contacts there, nine or eight hours earlier. A contact without
a zone, or with one that nobody knows, has the campaign's. A local time that does not exist there (clocks are put
forward) means the next minute that does; one that comes twice means the first. So that the hour is past nowhere, the
campaign begins when the first zone (UTC+14) is due. Where it is past all the same, by more than `TOLERANCE`, because
the campaign was made so late, `past` decides: at that hour of the next day (unless something else is said), now, or not
at all. `send_now` is not before `schedule_time` itself. So nobody gets the mail before that moment but who has that
hour on his own clock.

A window holds mail back until it is open: on its days from one wall time until another, in each recipient's zone or in
one that it names. One that closes before it opens goes over midnight and belongs to the day on which it opens.
"""

from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from mailerd.campaigns.zones import FIRST, LAST, all_zones, canonical_zone, instant, wall_clock, zone_of

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Past = Literal["send_now", "next_day", "skip"]
TOLERANCE = timedelta(minutes=15)  # so late an hour is not past yet
LEAD = timedelta(minutes=5)  # before the first zone is due: there is a ledger to write
ONE_DAY = timedelta(days=1)
SEARCHED = 15  # days for an open window: one day a week, and that one may be lost to a change of clocks
Clock = Annotated[str, Meta(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)(?!\n)$", description="09:00, 24:00")]


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Hours that mail may go out. Without `time_zone` they are those of each recipient."""

    days: list[Day] = msgspec.field(default_factory=lambda: list(DAYS))
    from_: Clock = msgspec.field(default="00:00", name="from")
    until: Clock = "24:00"
    time_zone: str | None = None


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a schedule is meant; `time_zone` is the campaign's."""

    local_time: bool = False
    time_zone: str = "UTC"
    past: Past = "next_day"
    window: Window | None = None


class TimingError(ValueError):
    """What cannot be: `pointer` says where in a `Timing`, the text why."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


def checked(timing: Timing) -> Timing:
    """The same with zones by their canonical names. Raises `TimingError`: an unknown zone, a window never open."""
    zone = _checked_zone(timing.time_zone, "/time_zone")
    window = timing.window
    if window is not None:
        if window.time_zone is not None:
            window = msgspec.structs.replace(window, time_zone=_checked_zone(window.time_zone, "/window/time_zone"))
        if not window.days:
            raise TimingError("/window/days", "A window without days is never open.")
        if window.from_ == "24:00":
            raise TimingError("/window/from", "A window opens between 00:00 and 23:59.")
        if window.from_ == window.until:
            raise TimingError("/window/until", "This window is never open; the whole day is from 00:00 until 24:00.")
    return msgspec.structs.replace(timing, time_zone=zone, window=window)


def _checked_zone(name: str, pointer: str) -> str:
    try:
        return canonical_zone(name)
    except ValueError as error:
        raise TimingError(pointer, f"{error}.") from None


def due(timing: Timing, schedule_time: datetime | None, zone: str, now: datetime) -> datetime | None:
    """When a recipient of that zone ('' or unknown: the campaign's) is due, in UTC; None: not at all (`past`: skip).

    `now` is when the campaign began, for all its recipients: what is past is judged once. Without `schedule_time` (it
    was sent by hand) everybody is due now, whatever the zone. The window is kept: what comes out lies within it.
    """
    at = now if schedule_time is None else max(schedule_time, now)
    if timing.local_time and schedule_time is not None:
        local = _local(timing, schedule_time, zone_of(zone, timing.time_zone), now)
        if local is None:
            return None
        at = local
    return open_at(timing, at, zone)


def _local(timing: Timing, schedule_time: datetime, zone: ZoneInfo, now: datetime) -> datetime | None:
    wall = wall_clock(schedule_time, zone_of(timing.time_zone))
    at = instant(wall, zone)
    if at >= now - TOLERANCE:
        return max(at, now)
    if timing.past == "skip":
        return None
    if timing.past == "send_now":
        return max(schedule_time, now)
    days = max((now - at) // ONE_DAY, 0)
    while at < now:
        days += 1
        at = instant(wall + days * ONE_DAY, zone)
    return at


def past_zones(timing: Timing, schedule_time: datetime, now: datetime) -> frozenset[str]:
    """The zones for which `past` decides if the campaign begins at `now`, or later as scheduled; "" is its own."""
    if not timing.local_time:
        return frozenset()
    begin = max(now, begin_at(timing, schedule_time))
    wall = wall_clock(schedule_time, zone_of(timing.time_zone))
    late = begin - TOLERANCE
    return frozenset(zone for zone in (*all_zones(), "") if instant(wall, zone_of(zone, timing.time_zone)) < late)


def open_at(timing: Timing, at: datetime, zone: str) -> datetime:
    """The first moment from `at` on, in UTC, at which mail may go to a recipient of that zone; `at` when it is open."""
    return at.astimezone(UTC) if timing.window is None else _opening(timing, timing.window, at, zone)[0]


def closes_at(timing: Timing, at: datetime, zone: str) -> datetime | None:
    """When the window that is open at `at`, or opens next, closes for a recipient of that zone; None: never."""
    return None if timing.window is None else _opening(timing, timing.window, at, zone)[1]


def _opening(timing: Timing, window: Window, at: datetime, zone: str) -> tuple[datetime, datetime]:
    """From when on, `at` or later, and until when the window is open that does not close before `at`."""
    place = zone_of(window.time_zone or zone, timing.time_zone)
    today = datetime.combine(wall_clock(at, place).date(), time())
    for offset in range(-1, SEARCHED):  # yesterday's may still be open
        midnight = today + offset * ONE_DAY
        if DAYS[midnight.weekday()] not in window.days:
            continue
        opens, closes = _on(window, midnight, place)
        if at < closes and opens < closes:
            return max(opens, at.astimezone(UTC)), closes
    raise AssertionError("a window is open once in a fortnight")


def _on(window: Window, midnight: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    opens, closes = midnight + _since_midnight(window.from_), midnight + _since_midnight(window.until)
    if closes <= opens:
        closes += ONE_DAY
    return instant(opens, zone), instant(closes, zone)


def _since_midnight(clock: str) -> timedelta:
    hours, _, minutes = clock.partition(":")
    return timedelta(hours=int(hours), minutes=int(minutes))


def begin_at(timing: Timing, schedule_time: datetime) -> datetime:
    """When a campaign with that schedule begins, in UTC: with local time when its hour comes to the first zone."""
    if not timing.local_time:
        return schedule_time.astimezone(UTC)
    return wall_clock(schedule_time, zone_of(timing.time_zone)).replace(tzinfo=UTC) - FIRST - LEAD


def last_due(timing: Timing, schedule_time: datetime) -> datetime:
    """When the hour of that schedule comes to the last zone, in UTC; the window is left out of account."""
    if not timing.local_time:
        return schedule_time.astimezone(UTC)
    return wall_clock(schedule_time, zone_of(timing.time_zone)).replace(tzinfo=UTC) - LAST
