"""Where in the text of a configuration file something stands."""

import yaml

from mailerd.config.checks import Place


def dotted(place: Place) -> str:
    """The key of a place as problems name it: `listeners[0].bind`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def line_in(text: str, key: str) -> int:
    """The line of a key as problems name it (`domains.example.com.dkim[0]`), else of its nearest part; 0: none."""
    return _found(text, key)[0]


def exact_line_in(text: str, key: str) -> int:
    """The line of a key that stands in the text itself; 0: it does not."""
    line, rest = _found(text, key)
    return 0 if rest else line


def _found(text: str, key: str) -> tuple[int, str]:
    """The line of the nearest part of the key, and what is left of the key after that part."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes only: no object is built
    except (yaml.YAMLError, RecursionError):
        return 0, key
    line = 0
    while (found := _step(node, key)) is not None:
        line, node, key = found
    return line, key


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
