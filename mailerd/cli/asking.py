"""Asking the person at the terminal."""

import typer

from mailerd.cli.failure import CommandError


def confirm(question: str) -> None:
    """Go on only after a yes; without one, or without anybody there, nothing is changed and the command fails."""
    try:
        sure = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)  # the question's line has no end yet
        raise CommandError("nobody answered, so nothing is changed: --yes does it without asking") from None
    if not sure:
        raise CommandError("nothing is changed, as you wished")
