"""`mailerd check-config`: everything that can be known to be wrong before a start."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailerd.cli.settings import Settings
    from mailerd.config import Config, Listener, Sink
    from mailerd.config.documents import Documents


def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The same as --config.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the configuration, and the shaping files, DKIM keys, TLS certificate and passwords that it names.

    Prints a summary, and notes about what may not be meant; or every problem as `file:line: key: what is wrong` with
    exit status 78. Nothing is started.

    \b
    Examples:
      mailerd check-config /etc/mailerd/mailerd.yaml
      mailerd check-config && systemctl reload mailerd
    """
    from mailerd.cli.output import print_json

    problems: list[ConfigProblem] = []
    notes: list[ConfigProblem] = []
    settings = None
    try:
        settings, notes = _checked(file or config)
    except ConfigError as error:
        problems = error.problems
    if as_json:
        plain = {"problems": list(map(_plain, problems)), "notes": list(map(_plain, notes))}
        print_json({"ok": not problems, **plain})
    elif settings is not None:
        _summarise(settings)
        for note in notes:
            print(f"note: {note}" if note.line else f"note: {note.key}: {note.message}")
    else:
        print("\n".join(map(str, problems)), file=sys.stderr)
    if problems:
        raise typer.Exit(os.EX_CONFIG)


def _checked(path: Path | None) -> "tuple[Settings, list[ConfigProblem]]":
    """Load all that a start would load; `ConfigError` with all problems of the first stage that has any."""
    from mailerd.cli.settings import environment, load
    from mailerd.config.documents import parse_documents, read_documents
    from mailerd.daemon.files import check_files

    settings = load(path)
    environ = environment(settings.path, os.environ)
    documents = read_documents(settings.path, environ)
    parse_documents(documents, environ)
    check_files(settings.config, documents)
    return settings, list(_notes(settings.config, documents))


def _notes(config: "Config", documents: "Documents") -> "Iterator[ConfigProblem]":
    """What is no mistake, and yet perhaps not meant."""
    from mailerd.config import unsubscribes
    from mailerd.config.places import line_in

    if config.http is not None and config.http.public_url is not None:
        return
    domains, tenants = config.domains.values(), config.tenants.values()
    paths = any(each.return_path for each in domains) or any(each.return_path for each in tenants)
    missing = "there is no http.public_url"
    for name in config.streams:
        if unsubscribes(config.streams, name):
            text = f"its mail gets no link to unsubscribe, only a mailto where it has a return path: {missing}"
            if not paths:
                text = f"its mail gets no way to unsubscribe: {missing} and no return_path"
            key = f"streams.{name}"
            yield ConfigProblem(documents.path, line_in(documents.text, key), key, text)


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
                ("listeners", "\n".join(map(_listener, config.listeners))),
                ("http", str(config.http.bind) if config.http else "off"),
                ("tls", str(config.tls.certificate or "no certificate: clients are served in clear")),
                ("streams", "\n".join(_streams(config))),
                ("routes", f"{len(config.routes)}, then direct to MX" if config.routes else "direct to MX"),
                ("domains", "\n".join(_domains(config)) or "none: nothing is signed"),
                ("tenants", "\n".join(_tenants(config))),
                ("inbound", "\n".join(_inbound(config))),
                ("suppression", _suppression(config)),
                ("webhooks", _webhooks(config)),
                ("sinks", "\n".join(_sinks(config))),
                ("upstreams", "\n".join(_upstreams(config))),
                ("sandbox", str(config.sandbox.bind or "")),
            ]
        )
    )


def _listener(listener: "Listener") -> str:
    if listener.kind == "inbound":
        return f"{listener.bind} inbound, for what comes back"
    return f"{listener.bind} {listener.kind}, auth {listener.auth}"


def _streams(config: "Config") -> list[str]:
    from mailerd.cli.output import span

    return [f"{name}: pool {each.pool}, given up after {span(each.expires)}" for name, each in config.streams.items()]


def _domains(config: "Config") -> list[str]:
    return [
        f"{name}: "
        + (", ".join(f"selector {key.selector}" for key in each.dkim) or "not signed")
        + (f", bounces come to {each.return_path}" if each.return_path else "")
        for name, each in config.domains.items()
    ]


def _tenants(config: "Config") -> list[str]:
    return [f"{name}: bounces come to {each.return_path}" for name, each in config.tenants.items() if each.return_path]


def _inbound(config: "Config") -> list[str]:
    """What is taken in besides bounces, where anything is."""
    inbound = config.inbound
    if inbound.elsewhere:
        return ["what comes back is taken by another node"]
    if all(listener.kind != "inbound" for listener in config.listeners):
        return []
    kinds = (
        ("complaints", inbound.complaints),
        ("DMARC reports", inbound.dmarc_reports),
        ("TLS reports", inbound.tls_reports),
    )
    taken = [f"{what} at {', '.join(names)}" for what, names in kinds if names]
    return taken + [f"{name} goes on to {address}" for name, address in inbound.forward.items()]


def _suppression(config: "Config") -> str:
    from mailerd.cli.output import span

    settings = config.suppression
    whom = "all tenants" if settings.scope == "global" else "its tenant"
    return f"binds {whom}; after {settings.soft_bounces} soft bounces over {span(settings.soft_span)}"


def _webhooks(config: "Config") -> str:
    private = ", ".join(config.webhooks.allow_private)
    return "https to public addresses" + (f", anything to {private}" if private else "")


def _sinks(config: "Config") -> list[str]:
    return [
        f"{name}: {each.kind} to {_where(each)}, {', '.join(each.events) or 'all events'}"
        + (f" of {', '.join(each.streams)}" if each.streams else "")
        for name, each in config.sinks.items()
    ]


def _where(sink: "Sink") -> str:
    """Without any URL: it may hold a password."""
    servers = ", ".join(map(str, sink.servers))
    return str(sink.directory) if sink.kind == "jsonl" else f"{sink.topic} at {servers}" if servers else sink.topic


def _upstreams(config: "Config") -> list[str]:
    from mailerd.cli.output import count_of

    used = {name: sum(route.upstream == name for route in config.routes) for name in config.upstreams}
    return [f"{name}: {each.kind}, {count_of(used[name], 'route')}" for name, each in config.upstreams.items()]
