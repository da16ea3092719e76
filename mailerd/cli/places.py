"""Where in the configuration file something stands."""

from pathlib import Path

import yaml


def line_of(path: Path, key: str) -> int:
    """The line of a key as problems name it (`domains.example.com.dkim[0]`), else of its nearest part; 0: none."""
    try:
        node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)  # nodes only: no object is built
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return 0
    line = 0
    while (found := _step(node, key)) is not None:
        line, node, key = found
    return line


def _step(node: yaml.Node | None, key: str) -> tuple[int, yaml.Node, str] | None:
    """One part of `key` further: its line, its node, the rest of the key. Names may hold dots, so nodes decide."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if key == name.value or key.startswith((f"{name.value}.", f"{name.value}[")):
                return name.start_mark.line + 1, value, key[len(name.value) :].removeprefix(".")
    if isinstance(node, yaml.SequenceNode) and key.startswith("["):
        number, _, rest = key[1:].partition("]")
        if number.isdigit() and int(number) < len(node.value):
            item = node.value[int(number)]
            return item.start_mark.line + 1, item, rest.removeprefix(".")
    return None
