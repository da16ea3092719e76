"""`mailerd webhooks`: endpoints of applications that are told of events."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mailerd.cli.asking import confirm
from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, LimitOption, YesOption, moment
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from pathlib import Path

    from mailerd.cli.settings import Settings
    from mailerd.feedback.webhooks.desk import WebhookDesk
    from mailerd.feedback.webhooks.values import Webhook
    from mailerd.feedback.webhooks.views import DeliveryView, ReplayView, WebhookView

app = typer.Typer(
    help="Endpoints of applications that are told of events by HTTP (Standard Webhooks 1.0). Changes hold at once, and "
    "are written to the audit table.",
    no_args_is_help=True,
)
T = TypeVar("T")
LAST = (1 << 63) - 1


def _webhook_id(text: str) -> str:
    """Told before anything else is looked at, such as whether the daemon runs."""
    from mailerd.feedback.webhooks.values import WEBHOOK

    _number(WEBHOOK, text)
    return text


WebhookArgument = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="Its id: whk_38g13rwt40000.", callback=_webhook_id)
]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose; list: all if not given.")]
EventOption = Annotated[
    list[str], typer.Option("--event", "-e", metavar="TYPE", help="Such as email.bounced, email.* or '*'; repeatable.")
]


@app.command("list")
def list_webhooks(tenant: TenantOption = "", config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the endpoints: what each wants, and how it does.

    \b
    Examples:
      mailerd webhooks list
      mailerd webhooks list --json | jq 'select(.status != "enabled")'
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.feedback.webhooks.views import webhook_view

    found = _ask(config, lambda desk: desk.all(tenant or None))
    views = [webhook_view(webhook, utc_now()) for webhook in found]
    if as_json:
        print_json_lines(views)
    elif views:
        _draw_list(found, views)
    else:
        say("There are no webhooks: `mailerd webhooks add` makes one.")


@app.command("add")
def add(
    url: Annotated[str, typer.Argument(help="https://…, or a host of webhooks.allow_private.")],
    events: EventOption,
    streams: Annotated[list[str] | None, typer.Option("--stream", metavar="NAME", help="Only of these.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=500, help="Up to so many events a request.")] = 1,
    description: Annotated[str, typer.Option("--description", "-d", help="For people.")] = "",
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an endpoint that is told of events from now on, and show its secret, once.

    \b
    Examples:
      mailerd webhooks add https://app.example.com/hooks -e email.bounced -e email.complained
      mailerd webhooks add https://app.example.com/hooks -e 'email.*' --batch 100
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.queue import actor
    from mailerd.feedback.webhooks.desk import Wanted

    wanted = Wanted(
        url=url,
        events=events,
        streams=streams or [],
        description=description,
        batch_events=batch,
        batch_wait=1000 if batch > 1 else 0,
    )
    webhook = _ask(config, lambda desk: desk.add(wanted, tenant=tenant, actor=actor()))
    _show_secret(webhook, as_json, print_json)


@app.command("show")
def show(webhook: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one endpoint.

    \b
    Examples:
      mailerd webhooks show whk_38g13rwt40000
    """
    from mailerd.feedback.webhooks.views import webhook_view

    found = _ask(config, lambda desk: _get(desk, webhook))
    _draw(webhook_view(found, utc_now()), as_json)


@app.command("enable")
def enable(webhook: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Go on telling it, from where it was.

    \b
    Examples:
      mailerd webhooks enable whk_38g13rwt40000
    """
    _switch(webhook, config, as_json, enabled=True)


@app.command("disable")
def disable(webhook: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell it nothing until it is enabled again; it keeps its place.

    \b
    Examples:
      mailerd webhooks disable whk_38g13rwt40000
    """
    _switch(webhook, config, as_json, enabled=False)


@app.command("delete")
def delete(
    webhook: WebhookArgument, yes: YesOption = False, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Tell it nothing more, also not what is pending.

    \b
    Examples:
      mailerd webhooks delete whk_38g13rwt40000 --yes
    """
    from mailerd.cli.queue import actor
    from mailerd.feedback.webhooks.views import webhook_view

    found = _ask(config, lambda desk: _get(desk, webhook))
    if not yes:
        confirm(f"Delete {found.outside_id} ({found.url})?")

    async def do(desk: "WebhookDesk") -> "Webhook":
        return _there(await desk.delete(found.id, tenant=found.tenant, actor=actor()), webhook)

    _draw(webhook_view(_ask(config, do), utc_now()), as_json)


@app.command("rotate")
def rotate(webhook: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Give it a new secret, and show it, once. For 24 hours requests are signed with the old one too.

    \b
    Examples:
      mailerd webhooks rotate whk_38g13rwt40000
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.queue import actor

    async def do(desk: "WebhookDesk") -> "Webhook":
        found = await _get(desk, webhook)
        return _there(await desk.rotate(found.id, tenant=found.tenant, actor=actor()), webhook)

    _show_secret(_ask(config, do), as_json, print_json)


@app.command("test")
def send_test(webhook: WebhookArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send it an event `webhook.test` from here, and show what it answers. Exit status 69 when it does not take it.

    \b
    Examples:
      mailerd webhooks test whk_38g13rwt40000
    """
    from mailerd.cli.output import console, facts, print_json
    from mailerd.feedback.webhooks.values import Outcome
    from mailerd.feedback.webhooks.views import outcome_view

    async def do(desk: "WebhookDesk") -> "Outcome":
        found = await _get(desk, webhook)
        outcome = await desk.test(found.id, found.tenant)
        return Outcome(0, "it is gone") if outcome is None else outcome

    view = outcome_view(_ask(config, do))
    if as_json:
        print_json(view)
    else:
        rows = (("status", str(view.status)), ("error", view.error), ("answer", view.answer))
        console().print(facts((*rows, ("took", f"{view.milliseconds} ms"))))
    if not view.delivered:
        raise typer.Exit(os.EX_UNAVAILABLE)


@app.command("deliveries")
def deliveries(
    webhook: WebhookArgument, limit: LimitOption = 50, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """List the last attempts, newest first. `mailerd webhooks retry` tells one of them again.

    \b
    Examples:
      mailerd webhooks deliveries whk_38g13rwt40000 -n 20
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.feedback.webhooks.views import delivery_view

    async def do(desk: "WebhookDesk") -> "list[DeliveryView]":
        found = await _get(desk, webhook)
        attempts = await desk.log(found.id, before=LAST, outcome=None, limit=limit)
        return [delivery_view(attempt, found) for attempt in attempts]

    views = _ask(config, do)
    if as_json:
        print_json_lines(views)
    elif views:
        _draw_deliveries(views)
    else:
        say("It was told nothing lately.")


@app.command("retry")
def retry(
    webhook: WebhookArgument,
    deliveries: Annotated[
        list[str], typer.Argument(metavar="DELIVERY...", help="Their ids, as `webhooks deliveries` shows them.")
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell it once more what those attempts were about.

    \b
    Examples:
      mailerd webhooks retry whk_38g13rwt40000 dlv_0000000000042 dlv_0000000000043
    """
    from mailerd.cli.output import print_json_lines
    from mailerd.cli.queue import actor
    from mailerd.feedback.webhooks.values import DELIVERY
    from mailerd.feedback.webhooks.views import delivery_view

    numbers = {delivery: _number(DELIVERY, delivery) for delivery in deliveries}

    async def do(desk: "WebhookDesk") -> "list[DeliveryView]":
        found = await _get(desk, webhook)
        views = []
        for delivery, number in numbers.items():
            attempt = await desk.retry(found.id, number, tenant=found.tenant, actor=actor())
            views.append(delivery_view(_there(attempt, delivery, f"webhooks deliveries {webhook}"), found))
        return views

    views = _ask(config, do)
    if as_json:
        print_json_lines(views)
    else:
        for view in views:
            print(f"{view.id} is told again now: {', '.join(view.types)}")


@app.command("replay")
def replay(
    webhook: WebhookArgument,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Such as 2026-11-22T14:00:00Z.")],
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Now if not given.")] = None,
    types: Annotated[list[str] | None, typer.Option("--event", "-e", metavar="TYPE", help="Only these.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell it once more of the events of a range of time, beside the new ones. `webhooks replays` says how far it is.

    \b
    Examples:
      mailerd webhooks replay whk_38g13rwt40000 --since 2026-11-22
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.queue import actor
    from mailerd.feedback.webhooks.views import replay_view

    first, last = moment(since), moment(until)
    if first is None:
        raise typer.BadParameter("--since is needed")

    async def do(desk: "WebhookDesk") -> "ReplayView":
        found = await _get(desk, webhook)
        made = await desk.start_replay(
            found.id, since=first, until=last, types=types or (), tenant=found.tenant, actor=actor()
        )
        return replay_view(_there(made, webhook))

    view = _ask(config, do)
    if as_json:
        print_json(view)
    else:
        print(f"{view.id} runs: `mailerd webhooks replays {view.webhook_id}` says how far it is")


@app.command("replays")
def replays(
    webhook: WebhookArgument, limit: LimitOption = 50, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """List the replays of it, newest first, and how far each is.

    \b
    Examples:
      mailerd webhooks replays whk_38g13rwt40000
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.feedback.webhooks.views import replay_view

    async def do(desk: "WebhookDesk") -> "list[ReplayView]":
        found = await _get(desk, webhook)
        return [replay_view(each) for each in await desk.replays(found.id, limit)]

    views = _ask(config, do)
    if as_json:
        print_json_lines(views)
    elif views:
        _draw_replays(views)
    else:
        say("It has had no replay: `mailerd webhooks replay` starts one.")


def _switch(text: str, config: "Path | None", as_json: bool, *, enabled: bool) -> None:
    from mailerd.cli.queue import actor
    from mailerd.feedback.webhooks.desk import Wanted
    from mailerd.feedback.webhooks.views import webhook_view

    async def do(desk: "WebhookDesk") -> "Webhook":
        found = await _get(desk, text)
        wanted = Wanted(enabled=enabled)
        return _there(await desk.change(found.id, wanted, tenant=found.tenant, actor=actor()), text)

    _draw(webhook_view(_ask(config, do), utc_now()), as_json)


def _ask(config: "Path | None", work: "Callable[[WebhookDesk], Awaitable[T]]") -> T:
    from mailerd.cli.settings import load

    settings = load(config)

    async def do() -> T:
        async with _desk(settings) as desk:
            return await work(desk)

    return asyncio.run(do())


@asynccontextmanager
async def _desk(settings: "Settings") -> "AsyncIterator[WebhookDesk]":
    from mailerd.cli.settings import database
    from mailerd.feedback.webhooks.service import Webhooks

    async with database(settings) as pool:
        webhooks = Webhooks(settings.config, pool, utc_now)
        try:
            yield webhooks.desk
        finally:
            await webhooks.stop()


async def _get(desk: "WebhookDesk", text: str) -> "Webhook":
    from mailerd.feedback.webhooks.values import WEBHOOK

    return _there(await desk.get(_number(WEBHOOK, text), None), text)


def _number(prefix: str, text: str) -> int:
    from mailerd.feedback.webhooks.values import parse_id

    try:
        return parse_id(prefix, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _there(found: T | None, text: str, see: str = "webhooks list") -> T:
    if found is None:
        raise CommandError(f"there is no {text}: see `mailerd {see}`", os.EX_NOINPUT)
    return found


def _show_secret(webhook: "Webhook", as_json: bool, print_json: Callable[[object], None]) -> None:
    from mailerd.cli.output import console, facts, say
    from mailerd.feedback.webhooks.signing import format_secret

    id_, secret = webhook.outside_id, format_secret(webhook.secret)
    if as_json:
        print_json({"id": id_, "webhook_id": id_, "url": webhook.url, "secret": secret})
        return
    console().print(facts((("webhook", id_), ("url", webhook.url), ("secret", secret))))
    say("The secret is not shown again.")


def _draw_list(webhooks: "Sequence[Webhook]", views: "Sequence[WebhookView]") -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured, console, time_of

    columns = ("webhook", "status", "tenant", "failing since", "url", "events")
    drawn = Listing(columns, below=("events", "url", "failing since", "tenant"))
    for webhook, view in zip(webhooks, views, strict=True):
        drawn.add_row(
            view.id,
            coloured(view.status),
            clean(webhook.tenant),
            time_of(view.failing_since),
            clean(view.url),
            clean(", ".join(view.events)),
        )
    console().print(drawn)


def _draw_deliveries(views: "Sequence[DeliveryView]") -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured, console, time_of

    columns = ("delivery", "at", "attempt", "outcome", "status", "events", "next", "error")
    drawn = Listing(columns, below=("error", "next", "events"), numbers=("status",))
    for view in views:
        more = f" and {len(view.types) - 3} more" if len(view.types) > 3 else ""
        drawn.add_row(
            view.id,
            time_of(view.at),
            f"{view.attempt}/{view.attempts}",
            coloured(view.outcome),
            str(view.status or ""),
            clean(", ".join(view.types[:3])) + more,
            time_of(view.next_attempt_at),
            clean(view.error),
        )
    console().print(drawn)


def _draw_replays(views: "Sequence[ReplayView]") -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, console, time_of

    drawn = Listing(
        ("replay", "status", "told", "since", "until", "finished", "events"),
        below=("events", "finished", "until"),
        numbers=("told",),
    )
    for view in views:
        drawn.add_row(
            view.id,
            view.status,
            f"{view.told:,}",
            time_of(view.since),
            time_of(view.until),
            time_of(view.finished_at),
            clean(", ".join(view.types) or "all"),
        )
    console().print(drawn)


def _draw(view: "WebhookView", as_json: bool) -> None:
    from mailerd.cli.output import coloured, console, facts, print_json, time_of

    if as_json:
        print_json(view)
        return
    rows = (
        ("webhook", view.id),
        ("url", view.url),
        ("events", ", ".join(view.events)),
        ("streams", ", ".join(view.streams)),
        ("description", view.description),
        ("batch", f"{view.batch.events} events, {view.batch.wait_ms} ms" if view.batch else ""),
        ("status", coloured(view.status)),
        ("disabled", f"{time_of(view.disabled_at)} {view.disabled_reason}".strip()),
        ("failing since", time_of(view.failing_since)),
    )
    console().print(facts(rows))
