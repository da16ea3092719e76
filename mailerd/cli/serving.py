"""`mailerd run` itself, without a library for command lines: what is imported here stays in the daemon's memory."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "MAILERD_CONFIG"
PLACES = (Path("/etc/mailerd/mailerd.yaml"), Path("config/dev.yaml"))
FLAGS = ("--config", "-c")


def is_plain_run(arguments: Sequence[str]) -> bool:
    """Whether this is `run` with nothing but `--config FILE`, before or after it."""
    return _without_config(arguments) == ["run"]


def config_of(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Path:
    """The configuration file that these arguments name, the last one when there are several; else the usual one."""
    named = ""
    for position, argument in enumerate(arguments):
        if argument in FLAGS and position + 1 < len(arguments):
            named = arguments[position + 1]
        elif argument.startswith("--config="):
            named = argument.partition("=")[2]
    return Path(named) if named else usual_config(environ)


def usual_config(environ: Mapping[str, str] = os.environ) -> Path:
    """$MAILERD_CONFIG, else the first of `PLACES` that exists, else the first: its absence will be told."""
    if named := environ.get(VARIABLE):
        return Path(named)
    return next((place for place in PLACES if place.exists()), PLACES[0])


def check_any(path: Path) -> None:
    """Raise `ConfigError` when this is where a configuration is looked for, and there is none in any such place."""
    if path in PLACES and not any(place.exists() for place in PLACES):
        from mailerd.errors import ConfigError, ConfigProblem

        places = " nor ".join(str(place.absolute()) for place in PLACES)
        text = f"there is neither {places}: name a file by --config or {VARIABLE}"
        raise ConfigError([ConfigProblem("", 0, "configuration", text)])


def serve(config_path: Path) -> int:
    """Run the daemon until SIGTERM or SIGINT; the exit status."""
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # structlog takes it along if it can: 5 MB
    import asyncio

    import structlog

    from mailerd import failpoints, logs
    from mailerd.cli.failure import tell
    from mailerd.config.documents import parse_documents, read_documents
    from mailerd.daemon import run
    from mailerd.errors import ConfigError

    try:
        failpoints.check()
        check_any(config_path)
        documents = read_documents(config_path, os.environ)
        settings, _ = parse_documents(documents, os.environ)
        if settings.sinks:
            from mailerd.feedback.sink_checks import check_sinks

            check_sinks(settings.sinks, documents.path, documents.text)
    except ConfigError as error:
        return tell(error)
    logs.set_up(settings.log)
    if words := os.environ.get(failpoints.VARIABLE):
        structlog.get_logger().warning("failpoints.on", words=words)
    return asyncio.run(run(settings, documents))


def _without_config(arguments: Sequence[str]) -> list[str]:
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in FLAGS:
            if next(words, None) is None:
                return ["incomplete"]
        elif not word.startswith("--config="):
            rest.append(word)
    return rest
