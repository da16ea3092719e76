"""What is done with a campaign before it goes out: checking, trying, scheduling and copying it."""

import asyncio
import http.client
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mailerd.cli.campaign_desk import CampaignArgument, TenantOption, checked, desk_of, number_of, standing_of
from mailerd.cli.campaign_drawing import draw_findings
from mailerd.cli.options import ConfigOption, JsonOption, moment
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.campaigns.compliance import Finding
    from mailerd.campaigns.values import Campaign
    from mailerd.cli.settings import Settings

ContactOption = Annotated[
    str | None, typer.Option("--contact", metavar="ID", help="As that contact would get it, such as con_17.")
]
KEY = "MAILERD_API_KEY"
PATIENCE = 60.0  # seconds


def check(
    campaign: CampaignArgument,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell all that would keep a campaign from being sent, and what is doubtful. The status is 1 if it cannot be sent.

    \b
    Examples:
      mailerd campaigns check cmp_17
    """
    from mailerd.campaigns.compliance import errors
    from mailerd.cli.settings import database, load

    async def work() -> "list[Finding]":
        settings = load(config)
        async with database(settings) as pool:
            desk = desk_of(settings, pool)
            found = (await standing_of(desk, number_of(campaign), tenant)).campaign
            return await desk.checker.check(found, None, thorough=True)

    found = asyncio.run(work())
    draw_findings(found, as_json=as_json)
    if errors(found):
        raise typer.Exit(1)


def try_out(
    campaign: CampaignArgument,
    to: Annotated[list[str], typer.Option("--to", "-t", metavar="ADDRESS", help="Repeat it for more recipients.")],
    contact: Annotated[
        str | None, typer.Option("--contact", metavar="ID", help="As that contact would get it.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send its mail to a few addresses, marked [Test].

    The daemon does it, for the tenant of the API key: that in MAILERD_API_KEY, else the one in data_dir/api-key.

    \b
    Examples:
      mailerd campaigns test cmp_17 --to me@shop.example
    """
    from mailerd.cli.output import clean, print_json_lines
    from mailerd.cli.settings import load

    body = {"to": to} | ({} if contact is None else {"contact_id": contact})
    told = _posted(load(config), f"/api/v1/campaigns/cmp_{number_of(campaign)}/test", body)
    if as_json:
        print_json_lines(told["data"])
        return
    for each in told["data"]:
        print(f"{clean(each['to'])}: {each['email_id'] or clean(each['detail'])}")


def schedule(
    campaign: CampaignArgument,
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Such as 2026-12-01T09:00:00Z.")],
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a draft begin then, or a scheduled campaign at another time; of a recurring one the first time from then on.

    \b
    Examples:
      mailerd campaigns schedule cmp_17 --at 2026-12-01T09:00:00Z
    """
    from mailerd.cli.output import time_of
    from mailerd.cli.settings import load

    done = asyncio.run(_schedule(load(config), tenant, number_of(campaign), moment(at)))
    _tell(done, f"begins {time_of(done.schedule_time)}", as_json=as_json)


def duplicate(
    campaign: CampaignArgument,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="Of the copy.")] = "",
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a draft that says the same.

    \b
    Examples:
      mailerd campaigns duplicate cmp_17 --name "April"
    """
    from mailerd.cli.settings import load

    done = asyncio.run(_duplicate(load(config), tenant, number_of(campaign), name))
    _tell(done, f"is a copy of {campaign}", as_json=as_json)


async def _schedule(settings: "Settings", tenant: str, id_: int, at: datetime | None) -> "Campaign":
    from dataclasses import replace

    from mailerd.campaigns.lifecycle import ChangedMeanwhileError, WrongStatusError, is_past
    from mailerd.campaigns.recurrence import MOMENT, following
    from mailerd.cli.failure import CommandError
    from mailerd.cli.queue import actor
    from mailerd.cli.settings import database

    now = utc_now()
    async with database(settings) as pool:
        desk = desk_of(settings, pool)
        campaign = (await standing_of(desk, id_, tenant)).campaign
        if campaign.recurrence is not None and at is not None:
            at = following(campaign.recurrence, max(at - MOMENT, now))
        changed = replace(campaign, schedule_time=at, status="scheduled", status_reason="")
        try:
            if campaign.status not in ("draft", "scheduled"):
                raise WrongStatusError(campaign, "scheduled")
            if at is None or is_past(changed, now):
                raise CommandError("that is over already")
            await checked(desk, changed)
            async with pool.acquire() as connection, connection.transaction():
                locked = await desk.store.locked(id_, tenant, connection)
                if locked is None or locked.revision != campaign.revision:
                    raise ChangedMeanwhileError(campaign)
                return await desk.lifecycle.schedule(changed, actor=actor(), now=now, connection=connection)
        except (WrongStatusError, ChangedMeanwhileError) as error:
            raise CommandError(str(error).rstrip(".")) from None


async def _duplicate(settings: "Settings", tenant: str, id_: int, name: str) -> "Campaign":
    from mailerd.campaigns.lifecycle import copy_of
    from mailerd.campaigns.store import audit
    from mailerd.cli.queue import actor
    from mailerd.cli.settings import database

    async with database(settings) as pool:
        desk = desk_of(settings, pool)
        campaign = (await standing_of(desk, id_, tenant)).campaign
        name = name or f"Copy of {campaign.name}"
        copy = copy_of(campaign, name=name[:255], created_by=actor(), now=utc_now())
        async with pool.acquire() as connection, connection.transaction():
            made = await desk.store.create(copy, connection)
            assert made is not None
            await audit(connection, actor(), "campaign.duplicate", made, of=campaign.name_outside)
            return made


def _tell(done: "Campaign", text: str, *, as_json: bool) -> None:
    from mailerd.cli.output import clean, print_json

    if as_json:
        print_json({"campaign_id": done.name_outside, "status": done.status})
    else:
        print(f"{done.name_outside} ({clean(done.name)}) is a {done.status} campaign and {text}.")


def _posted(settings: "Settings", path: str, body: dict[str, Any]) -> Any:
    """The answer of the daemon. Raises `CommandError` when it refuses, or is not there."""
    from mailerd.cli.failure import CommandError

    bind = settings.config.http.bind if settings.config.http is not None else None
    if bind is None:
        raise CommandError(f"{settings.path} has no `http`, over which it is done", os.EX_CONFIG)
    headers = {"Authorization": f"Bearer {_key(settings)}", "Content-Type": "application/json"}
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bind.host, bind.host)  # noqa: S104  compared
    connection = http.client.HTTPConnection(host, bind.port, timeout=PATIENCE)
    try:
        connection.request("POST", path, msgspec.json.encode(body), headers)
        response = connection.getresponse()
        told = msgspec.json.decode(response.read())
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        text = f"mailerd does not answer on {host}:{bind.port}: {error or type(error).__name__}"
        raise CommandError(text, os.EX_UNAVAILABLE) from None
    finally:
        connection.close()
    if response.status >= 400:
        details = [told.get("detail", ""), *(each.get("detail", "") for each in told.get("errors", []))]
        raise CommandError(" ".join(dict.fromkeys(filter(None, details))).rstrip("."))
    return told


def _key(settings: "Settings") -> str:
    from mailerd.cli.failure import CommandError

    if key := os.environ.get(KEY):
        return key
    try:
        return (Path(settings.config.data_dir) / "api-key").read_text().strip()
    except OSError:
        raise CommandError(f"give an API key with the scopes send and manage in {KEY}", os.EX_NOPERM) from None
