"""`mailerd reload`: the running daemon takes on its configuration files anew."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.errors import ConfigError

if TYPE_CHECKING:
    from mailerd.daemon.reload import Outcome


def reload(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Have the running daemon read its configuration, shaping rules, certificate and keys again.

    No connection is closed. When anything is wrong, every problem is printed with exit status 78, and all stays as it
    was. What cannot change before a restart (sockets, database, workers and some more) is named. --config is the file
    that the daemon was started with: another one needs a restart, and is refused with exit status 64.

    \b
    Examples:
      mailerd reload
      mailerd reload --json | jq -r '.restart[]'
    """
    from mailerd.cli.failure import NotReloadedError
    from mailerd.cli.output import print_json

    outcome = _outcome(config)
    if outcome.problems and not as_json:
        kind = NotReloadedError if Path(outcome.file).exists() else ConfigError
        raise kind(outcome.problems)
    if as_json:
        problems = [
            {"file": each.file, "line": each.line, "key": each.key, "message": each.message}
            for each in outcome.problems
        ]
        print_json(
            {
                "ok": not problems and not outcome.workers,
                "file": outcome.file,
                "problems": problems,
                "changed": outcome.changed,
                "restart": outcome.restart,
                "workers": outcome.workers,
            }
        )
    else:
        print("\n".join(_lines(outcome)))
    if outcome.problems:
        raise typer.Exit(os.EX_CONFIG)
    if outcome.workers:
        raise typer.Exit(os.EX_TEMPFAIL)


def _outcome(config: Path | None) -> "Outcome":
    """What the daemon says, or what is wrong already before it is asked: then this cannot tell who it is."""
    from mailerd.cli.serving import usual_config
    from mailerd.cli.settings import load
    from mailerd.daemon.reload import Outcome

    try:
        settings = load(config)
    except ConfigError as error:
        return Outcome(str((config or usual_config()).absolute()), problems=error.problems)
    return _asked(settings.path, Path(settings.config.data_dir))


def _asked(file: Path, data_dir: Path) -> "Outcome":
    from mailerd.cli.failure import CommandError
    from mailerd.daemon.reload import request_reload

    try:
        outcome = request_reload(data_dir, file)
    except PermissionError:
        text = f"{data_dir} is not yours: run this as the user that mailerd runs as, or as root"
        raise CommandError(text, os.EX_NOPERM) from None
    except OSError as error:
        text = f"mailerd did not answer: {error}; its log says what became of the reload"
        raise CommandError(text, os.EX_TEMPFAIL) from error
    if outcome is None:
        text = f"mailerd is not running on {data_dir}: start it with `mailerd run --config {file}`"
        raise CommandError(text, os.EX_UNAVAILABLE)
    if outcome.other_file:
        text = f"the daemon runs {outcome.file}, not {file.resolve()}: nothing was reloaded"
        raise CommandError(text, os.EX_USAGE)
    return outcome


def _lines(outcome: "Outcome") -> list[str]:
    lines = [f"{outcome.file}: in force", f"changed: {', '.join(outcome.changed) or 'nothing'}"]
    if outcome.restart:
        lines.append(f"waits for a restart: {', '.join(outcome.restart)}")
    return lines + [f"not taken on by {problem}" for problem in outcome.workers]
