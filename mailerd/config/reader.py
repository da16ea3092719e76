"""From YAML text to a tree of structs: nodes are matched with its types, and every problem keeps its line.

`load` and `parse` make the `Config`; `TreeReader` reads any tree of the same kind, such as the shaping rules.

What a scalar means is decided by the type that is wanted, not by YAML's guesses: `starttls: off` is the word off, a
password of digits is text, and only `true` and `false` are booleans.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import inspect as types

from mailerd.config.checks import CHECKS, Place, check_given
from mailerd.config.places import dotted
from mailerd.config.tree import Config
from mailerd.config.values import PARSERS, FilePath, parse_hostname
from mailerd.errors import ConfigError, ConfigProblem

INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", re.ASCII)
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")}
NULLS = ("", "~", "null", "Null", "NULL")
INVALID: Any = object()  # stands for a value whose problem has been noted
TREE = types.type_info(Config)


def load(path: Path | str, *, environ: Mapping[str, str]) -> Config:
    """Read the file, lay the environment over it, and check everything; raise `ConfigError` with all problems.

    `MAILERD_HOSTNAME`, `MAILERD_DATA_DIR` and `MAILERD_DATABASE_URL` win over the file. A systemd credential named
    `database-url` wins over the file too, and `credential:NAME` stands for a file in `$CREDENTIALS_DIRECTORY`.
    Relative paths are relative to the working directory (a DKIM key to `data_dir`); `data_dir` is made absolute.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError([ConfigProblem(str(path), 0, "file", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([ConfigProblem(str(path), 0, "file", f"is not UTF-8 text: {error.reason}")]) from None
    config = parse(text, file=str(path), environ=environ)
    return msgspec.structs.replace(config, data_dir=str(Path(config.data_dir).absolute()))


def parse(text: str, *, file: str = "configuration", environ: Mapping[str, str] | None = None) -> Config:
    """Make a `Config` of YAML text, or raise `ConfigError` with every problem; an empty text gives the defaults."""
    reader = _ConfigReader(file, environ or {})
    root = reader.compose(text)
    config = Config() if root is None else reader.read(root, TREE, ())
    if config is not INVALID:
        config = reader.override(config)
        reader.check(config)
    if reader.problems:
        raise ConfigError(sorted(reader.problems, key=lambda problem: problem.line))
    assert isinstance(config, Config)
    return config


class TreeReader:
    """Reads one file; collects `problems` instead of stopping at the first.

    `parsers` are looked up by the type that a scalar is wanted as. `lines` are those of all that the file gives, by
    their places.
    """

    def __init__(
        self, file: str, environ: Mapping[str, str], parsers: Mapping[type, Callable[[str], Any]] = PARSERS
    ) -> None:
        self.problems: list[ConfigProblem] = []
        self.lines: dict[Place, int] = {}
        self._file = file
        self._environ = environ
        self._parsers = parsers
        self._broken: set[str] = set()  # top-level keys with problems: no cross check looks at them

    def compose(self, text: str, *, ours: bool = False) -> yaml.Node | None:
        """The nodes of a text. `ours`: it ships with mailerd, so libyaml may read it, which deep nesting can crash."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if ours else yaml.SafeLoader
        try:
            # Loader, not safe_load: nodes carry lines, and no Python object is ever built from a tag.
            return yaml.compose(text, Loader=loader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            message = ", ".join(part for part in (error.context, error.problem) if part)
            self.problems.append(ConfigProblem(self._file, line, "YAML", message))
        except yaml.YAMLError as error:
            self.problems.append(ConfigProblem(self._file, 0, "YAML", str(error).splitlines()[0]))
        except RecursionError:
            self.problems.append(ConfigProblem(self._file, 0, "YAML", "is nested too deeply"))
        return None

    # Nodes to values

    def read(self, node: yaml.Node, wanted: types.Type, place: Place) -> Any:
        """The value of `node` as the wanted type, or INVALID with the problem noted."""
        self.lines.setdefault(place, _line(node))
        if isinstance(wanted, types.UnionType):
            return self._read_union(node, wanted, place)
        if isinstance(wanted, types.StructType) and wanted.cls not in self._parsers:
            return self._read_struct(node, wanted, place)
        if isinstance(wanted, types.DictType):
            return self._read_dict(node, wanted, place)
        if isinstance(wanted, types.VarTupleType):
            return self._read_tuple(node, wanted, place)
        try:
            return self._scalar(node, wanted)
        except ValueError as error:
            return self.problem(place, f"{_shown(node)}{error}")

    def _read_union(self, node: yaml.Node, wanted: types.UnionType, place: Place) -> Any:
        others = [one for one in wanted.types if not isinstance(one, types.NoneType)]
        if len(others) < len(wanted.types) and _is_null(node):
            return None
        if len(others) == 1:
            return self.read(node, others[0], place)
        refusals = []
        for one in others:
            try:
                return self._scalar(node, one)
            except ValueError as error:
                refusals.append(str(error).removeprefix("expected "))
        return self.problem(place, f"{_shown(node)}expected {' or '.join(refusals)}")

    def _read_struct(self, node: yaml.Node, wanted: types.StructType, place: Place) -> Any:
        fields = {field.encode_name: field for field in wanted.fields}  # by key: `for` is no name in Python
        values, complete = {}, True
        for key, value in self._items(node, place) or ():
            if key in fields:
                values[fields[key].name] = self.read(value, fields[key].type, (*place, key))
            else:
                self.problem((*place, key), f"unknown key{_near(key, fields)}: allowed are {', '.join(fields)}")
        for key, field in fields.items():
            if field.required and field.name not in values and isinstance(node, yaml.MappingNode):
                self.problem((*place, key), "is missing")
            complete &= not field.required or values.get(field.name, INVALID) is not INVALID
        # A bad value with a default is noted already; the rest of the tree is still worth checking.
        return wanted.cls(**{k: v for k, v in values.items() if v is not INVALID}) if complete else INVALID

    def _read_dict(self, node: yaml.Node, wanted: types.DictType, place: Place) -> Any:
        items = self._items(node, place)
        if items is None:
            return INVALID
        values = {key: self.read(value, wanted.value_type, (*place, key)) for key, value in items}
        return {key: value for key, value in values.items() if value is not INVALID}

    def _read_tuple(self, node: yaml.Node, wanted: types.VarTupleType, place: Place) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self.problem(place, f"{_shown(node)}expected a list, such as [one, two]")
        values = [self.read(item, wanted.item_type, (*place, index)) for index, item in enumerate(node.value)]
        return tuple(value for value in values if value is not INVALID)

    def _items(self, node: yaml.Node, place: Place) -> list[tuple[str, yaml.Node]] | None:
        """The pairs of a mapping, keys unique; None when it is no mapping."""
        if not isinstance(node, yaml.MappingNode):
            self.problem(place, f"{_shown(node)}expected a mapping (key: value); leave the key out for its default")
            return None
        items: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem(place, "a key must be plain text", line=_line(key))
            elif key.value in items:
                first = self.lines[(*place, key.value)]
                self.problem((*place, key.value), f"is here twice, first in line {first}", line=_line(key))
            else:
                items[key.value] = value
                self.lines[(*place, key.value)] = _line(key)
        return list(items.items())

    def _scalar(self, node: yaml.Node, wanted: types.Type) -> Any:
        """Raise ValueError saying what is allowed."""
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        if text is None or _is_null(node) or node.tag not in TAGS:
            text = None  # every parser below refuses None in its own words
        plain = text if not getattr(node, "style", None) else None
        if isinstance(wanted, types.BoolType):
            if plain not in ("true", "false"):
                raise ValueError("expected true or false")
            return plain == "true"
        if isinstance(wanted, types.IntType):
            return _integer(plain or "", wanted)
        if isinstance(wanted, types.LiteralType):
            if text not in wanted.values:
                raise ValueError(f"expected {' or '.join(map(str, wanted.values))}{_near(text or '', wanted.values)}")
            return text
        kind: type = getattr(wanted, "cls", str)
        if kind in self._parsers:
            return self._parsers[kind](text or "")
        if text is None:
            raise ValueError("expected text")
        return self._file_path(text) if kind is FilePath else text

    def _file_path(self, text: str) -> FilePath:
        name = text.removeprefix("credential:")
        if name == text:
            return FilePath(text)
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        if not CREDENTIAL_NAME.fullmatch(name):
            raise ValueError("expected credential: and a file name, such as credential:tls-key")
        if not directory:
            raise ValueError("needs $CREDENTIALS_DIRECTORY, which systemd sets with LoadCredential=")
        return FilePath(Path(directory) / name)

    def problem(self, place: Place, message: str, *, line: int | None = None) -> Any:
        """Note the problem at its line, or at that of the nearest key above; give INVALID."""
        if place:
            self._broken.add(str(place[0]))
        line = self.line_of(place) if line is None else line
        self.problems.append(ConfigProblem(self._file, line, dotted(place) or "file", message))
        return INVALID

    def line_of(self, place: Place) -> int:
        """The line of `place`, else of the nearest key above it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


class _ConfigReader(TreeReader):
    """Reads the configuration, under the environment."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        super().__init__(file, environ)
        self._overridden: dict[Place, str] = {}  # by which variable or credential

    def override(self, config: Config) -> Config:
        """Lay what the environment says over what the file says."""
        for place, value, origin in self._overrides():
            self._overridden[place] = origin
            if place == ("hostname",):
                config = msgspec.structs.replace(config, hostname=self._env_hostname(value))
            elif place == ("data_dir",):
                config = msgspec.structs.replace(config, data_dir=value)
            else:
                config = msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, url=value))
        return config

    def _overrides(self) -> Iterator[tuple[Place, str, str]]:
        for name, place in (("MAILERD_HOSTNAME", ("hostname",)), ("MAILERD_DATA_DIR", ("data_dir",))):
            if self._environ.get(name):
                yield place, self._environ[name], name
        if self._environ.get("MAILERD_DATABASE_URL"):
            yield ("database", "url"), self._environ["MAILERD_DATABASE_URL"], "MAILERD_DATABASE_URL"
        elif directory := self._environ.get("CREDENTIALS_DIRECTORY"):
            credential = Path(directory) / "database-url"
            if credential.is_file():
                yield ("database", "url"), self._secret(credential), "credential:database-url"

    def _secret(self, path: Path) -> str:
        try:
            return path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""  # no URL: the check says so

    def _env_hostname(self, value: str) -> str:
        try:
            return parse_hostname(value)
        except ValueError as error:
            self.problem(("hostname",), str(error))
            return ""

    def check(self, config: Config) -> None:
        """Run the cross checks whose part of the tree could be read."""
        broken = frozenset(self._broken)
        for sections, check in CHECKS:
            if not broken & sections:
                for place, message in check(config):
                    self.problem(place, message)
        if "listeners" not in broken:
            for place, message in check_given(config, self.lines):
                self.problem(place, message)

    def problem(self, place: Place, message: str, *, line: int | None = None) -> Any:
        if place not in self._overridden:
            return super().problem(place, message, line=line)
        self._broken.add(str(place[0]))
        self.problems.append(ConfigProblem("environment", 0, self._overridden[place], message))
        return INVALID


def _integer(text: str, wanted: types.IntType) -> int:
    number = int(text) if INTEGER.fullmatch(text) else None
    low, high = wanted.ge, wanted.le
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        allowed = f" from {low} to {high}" if high is not None else f" of at least {low}" if low is not None else ""
        raise ValueError(f"expected a whole number{allowed}")
    return number


def _shown(node: yaml.Node) -> str:
    """The value as the start of a sentence; long ones are cut, those that are not scalars named."""
    if not isinstance(node, yaml.ScalarNode):
        return "a mapping does not fit here: " if isinstance(node, yaml.MappingNode) else "a list does not fit here: "
    if _is_null(node):
        return "is empty: "
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    return f"{text!r}: "


def _near(name: str, allowed: Any) -> str:
    close = difflib.get_close_matches(name, [str(one) for one in allowed], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in NULLS


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
