"""DKIM signatures (RFC 6376, RFC 8463): relaxed/relaxed, RSA and Ed25519, as many at once as there are keys.

`sign()` is pure. Nearly all its time is the RSA operation inside OpenSSL, which lets other threads run.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mailerd.wire.message import FOLD_AT, split_view

PrivateKey = RSAPrivateKey | Ed25519PrivateKey
KeyKind = Literal["rsa", "ed25519"]

RSA_BITS = 2048  # what every receiver verifies, and what fits in one DNS answer (RFC 8301 section 3.2)
RSA_LEAST = 1024  # the same section: signers must not use less

# Named once more than they occur, even when they do not, so that nobody can add one and keep the signature valid
# (RFC 6376 section 8.15): what a reader takes for the author, the recipients, the subject.
ALWAYS = (b"from", b"reply-to", b"subject", b"date", b"message-id", b"to", b"cc")

# Named once more than they occur, but only when they do: relays and lists may have reason to add a first one.
WHEN_PRESENT = (
    b"sender",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"in-reply-to",
    b"references",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
)

# Named as often as they occur. Whatever stands in none of the three changes under way (Received, Return-Path) or means
# nothing to a reader.
AS_OFTEN = (
    b"content-id",
    b"content-disposition",
    b"content-language",
    b"resent-date",
    b"resent-from",
    b"resent-sender",
    b"resent-to",
    b"resent-cc",
    b"resent-message-id",
    b"list-id",
    b"list-help",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
    b"feedback-id",
    b"auto-submitted",
    b"precedence",
    b"autocrypt",
)

SIGNABLE = frozenset(ALWAYS + WHEN_PRESENT + AS_OFTEN)
ABSENT: list[bytes] = []

RSA_PADDING = PKCS1v15()
RSA_HASH = SHA256()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and where its public half is published: `selector`._domainkey.`domain`, both A-labels."""

    domain: str
    selector: str
    private: PrivateKey

    @property
    def algorithm(self) -> str:
        return "rsa-sha256" if isinstance(self.private, RSAPrivateKey) else "ed25519-sha256"


@dataclass(frozen=True, slots=True)
class Draft:
    """A DKIM-Signature field that lacks its signature."""

    field: bytes  # folded, up to and including `b=`
    signed: bytes  # the canonical header fields it covers, itself last
    private: PrivateKey

    def seal(self) -> bytes:
        """The complete field, ending in CRLF. 0.3 ms for RSA-2048, spent without the interpreter's lock."""
        if isinstance(self.private, RSAPrivateKey):
            signature = self.private.sign(self.signed, RSA_PADDING, RSA_HASH)
        else:
            signature = self.private.sign(sha256(self.signed).digest())  # RFC 8463 section 3: of the hash
        value = b64encode(signature)
        room = FOLD_AT - (len(self.field) - self.field.rindex(b"\n") - 1)
        width = FOLD_AT - 1  # a tab comes first
        lines = [value[:room], *(value[at : at + width] for at in range(room, len(value), width))]
        return self.field + b"\r\n\t".join(lines) + b"\r\n"


def sign(
    content: bytes,
    keys: Sequence[SigningKey],
    *,
    now: int,
    canonical: bool = False,
    head: bytes = b"",
) -> bytes:
    """The DKIM-Signature fields to put before `content`, one for each key in their order, each ending in CRLF.

    `now` is a Unix time (`t=`). The content is hashed once, however many keys there are.
    `canonical`: it is known that the body `is_canonical` and that just one CRLF ends it. `head`: whole fields that will
    stand before those of the content, which has some.
    """
    header, body = split_view(content)
    names, fields = _signed_fields(head + header)
    body_hash = b64encode(sha256(body if canonical else canonical_body(bytes(body))).digest())
    return b"".join([_draft(key, names, fields, body_hash, now).seal() for key in keys])


def _draft(key: SigningKey, names: list[bytes], canonical: bytes, body_hash: bytes, now: int) -> Draft:
    tags = [
        b"v=1;",
        b" a=%s;" % key.algorithm.encode("ascii"),
        b" c=relaxed/relaxed;",
        b" d=%s;" % key.domain.encode("ascii"),
        b" s=%s;" % key.selector.encode("ascii"),
        b" t=%d;" % now,
    ]
    first, *rest = [name + b":" for name in names[:-1]] + [names[-1] + b";"]
    tags += [b" h=" + first, *rest, b" bh=%s;" % body_hash, b" b="]
    field = _folded(b"DKIM-Signature: ", tags)
    return Draft(field, canonical + canonical_field(field), key.private)


def _folded(line: bytes, tokens: list[bytes]) -> bytes:
    """The tokens one after the other in lines of up to 78 columns; a line breaks only between two tokens."""
    lines = []
    for token in tokens:
        if len(line) + len(token) > FOLD_AT:
            lines.append(line)
            line = b"\t" + token.lstrip(b" ")
        else:
            line += token
    return b"\r\n".join([*lines, line])


def _signed_fields(header: bytes) -> tuple[list[bytes], bytes]:
    """The names for `h=`, and the canonical fields they stand for, in the same order."""
    fields: dict[bytes, list[bytes]] = {}
    # A fold becomes the white space that follows it, so that the rest is a matter of lines, all made canonical at once.
    for line in _single_spaces(header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t")).split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" ").lower()
        if colon and name in SIGNABLE:
            fields.setdefault(name, []).append(name + b":" + value.strip(b" "))

    names: list[bytes] = []
    covered: list[bytes] = []
    for group, further in ((ALWAYS, 1), (WHEN_PRESENT, 1), (AS_OFTEN, 0)):
        for name in group:
            found = fields.get(name, ABSENT)
            if found or group is ALWAYS:
                names += [name] * (len(found) + further)
                covered += reversed(found)  # bottom-up: RFC 6376 section 5.4.2
    return names, b"\r\n".join([*covered, b""])


def canonical_field(field: bytes) -> bytes:
    """RFC 6376 section 3.4.2, without the CRLF at the end."""
    name, _, value = field.replace(b"\r\n", b"").partition(b":")
    return name.rstrip(b" \t").lower() + b":" + _single_spaces(value).strip(b" ")


def canonical_body(body: bytes) -> bytes:
    """RFC 6376 section 3.4.4: runs of white space are one space, none ends a line, no empty lines end the body.

    Passes of `replace` over the whole body, each only if there is something to replace: regular expressions take ten
    times as long. A last line without CRLF gets one, as it does when it is sent.
    """
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"
    body = _single_spaces(body)
    if body.rfind(b" \r\n") >= 0:
        body = body.replace(b" \r\n", b"\r\n")
    if not body.endswith(b"\r\n\r\n"):
        return b"" if body == b"\r\n" else body
    text = body.rstrip(b"\r\n")
    ending = body[len(text) :]
    if ending != b"\r\n" * (len(ending) // 2):  # a bare CR or LF is text
        lines = ending.split(b"\r\n")
        while lines and not lines[-1]:
            lines.pop()
        text += b"\r\n".join(lines)
    return text + b"\r\n" if text else b""


def is_canonical(text: bytes) -> bool:
    """Is the white space in these lines as `canonical_body` leaves it?"""
    return b"\t" not in text and text.rfind(b"  ") < 0 and text.rfind(b" \r\n") < 0


def _single_spaces(text: bytes) -> bytes:
    """Every run of spaces and tabs as one space.

    `rfind` rather than `in`: CPython searches from the end three times as fast for needles this short.
    """
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    if text.rfind(b"  ") >= 0:
        text = text.replace(b"    ", b" ")  # indentation: quarter the long runs first
        while text.rfind(b"  ") >= 0:  # each pass halves the runs
            text = text.replace(b"  ", b" ")
    return text


def generate_key(kind: KeyKind) -> bytes:
    """A new private key, PKCS #8 in PEM."""
    key: PrivateKey
    key = (
        generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        if kind == "rsa"
        else Ed25519PrivateKey.generate()
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes) -> PrivateKey:
    """The private key in a PEM file. ValueError, in words for people, when it is none that DKIM can use."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the key is encrypted: DKIM keys are read without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a private key in PEM form") from None
    if isinstance(key, RSAPrivateKey):
        if key.key_size < RSA_LEAST:
            raise ValueError(f"an RSA key of {key.key_size} bits: at least {RSA_LEAST} are needed, {RSA_BITS} are good")
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise ValueError("neither an RSA nor an Ed25519 key: DKIM knows no other")


def dns_record(key: PrivateKey) -> str:
    """The text of the TXT record that publishes the public half (RFC 6376 section 3.6.1, RFC 8463 section 4)."""
    public = key.public_key()
    if isinstance(key, RSAPrivateKey):
        published = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={b64encode(published).decode('ascii')}"
    published = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"v=DKIM1; k=ed25519; p={b64encode(published).decode('ascii')}"
