"""`mailerd sources`: our addresses, whether they may send, and why not."""

import asyncio
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import typer

from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.cli.serving import VARIABLE
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.config import Config
    from mailerd.delivery.source_checks import Check
    from mailerd.delivery.source_watch import CheckOfNode

app = typer.Typer(invoke_without_command=True)

WORST_FIRST = ("failing", "warning", "unknown", "ok")
NOBODY = "no node has looked yet"
NOT_ELSEWHERE = ("bound", "held")  # checks that fail on every node but the one that has the address


class CheckView(msgspec.Struct):
    """One check. `state`: ok, warning, failing or unknown; `checked_at`: when it was last known."""

    name: str
    state: str
    text: str
    since: datetime | None = None
    checked_at: datetime | None = None


class SourceView(msgspec.Struct):
    """A source as one node sees it. `state` is the worst of its checks, `since` and `reason` are of that one.

    A source that is failing on a node sends nothing from there. `node` "": none has looked yet.
    """

    source: str
    address: str | None
    ehlo: str
    pools: list[str]
    node: str
    state: str
    since: datetime | None
    reason: str
    checks: list[CheckView]


@app.callback()
def sources(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the sources with their pools: whether each may send, since when, and what is wrong with it.

    As the running daemon found it; with several nodes, as each node did. `mailerd sources check` looks now.

    \b
    Examples:
      mailerd sources
      mailerd sources --json | jq 'select(.state == "failing") | .reason'
    """
    if context.invoked_subcommand is not None:
        if config is not None:
            os.environ[VARIABLE] = str(config)
        return
    from mailerd.cli.output import print_json_lines, say, time_of
    from mailerd.cli.settings import load

    settings = load(config)
    found, runs = asyncio.run(_found(settings))
    views = _views(settings.config, found)
    if as_json:
        print_json_lines(views)
    else:
        _draw(_of_interest(views), utc_now())
    if not runs:
        last = max((each.check.checked_at for each in found), default=None)
        say(f"No daemon runs: as of {time_of(last)}." if last else "No daemon runs.")


@app.command("check")
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Run the checks of all sources now, on this host, and show each; nothing is changed.

    Also without a running daemon, such as before a start. Exit status 69 when a source would be out of its pools.

    \b
    Examples:
      mailerd sources check
      mailerd sources check --json | jq '.checks[] | select(.state != "ok")'
    """
    from mailerd.cli.output import print_json_lines, working
    from mailerd.cli.settings import load

    settings = load(config)
    with working("asking DNS"):
        views = asyncio.run(_look(settings.config))
    if as_json:
        print_json_lines(views)
    else:
        _draw_checks(views)
    if any(view.state == "failing" for view in views):
        raise typer.Exit(os.EX_UNAVAILABLE)


async def _found(settings: "Settings") -> "tuple[list[CheckOfNode], bool]":
    """The checks, and whether any node runs."""
    from mailerd.cli.settings import database
    from mailerd.delivery.source_watch import SourceStore

    async with database(settings) as pool:
        store = SourceStore(pool)
        return await store.checks_of_all(), await store.any_runs()


async def _look(config: "Config") -> list[SourceView]:
    from mailerd.delivery.resolver import Resolver
    from mailerd.delivery.source_checks import BOUND, SourceChecker, settle

    resolver = Resolver(config.resolver)
    checker = SourceChecker(config, resolver)
    now = utc_now()
    views = []
    for source in config.sources:
        modes = {BOUND: "act", **checker.modes(source)}
        findings = [checker.bound(source), *await checker.identity(source)]
        checks = [settle(source, finding, modes[finding.name], None, now) for finding in findings]
        views.append(_view(config, source, "", map(_check_view, checks)))
    await resolver.close()
    return views


def _views(config: "Config", found: "Sequence[CheckOfNode]") -> list[SourceView]:
    """One for each source and node, in the order of the configuration."""
    views = []
    for source in config.sources:
        nodes = dict.fromkeys(each.node for each in found if each.check.source == source)
        for node in nodes or [""]:
            checks = [each.check for each in found if (each.node, each.check.source) == (node, source)]
            views.append(_view(config, source, node, map(_check_view, checks)))
    return views


def _check_view(check: "Check") -> CheckView:
    return CheckView(check.name, check.state, check.text, check.since, check.checked_at)


def _view(config: "Config", source: str, node: str, checks: Iterable[CheckView]) -> SourceView:
    order = ("bound", "held", "ptr", "ehlo", "spf")
    ordered = sorted(checks, key=lambda each: order.index(each.name) if each.name in order else len(order))
    settings = config.sources[source]
    worst = min(ordered, key=lambda each: WORST_FIRST.index(each.state), default=CheckView("", "unknown", NOBODY))
    return SourceView(
        source,
        settings.address,
        settings.ehlo or config.hostname,
        [name for name, pool in config.pools.items() if any(member.name == source for member in pool.sources)],
        node,
        worst.state,
        worst.since,
        "" if worst.state == "ok" else worst.text,
        ordered,
    )


def _of_interest(views: Sequence[SourceView]) -> list[SourceView]:
    """Without the nodes that do not have an address that another node has."""
    here = {view.source for view in views if not _is_elsewhere(view)}
    return [view for view in views if view.source not in here or not _is_elsewhere(view)]


def _is_elsewhere(view: SourceView) -> bool:
    return any(each.name in NOT_ELSEWHERE and each.state == "failing" for each in view.checks)


def _draw(views: Sequence[SourceView], now: datetime) -> None:
    from mailerd.cli.output import clean, coloured, console, from_now, say, table

    if not views:
        say("There are no sources: the system chooses the address that mail leaves from.")
        return
    columns = ["source", "address", "pools", "node", "state", "since", "what is wrong"]
    several = len({view.node for view in views}) > 1
    if not several:
        columns.remove("node")
    drawn = table(columns, whole=("source", "state", "since"))
    for view in views:
        address = view.address or "the system chooses"
        node = [clean(view.node)] if several else []
        place = [view.source, address, ", ".join(view.pools) or "none", *node]
        others = [
            f"{each.name}: {each.text}" for each in view.checks if each.state != "ok" and each.text != view.reason
        ]
        wrong = "\n".join([view.reason, *others] if view.reason else others)
        drawn.add_row(*place, coloured(view.state), from_now(view.since, now), clean(wrong))
    console().print(drawn)


def _draw_checks(views: Sequence[SourceView]) -> None:
    from mailerd.cli.output import clean, coloured, console, say, table

    if not views:
        say("There are no sources: the system chooses the address that mail leaves from.")
        return
    drawn = table(("source", "check", "state", "what was found"), whole=("source", "check", "state"))
    for view in views:
        for each in view.checks:
            drawn.add_row(view.source, each.name, coloured(each.state), clean(each.text))
    console().print(drawn)
