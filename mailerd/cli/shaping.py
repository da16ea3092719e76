"""`mailerd shaping`: what is doubtful about the shaping rules, and what they make of a reply."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.config import Delivery
    from mailerd.config.shaping import ReplyRule, ShapingRules
    from mailerd.delivery.shaping import RuleBook

app = typer.Typer(help="Read the shaping rules critically, and try them on replies.", no_args_is_help=True)


class Doubt(msgspec.Struct):
    """One finding; `severity` is error or warning, `place` is `file:line`."""

    severity: str
    place: str
    text: str
    provider: str = ""
    rule: str = ""


class Reaction(msgspec.Struct):
    """What a reply brings about at a provider. Empty `rule`: nothing."""

    provider: str
    kind: str  # the class of the verdict, as logs and events have it
    outcome: str
    rule: str = ""
    place: str = ""
    effect: str = ""
    seconds: float = 0.0
    scope: str = ""
    learnt: str = ""  # the limit that it shows
    learnt_limit: int | None = None


@app.command("lint")
def lint_rules(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Laid over the built-in rules, in the place of shaping.files."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find rules that can never match, samples that other rules catch, providers that overlap, limits that never bind.

    Exit status 78 when anything is surely wrong, 0 with warnings only.

    \b
    Examples:
      mailerd shaping lint
      mailerd shaping lint /etc/mailerd/shaping.yaml
    """
    from mailerd.cli.output import print_json
    from mailerd.errors import ConfigError

    try:
        doubts = _lint(files or [], config)
    except ConfigError as error:
        doubts = [Doubt("error", f"{each.file}:{each.line}", f"{each.key}: {each.message}") for each in error.problems]
    fine = all(doubt.severity != "error" for doubt in doubts)
    if as_json:
        print_json({"ok": fine, "findings": doubts})
    else:
        _draw_doubts(doubts)
    if not fine:
        raise typer.Exit(os.EX_CONFIG)


@app.command("test")
def try_reply(
    reply: Annotated[str, typer.Argument(metavar="REPLY", help="Such as '421 4.7.0 [TSS04] Messages from …'.")],
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="NAME", help="As if it came from there.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option("--domain", metavar="DOMAIN", help="As if a mail exchanger of it had said so.")
    ] = None,
    stage: Annotated[
        str, typer.Option("--stage", metavar="STAGE", help="connect, greeting, ehlo, starttls, auth, mail … data, dot.")
    ] = "dot",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a reply brings about: its class, the rule that it sets off, and the limit that it shows.

    \b
    Examples:
      mailerd shaping test "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred" --provider yahoo
      mailerd shaping test "451 4.7.500 Server busy. Please try again later" --domain example.com
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.settings import load
    from mailerd.config.shaping import DEFAULT, Stage
    from mailerd.delivery.shaping import RuleBook

    if stage not in get_args(Stage):
        raise typer.BadParameter(f"there is no stage {stage!r}, only {', '.join(get_args(Stage))}")
    settings = load(config)
    book = RuleBook(_rules_of(settings), settings.config.delivery)
    if provider is not None and provider not in (*book.providers, DEFAULT):
        raise typer.BadParameter(f"there is no provider {provider!r}, only {', '.join((*book.providers, DEFAULT))}")
    name = provider or (_provider_of(settings, book, domain) if domain else DEFAULT)
    reaction, rule = _react(book, name, stage, reply)
    if as_json:
        print_json(reaction)
    else:
        _draw_reaction(reaction, rule)


def _lint(files: list[str], config: Path | None) -> list[Doubt]:
    """Raises `ConfigError` for what cannot even be loaded."""
    from mailerd.config import Delivery
    from mailerd.config.shaping import BUILTIN, parse_shaping, read_shaping

    if files and config is None:
        named = files if BUILTIN in files else [BUILTIN, *files]
        return _findings(parse_shaping(read_shaping(named, Path())), Delivery())
    from mailerd.cli.settings import load

    settings = load(config)
    rules = parse_shaping(read_shaping([BUILTIN, *files], Path())) if files else _rules_of(settings)
    return _findings(rules, settings.config.delivery)


def _findings(rules: "ShapingRules", delivery: "Delivery") -> list[Doubt]:
    from mailerd.delivery.shaping import RuleBook
    from mailerd.delivery.shaping_lint import lint

    found = lint(rules, RuleBook(rules, delivery))
    return [Doubt(each.severity, each.place, each.text, each.provider, each.rule) for each in found]


def _rules_of(settings: "Settings") -> "ShapingRules":
    from mailerd.config.shaping import parse_shaping, read_shaping

    named_in = str(settings.path), settings.path.read_text("utf-8")
    return parse_shaping(read_shaping(settings.config.shaping.files, settings.path.parent, named_in))


def _provider_of(settings: "Settings", book: "RuleBook", domain: str) -> str:
    import asyncio

    from mailerd.delivery.resolver import Failed, Found, NoDomain, Resolver
    from mailerd.wire.address import domain_to_ascii

    try:
        name = domain_to_ascii(domain)
    except ValueError as error:
        raise typer.BadParameter(f"--domain: {error}") from None

    async def lookup() -> str:
        resolver = Resolver(settings.config.resolver)
        try:
            answer = await resolver.mx(name)
        finally:
            await resolver.close()
        match answer:
            case NoDomain():
                raise CommandError(f"domain {name} does not exist", os.EX_UNAVAILABLE)
            case Failed():
                raise CommandError(f"MX lookup of {name} failed: {answer.text}", os.EX_TEMPFAIL)
            case Found():
                return book.provider_of(name, [mx.name for mx in answer.records if mx.name])
        return book.provider_of(name, [name])  # the implicit MX

    return asyncio.run(lookup())


def _react(book: "RuleBook", provider: str, stage: str, reply: str) -> tuple[Reaction, "ReplyRule | None"]:
    from mailerd.delivery.verdict import classify
    from mailerd.errors import RemoteProtocolError
    from mailerd.wire.smtp import ReplyReader

    try:
        *lines, last = reply.strip().split("\n")
        if last[3:4] == "-":  # of a reply that went on, as logs show its first line
            last = f"{last[:3]} {last[4:]}"
        (read,) = ReplyReader().feed("\n".join([*lines, last, ""]).encode())
    except (RemoteProtocolError, ValueError):
        raise typer.BadParameter(f"{reply!r} is no reply: expected a code and a text, such as 421 4.7.0 …") from None
    verdict = classify(read, stage)
    reaction = Reaction(provider, verdict.kind, verdict.outcome)
    if read.positive:
        return reaction, None
    if learnt := book.learn(str(read)):
        reaction.learnt, reaction.learnt_limit = learnt.key, learnt.limit
    found = book.react(provider, stage, str(read))
    if found is None:
        return reaction, None
    rule, reaction.place = found
    reaction.rule, reaction.effect, reaction.seconds, reaction.scope = (
        rule.id,
        rule.effect,
        float(rule.lasts),
        rule.scope,
    )
    return reaction, rule


def _draw_doubts(doubts: list[Doubt]) -> None:
    from mailerd.cli.output import count_of, say

    for doubt in doubts:
        about = " ".join(part for part in (doubt.provider, doubt.rule) if part)
        print(": ".join(part for part in (doubt.place, doubt.severity, about, doubt.text) if part))
    errors = sum(doubt.severity == "error" for doubt in doubts)
    say(
        f"{count_of(errors, 'error')}, {count_of(len(doubts) - errors, 'warning')}"
        if doubts
        else "Nothing is doubtful."
    )


def _draw_reaction(reaction: Reaction, rule: "ReplyRule | None") -> None:
    from mailerd.cli.output import coloured, console, facts

    rows: list[tuple[str, Any]] = [
        ("provider", reaction.provider),
        ("class", reaction.kind),
        ("outcome", coloured(reaction.outcome)),
        ("rule", f"{rule.id} in {reaction.place}" if rule else "none"),
        ("effect", _effect(rule) if rule else ""),
        ("shows", f"{reaction.learnt}: {reaction.learnt_limit or 'fewer than there were'}" if reaction.learnt else ""),
    ]
    console().print(facts(rows))


def _effect(rule: "ReplyRule") -> str:
    """`slow to 10/min for 30 min, this source at the whole provider, from the 2nd within 1 h`."""
    from mailerd.cli.output import span

    words = {
        "pause": "nothing is sent",
        "slow": f"at most {_rate(rule.rate)}",
        "connections": f"at most {rule.connections} at the same time",
        "avoid": "other sources go first",
    }[rule.effect]
    scope = "this source at the whole provider" if rule.scope == "source" else "this source at this site"
    after = f", when {rule.after.count} such replies come within {span(rule.after.period)}" if rule.after else ""
    return f"{rule.effect}: {words} for {span(rule.lasts)}, {scope}{after}"


def _rate(rate: Any) -> str:
    from mailerd.cli.output import span

    return f"{rate.count} messages in {span(rate.period)}" if rate else ""
