"""`mailerd suppressions`: the addresses that must not be mailed."""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, LimitOption, moment
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mailerd.cli.settings import Settings
    from mailerd.db import Pool
    from mailerd.queue.suppression import Suppression
    from mailerd.queue.suppression_files import Defaults, Progress

app = typer.Typer(
    help="List, add and remove suppressions: addresses that must not be mailed. They hold at once, on every node, also "
    "for mail that waits in the queue.",
    no_args_is_help=True,
)

TENANT = "default"
MOST = 1_000  # entries of one address
AddressArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="Or @example.com for a whole domain.")]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Of this tenant.")]
EverybodyOption = Annotated[bool, typer.Option("--global", help="Of all tenants.")]
WhichArgument = Annotated[
    str, typer.Argument(metavar="ADDRESS|ID", help="An address, @example.com for a whole domain, or an id like sup_17.")
]
StreamOption = Annotated[str, typer.Option("--stream", metavar="NAME", help="Mail of this stream only.")]
TopicOption = Annotated[str, typer.Option("--topic", metavar="NAME", help="Mail about this topic only.")]


class ReasonWord(StrEnum):
    BOUNCE = "bounce"
    SOFT_BOUNCE = "soft_bounce"
    COMPLAINT = "complaint"
    UNSUBSCRIBE = "unsubscribe"
    MANUAL = "manual"


@app.command("list")
def list_suppressions(
    address: Annotated[str | None, typer.Argument(metavar="[ADDRESS]", help="Only this one.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only of this tenant.")] = None,
    everybody: Annotated[bool, typer.Option("--global", help="Only what binds all tenants.")] = False,
    stream: Annotated[str | None, typer.Option("--stream", metavar="NAME", help="Only of this stream.")] = None,
    topic: Annotated[str | None, typer.Option("--topic", metavar="NAME", help="Only of this topic.")] = None,
    domain: Annotated[str | None, typer.Option("--domain", metavar="NAME", help="Only addresses in it.")] = None,
    reason: Annotated[ReasonWord | None, typer.Option("--reason", help="Only for this reason.")] = None,
    over: Annotated[bool, typer.Option("--all", help="Also those that are over: they are kept for 30 days.")] = False,
    limit: LimitOption = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the suppressions that hold, newest first: whom, in which scope, why, since when, who found out.

    \b
    Examples:
      mailerd suppressions list ann@example.com
      mailerd suppressions list --reason complaint --json
      mailerd suppressions list --domain example.com --all
    """
    from mailerd.cli.output import console, print_json_lines, say
    from mailerd.cli.settings import load

    filters = {
        "tenant": "" if everybody else tenant,
        "address": address,
        "stream": stream,
        "topic": topic,
        "domain": domain,
        "reason": None if reason is None else reason.value,
        "holding_at": None if over else utc_now(),
    }
    found = asyncio.run(_list(load(config), filters, limit))
    if as_json:
        print_json_lines(map(_plain, found))
    elif not found:
        say("No suppression fits.")
    else:
        console().print(drawn(found))


@app.command("show")
def show(
    which: WhichArgument,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one suppression by its id, or all that hold of an address. Exit status 66 when there is none.

    \b
    Examples:
      mailerd suppressions show sup_17
      mailerd suppressions show ann@example.com --json
    """
    from mailerd.cli.output import clean, console, print_json_lines
    from mailerd.cli.settings import load

    found = asyncio.run(_show(load(config), which, _id(which)))
    if not found:
        raise CommandError(clean(f"no suppression {which}: see `mailerd suppressions list --all`"), os.EX_NOINPUT)
    if as_json:
        print_json_lines(map(_plain, found))
    else:
        for number, each in enumerate(found):
            console().print(*([""] if number else []), _facts(each), sep="\n")


@app.command("add")
def add(
    address: AddressArgument,
    tenant: TenantOption = TENANT,
    everybody: EverybodyOption = False,
    stream: StreamOption = "",
    topic: TopicOption = "",
    reason: Annotated[ReasonWord, typer.Option("--reason", help="Why.")] = ReasonWord.MANUAL,
    detail: Annotated[str, typer.Option("--detail", metavar="TEXT", help="Whatever should be remembered.")] = "",
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="When it ends, or after how long (7d); else never.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Suppress an address from now on.

    \b
    Examples:
      mailerd suppressions add ann@example.com --detail "asked by phone"
      mailerd suppressions add @old.example --global
      mailerd suppressions add ann@example.com --stream marketing --until 2027-01-01
      mailerd suppressions add ann@example.com --until 7d
    """
    from mailerd.cli.output import clean, print_json
    from mailerd.cli.queue import actor
    from mailerd.cli.settings import load
    from mailerd.queue.suppression import Reason, Suppression
    from mailerd.queue.suppression_csv import normalised_entry

    if topic and not stream:
        raise typer.BadParameter("A topic is one of a stream: say --stream too.")
    try:
        entry = normalised_entry(address)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None
    settings = load(config)
    _check_stream(settings, stream)
    now = utc_now()
    suppression = Suppression(
        entry,
        tenant="" if everybody else tenant,
        stream=stream,
        topic=topic,
        reason=Reason(reason.value),
        source=actor(),
        detail=detail,
        created_at=now,
        expires_at=_end(until, now),
    )
    new, stored = asyncio.run(_add(settings, suppression))
    if as_json:
        print_json(_plain(stored) | {"added": new})
    else:
        was = "is suppressed" if new else "was suppressed already"
        print(clean(f"{entry} {was} ({_scope(stored)}): {stored.name}"))


@app.command("remove")
def remove(
    which: WhichArgument,
    tenant: TenantOption = TENANT,
    everybody: EverybodyOption = False,
    stream: Annotated[str | None, typer.Option("--stream", metavar="NAME", help="Only of this stream.")] = None,
    topic: Annotated[str | None, typer.Option("--topic", metavar="NAME", help="Only of this topic.")] = None,
    reason: Annotated[ReasonWord | None, typer.Option("--reason", help="Only for this reason.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Complaints too: who complained must have asked for it.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an address be mailed again, by all entries of a tenant that fit, or by the one of an id.

    Exit status 66 when nothing fits; complaints stay without --force.

    \b
    Examples:
      mailerd suppressions remove ann@example.com
      mailerd suppressions remove ann@example.com --stream marketing --reason unsubscribe
      mailerd suppressions remove sup_17
    """
    from mailerd.cli.output import clean, print_json_lines
    from mailerd.cli.settings import load

    narrowed = {"stream": stream, "topic": topic, "reason": None if reason is None else reason.value}
    id_ = _id(which)
    if id_ is not None and any(narrowed.values()):
        raise typer.BadParameter(f"{which} is one entry: leave out --stream, --topic and --reason.")
    whose = "" if everybody else tenant
    removed, stay = asyncio.run(_remove(load(config), which, id_, whose, narrowed, force=force))
    if as_json:
        print_json_lines(map(_plain, removed))
    else:
        for each in removed:
            print(clean(f"{each.address} is no longer suppressed ({_scope(each)}; {each.reason}; {each.name})"))
    if stay:
        text = f"{stay[0].address} complained ({stay[0].name}): --force lets it be mailed again all the same"
        raise CommandError(clean(text), os.EX_DATAERR)
    if not removed:
        text = f"no suppression {which}" if id_ is not None else f"no suppression of {which} fits"
        raise CommandError(clean(f"{text}: see `mailerd suppressions list`"), os.EX_NOINPUT)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV in UTF-8; - reads standard input.")],
    tenant: TenantOption = TENANT,
    everybody: EverybodyOption = False,
    stream: StreamOption = "",
    topic: TopicOption = "",
    reason: Annotated[ReasonWord, typer.Option("--reason", help="Of lines that name none.")] = ReasonWord.MANUAL,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="Where refused lines go, with what is wrong.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 65 when a line was refused.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the addresses of a file. Nothing that is there is taken away; the same file twice adds nothing.

    Columns are address (or email), tenant, stream, topic, reason, source, detail, created_at, expires_at; with or
    without a first line of names, by comma, semicolon or tab. Without names the first column is the address. What was
    exported can be imported, into the same scopes: a tenant of * is all of them, an empty one that of --tenant or
    --global. Lines that cannot be taken are counted, told, and do not hold up the others. An import makes one event,
    suppression.imported, and none for each address.

    \b
    Examples:
      mailerd suppressions import bounced.csv --reason bounce --errors refused.csv
      zcat old.csv.gz | mailerd suppressions import -
    """
    from mailerd.cli.output import print_json
    from mailerd.cli.settings import load
    from mailerd.queue.suppression_csv import NotCsvError
    from mailerd.queue.suppression_files import Defaults

    if topic and not stream:
        raise typer.BadParameter("A topic is one of a stream: say --stream too.")
    settings = load(config)
    _check_stream(settings, stream)
    defaults = Defaults(
        tenant="" if everybody else tenant,
        now=utc_now(),
        streams=frozenset(settings.config.streams),
        reason=reason.value,
        stream=stream,
        topic=topic,
        bound=False,
    )
    try:
        with _opened(file) as stream_:
            begun = time.monotonic()
            progress = asyncio.run(_import(settings, stream_, defaults, quiet=as_json))
    except FileNotFoundError:
        raise CommandError(f"there is no file {file}", os.EX_NOINPUT) from None
    except NotCsvError as error:
        raise CommandError(f"{file}: {error}", os.EX_DATAERR) from None
    if errors is not None:
        _write_errors(errors, progress)
    if as_json:
        names = ("read", "added", "there", "refused")
        print_json({name: getattr(progress, name) for name in names})
    else:
        _tell(progress, time.monotonic() - begun, said=errors is not None)
    if strict and progress.refused:
        raise CommandError(f"{progress.refused:,} lines were refused; the others are taken", os.EX_DATAERR)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="- writes standard output.")] = Path("-"),
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only of this tenant.")] = None,
    reason: Annotated[ReasonWord | None, typer.Option("--reason", help="Only for this reason.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write the suppressions that hold as CSV, in the form that import reads.

    \b
    Examples:
      mailerd suppressions export suppressed.csv
      mailerd suppressions export --reason complaint | gzip > complaints.csv.gz
    """
    from mailerd.cli.settings import load

    settings = load(config)
    out = nullcontext(sys.stdout) if str(file) == "-" else file.open("w", encoding="utf-8", newline="")
    with out as stream:
        asyncio.run(_export(settings, stream, tenant, None if reason is None else reason.value))


def _opened(file: Path) -> Any:
    if str(file) == "-":
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline="")  # type: ignore[union-attr]
        return nullcontext(sys.stdin)
    return file.open(encoding="utf-8", newline="")


def _check_stream(settings: "Settings", stream: str) -> None:
    """An entry for a stream that is none would bind no mail."""
    known = settings.config.streams
    if stream and stream not in known:
        raise typer.BadParameter(f"There is no stream {stream}; known: {', '.join(sorted(known))}.")


def _id(which: str) -> int | None:
    """The number of `sup_17`, None of an address."""
    from mailerd.queue.ids import SUPPRESSION, parse_id

    if "@" in which:
        return None
    try:
        return parse_id(SUPPRESSION, which)
    except ValueError:
        raise typer.BadParameter(f"{which!r} is neither an address nor an id such as sup_17.") from None


def _end(text: str | None, now: datetime) -> datetime | None:
    """Of a time, or of a duration from now."""
    from mailerd.config.values import parse_duration

    if text is None:
        return None
    try:
        end: datetime | None = now + timedelta(seconds=parse_duration(text))
    except ValueError:
        end = moment(text)
    if end is not None and end <= now:
        raise typer.BadParameter(f"--until {text} is over already.")
    return end


async def _list(settings: "Settings", filters: dict[str, Any], limit: int) -> "list[Suppression]":
    from mailerd.cli.settings import database
    from mailerd.queue.suppression import SuppressionStore

    async with database(settings) as pool:
        return await SuppressionStore(pool).list(limit=limit, **filters)


async def _show(settings: "Settings", which: str, id_: int | None) -> "list[Suppression]":
    from mailerd.cli.settings import database
    from mailerd.queue.suppression import SuppressionStore

    async with database(settings) as pool:
        store = SuppressionStore(pool)
        if id_ is None:
            return await store.list(tenant=None, limit=MOST, address=which, holding_at=utc_now())
        one = await store.get(id_, None)
    return [] if one is None else [one]


async def _add(settings: "Settings", suppression: "Suppression") -> "tuple[bool, Suppression]":
    """Whether it is new, and the entry."""
    from mailerd.cli.settings import database
    from mailerd.queue.suppression import GRACE, SuppressionStore

    async with database(settings) as pool:
        store = SuppressionStore(pool)
        added = await store.add([suppression])
        (stored,) = added or await store.entries([suppression])
        await _doubt_tenant(settings, pool, suppression.tenant)
    await asyncio.sleep(GRACE)
    return bool(added), stored


async def _doubt_tenant(settings: "Settings", pool: "Pool", tenant: str) -> None:
    """Say it when nobody sends as that tenant, as after a slip of the pen: then it binds no mail so far."""
    from mailerd.cli.output import clean, say
    from mailerd.intake.credentials import CredentialStore

    known = {credential.tenant for credential in await CredentialStore(pool).list()}
    if any(listener.auth != "required" for listener in settings.config.listeners):
        known.add(TENANT)  # whose mail it is that comes without a credential
    if tenant and tenant not in known:
        say(clean(f"No credential is of a tenant {tenant}: see `mailerd credentials list`."))


async def _remove(
    settings: "Settings", which: str, id_: int | None, tenant: str, narrowed: dict[str, Any], *, force: bool
) -> "tuple[list[Suppression], list[Suppression]]":
    """What was removed, and the complaints that stay."""
    from mailerd.cli.queue import actor
    from mailerd.cli.settings import database
    from mailerd.queue.suppression import Reason, SuppressionStore

    now = utc_now()
    async with database(settings) as pool:
        store = SuppressionStore(pool)
        if id_ is not None:
            one = await store.get(id_, None)
            found = [] if one is None else [one]
        else:
            found = await store.list(tenant=tenant, limit=MOST, address=which, holding_at=now, **narrowed)
        stay = [each for each in found if each.reason is Reason.COMPLAINT and not force]
        asked = [each for each in found if each not in stay]
        removed = [each for each in asked if await store.remove(each.id, tenant=None, actor=actor(), now=now)]
    return removed, stay


async def _import(settings: "Settings", stream: TextIO, defaults: "Defaults", *, quiet: bool) -> "Progress":
    from mailerd.cli.output import console
    from mailerd.cli.settings import database
    from mailerd.queue.suppression import GRACE
    from mailerd.queue.suppression_csv import read_rows
    from mailerd.queue.suppression_files import Progress, SuppressionFileStore

    progress = Progress()
    with nullcontext() if quiet else console(errors=True).status("reading") as status:
        async with database(settings) as pool:
            rows = read_rows(stream)  # type: ignore[arg-type]
            async with aclosing(SuppressionFileStore(pool).import_rows(rows, defaults)) as parts:
                async for progress in parts:
                    if status is not None:
                        status.update(f"{progress.read:,} lines read, {progress.added:,} added")
            await _doubt_tenant(settings, pool, defaults.tenant)
            await asyncio.sleep(GRACE)
    return progress


async def _export(settings: "Settings", stream: TextIO, tenant: str | None, reason: str | None) -> None:
    from mailerd.cli.settings import database
    from mailerd.queue.suppression_csv import write_rows
    from mailerd.queue.suppression_files import SuppressionFileStore

    stream.write(write_rows([]))
    async with database(settings) as pool:
        async for rows in SuppressionFileStore(pool).export(tenant, reason=reason, now=utc_now()):
            stream.write(write_rows(rows, header=False))


def _write_errors(path: Path, progress: "Progress") -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "problem", "text"])
        writer.writerows((bad.line, bad.problem, bad.text) for bad in progress.problems)


def _tell(progress: "Progress", seconds: float, *, said: bool) -> None:
    from mailerd.cli.output import clean, count_of, say, span

    words = f"{count_of(progress.read, 'line')} in {span(seconds)}: {progress.added:,} added"
    print(f"{words}, {progress.there:,} were there, {progress.refused:,} refused")
    if not said:
        for bad in progress.problems[:10]:
            say(clean(f"line {bad.line}: {bad.problem}: {bad.text}"))
        if progress.refused > 10:
            say(f"… and {progress.refused - 10:,} more: --errors FILE has the first thousand.")


def _plain(suppression: "Suppression") -> dict[str, Any]:
    """With the names of the HTTP API, and the tenant: "" is all of them."""
    from dataclasses import asdict

    from mailerd.queue.ids import format_message_id

    plain = asdict(suppression)
    message_id = plain.pop("message_id")
    email_id = None if message_id is None else format_message_id(message_id)
    return plain | {"id": suppression.name, "email_id": email_id}


def _scope(suppression: "Suppression") -> str:
    parts = [suppression.tenant or "all tenants", suppression.stream or "all streams", suppression.topic]
    return ", ".join(part for part in parts if part)


def _facts(each: "Suppression") -> "RenderableType":
    from mailerd.cli.output import facts, time_of
    from mailerd.queue.ids import format_message_id

    return facts(
        [
            ("suppression", each.name),
            ("address", each.address),
            ("scope", _scope(each)),
            ("reason", each.reason),
            ("source", each.source),
            ("since", time_of(each.created_at)),
            ("until", time_of(each.expires_at)),
            ("email", "" if each.message_id is None else format_message_id(each.message_id)),
            ("detail", each.detail),
        ]
    )


def drawn(found: "Sequence[Suppression]") -> "RenderableType":
    """Fits a terminal: what does not stands below, and no address is broken."""
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean, time_of

    columns = ("id", "since", "reason", "address", "scope", "source", "until", "detail")
    rows = Listing(columns, below=("detail", "until", "source", "scope", "since", "reason"))
    for each in found:
        rows.add_row(
            each.name,
            f"{each.created_at:%Y-%m-%d}",
            each.reason,
            clean(each.address),
            clean(_scope(each)),
            clean(each.source),
            time_of(each.expires_at),
            clean(each.detail),
        )
    return rows
