"""`mailerd warmup`: how far new addresses are, at each provider."""

import asyncio
import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.options import ConfigOption, JsonOption, LimitOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from rich.text import Text

    from mailerd.cli.settings import Settings
    from mailerd.config import WarmUpPlan
    from mailerd.delivery.warmup_budgets import Progress

SourceOption = Annotated[str | None, typer.Option("--source", metavar="NAME", help="Of this source.")]
ProviderOption = Annotated[
    str | None, typer.Option("--provider", metavar="NAME", help="At this provider, or site that belongs to none.")
]

WIDE = 140  # columns, from which the verdict has room beside the rest
BAR = 10  # columns
CHART = 20
HEIGHTS = "▁▂▃▄▅▆▇█"
AHEAD = "·"
VERDICTS = {"advance": "green", "done": "green", "hold": "yellow", "back": "red", "rewarm": "magenta"}


def warmup(
    source: SourceOption = None,
    provider: ProviderOption = None,
    limit: LimitOption = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far sources with a warm-up are at each provider, those that sent most today first.

    What is used counts what workers have drawn for their next recipients, up to a fiftieth of the budget each. The
    verdict is that of the last day judged: advance, hold, back, done (warm), or rewarm (a long time without mail).

    \b
    Examples:
      mailerd warmup
      mailerd warmup --source mta2
      mailerd warmup --json | jq 'select(.left == 0)'
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.cli.settings import load

    settings = load(config)
    sources = [name for name, each in settings.config.sources.items() if each.warmup is not None]
    if source is not None and source not in sources:
        known = ", ".join(sources) or "none"
        raise typer.BadParameter(f"There is no source {source!r} with a warm-up; those that have one: {known}.")
    wanted = [source] if source is not None else sources
    now = utc_now()
    rows = asyncio.run(_overview(settings, wanted, provider, now, limit))
    shown = [_plain(settings, row, now) for row in rows]
    if as_json:
        print_json_lines(shown)
        return
    if not sources:
        say("No source has a warm-up: see sources in the configuration.")
    for name in wanted:
        if not any(row["source"] == name for row in shown):
            say(f"{name} has sent nothing yet{'' if provider is None else f' to {provider}'}.")
    if shown:
        _draw(settings, shown)
    if len(shown) == limit:
        say(f"Only the first {limit:,}: --limit shows more.")


async def _overview(
    settings: "Settings", sources: Sequence[str], provider: str | None, now: datetime, limit: int
) -> "list[Progress]":
    from mailerd.cli.settings import database
    from mailerd.delivery.warmup_budgets import WarmUpStore

    if not sources:
        return []
    async with database(settings) as pool:
        return await WarmUpStore(pool).overview(sources, provider, now, limit)


def _plain(settings: "Settings", row: "Progress", now: datetime) -> dict[str, Any]:
    """One line of the result; `stage` counts from 1, and is null where the source is warm."""
    from mailerd.delivery.warmup import adopt, budget, is_warm, window

    name, plan, started = _plan_of(settings, row.source)
    state = adopt(row.state, name, plan, started, now.date())
    warm = is_warm(state, plan)
    used = row.drawn_hour if plan.per == "hour" else row.drawn_day
    limit = budget(plan, state.stage)
    return {
        "source": row.source,
        "provider": row.provider,
        "plan": name,
        "per": plan.per,
        "stage": None if warm else state.stage + 1,
        "stages": len(plan.stages),
        "budget": limit,
        "used": None if limit is None else used,
        "left": None if limit is None else max(0, limit - used),
        "window_ends": None if limit is None else window(plan, now)[1],
        "next_budget": None if warm else budget(plan, state.stage + 1),
        "stage_since": state.stage_since,
        "last_day": state.last_day,
        "verdict": state.verdict,
        "today": {
            "delivered": row.today.delivered,
            "deferred": row.today.deferred,
            "bounced": row.today.bounced,
            "complained": row.today.complained,
        },
    }


def _plan_of(settings: "Settings", source: str) -> "tuple[str, WarmUpPlan, date | None]":
    """Name, plan and start of a source's warm-up."""
    from mailerd.delivery.warmup import plans_of

    warming = settings.config.sources[source].warmup
    assert warming is not None
    started = date.fromisoformat(warming.started) if warming.started else None
    return warming.plan, plans_of(settings.config.warmup)[warming.plan], started


def _draw(settings: "Settings", rows: Sequence[dict[str, Any]]) -> None:
    """As a table; on a narrow terminal as a few lines for each."""
    from rich.padding import Padding
    from rich.text import Text

    from mailerd.cli.output import clean, console, table

    columns = ("source", "provider", "plan", "stage", "", "used", "", "left", "next", "verdict of the last day")
    drawn = table(columns, numbers=("used", "left", "next"), whole=("stage", ""))
    screen = console()
    for row in rows:
        chart = _chart(_plan_of(settings, row["source"])[1], row["stage"])
        stage = "warm" if row["stage"] is None else f"{row['stage']} of {row['stages']}"
        used = "" if row["used"] is None else f"{row['used']:,} of {row['budget']:,}/{row['per']}"
        left = "" if row["left"] is None else f"{row['left']:,}"
        following = "" if row["stage"] is None else _following(row["next_budget"])
        names = clean(row["source"]), clean(row["provider"]), clean(row["plan"])
        verdict = _verdict(clean(row["verdict"]))
        if screen.width >= WIDE:
            drawn.add_row(*names, stage, chart, used, _bar(row), left, following, verdict)
            continue
        screen.print(
            Text(
                f"{names[0]} at {names[1]}: {names[2]}, {'' if row['stage'] is None else 'stage '}{stage}  "
            ).append_text(chart)
        )
        if row["used"] is not None:
            words = Text(f"{used} used  ").append_text(_bar(row)).append(f"  {left} left, next stage {following}")
            screen.print(Padding(words, (0, 0, 0, 4)))
        screen.print(Padding(verdict, (0, 0, 0, 4)))
    if screen.width >= WIDE:
        screen.print(drawn)


def _following(budget: int | None) -> str:
    return "warm" if budget is None else f"{budget:,}"


def _verdict(text: str) -> "Text":
    from rich.text import Text

    word, colon, why = text.partition(":")
    return (
        Text(word, style=VERDICTS.get(word, "")).append(f"{colon}{why}", style="") if text else Text("not judged yet")
    )


def _chart(plan: "WarmUpPlan", stage: int | None) -> "Text":
    """The stages so far as rising bars (of their logarithms), and a dot for each to come; at most CHART columns."""
    from rich.text import Text

    reached = len(plan.stages) if stage is None else stage
    columns = min(CHART, len(plan.stages))
    chosen = [column * (len(plan.stages) - 1) // max(1, columns - 1) for column in range(columns)]
    lowest, highest = math.log(plan.stages[0]), math.log(plan.stages[-1])
    bars = Text()
    for number in chosen:
        height = (math.log(plan.stages[number]) - lowest) / ((highest - lowest) or 1)
        done = number < reached
        bars.append(HEIGHTS[round(height * (len(HEIGHTS) - 1))] if done else AHEAD, style="green" if done else "dim")
    return bars


def _bar(row: dict[str, Any]) -> "Text":
    """How much of the window's budget is used."""
    from rich.text import Text

    if row["used"] is None:
        return Text("")
    full = min(BAR, math.ceil(BAR * row["used"] / row["budget"]))
    return Text("█" * full, style="cyan").append("░" * (BAR - full), style="dim")
