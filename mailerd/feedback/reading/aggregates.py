"""Aggregate reports of DMARC (RFC 7489 section 7.2) and TLS (RFC 8460 section 3), known from outside."""

import re

from mailerd.feedback.reading.mime import Mail
from mailerd.feedback.reading.values import ReportKind

_TLS_TYPES = frozenset(("application/tlsrpt+gzip", "application/tlsrpt+json"))
_ARCHIVES = ("zip", "gzip", "x-gzip", "x-zip-compressed", "xml", "octet-stream", "x-zip")
_DMARC_FILE = re.compile(r"[^!]+![^!]+!\d{9,11}!\d{9,11}(![^.]*)?\.(xml|zip|xml\.gz|gz|xml\.zip)", re.IGNORECASE)
_TLS_FILE = re.compile(r"[^!]+![^!]+!\d{9,11}!\d{9,11}(![^.]*)?\.json(\.gz)?", re.IGNORECASE)
_SUBJECT = re.compile(r"report[ -]domain:\s*\S+.*\bsubmitter\b|\bdmarc\b.{0,40}\breport\b|\breport-id\b", re.IGNORECASE)
_TLS_SUBJECT = re.compile(r"\btls[ -]?rpt\b|\btls report\b", re.IGNORECASE)


def aggregate_kind(mail: Mail, subject: str) -> ReportKind | None:
    """DMARC or TLS when the mail carries such a report; its content is not looked at."""
    types = {part.type for part in mail.parts} | {mail.type}
    names = [part.filename for part in mail.parts]
    if _TLS_TYPES & types or mail.parameters.get("report-type", "").lower() == "tlsrpt":
        return ReportKind.TLS
    if "tls-report-domain" in mail.header or any(_TLS_FILE.fullmatch(name[:300]) for name in names):
        return ReportKind.TLS
    if any(_DMARC_FILE.fullmatch(name[:300]) for name in names):
        return ReportKind.DMARC
    archived = any(kind.partition("/")[2] in _ARCHIVES for kind in types)
    if archived and _TLS_SUBJECT.search(subject):
        return ReportKind.TLS
    return ReportKind.DMARC if archived and _SUBJECT.search(subject) else None
