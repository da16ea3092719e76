"""Which column of a file is which field of a contact: by mapping, else by its name. Pure."""

import re
from collections.abc import Mapping, Sequence

from mailerd.campaigns.contacts.csv_reading import DELIMITERS, CsvReader, meant
from mailerd.campaigns.contacts.fields import NAME_RULE, is_field_name
from mailerd.campaigns.contacts.imports.values import Settings
from mailerd.errors import MailerdError

MAX_COLUMNS = 1_000
SHOWN = 20  # names of columns that a sentence has
CUSTOM = "custom_fields."
FIELDS = ("email", "first_name", "last_name", "phone", "time_zone", "tags")
# What files that we write have beside the fields: nobody imports it.
DERIVED = (
    *("import_line", "import_code", "import_reason"),  # of refused rows that come again
    *("contact_id", "status", "unsubscribe_reason", "tracking", "lists"),
    *("subscribed_at", "unsubscribed_at", "created_at", "updated_at"),
)
# Without anything but letters and digits.
_SYNONYMS = {
    "email": "email emailaddress mail mailaddress emailadresse adresseemail courriel correo correoelectronico",
    "first_name": "firstname fname first givenname forename vorname prenom nombre",
    "last_name": "lastname lname last surname familyname nachname familienname nomdefamille apellido apellidos",
    "phone": "phone phonenumber mobile mobilephone mobilenumber cell cellphone telephone tel telefon telefono",
    "time_zone": "timezone tz zeitzone",
    "tags": "tags tag labels",
}
_NAMES = {word: field for field, words in _SYNONYMS.items() for word in words.split()}
_SEPARATOR = re.compile(r"sep=(.?)", re.IGNORECASE)  # Excel's first line
_CUSTOM = re.compile(r"custom(?:_fields?)?[.:](.*)", re.IGNORECASE | re.DOTALL)


class ColumnsError(MailerdError):
    """The file cannot be read as contacts; the text says why, and which columns it has."""


class Columns:
    """What the first record of a file says: `fields` and `names` of the columns ("" is ignored), and those ignored.

    `header`: that record names the columns. Without names it has an address, the only thing that is read.
    """

    def __init__(self, cells: Sequence[str], settings: Settings) -> None:
        cells = [_storable(meant(cell)).strip() for cell in cells]
        if len(cells) > MAX_COLUMNS:
            raise ColumnsError(f"The file has {len(cells):,} columns; at most {MAX_COLUMNS:,} are read.")
        addresses = [n for n, cell in enumerate(cells) if "@" in cell]
        self.header = not addresses or bool(settings.mapping)
        self.names = cells
        if self.header:
            self.fields = _fields(cells, settings)
            self.ignored = [cell for cell, field in zip(cells, self.fields, strict=True) if not field]
        else:
            self.fields = ["email" if n == addresses[0] else "" for n in range(len(cells))]
            self.names = [field or f"column {n}" for n, field in enumerate(self.fields, 1)]
            self.ignored = [name for name, field in zip(self.names, self.fields, strict=True) if not field]


def _storable(cell: str) -> str:
    """Without NUL, and with ? for what is not in the encoding: names are told in answers and stay in a table."""
    return cell.replace("\0", "").encode(errors="replace").decode()


def first_record(data: bytes, encoding: str, delimiter: str, *, whole: bool) -> list[str]:
    """The first record that is not empty, of the beginning of a file. Raises ColumnsError when there is none.

    A first line such as `sep=;`, by which Excel is told what stands between cells, is none.
    """
    block = CsvReader(encoding, delimiter).feed(data, final=whole)
    rows = [row for row in block.rows if any(cell.strip() for cell in row)]
    rows = rows[1:] if rows and is_separator(rows[0]) else rows
    if rows:
        return rows[0]
    if block.faults:
        fault = block.faults[0]
        raise ColumnsError(f"Line {fault.line}, which should name the columns, cannot be read: {fault.detail}")
    if whole:
        raise ColumnsError("The file is empty.")
    raise ColumnsError("The first line, which should name the columns, does not end.")


def is_separator(row: Sequence[str]) -> bool:
    """Whether a record is Excel's `sep=;`, by whatever it was cut."""
    return _SEPARATOR.fullmatch("".join(row).strip(" \r\n")) is not None


def find_delimiter(data: bytes, encoding: str, settings: Settings, *, whole: bool) -> str:
    """What `sep=` says in the first line; else what gives an address column, and of several what gives most columns."""
    first = next(iter(CsvReader(encoding, "\x1f").feed(data[:64]).rows), [""])
    said = _SEPARATOR.fullmatch(first[0].strip(" \r\n")) if len(first) == 1 else None
    if said and said[1] and said[1] in DELIMITERS:
        return said[1]

    def worth(delimiter: str) -> tuple[bool, int]:
        cells = first_record(data, encoding, delimiter, whole=whole)
        try:
            found = "email" in Columns(cells, settings).fields
        except ColumnsError:
            found = False
        return found, len(cells)

    return max(DELIMITERS, key=worth)


def check_mapping(mapping: Mapping[str, str]) -> str | None:
    """What is wrong with the fields of a mapping, as a sentence (None: nothing)."""
    for column, field in mapping.items():
        if field and field not in FIELDS and not is_field_name(field.removeprefix(CUSTOM)):
            return f"{column[:60]!r} is mapped to {field[:60]!r}, which is no field: the name has {NAME_RULE}."
        if field and field not in FIELDS and not field.startswith(CUSTOM):
            return f"{column[:60]!r} is mapped to {field[:60]!r}: expected {', '.join(FIELDS)} or {CUSTOM}NAME."
    return None


def _fields(names: Sequence[str], settings: Settings) -> list[str]:
    if absent := [column for column in settings.mapping if column not in names]:
        raise ColumnsError(f"The mapping names columns that the file has not: {_some(absent)}. It has: {_some(names)}.")
    fields = [_field(name, settings) for name in names]
    for field in fields:
        if field and fields.count(field) > 1:
            twice = [name for name, other in zip(names, fields, strict=True) if other == field]
            raise ColumnsError(f"Several columns are {field}: {_some(twice)}. Say by a mapping which is meant.")
    if "email" not in fields:
        raise ColumnsError(
            f"No column is the e-mail address. The file has: {_some(names)}. Call one email, or map it to email."
        )
    return fields


def _field(name: str, settings: Settings) -> str:
    if name in settings.mapping:
        return settings.mapping[name]
    if name in DERIVED:
        return ""
    if custom := _CUSTOM.fullmatch(name):
        return CUSTOM + custom[1] if is_field_name(custom[1]) else ""
    if known := _NAMES.get("".join(filter(str.isalnum, name.lower()))):
        return "" if known in settings.mapping.values() else known
    if settings.unknown == "custom_fields":
        field = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        return CUSTOM + field if is_field_name(field) else ""
    return ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] or '""' for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
