"""`mailerd explain-route`: where mail for an address would go, and why there."""

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.config import RouteRule
    from mailerd.delivery.resolver import Answer, Resolver


class Rule(msgspec.Struct):
    """The route of the configuration that decides; `number` is counted from 0."""

    number: int
    file: str
    line: int
    text: str


class Exchanger(msgspec.Struct):
    """A host that the domain or the rule names. `addresses`: what DNS says; `note`: what keeps us from it."""

    preference: int
    name: str
    addresses: list[str] = []
    note: str = ""


class Target(msgspec.Struct):
    name: str
    address: str
    port: int


class Refusal(msgspec.Struct):
    """What the recipient would get instead of an attempt."""

    outcome: str
    kind: str
    code: int
    enhanced: str
    text: str


class Explanation(msgspec.Struct):
    """Everything that was decided; `hosts` in the order to try, empty with a `refusal`."""

    domain: str
    sender: str
    stream: str
    pool: str
    rule: Rule | None = None
    mx: str = ""  # what the MX lookup answered, "" when nobody had to ask
    exchangers: list[Exchanger] = []
    site: str = ""
    tls: str = ""
    username: str | None = None
    hosts: list[Target] = []
    refusal: Refusal | None = None


def explain_route(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Or a domain alone.")],
    sender: Annotated[str, typer.Option("--sender", "-s", metavar="ADDRESS", help="Of mail from it.")] = "",
    stream: Annotated[str, typer.Option("--stream", metavar="NAME", help="Of mail of this stream.")] = "transactional",
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="NAME", help="Of mail of this pool; else that of the stream.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where mail for an address would go: which rule decides, what DNS answers, which hosts in which order.

    Nothing is sent. Exit status 69 when it could go nowhere, 75 when nobody knows right now.

    \b
    Examples:
      mailerd explain-route ann@example.com
      mailerd explain-route example.com --stream marketing --json
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.settings import load

    settings = load(config)
    if stream not in settings.config.streams:
        raise typer.BadParameter(f"there is no stream {stream!r}, only {', '.join(settings.config.streams)}")
    asked = Explanation(domain_of(address), sender, stream, pool or settings.config.streams[stream].pool)
    explanation = asyncio.run(_explain(settings, asked))
    if as_json:
        print_json(explanation)
    else:
        _draw(explanation)
    if explanation.refusal is not None:
        raise typer.Exit(os.EX_UNAVAILABLE if explanation.refusal.outcome == "bounced" else os.EX_TEMPFAIL)


def domain_of(address: str) -> str:
    """The domain of an address, or of a domain alone, as the queue writes it."""
    from mailerd.wire.address import domain_to_ascii, parse_mailbox

    try:
        if "@" in address:
            return parse_mailbox(address).domain
        return address if address.startswith("[") else domain_to_ascii(address)
    except ValueError as error:
        raise CommandError(f"{address!r} is neither an address nor a domain: {error}", os.EX_USAGE) from None


async def _explain(settings: "Settings", told: Explanation) -> Explanation:
    from mailerd.delivery.mta_sts import StsPolicies
    from mailerd.delivery.resolver import Resolver
    from mailerd.delivery.routing import Route, Router

    resolver = Resolver(settings.config.resolver)
    sts = StsPolicies(None, resolver, allow_private=settings.config.delivery.allow_private)
    router = Router(settings.config, resolver, sts=sts)
    number = router.rule(told.domain, sender=told.sender, stream=told.stream, pool=told.pool)
    rule = None if number is None else settings.config.routes[number]
    if number is not None and rule is not None:
        told.rule = _rule(settings, number, rule)
    route = await router.route(told.domain, sender=told.sender, stream=told.stream, pool=told.pool)
    await _look_up(settings, resolver, told, rule)
    if isinstance(route, Route):
        told.site, told.tls = route.site, str(route.tls)
        told.username = route.auth.username if route.auth else None
        told.hosts = [Target(host.name, host.address, host.port) for host in route.hosts]
    else:
        verdict = route.verdict
        told.refusal = Refusal(verdict.outcome, verdict.kind, verdict.code, verdict.enhanced, verdict.text)
    await router.close()
    await sts.close()
    await resolver.close()
    return told


def _rule(settings: "Settings", number: int, rule: "RouteRule") -> Rule:
    from mailerd.cli.places import line_of

    conditions = msgspec.structs.asdict(rule.match)
    text = ", ".join(f"{name} {value}" for name, value in conditions.items() if value is not None)
    return Rule(number, str(settings.path), line_of(settings.path, f"routes[{number}]"), text or "everything")


async def _look_up(settings: "Settings", resolver: "Resolver", told: Explanation, rule: "RouteRule | None") -> None:
    """What DNS says of the hosts, from the answers that the router has just got."""
    from mailerd.delivery.resolver import Found

    if rule is not None and rule.hosts:
        told.exchangers = [Exchanger(n, endpoint.host) for n, endpoint in enumerate(rule.hosts)]
    elif not told.domain.startswith("["):
        answer = await resolver.mx(told.domain)
        told.mx = _said(answer)
        names = [(mx.preference, mx.name) for mx in answer.records] if isinstance(answer, Found) else []
        told.exchangers = [Exchanger(*pair) for pair in names or ([(0, told.domain)] if told.mx == "no MX" else [])]
    private_allowed = settings.config.delivery.allow_private or (rule is not None and bool(rule.hosts))
    for exchanger in told.exchangers:
        await _resolve(resolver, exchanger)
        _judge(exchanger, settings.config.hostname, private_allowed=private_allowed)


async def _resolve(resolver: "Resolver", exchanger: Exchanger) -> None:
    from mailerd.delivery.resolver import Found

    if not exchanger.name or _is_address(exchanger.name):
        return
    answers = [await resolver.a(exchanger.name), await resolver.aaaa(exchanger.name)]
    exchanger.addresses = [address for answer in answers if isinstance(answer, Found) for address in answer.records]
    if not exchanger.addresses:
        exchanger.note = "; ".join(dict.fromkeys(_said(answer) for answer in answers))


def _judge(exchanger: Exchanger, hostname: str, *, private_allowed: bool) -> None:
    from mailerd.delivery.resolver import is_private

    if not exchanger.name:
        exchanger.note = "null MX: the domain takes no mail"
    elif exchanger.name == hostname.lower():
        exchanger.note = "this is ourselves"
    elif not private_allowed and any(is_private(address) for address in exchanger.addresses):
        exchanger.note = "private addresses are not connected to (delivery.allow_private)"


def _is_address(name: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _said(answer: "Answer[Any]") -> str:
    """An answer in words."""
    from mailerd.delivery.resolver import Found, NoData, NoDomain

    match answer:
        case Found():
            return "found"
        case NoData():
            return "no MX"
        case NoDomain():
            return "no such domain"
    return answer.text


def _draw(told: Explanation) -> None:
    from rich.text import Text

    from mailerd.cli.output import clean, coloured, console, facts, table

    out = console()
    rule = told.rule
    rows: list[tuple[str, str | Text]] = [
        ("domain", told.domain),
        ("mail", f"stream {told.stream}, pool {told.pool}" + (f", from {told.sender}" if told.sender else "")),
        ("rule", f"routes[{rule.number}] in {rule.file}:{rule.line} ({rule.text})" if rule else "none: direct to MX"),
        ("MX lookup", told.mx),
        ("site", told.site),
        ("tls", told.tls),
        ("auth", f"as {told.username}" if told.username else ""),
    ]
    if told.refusal is not None:
        verdict = told.refusal
        rows.append(("refused", Text.assemble(coloured(verdict.outcome), f", class {verdict.kind}")))
        rows.append(("reply", f"{verdict.code} {verdict.enhanced} {verdict.text}"))
    out.print(facts(rows))
    if told.exchangers:
        drawn = table(("preference", "host", "addresses", ""), numbers=("preference",))
        for each in told.exchangers:
            drawn.add_row(str(each.preference), clean(each.name or "."), "\n".join(each.addresses), clean(each.note))
        out.print("", drawn)
    if told.hosts:
        drawn = table(("try", "host", "address", "port"), numbers=("try", "port"))
        for number, host in enumerate(told.hosts, 1):
            drawn.add_row(str(number), clean(host.name), host.address, str(host.port))
        out.print("", drawn)
