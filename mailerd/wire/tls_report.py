"""Reports about TLS to the domains that we mail (RFC 8460): the record that asks for them, the JSON, the mail with it.

The structs below are the JSON document, their names with hyphens.
"""

import gzip
import hashlib
import re
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from mailerd.wire.address import parse_mailbox
from mailerd.wire.message import fold, format_date

MEDIA_TYPE = "application/tlsrpt+gzip"
MAX_DESTINATIONS = 5  # of one record: reports are ours to give, not to multiply
MAX_REPORT = 10_000_000  # bytes of JSON that we read
MAX_VALUES = 400_000  # in it, about
MOST = 10**12  # sessions

_VERSION = re.compile(r"v=TLSRPTv1[ \t]*;")
_MAILTO = re.compile(r"mailto:([^?]+)(?:\?.*)?", re.IGNORECASE)


# ---- who wants reports


@dataclass(frozen=True, slots=True)
class Destination:
    """Where reports go: to an address by `mailto`, or to a URL by `https`."""

    kind: Literal["mailto", "https"]
    target: str


def parse_record(texts: Iterable[str]) -> tuple[Destination, ...]:
    """The destinations in the TXT records of `_smtp._tls.` and a domain; none: the domain wants no reports.

    More than one record of this version count as none (section 3). Of the destinations those are left out that we
    cannot reach: other schemes, addresses that are not ASCII, URLs with a user; and those beyond five.
    """
    records = [text for text in texts if _VERSION.match(text)]
    if len(records) != 1:
        return ()
    found: dict[Destination, None] = {}
    for field in records[0].split(";")[1:]:
        name, _, value = field.partition("=")
        if name.strip(" \t") == "rua":
            for uri in value.split(","):
                if destination := _destination(uri.strip(" \t")):
                    found[destination] = None
    return tuple(found)[:MAX_DESTINATIONS]


def _destination(uri: str) -> Destination | None:
    if mailto := _MAILTO.fullmatch(uri):
        try:
            mailbox = parse_mailbox(unquote(mailto[1], errors="strict"))
        except ValueError:  # UnicodeDecodeError is one
            return None
        return None if mailbox.needs_smtputf8 else Destination("mailto", mailbox.address)
    try:
        parts = urlsplit(uri)
        usable = parts.scheme == "https" and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return None
    return Destination("https", uri) if usable and uri.isascii() and uri.isprintable() else None


# ---- the document (section 4.4)


class _Object(Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """Base of the objects in a report."""


class DateRange(_Object, frozen=True, kw_only=True):
    start_datetime: datetime
    end_datetime: datetime


class Policy(_Object, frozen=True, kw_only=True):
    """`policy_type` is sts, tlsa or no-policy-found. Some write one `mx_host` without a list around it."""

    policy_type: str
    policy_domain: str
    policy_string: tuple[str, ...] = ()
    mx_host: tuple[str, ...] | str = ()


class Summary(_Object, frozen=True, kw_only=True):
    total_successful_session_count: int
    total_failure_session_count: int


class Failure(_Object, frozen=True, kw_only=True):
    """`result_type` is one of section 4.3."""

    result_type: str
    failed_session_count: int
    sending_mta_ip: str = ""
    receiving_mx_hostname: str = ""
    receiving_mx_helo: str = ""
    receiving_ip: str = ""
    additional_information: str = ""
    failure_reason_code: str = ""


class PolicyReport(_Object, frozen=True, kw_only=True):
    policy: Policy
    summary: Summary
    failure_details: tuple[Failure, ...] = ()


class Report(_Object, frozen=True, kw_only=True):
    organization_name: str
    date_range: DateRange
    report_id: str
    policies: tuple[PolicyReport, ...]
    contact_info: str = ""


class PartialReport(Report, frozen=True, kw_only=True):
    """One that had more policies or failures than these."""


def build_json(report: Report) -> bytes:
    """The report as it is sent: JSON under gzip; the same report gives the same bytes."""
    return gzip.compress(msgspec.json.encode(report), mtime=0)


def parse_json(data: bytes) -> Report:
    """Read a report, compressed or not; raises ValueError for what is none, or larger than 10 MB or 400,000 values.

    What others leave out, write as null, or in capitals, or numbers as text, is understood.
    """
    if data.startswith(b"\x1f\x8b"):
        inflate = zlib.decompressobj(wbits=31)
        try:
            data = inflate.decompress(data, MAX_REPORT)
        except zlib.error as error:
            raise ValueError(f"not gzip: {error}") from None
        if not inflate.eof:
            raise ValueError(f"cut off, or larger than {MAX_REPORT} bytes")
    if len(data) > MAX_REPORT:
        raise ValueError(f"larger than {MAX_REPORT} bytes")
    if data.count(b",") > MAX_VALUES:  # before they take a hundred times their bytes of memory
        raise ValueError(f"larger than {MAX_VALUES} values")
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_Foreign).report()
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a report: {str(error)[:200]}") from None


# ---- the document as others write it

_Text = str | int | float | bool | None
_Texts = list[_Text] | _Text


class _ForeignPolicy(Struct, rename="kebab"):
    policy_type: _Text = None
    policy_domain: _Text = None  # Postfix' reporter leaves it out with no-policy-found
    policy_string: _Texts = None
    mx_host: _Texts = None


class _ForeignSummary(Struct, rename="kebab"):
    total_successful_session_count: _Text = None
    total_failure_session_count: _Text = None


class _ForeignFailure(Struct, rename="kebab"):
    result_type: _Text = None
    failed_session_count: _Text = None
    sending_mta_ip: _Text = None  # Microsoft leaves it out where no session came about
    receiving_mx_hostname: _Text = None
    receiving_mx_helo: _Text = None
    receiving_ip: _Text = None
    additional_information: _Text = None
    additional_info_uri: _Text = msgspec.field(default=None, name="additional-info-uri")
    failure_reason_code: _Text = None
    failure_error_code: _Text = None  # the name in a draft

    def failure(self) -> Failure:
        return Failure(
            result_type=_text(self.result_type).lower(),
            failed_session_count=_number(self.failed_session_count),
            sending_mta_ip=_text(self.sending_mta_ip),
            receiving_mx_hostname=_text(self.receiving_mx_hostname),
            receiving_mx_helo=_text(self.receiving_mx_helo),
            receiving_ip=_text(self.receiving_ip),
            additional_information=_text(self.additional_information) or _text(self.additional_info_uri),
            failure_reason_code=_text(self.failure_reason_code) or _text(self.failure_error_code),
        )


class _ForeignPolicyReport(Struct, rename="kebab"):
    policy: _ForeignPolicy
    summary: _ForeignSummary | None = None
    failure_details: list[_ForeignFailure | None] | _ForeignFailure | None = None

    def policy_report(self) -> PolicyReport:
        summary, details = self.summary or _ForeignSummary(), self.failure_details
        one_host = not isinstance(self.policy.mx_host, list) and _text(self.policy.mx_host)
        return PolicyReport(
            policy=Policy(
                policy_type=_text(self.policy.policy_type).lower(),
                policy_domain=_text(self.policy.policy_domain),
                policy_string=_texts(self.policy.policy_string),
                mx_host=one_host or _texts(self.policy.mx_host),
            ),
            summary=Summary(
                total_successful_session_count=_number(summary.total_successful_session_count),
                total_failure_session_count=_number(summary.total_failure_session_count),
            ),
            failure_details=tuple(
                each.failure() for each in (details if isinstance(details, list) else [details]) if each
            ),
        )


class _ForeignRange(Struct, rename="kebab"):
    start_datetime: str | int | float
    end_datetime: str | int | float | None = None


class _Foreign(Struct, rename="kebab"):
    date_range: _ForeignRange
    policies: list[_ForeignPolicyReport] | _ForeignPolicyReport
    organization_name: _Text = None
    report_id: _Text = None
    contact_info: _Text = None

    def report(self) -> Report:
        """Raises ValueError without an id or a time."""
        start = _moment(self.date_range.start_datetime)
        end = start if self.date_range.end_datetime is None else _moment(self.date_range.end_datetime)
        name, id_ = _text(self.organization_name), _text(self.report_id)
        if not (name or id_):
            raise ValueError("not a report: nobody has written it")
        policies = self.policies if isinstance(self.policies, list) else [self.policies]
        return Report(
            organization_name=name,
            date_range=DateRange(start_datetime=start, end_datetime=end),
            report_id=id_,
            policies=tuple(each.policy_report() for each in policies),
            contact_info=_text(self.contact_info),
        )


def _text(value: _Text) -> str:
    return "" if value is None else str(value).strip()


def _texts(value: _Texts) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, value if isinstance(value, list) else [value])))


def _number(value: _Text) -> int:
    try:
        return max(0, min(MOST, int(float(value or 0))))
    except (ValueError, OverflowError):
        return 0


def _moment(value: str | float) -> datetime:
    """As RFC 3339 has it, without a zone in UTC, or Unix seconds. Raises ValueError."""
    try:
        if isinstance(value, str) and not value.strip().isdecimal():
            at = datetime.fromisoformat(value.strip())
            return at if at.tzinfo is None else at.astimezone(UTC)
        return datetime.fromtimestamp(float(value), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"not a report: {error}") from None


# ---- the mail around it (section 5.3)


def build_mail(
    report: Report, *, policy_domain: str, sender: str, recipient: str, now: datetime, message_id: str
) -> bytes:
    """The message that brings `report` about `policy_domain` to `recipient`; ASCII, and still to be signed with DKIM.

    `sender` is its author, whose domain is the submitter. It must not depend on what it reports about, so it says
    `TLS-Required: No` (RFC 8689).
    """
    submitter = sender.rpartition("@")[2]
    words = f"Report Domain: {policy_domain} Submitter: {submitter} Report-ID: <{report.report_id}>"
    text = (
        f"This is a report about TLS in sessions from {submitter} to the mail exchangers\r\n"
        f"of {policy_domain}, as RFC 8460 describes it. It is in the attachment, for programs.\r\n"
    )
    name = file_name(report, policy_domain=policy_domain, submitter=submitter)
    boundary = "=_tlsrpt_" + hashlib.sha256(message_id.encode()).hexdigest()[:32]  # `=_` comes in none of the parts
    lines = [
        f"Date: {format_date(now)}",
        f"From: <{sender}>",
        f"To: <{recipient}>",
        fold(f"Subject: {words}".encode()).decode(),
        f"Message-ID: <{message_id}>",
        f"TLS-Report-Domain: {policy_domain}",
        f"TLS-Report-Submitter: {submitter}",
        "TLS-Required: No",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type="tlsrpt";\r\n boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        text,
        f"--{boundary}",
        f"Content-Type: {MEDIA_TYPE}",
        "Content-Transfer-Encoding: base64",
        f'Content-Disposition: attachment;\r\n filename="{name}"',
        "",
        *_base64_lines(build_json(report)),
        f"--{boundary}--",
        "",
    ]
    return "\r\n".join(lines).encode("ascii")


def file_name(report: Report, *, policy_domain: str, submitter: str) -> str:
    """Section 5.1: who, about whom, from when to when in Unix time."""
    start, end = (
        int(moment.astimezone(UTC).timestamp())
        for moment in (report.date_range.start_datetime, report.date_range.end_datetime)
    )
    return f"{submitter}!{policy_domain}!{start}!{end}.json.gz"


def _base64_lines(data: bytes) -> Sequence[str]:
    text = b64encode(data).decode()
    return [text[at : at + 76] for at in range(0, len(text), 76)]
