"""`mailerd classify`: what a mail that came back is, and what would follow. Needs no database and no configuration."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from mailerd.feedback.reading import Report

STANDARD_INPUT = "-"
LARGEST = 50_000_000  # bytes


def classify(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Mails as files; - is standard input.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what mails are that came back: bounce, complaint, auto-reply …; of whom they speak, the class of each
    failure, and what mailerd does about it, by the verdict rules of the configuration; without one, by the built-in
    rules.

    \b
    Examples:
      mailerd classify bounce.eml
      mailerd classify bounce.eml --config /etc/mailerd/mailerd.yaml
      mailerd classify --json - < bounce.eml
      mailerd classify *.eml --json | jq -r '[.file, .kind, .recipients[].class] | @tsv'
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.verdicts import rules_of
    from mailerd.delivery import verdict
    from mailerd.feedback.reading import read_report

    verdict.use(rules_of([], config))
    for file in files:
        plain = _plain(file, read_report(_content(file)))
        if as_json:
            print_json(plain)
        else:
            _draw(plain)


def _content(file: str) -> bytes:
    try:
        if file == STANDARD_INPUT:
            return sys.stdin.buffer.read(LARGEST)
        with Path(file).open("rb") as opened:
            return opened.read(LARGEST)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", os.EX_NOINPUT) from None


def _plain(file: str, report: "Report") -> dict[str, Any]:
    from mailerd.feedback.reading import ReportKind

    return {
        "file": file,
        "kind": report.kind,
        "reporter": report.reporter,
        "subject": report.subject,
        "feedback_type": report.feedback_type,
        "message_id": report.returned.message_id,
        "header_returned": bool(report.returned.header),
        "recipients": _complaint(report) if report.kind is ReportKind.COMPLAINT else _recipients(report),
    }


def _recipients(report: "Report") -> list[dict[str, Any]]:
    from mailerd.delivery import verdict

    found = []
    for each in report.recipients:
        meant = verdict.of_report(each.action, each.status, each.code, each.diagnostic, each.words)
        found.append(
            {
                "address": each.address,
                "original": each.original,
                "outcome": str(meant.outcome),
                "class": str(meant.kind),
                "action": str(meant.action),
                "code": meant.code,
                "enhanced": meant.enhanced,
                "text": meant.text,
                "rule": meant.rule,
                "remote": each.remote,
            }
        )
    return found


def _complaint(report: "Report") -> list[dict[str, Any]]:
    from mailerd.delivery import verdict

    meant = verdict.complaint(report.feedback_type)
    return [
        {
            "address": each.address,
            "original": each.original,
            "outcome": "complained",
            "class": str(meant.kind),
            "action": str(meant.action),
            "code": 0,
            "enhanced": "",
            "text": meant.text,
            "rule": "",
            "remote": each.remote,
        }
        for each in report.recipients
    ]


def _draw(plain: dict[str, Any]) -> None:
    from rich.text import Text

    from mailerd.cli.output import clean, console, facts, table

    screen = console()
    head = [(name, str(plain[name])) for name in ("kind", "reporter", "subject", "feedback_type", "message_id")]
    screen.print(facts([("file", plain["file"]), *head]))
    if plain["recipients"]:
        drawn = table(("recipient", "class", "action", "reply"))
        for each in plain["recipients"]:
            reply = " ".join(str(each[name]) for name in ("code", "enhanced", "text") if each[name])
            whom = clean(each["address"] or each["original"] or "(not named)")
            drawn.add_row(whom, Text(each["class"], style="bold"), each["action"] or "nothing", clean(reply))
        screen.print(drawn)
    screen.print()
