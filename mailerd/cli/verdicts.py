"""`mailerd verdicts`: what is doubtful about the verdict rules, and what they make of a reply."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from mailerd.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from mailerd.config.verdicts import VerdictRules

app = typer.Typer(help="Read the verdict rules critically, and try them on replies.", no_args_is_help=True)


class Doubt(msgspec.Struct):
    """One finding; `severity` is error or warning, `place` is `file:line`."""

    severity: str
    place: str
    text: str
    rule: str = ""


class Meaning(msgspec.Struct):
    """What a reply or a report means. Empty `rule`: its codes alone say so."""

    kind: str
    outcome: str
    permanent: bool  # whether it ends the delivery
    blame: str
    action: str
    rule: str = ""
    place: str = ""


class ClassRow(msgspec.Struct):
    """A class and what follows from it."""

    kind: str
    may_be_permanent: bool  # whether a 5xx reply of this class ends the delivery
    blame: str
    action: str
    note: str


@app.command("lint")
def lint_rules(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Laid over the built-in rules, in the place of verdicts.files."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find samples that other rules catch, rules that can never speak, actions that do not go with their class.

    Exit status 78 when anything is surely wrong, 0 with warnings only.

    \b
    Examples:
      mailerd verdicts lint
      mailerd verdicts lint /etc/mailerd/verdicts.yaml
    """
    from mailerd.cli.output import print_json
    from mailerd.delivery.verdict_book import VerdictBook
    from mailerd.delivery.verdict_lint import lint
    from mailerd.errors import ConfigError

    try:
        found = lint(VerdictBook(rules_of(files or [], config)))
        doubts = [Doubt(each.severity, each.place, each.text, each.rule) for each in found]
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
    reply: Annotated[str, typer.Argument(metavar="REPLY", help="Such as '550 5.1.1 no such user', or words.")],
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            metavar="STAGE",
            help="Of the reply: connect, greeting, ehlo, starttls, auth, mail, rcpt, data, dot.",
            show_default="rcpt",
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="It is what a bounce says: a reply or words.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a reply means: its class, whose fault it is, what is done, and which rule says so.

    It is taken for the reply of a host to RCPT, or at --stage; with --report for what a bounce says of a recipient.

    \b
    Examples:
      mailerd verdicts test "550 5.1.1 no such user"
      mailerd verdicts test "451 4.7.1 greylisted" --stage dot
      mailerd verdicts test --report "Das Postfach des Empfängers ist voll"
    """
    from mailerd.cli.output import print_json
    from mailerd.config.shaping import Stage
    from mailerd.delivery import verdict

    if stage is not None and stage not in get_args(Stage):
        raise typer.BadParameter(f"there is no stage {stage!r}, only {', '.join(get_args(Stage))}")
    if stage is not None and report:
        raise typer.BadParameter("--report is about a bounce: it has no --stage")
    verdict.use(rules_of([], config))
    told = verdict.of_report("failed", "", 0, reply, "") if report else _classified(reply, stage or "rcpt")
    meaning = Meaning(
        told.kind,
        told.outcome,
        told.outcome is verdict.Outcome.BOUNCED,
        told.blame,
        told.action,
        told.rule,
        verdict.in_force().place(told.rule),
    )
    if as_json:
        print_json(meaning)
    else:
        _draw_meaning(meaning)


@app.command("classes")
def list_classes(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the classes: whether they may end a delivery (with a 5xx reply), whose fault they are, what is done.

    \b
    Examples:
      mailerd verdicts classes --json | jq -r '.classes[].kind'
    """
    from mailerd.cli.output import print_json

    classes = rules_of([], config).classes
    rows = [ClassRow(kind, each.permanent, each.blame, each.action, each.note) for kind, each in classes.items()]
    if as_json:
        print_json({"classes": rows})
    else:
        _draw_classes(rows)


def rules_of(files: list[str], config: Path | None) -> "VerdictRules":
    """Those of FILEs, else of the configuration, else the built-in ones. Raises `ConfigError`."""
    from mailerd.cli.serving import usual_config
    from mailerd.cli.settings import load
    from mailerd.config.rule_files import BUILTIN
    from mailerd.config.verdicts import parse_verdicts, read_verdicts

    if files:
        return parse_verdicts(read_verdicts(files if BUILTIN in files else [BUILTIN, *files], Path()))
    if config is None and not usual_config().exists():
        return parse_verdicts({})
    settings = load(config)
    named_in = str(settings.path), settings.path.read_text("utf-8")
    return parse_verdicts(read_verdicts(settings.config.verdicts.files, settings.path.parent, named_in))


def _classified(reply: str, stage: str) -> Any:
    from mailerd.delivery.verdict import classify
    from mailerd.errors import RemoteProtocolError
    from mailerd.wire.smtp import ReplyReader

    try:
        *lines, last = reply.strip().split("\n")
        if last[3:4] == "-":  # of a reply that went on, as logs show its first line
            last = f"{last[:3]} {last[4:]}"
        (read,) = ReplyReader().feed("\n".join([*lines, last, ""]).encode())
    except (RemoteProtocolError, ValueError):
        text = f"{reply!r} is no reply: expected a code and a text, such as 550 5.1.1 …; words of a bounce: --report"
        raise typer.BadParameter(text) from None
    return classify(read, stage)


def _draw_doubts(doubts: list[Doubt]) -> None:
    from mailerd.cli.output import count_of, say

    for doubt in doubts:
        print(": ".join(part for part in (doubt.place, doubt.severity, doubt.rule, doubt.text) if part))
    errors = sum(doubt.severity == "error" for doubt in doubts)
    say(
        f"{count_of(errors, 'error')}, {count_of(len(doubts) - errors, 'warning')}"
        if doubts
        else "Nothing is doubtful."
    )


def _draw_meaning(meaning: Meaning) -> None:
    from mailerd.cli.output import coloured, console, facts

    rows: list[tuple[str, Any]] = [
        ("class", meaning.kind),
        ("outcome", coloured(meaning.outcome)),
        ("permanent", "yes" if meaning.permanent else "no"),
        ("blame", meaning.blame or "nobody"),
        ("action", meaning.action or "nothing"),
        ("rule", f"{meaning.rule} in {meaning.place}" if meaning.rule else "none: its codes say so"),
    ]
    console().print(facts(rows))


def _draw_classes(rows: list[ClassRow]) -> None:
    from mailerd.cli.output import console, table

    drawn = table(("class", "may be permanent", "blame", "action", "note"))
    for row in rows:
        permanent = "yes" if row.may_be_permanent else "no"
        drawn.add_row(row.kind, permanent, row.blame or "nobody", row.action or "nothing", row.note)
    console().print(drawn)
