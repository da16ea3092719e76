"""What all commands about campaigns need: their arguments, the desk, and the campaign that is meant."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.campaigns.desk import CampaignDesk
    from mailerd.campaigns.values import Campaign, Standing
    from mailerd.cli.settings import Settings
    from mailerd.db import Pool

CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Such as cmp_17.")]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose campaigns.")]


async def standing_of(desk: "CampaignDesk", id_: int, tenant: str) -> "Standing":
    standing = await desk.store.standing(id_, tenant)
    if standing is None:
        raise _unknown(id_, tenant)
    return standing


def desk_of(settings: "Settings", pool: "Pool") -> "CampaignDesk":
    from mailerd.campaigns.desk import CampaignDesk
    from mailerd.campaigns.queued import QueuedMail
    from mailerd.queue.control import ControlStore

    control = ControlStore(pool, keep_bodies=settings.config.retention.bodies > 0)
    return CampaignDesk(lambda: settings.config, pool, queue=QueuedMail(control, utc_now), clock=utc_now)


def number_of(text: str) -> int:
    from mailerd.queue.ids import CAMPAIGN, parse_id

    try:
        return parse_id(CAMPAIGN, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _unknown(id_: int, tenant: str) -> Exception:
    from mailerd.cli.failure import CommandError

    text = f"the tenant {tenant} has no campaign cmp_{id_}: see `mailerd campaigns list`, or name another by --tenant"
    return CommandError(text, os.EX_NOINPUT)


async def checked(desk: "CampaignDesk", campaign: "Campaign") -> None:
    """Raises `CommandError` with all that keeps it from being sent."""
    from mailerd.campaigns.compliance import errors
    from mailerd.cli.failure import CommandError

    if wrong := errors(await desk.checker.check(campaign, None, thorough=True)):
        raise CommandError("; ".join(each.detail.rstrip(".") for each in wrong))
