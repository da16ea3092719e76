"""The texts of files of rules that a configuration names: those that ship with mailerd, and an operator's own."""

from collections.abc import Sequence
from pathlib import Path

from mailerd.config.places import line_in
from mailerd.config.values import FilePath
from mailerd.errors import ConfigError, ConfigProblem

BUILTIN = "builtin"  # in a list of files: the rules that ship with mailerd


def read_rule_files(
    key: str,
    files: Sequence[FilePath | str],
    directory: Path,
    shipped: tuple[str, Path],
    named_in: tuple[str, str] | None = None,
) -> dict[str, str]:
    """The texts of `files` by the names that problems use; relative files are relative to `directory`.

    `shipped` is what `builtin` stands for: its name and its file. `named_in` is the name and the text of the
    configuration that lists the files under `key`: problems point to its line.

    Raises `ConfigError` with every file that cannot be read.
    """
    texts: dict[str, str] = {}
    problems = []
    for n, file in enumerate(files):
        name = shipped[0] if file == BUILTIN else str(directory / file)
        try:
            texts[name] = (shipped[1] if file == BUILTIN else Path(name)).read_text("utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
            if named_in is None:
                problems.append(ConfigProblem(name, 0, "file", f"cannot be read: {reason}"))
                continue
            item = f"{key}[{n}]"
            line = line_in(named_in[1], item)
            problems.append(ConfigProblem(named_in[0], line, item, f"{name} cannot be read: {reason}"))
    if problems:
        raise ConfigError(problems)
    return texts
