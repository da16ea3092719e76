"""Contacts by the file: `/api/v1/contacts/imports` and `/api/v1/contacts/export`; and `/api/v1/contacts/import`, JSON.

A file is stored before it is answered; then one importer of all nodes works on it, and nothing that dies on the way
makes a row come twice or not at all.
"""

import hashlib
import ipaddress
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from mailerd.campaigns.contacts.exporting import MAX_NAMES, PAGE, csv_head, csv_lines, json_lines
from mailerd.campaigns.contacts.imports.columns import ColumnsError, check_mapping
from mailerd.campaigns.contacts.imports.receiving import Receiver, TooLargeError, WithdrawnError
from mailerd.campaigns.contacts.imports.receiving import Request as Asked
from mailerd.campaigns.contacts.imports.refused import RefusedFile
from mailerd.campaigns.contacts.imports.store import Import, ImportStore
from mailerd.campaigns.contacts.imports.values import Consent, Mode, Settings
from mailerd.campaigns.contacts.lists import MAX_ID
from mailerd.campaigns.contacts.values import MAX_TAGS, tag_name
from mailerd.campaigns.segments.conditions import ConditionError
from mailerd.campaigns.segments.counting import of_condition
from mailerd.db import Connection
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import CONTACT_IMPORT, LIST, SEGMENT, format_id, parse_id
from mailerd.web import problems
from mailerd.web.bodies import Answer, Moment, Request
from mailerd.web.contact_bodies import CONTACTS, LINE, ConsentBody, Cursor, Id, Limit, consent_facts, missing
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError
from mailerd.web.uploads import FORM, Feed, read_body, read_form, too_large, uploading

CSV = "text/csv"
LINES = "application/x-ndjson"
PATH = f"{CONTACTS}/imports"
ONE = f"{PATH}/{{import_id}}"
MAX_CONTACTS = 100_000  # of one JSON body
SEARCHING = 10.0  # seconds for a page of a segment
State = Literal["processing", "completed", "failed", "cancelled"]
Encoding = Literal["utf-8", "utf-16-le", "utf-16-be", "windows-1252"]
Delimiter = Literal["comma", "semicolon", "tab", "pipe"]
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
TagNames = Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=MAX_TAGS)]
Word = Annotated[str, Meta(max_length=256, pattern=LINE)]


class ImportQuery(Request, frozen=True, kw_only=True):
    """How a file is imported; in a form these are its fields, before the file.

    Mode upsert updates who is there, cell by cell (an empty one changes nothing), skip leaves them alone, unsubscribe
    takes all of the file off the list, or without one off all mail of campaigns. `mapping` is a JSON object of fields
    by columns; fields are email, first_name, last_name, phone, time_zone, tags and custom_fields.NAME, "" ignores.
    Without it the names of columns say it; others are ignored and told, or with `unknown_columns=custom_fields` become
    custom fields. Cells of a list are cut at `;`, or at commas where there is no `;`. In a file whose cells stand
    between semicolons 12,50 and 1.234,50 are numbers; 17.05.1980 is a date (day, month, year) in all. A first line
    `sep=;` says the delimiter. `tags` are given to all. With `consent_method` everybody's consent is put on record.
    `encoding` and `delimiter` are found out when not given: UTF-16 and UTF-8 by their mark, else UTF-8 when the file
    is, else windows-1252.
    """

    list_id: Id | None = None
    mode: Mode = "upsert"
    dry_run: bool = False
    mapping: Annotated[str, Meta(max_length=65_536)] = ""
    unknown_columns: Literal["ignore", "custom_fields"] = "ignore"
    tags: TagNames = msgspec.field(default_factory=list)
    encoding: Encoding | None = None
    delimiter: Delimiter | None = None
    consent_method: Annotated[str, Meta(max_length=64, pattern=LINE)] = ""
    consent_text_version: Word = ""
    consent_ip: Annotated[str, Meta(max_length=45)] = ""
    consent_at: Moment | None = None


class ContactImport(Request, frozen=True, kw_only=True):
    """Contacts as JSON: each has `email`, and may have the other fields of a contact. See `ImportQuery`."""

    contacts: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_CONTACTS)]
    list_id: Id | None = None
    mode: Mode = "upsert"
    dry_run: bool = False
    tags: TagNames = msgspec.field(default_factory=list)
    consent: ConsentBody | None = None


class _RawImport(ContactImport, frozen=True, kw_only=True):
    contacts: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_CONTACTS)]  # type: ignore[assignment]


class ImportsQuery(Request, frozen=True, kw_only=True):
    limit: Limit = 50
    cursor: Cursor | None = None


class ExportQuery(Request, frozen=True, kw_only=True):
    """All contacts, those subscribed to a static list, or those who fit a segment (also given as `list_id`)."""

    list_id: Id | None = None
    segment_id: Id | None = None
    format: Literal["csv", "jsonl"] = "csv"


class ContactImportStarted(Answer, frozen=True, kw_only=True):
    """`status` is processing: Location tells how far it is. `ignored_columns` are called as no field is."""

    import_id: str
    status: State
    ignored_columns: list[str]


class ContactImportView(Answer, frozen=True, kw_only=True):
    """How far an import is.

    Each row is one of `created`, `updated`, `unchanged`, `skipped` (there already, with mode skip; or erased:
    `erased` of them), `refused` (see `errors_url`; the first 100,000 are kept, `errors_kept`, for 30 days after the
    end) and `duplicates` (the address stands in the file again: the last row counts, with mode skip the first).
    `not_subscribed` of them are suppressed, or had left the list, and stay so. `rate` is rows a second, `eta` seconds
    that are left. Of a dry run the counts are what would be.
    """

    import_id: str
    status: State
    mode: Mode
    dry_run: bool
    list_id: str | None
    percent: float
    rate: float | None
    eta: float | None
    bytes: int
    bytes_done: int
    rows: int
    created: int
    updated: int
    unchanged: int
    skipped: int
    refused: int
    duplicates: int
    not_subscribed: int
    erased: int
    errors_kept: int
    errors_url: str
    columns: list[str]
    ignored_columns: list[str]
    encoding: str
    error: str
    created_by: str
    created_at: datetime
    finished_at: datetime | None


class ContactImportPage(Answer, frozen=True, kw_only=True):
    """Newest first."""

    data: list[ContactImportView]
    has_more: bool
    next_cursor: str | None


async def upload(call: Call) -> web.Response:
    """A file, as the body or in a form."""
    files = call.services.contact_files
    receiver: Receiver | None = None
    said = hashlib.sha256()  # what the request says, for its Idempotency-Key

    async def begin(query: ImportQuery) -> Receiver:
        asked = await _asked(call, query, json=call.request.content_type == LINES)
        return await Receiver.begin(files.imports, asked, files.most())

    async def begin_form(fields: dict[str, list[str]]) -> Feed:
        nonlocal receiver
        said.update(problems.encode(fields))
        receiver = await begin(_of_form(call, fields))
        return feed

    async def feed(piece: bytes) -> None:
        assert receiver is not None
        said.update(piece)
        await receiver.feed(piece)

    async def work(connection: Connection) -> Done:
        assert receiver is not None
        made = await receiver.finish(ImportStore(connection))
        call.facts["import"] = made.name
        return Done(202, problems.encode(_started(made)), (("Location", f"{PATH}/{made.name}"),))

    try:
        async with uploading(call, files.most()):
            if call.request.content_type == FORM:
                call.query(_NoQuery)
                await read_form(call, begin_form)
            else:
                receiver = await begin(call.query(ImportQuery))
                await read_body(call, feed)
            assert receiver is not None
            await receiver.complete()
            return await once(call, said.digest(), work)
    except ColumnsError as error:
        raise ProblemError(422, "unreadable_file", str(error), close=True) from None
    except TooLargeError:
        raise too_large(files.most()) from None
    except WithdrawnError:
        raise ProblemError(409, "cancelled", "The import was cancelled.", close=True) from None
    finally:
        if receiver is not None:
            await receiver.leave()


class _NoQuery(Request, frozen=True):
    """In a form all is said by its fields."""


def _of_form(call: Call, fields: dict[str, list[str]]) -> ImportQuery:
    """The fields of a form are what the query is else."""
    values: dict[str, Any] = {name: given if name == "tags" else given[-1] for name, given in fields.items()}
    try:
        return msgspec.convert(values, ImportQuery, strict=False)
    except msgspec.ValidationError as error:
        raise problems.invalid([problems.of_validation(error, ImportQuery)]) from None


async def _asked(call: Call, query: ImportQuery, *, json: bool) -> Asked:
    """Raises `ProblemError` (422)."""
    settings = Settings(
        format="json" if json else "csv",
        encoding={None: "", "windows-1252": "cp1252"}.get(query.encoding, query.encoding or ""),
        delimiter=DELIMITERS[query.delimiter] if query.delimiter else "",
        mapping=_mapping(query.mapping),
        unknown=query.unknown_columns,
        tags=_tags([name for each in query.tags for name in each.split(",") if name.strip()], parameter="tags"),
        consent=_consent(query),
    )
    return Asked(
        tenant=call.caller.tenant,
        mode=query.mode,
        dry_run=query.dry_run,
        list_id=await _list(call, query.list_id, parameter="list_id"),
        settings=settings,
        created_by=f"api:{call.caller.name}",
    )


def _mapping(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        mapping = msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError):
        detail = 'A JSON object of fields by columns: {"Mail": "email", "Plan": "custom_fields.plan"}.'
        raise problems.invalid([FieldError("invalid_value", detail, parameter="mapping")]) from None
    if problem := check_mapping(mapping):
        raise problems.invalid([FieldError("invalid_value", problem, parameter="mapping")])
    return mapping


def _tags(names: list[str], *, pointer: str = "", parameter: str = "") -> list[str]:
    try:
        tags = [tag_name(name) for name in names]
    except ValueError as error:
        fault = FieldError("invalid_tag", f"{error}.", pointer=pointer, parameter=parameter)
        raise problems.invalid([fault]) from None
    if len(tags) > MAX_TAGS:
        fault = FieldError("too_many", f"At most {MAX_TAGS} tags.", pointer=pointer, parameter=parameter)
        raise problems.invalid([fault])
    return list(dict.fromkeys(tags))


def _consent(query: ImportQuery) -> Consent | None:
    if not query.consent_method:
        if query.consent_text_version or query.consent_ip or query.consent_at:
            detail = "Say how they agreed."
            raise problems.invalid([FieldError("missing_field", detail, parameter="consent_method")])
        return None
    ip = ""
    if query.consent_ip:
        with suppress(ValueError):
            ip = str(ipaddress.ip_address(query.consent_ip))
        if not ip:
            raise problems.invalid([FieldError("invalid_value", "This is no IP address.", parameter="consent_ip")])
    return Consent(method=query.consent_method, text_version=query.consent_text_version, ip=ip, at=query.consent_at)


async def _list(call: Call, text: str | None, *, pointer: str = "", parameter: str = "") -> int | None:
    """The number of a static list of the caller's."""
    if text is None:
        return None
    number, detail = None, f"There is no list {text[:40]} of yours."
    with suppress(ValueError):
        number = parse_id(LIST, text)
    if number is not None:
        kind = await call.services.contact_files.imports.list_type(call.caller.tenant, number)
        if kind == "static":
            return number
        detail = detail if kind is None else "Who is on a dynamic list is said by its conditions."
    raise problems.invalid([FieldError("unknown_list", detail, pointer=pointer, parameter=parameter)])


async def import_json(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, _RawImport)
    consent = consent_facts(asked.consent, call.services.now())
    request = Asked(
        tenant=call.caller.tenant,
        mode=asked.mode,
        dry_run=asked.dry_run,
        list_id=await _list(call, asked.list_id, pointer="/list_id"),
        settings=Settings(
            format="json",
            tags=_tags(asked.tags, pointer="/tags"),
            consent=None if consent is None else Consent(**msgspec.structs.asdict(consent)),
        ),
        created_by=f"api:{call.caller.name}",
    )

    async def work(connection: Connection) -> Done:
        receiver = await Receiver.begin(ImportStore(connection), request, len(body) + len(asked.contacts))
        for each in asked.contacts:
            await receiver.feed(msgspec.json.format(bytes(each), indent=-1) + b"\n")
        made = await receiver.finish()
        call.facts["import"] = made.name
        return Done(202, problems.encode(_started(made)), (("Location", f"{PATH}/{made.name}"),))

    return await once(call, body, work)


def _started(made: Import) -> ContactImportStarted:
    return ContactImportStarted(import_id=made.name, status="processing", ignored_columns=made.position.ignored)


async def _named(call: Call) -> Import:
    """The import that the path names; raises `ProblemError` (404)."""
    with suppress(ValueError):
        number = parse_id(CONTACT_IMPORT, call.request.match_info["import_id"])
        found = await call.services.contact_files.imports.get(number, call.caller.tenant)
        if found is not None and found.state != "receiving":
            return found
    raise missing("import")


async def show(call: Call) -> web.Response:
    return json_answer(200, import_view(await _named(call)))


class _Search(Request, frozen=True):
    """What a cursor is good for."""

    tenant: str
    of: str = "contact imports"


async def list_(call: Call) -> web.Response:
    query, tenant = call.query(ImportsQuery), call.caller.tenant
    before = MAX_ID
    if query.cursor is not None:
        try:
            before = call.tools.cursors.read(_Search(tenant), query.cursor)
        except ValueError:
            raise ProblemError(400, "invalid_cursor", "Take next_cursor as it was given.") from None
    found = await call.services.contact_files.imports.page(tenant, limit=query.limit + 1, before=before)
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(_Search(tenant), shown[-1].id) if more else None
    return json_answer(
        200, ContactImportPage(data=[import_view(each) for each in shown], has_more=more, next_cursor=cursor)
    )


async def cancel(call: Call) -> web.Response:
    own = await _named(call)
    done = await call.services.contact_files.imports.cancel(own.id, call.caller.tenant)
    if done is None:
        raise ProblemError(409, "import_finished", f"It is {own.state} already.")
    return json_answer(200, import_view(done))


async def errors(call: Call) -> web.Response:
    own = await _named(call)
    pages = call.services.contact_files.imports.errors(own.id)

    file = RefusedFile(own.settings, own.position)

    async def lines() -> AsyncIterator[bytes]:
        yield file.head().encode()
        async for page in pages:
            yield file.lines(page).encode()

    return _file(lines(), f"{own.name}-errors.csv", CSV)


async def export(call: Call) -> web.Response:
    query = call.query(ExportQuery)
    tenant, exports, now = call.caller.tenant, call.services.contact_files.exports, call.services.now()
    ids = await _exported(call, query)
    names: list[str] = []
    if query.format == "csv":
        names = await exports.names(tenant)
        if len(names) > MAX_NAMES:
            detail = f"Contacts have {len(names):,} custom fields, too many for columns: ask for format=jsonl."
            raise problems.invalid([FieldError("too_many", detail, parameter="format")])

    async def lines() -> AsyncIterator[bytes]:
        if query.format == "csv":
            yield csv_head(names).encode()
        async for part in ids:
            found = await exports.contacts(tenant, part, now)
            yield csv_lines(found, names).encode() if query.format == "csv" else json_lines(found)

    media, name = (CSV, "contacts.csv") if query.format == "csv" else (LINES, "contacts.jsonl")
    return _file(lines(), name, media)


def _file(lines: AsyncIterator[bytes], name: str, media: str) -> web.Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=lines, content_type=media, charset="utf-8", headers=headers)


async def _exported(call: Call, query: ExportQuery) -> AsyncIterator[list[int]]:
    """The ids of those who are meant, by pages. Raises `ProblemError` (422)."""
    files, tenant = call.services.contact_files, call.caller.tenant
    if query.list_id is not None and query.segment_id is not None:
        detail = "Either a list or a segment."
        raise problems.invalid([FieldError("invalid_value", detail, parameter="segment_id")])
    if query.list_id is None and query.segment_id is None:
        return files.exports.ids(tenant)
    text, prefix, parameter = (
        (query.segment_id, SEGMENT, "segment_id") if query.segment_id is not None else (query.list_id, LIST, "list_id")
    )
    with suppress(ValueError):
        number = parse_id(prefix, text or "")
        kind = await files.imports.list_type(tenant, number)
        if kind == "static" and prefix == LIST:
            return files.exports.ids(tenant, list_id=number)
        if kind == "dynamic":
            return await _of_segment(call, number, parameter)
    raise problems.invalid(
        [FieldError("unknown_list", f"There is no {(text or '')[:40]} of yours.", parameter=parameter)]
    )


async def _of_segment(call: Call, number: int, parameter: str) -> AsyncIterator[list[int]]:
    store, tenant = call.services.segments, call.caller.tenant
    segment = await store.get(tenant, number)
    if segment is None:
        raise missing("segment")
    try:
        condition = await store.condition(tenant, segment)
    except ConditionError as error:
        detail = error.problems[0].detail
        raise problems.invalid([FieldError("invalid_segment", detail, parameter=parameter)]) from None
    wanted = of_condition(tenant, condition, call.services.now())

    async def pages() -> AsyncIterator[list[int]]:
        after: int | None = 0
        while after is not None:
            page = await store.counts.page(wanted, after=after, limit=PAGE, seconds=SEARCHING)
            yield [person.id for person in page.people]
            after = page.after

    return pages()


def import_view(own: Import) -> ContactImportView:
    """As the API shows it."""
    return ContactImportView(
        import_id=own.name,
        status="processing" if own.state == "receiving" else own.state,
        mode=own.mode,
        dry_run=own.dry_run,
        list_id=None if own.list_id is None else format_id(LIST, own.list_id),
        percent=own.percent,
        rate=None if own.rate is None else round(own.rate, 1),
        eta=None if own.eta is None else round(own.eta, 1),
        bytes=own.bytes,
        bytes_done=own.bytes_done,
        **{name: getattr(own.counts, name) for name in own.counts.__struct_fields__},
        errors_kept=own.position.errors,
        errors_url=f"{PATH}/{own.name}/errors.csv",
        columns=own.position.columns,
        ignored_columns=own.position.ignored,
        encoding={"cp1252": "windows-1252"}.get(own.settings.encoding, own.settings.encoding),
        error=own.error,
        created_by=own.created_by,
        created_at=own.created_at,
        finished_at=own.finished_at,
    )


OPERATIONS = (
    Operation(
        id="contacts.import",
        method="POST",
        path=f"{CONTACTS}/import",
        scope="manage",
        summary="Import contacts of a JSON body, one by one taken or refused; Location tells how far it is",
        handler=import_json,
        bodies={JSON: ContactImport},
        example={"list_id": "lst_1", "contacts": [{"email": "ann@example.com", "first_name": "Ann"}]},
        answers={202: (JSON, ContactImportStarted)},
        problems=(408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="contacts.import_file",
        method="POST",
        path=PATH,
        scope="manage",
        summary="Import a CSV file, or one JSON object a line; Location tells how far it is",
        handler=upload,
        query=ImportQuery,
        bodies={CSV: bytes, LINES: bytes, FORM: bytes},
        answers={202: (JSON, ContactImportStarted)},
        problems=(408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="contacts.imports",
        method="GET",
        path=PATH,
        scope="read",
        summary="Imports, newest first",
        handler=list_,
        query=ImportsQuery,
        answers={200: (JSON, ContactImportPage)},
        problems=(400, 422),
    ),
    Operation(
        id="contacts.import_progress",
        method="GET",
        path=ONE,
        scope="read",
        summary="How far an import is",
        handler=show,
        answers={200: (JSON, ContactImportView)},
        problems=(404,),
    ),
    Operation(
        id="contacts.cancel_import",
        method="POST",
        path=f"{ONE}/cancel",
        scope="manage",
        summary="End an import where it is; what it has written stays. 409: it has ended",
        handler=cancel,
        answers={200: (JSON, ContactImportView)},
        problems=(404, 409),
    ),
    Operation(
        id="contacts.import_errors",
        method="GET",
        path=f"{ONE}/errors.csv",
        scope="read",
        summary="The rows that were refused, as they came, behind import_line, import_code and import_reason: to mend "
        "and import again (of JSON: line, code, detail, content)",
        handler=errors,
        answers={200: (CSV, str)},
        problems=(404,),
    ),
    Operation(
        id="contacts.export",
        method="GET",
        path=f"{CONTACTS}/export",
        scope="read",
        summary="Contacts as CSV that imports read (cells that a spreadsheet would run have an apostrophe), or JSON",
        handler=export,
        query=ExportQuery,
        answers={200: (CSV, str)},
        also=(LINES,),
        problems=(404, 422),
    ),
)
