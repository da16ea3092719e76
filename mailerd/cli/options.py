"""Options that many commands share."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from mailerd.cli.serving import VARIABLE

CONFIG_HELP = "The configuration file; without it /etc/mailerd/mailerd.yaml, else ./config/dev.yaml."

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", envvar=VARIABLE, help=CONFIG_HELP, show_default=False)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="For programs: one JSON document; lists: one JSON object a line.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="Show at most so many.")]
MessageArgument = Annotated[str, typer.Argument(metavar="MESSAGE_ID", help="Such as msg_38g13rwt40000.")]


def message_id(text: str) -> int:
    """The number behind `msg_…`, also behind the id of one of its recipients (`msg_….2`)."""
    from mailerd.queue.ids import parse_message_id

    try:
        return parse_message_id(text.partition(".")[0])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def moment(text: str | None) -> datetime | None:
    """An ISO 8601 date or time, UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-11-22 or 2026-11-22T14:00:00Z") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
