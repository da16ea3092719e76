"""Where in the configuration file something stands."""

from pathlib import Path

from mailerd.config.places import line_in


def line_of(path: Path, key: str) -> int:
    """The line of a key, as `line_in` finds it; 0 when the file cannot be read."""
    try:
        return line_in(path.read_text("utf-8"), key)
    except (OSError, UnicodeDecodeError):
        return 0
