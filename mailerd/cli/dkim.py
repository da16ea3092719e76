"""`mailerd dkim`: the keys that mail is signed with, and their records in DNS."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from mailerd.cli.settings import Settings
    from mailerd.delivery.identity import Check
    from mailerd.wire.dkim import PrivateKey

app = typer.Typer(
    help="The keys that mail is signed with: make them, renew them, compare them with what DNS says.",
    no_args_is_help=True,
)


class Kind(StrEnum):
    RSA = "rsa"
    ED25519 = "ed25519"


KindOption = Annotated[
    Kind,
    typer.Option("--kind", "-k", help="rsa: every receiver verifies it. ed25519: smaller; use it beside an rsa key."),
]
DomainArgument = Annotated[str, typer.Argument(metavar="DOMAIN")]
DomainsArgument = Annotated[str | None, typer.Argument(metavar="[DOMAIN]", help="Without one: all configured domains.")]


@dataclass(frozen=True, slots=True)
class ConfiguredKey:
    """A key that the configuration names."""

    domain: str
    selector: str
    file: Path
    key: "PrivateKey"


@app.command()
def generate(
    domain: DomainArgument,
    selector: Annotated[
        str | None, typer.Option("--selector", "-s", metavar="NAME", help="Default: s and the date, as s20261122.")
    ] = None,
    kind: KindOption = Kind.RSA,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: data_dir/dkim/DOMAIN/SELECTOR.pem.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key, and print the DNS record to publish and the lines for the configuration.

    A file that exists is never overwritten.

    \b
    Examples:
      mailerd dkim generate example.com
      mailerd dkim generate example.com --kind ed25519 --selector e2026
    """
    from mailerd.cli.settings import load
    from mailerd.delivery import identity

    settings = load(config)
    ascii_domain, chosen = _ascii(domain), selector or f"s{_today():%Y%m%d}"
    if not identity.SELECTOR.fullmatch(chosen):
        raise typer.BadParameter(f"{chosen!r} is not a selector: letters, digits and hyphens")
    relative = Path("dkim") / ascii_domain / f"{chosen}.pem"
    path = (out or Path(settings.config.data_dir) / relative).absolute()
    try:
        key = identity.generate(path, kind.value)
    except FileExistsError:
        text = f"{path} exists and is not overwritten: choose another --selector or --out, or use it by the lines\n"
        raise CommandError(text + _lines(ascii_domain, chosen, out or relative), os.EX_CANTCREAT) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    record, lines = identity.zone_record(ascii_domain, chosen, key), _lines(ascii_domain, chosen, out or relative)
    _show_new(ascii_domain, chosen, path, record, lines, settings, as_json=as_json)


@app.command()
def rotate(
    domain: DomainArgument, kind: KindOption = Kind.RSA, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Make the next key of a configured domain beside the present ones, and say what to do in which order.

    \b
    Examples:
      mailerd dkim rotate example.com
    """
    from mailerd.cli.settings import load
    from mailerd.delivery import identity

    settings = load(config)
    name = _configured(settings, domain)
    try:
        made = identity.rotate(settings.config, name, _today(), kind.value)
    except OSError as error:
        raise _unwritable(Path(settings.config.data_dir) / "dkim", error) from None
    _show_new(_ascii(name), made.selector, made.key_file, made.record, made.configuration, settings, as_json=as_json)


@app.command()
def show(domain: DomainsArgument = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the DNS records of the configured keys, as lines of a zone file.

    \b
    Examples:
      mailerd dkim show
      mailerd dkim show example.com >> example.com.zone
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.cli.settings import load
    from mailerd.delivery.identity import record_name, zone_record
    from mailerd.wire.dkim import dns_record

    keys = list(_keys(load(config), domain))
    if as_json:
        print_json_lines(
            _plain(each) | {"record_name": record_name(each.domain, each.selector), "record": dns_record(each.key)}
            for each in keys
        )
        return
    for each in keys:
        print(zone_record(each.domain, each.selector, each.key))
    if not keys:
        say("No key is configured: `mailerd dkim generate DOMAIN` makes one.")


@app.command()
def check(domain: DomainsArgument = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Compare the configured keys with what DNS answers. Exit status 1: a receiver could not verify; 75: no answer.

    \b
    Examples:
      mailerd dkim check
      mailerd dkim check example.com --json
    """
    from mailerd.cli.output import print_json_lines, say
    from mailerd.cli.settings import load
    from mailerd.delivery.identity import Published

    settings = load(config)
    keys = list(_keys(settings, domain))
    checks = asyncio.run(_check(settings, keys))
    if as_json:
        print_json_lines(
            _plain(key) | {"record_name": each.name, "state": each.state, "text": each.text, "found": each.found}
            for key, each in zip(keys, checks, strict=True)
        )
    elif keys:
        _draw(keys, checks)
    else:
        say("No key is configured: `mailerd dkim generate DOMAIN` makes one.")
    states = {each.state for each in checks}
    if states - {Published.OK, Published.UNKNOWN}:
        raise typer.Exit(1)
    if Published.UNKNOWN in states:
        raise typer.Exit(os.EX_TEMPFAIL)


async def _check(settings: "Settings", keys: list[ConfiguredKey]) -> "list[Check]":
    from mailerd.cli.output import working
    from mailerd.delivery import identity
    from mailerd.delivery.resolver import Resolver

    resolver = Resolver(settings.config.resolver)
    with working(f"asking DNS for {len(keys):,} records"):
        return await asyncio.gather(*(identity.check(each.domain, each.selector, each.key, resolver) for each in keys))


def _keys(settings: "Settings", domain: str | None) -> Iterator[ConfiguredKey]:
    """The configured keys, of one domain if it is named. A key that cannot be read is a `ConfigError`."""
    from mailerd.delivery.identity import Identity, key_path
    from mailerd.wire.dkim import load_key

    names = list(settings.config.domains) if domain is None else [_configured(settings, domain)]
    Identity(settings.config)  # for its errors: all of them, each with its place
    for name in names:
        for entry in settings.config.domains[name].dkim:
            path = key_path(Path(settings.config.data_dir), entry)
            yield ConfiguredKey(_ascii(name), entry.selector, path, load_key(path.read_bytes()))


def _configured(settings: "Settings", domain: str) -> str:
    """The domain as the configuration writes it."""
    ascii_domain = _ascii(domain)
    for name in settings.config.domains:
        if _ascii(name) == ascii_domain:
            return name
    keys = sorted(Path(settings.config.data_dir, "dkim", ascii_domain).glob("*.pem"))
    if keys:
        text = f"{settings.path} has no domain {domain}; to use the key that there is, write\n"
        file = Path("dkim", ascii_domain, keys[-1].name)
        raise CommandError(text + _lines(ascii_domain, file.stem, file), os.EX_CONFIG)
    text = f"{settings.path} has no domain {domain}: `mailerd dkim generate {domain}` makes a first key for it"
    raise CommandError(text, os.EX_CONFIG)


def _lines(domain: str, selector: str, file: Path) -> str:
    """Of the configuration."""
    return f"domains:\n  {domain}:\n    dkim:\n      - {{selector: {selector}, key_file: {file}}}\n"


def _ascii(domain: str) -> str:
    from mailerd.wire.address import domain_to_ascii

    try:
        return domain_to_ascii(domain)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _today() -> date:
    return utc_now().date()


def _unwritable(path: Path, error: OSError) -> CommandError:
    text = f"cannot write {error.filename or path}: {error.strerror}; run this as the user that mailerd runs as"
    return CommandError(text, os.EX_CANTCREAT)


def _plain(key: ConfiguredKey) -> dict[str, Any]:
    return {"domain": key.domain, "selector": key.selector, "key_file": str(key.file)}


def _show_new(
    domain: str, selector: str, path: Path, record: str, configuration: str, settings: "Settings", *, as_json: bool
) -> None:
    from mailerd.cli.output import print_json, say

    if as_json:
        print_json(
            {
                "domain": domain,
                "selector": selector,
                "key_file": str(path),
                "record": record,
                "configuration": configuration,
            }
        )
        return
    say(f"The key is in {path}, readable by its owner only.\n\n1. Publish this record:\n")
    print(record, flush=True)
    say(f"\n2. When `dig +short TXT {selector}._domainkey.{domain}` shows it, write into {settings.path}:\n")
    print(configuration, end="", flush=True)
    say(f"\n3. `mailerd reload`, then `mailerd dkim check {domain}`.")


def _draw(keys: list[ConfiguredKey], checks: "list[Check]") -> None:
    from mailerd.cli.output import clean, coloured, console, table

    drawn = table(("record", "state", "what it means"))
    for _, each in zip(keys, checks, strict=True):
        drawn.add_row(each.name, coloured(each.state.value), clean(each.text))
    console().print(drawn)
