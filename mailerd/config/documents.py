"""The files that a configuration is made of, read once: who gets them never sees one that is half edited.

The main process reads them and hands them to its workers, those it starts later too. Only passwords of routes are read
when they are used.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from mailerd.config.changes import attainable, changed
from mailerd.config.checks import CHECKS
from mailerd.config.places import dotted, line_in
from mailerd.config.reader import parse
from mailerd.config.shaping import ShapingRules, parse_shaping, read_shaping
from mailerd.config.tree import Config
from mailerd.config.verdicts import VerdictRules, parse_verdicts, read_verdicts
from mailerd.errors import ConfigError, ConfigProblem


class Documents(Struct, frozen=True):
    """`path` is the configuration file as it was named; `shaping` has the texts of `shaping.files`, in their order,
    and `verdicts` those of `verdicts.files`; none: those that ship with mailerd.

    `keys` has the certificate, its key and the DKIM keys, as far as they can be read: who needs another one reads it,
    and says what is wrong with it.
    """

    path: str
    text: str
    shaping: dict[str, str]  # under the names that problems and explanations give
    keys: dict[str, bytes] = {}  # by path, a DKIM key by that in data_dir
    verdicts: dict[str, str] = {}


def read_documents(path: Path | str, environ: Mapping[str, str]) -> Documents:
    """Read the file and all it names of its own kind, relative to its directory. Raises `ConfigError`.

    The configuration is checked as far as needed for that: `parse_documents` says what else is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([ConfigProblem(str(path), 0, "file", f"cannot be read: {reason}")]) from None
    config = _config(Documents(str(path), text, {}), environ)
    named_in = str(path), text
    shaping = read_shaping(config.shaping.files, path.parent, named_in)
    verdicts = read_verdicts(config.verdicts.files, path.parent, named_in)
    return Documents(str(path), text, shaping, _read_keys(config), verdicts)


def parse_documents(documents: Documents, environ: Mapping[str, str]) -> tuple[Config, ShapingRules]:
    """The configuration, as `load` gives it, and the shaping rules. Raises `ConfigError` with every problem.

    The verdict rules are checked too: who needs them has `parse_verdicts`.
    """
    config, shaping, _ = _parsed(documents, environ)
    return config, shaping


def _parsed(documents: Documents, environ: Mapping[str, str]) -> tuple[Config, ShapingRules, VerdictRules]:
    return _config(documents, environ), parse_shaping(documents.shaping), parse_verdicts(documents.verdicts)


def _read_keys(config: Config) -> dict[str, bytes]:
    paths = [str(path) for path in (config.tls.certificate, config.tls.key) if path is not None]
    paths += [str(Path(config.data_dir) / key.key_file) for domain in config.domains.values() for key in domain.dkim]
    keys = {}
    for path in paths:
        with suppress(OSError):
            keys[path] = Path(path).read_bytes()
    return keys


class InForce(NamedTuple):
    config: Config
    rules: ShapingRules
    postponed: list[str]  # keys whose values in the documents need a restart
    verdicts: VerdictRules


def parse_reloaded(started: Documents, documents: Documents, environ: Mapping[str, str]) -> InForce:
    """What is in force when `documents` are loaded by a daemon that was started with `started`.

    Equal in every process of the daemon, whenever it asks. Raises `ConfigError`, also when what cannot change before a
    restart does not go together with what can.
    """
    wanted, rules, verdicts = _parsed(documents, environ)
    config = attainable(_config(started, environ), wanted)
    problems = [
        ConfigProblem(documents.path, line_in(documents.text, key), key, f"{message}; restart mailerd instead")
        for _, check in CHECKS
        for place, message in check(config)
        if (key := dotted(place))
    ]
    if problems:  # of what stays and what is new together: the documents alone are good
        raise ConfigError(problems)
    return InForce(config, rules, changed(config, wanted), verdicts)


def _config(documents: Documents, environ: Mapping[str, str]) -> Config:
    config = parse(documents.text, file=documents.path, environ=environ)
    return replace(config, data_dir=str(Path(config.data_dir).absolute()))
