import gzip
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import msgspec
import pytest

from mailerd.wire.tls_report import (
    DateRange,
    Destination,
    Failure,
    Policy,
    PolicyReport,
    Report,
    Summary,
    build_json,
    build_mail,
    parse_json,
    parse_record,
)

# The document of RFC 8460 appendix B, with its members and values.
APPENDIX_B: dict[str, Any] = {
    "organization-name": "Company-X",
    "date-range": {"start-datetime": "2016-04-01T00:00:00Z", "end-datetime": "2016-04-01T23:59:59Z"},
    "contact-info": "sts-reporting@company-x.example",
    "report-id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
    "policies": [
        {
            "policy": {
                "policy-type": "sts",
                "policy-string": ["version: STSv1", "mode: testing", "mx: *.mail.company-y.example", "max_age: 86400"],
                "policy-domain": "company-y.example",
                "mx-host": ["*.mail.company-y.example"],
            },
            "summary": {"total-successful-session-count": 5326, "total-failure-session-count": 303},
            "failure-details": [
                {
                    "result-type": "certificate-expired",
                    "sending-mta-ip": "2001:db8:abcd:0012::1",
                    "receiving-mx-hostname": "mx1.mail.company-y.example",
                    "failed-session-count": 100,
                },
                {
                    "result-type": "starttls-not-supported",
                    "sending-mta-ip": "2001:db8:abcd:0013::1",
                    "receiving-mx-hostname": "mx2.mail.company-y.example",
                    "receiving-ip": "203.0.113.56",
                    "failed-session-count": 200,
                    "additional-information": "https://reports.company-x.example/report_info?id=5065427c-23d3#StarttlsNotSupported",
                },
                {
                    "result-type": "validation-failure",
                    "sending-mta-ip": "198.51.100.62",
                    "receiving-ip": "203.0.113.58",
                    "receiving-mx-hostname": "mx-backup.mail.company-y.example",
                    "failed-session-count": 3,
                    "failure-reason-code": "X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED",
                },
            ],
        }
    ],
}


def example() -> Report:
    return Report(
        organization_name="Büro X",
        contact_info="tls@x.example",
        report_id="2026-11-21.y.example@mail.x.example",
        date_range=DateRange(
            start_datetime=datetime(2026, 11, 21, tzinfo=UTC),
            end_datetime=datetime(2026, 11, 21, 23, 59, 59, tzinfo=UTC),
        ),
        policies=(
            PolicyReport(
                policy=Policy(policy_type="no-policy-found", policy_domain="y.example"),
                summary=Summary(total_successful_session_count=1, total_failure_session_count=2),
                failure_details=(Failure(result_type="certificate-expired", failed_session_count=2),),
            ),
        ),
    )


# ---- the record


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["v=TLSRPTv1;rua=mailto:reports@example.com"], ["reports@example.com"]),
        (
            ["v=TLSRPTv1 ; x=1; rua = https://r.example/v1/tlsrpt , mailto:a%2bb@EXAMPLE.com?subject=x ;"],
            ["https://r.example/v1/tlsrpt", "a+b@example.com"],
        ),
        (["v=spf1 -all", "v=TLSRPTv1; rua=mailto:a@b.example"], ["a@b.example"]),
        (["v=TLSRPTv1; rua=mailto:a@b.example,mailto:a@b.example"], ["a@b.example"]),
        (["v=TLSRPTv1; rua=mailto:a@b.example"] * 2, []),  # more than one is none
        (["v=TLSRPTv12; rua=mailto:a@b.example"], []),
        (["v=TLSRPTv1"], []),
        (["rua=mailto:a@b.example; v=TLSRPTv1;"], []),
        (["v=TLSRPTv1; rua="], []),
        (["v=TLSRPTv1; rua=http://r.example/, ftp://r.example, ann@b.example, mailto:, mailto:ann"], []),
        (["v=TLSRPTv1; rua=mailto:a%0d%0aBcc:x@b.example, mailto:a%ff@b.example, mailto:%c3%a9@b.example"], []),
        (["v=TLSRPTv1; rua=https://u:p@r.example/, https:///x, https://r.example:0/, https://[::1/"], []),
        (
            ["v=TLSRPTv1; rua=" + ",".join(f"mailto:a{n}@b.example" for n in range(9))],
            [f"a{n}@b.example" for n in range(5)],
        ),
        ([], []),
    ],
)
def test_a_record_says_where_reports_go(texts: list[str], expected: list[str]) -> None:
    assert [destination.target for destination in parse_record(texts)] == expected


def test_destinations_know_their_kind() -> None:
    assert parse_record(["v=TLSRPTv1; rua=HTTPS://r.example/,MAILTO:a@b.example"]) == (
        Destination("https", "HTTPS://r.example/"),
        Destination("mailto", "a@b.example"),
    )


# ---- the document


def test_the_example_of_the_rfc_is_read_and_written_with_the_same_members() -> None:
    report = parse_json(msgspec.json.encode(APPENDIX_B))

    assert report.policies[0].failure_details[1].receiving_ip == "203.0.113.56"
    assert msgspec.json.decode(gzip.decompress(build_json(report))) == APPENDIX_B


def test_what_is_written_is_read_back() -> None:
    data = build_json(example())

    assert parse_json(data) == example()
    assert build_json(example()) == data
    assert b'"mx-host"' not in gzip.decompress(data)


def test_one_host_without_a_list_around_it_is_read_too() -> None:
    policy = APPENDIX_B["policies"][0]
    altered = APPENDIX_B | {"policies": [policy | {"policy": policy["policy"] | {"mx-host": "mx.y.example"}}]}

    assert parse_json(msgspec.json.encode(altered)).policies[0].policy.mx_host == "mx.y.example"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b"\x1f\x8bnonsense",
        build_json(example())[:-9],
        gzip.compress(b" " * 20_000_000),
        b" " * 10_000_001,
    ],
    ids=["empty", "object", "list", "latin", "no gzip", "cut", "bomb", "large"],
)
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not|cut off|larger"):
        parse_json(data)


# ---- the mail


def test_the_mail_is_as_the_rfc_has_it() -> None:
    content = build_mail(
        example(),
        policy_domain="y.example",
        sender="tls@mail.x.example",
        recipient="reports@y.example",
        now=datetime(2026, 11, 22, 3, tzinfo=UTC),
        message_id="1@mail.x.example",
    )

    message: EmailMessage = message_from_bytes(content, policy=default)
    assert message["Subject"] == (
        "Report Domain: y.example Submitter: mail.x.example Report-ID: <2026-11-21.y.example@mail.x.example>"
    )
    assert (message["TLS-Report-Domain"], message["TLS-Report-Submitter"]) == ("y.example", "mail.x.example")
    assert message["TLS-Required"] == "No"
    assert (message["From"], message["To"]) == ("tls@mail.x.example", "reports@y.example")
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "tlsrpt"
    text, attachment = message.iter_parts()
    assert "RFC 8460" in text.get_content()
    assert attachment.get_content_type() == "application/tlsrpt+gzip"
    assert attachment.get_filename() == "mail.x.example!y.example!1795219200!1795305599.json.gz"
    assert parse_json(attachment.get_content()) == example()
    assert content.replace(b"\r\n", b"").count(b"\n") == 0
    assert max(map(len, content.split(b"\r\n"))) < 200


def test_the_longest_names_fit_into_the_lines_of_mail() -> None:
    domain = ".".join(["x" * 62] * 4)
    content = build_mail(
        msgspec.structs.replace(example(), report_id=f"2026-11-21.{domain}@{domain}"),
        policy_domain=domain,
        sender=f"tls@{domain}",
        recipient=f"r@{domain}",
        now=datetime(2026, 11, 22, 3, tzinfo=UTC),
        message_id=f"tlsrpt.2026-11-21.{domain}@{domain}",
    )

    assert max(map(len, content.split(b"\r\n"))) <= 998
