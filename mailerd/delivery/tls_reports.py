"""What came of TLS with the domains that we mail, kept by day, and the daily reports to those that ask (RFC 8460)."""

import asyncio
import random
import ssl
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

import aiohttp
import structlog

from mailerd.config import Config
from mailerd.db import Pool
from mailerd.delivery.https import Outside
from mailerd.delivery.resolver import Failed, Found, Resolver
from mailerd.delivery.tls_policy import SUCCESS, TlsOutcome
from mailerd.errors import MailerdError
from mailerd.queue.commit import LOST
from mailerd.wire import tls_report
from mailerd.wire.smtp import printable
from mailerd.wire.tls_report import Destination

log = structlog.get_logger()

FLUSH_EVERY = 5.0  # seconds
LOOK_EVERY = 3600.0  # seconds between looks for reports that are due, or that failed
# Seconds after the end of a day. By chance, so that not the whole world reports at midnight (section 4.1).
EARLIEST, LATEST = 1_800, 14_400
KEPT = timedelta(days=30)
PAGE = 100  # domains asked for at once
POST_TIMEOUT = 15.0  # seconds
REPORT_TIMEOUT = 45.0  # seconds for all destinations of one report
MAX_NOTED = 20_000  # different results in memory, for when the database is away
MAX_FAILURES = 1_000  # in one report, the most frequent first
# Bytes of what is part of a key, which may have 2,700.
MAX_POLICY, MAX_MX, MAX_DETAIL = 1_200, 400, 250

Submit = Callable[[str, str, bytes], Awaitable[None]]  # sender, recipient, content


class Result(NamedTuple):
    """Sessions with the same outcome: a row of `tls_results`.

    `policy` is the lines of the policy; `mx` the name of the host, for failures with its address behind a space.
    """

    day: date
    domain: str
    policy_type: str
    policy: str
    mx: str
    source_ip: str
    result: str
    detail: str


ADD = """
    INSERT INTO tls_results (day, domain, policy_type, policy, mx, source_ip, result, detail, sessions)
    SELECT * FROM unnest($1::date[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                         $8::text[], $9::bigint[])
    ON CONFLICT (day, domain, policy_type, policy, mx, source_ip, result, detail)
    DO UPDATE SET sessions = tls_results.sessions + EXCLUDED.sessions
"""
OF_DOMAIN = """
    SELECT day, domain, policy_type, policy, mx, source_ip, result, detail, sessions FROM tls_results
     WHERE day = $1 AND domain = $2
"""
UNREPORTED = """
    SELECT DISTINCT domain FROM tls_results AS found
     WHERE day = $1 AND domain > $2
       AND NOT EXISTS (SELECT FROM tls_reports_sent AS sent
                        WHERE sent.day = $1 AND sent.domain = found.domain AND sent.state <> 'failed')
     ORDER BY domain LIMIT $3
"""
UNWANTED = """
    INSERT INTO tls_reports_sent (day, domain, state) SELECT $1, domain, 'unwanted' FROM unnest($2::text[]) AS domain
     ORDER BY domain ON CONFLICT (day, domain) DO NOTHING
"""
TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
PATIENCE = "SET LOCAL idle_in_transaction_session_timeout = '90s'"  # longer than REPORT_TIMEOUT
STATE = "SELECT state FROM tls_reports_sent WHERE day = $1 AND domain = $2"
SENT = """
    INSERT INTO tls_reports_sent (day, domain, state) VALUES ($1, $2, $3)
    ON CONFLICT (day, domain) DO UPDATE SET state = EXCLUDED.state
"""
FORGET_RESULTS = "DELETE FROM tls_results WHERE day < $1"
FORGET_SENT = "DELETE FROM tls_reports_sent WHERE day < $1"


class TlsResultStore:
    """The tables `tls_results` and `tls_reports_sent`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, counts: Mapping[Result, int]) -> None:
        """Count these sessions. In the order of the key, so that workers never wait for each other crosswise."""
        rows = sorted(counts)
        columns = [list(column) for column in zip(*rows, strict=True)]
        await self._pool.execute(ADD, *columns, [counts[row] for row in rows])

    async def of(self, day: date, domain: str) -> dict[Result, int]:
        rows = await self._pool.fetch(OF_DOMAIN, day, domain)
        return {Result(*tuple(row)[:-1]): row["sessions"] for row in rows}

    async def unreported(self, day: date, after: str, limit: int) -> list[str]:
        """Domains in alphabetical order whose report was not sent, or failed."""
        return [row["domain"] for row in await self._pool.fetch(UNREPORTED, day, after, limit)]

    async def unwanted(self, day: date, domains: Sequence[str]) -> None:
        await self._pool.execute(UNWANTED, day, domains)

    async def once(self, day: date, domain: str, work: Callable[[], Awaitable[str]]) -> str:
        """Do `work` and keep the state that it gives, unless it was done before. The state; "" if another is at it.

        A crash in between means that it is done again: a report has the same id then.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(PATIENCE)
            if not await connection.fetchval(TRY_LOCK, f"tls report\x1f{day}\x1f{domain}"):
                return ""
            state: str | None = await connection.fetchval(STATE, day, domain)
            if state is None or state == "failed":
                state = await work()
                await connection.execute(SENT, day, domain, state)
            return state

    async def forget(self, before: date) -> None:
        await self._pool.execute(FORGET_RESULTS, before)
        await self._pool.execute(FORGET_SENT, before)


@dataclass(slots=True)
class _Wanted:
    """What the TXT records of a page of domains said."""

    by: dict[str, tuple[Destination, ...]]
    unwanted: list[str]
    unknown: list[str]


class TlsReports:
    """Counts the outcomes of one worker and, together with those of all others, sees to it that each report goes once.

    Without `tls_reports.organization` nothing is counted and nothing sent. `submit` takes sender, recipient and content
    of a mail; it must sign it, and must not let TLS policies hold it up. `tls` is what is believed of HTTPS hosts.
    """

    def __init__(
        self,
        config: Config,
        store: TlsResultStore,
        *,
        resolver: Resolver,
        submit: Submit,
        clock: Callable[[], datetime],
        tls: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._resolver = resolver
        self._submit = submit
        self._clock = clock
        self._tls = tls
        self._delay = timedelta(seconds=(rng or random.Random()).uniform(EARLIEST, LATEST))  # noqa: S311
        self._noted: Counter[Result] = Counter()
        self._dropped = 0
        self._stopping = asyncio.Event()

    def reconfigure(self, config: Config) -> None:
        self._config = config

    def note(self, outcome: TlsOutcome, source_ip: str) -> None:
        """Count a session, or the try to open one. Outcomes of routes of ours have no domain and are not counted."""
        if not self._config.tls_reports.organization or not outcome.domain:
            return
        failed = outcome.result != SUCCESS
        result = Result(
            day=self._clock().astimezone(UTC).date(),
            domain=outcome.domain,
            policy_type=outcome.policy_type,
            policy="\n".join(_first_lines(outcome.policy)),
            mx=_cut(f"{outcome.mx} {outcome.mx_ip}".strip() if failed else outcome.mx, MAX_MX),
            source_ip=source_ip if failed else "",
            result=outcome.result,
            detail=_cut(printable(outcome.detail), MAX_DETAIL) if failed else "",
        )
        if result in self._noted or len(self._noted) < MAX_NOTED:
            self._noted[result] += 1
        else:
            self._dropped += 1

    async def run(self) -> None:
        """Write down what was noted and report each day after its end, until `stop()`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_often(), name="TLS results")
            tasks.create_task(self._report_daily(), name="TLS reports")

    async def stop(self) -> None:
        """Have `run()` end, after the report that it is at."""
        self._stopping.set()

    async def flush(self) -> None:
        """Write down what was noted. While the database is away it stays noted."""
        noted, self._noted = self._noted, Counter()
        if not noted:
            return
        try:
            await self._store.add(noted)
        except LOST as error:
            noted.update(self._noted)
            self._noted = noted
            log.warning("tls_results.kept", results=len(noted), reason=str(error))
            return
        if self._dropped:
            log.warning("tls_results.dropped", sessions=self._dropped)
            self._dropped = 0

    async def report(self, day: date) -> int:
        """Report `day` (UTC) to every domain that asks for it and has no report yet; how many are still to be sent.

        A report to several destinations is sent when one of them has taken it.
        """
        after, left = "", 0
        while self._config.tls_reports.organization and not self._stopping.is_set():
            domains = await self._store.unreported(day, after, PAGE)
            if not domains:
                break
            after = domains[-1]
            wanted = await self._ask(domains)
            if wanted.unwanted:
                await self._store.unwanted(day, wanted.unwanted)
            left += len(wanted.unknown)
            for domain, destinations in wanted.by.items():
                left += not await self._report_domain(day, domain, destinations)
        return left

    async def _flush_often(self) -> None:
        while not await self._pause(FLUSH_EVERY):
            await self.flush()
        await self.flush()

    async def _report_daily(self) -> None:
        done: date | None = None
        while not self._stopping.is_set():
            day = (self._clock().astimezone(UTC) - self._delay).date() - timedelta(days=1)
            if day != done:
                try:
                    left = await self.report(day)
                    await self._store.forget(day - KEPT)
                except LOST as error:
                    log.warning("tls_reports.put_off", reason=str(error))
                else:
                    done = None if left else day
            await self._pause(LOOK_EVERY)

    async def _pause(self, seconds: float) -> bool:
        """Whether it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _ask(self, domains: Sequence[str]) -> _Wanted:
        found = _Wanted({}, [], [])
        answers = await asyncio.gather(*(self._resolver.txt(f"_smtp._tls.{domain}") for domain in domains))
        for domain, answer in zip(domains, answers, strict=True):
            destinations = tls_report.parse_record(answer.records) if isinstance(answer, Found) else ()
            if destinations:
                found.by[domain] = destinations
            elif isinstance(answer, Failed):
                found.unknown.append(domain)
            else:
                found.unwanted.append(domain)
        return found

    async def _report_domain(self, day: date, domain: str, destinations: Sequence[Destination]) -> bool:
        """Whether nothing is left to be done for it."""

        async def work() -> str:
            counts = await self._store.of(day, domain)
            return await self._send(self._document(day, domain, counts), domain, destinations)

        try:
            return await self._store.once(day, domain, work) in ("sent", "unwanted")
        except LOST:
            raise
        except Exception:  # one odd report must not stop the others
            log.exception("tls_report.crashed", domain=domain, day=str(day))
            return False

    def _document(self, day: date, domain: str, counts: Mapping[Result, int]) -> tls_report.Report:
        settings = self._config.tls_reports
        start = datetime.combine(day, time(), UTC)
        return tls_report.Report(
            organization_name=settings.organization,
            contact_info=settings.contact or settings.sender,
            report_id=f"{day}.{domain}@{self._config.hostname}",
            date_range=tls_report.DateRange(
                start_datetime=start, end_datetime=start + timedelta(days=1) - timedelta(seconds=1)
            ),
            policies=_policies(counts),
        )

    async def _send(self, report: tls_report.Report, domain: str, destinations: Sequence[Destination]) -> str:
        """`sent` when one of the destinations has it, else `failed`."""
        outcomes = await asyncio.gather(*(self._send_to(target, report, domain) for target in destinations))
        for destination, problem in zip(destinations, outcomes, strict=True):
            facts = {"domain": domain, "to": destination.target, "report": report.report_id}
            if problem:
                log.warning("tls_report.failed", **facts, reason=problem)
            else:
                log.info("tls_report.sent", **facts)
        return "failed" if all(outcomes) else "sent"

    async def _send_to(self, destination: Destination, report: tls_report.Report, domain: str) -> str:
        """What went wrong; "" when it has arrived, or waits in our queue."""
        try:
            async with asyncio.timeout(REPORT_TIMEOUT):
                if destination.kind == "mailto":
                    await self._mail(destination.target, report, domain)
                    return ""
                return await self._post(destination.target, report)
        except (OSError, ValueError, MailerdError, aiohttp.ClientError) as error:  # a TimeoutError is an OSError
            return str(error) or type(error).__name__

    async def _mail(self, recipient: str, report: tls_report.Report, domain: str) -> None:
        sender = self._config.tls_reports.sender
        content = tls_report.build_mail(
            report,
            policy_domain=domain,
            sender=sender,
            recipient=recipient,
            now=self._clock(),
            message_id=f"tlsrpt.{report.report_id}",
        )
        await self._submit(sender, recipient, content)

    async def _post(self, url: str, report: tls_report.Report) -> str:
        outside = Outside(self._resolver, allow_private=self._config.delivery.allow_private, tls=self._tls)
        body = tls_report.build_json(report)
        status = await outside.post(url, body, content_type=tls_report.MEDIA_TYPE, timeout=POST_TIMEOUT)
        return "" if 200 <= status < 300 else f"HTTP status {status}"


def _policies(counts: Mapping[Result, int]) -> tuple[tls_report.PolicyReport, ...]:
    """One entry for each policy that was applied that day."""
    by_policy: defaultdict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in sorted(counts):
        by_policy[result.domain, result.policy_type, result.policy].append(result)
    return tuple(_policy(results, counts) for results in by_policy.values())


def _policy(results: Sequence[Result], counts: Mapping[Result, int]) -> tls_report.PolicyReport:
    first = results[0]
    lines = tuple(first.policy.splitlines())
    failures = [result for result in results if result.result != SUCCESS]
    failures.sort(key=lambda result: -counts[result])
    return tls_report.PolicyReport(
        policy=tls_report.Policy(
            policy_type=first.policy_type,
            policy_domain=first.domain,
            policy_string=lines,
            mx_host=_mx_hosts(first.policy_type, lines, results),
        ),
        summary=tls_report.Summary(
            total_successful_session_count=sum(counts[result] for result in results if result.result == SUCCESS),
            total_failure_session_count=sum(counts[result] for result in failures),
        ),
        failure_details=tuple(_failure(result, counts[result]) for result in failures[:MAX_FAILURES]),
    )


def _mx_hosts(policy_type: str, lines: Iterable[str], results: Iterable[Result]) -> tuple[str, ...]:
    """The patterns of an MTA-STS policy; for TLSA records the hosts that have them."""
    if policy_type == "sts":
        return tuple(line.partition(":")[2].strip() for line in lines if line.startswith("mx:"))
    if policy_type == "tlsa":
        return tuple(sorted({result.mx.partition(" ")[0] for result in results if result.mx}))
    return ()


def _failure(result: Result, sessions: int) -> tls_report.Failure:
    name, _, address = result.mx.partition(" ")
    return tls_report.Failure(
        result_type=result.result,
        failed_session_count=sessions,
        sending_mta_ip=result.source_ip,
        receiving_mx_hostname=name,
        receiving_ip=address,
        failure_reason_code=result.detail,
    )


def _first_lines(lines: Iterable[str]) -> Iterator[str]:
    room = MAX_POLICY
    for line in lines:
        room -= len(line.encode("utf-8", "replace")) + 1
        if room < 0:
            return
        yield _cut(line, MAX_POLICY)


def _cut(text: str, size: int) -> str:
    """What fits into so many bytes, and into a column: no NUL, no surrogates."""
    return text.encode("utf-8", "replace").replace(b"\0", b"")[:size].decode("utf-8", "ignore")
