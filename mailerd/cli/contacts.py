"""`mailerd contacts`: contacts in from a file and out to one."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from mailerd.cli.failure import CommandError
from mailerd.cli.options import ConfigOption, JsonOption, LimitOption
from mailerd.clock import utc_now

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mailerd.campaigns.contacts.imports.receiving import Request
    from mailerd.campaigns.contacts.imports.store import Import
    from mailerd.cli.settings import Settings
    from mailerd.db import Pool

app = typer.Typer(
    help="Import contacts from files, look at imports, and export contacts.",
    no_args_is_help=True,
)

PIECE = 1 << 20  # bytes read at once
LOOK = 0.3  # seconds between looks at what somebody else imports
MAX_ID = (1 << 63) - 1
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Of this tenant.")]
ListOption = Annotated[str | None, typer.Option("--list", metavar="ID", help="A list such as lst_17.")]


class ModeWord(StrEnum):
    UPSERT = "upsert"
    SKIP = "skip"
    UNSUBSCRIBE = "unsubscribe"


class FormatWord(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, or .jsonl; - reads standard input.")],
    list_: ListOption = None,
    mode: Annotated[ModeWord, typer.Option("--mode", help="What becomes of who is there.")] = ModeWord.UPSERT,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="COLUMN=FIELD", help="May be repeated; no FIELD: ignore.")
    ] = None,
    unknown: Annotated[bool, typer.Option("--custom", help="Unknown columns become custom fields.")] = False,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="NAME", help="For all; may be repeated.")] = None,
    consent: Annotated[str, typer.Option("--consent", metavar="METHOD", help="Record how all agreed: form …")] = "",
    text_version: Annotated[str, typer.Option("--consent-text", metavar="NAME", help="To which text.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="Where refused rows go, as CSV.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 65 when a row was refused.")] = False,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import contacts from CSV in any usual encoding, or one JSON object a line. Interrupted, the daemon goes on.

    The first line names the columns: email, first_name, last_name, phone, time_zone, tags, custom_fields.NAME and what
    others call them; --map says it otherwise. An empty cell changes nothing. Nobody who unsubscribed, bounced,
    complained or was erased is subscribed again by it. Mode unsubscribe takes all of the file off the list, or without
    --list off all mail of campaigns.

    \b
    Examples:
      mailerd contacts import people.csv --list lst_1 --tag fair
      mailerd contacts import people.csv --map Mail=email --map Plan=custom_fields.plan --dry-run
      zcat left.csv.gz | mailerd contacts import - --mode unsubscribe
    """
    from mailerd.campaigns.contacts.imports.columns import ColumnsError
    from mailerd.campaigns.contacts.imports.receiving import TooLargeError
    from mailerd.cli.output import print_json
    from mailerd.cli.settings import load

    settings = load(config)
    asked = _asked(file, list_, mode, mapping or [], tag or [], tenant, unknown=unknown, dry_run=dry_run)
    asked = _with_consent(asked, consent, text_version)
    try:
        with _opened(file) as stream:
            size = None if str(file) == "-" else file.stat().st_size
            done = asyncio.run(_import(settings, stream, asked, size, errors, quiet=as_json))
    except FileNotFoundError:
        raise CommandError(f"there is no file {file}", os.EX_NOINPUT) from None
    except (ColumnsError, TooLargeError) as error:
        raise CommandError(f"{file}: {error}", os.EX_DATAERR) from None
    if as_json:
        print_json(_plain(done))
    else:
        _tell(done, pointed=errors is None)
    if done.state == "failed":
        raise CommandError(f"{done.name} failed: {done.error}", os.EX_DATAERR)
    if strict and done.counts.refused:
        raise CommandError(f"{done.counts.refused:,} rows were refused; the others are taken", os.EX_DATAERR)


@app.command("imports")
def imports(
    which: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this one, such as cim_17.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only of this tenant.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it where it is; what it has written stays.")] = False,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="FILE", help="Write its refused rows, to mend and import again.")
    ] = None,
    limit: LimitOption = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show imports, newest first, or one of them. Exit status 66 when there is none of that id.

    \b
    Examples:
      mailerd contacts imports
      mailerd contacts imports cim_17 --json
      mailerd contacts imports cim_17 --errors refused.csv
      mailerd contacts imports cim_17 --cancel
    """
    from mailerd.cli.output import console, count_of, facts, print_json_lines, say
    from mailerd.cli.settings import load

    number = None if which is None else _number("cim_", which)
    if cancel and number is None:
        raise typer.BadParameter("Say which import to cancel, such as cim_17.")
    if errors is not None and number is None:
        raise typer.BadParameter("Say whose refused rows, such as cim_17.")
    found = asyncio.run(_imports(load(config), number, tenant, limit, errors, cancel=cancel))
    if number is not None and not found:
        raise CommandError(f"no import {which}: see `mailerd contacts imports`", os.EX_NOINPUT)
    if as_json:
        print_json_lines(map(_plain, found))
    elif number is not None:
        console().print(facts(_in_words(found[0])))
        if errors is not None:
            say(f"{count_of(found[0].position.errors, 'refused row')} written to {errors}")
    elif not found:
        say("There are no imports.")
    else:
        console().print(drawn(found))


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="- writes standard output.")] = Path("-"),
    list_: ListOption = None,
    format_: Annotated[FormatWord, typer.Option("--format", help="What to write.")] = FormatWord.CSV,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
) -> None:
    """Write all contacts, or those subscribed to a list, as CSV that import reads, or one JSON object a line.

    Cells that a spreadsheet would run (= + - @) begin with an apostrophe, which import takes off again.

    \b
    Examples:
      mailerd contacts export people.csv
      mailerd contacts export --list lst_1 --format jsonl | gzip > people.jsonl.gz
    """
    from mailerd.cli.settings import load

    settings = load(config)
    list_id = None if list_ is None else _number("lst_", list_)
    out: AbstractContextManager[BinaryIO]
    out = nullcontext(sys.stdout.buffer) if str(file) == "-" else file.open("wb")
    with out as stream:
        asyncio.run(_export(settings, stream, tenant, list_id, format_.value))
        stream.flush()


def _opened(file: Path) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb")


def _number(prefix: str, text: str) -> int:
    from mailerd.queue.ids import parse_id

    try:
        return parse_id(prefix, text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None


def _asked(
    file: Path,
    list_: str | None,
    mode: ModeWord,
    mapping: list[str],
    tags: list[str],
    tenant: str,
    *,
    unknown: bool,
    dry_run: bool,
) -> "Request":
    from mailerd.campaigns.contacts.imports.columns import check_mapping
    from mailerd.campaigns.contacts.imports.receiving import Request
    from mailerd.campaigns.contacts.imports.values import Settings as Reading
    from mailerd.campaigns.contacts.values import tag_name
    from mailerd.cli.queue import actor

    if any("=" not in each for each in mapping):
        raise typer.BadParameter("--map has a column and a field: --map Mail=email.")
    fields = {column: field for column, _, field in (each.rpartition("=") for each in mapping)}
    if problem := check_mapping(fields):
        raise typer.BadParameter(problem)
    try:
        names = [tag_name(each) for each in tags]
    except ValueError as error:
        raise typer.BadParameter(f"--tag: {error}.") from None
    return Request(
        tenant=tenant,
        mode=mode.value,
        dry_run=dry_run,
        list_id=None if list_ is None else _number("lst_", list_),
        settings=Reading(
            format="json" if file.suffix in (".jsonl", ".ndjson") else "csv",
            mapping=fields,
            unknown="custom_fields" if unknown else "ignore",
            tags=names,
        ),
        created_by=actor(),
    )


def _with_consent(asked: "Request", method: str, text_version: str) -> "Request":
    import msgspec

    from mailerd.campaigns.contacts.imports.values import Consent

    if text_version and not method:
        raise typer.BadParameter("--consent-text needs --consent.")
    if not method:
        return asked
    settings = msgspec.structs.replace(asked.settings, consent=Consent(method=method, text_version=text_version))
    return msgspec.structs.replace(asked, settings=settings)


async def _import(
    settings: "Settings", stream: BinaryIO, asked: "Request", size: int | None, errors: Path | None, *, quiet: bool
) -> "Import":
    from mailerd.campaigns.contacts.imports.receiving import Receiver
    from mailerd.campaigns.contacts.imports.store import ImportStore
    from mailerd.cli.settings import database

    with _bar(quiet=quiet) as show:
        async with database(settings) as pool:
            store = ImportStore(pool)
            await _check_list(store, asked)
            async with await Receiver.begin(store, asked, settings.config.campaigns.max_import) as receiver:
                read = 0
                while piece := await asyncio.to_thread(stream.read, PIECE):
                    await receiver.feed(piece)
                    read += len(piece)
                    show("storing", read / size if size else None)
                made = await receiver.finish()
            done = await _advance(settings, pool, made, show)
            if errors is not None:
                await _write_errors(store, done, errors)
    return done


async def _check_list(store: Any, asked: "Request") -> None:
    if asked.list_id is not None and await store.list_type(asked.tenant, asked.list_id) != "static":
        raise CommandError(f"the tenant {asked.tenant} has no static list lst_{asked.list_id}", os.EX_NOINPUT)


async def _advance(
    settings: "Settings", pool: "Pool", made: "Import", show: Callable[[str, float | None], None]
) -> "Import":
    """Work on it ourselves, or look on while the daemon does."""
    from mailerd.campaigns.contacts.imports.importer import Importer
    from mailerd.campaigns.contacts.imports.store import ImportStore
    from mailerd.cli.settings import database_url
    from mailerd.intake.credentials import CredentialStore
    from mailerd.queue.suppression import SuppressionStore

    def progress(work: "Import") -> None:
        rate = "" if work.rate is None else f", {work.rate:,.0f} a second"
        show(f"{made.name}: {work.counts.rows:,} rows{rate}", work.bytes_done / max(1, work.bytes))

    secret = await CredentialStore(pool).secret()
    importer = Importer(database_url(settings), pool, SuppressionStore(pool), secret, after_block=progress)
    store = ImportStore(pool)
    while True:
        await importer.advance(made.id)
        now = await store.get(made.id, made.tenant)
        assert now is not None
        if now.state != "processing":
            return now
        progress(now)
        await asyncio.sleep(LOOK)


class _bar:  # noqa: N801 - a context
    """A progress bar on standard error, where somebody watches."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        from mailerd.cli.output import console

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console(errors=True), transient=True, disable=quiet)

    def __enter__(self) -> Callable[[str, float | None], None]:
        self._progress.start()
        task = self._progress.add_task("storing", total=1.0)

        def show(text: str, part: float | None) -> None:
            self._progress.update(task, description=text, total=None if part is None else 1.0, completed=part or 0.0)

        return show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


async def _write_errors(store: Any, done: "Import", path: Path) -> None:
    from mailerd.campaigns.contacts.imports.refused import RefusedFile

    refused = RefusedFile(done.settings, done.position)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(refused.head())
        async for page in store.errors(done.id):
            file.write(refused.lines(page))


async def _imports(
    settings: "Settings", number: int | None, tenant: str | None, limit: int, errors: Path | None, *, cancel: bool
) -> "list[Import]":
    from mailerd.campaigns.contacts.imports.store import ImportStore
    from mailerd.cli.settings import database

    async with database(settings) as pool:
        store = ImportStore(pool)
        if number is None:
            return await store.page(tenant, limit=limit, before=MAX_ID)
        if cancel:
            await store.cancel(number, tenant)
        found = await store.get(number, tenant)
        if found is not None and errors is not None:
            await _write_errors(store, found, errors)
    return [] if found is None else [found]


async def _export(settings: "Settings", stream: BinaryIO, tenant: str, list_id: int | None, format_: str) -> None:
    from mailerd.campaigns.contacts.exporting import MAX_NAMES, ExportStore, csv_head, csv_lines, json_lines
    from mailerd.cli.settings import database

    async with database(settings) as pool:
        store, now = ExportStore(pool), utc_now()
        names = await store.names(tenant) if format_ == "csv" else []
        if len(names) > MAX_NAMES:
            text = f"contacts have {len(names):,} custom fields, too many for columns: use --format jsonl"
            raise CommandError(text, os.EX_DATAERR)
        if format_ == "csv":
            stream.write(csv_head(names).encode())
        pages: AsyncIterator[list[int]] = store.ids(tenant, list_id=list_id)
        async for ids in pages:
            found = await store.contacts(tenant, ids, now)
            stream.write(csv_lines(found, names).encode() if format_ == "csv" else json_lines(found))


def _tell(done: "Import", *, pointed: bool) -> None:
    """In words; `pointed`: with where the refused rows can be had."""
    from mailerd.cli.output import clean, count_of, say, span

    counts = done.counts
    would = "would be " if done.dry_run else ""
    print(
        f"{done.name} {done.state}: {count_of(counts.rows, 'row')} in {span(done.position.seconds)}: "
        f"{would}{counts.created:,} created, {counts.updated:,} updated, {counts.unchanged:,} unchanged, "
        f"{counts.skipped:,} skipped, {counts.duplicates:,} duplicates, {counts.refused:,} refused"
    )
    if pointed and done.position.errors:
        say(f"`mailerd contacts imports {done.name} --errors FILE` writes the refused rows, each with why.")
    if counts.not_subscribed:
        say(f"{counts.not_subscribed:,} are suppressed or had left the list: they stay so.")
    if done.position.ignored:
        say(clean(f"Columns that were ignored: {', '.join(done.position.ignored[:20])}"))


def _plain(own: "Import") -> dict[str, Any]:
    """With the names of the HTTP API, and the tenant."""
    from msgspec.structs import asdict

    return {
        "import_id": own.name,
        "tenant": own.tenant,
        "status": own.state,
        "mode": own.mode,
        "dry_run": own.dry_run,
        "list_id": None if own.list_id is None else f"lst_{own.list_id}",
        "percent": own.percent,
        "rate": None if own.rate is None else round(own.rate, 1),
        "eta": None if own.eta is None else round(own.eta, 1),
        **asdict(own.counts),
        "errors_kept": own.position.errors,
        "ignored_columns": own.position.ignored,
        "error": own.error,
        "created_by": own.created_by,
        "created_at": own.created_at,
        "finished_at": own.finished_at,
    }


def _in_words(own: "Import") -> list[tuple[str, str]]:
    """What is worth saying of one import."""
    from mailerd.cli.output import clean, count_of, span

    counts, position = own.counts, own.position
    would = " (would be)" if own.dry_run else ""
    numbers = {
        "created": (counts.created, ""),
        "updated": (counts.updated, ""),
        "unchanged": (counts.unchanged, "the file says nothing new of them"),
        "skipped": (counts.skipped, _why_skipped(own)),
        "duplicates": (counts.duplicates, "the address stands in the file again"),
        "refused": (counts.refused, f"mailerd contacts imports {own.name} --errors FILE" if position.errors else ""),
        "not subscribed": (counts.not_subscribed, "suppressed, or they had left the list: they stay so"),
    }
    return [
        ("import", own.name + (", a dry run: nothing is written" if own.dry_run else "")),
        ("tenant", own.tenant),
        ("status", own.state + (f": {own.error}" if own.error else "")),
        ("mode", own.mode),
        ("list", "" if own.list_id is None else f"lst_{own.list_id}"),
        ("done", f"{own.percent:g} %" + ("" if own.eta is None else f", {span(own.eta)} left")),
        ("rows", f"{counts.rows:,}" + ("" if own.rate is None else f", {own.rate:,.0f} a second")),
        *(
            (name + would, f"{number:,}" + (f": {why}" if why else ""))
            for name, (number, why) in numbers.items()
            if number
        ),
        ("ignored columns", clean(", ".join(position.ignored))),
        ("by", own.created_by),
        ("began", f"{own.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", "" if own.finished_at is None else f"{own.finished_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("kept", count_of(position.errors, "refused row") if position.errors < counts.refused else ""),
    ]


def _why_skipped(own: "Import") -> str:
    erased, there = own.counts.erased, own.counts.skipped - own.counts.erased
    why = []
    if there:
        why.append(f"{there:,} not known, or gone already" if own.mode == "unsubscribe" else f"{there:,} there already")
    if erased:
        why.append(f"{erased:,} erased at their wish: only a consent given later brings them back")
    return "; ".join(why)


def drawn(found: "list[Import]") -> "RenderableType":
    """Fits a terminal: what does not stands below."""
    from mailerd.cli.listing import Listing
    from mailerd.cli.output import clean

    columns = ("id", "began", "status", "mode", "done", "rows", "created", "updated", "refused", "tenant", "error")
    rows = Listing(columns, below=("error", "tenant", "mode", "began", "updated"))
    for each in found:
        counts = each.counts
        rows.add_row(
            each.name,
            f"{each.created_at:%Y-%m-%d %H:%M}",
            each.state,
            each.mode + (" (dry)" if each.dry_run else ""),
            f"{each.percent:g} %",
            f"{counts.rows:,}",
            f"{counts.created:,}",
            f"{counts.updated:,}",
            f"{counts.refused:,}",
            clean(each.tenant),
            clean(each.error),
        )
    return rows
