"""Signatures are judged by verifiers that others wrote: dkimpy, Perl's Mail::DKIM, OpenDKIM."""

import re
import shutil
import subprocess
from base64 import b64encode
from functools import cache
from pathlib import Path

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.wire.compose import Address, Outgoing, compose
from mailerd.wire.dkim import (
    SigningKey,
    canonical_body,
    canonical_field,
    dns_record,
    generate_key,
    load_key,
    sign,
)
from mailerd.wire.message import fix_up

NOW = 1_795_312_452
DOMAIN = "example.com"

HEADER = (
    b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: Hello\r\n"
    b"Date: Sun, 22 Nov 2026 01:54:12 +0000\r\nMessage-ID: <1@example.com>\r\n"
)


@cache
def key(kind: str) -> SigningKey:
    return SigningKey(DOMAIN, f"{kind}1", load_key(generate_key("rsa" if kind == "rsa" else "ed25519")))


def published(name: bytes | str, timeout: int = 5) -> bytes | None:
    """The DNS of these tests."""
    for kind in ("rsa", "ed25519"):
        text = name.decode() if isinstance(name, bytes) else name
        if text.rstrip(".") == f"{kind}1._domainkey.{DOMAIN}":
            return dns_record(key(kind).private).encode()
    return None


def signed(content: bytes, *kinds: str) -> bytes:
    return sign(content, [key(kind) for kind in kinds or ("rsa", "ed25519")], now=NOW) + content


def verified_by_dkimpy(message: bytes, signatures: int = 2) -> bool:
    verifier = dkimpy.DKIM(message)
    return all(verifier.verify(idx=index, dnsfunc=published) for index in range(signatures))


ODD_MESSAGES = {
    "plain": HEADER + b"\r\nHello Bob\r\n",
    "no body at all": HEADER + b"\r\n",
    "no empty line": HEADER,
    "body of empty lines": HEADER + b"\r\n\r\n\r\n\r\n",
    "trailing empty lines": HEADER + b"\r\nHello\r\n\r\n\r\n",
    "trailing white space lines": HEADER + b"\r\nHello \t \r\n \t\r\n\t\r\n",
    "white space only": HEADER + b"\r\n \t \r\n",
    "runs of white space": HEADER + b"\r\n  a \t\t b   \tc\t\r\n\t\td" + b" " * 1000 + b"e\r\n",
    "8-bit body": HEADER + b"\r\nGr\xfc\xdfe und \xc3\xbc\r\n\x80\xff\r\n",
    "dots": HEADER + b"\r\n.\r\n..\r\n.a\r\n",
    "very long lines": HEADER + b"X: " + b"x" * 5000 + b"\r\n\r\n" + b"y" * 50_000 + b"\r\n",
    "folded": b"From:\r\n Ann\r\n\t<ann@example.com>\r\n"
    b"Subject: a\r\n  b\r\n\tc \r\n \r\n d\r\nTo:\r\n\tx@y.example\r\n\r\nb\r\n",
    "no space after the colon": b"From:ann@example.com\r\nSubject:x\r\nDate:now\r\n\r\nb\r\n",
    "trailing spaces": b"From: ann@example.com  \t\r\nSubject: x \t \r\n\r\nb\r\n",
    "empty values": b"From: ann@example.com\r\nSubject:\r\nTo: \r\nCc:\t\r\n\r\nb\r\n",
    "odd case": b"fRoM: ann@example.com\r\nSUBJECT: X\r\nmEsSaGe-iD: <1@x>\r\n\r\nb\r\n",
    "duplicates": b"From: ann@example.com\r\nTo: a@x.example\r\nTo: b@x.example\r\nSubject: 1\r\nTo: c@x.example\r\n"
    b"Subject: 2\r\nContent-Type: text/plain\r\nContent-Type: text/html\r\n\r\nb\r\n",
    "8-bit header": b"From: J\xc3\xbcrgen <ann@example.com>\r\nSubject: \xfc\xff\r\n\r\nb\r\n",
    "colons and semicolons": b"From: ann@example.com\r\nSubject: a: b; c=d; b=x\r\n\r\nb\r\n",
    "all kinds of fields": b"Received: from x\r\nReturn-Path: <x@y>\r\n" + HEADER + b"Sender: s@example.com\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain;\r\n\tcharset=utf-8\r\nList-Unsubscribe: <https://x.example/u>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nReferences: <a@b>\r\n <c@d>\r\nX-Other: 1\r\n\r\nb\r\n",
}


@pytest.mark.parametrize("content", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
def test_dkimpy_verifies_both_signatures(content):
    assert verified_by_dkimpy(signed(content))


PERL = """
use Mail::DKIM::Verifier; use Mail::DKIM::PublicKey;
no warnings 'redefine';
*Mail::DKIM::PublicKey::fetch_async = sub {
    my ($class, %query) = @_;
    my $key = $class->parse($ENV{DKIM_RECORD});
    $key->{Selector} = $query{Selector}; $key->{Domain} = $query{Domain};
    return sub { $query{Callbacks}{Success}->($key) };
};
local $/; binmode STDIN;
my $verifier = Mail::DKIM::Verifier->new();
$verifier->PRINT(scalar <STDIN>); $verifier->CLOSE;
print join("\\n", map { $_->result_detail } $verifier->signatures);
"""


def has_mail_dkim() -> bool:
    perl = shutil.which("perl")
    return bool(perl) and subprocess.run([perl, "-MMail::DKIM", "-e", "1"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_mail_dkim(), reason="Perl's Mail::DKIM is not installed")
@pytest.mark.parametrize("content", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
def test_mail_dkim_verifies_the_rsa_signature(content):
    environment = {"DKIM_RECORD": dns_record(key("rsa").private), "PATH": "/usr/bin:/bin"}
    command = ["perl", "-e", PERL]
    result = subprocess.run(command, input=signed(content, "rsa"), capture_output=True, env=environment, timeout=30)
    assert result.stdout == b"pass", (result.stdout, result.stderr)


OPENDKIM = shutil.which("opendkim", path="/usr/sbin:/usr/bin:/sbin:/bin")


def opendkim_says(message: bytes, directory: Path) -> str:
    """What `opendkim -t` has to say of a message, with the public keys in a file."""
    assert OPENDKIM
    (directory / "keys").write_text(
        "".join(f"{kind}1._domainkey.{DOMAIN} {dns_record(key(kind).private)}\n" for kind in ("rsa", "ed25519"))
    )
    (directory / "conf").write_text(f"TestPublicKeys {directory}/keys\nMode v\nSocket local:{directory}/socket\n")
    (directory / "message").write_bytes(message)
    command = [OPENDKIM, "-x", str(directory / "conf"), "-vv", "-t", str(directory / "message")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return result.stdout + result.stderr


@pytest.mark.skipif(OPENDKIM is None, reason="opendkim is not installed")
@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
@pytest.mark.parametrize("content", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
def test_opendkim_verifies_each_signature(content, kind, tmp_path):
    message = signed(content, kind)
    assert "dkim=pass" in opendkim_says(message, tmp_path)
    assert "dkim=pass" not in opendkim_says(message + b"added\r\n", tmp_path)


pieces = st.sampled_from(
    [b" ", b"\t", b"  ", b"\r\n", b"\r\n", b" \r\n", b"\r\n\r\n", b"a", b"b:", b".", b"\xfc", b"\x0b\x0c"]
)
bodies = st.lists(pieces, max_size=30).map(b"".join) | st.binary(max_size=300).map(
    lambda body: re.sub(rb"[\r\n\0]", b"", body)
)
gaps = st.sampled_from([b"", b" ", b"\t", b"  ", b" \t ", b"\r\n ", b"\r\n\t", b" \r\n  "])
words = st.lists(st.sampled_from([b"x", b"y:", b"z;", b"b=", b"\xc3\xbc", b"<a@b.example>"]), min_size=1, max_size=4)
names = st.sampled_from([b"From", b"to", b"TO", b"Cc", b"Subject", b"Date", b"Reply-To", b"Content-Type", b"X-Odd"])


@st.composite
def headers(draw):
    fields = [b"From:" + draw(gaps) + b"ann@example.com" + draw(gaps).rstrip(b"\r\n") + b"\r\n"]
    for _ in range(draw(st.integers(0, 8))):
        value = b"".join(draw(gaps) + word for word in draw(words))
        fields.append(draw(names) + b":" + value + draw(st.sampled_from([b"", b" ", b"\t "])) + b"\r\n")
    return b"".join(fields)


@settings(max_examples=150, deadline=None)
@given(header=headers(), body=bodies)
def test_dkimpy_verifies_whatever_the_white_space(header, body):
    message = signed(header + b"\r\n" + body, "ed25519")
    as_received = message if message.endswith(b"\r\n") else message + b"\r\n"  # SMTP carries whole lines only
    assert verified_by_dkimpy(as_received, signatures=1)


@settings(max_examples=300, deadline=None)
@given(body=bodies)
def test_the_canonical_body_is_that_of_the_rfc_line_by_line(body):
    lines = [re.sub(rb"[ \t]+", b" ", line).removesuffix(b" ") for line in body.split(b"\r\n")]
    while lines and not lines[-1]:
        lines.pop()
    assert canonical_body(body) == b"".join(line + b"\r\n" for line in lines)


@pytest.mark.parametrize(
    ("body", "canonical"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"a", b"a\r\n"),
        (b"a \r\n  ", b"a\r\n"),
        (b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n"),  # RFC 6376 section 3.4.5
        (b"a\r\r\n\r\n", b"a\r\r\n"),  # a bare CR is text
        (b"a\n\r\n\r\n", b"a\n\r\n"),
        (b"\n\r\n\r\n", b"\n\r\n"),
    ],
)
def test_canonical_bodies(body, canonical):
    assert canonical_body(body) == canonical


@pytest.mark.parametrize(
    ("field", "canonical"),
    [
        (b"A: X\r\n", b"a:X"),
        (b"B : Y\t\r\n\tZ  ", b"b:Y Z"),
        (b"Subject:", b"subject:"),
        (b"C:\r\n d \r\n  e", b"c:d e"),
        (b"D: a\x0bb", b"d:a\x0bb"),  # a vertical tab is no WSP
    ],
)
def test_canonical_fields(field, canonical):
    assert canonical_field(field) == canonical


def tags(signature: bytes) -> dict[str, str]:
    text = re.sub(r"\s+", "", signature.decode()).removeprefix("DKIM-Signature:")
    return dict(tag.split("=", 1) for tag in text.split(";"))


def test_a_signature_is_folded_and_has_the_tags_it_should():
    fields = sign(ODD_MESSAGES["all kinds of fields"], [key("rsa"), key("ed25519")], now=NOW)
    first, second = (b"DKIM-Signature:" + field for field in fields.split(b"DKIM-Signature:")[1:])

    assert max(map(len, fields.split(b"\r\n"))) <= 78
    assert fields.endswith(b"\r\n")
    assert all(line.strip() for line in fields.split(b"\r\n")[:-1])
    assert tags(first) | {"h": "", "bh": "", "b": ""} == {
        "v": "1",
        "a": "rsa-sha256",
        "c": "relaxed/relaxed",
        "d": DOMAIN,
        "s": "rsa1",
        "t": str(NOW),
        "h": "",
        "bh": "",
        "b": "",
    }
    assert tags(second)["a"] == "ed25519-sha256"
    assert tags(first)["bh"] == tags(second)["bh"]


def test_fields_are_named_as_often_as_they_occur_and_once_more_to_keep_others_out():
    named = tags(sign(ODD_MESSAGES["all kinds of fields"], [key("ed25519")], now=NOW))["h"].split(":")
    count = {name: named.count(name) for name in named}
    assert count["from"] == count["subject"] == count["sender"] == count["list-unsubscribe"] == 2
    assert count["cc"] == count["reply-to"] == 1
    assert not {"received", "return-path", "x-other"} & set(count)


@pytest.mark.parametrize(
    "added", [b"From: eve@evil.example", b"Subject: other", b"Reply-To: eve@evil.example", b"Cc: eve@evil.example"]
)
def test_a_field_added_on_the_way_breaks_the_signature(added):
    content = HEADER + b"\r\nHello\r\n"
    signature = sign(content, [key("ed25519")], now=NOW)
    assert not verified_by_dkimpy(signature + added + b"\r\n" + content, signatures=1)


def test_trace_fields_added_on_the_way_do_no_harm():
    message = signed(ODD_MESSAGES["all kinds of fields"])
    assert verified_by_dkimpy(b"Received: from us\r\nReturn-Path: <bounce@example.com>\r\nX-Spam: no\r\n" + message)


def test_what_intake_mends_and_what_compose_makes_verifies():
    mails = [
        b"From : ann@example.com\r\nSubject\t: x\r\nBcc: eve@example.net\r\n\r\nb",
        b"no header at all\r\n",
        compose(Outgoing(from_=Address("ann@example.com", "Änn"), subject="ü" * 200, html="<p>  Hi\t</p>" * 300)),
    ]
    for mail in mails:
        content = fix_up(mail, message_id="<1@h>", date="now", received=b"Received: x\r\n", add_from="ann@example.com")
        assert verified_by_dkimpy(signed(content if content.endswith(b"\r\n") else content + b"\r\n"))


@pytest.mark.parametrize("canonical", [False, True])
def test_fields_that_will_stand_before_the_content_are_signed_as_if_they_did(canonical):
    head, content = b"List-Unsubscribe: <https://x.example/u>\r\n", HEADER + b"\r\nbody\r\n"
    together = sign(head + content, [key("ed25519")], now=NOW)
    assert b"list-unsubscribe:" in together
    assert sign(content, [key("ed25519")], now=NOW, canonical=canonical, head=head) == together


def test_without_keys_there_is_no_signature():
    assert sign(ODD_MESSAGES["plain"], [], now=NOW) == b""


def test_a_domain_as_long_as_they_get_still_makes_a_signature_that_verifies():
    domain = ".".join(["a" * 60] * 4)
    long = SigningKey(domain, "s" * 60, key("ed25519").private)
    content = HEADER + b"\r\nHello\r\n"
    message = sign(content, [long], now=NOW) + content
    assert dkimpy.verify(message, dnsfunc=lambda name, timeout=5: dns_record(long.private).encode())


def ec_key() -> bytes:
    return generate_ec_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encrypted_key() -> bytes:
    return key("ed25519").private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: b"", "not a private key in PEM form"),
        (lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key in PEM form"),
        (ec_key, "neither an RSA nor an Ed25519 key"),
        (encrypted_key, "encrypted"),
    ],
)
def test_what_is_no_key_is_refused_in_words(make, problem):
    with pytest.raises(ValueError, match=problem):
        load_key(make())


def test_keys_in_the_traditional_form_are_read():
    rsa = generate_rsa_key(65537, 1024)
    pem = rsa.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert dns_record(load_key(pem)) == dns_record(rsa)


def test_records_hold_the_public_key():
    record = dns_record(key("ed25519").private)
    raw = key("ed25519").private.public_key().public_bytes_raw()
    assert record == f"v=DKIM1; k=ed25519; p={b64encode(raw).decode()}"
    assert dns_record(key("rsa").private).startswith("v=DKIM1; k=rsa; p=MIIB")
