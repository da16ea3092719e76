"""The command line: `main` is the program `mailerd`; the other modules have one subject each.

`mailerd run` stays in memory for months, so it gets by without the libraries that only commands for people need: it
imports nothing of `app`.
"""

import sys


def main() -> None:
    """Do what the command line says, and exit with its status (sysexits.h)."""
    from mailerd.cli import serving  # after the docstring's promise: nothing is imported before it is known what for

    arguments = sys.argv[1:]
    if serving.is_plain_run(arguments):
        status = serving.serve(serving.config_of(arguments))
    else:
        from mailerd.cli import app

        status = app.run(arguments)
    sys.exit(status)
