"""DMARC and TLS reports: as several programs write them, and as nobody should."""

import gzip
import io
import time
import tracemalloc
import zipfile
import zlib
from base64 import b64encode
from datetime import UTC, datetime

import asyncpg
import pytest

from mailerd.db import connect_pool
from mailerd.feedback.aggregates import AggregateStore, dmarc_reports, tls_reports
from mailerd.feedback.attachments import MAX_UNPACKED, unpack
from mailerd.feedback.dmarc import MAX_RECORDS, parse_dmarc
from mailerd.wire import tls_report

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RECORD = """<record><row><source_ip>192.0.2.1</source_ip><count>7</count><policy_evaluated>
<disposition>none</disposition><dkim>pass</dkim><spf>fail</spf>
<reason><type>forwarded</type><comment>looks it</comment></reason></policy_evaluated></row>
<identifiers><envelope_from>Bounce.Example.com</envelope_from><header_from>Example.COM</header_from></identifiers>
<auth_results><dkim><domain>example.com</domain><selector>s1</selector><result>pass</result></dkim>
<dkim><domain>esp.example</domain><result>fail</result></dkim>
<spf><domain>bounce.example.com</domain><result>softfail</result></spf></auth_results></record>"""
HEAD = """<report_metadata><org_name>google.example</org_name><email>noreply@google.example</email>
<report_id>123</report_id><date_range><begin>1700000000</begin><end>1700086399</end></date_range></report_metadata>
<policy_published><domain>Example.com</domain><adkim>r</adkim><p>reject</p><sp>none</sp><pct>100</pct></policy_published>"""
PLAIN = f'<?xml version="1.0" encoding="UTF-8" ?>\n<feedback>{HEAD}{RECORD}{RECORD}</feedback>'.encode()


def zipped(data: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("report.xml",):
            archive.writestr(name, data)
    return file.getvalue()


def mail(attachment: bytes, type_: str = "application/gzip", *, encoded: bool = True) -> bytes:
    """In a multipart, in base64, as most are sent."""
    body = b64encode(attachment) if encoded else attachment
    encoding = b"base64" if encoded else b"binary"
    return b"\r\n".join(
        [
            b"Subject: Report domain: example.com Submitter: google.example Report-ID: 123",
            b'Content-Type: multipart/mixed; boundary="=_r"',
            b"",
            b"--=_r",
            b"Content-Type: text/plain",
            b"",
            b"This is a report.",
            b"--=_r",
            b"Content-Type: " + type_.encode(),
            b"Content-Transfer-Encoding: " + encoding,
            b"",
            body,
            b"--=_r--",
            b"",
        ]
    )


def test_every_field_of_a_dmarc_report_is_read():
    report = parse_dmarc(PLAIN)

    assert (report.org, report.report_id, report.domain) == ("google.example", "123", "example.com")
    assert report.policy == "p=reject sp=none adkim=r pct=100"
    assert report.begins_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    first = report.records[0]
    assert (first.source_ip, first.messages, first.disposition) == ("192.0.2.1", 7, "none")
    assert (first.dkim, first.spf, first.passed) == ("pass", "fail", True)
    assert (first.header_from, first.envelope_from) == ("example.com", "bounce.example.com")
    assert first.dkim_results == "example.com/s1 pass, esp.example fail"
    assert first.spf_results == "bounce.example.com softfail"
    assert first.reasons == "forwarded looks it"


@pytest.mark.parametrize(
    "content",
    [
        mail(gzip.compress(PLAIN)),
        mail(zipped(PLAIN), "application/zip"),
        mail(zipped(PLAIN), "application/octet-stream"),
        mail(zipped(gzip.compress(PLAIN), "report.xml.gz"), "application/x-zip-compressed"),
        mail(zipped(PLAIN, "__MACOSX/._report.xml", "report.xml"), "application/zip"),
        mail(PLAIN, "text/xml", encoded=False),
        mail(b"\xef\xbb\xbf" + PLAIN, "text/xml"),
        b"Content-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b64encode(zipped(PLAIN)),
    ],
)
def test_however_it_is_packed(content):
    (report,) = dmarc_reports(content)

    assert len(report.records) == 2


def test_namespaces_missing_elements_and_odd_values_are_understood():
    text = (
        '<feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0"><report_metadata><org_name> </org_name>'
        "<email>d@odd.example</email><report_id> 9\n</report_id><date_range><begin> 1700000000.0 </begin>"
        "<end>2023-11-15T00:00:00Z</end></date_range></report_metadata>"
        "<policy_published><domain>example.com.</domain><p>none</p></policy_published>"
        "<record><row><source_ip>[2001:DB8::1]</source_ip><count>two</count><policy_evaluated/></row></record>"
        "<record/></feedback>"
    )
    report = parse_dmarc(text.encode())

    assert (report.org, report.report_id, report.domain) == ("odd.example", "9", "example.com")
    assert report.ends_at == datetime(2023, 11, 15, tzinfo=UTC)
    assert (report.records[0].source_ip, report.records[0].messages) == ("2001:db8::1", 1)
    assert (report.records[1].dkim, report.records[1].disposition) == ("fail", "none")


def test_an_encoding_that_lies_is_forgiven():
    report = parse_dmarc(PLAIN.replace(b"google.example</org", b"M\xfcller</org"))

    assert report.org == "Müller"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<feedback>",
        b"<html><body>no</body></html>",
        b'<!DOCTYPE a [<!ENTITY x "xx">]><feedback>&x;</feedback>',
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x"><feedback/>',
        b'<?xml version="1.0" encoding="no-such"?><feedback/>',
        b"<a>" * 1_000_000,
        b"<feedback>" + b"<x/>" * 1_000_000 + b"</feedback>",
        PLAIN.replace(b"<domain>Example.com</domain><adkim>", b"<adkim>"),
        PLAIN[:600],
    ],
)
def test_what_is_no_report_is_refused_in_bounded_time_and_memory(document):
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(ValueError):
        parse_dmarc(document)
    assert time.perf_counter() - begun < 10
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()


def test_of_endless_records_the_first_are_read():
    report = parse_dmarc(f"<feedback>{HEAD}{'<record/>' * (MAX_RECORDS + 1)}</feedback>".encode())

    assert (len(report.records), report.truncated) == (MAX_RECORDS, True)


def bomb(size: int) -> bytes:
    """Gzip that unpacks to so many bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b"<" * 1_000_000
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


@pytest.mark.parametrize(
    "packed",
    [
        bomb(100_000_000),
        zipped(b"<" * (MAX_UNPACKED + 1)),
        gzip.compress(bomb(100_000_000)),
        zipped(PLAIN, "one.xml", "two.xml"),
        gzip.compress(PLAIN)[:-20],
        zipped(PLAIN)[:300],
        gzip.compress(gzip.compress(PLAIN)),
        zipped(zipped(PLAIN)),
        gzip.compress(zipped(PLAIN)),
        b"PK\x03\x04" + b"\xff" * 1000,
        b"\x1f\x8b" + b"\xff" * 1000,
        b"MZ" + b"\0" * 1000,
        b"",
    ],
)
def test_bombs_and_broken_archives_unpack_to_nothing(packed):
    tracemalloc.start()
    assert unpack(packed) is None
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


def test_parts_in_parts_without_end_are_left_alone():
    deep = b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n) for n in range(2000))
    many = b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + b"--b\r\n\r\nx\r\n" * 300_000
    begun = time.perf_counter()
    assert dmarc_reports(deep) == []
    assert dmarc_reports(many) == []
    assert time.perf_counter() - begun < 2


def tls_json(**changes: object) -> tls_report.Report:
    policy = tls_report.PolicyReport(
        policy=tls_report.Policy(policy_type="sts", policy_domain="Example.com", mx_host="mx.example.com"),
        summary=tls_report.Summary(total_successful_session_count=90, total_failure_session_count=10),
        failure_details=(
            tls_report.Failure(
                result_type="certificate-expired",
                failed_session_count=10,
                sending_mta_ip="192.0.2.9",
                receiving_mx_hostname="MX.example.com.",
                additional_information="see \x1b[31mhere",
            ),
        ),
    )
    fields: dict[str, object] = {
        "organization_name": "Peer",
        "date_range": tls_report.DateRange(start_datetime=NOW, end_datetime=NOW),
        "report_id": "t1",
        "policies": (policy,),
    }
    return tls_report.Report(**fields | changes)


def test_our_own_tls_report_can_be_read():
    content = tls_report.build_mail(
        tls_json(),
        policy_domain="example.com",
        sender="tls@peer.example",
        recipient="tlsrpt@mail.example.com",
        now=NOW,
        message_id="1@peer.example",
    )

    assert [report.report_id for report in tls_reports(content)] == ["t1"]
    assert dmarc_reports(content) == []


async def test_reports_are_kept_once_and_summed_up(database: str):
    pool = await connect_pool(database)
    store = AggregateStore(pool)
    try:
        async with pool.acquire() as connection, connection.transaction():
            kept = [await store.add_dmarc(parse_dmarc(PLAIN), NOW, connection) for _ in range(2)]
            kept += [await store.add_tls(tls_json(), NOW, connection) for _ in range(2)]
        assert kept == [True, False, True, False]
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)
        (source,) = await store.dmarc_sources(long_ago, None, 10)
        assert (source.messages, source.passed, source.dkim, source.spf, source.rejected) == (14, 14, 14, 0, 0)
        assert source.reporters == ("google.example",)
        failure, success = await store.tls_results(long_ago, "example.com", 10)
        assert (failure.result, failure.sessions, failure.mx) == ("certificate-expired", 10, "mx.example.com")
        assert failure.detail == "see \N{REPLACEMENT CHARACTER}[31mhere"
        assert (success.result, success.sessions) == ("success", 90)
        assert await store.tls_results(long_ago, "other.example", 10) == []
        await store.forget(NOW.replace(year=2030))
        assert await store.dmarc_sources(long_ago, None, 10) == []
        assert await pool.fetchval("SELECT count(*) FROM tls_report_failures") == 0
    finally:
        await pool.close()


async def test_nothing_that_a_report_says_can_break_the_transaction(database: str):
    pool = await connect_pool(database)
    odd = tls_json(organization_name="a\0b\ud800", report_id="x" * 10_000)
    huge = PLAIN.replace(b"<count>7", b"<count>99999999999999999999").replace(b"192.0.2.1", b"x" * 5000)
    try:
        async with pool.acquire() as connection, connection.transaction():
            assert await AggregateStore(pool).add_tls(odd, NOW, connection)
            assert await AggregateStore(pool).add_dmarc(parse_dmarc(huge), NOW, connection)
    except asyncpg.PostgresError as error:
        pytest.fail(str(error))
    finally:
        await pool.close()
