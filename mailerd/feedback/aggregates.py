"""Aggregate reports that others send about our mail, kept in tables: DMARC (RFC 7489) and TLS (RFC 8460).

    for report in dmarc_reports(content): await store.add_dmarc(report, now, connection)

A report that comes twice is kept once: who reports, and the id that he gave it. Anybody may send them, so there are
bounds to what a mail can bring and to what a day can.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import asyncpg
import msgspec
import structlog

from mailerd import metrics
from mailerd.feedback.attachments import documents, first_character
from mailerd.feedback.dmarc import Allowance, DmarcReport, parse_dmarc
from mailerd.feedback.reading.header import parse_header, split_header
from mailerd.wire.tls_report import PartialReport, PolicyReport, parse_json
from mailerd.wire.tls_report import Report as TlsReport

log = structlog.get_logger()

MAX_POLICIES = 1_000  # of one mail
MAX_FAILURES = 20_000
MAX_ROWS_A_DAY = 200_000  # of all reports
TELL_EVERY = timedelta(hours=1)
LONGEST = 255  # characters of any text
MOST = 10**12

_Report = TypeVar("_Report")


def dmarc_reports(content: bytes) -> list[DmarcReport]:
    """The DMARC reports that a mail carries; none when nothing in it can be read as one. Never raises.

    Of all together at most 20,000 records are read; a report that has more says so (`truncated`).
    """
    allowance = Allowance()
    return list(_readable(content, b"<", lambda document: parse_dmarc(document, allowance)))


def tls_reports(content: bytes) -> list[TlsReport]:
    """The TLS reports that a mail carries, as `dmarc_reports`; of more than 20,000 failures, or 1,000 policies, only so
    many: it is a `PartialReport` then.
    """
    domain = _domain_of(content)
    policies, failures = MAX_POLICIES, MAX_FAILURES
    reports: list[TlsReport] = []
    for report in _readable(content, b"{", parse_json):
        cut = _cut(report, domain, policies, failures)
        policies -= len(cut.policies)
        failures -= sum(len(each.failure_details) for each in cut.policies)
        reports.append(cut)
    return reports


def _readable(content: bytes, first: bytes, parse: Callable[[bytes], _Report]) -> Iterator[_Report]:
    for document in documents(content):
        if first_character(document) == first:
            try:
                yield parse(document)
            except ValueError:
                continue


def _domain_of(content: bytes) -> str:
    """Which domain the header says that a report is about (RFC 8460 section 5.3); "" when it does not."""
    end, _ = split_header(content, 0, len(content))
    return parse_header(content[:end]).text("tls-report-domain", LONGEST)


def _cut(report: TlsReport, domain: str, policies: int, failures: int) -> TlsReport:
    """At most so much of it. `domain` is for policies that name none, as some reporters write where they found none."""
    kept: list[PolicyReport] = []
    for each in report.policies[:policies]:
        policy = (
            each.policy if each.policy.policy_domain else msgspec.structs.replace(each.policy, policy_domain=domain)
        )
        details = each.failure_details[:failures]
        failures -= len(details)
        kept.append(msgspec.structs.replace(each, policy=policy, failure_details=details))
    whole = len(kept) == len(report.policies) and all(
        len(mine.failure_details) == len(its.failure_details) for mine, its in zip(kept, report.policies, strict=True)
    )
    fields = msgspec.structs.asdict(report) | {"policies": tuple(kept)}
    return TlsReport(**fields) if whole else PartialReport(**fields)


TAKE_ROWS = """
    INSERT INTO aggregate_days AS d (day, rows) SELECT $1::date, $2::bigint WHERE $2::bigint <= $3::bigint
        ON CONFLICT (day) DO UPDATE SET rows = d.rows + EXCLUDED.rows WHERE d.rows + EXCLUDED.rows <= $3::bigint
        RETURNING rows
"""
GIVE_BACK = "UPDATE aggregate_days SET rows = rows - $2::bigint WHERE day = $1"
ADD_DMARC = """
    INSERT INTO dmarc_reports (org, report_id, domain, contact, begins_at, ends_at, policy, received_at, truncated)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (org, report_id, domain) DO NOTHING RETURNING id
"""
ADD_DMARC_RECORDS = """
    INSERT INTO dmarc_records (report, source_ip, messages, disposition, dkim, spf, header_from, envelope_from,
                               dkim_results, spf_results, reasons)
    SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                             $9::text[], $10::text[], $11::text[])
"""
ADD_TLS = """
    INSERT INTO tls_reports_received (org, report_id, contact, begins_at, ends_at, received_at, truncated)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org, report_id) DO NOTHING RETURNING id
"""
ADD_TLS_POLICIES = """
    INSERT INTO tls_report_policies (report, domain, policy_type, succeeded, failed)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[])
"""
ADD_TLS_FAILURES = """
    INSERT INTO tls_report_failures (report, domain, policy_type, result, sessions, sending_ip, mx, detail)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[])
"""
DMARC_SOURCES = """
    SELECT d.domain, r.source_ip, sum(r.messages)::bigint AS messages,
           sum(r.messages) FILTER (WHERE r.dkim = 'pass' OR r.spf = 'pass')::bigint AS passed,
           sum(r.messages) FILTER (WHERE r.dkim = 'pass')::bigint AS dkim,
           sum(r.messages) FILTER (WHERE r.spf = 'pass')::bigint AS spf,
           sum(r.messages) FILTER (WHERE r.disposition = 'quarantine')::bigint AS quarantined,
           sum(r.messages) FILTER (WHERE r.disposition = 'reject')::bigint AS rejected,
           array_agg(DISTINCT d.org) AS reporters, max(d.ends_at) AS until
      FROM dmarc_reports AS d JOIN dmarc_records AS r ON r.report = d.id
     WHERE d.begins_at >= $1 AND ($2::text IS NULL OR d.domain = $2)
     GROUP BY d.domain, r.source_ip ORDER BY messages DESC, d.domain, r.source_ip LIMIT $3
"""
TLS_RESULTS = """
    WITH results AS (
        SELECT t.org, t.ends_at, p.domain, p.policy_type, 'success' AS result, p.succeeded AS sessions, '' AS mx,
               '' AS detail
          FROM tls_reports_received AS t JOIN tls_report_policies AS p ON p.report = t.id
         WHERE t.begins_at >= $1 AND ($2::text IS NULL OR p.domain = $2)
        UNION ALL
        SELECT t.org, t.ends_at, f.domain, f.policy_type, f.result, f.sessions, f.mx, f.detail
          FROM tls_reports_received AS t JOIN tls_report_failures AS f ON f.report = t.id
         WHERE t.begins_at >= $1 AND ($2::text IS NULL OR f.domain = $2)
    )
    SELECT domain, policy_type, result, mx, sum(sessions)::bigint AS sessions, array_agg(DISTINCT org) AS reporters,
           max(ends_at) AS until, COALESCE(max(detail), '') AS detail
      FROM results GROUP BY domain, policy_type, result, mx
     ORDER BY domain, result = 'success', sessions DESC, result, mx LIMIT $3
"""
FORGET = (
    "DELETE FROM dmarc_reports WHERE begins_at < $1 OR received_at < $1",
    "DELETE FROM tls_reports_received WHERE begins_at < $1 OR received_at < $1",
    "DELETE FROM aggregate_days WHERE day < $1::timestamptz::date",
)


@dataclass(frozen=True, slots=True)
class DmarcSource:
    """What all reports say of one address that sends as a domain: messages, and how many of them passed what."""

    domain: str
    source_ip: str
    messages: int
    passed: int
    dkim: int
    spf: int
    quarantined: int
    rejected: int
    reporters: tuple[str, ...]
    until: datetime


@dataclass(frozen=True, slots=True)
class TlsResult:
    """What all reports say of one result of TLS at a domain of ours: `success`, or why sessions failed."""

    domain: str
    policy_type: str
    result: str
    mx: str
    sessions: int
    reporters: tuple[str, ...]
    until: datetime
    detail: str


class AggregateStore:
    """Both kinds of reports."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self._told: datetime | None = None
        self._dropped = 0  # since then

    async def add_dmarc(
        self,
        report: DmarcReport,
        now: datetime,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    ) -> bool:
        """Keep it, in the caller's transaction; False: it is here already, or the day has brought too much."""
        size = 1 + len(report.records)
        if not await self._take(size, now, connection):
            return False
        head = (report.org, report.report_id, report.domain, report.contact, report.begins_at, report.ends_at)
        id_ = await connection.fetchval(ADD_DMARC, *head, report.policy, now, report.truncated)
        if id_ is None:
            await connection.execute(GIVE_BACK, _day(now), size)
            return False
        rows = [
            (
                record.source_ip,
                record.messages,
                record.disposition,
                record.dkim,
                record.spf,
                record.header_from,
                record.envelope_from,
                record.dkim_results,
                record.spf_results,
                record.reasons,
            )
            for record in report.records
        ]
        if rows:
            await connection.execute(ADD_DMARC_RECORDS, id_, *_columns(rows))
        return True

    async def add_tls(
        self,
        report: TlsReport,
        now: datetime,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    ) -> bool:
        """Keep it, in the caller's transaction; False: it is here already, or the day has brought too much."""
        policies, failures = _tls_rows(report)
        size = 1 + len(policies) + len(failures)
        if not await self._take(size, now, connection):
            return False
        begins_at, ends_at = _aware(report.date_range.start_datetime), _aware(report.date_range.end_datetime)
        head = (_clean(report.organization_name), _clean(report.report_id), _clean(report.contact_info))
        id_ = await connection.fetchval(ADD_TLS, *head, begins_at, ends_at, now, isinstance(report, PartialReport))
        if id_ is None:
            await connection.execute(GIVE_BACK, _day(now), size)
            return False
        if policies:
            await connection.execute(ADD_TLS_POLICIES, id_, *_columns(policies))
        if failures:
            await connection.execute(ADD_TLS_FAILURES, id_, *_columns(failures))
        return True

    async def _take(
        self, rows: int, now: datetime, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
    ) -> bool:
        """So many rows of what a day may bring; before anything of a report is written, so that two never deadlock."""
        if await connection.fetchval(TAKE_ROWS, _day(now), rows, MAX_ROWS_A_DAY) is not None:
            return True
        metrics.report_followed("over_limit")
        self._dropped += 1
        if self._told is None or now - self._told >= TELL_EVERY:
            log.warning("aggregates.over_limit", reports=self._dropped, rows_a_day=MAX_ROWS_A_DAY)
            self._told, self._dropped = now, 0
        return False

    async def dmarc_sources(self, since: datetime, domain: str | None, limit: int) -> list[DmarcSource]:
        """By domain and sending address, those that sent most first; of reports that begin at `since` or later."""
        return [
            DmarcSource(**{name: value or 0 for name, value in row.items()} | {"reporters": tuple(row["reporters"])})
            for row in await self._pool.fetch(DMARC_SOURCES, since, domain, limit)
        ]

    async def tls_results(self, since: datetime, domain: str | None, limit: int) -> list[TlsResult]:
        """By domain, failures before successes; of reports that begin at `since` or later."""
        return [
            TlsResult(**{**row, "reporters": tuple(row["reporters"])})
            for row in await self._pool.fetch(TLS_RESULTS, since, domain, limit)
        ]

    async def forget(self, before: datetime) -> None:
        """Drop reports about times before that, or that came before."""
        for statement in FORGET:
            await self._pool.execute(statement, before)


def _tls_rows(report: TlsReport) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    policies: list[tuple[object, ...]] = []
    failures: list[tuple[object, ...]] = []
    for each in report.policies:
        place = (_clean(each.policy.policy_domain).lower().rstrip("."), _clean(each.policy.policy_type))
        totals = each.summary.total_successful_session_count, each.summary.total_failure_session_count
        policies.append((*place, *(_count(total) for total in totals)))
        for failure in each.failure_details:
            detail = " ".join(filter(None, (failure.failure_reason_code, failure.additional_information)))
            failures.append(
                (
                    *place,
                    _clean(failure.result_type),
                    _count(failure.failed_session_count),
                    _clean(failure.sending_mta_ip),
                    _clean(failure.receiving_mx_hostname).lower().rstrip("."),
                    _clean(detail),
                )
            )
    return policies, failures


def _clean(text: str) -> str:
    """Fit for a column and a terminal."""
    words = " ".join(text[: 4 * LONGEST].split())[:LONGEST]
    if words.isprintable():
        return words
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _count(number: int) -> int:
    return max(0, min(MOST, number))


def _aware(at: datetime) -> datetime:
    """As most write it, with a zone; else UTC."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _day(now: datetime) -> date:
    return now.astimezone(UTC).date()


def _columns(rows: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))
