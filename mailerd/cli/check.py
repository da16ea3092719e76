"""`mailerd check-config`: everything that can be known to be wrong before a start."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.config import Config


def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The same as --config.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the configuration, and the shaping files, DKIM keys, TLS certificate and passwords that it names.

    Prints a summary, or every problem as `file:line: key: what is wrong` with exit status 78. Nothing is started.

    \b
    Examples:
      mailerd check-config /etc/mailerd/mailerd.yaml
      mailerd check-config && systemctl reload mailerd
    """
    from mailerd.cli.output import print_json

    path, problems, settings = file or config, [], None
    try:
        settings = _checked(path)
    except ConfigError as error:
        problems = error.problems
    if as_json:
        print_json({"ok": not problems, "problems": [_plain(problem) for problem in problems]})
    elif settings is not None:
        _summarise(settings)
    else:
        print("\n".join(map(str, problems)), file=sys.stderr)
    if problems:
        raise typer.Exit(os.EX_CONFIG)


def _checked(path: Path | None) -> "Settings":
    """Load all that a start would load; `ConfigError` with all problems of the first stage that has any."""
    from mailerd.cli.settings import environment, load
    from mailerd.config.documents import parse_documents, read_documents
    from mailerd.daemon.files import check_files

    settings = load(path)
    environ = environment(settings.path, os.environ)
    documents = read_documents(settings.path, environ)
    parse_documents(documents, environ)
    check_files(settings.config, documents)
    return settings


def _plain(problem: ConfigProblem) -> dict[str, object]:
    return {"file": problem.file, "line": problem.line, "key": problem.key, "message": problem.message}


def _summarise(settings: "Settings") -> None:
    from mailerd.cli.output import console, facts

    config = settings.config
    out = console()
    out.print(f"{settings.path}: ok")
    out.print(
        facts(
            [
                ("hostname", config.hostname),
                ("data_dir", config.data_dir),
                ("database", "external" if config.database.url else "embedded, under data_dir"),
                ("workers", str(config.workers)),
                ("listeners", "\n".join(f"{each.bind} {each.kind}, auth {each.auth}" for each in config.listeners)),
                ("http", str(config.http.bind) if config.http else "off"),
                ("tls", str(config.tls.certificate or "no certificate: clients are served in clear")),
                ("streams", "\n".join(_streams(config))),
                ("routes", f"{len(config.routes)}, then direct to MX" if config.routes else "direct to MX"),
                ("domains", "\n".join(_domains(config)) or "none: nothing is signed"),
                ("sandbox", str(config.sandbox.bind or "")),
            ]
        )
    )


def _streams(config: "Config") -> list[str]:
    from mailerd.cli.output import span

    return [f"{name}: pool {each.pool}, given up after {span(each.expires)}" for name, each in config.streams.items()]


def _domains(config: "Config") -> list[str]:
    return [
        f"{name}: " + (", ".join(f"selector {key.selector}" for key in each.dkim) or "not signed")
        for name, each in config.domains.items()
    ]
