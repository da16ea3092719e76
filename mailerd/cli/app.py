"""The commands put together, and the end of each: an exit status, never a traceback for what can be expected."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mailerd import __version__
from mailerd.cli import (
    campaigns,
    check,
    classify,
    contacts,
    credentials,
    dkim,
    effects,
    events,
    explain,
    queue,
    reload,
    reports,
    route,
    sandbox,
    search,
    send_test,
    shaping,
    sources,
    suppressions,
    trace,
    verdicts,
    warmup,
    webhooks,
)
from mailerd.cli.failure import tell
from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.cli.serving import VARIABLE, serve, usual_config
from mailerd.errors import MailerdError

INTERRUPTED = 130  # as shells say it: 128 and SIGINT

app = typer.Typer(
    name="mailerd",
    help="mailerd: a self-hosted mail delivery daemon. SMTP and HTTP in, a durable queue, direct to MX out.",
    epilog="Every command takes --help, with examples. Exit statuses follow sysexits.h: 64 usage, 69 not available, "
    "75 try again, 77 not permitted, 78 configuration.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mailerd {__version__}")
        raise typer.Exit


@app.callback()
def before_the_command(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="May stand before or after the command.")
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="The same as `mailerd version`.")
    ] = False,
) -> None:
    if config is not None:
        os.environ[VARIABLE] = str(config)


@app.command("run")
def run_daemon(config: ConfigOption = None) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    It prints `mailerd ready …` with its addresses when it serves, and logs to standard error.

    \b
    Examples:
      mailerd run
      mailerd run --config config/dev.yaml
    """
    raise typer.Exit(serve(config or usual_config()))


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Say which mailerd this is.

    \b
    Examples:
      mailerd version --json
    """
    if as_json:
        from mailerd.cli.output import print_json

        print_json({"version": __version__})
    else:
        print(f"mailerd {__version__}")


app.command("check-config")(check.check_config)
app.command("reload")(reload.reload)
app.add_typer(queue.app, name="queue")
app.command("search")(search.search)
app.command("trace")(trace.trace)
app.command("classify")(classify.classify)
app.command("send-test")(send_test.send_test)
app.command("explain")(explain.explain)
app.command("explain-route")(route.explain_route)
app.command("warmup")(warmup.warmup)
app.add_typer(contacts.app, name="contacts")
app.add_typer(campaigns.app, name="campaigns")
app.add_typer(credentials.app, name="credentials")
app.add_typer(dkim.app, name="dkim")
app.add_typer(effects.app, name="effects")
app.add_typer(events.app, name="events")
app.add_typer(reports.app, name="reports")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(shaping.app, name="shaping")
app.add_typer(sources.app, name="sources")
app.add_typer(suppressions.app, name="suppressions")
app.add_typer(verdicts.app, name="verdicts")
app.add_typer(webhooks.app, name="webhooks")


def run(arguments: Sequence[str]) -> int:
    """Carry out one command; its exit status."""
    try:
        return _status(app(list(arguments), prog_name="mailerd", standalone_mode=False))
    except MailerdError as error:
        return tell(error)
    except typer.TyperException as error:
        return _misused(error)
    except (typer.Abort, KeyboardInterrupt):
        print("mailerd: given up, nothing more is done", file=sys.stderr)
        return INTERRUPTED
    except PermissionError as error:
        text = f"mailerd: {error.filename}: permission denied; run this as the user that mailerd runs as"
        print(text, file=sys.stderr)
        return os.EX_NOPERM


def _status(result: object) -> int:
    return result if isinstance(result, int) else os.EX_OK


def _misused(error: typer.TyperException) -> int:
    """One line, and where to read on."""
    command = getattr(getattr(error, "ctx", None), "command_path", "mailerd")
    message = " ".join(error.format_message().split()).replace(": Value error, ", ": ")
    if message:  # none: the help was shown instead
        print(f"mailerd: {message.rstrip('.')}; see `{command} --help`", file=sys.stderr)
    return os.EX_USAGE
