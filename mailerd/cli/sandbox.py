"""`mailerd sandbox`: what the built-in mail exchanger took."""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, LimitOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.sandbox import Stored

LATEST = "latest"


class SandboxGroup(TyperGroup):
    """Its help lists the addresses that the sandbox acts on; they are read only when somebody asks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from mailerd.sandbox import BEHAVIOURS

        width = max(map(len, BEHAVIOURS))
        lines = [f"  {name + '@…':<{width + 3}} {each.about}" for name, each in BEHAVIOURS.items()]
        lines.append("What comes back goes to the listener that sandbox.inbound names; if it names none, nothing does.")
        self.help = "\n".join([f"{self.help}\n\n\b\nIts replies follow the local part of the address:", *lines])
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=SandboxGroup,
    help="Look at the mail that the sandbox took: a built-in mail exchanger for trying things out.",
    no_args_is_help=True,
)


@app.command("list")
def list_kept(limit: LimitOption = 50, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the messages that the sandbox has, the last ones at the end.

    \b
    Examples:
      mailerd sandbox list
      mailerd sandbox list --json | jq .subject
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.sandbox import list_messages

    kept = list_messages(_directory(config))
    if as_json:
        print_json_lines(kept[-limit:])
        return
    _draw(kept[-limit:], utc_now())
    if len(kept) > limit:
        say(f"Only the last {limit:,} of {len(kept):,}: --limit shows more.")


@app.command()
def show(
    message: Annotated[str, typer.Argument(metavar="[ID]", help="As `sandbox list` names it.")] = LATEST,
    raw: Annotated[bool, typer.Option("--raw", help="The content alone, byte for byte.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one message as the sandbox got it: envelope and content. Without an ID: the last one.

    \b
    Examples:
      mailerd sandbox show
      mailerd sandbox show 0006442f8b1c2a --raw > message.eml
    """
    from mailerd.cli.output import print_json
    from mailerd.sandbox import list_messages, read_message

    directory = _directory(config)
    kept = list_messages(directory) if message == LATEST else []
    found = read_message(directory, kept[-1].id if kept else message)
    if found is None:
        text = "the sandbox has no message" if message == LATEST else f"the sandbox has no message {message}"
        raise CommandError(f"{text}: `mailerd sandbox list` shows what it has", os.EX_NOINPUT)
    stored, content = found
    if raw:
        sys.stdout.buffer.write(content)
    elif as_json:
        print_json(_plain(stored, content))
    else:
        _draw_message(stored, content)


def _directory(config: Path | None) -> Path:
    from mailerd.cli.settings import load

    settings = load(config)
    directory = Path(settings.config.data_dir) / "sandbox"
    if not directory.is_dir():
        text = f"there is no sandbox under {settings.config.data_dir}: set sandbox.bind in {settings.path} and start it"
        raise CommandError(text, os.EX_UNAVAILABLE)
    return directory


def _plain(stored: "Stored", content: bytes) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(stored) | {
        "content": content.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    }


def _draw(kept: "list[Stored]", now: datetime) -> None:
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, console, from_now, say

    if not kept:
        say("The sandbox has no message yet.")
        return
    columns = ("id", "received", "bytes", "from", "to", "subject")
    drawn = Listing(columns, below=("subject", "to", "from"), numbers=("bytes",))
    for each in kept:
        others = f" and {len(each.recipients) - 1} more" if len(each.recipients) > 1 else ""
        drawn.add_row(
            each.id,
            from_now(each.received_at, now),
            f"{each.size:,}",
            clean(each.sender or "<>"),
            clean(each.recipients[0] + others),
            clean(each.subject),
        )
    console().print(drawn)


def _draw_message(stored: "Stored", content: bytes) -> None:
    from rich.text import Text

    from mailerd.cli.output import clean, console, facts, time_of

    out = console()
    out.print(
        facts(
            [
                ("id", stored.id),
                ("received", f"{time_of(stored.received_at)} from {stored.peer} ({stored.helo})"),
                ("MAIL FROM", f"<{stored.sender}> {stored.parameters}"),
                ("RCPT TO", "\n".join(f"<{recipient}>" for recipient in stored.recipients)),
            ]
        ),
        "",
    )
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\t", "    ")
    out.print(Text(clean(text)), soft_wrap=True)
