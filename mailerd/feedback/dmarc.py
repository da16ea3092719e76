"""DMARC aggregate reports (RFC 7489 appendix C, and the namespaces and elements of its successor), read (pure).

Many programs write them, and few as the schema has it: elements are missing, numbers have spaces or are none, names
stand in a namespace or in none, encodings lie. What can be understood is taken.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pyexpat import ExpatError, ParserCreate

MAX_RECORDS = 20_000  # of one mail
MAX_ELEMENTS = 450_000  # of one mail, attributes among them: a record has twenty
MAX_DEPTH = 32
MAX_TAG = 131_072  # bytes
MAX_RESULTS = 10  # of one record's signatures
LONGEST = 255  # characters of any text
LONGEST_RESULTS = 1_000
MOST = 10**12  # messages of one record

_CHUNK = 65_536  # bytes
_ENCODING = re.compile(rb"<\?xml[^>]{0,200}?encoding=[\"']([^\"']{1,40})[\"']")
_UNICODE = frozenset((b"", b"utf-8", b"utf8", b"us-ascii", b"ascii"))
_SECTIONS = frozenset(("report_metadata", "policy_published", "record"))
_EVALUATED = "record/row/policy_evaluated"
_DKIM, _SPF, _REASON = "record/auth_results/dkim", "record/auth_results/spf", f"{_EVALUATED}/reason"
_GROUPS = frozenset((_DKIM, _SPF, _REASON))  # that a record may have several of


@dataclass(frozen=True, slots=True)
class DmarcRecord:
    """Mail of one host that was treated alike. `dkim` and `spf`: pass or fail, with alignment, as DMARC has it.

    `dkim_results` and `spf_results` are what the checks themselves gave: `example.com/selector pass`, comma between.
    """

    source_ip: str
    messages: int
    disposition: str
    dkim: str
    spf: str
    header_from: str = ""
    envelope_from: str = ""
    dkim_results: str = ""
    spf_results: str = ""
    reasons: str = ""

    @property
    def passed(self) -> bool:
        """DMARC is satisfied with either."""
        return "pass" in (self.dkim, self.spf)


@dataclass(frozen=True, slots=True)
class DmarcReport:
    """What one receiver saw of one domain's mail. `policy` is as it was published: `p=reject sp=none pct=100`."""

    org: str
    report_id: str
    domain: str
    begins_at: datetime
    ends_at: datetime
    contact: str = ""
    policy: str = ""
    records: tuple[DmarcRecord, ...] = ()
    truncated: bool = False  # it has more records than these


@dataclass(slots=True)
class Allowance:
    """What may still be read of the reports in one mail."""

    records: int = MAX_RECORDS
    elements: int = MAX_ELEMENTS


def parse_dmarc(document: bytes, allowance: Allowance | None = None) -> DmarcReport:
    """Read a report, as far as the allowance reaches. Raises ValueError for what is none."""
    document = document.lstrip(b" \t\r\n").removeprefix(b"\xef\xbb\xbf").lstrip()
    reading = _Reading(allowance or Allowance())
    try:
        reading.read(document, _encoding(document))
    except (ExpatError, LookupError, UnicodeError, TypeError) as error:
        raise ValueError(f"not XML: {str(error)[:200]}") from None
    return reading.report()


def _encoding(document: bytes) -> str | None:
    """What to read it as, against what it says, when it says UTF-8 and is not; None: as it says."""
    declared = _ENCODING.match(document)
    if (declared[1].lower() if declared else b"") not in _UNICODE or document.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None
    try:
        document.decode()
    except UnicodeDecodeError:
        return "iso-8859-1"
    return None


class _Enough(Exception):  # noqa: N818
    """The allowance is used up."""


class _Reading:
    """Takes what of a document belongs to a report, by path, and builds no tree of the rest.

    Expat is asked directly: what defends against entities in XML is that there may be no DTD, and libraries that build
    trees in Python take ten times as long.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._path: list[str] = []  # of the elements that are open, "" outside of what is of interest
        self._text: list[str] = []
        self._length = 0
        self._values: dict[str, str] = {}  # of the section being read
        self._groups: dict[str, list[dict[str, str]]] = {}
        self._group: dict[str, str] = {}
        self._metadata: dict[str, str] | None = None
        self._published: dict[str, str] | None = None
        self._records: list[DmarcRecord] = []
        self._truncated = False

    def read(self, document: bytes, encoding: str | None) -> None:
        parser = ParserCreate(encoding)
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            for at in range(0, len(document), _CHUNK):
                parser.Parse(document[at : at + _CHUNK], False)
                if at + _CHUNK - parser.CurrentByteIndex > MAX_TAG + _CHUNK:
                    raise ValueError(f"not a DMARC report: a tag of more than {MAX_TAG} bytes")
            parser.Parse(b"", True)
        except _Enough:
            self._truncated = True

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._allowance.elements -= 1 + len(attributes)
        if self._allowance.elements < 0:
            raise _Enough
        above = self._path[-1] if self._path else ""
        name = tag.rpartition(":")[2].lower()
        if above:
            path = f"{above}/{name}"
            if path in _GROUPS:
                self._group = {}
                self._groups.setdefault(path, []).append(self._group)
        elif name in _SECTIONS:
            if name == "record" and not self._allowance.records:
                raise _Enough
            path, self._values, self._groups = name, {}, {}
        else:
            path = ""
        self._path.append(path)
        if len(self._path) > MAX_DEPTH:
            raise ValueError(f"not a DMARC report: more than {MAX_DEPTH} elements in each other")
        self._text, self._length = [], 0

    def _characters(self, text: str) -> None:
        if self._length < 4 * LONGEST:
            self._text.append(text[: 4 * LONGEST])
            self._length += len(text)

    def _end(self, _tag: str) -> None:
        path = self._path.pop()
        if not path:
            return
        if path == "record":
            self._records.append(_record(self._values, self._groups))
            self._allowance.records -= 1
        elif path == "report_metadata":
            self._metadata = self._values
        elif path == "policy_published":
            self._published = self._values
        elif self._text:
            above, _, name = path.rpartition("/")
            text = _printable("".join(self._text))
            if above in _GROUPS:
                self._group.setdefault(name, text)
            else:
                self._values.setdefault(path, text)
        self._text = []

    def report(self) -> DmarcReport:
        """What was read. Raises ValueError when that is no report."""
        if self._metadata is None or self._published is None:
            raise ValueError("not a DMARC report: without report_metadata or policy_published")
        metadata = {path.partition("/")[2]: text for path, text in self._metadata.items()}
        published = {path.partition("/")[2]: text for path, text in self._published.items()}
        org, report_id, contact = (metadata.get(name, "") for name in ("org_name", "report_id", "email"))
        domain = _domain(published.get("domain", ""))
        begins_at, ends_at = (_time(metadata.get(f"date_range/{edge}", "")) for edge in ("begin", "end"))
        if not domain or begins_at is None or not (report_id or org):
            raise ValueError("not a DMARC report: without a domain, an id or a time")
        names = ("p", "sp", "np", "adkim", "aspf", "pct", "fo", "testing")
        policy = " ".join(f"{name}={value}" for name in names if (value := published.get(name)))
        return DmarcReport(
            org=org or contact.rpartition("@")[2],
            report_id=report_id,
            domain=domain,
            begins_at=begins_at,
            ends_at=max(ends_at or begins_at, begins_at),
            contact=contact,
            policy=policy[:LONGEST],
            records=tuple(self._records),
            truncated=self._truncated,
        )


def _refuse_doctype(*_: object) -> None:
    raise ValueError("not a DMARC report: with a DTD")


def _record(values: dict[str, str], groups: dict[str, list[dict[str, str]]]) -> DmarcRecord:
    return DmarcRecord(
        source_ip=_address(values.get("record/row/source_ip", "")),
        messages=_number(values.get("record/row/count", ""), 1),
        disposition=values.get(f"{_EVALUATED}/disposition", "").lower() or "none",
        dkim=_passed(values.get(f"{_EVALUATED}/dkim", "")),
        spf=_passed(values.get(f"{_EVALUATED}/spf", "")),
        header_from=_domain(values.get("record/identifiers/header_from", "")),
        envelope_from=_domain(values.get("record/identifiers/envelope_from", "")),
        dkim_results=_results(groups.get(_DKIM, ())),
        spf_results=_results([each | {"selector": ""} for each in groups.get(_SPF, ())]),
        reasons=_reasons(groups.get(_REASON, ())),
    )


def _results(found: Sequence[dict[str, str]]) -> str:
    lines = []
    for each in found[:MAX_RESULTS]:
        selector = each.get("selector", "")
        place = _domain(each.get("domain", "")) + ("/" if selector else "") + selector
        lines.append(f"{place} {each.get('result', '').lower()}".strip())
    return ", ".join(lines)[:LONGEST_RESULTS]


def _reasons(found: Sequence[dict[str, str]]) -> str:
    texts = (" ".join(filter(None, (each.get("type"), each.get("comment")))) for each in found[:MAX_RESULTS])
    return ", ".join(texts)[:LONGEST]


def _passed(text: str) -> str:
    return "pass" if text.lower() == "pass" else "fail"


def _printable(text: str) -> str:
    """One line of at most 255 characters, fit for a column and a terminal."""
    words = " ".join(text[: 4 * LONGEST].split())[:LONGEST]
    if words.isprintable():
        return words
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _domain(text: str) -> str:
    return text.lower().rstrip(".")


def _address(text: str) -> str:
    """In its one form; what is no address as it stands."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return text


def _number(text: str, otherwise: int) -> int:
    try:
        return max(0, min(MOST, int(float(text))))
    except (ValueError, OverflowError):
        return otherwise


def _time(text: str) -> datetime | None:
    """Unix seconds, as the schema has it, or a date as some write it."""
    try:
        seconds = float(text)
        return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the first and the last day of all, in another zone
        return None
