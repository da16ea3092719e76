"""Results of TLS kept in a real database; reports to real domains of a name server, an HTTPS host and our own queue."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import structlog
from aiohttp import web

from mailerd.config import Config, Delivery, Duration, NameServer, Resolver, TlsReports
from mailerd.db import Pool, connect_pool
from mailerd.delivery import resolver, tls_reports
from mailerd.delivery.tls_policy import TlsOutcome
from mailerd.delivery.tls_reports import TlsResultStore
from mailerd.errors import Unavailable
from mailerd.wire.tls_report import Report, parse_json
from tests.support.database_proxy import DatabaseProxy
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, relay_config, running_relay
from tests.support.smtp_intake import make_certificate, trusting

DAY = date(2026, 11, 21)
STS = ("version: STSv1", "mode: enforce", "mx: *.y.example", "mx: mx.z.example", "max_age: 86400")
OK = TlsOutcome("y.example", "sts", STS, "mx1.y.example", "192.0.2.1", "success")
EXPIRED = OK._replace(result="certificate-expired", detail="certificate has expired")
SETTINGS = TlsReports(organization="Example Inc.", sender="tls@mail.sender.example")
STATES = "SELECT domain, state FROM tls_reports_sent ORDER BY day, domain"


class Mails:
    """Takes the mailed reports; raises `trouble` while it is set, and waits for `gate` if there is one."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes]] = []
        self.trouble: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def __call__(self, sender: str, recipient: str, content: bytes) -> None:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.sent.append((sender, recipient, content))

    @property
    def recipients(self) -> list[str]:
        return [recipient for _, recipient, _ in self.sent]

    @property
    def reports(self) -> list[Report]:
        parts = [message_from_bytes(content, policy=default).get_payload(1) for _, _, content in self.sent]
        return [parse_json(part.get_content()) for part in parts]  # type: ignore[union-attr]


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        server.add("_smtp._tls.y.example", "TXT", '"v=TLSRPTv1; rua=mailto:reports@y.example"')
        yield server


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    pool = await connect_pool(database, min=1, max=6)
    yield pool
    await pool.close()


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    return clock


@pytest.fixture
def mails() -> Mails:
    return Mails()


@pytest.fixture
def config(dns: DnsServer) -> Config:
    settings = Resolver(
        nameservers=(NameServer(dns.address),), timeout=Duration(1), min_ttl=Duration(0), max_ttl=Duration(0)
    )
    return Config(
        hostname="mail.sender.example",
        resolver=settings,
        tls_reports=SETTINGS,
        delivery=Delivery(allow_private=True),
    )


Make = Callable[..., tls_reports.TlsReports]


@pytest.fixture
async def make(pool: Pool, config: Config, clock: Clock, mails: Mails) -> AsyncIterator[Make]:
    lookups = resolver.Resolver(config.resolver)

    def make(**changes: Any) -> tls_reports.TlsReports:
        settings: Config = changes.pop("config", config)
        store = changes.pop("store", TlsResultStore(pool))
        parts: dict[str, Any] = {"resolver": lookups, "submit": mails, "clock": clock, "rng": random.Random(1)}
        return tls_reports.TlsReports(settings, store, **parts | changes)

    yield make
    await lookups.close()


async def noted(reports: tls_reports.TlsReports, *outcomes: TlsOutcome) -> None:
    for outcome in outcomes:
        reports.note(outcome, "198.51.100.7")
    await reports.flush()


async def test_a_domain_gets_the_report_it_asks_for(make: Make, mails: Mails) -> None:
    reports = make()
    await noted(reports, OK, OK, EXPIRED, EXPIRED._replace(mx_ip="192.0.2.2"))
    await noted(reports, OK, EXPIRED)

    assert await reports.report(DAY) == 0

    ((sender, recipient, content),) = mails.sent
    assert (sender, recipient) == ("tls@mail.sender.example", "reports@y.example")
    assert b"\r\nTLS-Report-Domain: y.example\r\n" in content
    (report,) = mails.reports
    assert (report.organization_name, report.contact_info) == ("Example Inc.", "tls@mail.sender.example")
    assert report.report_id == "2026-11-21.y.example@mail.sender.example"
    assert report.date_range.start_datetime == datetime(2026, 11, 21, tzinfo=UTC)
    assert report.date_range.end_datetime == datetime(2026, 11, 21, 23, 59, 59, tzinfo=UTC)
    (found,) = report.policies
    assert (found.policy.policy_type, found.policy.policy_domain) == ("sts", "y.example")
    assert found.policy.policy_string == STS
    assert found.policy.mx_host == ("*.y.example", "mx.z.example")
    assert found.summary.total_successful_session_count == 3
    assert found.summary.total_failure_session_count == 3
    first, second = found.failure_details
    assert (first.result_type, first.failed_session_count) == ("certificate-expired", 2)
    assert (first.receiving_mx_hostname, first.receiving_ip) == ("mx1.y.example", "192.0.2.1")
    assert (first.sending_mta_ip, first.failure_reason_code) == ("198.51.100.7", "certificate has expired")
    assert (second.receiving_ip, second.failed_session_count) == ("192.0.2.2", 1)


async def test_each_policy_has_an_entry_of_its_own(make: Make, mails: Mails) -> None:
    tlsa = OK._replace(policy_type="tlsa", policy=("3 1 1 00ff",))
    none = OK._replace(policy_type="no-policy-found", policy=(), mx="")
    no_host = EXPIRED._replace(result="sts-policy-fetch-error", mx="", mx_ip="", policy=())
    reports = make()
    await noted(reports, tlsa, tlsa._replace(mx="mx2.y.example"), none, no_host, OK)
    await reports.report(DAY)

    (report,) = mails.reports
    entries = {entry.policy.policy_type + str(len(entry.policy.policy_string)): entry for entry in report.policies}
    assert sorted(entries) == ["no-policy-found0", "sts0", "sts5", "tlsa1"]
    assert entries["tlsa1"].policy.mx_host == ("mx1.y.example", "mx2.y.example")
    assert entries["tlsa1"].summary.total_successful_session_count == 2
    assert entries["no-policy-found0"].policy.mx_host == ()
    assert entries["sts0"].failure_details[0].receiving_mx_hostname == ""


async def test_a_report_goes_once_however_often_and_by_whomever_it_is_asked_for(
    make: Make, mails: Mails, pool: Pool
) -> None:
    first, second = make(), make()
    await noted(first, OK)
    await noted(second, EXPIRED)
    mails.gate = asyncio.Event()

    sending = asyncio.create_task(first.report(DAY))
    await mails.entered.wait()
    assert await second.report(DAY) == 1  # the other one is at it, and might fail
    mails.gate.set()
    assert await sending == 0
    assert await second.report(DAY) == 0

    assert mails.recipients == ["reports@y.example"]
    assert mails.reports[0].policies[0].summary.total_failure_session_count == 1
    assert [tuple(row) for row in await pool.fetch(STATES)] == [("y.example", "sent")]


async def test_domains_without_a_record_get_nothing_and_are_asked_once(
    make: Make, mails: Mails, dns: DnsServer, pool: Pool
) -> None:
    dns.add("_smtp._tls.two.example", "TXT", '"v=TLSRPTv1; rua=mailto:a@two.example"', '"v=TLSRPTv1; rua=mailto:b@x.y"')
    reports = make()
    await noted(reports, *(OK._replace(domain=domain) for domain in ("none.example", "two.example")))
    assert await reports.report(DAY) == 0
    assert await reports.report(DAY) == 0

    assert mails.sent == []
    assert dns.asked("_smtp._tls.none.example", "TXT") == 1
    assert [tuple(row) for row in await pool.fetch(STATES)] == [
        ("none.example", "unwanted"),
        ("two.example", "unwanted"),
    ]


async def test_a_record_that_cannot_be_looked_up_is_looked_up_again(
    make: Make, mails: Mails, dns: DnsServer, config: Config
) -> None:
    dns.misbehave("_smtp._tls.y.example", "servfail")
    reports = make()
    await noted(reports, OK)
    assert await reports.report(DAY) == 1

    dns.behave("_smtp._tls.y.example")
    again = make(resolver=resolver.Resolver(config.resolver))
    assert await again.report(DAY) == 0
    assert mails.recipients == ["reports@y.example"]


async def test_a_report_that_failed_is_sent_later_with_the_same_id(make: Make, mails: Mails, pool: Pool) -> None:
    reports = make()
    await noted(reports, OK)
    mails.trouble = Unavailable("the disk is full")
    assert await reports.report(DAY) == 1
    assert [tuple(row) for row in await pool.fetch(STATES)] == [("y.example", "failed")]

    mails.trouble = None
    assert await reports.report(DAY) == 0
    assert mails.reports[0].report_id == "2026-11-21.y.example@mail.sender.example"
    assert [tuple(row) for row in await pool.fetch(STATES)] == [("y.example", "sent")]


async def test_one_report_that_crashes_does_not_stop_the_others(make: Make, mails: Mails, dns: DnsServer) -> None:
    dns.add("_smtp._tls.a.example", "TXT", '"v=TLSRPTv1; rua=mailto:crash@a.example"')

    async def submit(sender: str, recipient: str, content: bytes) -> None:
        if recipient.startswith("crash"):
            raise RuntimeError("a bug")
        await mails(sender, recipient, content)

    reports = make(submit=submit)
    await noted(reports, OK, OK._replace(domain="a.example"))
    with structlog.testing.capture_logs() as logs:
        assert await reports.report(DAY) == 1

    assert mails.recipients == ["reports@y.example"]
    assert [line["domain"] for line in logs if line["event"] == "tls_report.crashed"] == ["a.example"]


async def test_hundreds_of_domains_are_all_asked(make: Make, mails: Mails, dns: DnsServer) -> None:
    reports = make()
    domains = [f"d{n:03}.example" for n in range(250)]
    for domain in domains[::50]:
        dns.add(f"_smtp._tls.{domain}", "TXT", f'"v=TLSRPTv1; rua=mailto:r@{domain}"')
    await noted(reports, *(OK._replace(domain=domain) for domain in domains))

    assert await reports.report(DAY) == 0
    assert mails.recipients == [f"r@{domain}" for domain in domains[::50]]


async def test_without_an_organization_nothing_is_kept_and_nothing_sent(
    make: Make, mails: Mails, config: Config, pool: Pool
) -> None:
    silent = msgspec.structs.replace(config, tls_reports=TlsReports())
    reports = make(config=silent)
    await noted(reports, OK)
    assert await pool.fetchval("SELECT count(*) FROM tls_results") == 0

    reports.reconfigure(config)
    await noted(reports, OK)
    reports.reconfigure(silent)
    assert await reports.report(DAY) == 0
    assert mails.sent == []


async def test_routes_of_ours_are_not_reported(make: Make, pool: Pool) -> None:
    await noted(make(), OK._replace(domain=""))
    assert await pool.fetchval("SELECT count(*) FROM tls_results") == 0


async def test_results_of_any_size_and_kind_are_kept(make: Make, mails: Mails) -> None:
    """The key of the table has room for 2,700 bytes."""
    noise = random.Random(2)
    lines = tuple(f"mx: {noise.randbytes(30).hex()}.example" for _ in range(500))
    odd = EXPIRED._replace(policy=lines, detail="\x00\udcff\r\n" + noise.randbytes(4000).hex(), mx="x" * 1000)
    reports = make()
    await noted(reports, odd)
    await reports.report(DAY)

    (policy,) = mails.reports[0].policies
    assert policy.policy.policy_string == lines[: len(policy.policy.policy_string)]
    assert len(policy.policy.policy_string) > 10
    assert "\x00" not in policy.failure_details[0].failure_reason_code


async def test_results_count_for_the_day_on_which_they_came(make: Make, clock: Clock, mails: Mails) -> None:
    reports = make()
    reports.note(OK, "")
    clock.advance(hours=12)
    reports.note(OK, "")
    reports.note(OK, "")
    await reports.flush()

    await reports.report(DAY)
    await reports.report(DAY + timedelta(days=1))
    counts = [report.policies[0].summary.total_successful_session_count for report in mails.reports]
    assert counts == [1, 2]


async def test_while_the_database_is_away_results_stay_in_memory(
    make: Make, database: str, tmp_path: Path, pool: Pool
) -> None:
    async with DatabaseProxy(database, tmp_path) as proxy:
        away = await connect_pool(proxy.url, min=1, max=2)
        reports = make(store=TlsResultStore(away))
        await noted(reports, OK)
        proxy.stop()
        with structlog.testing.capture_logs() as logs:
            await noted(reports, OK, EXPIRED)
        await proxy.start()
        await noted(reports, EXPIRED)
        await away.close()

    assert [line["event"] for line in logs] == ["tls_results.kept"]
    rows = await pool.fetch("SELECT result, sessions FROM tls_results ORDER BY result")
    assert [tuple(row) for row in rows] == [("certificate-expired", 2), ("success", 2)]


async def test_memory_for_different_results_is_bounded(make: Make, pool: Pool) -> None:
    reports = make()
    for n in range(tls_reports.MAX_NOTED + 3):
        reports.note(OK._replace(domain=f"d{n}.example", policy=()), "")
    reports.note(OK._replace(domain="d1.example", policy=()), "")
    with structlog.testing.capture_logs() as logs:
        await reports.flush()

    assert await pool.fetchval("SELECT sum(sessions) FROM tls_results") == tls_reports.MAX_NOTED + 1
    assert [(line["event"], line["sessions"]) for line in logs] == [("tls_results.dropped", 3)]


async def test_workers_that_write_the_same_results_at_once_lose_none(make: Make, pool: Pool) -> None:
    workers = [make() for _ in range(4)]
    outcomes = [OK._replace(domain=f"d{n}.example") for n in range(200)]
    for index, worker in enumerate(workers):
        for outcome in outcomes if index % 2 else reversed(outcomes):
            worker.note(outcome, "")
    await asyncio.gather(*(worker.flush() for worker in workers))

    assert await pool.fetchval("SELECT array_agg(DISTINCT sessions) FROM tls_results") == [4]


async def test_it_runs_by_itself_and_ends_with_everything_written(
    make: Make, mails: Mails, clock: Clock, pool: Pool
) -> None:
    old = datetime(2026, 10, 1, 12, tzinfo=UTC)
    reports = make()
    now, clock.now = clock.now, old
    await noted(reports, OK._replace(domain="old.example"))
    clock.now = now
    await noted(reports, OK)
    clock.now = datetime(2026, 11, 22, 4, 0, 1, tzinfo=UTC)  # later than the latest report

    running = asyncio.create_task(reports.run())
    async with asyncio.timeout(60):
        while not mails.sent or await pool.fetchval("SELECT count(*) FROM tls_results WHERE domain = 'old.example'"):
            await asyncio.sleep(0.01)
    reports.note(OK, "")
    await reports.stop()
    await asyncio.wait_for(running, 60)

    assert mails.recipients == ["reports@y.example"]
    assert await pool.fetchval("SELECT sessions FROM tls_results WHERE day = '2026-11-22'") == 1


# ---- by HTTPS


class Collector:
    """A web server that takes reports, with a certificate for mail.example.com."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, bytes]] = []
        self.status = 201
        self.port = 0

    async def take(self, request: web.Request) -> web.Response:
        self.posts.append((request.content_type, await request.read()))
        return web.Response(status=self.status, headers={"Location": "/elsewhere"})


@asynccontextmanager
async def collector(certificate: tuple[str, str]) -> AsyncIterator[Collector]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    found = Collector()
    app = web.Application()
    app.router.add_post("/{tail:.*}", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_certificate(tmp_path_factory.mktemp("https"))


@pytest.fixture
async def host(dns: DnsServer, certificate: tuple[str, str]) -> AsyncIterator[Collector]:
    dns.add("mail.example.com", "A", "127.0.0.1")
    async with collector(certificate) as found:
        dns.add("_smtp._tls.y.example", "TXT", f'"v=TLSRPTv1; rua=https://mail.example.com:{found.port}/v1"')
        yield found


async def test_a_report_is_posted(make: Make, host: Collector, certificate: tuple[str, str]) -> None:
    reports = make(tls=trusting(certificate[0]))
    await noted(reports, OK)
    assert await reports.report(DAY) == 0

    ((content_type, body),) = host.posts
    assert content_type == "application/tlsrpt+gzip"
    assert parse_json(body).policies[0].policy.policy_domain == "y.example"


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_a_post_that_is_not_taken_is_tried_again(
    make: Make, host: Collector, certificate: tuple[str, str], status: int
) -> None:
    reports = make(tls=trusting(certificate[0]))
    await noted(reports, OK)
    host.status = status
    assert await reports.report(DAY) == 1
    assert len(host.posts) == 1  # no redirect was followed

    host.status = 200
    assert await reports.report(DAY) == 0


async def test_nothing_is_posted_to_private_addresses(
    make: Make, host: Collector, dns: DnsServer, config: Config, certificate: tuple[str, str]
) -> None:
    dns.add("inside.example", "A", "127.0.0.1")
    strict = msgspec.structs.replace(config, delivery=Delivery())
    urls = [
        f"https://{name}:{host.port}/" for name in ("127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "inside.example")
    ]
    dns.add("_smtp._tls.y.example", "TXT", f'"v=TLSRPTv1; rua={",".join(urls)}"')
    reports = make(config=strict, tls=trusting(certificate[0]))
    await noted(reports, OK)
    with structlog.testing.capture_logs() as logs:
        assert await reports.report(DAY) == 1

    assert host.posts == []
    reasons = [line["reason"] for line in logs if line["event"] == "tls_report.failed"]
    mapped = ip_address("::ffff:127.0.0.1")  # written in another way from Python 3.13 on
    assert reasons[:2] == [f"{host} is an address of a private network" for host in ("127.0.0.1", mapped)]
    assert reasons[2].startswith("2130706433 ")
    assert "inside.example: only addresses of private networks" in reasons[3]


async def test_a_host_that_cannot_be_believed_gets_nothing(make: Make, host: Collector) -> None:
    reports = make()
    await noted(reports, OK)
    assert await reports.report(DAY) == 1
    assert host.posts == []


async def test_one_destination_that_takes_it_is_enough(
    make: Make, mails: Mails, host: Collector, dns: DnsServer, certificate: tuple[str, str]
) -> None:
    url = f"https://mail.example.com:{host.port}/"
    dns.add("_smtp._tls.y.example", "TXT", f'"v=TLSRPTv1; rua={url},mailto:r@y.example"')
    host.status = 500
    reports = make(tls=trusting(certificate[0]))
    await noted(reports, OK)
    assert await reports.report(DAY) == 0

    assert len(host.posts) == 1
    assert mails.recipients == ["r@y.example"]


# ---- through our own queue


async def test_a_mailed_report_is_accepted_by_our_own_relay(
    make: Make, database: str, tmp_path: Path, dns: DnsServer, pool: "asyncpg.Pool[Any]"
) -> None:
    async with running_relay(relay_config(tmp_path, dns), database) as relay:
        reports = make(submit=relay.relay.submitter.submit_report)
        await noted(reports, OK)
        assert await reports.report(DAY) == 0

        (row,) = await pool.fetch("SELECT content, sender, require_tls, total FROM messages")
        assert (row["sender"], row["require_tls"], row["total"]) == ("tls@mail.sender.example", False, 1)
        message = message_from_bytes(row["content"], policy=default)
        assert message["TLS-Report-Submitter"] == "mail.sender.example"
        assert message.get_all("TLS-Required") == ["No"]
