"""Amazon SES, whose events come by SNS: signed with a key whose certificate is fetched from Amazon.

https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html
https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
"""

import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, HashAlgorithm
from cryptography.x509 import (
    Certificate,
    DNSName,
    ExtensionNotFound,
    SubjectAlternativeName,
    load_pem_x509_certificate,
)
from cryptography.x509.oid import NameOID
from msgspec import Struct

from mailerd.feedback.upstreams.values import TOKEN, Forged, Happened, Unreadable, UpstreamEvent

REGION = r"[a-z]{2}(?:-[a-z]+)+-\d+"
HOST = rf"https://sns\.{REGION}\.amazonaws\.com(?:\.cn)?"
CERTIFICATE = re.compile(HOST + r"/SimpleNotificationService-[\w-]+\.pem", re.ASCII)
CONFIRM = re.compile(HOST + r"/\?[\w&=%:.~-]+", re.ASCII)
# Whose the certificates are: of most regions sns.amazonaws.com, of some their own name in one of three forms.
SUBJECT = re.compile(rf"sns(?:(?:-signing)?\.{REGION}|-{REGION})?\.amazonaws\.com(?:\.cn)?", re.ASCII)
HASHES: dict[str, type[HashAlgorithm]] = {"1": SHA1, "2": SHA256}
SIGNED = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}


class Notification(Struct, rename="pascal", kw_only=True):
    """What SNS posts. Fields are as in its documentation."""

    type: str
    message_id: str
    topic_arn: str
    message: str
    timestamp: str
    signature: str
    signature_version: str = "1"
    signing_cert_url: str = msgspec.field(name="SigningCertURL")
    subscribe_url: str | None = msgspec.field(name="SubscribeURL", default=None)
    token: str | None = None
    subject: str | None = None


def decode(topic: str, body: bytes) -> Notification:
    """The envelope, if it is for this topic and names a certificate of Amazon's; raises Forged, Unreadable."""
    try:
        notification = msgspec.json.decode(body, type=Notification)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unreadable("expected a notification of Amazon SNS") from None
    if notification.topic_arn != topic:
        raise Forged("it is of another topic")
    if notification.type not in SIGNED or notification.signature_version not in HASHES:
        raise Unreadable("this type or signature version of SNS is not known")
    if not CERTIFICATE.fullmatch(notification.signing_cert_url):
        raise Forged("the certificate is not at Amazon's")
    return notification


def check(notification: Notification, certificate: bytes, now: datetime) -> None:
    """`certificate` is what was found at its `signing_cert_url`, PEM. Raises Forged."""
    values = msgspec.to_builtins(notification)
    names = [name for name in SIGNED[notification.type] if values.get(name) is not None]
    text = "".join(f"{name}\n{values[name]}\n" for name in names)
    try:
        loaded = load_pem_x509_certificate(certificate)
        if not loaded.not_valid_before_utc <= now <= loaded.not_valid_after_utc:
            raise Forged("the certificate is not valid now")
        if not any(SUBJECT.fullmatch(name) for name in _names(loaded)):
            raise Forged("the certificate is not one of Amazon SNS")
        key = loaded.public_key()
        signature = b64decode(notification.signature)
        if not isinstance(key, rsa.RSAPublicKey):
            raise Forged("the certificate has no RSA key")
        key.verify(signature, text.encode(), padding.PKCS1v15(), HASHES[notification.signature_version]())
    except (InvalidSignature, ValueError):
        raise Forged("the signature is not Amazon's") from None


def _names(certificate: Certificate) -> list[str]:
    found = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    with suppress(ExtensionNotFound):
        more = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
        found += more.value.get_values_for_type(DNSName)
    return found


def confirmation(notification: Notification) -> str | None:
    """The URL to be opened once, when this asks whether we want to hear from the topic."""
    if notification.type != "SubscriptionConfirmation" or not notification.subscribe_url:
        return None
    if not CONFIRM.fullmatch(notification.subscribe_url):
        raise Forged("the subscription is not confirmed at Amazon's")
    return notification.subscribe_url


def read(notification: Notification) -> Iterator[UpstreamEvent]:
    """What is said of recipients; raises Unreadable."""
    if notification.type != "Notification":
        return
    try:
        event = msgspec.json.decode(notification.message, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unreadable("expected an event of SES in Message") from None
    if notification.message.startswith("Successfully validated SNS topic"):
        return
    kind = str(event.get("eventType") or event.get("notificationType") or "")
    mail = _mapping(event.get("mail"))
    report = partial(UpstreamEvent, token=_token(mail), message_id=_message_id(mail))
    match kind:
        case "Bounce":
            bounce = _mapping(event.get("bounce"))
            permanent = bounce.get("bounceType") == "Permanent"
            for each in _list(bounce.get("bouncedRecipients")):
                yield _failed(report, Happened.BOUNCED, each, permanent=permanent)
        case "DeliveryDelay":
            for each in _list(_mapping(event.get("deliveryDelay")).get("delayedRecipients")):
                yield _failed(report, Happened.DELAYED, each, permanent=False)
        case "Complaint":
            complaint = _mapping(event.get("complaint"))
            for each in _list(complaint.get("complainedRecipients")):
                feedback = str(complaint.get("complaintFeedbackType") or "abuse")
                yield report(Happened.COMPLAINED, str(each.get("emailAddress", "")), feedback_type=feedback)
        case "Delivery":
            delivery = _mapping(event.get("delivery"))
            for address in _addresses(delivery.get("recipients")):
                text = str(delivery.get("smtpResponse") or "")
                yield report(Happened.DELIVERED, address, text=text)
        case "Subscription":
            for address in _addresses(mail.get("destination")):
                yield report(Happened.UNSUBSCRIBED, address)


def _failed(
    report: Callable[..., UpstreamEvent], happened: Happened, each: dict[str, Any], *, permanent: bool
) -> UpstreamEvent:
    text = str(each.get("diagnosticCode") or "")
    return report(
        happened,
        str(each.get("emailAddress", "")),
        permanent=permanent,
        status=str(each.get("status") or ""),
        text=text.removeprefix("smtp;").strip(),
    )


def _token(mail: dict[str, Any]) -> str:
    tags = _mapping(mail.get("tags")).get(TOKEN)
    return str(tags[0]) if isinstance(tags, list) and tags else ""


def _message_id(mail: dict[str, Any]) -> str:
    for each in _list(mail.get("headers")):
        if str(each.get("name", "")).lower() == "message-id":
            return str(each.get("value", ""))
    return ""


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _addresses(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
