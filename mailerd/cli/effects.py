"""`mailerd effects`: the brakes that hold; making and ending them."""

import asyncio
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.db import Pool
    from mailerd.delivery.effects import Effect
    from mailerd.delivery.explain import Explainer
    from mailerd.delivery.explained import EffectView

app = typer.Typer(
    help="List the brakes that hold, make one, end one. Rules for replies make them too. Changes hold at once on every "
    "node, and are written to the audit table.",
    no_args_is_help=True,
)

SourceOption = Annotated[str, typer.Option("--source", metavar="NAME", help="Mail from this source.")]
ProviderOption = Annotated[str, typer.Option("--provider", metavar="NAME", help="Mail to this provider.")]
SiteOption = Annotated[str, typer.Option("--site", metavar="SITE", help="Mail to this site.")]
DomainOption = Annotated[
    str, typer.Option("--domain", "-d", metavar="DOMAIN", help="Mail to the site of this domain, whoever else's it is.")
]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Mail of this tenant; pause only.")]
CampaignOption = Annotated[str, typer.Option("--campaign", metavar="NAME", help="Mail of this campaign; pause only.")]


class EffectKind(StrEnum):
    PAUSE = "pause"
    SLOW = "slow"
    CONNECTIONS = "connections"
    AVOID = "avoid"


@app.command("list")
def list_effects(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the brakes that hold: on what, since when, until when, why, and who or which rule made each.

    \b
    Examples:
      mailerd effects list
      mailerd effects list --json | jq 'select(.kind == "pause") | .id'
    """
    from mailerd.cli.output import print_json_lines
    from mailerd.cli.settings import load
    from mailerd.delivery.explained import effect_view

    views = [effect_view(effect) for effect in asyncio.run(_active(load(config)))]
    if as_json:
        print_json_lines(views)
    else:
        _draw(views, utc_now())


@app.command("add")
def add(
    kind: Annotated[EffectKind, typer.Argument(help="What it does.")],
    reason: Annotated[str, typer.Option("--reason", "-r", metavar="TEXT", help="Shown wherever mail waits for it.")],
    source: SourceOption = "",
    provider: ProviderOption = "",
    site: SiteOption = "",
    domain: DomainOption = "",
    tenant: TenantOption = "",
    campaign: CampaignOption = "",
    rate: Annotated[str, typer.Option("--rate", metavar="RATE", help="For slow: such as 10/min, each path.")] = "",
    connections: Annotated[
        int | None, typer.Option("--connections", min=0, help="For connections: of each path.")
    ] = None,
    lasts: Annotated[str, typer.Option("--for", metavar="TIME", help="How long: such as 30m, 4h; 7d at most.")] = "1d",
    everything: Annotated[bool, typer.Option("--all", help="All mail: said on purpose.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Brake what fits all options given, from now on. The same brake again lasts longer, instead of holding twice.

    `pause`: nothing leaves. `slow`: at most --rate messages. `connections`: at most so many at a time. `avoid`: other
    sources of the pool are used first. With --domain it holds for the site that mail for the domain goes to now, and so
    for all domains there: which site that is, and whose else, is said.

    \b
    Examples:
      mailerd effects add pause --domain example.com --for 2h --reason "asked by postmaster"
      mailerd effects add pause --provider google --for 2h --reason "asked by postmaster"
      mailerd effects add slow --source mta2 --site mx.example.com --rate 10/min --reason "complaints"
      mailerd effects add pause --campaign spring --reason "wrong template"
    """
    from mailerd.cli.output import clean, print_json
    from mailerd.cli.settings import load
    from mailerd.delivery.explained import effect_view

    if not any((source, provider, site, domain, tenant, campaign)) and not everything:
        raise typer.BadParameter("Say what it is for: --domain, --source, --provider, --site … or --all.")
    if site and domain:
        raise typer.BadParameter("--domain stands for its site: leave out --site, or --domain.")
    now = utc_now()
    try:
        value, seconds = _value(kind, rate, connections), _seconds(lasts)
        effect = asyncio.run(
            _add(
                load(config),
                kind,
                reason=reason,
                now=now,
                until=now + timedelta(seconds=seconds),
                source=source,
                provider=provider,
                site=site,
                domain=domain,
                tenant=tenant,
                campaign=campaign,
                value=value,
            )
        )
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None
    if as_json:
        print_json(effect_view(effect))
    else:
        print(f"effect {effect.id} holds until {effect.until:%Y-%m-%d %H:%M:%SZ}: {clean(effect)}")


@app.command("cancel")
def cancel(
    ids: Annotated[list[int], typer.Argument(metavar="ID…", help="As `effects list` shows them.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End brakes now: what waits for them may leave. Exit status 66 when one of them does not hold.

    \b
    Examples:
      mailerd effects cancel 17
    """
    from mailerd.cli.output import clean, print_json_lines
    from mailerd.cli.settings import load
    from mailerd.delivery.explained import effect_view

    ended = asyncio.run(_cancel(load(config), ids))
    if as_json:
        print_json_lines(effect_view(effect) for effect in ended)
    else:
        for effect in ended:
            print(f"effect {effect.id} is over: {clean(effect)}")
    missing = [str(id_) for id_ in ids if id_ not in {effect.id for effect in ended}]
    if missing:
        raise CommandError(f"no effect {', '.join(missing)} holds: see `mailerd effects list`", os.EX_NOINPUT)


def _value(kind: EffectKind, rate: str, connections: int | None) -> float:
    from mailerd.config.values import parse_rate
    from mailerd.delivery.effects import value_of

    return value_of(kind.value, rate=parse_rate(rate) if rate else None, connections=connections)


def _seconds(text: str) -> float:
    from mailerd.config.values import parse_duration

    return float(parse_duration(text))


async def _active(settings: "Settings") -> "Sequence[Effect]":
    from mailerd.cli.settings import database
    from mailerd.delivery.effects import EffectStore

    async with database(settings) as pool:
        return await EffectStore(pool).active(utc_now())


async def _add(
    settings: "Settings",
    kind: EffectKind,
    *,
    reason: str,
    now: datetime,
    until: datetime,
    source: str,
    provider: str,
    site: str,
    domain: str,
    tenant: str,
    campaign: str,
    value: float,
) -> "Effect":
    from mailerd.cli.explain import explainer
    from mailerd.cli.output import say
    from mailerd.cli.queue import actor
    from mailerd.cli.settings import database
    from mailerd.delivery.effects import EffectStore, by_operator

    async with explainer(settings) as ask:
        ask.check_names(source=source, provider=provider)
        if domain:
            site = await _site_of(ask, domain)
        elif site and not await ask.knows_site(site):
            say(
                f"No mail went to a site named {site} from here lately. If you mean a domain: "
                f"--domain {site} finds the site of its mail."
            )
    who = actor()
    effect = by_operator(
        kind.value,
        reason=reason,
        actor=who,
        now=now,
        until=until,
        source=source,
        provider=provider,
        site=site,
        tenant=tenant,
        campaign=campaign,
        value=value,
    )
    async with database(settings) as pool:
        added = await EffectStore(pool).add(effect, actor=who)
        await _doubt_names(pool, tenant, campaign)
    return added


async def _site_of(ask: "Explainer", domain: str) -> str:
    """The site of a domain; says which one that is, and whose else."""
    from mailerd.cli.output import clean, say
    from mailerd.cli.route import domain_of
    from mailerd.delivery.explain import Mail

    (found,) = (await ask.domain(domain_of(domain), Mail())).destinations
    if not found.site:
        reply = found.refusal.reply if found.refusal else found.next
        raise CommandError(f"mail for {found.domain} goes to no site now: {clean(reply)}", os.EX_UNAVAILABLE)
    hosts = ", ".join(dict.fromkeys(host.name for host in found.hosts))
    others = f"every domain whose mail goes to {hosts}"
    if found.rule is not None:
        others = f"all mail that routes[{found.rule.number}] ({found.rule.place}) takes"
    say(clean(f"Mail for {found.domain} goes to the site {found.site}. It is that of {others}: all of it is braked."))
    return found.site


async def _doubt_names(pool: "Pool", tenant: str, campaign: str) -> None:
    """Say it when a brake fits no mail that is known, as it does after a slip of the pen."""
    from mailerd.cli.output import clean, say
    from mailerd.intake.credentials import CredentialStore
    from mailerd.queue.control import ControlStore, Selection

    if not (tenant or campaign):
        return
    if tenant and tenant not in {credential.tenant for credential in await CredentialStore(pool).list()}:
        say(clean(f"No credential is of a tenant {tenant}: see `mailerd credentials list`."))
    elif await ControlStore(pool).count(Selection(tenant=tenant or None, campaign=campaign or None)) == 0:
        whose = " of ".join(filter(None, (f"campaign {campaign}" * bool(campaign), f"tenant {tenant}" * bool(tenant))))
        say(clean(f"No mail of {whose} waits now; what comes of it does."))


async def _cancel(settings: "Settings", ids: Sequence[int]) -> "list[Effect]":
    from mailerd.cli.queue import actor
    from mailerd.cli.settings import database
    from mailerd.delivery.effects import EffectStore

    async with database(settings) as pool:
        store = EffectStore(pool)
        ended = [await store.cancel(id_, actor=actor(), now=utc_now()) for id_ in ids]
    return [effect for effect in ended if effect is not None]


def _draw(effects: "Sequence[EffectView]", now: datetime) -> None:
    from mailerd.cli.output import clean, console, from_now, say, table

    if not effects:
        say("No brake holds.")
        return
    drawn = table(
        ("id", "effect", "on", "since", "ends", "reason", "made by"), numbers=("id",), whole=("since", "ends")
    )
    for effect in effects:
        drawn.add_row(
            str(effect.id),
            _what(effect),
            clean(_on_what(effect)),
            from_now(effect.since, now),
            from_now(effect.until, now),
            clean(effect.reason),
            clean(effect.rule),
        )
    console().print(drawn)


def _what(effect: "EffectView") -> str:
    match effect.kind:
        case "slow":
            minute = effect.value * 60
            return f"slow: {minute:.3g}/min" if minute >= 1 else f"slow: {minute * 60:.3g}/h"
        case "connections":
            return f"connections: {effect.value:.0f}"
    return effect.kind


def _on_what(effect: "EffectView") -> str:
    parts = [
        f"{name} {value}"
        for name in ("source", "provider", "site", "tenant", "campaign")
        if (value := getattr(effect, name))
    ]
    return ", ".join(parts) or "all mail"
