"""`mailerd credentials`: who may submit, as what, and how much."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mailerd.cli.asking import confirm
from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, YesOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.config import Rate
    from mailerd.intake.credentials import Credential, CredentialStore

Result = TypeVar("Result")

app = typer.Typer(
    help="Who may submit mail, by SMTP (AUTH) and by HTTP (Bearer). A change is in force everywhere within a minute.",
    no_args_is_help=True,
)


class Scope(StrEnum):
    SEND = "send"
    READ = "read"
    MANAGE = "manage"


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the credential; also its user name in AUTH.")]


@app.command()
def create(
    name: NameArgument,
    password: Annotated[
        bool, typer.Option("--password", help="A password of your choice instead of a token: asked for, or from stdin.")
    ] = False,
    sender_domain: Annotated[
        list[str], typer.Option("--sender-domain", metavar="DOMAIN", help="May send only as it; repeat, *.d is fine.")
    ] = [],  # noqa: B006 typer copies it
    stream: Annotated[
        str | None, typer.Option("--stream", metavar="NAME", help="Its mail goes by this stream.")
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="NAME", help="Its mail leaves by this pool.")] = None,
    message_rate: Annotated[
        str | None, typer.Option("--message-rate", metavar="RATE", help="Such as 10/s, 100/min, 1000/h, 5000/d.")
    ] = None,
    recipient_rate: Annotated[
        str | None, typer.Option("--recipient-rate", metavar="RATE", help="The same for recipients.")
    ] = None,
    scope: Annotated[
        list[Scope], typer.Option("--scope", help="send: submit; read: look; manage: steer. Repeat it. Default: send.")
    ] = [Scope.SEND],  # noqa: B006
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose mail it is.")] = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a credential. Its token is shown this once, alone on standard output; only a hash is kept.

    \b
    Examples:
      mailerd credentials create shop --sender-domain shop.example --message-rate 1000/h
      KEY=$(mailerd credentials create api --scope send --scope read)
      mailerd credentials create printer --password < password.txt
    """
    from mailerd.cli.output import print_json, say
    from mailerd.cli.settings import load

    settings = load(config)
    _check_known("stream", stream, settings.config.streams)
    _check_known("pool", pool, settings.config.pools)
    rates = _rate("--message-rate", message_rate), _rate("--recipient-rate", recipient_rate)
    chosen = _ask_password(name) if password else None

    def made(store: "CredentialStore") -> Awaitable[str]:
        return store.create(
            name,
            password=chosen,
            tenant=tenant,
            scopes=frozenset(each.value for each in scope),
            sender_domains=[each.lower() for each in sender_domain],
            stream=stream,
            pool=pool,
            message_rate=rates[0],
            recipient_rate=rates[1],
        )

    secret = asyncio.run(_with_store(settings, made))
    if as_json:
        print_json({"name": name, "token": None if password else secret})
    elif password:
        say(f"Credential {name} is made, with the password that you chose.")
    else:
        _show_token(name, secret)


@app.command("list")
def list_credentials(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List all credentials, the disabled ones too.

    \b
    Examples:
      mailerd credentials list
    """
    from mailerd.cli.output import print_json_lines
    from mailerd.cli.settings import load

    found = asyncio.run(_with_store(load(config), lambda store: store.list()))
    if as_json:
        print_json_lines(map(_plain, found))
    else:
        _draw(found)


@app.command()
def show(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one credential with its limits; never its secret.

    \b
    Examples:
      mailerd credentials show shop
    """
    from mailerd.cli.output import console, print_json
    from mailerd.cli.settings import load

    found = asyncio.run(_with_store(load(config), lambda store: store.get(name)))
    if found is None:
        raise _unknown(name)
    if as_json:
        print_json(_plain(found))
    else:
        console().print(_facts(found))


@app.command()
def disable(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Refuse a credential from now on; mail that it has submitted still leaves.

    \b
    Examples:
      mailerd credentials disable shop
      mailerd queue hold --credential shop
    """
    from mailerd.cli.settings import load

    if not asyncio.run(_with_store(load(config), lambda store: _disable(store, name))):
        raise _unknown(name)
    _done(name, "disabled", "is refused, everywhere within a minute", as_json=as_json)


@app.command()
def enable(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a disabled credential be used again.

    \b
    Examples:
      mailerd credentials enable shop
    """
    from mailerd.cli.settings import load

    if not asyncio.run(_with_store(load(config), lambda store: store.enable(name))):
        raise _unknown(name)
    _done(name, "enabled", "may be used again", as_json=as_json)


@app.command()
def delete(
    name: NameArgument, yes: YesOption = False, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Forget a credential. Asks first. What it submitted stays.

    \b
    Examples:
      mailerd credentials delete shop
    """
    from mailerd.cli.settings import load

    settings = load(config)
    if not yes:
        confirm(f"Delete the credential {name} for good? (`disable` can be taken back)")
    if not asyncio.run(_with_store(settings, lambda store: store.delete(name))):
        raise _unknown(name)
    _done(name, "deleted", "is deleted", as_json=as_json)


@app.command()
def rotate(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Give a credential a new token, in the place of its token or password. The old one ends within a minute.

    \b
    Examples:
      KEY=$(mailerd credentials rotate shop)
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.settings import load

    token = asyncio.run(_with_store(load(config), lambda store: store.rotate(name)))
    if token is None:
        raise _unknown(name)
    if as_json:
        print_json({"name": name, "token": token})
    else:
        _show_token(name, token)


async def _with_store(settings: "Settings", work: "Callable[[CredentialStore], Awaitable[Result]]") -> Result:
    from mailerd.cli.settings import database
    from mailerd.intake.credentials import CredentialStore

    async with database(settings) as pool:
        return await work(CredentialStore(pool))


async def _disable(store: "CredentialStore", name: str) -> bool:
    """False when there is none of that name; one that is disabled already stays so."""
    return await store.disable(name, now=utc_now()) or await store.get(name) is not None


def _unknown(name: str) -> CommandError:
    return CommandError(f"there is no credential {name}: `mailerd credentials list` shows all", os.EX_NOINPUT)


def _check_known(what: str, name: str | None, known: dict[str, Any]) -> None:
    if name is not None and name not in known:
        raise typer.BadParameter(f"the configuration has no {what} {name!r}, only {', '.join(known)}")


def _rate(option: str, text: str | None) -> "Rate | None":
    from mailerd.config.values import parse_rate

    try:
        return None if text is None else parse_rate(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _ask_password(name: str) -> str:
    """Typed twice at a terminal; else the first line of standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


def _show_token(name: str, token: str) -> None:
    from mailerd.cli.output import say

    say(f"The token of {name}, shown only now (AUTH: user name {name}, the token as password; HTTP: Bearer):")
    print(token)


def _done(name: str, word: str, text: str, *, as_json: bool) -> None:
    from mailerd.cli.output import print_json

    if as_json:
        print_json({"name": name, "result": word})
    else:
        print(f"Credential {name} {text}.")


def _plain(credential: "Credential") -> dict[str, Any]:
    import dataclasses

    plain = {field.name: getattr(credential, field.name) for field in dataclasses.fields(credential)}
    rates = {key: _rate_text(plain[key]) or None for key in ("message_rate", "recipient_rate")}
    return plain | rates | {"scopes": sorted(credential.scopes)}


def _rate_text(rate: "Rate | None") -> str:
    from mailerd.config.values import RATE_UNITS

    if rate is None:
        return ""
    unit, seconds = next(item for item in reversed(RATE_UNITS.items()) if rate.period % item[1] == 0)
    number = int(rate.period // seconds)
    return f"{rate.count}/{number if number > 1 else ''}{unit}"


def _state(credential: "Credential") -> str:
    return "disabled" if credential.disabled_at is not None else "ok"


def _draw(found: "list[Credential]") -> None:
    from mailerd.cli.output import clean, coloured, console, say, table

    if not found:
        say("There is no credential: `mailerd credentials create NAME` makes one.")
        return
    drawn = table(("name", "kind", "state", "scopes", "sends as", "stream", "limits", "tenant"))
    for each in found:
        limits = [
            _rate_text(each.message_rate),
            each.recipient_rate and f"{_rate_text(each.recipient_rate)} recipients",
        ]
        drawn.add_row(
            clean(each.name),
            each.kind,
            coloured(_state(each)),
            ", ".join(sorted(each.scopes)),
            ", ".join(each.sender_domains) or "any",
            each.stream or "any",
            ", ".join(limit for limit in limits if limit),
            clean(each.tenant),
        )
    console().print(drawn)


def _facts(credential: "Credential") -> Any:
    from mailerd.cli.output import coloured, facts, time_of

    return facts(
        [
            ("name", credential.name),
            ("kind", credential.kind),
            ("state", coloured(_state(credential))),
            ("disabled", time_of(credential.disabled_at)),
            ("created", time_of(credential.created_at)),
            ("tenant", credential.tenant),
            ("scopes", ", ".join(sorted(credential.scopes))),
            ("sends as", ", ".join(credential.sender_domains) or "any domain"),
            ("stream", credential.stream or "chosen by the submitter, else transactional"),
            ("pool", credential.pool or "that of the stream"),
            ("messages", _rate_text(credential.message_rate) or "no limit"),
            ("recipients", _rate_text(credential.recipient_rate) or "no limit"),
        ]
    )
