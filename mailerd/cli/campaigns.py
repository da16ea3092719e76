"""`mailerd campaigns`: how campaigns stand, and steering them; what comes before that: `campaign_drafts`."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli import campaign_drafts
from mailerd.cli.asking import confirm
from mailerd.cli.campaign_desk import CampaignArgument, TenantOption, checked, desk_of, number_of, standing_of
from mailerd.cli.campaign_drawing import draw, draw_analytics, draw_list, draw_recipients
from mailerd.cli.options import ConfigOption, JsonOption, LimitOption, YesOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.campaigns.desk import CampaignDesk
    from mailerd.campaigns.recipients import Reached
    from mailerd.campaigns.values import Campaign, Standing
    from mailerd.cli.settings import Settings
    from mailerd.db import Connection, Pool

app = typer.Typer(
    help="See how campaigns stand; check, try, schedule, send, pause, resume and cancel them. What changes something is"
    " written to the audit table.",
    no_args_is_help=True,
)
StatusOption = Annotated[str | None, typer.Option("--status", metavar="WORD", help="Only those that stand so.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for those who look later.")]
OpenedOption = Annotated[
    bool | None, typer.Option("--opened/--not-opened", help="Who opened it: people, not machines.")
]
ClickedOption = Annotated[
    bool | None, typer.Option("--clicked/--not-clicked", help="Who clicked: people, not machines.")
]
UnsubscribedOption = Annotated[bool | None, typer.Option("--unsubscribed/--not-unsubscribed", help="Who left by it.")]
ComplainedOption = Annotated[bool | None, typer.Option("--complained/--not-complained", help="Who called it spam.")]
WATCH_EVERY = 2.0  # seconds


@app.command("list")
def list_(
    status: StatusOption = None,
    tenant: TenantOption = "default",
    limit: LimitOption = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List campaigns, newest first.

    \b
    Examples:
      mailerd campaigns list --status sending
      mailerd campaigns list --json | jq 'select(.failed > 0) | .campaign_id'
    """
    from mailerd.cli.settings import load

    found = asyncio.run(_list(load(config), tenant, status, limit))
    draw_list(found, as_json=as_json)


@app.command("show")
def show(
    campaign: CampaignArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again until it is over.")] = False,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one campaign: how far it is, when it will be through, and what that hangs on.

    \b
    Examples:
      mailerd campaigns show cmp_17
      mailerd campaigns show cmp_17 --watch
    """
    from mailerd.cli.settings import load

    asyncio.run(_show(load(config), tenant, number_of(campaign), watch=watch, as_json=as_json))


@app.command("analytics")
def analytics(
    campaign: CampaignArgument,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what came of a campaign: counts and rates, of people and not of machines.

    \b
    Examples:
      mailerd campaigns analytics cmp_17
      mailerd campaigns analytics cmp_17 --json | jq .open_rate
    """
    from mailerd.cli.settings import database, load

    async def work() -> "Standing":
        settings = load(config)
        async with database(settings) as pool:
            return await standing_of(desk_of(settings, pool), number_of(campaign), tenant)

    draw_analytics(asyncio.run(work()), as_json=as_json)


app.command("check")(campaign_drafts.check)
app.command("test")(campaign_drafts.try_out)
app.command("schedule")(campaign_drafts.schedule)
app.command("duplicate")(campaign_drafts.duplicate)


@app.command("send")
def send(
    campaign: CampaignArgument,
    tenant: TenantOption = "default",
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin now, to everybody at once. Checks it, says to how many it would go, and asks.

    \b
    Examples:
      mailerd campaigns send cmp_17
      mailerd campaigns send cmp_17 --yes --json
    """
    from mailerd.cli.settings import load

    asyncio.run(_send(load(config), tenant, number_of(campaign), sure=yes, as_json=as_json))


@app.command("pause")
def pause(
    campaign: CampaignArgument,
    reason: ReasonOption = "",
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand nothing more over and hold what is in the queue.

    \b
    Examples:
      mailerd campaigns pause cmp_17 --reason "wrong price"
    """
    _steer("pause", campaign, tenant, config, as_json=as_json, reason=reason)


@app.command("resume")
def resume(
    campaign: CampaignArgument,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on where it was paused.

    \b
    Examples:
      mailerd campaigns resume cmp_17
    """
    _steer("resume", campaign, tenant, config, as_json=as_json)


@app.command("cancel")
def cancel(
    campaign: CampaignArgument,
    reason: ReasonOption = "",
    tenant: TenantOption = "default",
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give up what is not handed over, and take back what is still in the queue. Asks first.

    \b
    Examples:
      mailerd campaigns cancel cmp_17 --reason "wrong list"
    """
    _steer("cancel", campaign, tenant, config, as_json=as_json, ask=not yes, reason=reason)


@app.command("recipients")
def recipients(
    campaign: CampaignArgument,
    status: StatusOption = None,
    opened: OpenedOption = None,
    clicked: ClickedOption = None,
    unsubscribed: UnsubscribedOption = None,
    complained: ComplainedOption = None,
    tenant: TenantOption = "default",
    limit: LimitOption = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the contacts of a campaign and what became of the mail to each: who was not reached, and why; who clicked.

    \b
    Examples:
      mailerd campaigns recipients cmp_17 --status suppressed
      mailerd campaigns recipients cmp_17 --status bounced --limit 1000000 --json
      mailerd campaigns recipients cmp_17 --opened --not-clicked
    """
    from mailerd.cli.settings import load

    did = {"opened": opened, "clicked": clicked, "unsubscribed": unsubscribed, "complained": complained}
    found = asyncio.run(_recipients(load(config), tenant, number_of(campaign), status, did, limit))
    draw_recipients(found, as_json=as_json)


# at work


async def _list(settings: "Settings", tenant: str, status: str | None, limit: int) -> "list[Standing]":
    from mailerd.campaigns.values import STATUSES
    from mailerd.cli.settings import database

    if status is not None and status not in STATUSES:
        raise typer.BadParameter(f"a campaign is {', '.join(STATUSES)}")
    statuses = None if status is None else [status]
    async with database(settings) as pool:
        return await desk_of(settings, pool).store.list(tenant, statuses=statuses, limit=limit, before=None)


async def _show(settings: "Settings", tenant: str, id_: int, *, watch: bool, as_json: bool) -> None:
    from mailerd.cli.settings import database

    async with database(settings) as pool:
        desk = desk_of(settings, pool)
        while True:
            standing = await standing_of(desk, id_, tenant)
            draw(standing, await desk.forecast(standing), as_json=as_json)
            if not watch or standing.campaign.status in ("sent", "cancelled", "failed", "draft"):
                return
            await asyncio.sleep(WATCH_EVERY)


async def _send(settings: "Settings", tenant: str, id_: int, *, sure: bool, as_json: bool) -> None:
    from mailerd.campaigns.audience import read_audience
    from mailerd.campaigns.lifecycle import WrongStatusError
    from mailerd.cli.failure import CommandError
    from mailerd.cli.output import clean, count_of
    from mailerd.cli.settings import database
    from mailerd.queue.ids import CAMPAIGN, format_id

    async with database(settings) as pool:
        desk = desk_of(settings, pool)
        campaign = (await standing_of(desk, id_, tenant)).campaign
        if campaign.status not in ("draft", "scheduled") or campaign.recurrence is not None:
            raise CommandError(str(WrongStatusError(campaign, "sent")).rstrip("."))
        await checked(desk, campaign)
        if not sure:
            to = f"those of {format_id(CAMPAIGN, again.campaign)}" if (again := campaign.options.resend) else ""
            if not to:
                size = await desk.audiences.estimate(tenant, read_audience(campaign.audience), utc_now())
                to = f"{'' if size.method == 'exact' else 'about '}{count_of(size.estimate, 'contact')}"
            confirm(f"Send {campaign.name_outside} ({clean(campaign.name)}) to {to} now?")
        await _step(pool, desk, "send", campaign, as_json=as_json)


def _steer(
    step: str, name: str, tenant: str, config: Path | None, *, as_json: bool, ask: bool = False, **more: str
) -> None:
    from mailerd.campaigns.lifecycle import WrongStatusError
    from mailerd.cli.failure import CommandError
    from mailerd.cli.output import clean
    from mailerd.cli.settings import database, load

    async def work() -> None:
        settings = load(config)
        async with database(settings) as pool:
            desk = desk_of(settings, pool)
            campaign = (await standing_of(desk, number_of(name), tenant)).campaign
            if ask:
                if campaign.status not in ("scheduled", "sending", "paused"):
                    raise CommandError(str(WrongStatusError(campaign, "cancelled")).rstrip("."))
                confirm(f"Cancel {campaign.name_outside} ({clean(campaign.name)}) for good?")
            await _step(pool, desk, step, campaign, as_json=as_json, **more)

    asyncio.run(work())


async def _step(
    pool: "Pool", desk: "CampaignDesk", step: str, campaign: "Campaign", *, as_json: bool, **more: str
) -> None:
    """Take a step and see it through in the queue."""
    from mailerd.campaigns.lifecycle import ChangedMeanwhileError, WrongStatusError
    from mailerd.cli.failure import CommandError
    from mailerd.cli.output import print_json
    from mailerd.cli.queue import actor

    try:
        async with pool.acquire() as connection, connection.transaction():
            done = await _stepped(desk, step, campaign, connection, more)
    except (WrongStatusError, ChangedMeanwhileError) as error:
        raise CommandError(str(error).rstrip(".")) from None
    await desk.steerer.steer(campaign.id, actor=actor())
    if as_json:
        print_json({"campaign_id": done.name_outside, "status": done.status})
    else:
        print(f"{done.name_outside} ({done.name}) is {done.status}.")


async def _stepped(
    desk: "CampaignDesk", step: str, campaign: "Campaign", connection: "Connection", more: dict[str, str]
) -> "Campaign":
    from mailerd.cli.queue import actor

    life, id_, tenant = desk.lifecycle, campaign.id, campaign.tenant
    by: dict[str, Any] = {"actor": actor(), "now": utc_now(), "connection": connection}
    match step:
        case "send":
            return await life.send(campaign, **by)
        case "pause":
            return await life.pause(id_, tenant, reason=more["reason"], **by)
        case "resume":
            return await life.resume(id_, tenant, **by)
        case _:
            return await life.cancel(id_, tenant, reason=more["reason"], **by)


async def _recipients(
    settings: "Settings", tenant: str, id_: int, status: str | None, did: dict[str, bool | None], limit: int
) -> "list[Reached]":
    from mailerd.campaigns.ledger import Status
    from mailerd.campaigns.recipients import marks_of
    from mailerd.cli.settings import database

    words = {each.word: int(each) for each in Status}
    if status is not None and status not in words:
        raise typer.BadParameter(f"what becomes of a contact is {', '.join(words)}")
    marked, unmarked = marks_of(did)
    async with database(settings) as pool:
        desk = desk_of(settings, pool)
        await standing_of(desk, id_, tenant)
        found: list[Reached] = []
        after: int | None = 0
        while after is not None and len(found) < limit:
            page = await desk.recipients.page(
                id_,
                tenant,
                limit=min(limit - len(found), 1_000),
                after=after,
                statuses=None if status is None else [words[status]],
                marked=marked,
                unmarked=unmarked,
            )
            found, after = found + page.data, page.after
        return found
