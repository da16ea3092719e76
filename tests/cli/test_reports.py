"""`mailerd reports` and `mailerd classify`, beside a real daemon; the reports are written into its database."""

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailerd import db
from mailerd.db.embedded import running_url
from mailerd.feedback.aggregates import AggregateStore
from mailerd.feedback.dmarc import DmarcRecord, DmarcReport
from mailerd.wire import tls_report
from tests.cli.conftest import document, lines
from tests.support.live import LiveDaemon, command
from tests.support.returned import bounce, complaint

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("mailerd")) as running:
        asyncio.run(fill(running))
        yield running


async def fill(daemon: LiveDaemon) -> None:
    url = running_url(daemon.data_dir)
    assert url is not None
    pool = await db.connect_pool(url, min=1, max=1)
    store = AggregateStore(pool)
    records = (
        DmarcRecord("192.0.2.1", 900, "none", "pass", "pass"),
        DmarcRecord("198.51.100.7", 100, "reject", "fail", "fail"),
    )
    day = timedelta(days=1)
    failure = tls_report.Failure(
        result_type="sts-webpki-invalid", failed_session_count=3, receiving_mx_hostname="mx.example.com"
    )
    policy = tls_report.PolicyReport(
        policy=tls_report.Policy(policy_type="sts", policy_domain="example.com"),
        summary=tls_report.Summary(total_successful_session_count=97, total_failure_session_count=3),
        failure_details=(failure,),
    )
    async with pool.acquire() as connection, connection.transaction():
        for number, domain in enumerate(("example.com", "other.example")):
            report = DmarcReport("provider", f"r{number}", domain, NOW - day, NOW, records=records)
            await store.add_dmarc(report, NOW, connection)
        dates = tls_report.DateRange(start_datetime=NOW - day, end_datetime=NOW)
        await store.add_tls(
            tls_report.Report(organization_name="provider", date_range=dates, report_id="t1", policies=(policy,)),
            NOW,
            connection,
        )
    await pool.close()


def test_dmarc_shows_who_sends_as_a_domain_and_how_much_of_it_passes(daemon):
    first, second = lines(daemon.command("reports", "dmarc", "--domain", "Example.COM", "--json"))

    assert (first["source_ip"], first["messages"], first["passed"], first["rejected"]) == ("192.0.2.1", 900, 900, 0)
    assert (second["source_ip"], second["passed"], second["rejected"]) == ("198.51.100.7", 0, 100)
    assert len(lines(daemon.command("reports", "dmarc", "--json"))) == 4
    drawn = daemon.command("reports", "dmarc").out
    assert "example.com" in drawn
    assert "██████████" in drawn


def test_tls_shows_failures_before_successes(daemon):
    failure, success = lines(daemon.command("reports", "tls", "--json"))

    assert (failure["result"], failure["sessions"], failure["mx"]) == ("sts-webpki-invalid", 3, "mx.example.com")
    assert (success["result"], success["sessions"]) == ("success", 97)
    assert "sts-webpki-invalid" in daemon.command("reports", "tls", "--domain", "example.com").out


def test_without_reports_it_says_where_they_would_come_from(daemon):
    finished = daemon.command("reports", "tls", "--domain", "none.example")

    assert finished.status == 0
    assert "No TLS report about none.example" in finished.err


def test_classify_says_what_a_mail_is_and_what_follows(daemon, tmp_path):
    bounced, complained = tmp_path / "bounce.eml", tmp_path / "complaint.eml"
    bounced.write_bytes(bounce())
    complained.write_bytes(complaint(recipient="bob@example.net"))

    first, second = lines(daemon.command("classify", str(bounced), str(complained), "--json"))

    assert (first["file"], first["kind"], first["reporter"]) == (str(bounced), "bounce", "mx.example.net")
    recipient = first["recipients"][0]
    assert (recipient["address"], recipient["class"], recipient["action"]) == (
        "bob@example.net",
        "invalid_recipient",
        "suppress",
    )
    assert (second["kind"], second["recipients"][0]["class"]) == ("complaint", "complaint")
    assert "invalid_recipient" in daemon.command("classify", str(bounced)).out


def test_classify_reads_standard_input_and_needs_no_configuration(daemon):
    away = "Subject: Out of office\r\nAuto-Submitted: auto-replied\r\n\r\nI am away.\r\n"

    assert document(daemon.command("classify", "-", "--json", given=away))["kind"] == "auto_reply"


MINE = """\
rules:
  - {id: mine, class: policy, match: [no such user], samples: [550 no such user]}
"""


def test_classify_goes_by_the_verdict_rules_of_the_configuration(daemon, tmp_path):
    mail, config = tmp_path / "bounce.eml", tmp_path / "mailerd.yaml"
    mail.write_bytes(bounce())
    (tmp_path / "mine.yaml").write_text(MINE)
    config.write_text("verdicts: {files: [builtin, mine.yaml]}\n")

    told = document(command("classify", str(mail), "--json", "--config", str(config)))

    assert (told["recipients"][0]["class"], told["recipients"][0]["rule"]) == ("policy", "mine")


def test_classify_works_where_there_is_no_configuration_file(tmp_path):
    mail = tmp_path / "bounce.eml"
    mail.write_bytes(bounce())

    environ = {name: value for name, value in os.environ.items() if name != "MAILERD_CONFIG"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = command("classify", str(mail), "--json", environ=environ, cwd=tmp_path)

    assert document(done)["recipients"][0]["class"] == "invalid_recipient"


def test_classify_says_which_file_cannot_be_read(daemon):
    finished = daemon.command("classify", "/no/such/file.eml")

    assert finished.status == 66
    assert "/no/such/file.eml: No such file" in finished.err
