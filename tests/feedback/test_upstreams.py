"""What upstream services report: only with their signature, and in one form."""

import contextlib
import json
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from hmac import digest
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mailerd.feedback.upstreams import mailgun, postmark, sendgrid, ses
from mailerd.feedback.upstreams.values import Forged, Happened, Unreadable, UpstreamEvent

TOKEN = "iaaaaaaaaaaaaamgub36cnqm73ksdwy"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:mail"
CERTIFICATE_URL = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123abc.pem"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def certificate(subject: str = "sns.amazonaws.com", since: datetime = NOW - timedelta(1)) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    built = x509.CertificateBuilder(
        name, name, RSA_KEY.public_key(), x509.random_serial_number(), since, since + timedelta(2)
    )
    return built.sign(RSA_KEY, SHA256()).public_bytes(Encoding.PEM)


PEM = certificate()


def sns(event: dict[str, Any] | str, *, version: str = "1", **changes: Any) -> bytes:
    """A notification, signed as Amazon does."""
    fields: dict[str, Any] = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Message": event if isinstance(event, str) else json.dumps(event),
        "Timestamp": "2026-11-22T10:00:00.000Z",
    } | changes.pop("fields", {})
    names = [name for name in ses.SIGNED[fields["Type"]] if name in fields]
    text = "".join(f"{name}\n{fields[name]}\n" for name in names).encode()
    hash_ = SHA1() if version == "1" else SHA256()
    fields["Signature"] = b64encode(RSA_KEY.sign(text, padding.PKCS1v15(), hash_)).decode()
    fields |= {"SignatureVersion": version, "SigningCertURL": CERTIFICATE_URL} | changes
    return json.dumps(fields).encode()


def of_ses(body: bytes) -> list[UpstreamEvent]:
    notification = ses.decode(TOPIC, body)
    ses.check(notification, PEM, NOW)
    return list(ses.read(notification))


MAIL = {
    "messageId": "0100",
    "source": "b-x@bounce.example.com",
    "destination": ["ann@example.net"],
    "headers": [{"name": "Message-ID", "value": "<1@app.example>"}],
    "tags": {"mailerd": [TOKEN]},
}


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_bounce_of_ses_is_read_with_its_signature(version: str) -> None:
    bounced = {
        "emailAddress": "ann@example.net",
        "action": "failed",
        "status": "5.1.1",
        "diagnosticCode": "smtp; 550 5.1.1 user unknown",
    }
    event = {
        "eventType": "Bounce",
        "mail": MAIL,
        "bounce": {"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": [bounced]},
    }

    assert of_ses(sns(event, version=version)) == [
        UpstreamEvent(
            Happened.BOUNCED,
            "ann@example.net",
            TOKEN,
            "<1@app.example>",
            permanent=True,
            status="5.1.1",
            text="550 5.1.1 user unknown",
        )
    ]


def test_complaints_deliveries_and_delays_of_ses_are_told_apart() -> None:
    complaint = {"complainedRecipients": [{"emailAddress": "a@b.example"}], "complaintFeedbackType": "abuse"}
    delay = {"delayedRecipients": [{"emailAddress": "a@b.example", "status": "4.2.2"}]}
    delivery = {"recipients": ["a@b.example"], "smtpResponse": "250 ok"}

    found = [
        of_ses(sns({"notificationType": kind, "mail": MAIL, name: value}))[0].happened
        for kind, name, value in (
            ("Complaint", "complaint", complaint),
            ("DeliveryDelay", "deliveryDelay", delay),
            ("Delivery", "delivery", delivery),
        )
    ]

    assert found == [Happened.COMPLAINED, Happened.DELAYED, Happened.DELIVERED]


@pytest.mark.parametrize(
    "body",
    [
        sns({"eventType": "Bounce"}, fields={"TopicArn": "arn:aws:sns:eu-west-1:1:other"}),
        sns({"eventType": "Bounce"}, SigningCertURL="https://evil.example/SimpleNotificationService-1.pem"),
        sns({}, SigningCertURL="https://sns.eu-west-1.amazonaws.com.evil.example/SimpleNotificationService-1.pem"),
        sns({}, SigningCertURL="https://sns.eu-west-1.amazonaws.com/other/SimpleNotificationService-1.pem"),
        sns({"eventType": "Bounce"}, Signature="AAAA"),
        sns({"eventType": "Bounce"}, Message='{"eventType": "Complaint"}'),
        sns({"eventType": "Bounce"}, Timestamp="2020-01-01T00:00:00.000Z"),
    ],
)
def test_what_amazon_did_not_sign_for_us_is_forged(body: bytes) -> None:
    with pytest.raises(Forged):
        of_ses(body)


def test_a_subscription_is_confirmed_only_at_amazon() -> None:
    asked = {
        "Type": "SubscriptionConfirmation",
        "Token": "t",
        "SubscribeURL": "https://sns.eu-west-1.amazonaws.com/?a=b",
    }
    evil = asked | {"SubscribeURL": "https://169.254.169.254/?a=b"}

    assert ses.confirmation(ses.decode(TOPIC, sns("please", fields=asked))) == asked["SubscribeURL"]
    with pytest.raises(Forged):
        ses.confirmation(ses.decode(TOPIC, sns("please", fields=evil)))


@pytest.mark.parametrize(
    "host",
    [
        "sns.eu-west-1.evil.example",
        "sns.s3.amazonaws.com",
        "sns.a-1.amazonaws.com",
        "sns.bucket.s3-eu-west-1.amazonaws.com",
        "sns.eu-west-1.amazonaws.com.evil.example",
        "sns.bucket-9.amazonaws.com",
        "sns.eu-west-١.amazonaws.com",
    ],
)
def test_only_hosts_of_a_region_are_amazon_s(host: str) -> None:
    with pytest.raises(Forged):
        ses.decode(TOPIC, sns("x", SigningCertURL=f"https://{host}/SimpleNotificationService-0.pem"))
    fields = {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": f"https://{host}/?a=b"}
    with pytest.raises(Forged):
        ses.confirmation(ses.decode(TOPIC, sns("please", fields=fields)))


@pytest.mark.parametrize(
    "region", ["us-east-1", "us-gov-west-1", "ap-southeast-2", "cn-north-1", "us-iso-east-1", "me-central-1"]
)
def test_every_region_of_amazon_is_known(region: str) -> None:
    ses.decode(TOPIC, sns("x", SigningCertURL=f"https://sns.{region}.amazonaws.com/SimpleNotificationService-0.pem"))


@pytest.mark.parametrize(
    "pem",
    [
        certificate("s3.amazonaws.com"),
        certificate("sns.amazonaws.com.evil.example"),
        certificate("sns.evil.example.amazonaws.com"),
        certificate(since=NOW - timedelta(3)),
        certificate(since=NOW + timedelta(1)),
        b"nonsense",
    ],
)
def test_a_certificate_of_another_or_of_another_time_is_not_believed(pem: bytes) -> None:
    with pytest.raises(Forged):
        ses.check(ses.decode(TOPIC, sns("x")), pem, NOW)


@pytest.mark.parametrize(
    "subject",
    ["sns.us-east-1.amazonaws.com", "sns-signing.af-south-1.amazonaws.com", "sns-cn-north-1.amazonaws.com.cn"],
)
def test_the_certificates_of_all_regions_are_believed(subject: str) -> None:
    ses.check(ses.decode(TOPIC, sns("x")), certificate(subject), NOW)


STAMP = str(int(NOW.timestamp()))


def sendgrid_headers(body: bytes, timestamp: str = STAMP) -> CIMultiDict[str]:
    signature = EC_KEY.sign(timestamp.encode() + body, ec.ECDSA(SHA256()))
    return CIMultiDict({sendgrid.SIGNATURE.lower(): b64encode(signature).decode(), sendgrid.TIMESTAMP: timestamp})


SENDGRID_KEY = b64encode(EC_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def test_events_of_sendgrid_are_read_and_blocks_are_no_hard_bounces() -> None:
    of_mail = {"email": "ann@example.net", "smtp-id": "<1@app.example>", "mailerd": TOKEN}
    body = json.dumps(
        [
            of_mail | {"event": "bounce", "type": "bounce", "status": "5.1.1", "reason": "550 no such user"},
            of_mail | {"event": "bounce", "type": "blocked", "reason": "554 blocked"},
            of_mail | {"event": "open"},
            of_mail | {"event": "spamreport"},
            of_mail | {"event": "group_unsubscribe"},
        ]
    ).encode()

    sendgrid.check(SENDGRID_KEY, sendgrid_headers(body), body, NOW)

    assert [(event.happened, event.permanent) for event in sendgrid.read(body)] == [
        (Happened.BOUNCED, True),
        (Happened.BOUNCED, False),
        (Happened.COMPLAINED, False),
        (Happened.UNSUBSCRIBED, False),
    ]
    assert next(sendgrid.read(body)).token == TOKEN


@pytest.mark.parametrize("change", [{"body": b"[]"}, {"timestamp": "1"}, {"signature": "AAAA"}, {"signature": "é"}])
def test_what_sendgrid_did_not_sign_is_forged(change: dict[str, Any]) -> None:
    headers = sendgrid_headers(b"[{}]")
    if "signature" in change:
        headers[sendgrid.SIGNATURE] = change["signature"]
    if "timestamp" in change:
        headers[sendgrid.TIMESTAMP] = change["timestamp"]
    with pytest.raises(Forged):
        sendgrid.check(SENDGRID_KEY, headers, change.get("body", b"[{}]"), NOW)


def at(seconds: float) -> str:
    return str(int(NOW.timestamp() + seconds))


@pytest.mark.parametrize("timestamp", [at(-86_500), at(86_500), "", "-1", "now", "1" * 400, "1.5"])
def test_old_events_of_sendgrid_are_not_heard_again(timestamp: str) -> None:
    headers = sendgrid_headers(b"[{}]", timestamp)
    with pytest.raises(Forged):
        sendgrid.check(SENDGRID_KEY, headers, b"[{}]", NOW)
    sendgrid.check(SENDGRID_KEY, sendgrid_headers(b"[{}]", at(-86_300)), b"[{}]", NOW)


def mailgun_body(event: dict[str, Any], key: str = "key", timestamp: str = STAMP) -> bytes:
    signature = digest(key.encode(), f"{timestamp}abc".encode(), sha256).hex()
    return json.dumps(
        {"signature": {"timestamp": timestamp, "token": "abc", "signature": signature}, "event-data": event}
    ).encode()


@pytest.mark.parametrize("timestamp", [at(-901), at(901), "", "٣", "9" * 30])
def test_old_events_of_mailgun_are_not_heard_again(timestamp: str) -> None:
    with pytest.raises(Forged):
        mailgun.check("key", mailgun_body({"event": "failed"}, timestamp=timestamp), NOW)
    assert mailgun.check("key", mailgun_body({"event": "failed"}, timestamp=at(-899)), NOW) == "abc"


@pytest.mark.parametrize(("severity", "happened"), [("permanent", Happened.BOUNCED), ("temporary", Happened.DELAYED)])
def test_failures_of_mailgun_are_bounces_or_delays(severity: str, happened: Happened) -> None:
    body = mailgun_body(
        {
            "event": "failed",
            "severity": severity,
            "recipient": "ann@example.net",
            "message": {"headers": {"message-id": "1@app.example"}},
            "delivery-status": {"code": 550, "message": "no such user", "enhanced-code": "5.1.1"},
            "user-variables": {"mailerd": TOKEN},
        }
    )

    mailgun.check("key", body, NOW)

    expected = UpstreamEvent(
        happened,
        "ann@example.net",
        TOKEN,
        "<1@app.example>",
        permanent=severity == "permanent",
        status="5.1.1",
        code=550,
        text="no such user",
    )
    assert list(mailgun.read(body)) == [expected]
    with pytest.raises(Forged):
        mailgun.check("other", body, NOW)


def basic(user: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(user.encode()).decode()}


@pytest.mark.parametrize(
    ("record", "happened", "permanent"),
    [
        ({"RecordType": "Bounce", "Type": "HardBounce", "Email": "a@b.example"}, Happened.BOUNCED, True),
        ({"RecordType": "Bounce", "Type": "SoftBounce", "Email": "a@b.example"}, Happened.BOUNCED, False),
        ({"RecordType": "SpamComplaint", "Type": "SpamComplaint", "Email": "a@b.example"}, Happened.COMPLAINED, None),
        ({"RecordType": "Delivery", "Recipient": "a@b.example"}, Happened.DELIVERED, None),
        (
            {
                "RecordType": "SubscriptionChange",
                "SuppressSending": True,
                "Origin": "Recipient",
                "Recipient": "a@b.example",
            },
            Happened.UNSUBSCRIBED,
            None,
        ),
    ],
)
def test_records_of_postmark_are_read(record: dict[str, Any], happened: Happened, permanent: bool | None) -> None:
    body = json.dumps(record | {"Metadata": {"mailerd": TOKEN}}).encode()

    postmark.check("user:secret", basic("user:secret"), body)

    (event,) = postmark.read(body)
    assert (event.happened, event.permanent, event.token, event.address) == (happened, permanent, TOKEN, "a@b.example")


@pytest.mark.parametrize("headers", [{}, basic("user:wrong"), {"Authorization": "Basic é"}, {"Authorization": "x"}])
def test_postmark_without_its_password_is_forged(headers: dict[str, str]) -> None:
    with pytest.raises(Forged):
        postmark.check("user:secret", headers, b"{}")


def test_an_auto_reply_that_postmark_calls_a_bounce_is_none() -> None:
    assert list(postmark.read(b'{"RecordType": "Bounce", "Type": "AutoResponder"}')) == []


READERS = (
    sendgrid.read,
    mailgun.read,
    postmark.read,
    lambda body: ses.read(ses.decode(TOPIC, body)),
)
NAMES = ("event", "mail", "recipients", "destination", "tags", "headers", "mailerd")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text() | st.sampled_from(["event", "mail", "recipients", "destination", "tags", "headers", "mailerd"]),
            inner,
        )
    ),
    max_leaves=20,
)


@example(b'{"\xff":1}')
@example(b'[{"email":"\xff"}]')
@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_nothing_else_than_unreadable_comes_of_nonsense(body: bytes) -> None:
    for read in READERS:
        try:
            found: Iterator[UpstreamEvent] = iter(read(body))
            list(found)
        except (Unreadable, Forged):
            pass


@given(JSON_VALUES)
def test_nonsense_that_amazon_signed_is_no_surprise(value: Any) -> None:
    for message in (
        value,
        {"eventType": "Bounce", "mail": value, "bounce": value},
        {"eventType": "Delivery", "delivery": value},
    ):
        with contextlib.suppress(Unreadable):
            of_ses(sns(json.dumps(message)))
