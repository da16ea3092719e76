"""Aggregate reports from somebody who means harm: what one mail may cost, and what a day may bring."""

import gzip
import io
import json
import random
import time
import tracemalloc
import zipfile
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from mailerd.config import Config
from mailerd.config.tree import SendingDomain, Tenant
from mailerd.config.values import Hostname
from mailerd.db import connect_pool
from mailerd.feedback import aggregates
from mailerd.feedback.aggregates import AggregateStore, dmarc_reports, tls_reports
from mailerd.feedback.attachments import MAX_ATTACHMENTS, documents
from mailerd.feedback.dmarc import MAX_RECORDS, DmarcRecord, DmarcReport, parse_dmarc
from mailerd.feedback.relevance import Relevance
from mailerd.wire import tls_report
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock
from tests.support.returned import ReturningWorld, returning_world
from tests.support.scripted_mx import ScriptedMx

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEAD = (
    "<report_metadata><org_name>o</org_name><report_id>{id}</report_id><date_range><begin>{begin}</begin>"
    "<end>{begin}</end></date_range></report_metadata><policy_published><domain>{domain}</domain></policy_published>"
)
RECORD = (
    "<record><row><source_ip>192.0.2.1</source_ip><count>1</count><policy_evaluated><disposition>none</disposition>"
    "<dkim>pass</dkim><spf>pass</spf></policy_evaluated></row><identifiers><header_from>d.example</header_from>"
    "</identifiers><auth_results><dkim><domain>d.example</domain><selector>s</selector><result>pass</result></dkim>"
    "<spf><domain>d.example</domain><result>pass</result></spf></auth_results></record>"
)


def xml(inner: str = RECORD, *, domain: str = "d.example", begin: object = 1_790_000_000, id_: str = "r") -> bytes:
    return f"<feedback>{HEAD.format(id=id_, begin=begin, domain=domain)}{inner}</feedback>".encode()


def zipped(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("report.xml", data)
    return file.getvalue()


def packed(data: bytes) -> bytes:
    return zipped(gzip.compress(data))


def mail(*attachments: bytes) -> bytes:
    parts = [b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b64encode(each) + b"\r\n" for each in attachments]
    return b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"".join(parts) + b"--b--\r\n"


def nested(leaf: bytes, depth: int, name: bytes = b"b") -> bytes:
    if not depth:
        return b"Content-Transfer-Encoding: base64\r\n\r\n" + b64encode(leaf) + b"\r\n"
    parts = [b"--" + name + b"\r\n" + nested(leaf, depth - 1, name + b"%d" % n) for n in range(20)]
    return b"Content-Type: multipart/mixed; boundary=" + name + b"\r\n\r\n" + b"".join(parts) + b"--" + name + b"--\r\n"


COSTLY: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: nested(packed(b"\0" * 19_999_000), 2),
    "zeros that begin well": lambda: mail(*[packed(b"<" + b"\0" * 19_999_000)] * 20),
    "records": lambda: mail(*[packed(xml(RECORD * 40_000))] * 5),
    "long records": lambda: mail(packed(xml(RECORD.replace("192.0.2.1", "1" * 600) * 17_000))),
    "elements": lambda: mail(packed(xml("<x/>" * 4_900_000))),
    "elements in a record": lambda: mail(packed(xml("<record>" + "<x>y</x>" * 2_000_000 + "</record>"))),
    "text": lambda: mail(packed(xml(f"<record><row><source_ip>{'é' * 9_900_000}</source_ip></row></record>"))),
    "text in pieces": lambda: mail(packed(xml(f"<record><row><count>{'<!---->1' * 2_400_000}</count></row></record>"))),
    "entities": lambda: mail(packed(xml(f"<record><row><count>{'&amp;' * 3_900_000}</count></row></record>"))),
    "depth": lambda: mail(packed(b"<a>" * 6_000_000)),
    "attributes": lambda: mail(packed(b"<a " + b" ".join(b'a%d=""' % n for n in range(1_000_000)) + b"/>")),
    "attributes of many": lambda: mail(packed(xml("<x a='' b='' c='' d=''/>" * 800_000))),
    "comment": lambda: mail(packed(b"<a><!--" + b"-x" * 9_900_000)),
    "instructions": lambda: mail(packed(xml("<?a?>" * 3_900_000))),
    "wrong charset": lambda: mail(packed(b"<feedback>\xff" + b"\xe9<x/>" * 3_900_000)),
    "lists": lambda: mail(packed(b'{"policies":' + b"[" * 9_000_000)),
    "objects": lambda: mail(packed(b'{"policies":[' + b"{}," * 3_000_000)),
    "failures": lambda: mail(packed(failing(60_000))),
    "parts": lambda: b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 2_000_000,
    "empty multiparts": lambda: (
        b"Content-Type: multipart/mixed; boundary=b\n\n"
        + b"--b\nContent-Type: multipart/mixed; boundary=c\n\n" * 300_000
    ),
    "lines like boundaries": lambda: b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--bx\n" * 4_000_000,
    "no base64": lambda: b"Content-Transfer-Encoding: base64\r\n\r\n" + b"a " * 10_000_000,
    "entries": lambda: mail(entries(60_000)),
}


def failing(number: int) -> bytes:
    failure = {"result-type": "a", "failed-session-count": 1, "sending-mta-ip": "192.0.2.1"}
    return json.dumps(
        {
            "organization-name": "o",
            "report-id": "r",
            "date-range": {"start-datetime": "2026-11-21T00:00:00Z", "end-datetime": "2026-11-21T23:59:59Z"},
            "policies": [{"policy": {"policy-domain": "d.example"}, "failure-details": [failure] * number}],
        }
    ).encode()


def entries(number: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for n in range(number):
            archive.writestr(f"d{n}/", b"")
    return file.getvalue()


@pytest.mark.parametrize("what", COSTLY)
def test_no_mail_takes_more_than_a_second_to_read(what: str) -> None:
    content = COSTLY[what]()
    begun = time.thread_time()
    dmarc = dmarc_reports(content)
    spent = time.thread_time() - begun
    begun = time.thread_time()
    tls = tls_reports(content)

    assert spent < 3  # a second, on a machine that has nothing else to do
    assert time.thread_time() - begun < 3
    assert sum(len(report.records) for report in dmarc) <= MAX_RECORDS
    assert sum(len(each.failure_details) for report in tls for each in report.policies) <= aggregates.MAX_FAILURES


@pytest.mark.parametrize("what", ["long records", "attributes", "attributes of many", "objects", "elements"])
def test_no_mail_takes_much_memory_to_read(what: str) -> None:
    content = COSTLY[what]()
    tracemalloc.start()
    kept = dmarc_reports(content), tls_reports(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert kept is not None
    assert peak < 120_000_000


def test_only_so_many_attachments_and_bytes_of_a_mail_are_unpacked() -> None:
    assert len(list(documents(mail(*[packed(xml())] * 20)))) == MAX_ATTACHMENTS
    assert len(list(documents(mail(*[packed(xml("x" * 9_000_000))] * 4)))) == 2


def test_reports_say_that_they_were_cut() -> None:
    first, second = dmarc_reports(mail(packed(xml(RECORD * 19_999)), packed(xml(RECORD * 2))))
    (cut,) = tls_reports(mail(gzip.compress(failing(aggregates.MAX_FAILURES + 1))))

    assert (len(first.records), first.truncated) == (19_999, False)
    assert (len(second.records), second.truncated) == (1, True)
    assert isinstance(cut, tls_report.PartialReport)


def test_a_boundary_has_its_line_to_itself() -> None:
    inner = b"Content-Type: multipart/mixed; boundary=bxa\r\n\r\n--bxa\r\n\r\n" + xml() + b"\r\n--bxa--\r\n"
    content = b"Content-Type: multipart/mixed; boundary=bx\r\n\r\n--bx\r\n" + inner + b"--bx--\r\n"

    assert [report.report_id for report in dmarc_reports(content)] == ["r"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_broken_archives_and_documents_are_unreadable_and_nothing_else(method: int) -> None:
    chance = random.Random(method)
    for good in (zipped(xml(), method), gzip.compress(xml()), xml(), failing(2)):
        for _ in range(400):
            bad = bytearray(good)
            for _ in range(chance.choice((1, 2, 5))):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            content = mail(bytes(bad))
            dmarc_reports(content)
            tls_reports(content)


def test_an_archive_whose_sizes_come_after_its_file_is_read() -> None:
    class Stream(io.RawIOBase):
        """What cannot be gone back in."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.data += bytes(data)  # type: ignore[call-overload]
            return len(data)  # type: ignore[arg-type]

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("report.xml", xml())

    assert len(dmarc_reports(mail(stream.data))) == 1


@pytest.mark.parametrize("begin", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "1e300", "nan"])
def test_impossible_dates_make_a_report_unreadable(begin: str) -> None:
    with pytest.raises(ValueError):
        parse_dmarc(xml(begin=begin))


# ---- whose reports, and how many


def config(**changes: object) -> Config:
    settings: dict[str, object] = {
        "domains": {"shop.example.com": SendingDomain(return_path=Hostname("bounce.example.net"))},
        "tenants": {"t": Tenant(return_path=Hostname("returns.example.org"))},
    }
    return Config(**settings | changes)  # type: ignore[arg-type]


def about(domain: str, begins_at: datetime = NOW - timedelta(days=1), ends_at: datetime = NOW) -> DmarcReport:
    return DmarcReport("o", "r", domain, begins_at, ends_at)


@pytest.mark.parametrize(
    ("domain", "kept"),
    [
        ("shop.example.com", True),
        ("EXAMPLE.com.", True),
        ("mail.shop.example.com", True),
        ("bounce.example.net", True),
        ("returns.example.org", True),
        ("other.example.com", False),
        ("com", False),
        ("example.edu", False),
        ("evilshop.example.com", False),
        ("", False),
    ],
)
def test_reports_about_our_domains_are_kept(domain: str, kept: bool) -> None:
    assert (Relevance(config()).dmarc(about(domain), NOW) is not None) is kept
    assert Relevance(config(domains={})).dmarc(about(domain), NOW) is None


@pytest.mark.parametrize(
    ("begins", "lasts", "kept"),
    [(-1, 1, True), (0.9, 0, True), (1.1, 0, False), (-1, 3, False), (-364, 1, True), (-366, 1, False)],
)
def test_reports_about_our_time_are_kept(begins: float, lasts: float, kept: bool) -> None:
    begin = NOW + timedelta(days=begins)
    report = about("shop.example.com", begin, begin + timedelta(days=lasts))

    assert (Relevance(config()).dmarc(report, NOW) is not None) is kept


def test_of_a_tls_report_our_policies_are_kept() -> None:
    document = json.loads(failing(1))
    document["policies"].append({"policy": {"policy-domain": "shop.example.com"}})
    (report,) = tls_reports(mail(json.dumps(document).encode()))
    kept = Relevance(config()).tls(report, NOW)

    assert kept is not None
    assert [each.policy.policy_domain for each in kept.policies] == ["shop.example.com"]


@pytest.fixture
async def pool(database: str) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    async with await connect_pool(database) as pool:
        yield pool


async def test_a_day_brings_so_many_rows_and_no_more(
    pool: "asyncpg.Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregates, "MAX_ROWS_A_DAY", 10)
    records = (DmarcRecord("192.0.2.1", 1, "none", "pass", "pass"),) * 4

    async def add(store: AggregateStore, id_: str, now: datetime) -> bool:
        report = DmarcReport("o", id_, "d.example", NOW, NOW, records=records)
        async with pool.acquire() as connection, connection.transaction():
            return await store.add_dmarc(report, now, connection)

    store = AggregateStore(pool)
    assert [await add(store, id_, NOW) for id_ in ("a", "a", "a", "b", "c", "a")] == [
        True, False, False, True, False, False,
    ]  # fmt: skip
    assert not await add(AggregateStore(pool), "d", NOW)  # another process
    assert await add(store, "c", NOW + timedelta(days=1))
    assert await pool.fetchval("SELECT count(*) FROM dmarc_records") == 12


async def test_reports_are_forgotten_by_when_they_came_whatever_they_say(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    store, far = AggregateStore(pool), datetime(9000, 1, 1, tzinfo=UTC)
    async with pool.acquire() as connection, connection.transaction():
        assert await store.add_dmarc(DmarcReport("o", "r", "d.example", far, far, truncated=True), NOW, connection)
    assert await pool.fetchval("SELECT truncated FROM dmarc_reports")
    await store.forget(NOW + timedelta(days=365))

    assert await pool.fetchval("SELECT count(*) FROM dmarc_reports") == 0


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[ReturningWorld]:
    async with (
        DnsServer() as dns,
        ScriptedMx("127.0.0.2", name="mx.example.net") as mx,
        returning_world(database, dns, mx, tmp_path, Clock()) as world,
    ):
        yield world


async def test_only_reports_about_us_come_into_the_database(world: ReturningWorld) -> None:
    begin = int(world.clock().timestamp()) - 86_400
    reports = [xml(domain=domain, begin=begin, id_=domain) for domain in ("sender.example", "not-ours.example")]
    reports.append(xml(domain="sender.example", begin="9000-01-01", id_="far"))
    await world.receive(mail(*reports), "dmarc@bounce.sender.example", sender="x@evil.example")

    assert [row["domain"] for row in await world.pool.fetch("SELECT domain FROM dmarc_reports")] == ["sender.example"]


# ---- TLS reports as they are written


def read(**changes: object) -> tls_report.Report:
    return tls_report.parse_json(json.dumps(json.loads(failing(1)) | changes).encode())


def test_what_vendors_leave_out_or_write_otherwise_is_understood() -> None:
    policies = [
        {"policy": {"policy-type": "STS", "policy-domain": "d.example", "policy-string": None, "mx-host": None}},
        {"policy": {"policy-type": "no-policy-found"}, "summary": None, "failure-details": None},
        {
            "policy": {"policy-type": "sts", "policy-domain": "d.example", "policy-string": "version: STSv1"},
            "summary": {"total-successful-session-count": "12", "total-failure-session-count": 3.0},
            "failure-details": [{"result-type": "STS-Policy-Fetch-Error", "failed-session-count": "3"}, None],
        },
        {"policy": {"policy-domain": "d.example"}, "failure-details": {"result-type": "x"}, "summary": {}},
    ]
    report = read(**{"contact-info": None, "report-id": 17, "policies": policies})

    assert (report.contact_info, report.report_id) == ("", "17")
    sts, none, counted, single = report.policies
    assert (sts.policy.policy_type, sts.policy.policy_string) == ("sts", ())
    assert (none.policy.policy_domain, none.failure_details) == ("", ())
    assert counted.policy.policy_string == ("version: STSv1",)
    assert counted.summary == tls_report.Summary(total_successful_session_count=12, total_failure_session_count=3)
    assert [(each.result_type, each.failed_session_count) for each in counted.failure_details] == [
        ("sts-policy-fetch-error", 3)
    ]
    assert len(single.failure_details) == 1


def test_a_policy_without_a_domain_is_about_that_of_the_mail() -> None:
    document = json.loads(failing(1))
    document["policies"] = [{"policy": {"policy-type": "no-policy-found"}, "failure-details": []}]
    content = b"TLS-Report-Domain: d.example\r\n" + mail(json.dumps(document).encode())
    (report,) = tls_reports(content)

    assert report.policies[0].policy.policy_domain == "d.example"


@pytest.mark.parametrize(
    "document",
    [
        b'{"x":' + b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"policies":' + b"[" * 200_000,
        failing(1).replace(b"2026-11-21T00:00:00Z", b"9999-12-31T23:59:59-23:00"),
        failing(1).replace(b'"2026-11-21T00:00:00Z"', b"1e300"),
        b'{"policies":[' + b"{}," * 500_000,
    ],
    ids=["lists", "objects", "policies", "date", "seconds", "values"],
)
def test_no_json_is_more_than_unreadable(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a report|larger"):
        tls_report.parse_json(document)
    assert tls_reports(b"\r\n" + document) == []
