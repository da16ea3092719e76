"""What a configuration needs besides the files it is made of: certificate, keys, passwords, clients of brokers."""

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

from mailerd.config import Config, Tls
from mailerd.config.documents import Documents
from mailerd.config.places import line_in
from mailerd.errors import ConfigError, ConfigProblem


def check_files(config: Config, documents: Documents) -> None:
    """Load all that a worker would load. Raises `ConfigError` with every problem; `config` is that of the documents."""
    # Not in the memory of a main process that is never told to reload.
    from mailerd.delivery.identity import Identity
    from mailerd.feedback.sink_checks import check_sinks

    problems = [*_tls_problems(config.tls, documents.keys), *_password_problems(config)]
    for check in (
        lambda: Identity(config, documents.keys),
        lambda: check_sinks(config.sinks, documents.path, documents.text),
    ):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError([_placed(problem, documents) for problem in problems])


def _tls_problems(tls: Tls, files: Mapping[str, bytes]) -> Iterator[ConfigProblem]:
    from mailerd.intake.smtp_listener import server_context

    try:
        for path in (tls.certificate, tls.key):
            if path is not None and path not in files:
                Path(path).open("rb").close()  # OpenSSL does not say which of them it is
        server_context(tls, files)
    except ssl.SSLError as error:
        text = "certificate and key cannot be used"
        hint = "both are PEM, and the key is the first one's"
        yield ConfigProblem("", 0, "tls", f"{text}: {error.reason or error}; {hint}")
    except OSError as error:
        yield ConfigProblem("", 0, "tls", f"{error.filename} cannot be read: {error.strerror}")


def _password_problems(config: Config) -> Iterator[ConfigProblem]:
    for index, route in enumerate(config.routes):
        if route.auth is None or route.auth.password_file is None:
            continue
        key = f"routes[{index}].auth.password_file"
        try:
            Path(route.auth.password_file).read_text("utf-8")
        except OSError as error:
            yield ConfigProblem("", 0, key, f"{route.auth.password_file} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            yield ConfigProblem("", 0, key, f"{route.auth.password_file} is not UTF-8 text")


def _placed(problem: ConfigProblem, documents: Documents) -> ConfigProblem:
    """With the line of the configuration that it is about, where nobody said a file."""
    if problem.file:
        return problem
    line = line_in(documents.text, problem.key)
    return ConfigProblem(documents.path, line, problem.key, problem.message)
