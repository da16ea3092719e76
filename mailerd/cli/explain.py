"""`mailerd explain`: why mail waits, until when, and what would happen next."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, message_id
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mailerd.cli.settings import Settings
    from mailerd.delivery.explain import Explainer, Mail
    from mailerd.delivery.explained import Destination, EffectView, Explanation, Limit, PathView, SuppressedView
    from mailerd.queue.waiting import WaitingView

MESSAGE = "msg_"
OF_SITE = frozenset("(>:,~")  # what stands in the name of a path or site, and in no domain
INDENT = 4  # columns


def explain(
    asked: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS|MESSAGE_ID|PATH",
            help="An address or domain; a message; a path as SOURCE>SITE, or its site alone.",
        ),
    ],
    sender: Annotated[str, typer.Option("--sender", "-s", metavar="ADDRESS", help="Of mail from it.")] = "",
    stream: Annotated[str, typer.Option("--stream", metavar="NAME", help="Of mail of this stream.")] = "transactional",
    pool: Annotated[
        str, typer.Option("--pool", metavar="NAME", help="Of mail of this pool; else that of the stream.")
    ] = "",
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME", help="Of mail of this tenant.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why mail waits: since when, until when, which limit or effect binds, where it is set, and what comes next.

    Of an address: its site, provider, TLS policy, the sources that would be tried, every limit of their paths with what
    is used of it, the queues of the domain, and whether the address is suppressed. Of a message: the same
    for all its recipients that wait. Nothing is sent or changed; while the daemon runs, its own counts are shown.

    \b
    Examples:
      mailerd explain ann@example.com --stream marketing
      mailerd explain msg_38g13rwt40000
      mailerd explain 'mta1>mx.example.com'
      mailerd explain ann@example.com --json | jq -r '.destinations[].next'
    """
    from mailerd.cli.output import console, print_json
    from mailerd.cli.settings import load

    settings = load(config)
    explanation = asyncio.run(_explain(settings, asked, _mail(asked, sender, stream, pool, tenant)))
    if as_json:
        print_json(plain(explanation))
    else:
        draw(console(), explanation, utc_now())


def _mail(asked: str, sender: str, stream: str, pool: str, tenant: str) -> "Mail":
    from mailerd.delivery.explain import Mail

    recipient = asked if "@" in asked else f"@{asked}"
    return Mail(sender=sender, stream=stream, pool=pool, tenant=tenant, recipient=recipient)


async def _explain(settings: "Settings", asked: str, mail: "Mail") -> "Explanation":
    from mailerd.cli.route import domain_of

    async with explainer(settings) as ask:
        if asked.startswith(MESSAGE):
            return await _of_message(ask, asked)
        if not asked.startswith("[") and "@" not in asked and OF_SITE.intersection(asked):
            return await _of_path(ask, asked)
        try:
            found = await ask.domain(domain_of(asked), mail)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.") from None
        if "@" not in asked and found.destinations[0].site != asked and await ask.knows_site(asked):
            return await ask.path(None, asked)
        return found


async def _of_path(ask: "Explainer", asked: str) -> "Explanation":
    source, arrow, site = (part.strip() for part in asked.rpartition(">"))
    source = "" if source == "this host" else source  # as it is shown
    if not site or ">" in source or any(letter.isspace() for letter in source + site):
        raise typer.BadParameter("a path is SOURCE>SITE, such as 'mta1>mx.example.com'.")
    try:
        return await ask.path(source if arrow else None, site)
    except LookupError as error:
        raise CommandError(str(error), os.EX_NOINPUT) from None


async def _of_message(ask: "Explainer", asked: str) -> "Explanation":
    import msgspec

    found = await ask.message(message_id(asked))
    if not found.waiting:
        text = f"nothing of {asked} waits here: `mailerd trace {asked}` tells what became of it"
        raise CommandError(text, os.EX_NOINPUT)
    return msgspec.structs.replace(found, asked=asked)


@asynccontextmanager
async def explainer(settings: "Settings") -> "AsyncIterator[Explainer]":
    """Answers like the workers of the daemon that runs on `data_dir`, from what they have written down."""
    from mailerd.cli.settings import database, environment
    from mailerd.config.documents import parse_documents, read_documents
    from mailerd.delivery.explain import ConfigText, Explainer
    from mailerd.delivery.mta_sts import StsPolicies, StsStore
    from mailerd.delivery.resolver import Resolver
    from mailerd.delivery.routing import Router
    from mailerd.relay import ledger_path

    config = settings.config
    environ = environment(settings.path, os.environ)
    documents = read_documents(settings.path, environ)
    _, rules = parse_documents(documents, environ)
    async with database(settings) as pool:
        resolver = Resolver(config.resolver)
        sts = StsPolicies(StsStore(pool), resolver, allow_private=config.delivery.allow_private)
        router = Router(config, resolver, sts=sts)
        try:
            yield Explainer(
                config,
                rules,
                pool,
                router,
                ledger=ledger_path(config.data_dir),
                node=_node(Path(config.data_dir)),
                text=ConfigText(documents.path, documents.text),
                clock=utc_now,
            )
        finally:
            await router.close()
            await sts.close()
            await resolver.close()


def _node(data_dir: Path) -> str:
    """The id of this installation; "" before its first start."""
    try:
        return (data_dir / "node").read_text().strip()
    except OSError:
        return ""


def plain(explanation: "Explanation") -> dict[str, Any]:
    """As JSON, with messages by the ids that people know."""
    import msgspec

    from mailerd.queue.ids import format_message_id

    waiting = [
        msgspec.structs.asdict(view) | {"message_id": format_message_id(view.message_id)}
        for view in explanation.waiting
    ]
    return msgspec.structs.asdict(explanation) | {"waiting": waiting}


# for people


def draw(out: "Console", told: "Explanation", now: datetime) -> None:
    """One destination after the other: what it is, what comes next, its paths, its queues."""
    from mailerd.cli.output import say

    for n, destination in enumerate(told.destinations):
        if n:
            out.print("")
        waiting = [view for view in told.waiting if view.domain == destination.domain]
        _draw_destination(out, destination, waiting, told.suppressed, now)
    for path in told.paths:
        _draw_path(out, path, now)
    missing = {view.domain for view in told.waiting} - {destination.domain for destination in told.destinations}
    if missing:
        say(f"{len(missing):,} more domains: `mailerd explain` with an address of each.")
    for text in told.unknown:
        say(f"Not known: {text}.")


def _draw_destination(
    out: "Console",
    told: "Destination",
    waiting: "Sequence[WaitingView]",
    suppressed: "Sequence[SuppressedView]",
    now: datetime,
) -> None:
    from rich.text import Text

    from mailerd.cli.output import clean, facts, from_now, time_of

    whose = f"campaign {told.campaign}" if told.campaign else ""
    mail = [f"stream {told.stream}, pool {told.pool}", f"tenant {told.tenant}" if told.tenant else "", whose]
    host = ", ".join(f"{host.name} [{host.address}]:{host.port}" for host in told.hosts)
    when = f" ({from_now(told.next_at, now, units=2)}, {time_of(told.next_at)})" if told.next_at else ""
    out.print(
        facts(
            [
                ("domain", told.domain),
                ("mail", ", ".join(filter(None, [*mail, f"from {told.sender}" if told.sender else ""]))),
                ("route", f"routes[{told.rule.number}] ({told.rule.place})" if told.rule else "direct to MX"),
                ("site", told.site),
                ("hosts", host),
                ("provider", _placed(told.provider, told.provider_place)),
                ("tls", _placed(told.tls, told.tls_by)),
                ("suppressed", "" if waiting else "\n".join(map(_entry, suppressed))),
                ("refused", f"{told.refusal.outcome}, class {told.refusal.kind}" if told.refusal else ""),
                ("next", Text(clean(told.next + when), style="bold")),
            ]
        )
    )
    if told.limits:
        out.print("", _limits(told.limits, now, "limits of this mail alone"))
    for path in told.paths:
        _draw_path(out, path, now)
    _draw_queues(out, told, now)
    _draw_recipients(out, waiting, {each.recipient: _entry(each) for each in suppressed}, now)


def _entry(each: "SuppressedView") -> str:
    """Which entry, why, since and until when, and who added it."""
    from mailerd.cli.output import time_of

    scope = [f"{name} {value}" for name in ("tenant", "stream", "topic") if (value := getattr(each, name))]
    until = f" until {time_of(each.until)}" if each.until else ""
    parts = (f"by {each.source}", f"{time_of(each.since)}{until}", ", ".join(scope) or "all mail", each.detail)
    return f"{each.address}, entry {each.id}: {each.reason} {', '.join(filter(None, parts))}"


def _placed(text: str, place: str) -> str:
    return f"{text} ({place})" if text and place else text


def _draw_path(out: "Console", path: "PathView", now: datetime) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from mailerd.cli.output import clean, coloured, from_now

    address = f" [{path.address}]" if path.address else ""
    head = Text.assemble((clean(f"{path.source or 'this host'}{address} > {path.site}"), "bold"), "  ")
    head.append_text(coloured(path.state))
    out.print("")
    out.print(head)
    for effect in path.effects:
        out.print(Padding(_effect(effect, now), (0, 0, 0, INDENT), expand=False))
    if path.state != "ok":
        words = Text(clean(path.waits.reason if path.waits else "it sends nothing"), style="red")
        out.print(Padding(words, (0, 0, 0, INDENT), expand=False))
    elif path.waits is not None:
        until = f", {from_now(path.waits.until, now, units=2)}" if path.waits.until else ""
        words = Text(f"the next message waits for: {clean(path.waits.reason)}{until}", style="yellow")
        out.print(Padding(words, (0, 0, 0, INDENT), expand=False))
    else:
        out.print(Padding(Text("the next message may leave", style="green"), (0, 0, 0, INDENT), expand=False))
    if path.lately:
        out.print(Padding(Text(f"{path.lately:.3g} messages a second lately"), (0, 0, 0, INDENT), expand=False))
    out.print(Padding(_limits(path.limits, now, "limit"), (0, 0, 0, INDENT), expand=False))


def _effect(effect: "EffectView", now: datetime) -> "Text":
    from rich.text import Text

    from mailerd.cli.output import clean, from_now

    since, until = from_now(effect.since, now, units=2), from_now(effect.until, now, units=2)
    return Text(
        clean(f"effect {effect.id}, {effect.kind}, since {since}, ends {until}: {effect.reason} ({effect.rule})")
    )


def _limits(limits: "Sequence[Limit]", now: datetime, title: str) -> "Any":
    from mailerd.cli.output import clean, from_now, table

    drawn = table((title, "allows", "used", "waits", "set at"))
    for limit in limits:
        waits = from_now(limit.waits_until, now, units=2) if limit.waits_until else ""
        drawn.add_row(clean(limit.name), limit.allows, limit.used, waits, clean(limit.place))
    return drawn


def _draw_queues(out: "Console", told: "Destination", now: datetime) -> None:
    from mailerd.cli.output import clean, from_now, table

    if not told.queues:
        return
    drawn = table(("queue", "waiting", "held", "oldest", "next", "why it waits"), numbers=("waiting", "held"))
    for each in told.queues:
        queue = each.queue
        blocked = queue.blocked_until is not None and queue.blocked_until > now
        reasons = [queue.reason if blocked else "", each.waits.reason if each.waits else ""]
        until = [queue.blocked_until if blocked else queue.next_due, each.waits.until if each.waits else None]
        drawn.add_row(
            clean(queue.name),
            f"{queue.recipients:,}",
            f"{queue.held:,}",
            from_now(queue.oldest, now, units=2),
            "when released" if queue.held == queue.recipients else from_now(max(filter(None, until)), now, units=2),
            clean("\n".join(filter(None, dict.fromkeys(reasons)))),
        )
    out.print("", drawn)


def _draw_recipients(
    out: "Console", waiting: "Sequence[WaitingView]", suppressed: "Mapping[str, str]", now: datetime
) -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, coloured, from_now

    if not waiting:
        return
    columns = ("recipient", "state", "tries", "since", "next", "until", "why it waits")
    drawn = Listing(columns, below=("why it waits", "until", "next", "since"), numbers=("tries",))
    for view in waiting:
        reason = view.reason or ("in memory, about to be sent" if view.in_memory else view.last_reply)
        forbidden = f"suppressed: {suppressed[view.address]}" if view.address in suppressed else ""
        drawn.add_row(
            clean(view.address),
            coloured(view.state),
            str(view.attempts),
            from_now(view.accepted_at, now, units=2),
            "when released" if view.state == "held" else from_now(view.due_at, now, units=2),
            from_now(view.expires_at, now, units=2),
            clean("; ".join(filter(None, (forbidden, reason)))),
        )
    out.print("", drawn)
