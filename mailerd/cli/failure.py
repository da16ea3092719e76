"""How commands end that cannot do what they were asked to: one line on standard error, and an exit status."""

import os
import sys

from mailerd.cli.serving import VARIABLE
from mailerd.errors import ConfigError, DatabaseError, MailerdError, Refused, Unavailable

STATUSES: tuple[tuple[type[MailerdError], int], ...] = (
    (ConfigError, os.EX_CONFIG),
    (DatabaseError, os.EX_UNAVAILABLE),
    (Unavailable, os.EX_UNAVAILABLE),
    (Refused, os.EX_USAGE),
)


class CommandError(MailerdError):
    """The command cannot go on; the text says what to do, `status` is the exit status (sysexits.h)."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class UnusableConfigError(ConfigError):
    """The configuration that a command was to work with: what it was asked for has nothing to do with what is wrong."""


class NotReloadedError(ConfigError):
    """The configuration that the daemon was to go on with: it goes on with the one it has."""


def tell(error: MailerdError) -> int:
    """Say on standard error what is wrong; the exit status."""
    if isinstance(error, ConfigError):
        print("\n".join(map(str, error.problems)), file=sys.stderr)
        if isinstance(error, UnusableConfigError):
            text = f"nothing was done: mend the file, or name another by --config or {VARIABLE}"
            print(f"mailerd: {text}", file=sys.stderr)
        if isinstance(error, NotReloadedError):
            print("mailerd: nothing was reloaded: a running daemon goes on with what it has", file=sys.stderr)
    elif isinstance(error, Refused):
        print(f"mailerd: {error.text}", file=sys.stderr)
    else:
        print(f"mailerd: {error}", file=sys.stderr)
    if isinstance(error, CommandError):
        return error.status
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 1)
