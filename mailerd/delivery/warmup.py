"""Warm-up of new addresses: how much a source may send to one provider, and when that grows or shrinks. Pure.

A plan is a row of stages, each a budget of recipients for every window (hour or day, UTC). After each day that sent
something the stage is judged by what became of the mail: on, held, or one back. After the last stage the source is warm
at that provider, until it has sent nothing there for so long that it starts again. Nothing goes by calendar days alone:
a source that sends little stays where it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple

from mailerd.config import WarmUp, WarmUpPlan

Outcome = Literal["delivered", "deferred", "bounced", "complained"]

DAY = 86_400  # seconds
BUSY_HOURS = (
    5  # that make a day of an hourly plan: mail leaves in few hours; Mailtrap's hour, too, is a fifth of its day
)
SKEW = timedelta(days=2)  # nodes need not agree on what day it is; a date further ahead comes from a wrong clock
FEW = 100  # recipients, or a tenth of the stage where that is less: fewer say too little to take a stage back


def _growing(first: int, factor: float, stages: int) -> tuple[int, ...]:
    """Each stage `factor` times the one before, to two digits."""
    exact = [first * factor**stage for stage in range(stages)]
    return tuple(round(value, 1 - math.floor(math.log10(value))) for value in map(round, exact))


# The names are also in config.checks.BUILT_IN_PLANS.
PLANS: Mapping[str, WarmUpPlan] = {
    # "1,000 per hour for a new address, raised over weeks": by a fifth on each of four weeks' sending days.
    "documents": WarmUpPlan(per="hour", stages=_growing(1_000, 1.2, 28)),
    # SparkPost's table (support-docs, user-guide/automated-ip-warmup.md).
    "standard": WarmUpPlan(
        per="day",
        stages=(
            *(200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 50_000, 75_000),
            *(100_000, 150_000, 200_000, 250_000, 325_000, 400_000, 500_000, 600_000, 750_000, 1_000_000),
            *(1_250_000, 1_750_000, 2_000_000, 3_000_000, 4_250_000, 5_000_000, 6_000_000, 7_500_000, 10_000_000),
        ),
    ),
    # Mailtrap's growth of 30 % a day from half its start (help.mailtrap.io, article 98), and on to a million.
    "conservative": WarmUpPlan(per="day", stages=_growing(150, 1.3, 35)),
}


class Wait(NamedTuple):
    """Not now, but `until` (aware) there may be something again; `text` says why."""

    until: datetime
    text: str


@dataclass(frozen=True, slots=True)
class State:
    """Where one source stands at one provider. `stage` counts from 0; the plan's number of stages means warm.

    `plan` names the plan and the budget of the stage (`standard 200/day`, `standard warm`), by which the place is found
    again in a plan that was changed.
    """

    plan: str
    stage: int
    stage_since: date
    last_day: date | None = None  # judged, that sent something
    verdict: str = ""  # begins with advance, hold, back, done, or rewarm


@dataclass(frozen=True, slots=True)
class DayFacts:
    """What became of a day's recipients. Deferrals count each time; complaints on the day they were heard of."""

    day: date
    delivered: int = 0
    deferred: int = 0
    bounced: int = 0
    complained: int = 0

    @property
    def tried(self) -> int:
        return self.delivered + self.deferred + self.bounced


def plans_of(settings: WarmUp) -> dict[str, WarmUpPlan]:
    """The built-in plans and those of the configuration."""
    return {**PLANS, **settings.plans}


def begin(name: str, plan: WarmUpPlan, today: date) -> State:
    return State(_label(name, plan, 0), 0, today)


def is_warm(state: State, plan: WarmUpPlan) -> bool:
    return state.stage >= len(plan.stages)


def budget(plan: WarmUpPlan, stage: int) -> int | None:
    """Recipients of one window; None: past the last stage, any number."""
    return plan.stages[stage] if stage < len(plan.stages) else None


def day_volume(plan: WarmUpPlan, stage: int) -> int:
    """The recipients that make a whole day of a stage."""
    return plan.stages[stage] * (BUSY_HOURS if plan.per == "hour" else 1)


def window(plan: WarmUpPlan, now: datetime) -> tuple[datetime, datetime]:
    """Start and end of the hour or day (UTC) that `now`, a time in UTC, is in."""
    start = now.replace(minute=0, second=0, microsecond=0)
    if plan.per == "hour":
        return start, start + timedelta(hours=1)
    start = start.replace(hour=0)
    return start, start + timedelta(days=1)


def adopt(state: State, name: str, plan: WarmUpPlan, started: date | None, today: date) -> State:
    """The state under the plan that the configuration has now, which may not be the one it was made under.

    A changed plan goes on at the stage with the nearest budget; warm stays warm. A `started` after the present stage
    began, and not in the future, begins again. Dates far in the future, left by a clock that was wrong, become today.
    """
    if started is not None and state.stage_since < started <= today:
        return begin(name, plan, started)
    if max(state.stage_since, state.last_day or state.stage_since) > today + SKEW:
        last = None if state.last_day is None else min(state.last_day, today - timedelta(days=1))
        state = replace(state, stage_since=min(state.stage_since, today), last_day=last)
    if state.plan == _label(name, plan, state.stage):
        return state
    stage = _nearest(state, plan)
    return replace(state, plan=_label(name, plan, stage), stage=stage)


def last_sending_day(state: State, days: Sequence[DayFacts]) -> DayFacts | None:
    """Of `days` (in order) what there is to judge: the last one that sent something in this stage, and was not judged.

    Complaints of all days since the one judged last are put together on it: they come in days after the mail.
    """
    new = [day for day in days if day.day >= state.stage_since and (state.last_day is None or day.day > state.last_day)]
    sending = [day for day in new if day.tried]
    return replace(sending[-1], complained=sum(day.complained for day in new)) if sending else None


def judge(state: State, plan: WarmUpPlan, day: DayFacts | None, settings: WarmUp, today: date) -> State:
    """The state from `today` on, after the last day that sent something; None: no mail since the day judged last.

    On when `settings.advance` percent of the stage were delivered and no share of failures is above its bound, one back
    when one is above twice its bound, else held. One recipient alone is no share.
    """
    quiet_since = max(state.stage_since, state.last_day or state.stage_since)
    idle_days = ((day.day if day else today) - quiet_since).days - 1  # whole days without mail
    if state.stage > 0 and idle_days >= settings.idle / DAY:
        verdict = f"rewarm: no mail for {idle_days} days"
        return State(_label(plan_name(state), plan, 0), 0, today, day.day if day else state.last_day, verdict)
    if day is None:
        return state
    if is_warm(state, plan):
        return replace(state, last_day=day.day)
    step, verdict = _decide(day, day_volume(plan, state.stage), state.stage, settings)
    stage = state.stage + step
    if stage == len(plan.stages):
        verdict = verdict.replace("advance", "done", 1)
    since = today if step else state.stage_since
    return State(_label(plan_name(state), plan, stage), stage, since, day.day, verdict)


def plan_name(state: State) -> str:
    return state.plan.partition(" ")[0]


def _decide(day: DayFacts, volume: int, stage: int, settings: WarmUp) -> tuple[int, str]:
    """Stages to go, -1 to 1, and why."""
    shares = (
        ("deferred", day.deferred, day.tried, settings.deferred),
        ("bounced", day.bounced, day.tried, settings.bounced),
        ("complained", day.complained, day.delivered, settings.complained),
    )
    above = [share for share in shares if _percent(share[1], share[2]) > share[3] and share[1] > 1]
    far_above = [share for share in above if _percent(share[1], share[2]) > 2 * share[3]]
    if far_above and stage > 0 and day.tried >= min(FEW, volume / 10):
        return -1, f"back: {_named(far_above)}, above twice the bound"
    if above:
        return 0, f"hold: {_named(above)}, above the bound"
    if day.delivered * 100 < volume * settings.advance:
        return 0, f"hold: {day.delivered:,} of {volume:,} delivered, {settings.advance} % are asked for"
    return 1, f"advance: {day.delivered:,} of {volume:,} delivered"


def _named(shares: Sequence[tuple[str, int, int, float]]) -> str:
    return ", ".join(f"{name} {_percent(count, of):.3g} % (bound {bound:g} %)" for name, count, of, bound in shares)


def _percent(count: int, of: int) -> float:
    return 100 * count / max(of, 1)


def _label(name: str, plan: WarmUpPlan, stage: int) -> str:
    limit = budget(plan, stage)
    return f"{name} warm" if limit is None else f"{name} {limit}/{plan.per}"


def _nearest(state: State, plan: WarmUpPlan) -> int:
    """The stage whose day is nearest, as a ratio, to the one in the state's label; of two the lower."""
    label = state.plan.partition(" ")[2]
    limit, _, per = label.partition("/")
    if label == "warm":
        return len(plan.stages)
    if not limit.isdecimal():
        return min(state.stage, len(plan.stages) - 1)
    before = max(1, int(limit)) * (BUSY_HOURS if per == "hour" else 1)
    return min(range(len(plan.stages)), key=lambda stage: abs(math.log(day_volume(plan, stage) / before)))
