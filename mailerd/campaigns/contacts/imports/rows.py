"""Records of a file as people: checked, typed, one for each address. Pure.

This runs for each row of files with millions: what is usual takes a short way, which must give what the long one gives.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from mailerd.campaigns.contacts.csv_reading import SHOWN, Block, Fault, meant
from mailerd.campaigns.contacts.fields import MAX_NUMBER, check_fields, from_text
from mailerd.campaigns.contacts.imports.columns import CUSTOM
from mailerd.campaigns.contacts.imports.values import Mode
from mailerd.campaigns.contacts.values import (
    MAX_NAME,
    MAX_PHONE,
    MAX_TAGS,
    is_time_zone,
    parse_email,
    tag_name,
    text_problem,
)

# Addresses that `parse_email` leaves as they are, and whose normalised form is the same.
_USUAL = re.compile(r"[a-z0-9_+\-]+(?:\.[a-z0-9_+\-]+)*@(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)+[a-z]+")
_USUAL_LENGTH = 64  # within which no part is too long
_SHORT = 600  # characters of a value that cannot be too long as JSON
_LENGTHS = {"first_name": MAX_NAME, "last_name": MAX_NAME, "phone": MAX_PHONE}
MAX_CONTENT = 4_000  # characters of a refused row that is kept whole
_AT_MOST = 64_000  # characters of a row that cannot have too many custom fields


class Person(NamedTuple):
    """One row that is taken. Empty fields were not given; `custom` may have None: remove it."""

    line: int
    email: str
    address: str
    first_name: str
    last_name: str
    phone: str
    time_zone: str
    custom: dict[str, Any]
    tags: tuple[str, ...]


class Batch(NamedTuple):
    """The people of a block, by address, in their order; `rows` counts all records that are not empty."""

    people: dict[str, Person]
    faults: list[Fault]
    rows: int
    duplicates: int


class _RefusedError(ValueError):
    """`field`: of which the sentence speaks, which then begins in lower case and has no full stop."""

    def __init__(self, code: str, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field


class Contact(msgspec.Struct, forbid_unknown_fields=True):
    """One contact as JSON has it; what an export says beside that is read over."""

    email: str
    first_name: str | None = None
    last_name: str | None = None
    phone: str | None = None
    time_zone: str | None = None
    custom_fields: dict[str, Any] = {}
    tags: list[str] = []
    contact_id: msgspec.Raw = msgspec.Raw()
    status: msgspec.Raw = msgspec.Raw()
    unsubscribe_reason: msgspec.Raw = msgspec.Raw()
    subscribed_at: msgspec.Raw = msgspec.Raw()
    unsubscribed_at: msgspec.Raw = msgspec.Raw()
    tracking: msgspec.Raw = msgspec.Raw()
    created_at: msgspec.Raw = msgspec.Raw()
    updated_at: msgspec.Raw = msgspec.Raw()
    lists: msgspec.Raw = msgspec.Raw()


class RowReader:
    """Makes people of records. `columns` are fields, as `Columns` has them; none: each record is one JSON object.

    `names` are those of the columns in the file, for sentences. `decimal_comma`: see `from_text`.
    """

    def __init__(
        self,
        columns: Sequence[str],
        definitions: Mapping[str, str],
        mode: Mode,
        *,
        names: Sequence[str] = (),
        decimal_comma: bool = False,
    ) -> None:
        self._names = {field: name for field, name in zip(columns, names, strict=False) if field}
        self._decimal_comma = decimal_comma
        self._definitions = definitions
        self._first_counts = mode == "skip"
        self._json = not columns
        self._width = len(columns)
        at = {field: n for n, field in enumerate(columns) if field}
        self._email = at.get("email", 0)
        self._plain = [(at.get(name, -1), name, longest) for name, longest in _LENGTHS.items()]
        self._zone = at.get("time_zone", -1)
        self._tags = at.get("tags", -1)
        self._custom = [
            (n, field.removeprefix(CUSTOM), definitions.get(field.removeprefix(CUSTOM)))
            for field, n in at.items()
            if field.startswith(CUSTOM)
        ]
        self._tag_names: dict[str, tuple[str, ...]] = {}

    def read(self, block: Block) -> Batch:
        people: dict[str, Person] = {}
        faults = list(block.faults)
        rows = len(faults)
        duplicates = 0
        read = self._of_json if self._json else self._of_cells
        for line, cells in zip(block.lines, block.rows, strict=True):
            try:
                person = read(line, cells)
            except _RefusedError as refused:
                faults.append(self._fault(line, refused, cells))
                rows += 1
                continue
            if person is None:
                continue
            rows += 1
            address = person.address
            if address in people:
                duplicates += 1
                person = people[address] if self._first_counts else _combined(people.pop(address), person)
            people[address] = person
        return Batch(people, faults, rows, duplicates)

    def _of_cells(self, line: int, cells: list[str]) -> Person | None:
        if len(cells) != self._width:
            if not any(cell and not cell.isspace() for cell in cells):
                return None
            if len(cells) > self._width and any(cells[self._width :]):
                raise _RefusedError("row_length", f"The row has {len(cells):,} cells, the header {self._width:,}.")
            cells = cells[: self._width] + [""] * (self._width - len(cells))
        email = cells[self._email]
        if len(email) <= _USUAL_LENGTH and _USUAL.fullmatch(email):
            address = email
        elif email and not email.isspace():
            email, address = _address(meant(email.strip()))
        elif any(cell and not cell.isspace() for cell in cells):
            raise _RefusedError("missing_email", "The row has no e-mail address.")
        else:
            return None
        texts = []
        for n, name, longest in self._plain:
            text = cells[n] if n >= 0 else ""
            if text:
                if text[0] in "'\t":
                    text = meant(text)
                text = text.strip()
                if len(text) > longest or not text.isprintable():
                    _check_text(name, text, longest)
            texts.append(text)
        zone = _zone(cells[self._zone]) if self._zone >= 0 and cells[self._zone] else ""
        tags = self._tags_of(cells[self._tags]) if self._tags >= 0 and cells[self._tags] else ()
        custom = self._custom_of(cells) if self._custom else {}
        return Person(line, email, address, texts[0], texts[1], texts[2], zone, custom, tags)

    def _custom_of(self, cells: list[str]) -> dict[str, Any]:
        custom: dict[str, Any] = {}
        doubtful = False
        length = 0
        for n, name, type_ in self._custom:
            text = cells[n]
            if not text or text.isspace():
                continue
            if text[0] == "'":
                text = meant(text)
            length += len(text)
            if len(text) > _SHORT or not text.isprintable():
                doubtful = True
            if type_ is None or type_ == "text":
                custom[name] = text
                continue
            try:
                custom[name] = from_text(text, type_, decimal_comma=self._decimal_comma)
            except ValueError as error:
                raise _RefusedError("invalid_field", str(error), CUSTOM + name) from None
            doubtful = doubtful or (type_ == "number" and not -MAX_NUMBER < custom[name] < MAX_NUMBER)
        if doubtful or len(custom) * _SHORT > _AT_MOST:
            _check_custom(custom, self._definitions)
        return custom

    def _tags_of(self, cell: str) -> tuple[str, ...]:
        known = self._tag_names.get(cell)
        if known is None:
            names = [each for each in meant(cell).replace(",", ";").split(";") if each.strip()]
            known = _tag_names(names)
            if len(self._tag_names) < 10_000:
                self._tag_names[cell] = known
        return known

    def _of_json(self, line: int, cells: list[str]) -> Person | None:
        if not any(cells):
            return None
        try:
            given = msgspec.json.decode(cells[0], type=Contact)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            detail = "bytes that are not UTF-8" if isinstance(error, UnicodeError) else str(error)
            raise _RefusedError("invalid", f"{detail[:300]}.") from None
        email, address = _address(given.email)
        first, last, phone = ((text or "").strip() for text in (given.first_name, given.last_name, given.phone))
        for text, (name, longest) in zip((first, last, phone), _LENGTHS.items(), strict=True):
            _check_text(name, text, longest)
        _check_custom(given.custom_fields, self._definitions)
        zone = _zone(given.time_zone) if given.time_zone else ""
        return Person(line, email, address, first, last, phone, zone, given.custom_fields, _tag_names(given.tags))

    def _fault(self, line: int, refused: _RefusedError, cells: Sequence[str]) -> Fault:
        detail = refused.detail
        if refused.field:
            name = self._names.get(refused.field, refused.field)
            field = refused.field if name == refused.field else f"{name[:60]} ({refused.field})"
            detail = f"{field}: {detail}."
        content = cells[0] if self._json else msgspec.json.encode([clean(cell) for cell in cells]).decode()
        if len(content) > MAX_CONTENT:
            content = content[:SHOWN] if self._json else ",".join(cell[:SHOWN] for cell in cells[:50])[:SHOWN]
        return Fault(line, refused.code, clean(detail), clean(content))


def _address(text: str) -> tuple[str, str]:
    try:
        return parse_email(text)
    except ValueError as error:
        raise _RefusedError("invalid_email", str(error), "email") from None


def _check_text(name: str, text: str, longest: int) -> None:
    if problem := text_problem(text, longest):
        raise _RefusedError("invalid_text", problem, name)


def _zone(text: str) -> str:
    text = text.strip()
    if text and not is_time_zone(text):
        raise _RefusedError("invalid_time_zone", "it is no IANA time zone such as Europe/Berlin", "time_zone")
    return text


def _tag_names(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_TAGS:
        raise _RefusedError("too_many_tags", f"A contact has at most {MAX_TAGS} tags.")
    try:
        return tuple(dict.fromkeys(map(tag_name, names)))
    except ValueError as error:
        raise _RefusedError("invalid_tag", str(error), "tags") from None


def _check_custom(custom: Mapping[str, object], definitions: Mapping[str, str]) -> None:
    for problem in check_fields(custom, definitions):
        name = f"{CUSTOM}{problem.name[:64]}" if problem.name else "custom_fields"
        raise _RefusedError("invalid_field", problem.detail, name)


def _combined(earlier: Person, later: Person) -> Person:
    """What both rows together say: the later one where it says something."""
    return Person(
        later.line,
        later.email,
        later.address,
        later.first_name or earlier.first_name,
        later.last_name or earlier.last_name,
        later.phone or earlier.phone,
        later.time_zone or earlier.time_zone,
        {**earlier.custom, **later.custom},
        tuple(dict.fromkeys(earlier.tags + later.tags))[:MAX_TAGS],
    )


def clean(text: str) -> str:
    """Fit for a table and a file: no NUL and no lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
