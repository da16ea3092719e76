"""TLSA records, and whether a host's certificates satisfy them (RFC 6698, 7671, 7672). Pure.

Only certificate usages 2 and 3 authenticate in SMTP; a host whose records are all of another kind gets encryption
without authentication (RFC 7672 sections 2.2 and 3.1.3).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from mailerd.delivery import tls_policy

Kind = TypeVar("Kind", bound=x509.ExtensionType)

DANE_TA, DANE_EE = 2, 3  # certificate usages
CERTIFICATE, PUBLIC_KEY = 0, 1  # selectors
FULL = 0  # matching type: the thing itself; the others are digests
DIGESTS: dict[int, Callable[[bytes], "hashlib._Hash"]] = {1: hashlib.sha256, 2: hashlib.sha512}
MAX_CHAIN = 10  # certificates looked at beside the host's own: each costs checks of signatures
WEAK_HASHES = ("md5", "sha1")
UNREADABLE = (  # what a certificate that somebody made up may raise when its parts are looked at
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
UNDERSTOOD = frozenset(  # extensions that may be critical
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One TLSA record; `str()` is its presentation form."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        if self.usage not in (DANE_TA, DANE_EE) or self.selector not in (CERTIFICATE, PUBLIC_KEY):
            return False
        if self.matching == FULL:
            return bool(self.data)
        digest = DIGESTS.get(self.matching)
        return digest is not None and len(self.data) == digest(b"").digest_size

    def matches(self, certificate: bytes, public_key: bytes) -> bool:
        """Whether the record stands for this certificate (DER) with this key (DER SubjectPublicKeyInfo)."""
        selected = certificate if self.selector == CERTIFICATE else public_key
        return self.data == (selected if self.matching == FULL else DIGESTS[self.matching](selected).digest())

    def __str__(self) -> str:
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()}"


@dataclass(frozen=True, slots=True)
class Dane:
    """What DNSSEC-signed zones say about the certificates of a host; `base` is the name to ask it for (SNI)."""

    base: str
    records: tuple[Tlsa, ...]

    @property
    def authenticates(self) -> bool:
        """False: TLS is mandatory, but no record says how to check the certificate."""
        return any(record.usable for record in self.records)

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(map(str, self.records))


class Failure(NamedTuple):
    """Why certificates do not satisfy the records: a result type of RFC 8460 section 4.3, and words."""

    result: str
    text: str


def authenticate(
    records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime
) -> Failure | None:
    """Check the certificates that a host presented (DER, its own first); None: it is the right host.

    One matching record of usage 3 suffices, whatever the names and dates in the certificate (RFC 7672 section 3.1.1).
    Usage 2 wants a valid chain up to an issuer that matches, and one of `names` in the certificate (section 3.1.2).
    """
    wanted = _strongest([record for record in records if record.usable])
    own = _load(chain[0]) if chain else None
    if own is None:
        return Failure(tls_policy.VALIDATION_FAILURE, "the host sent no readable certificate")
    if any(record.usage == DANE_EE and record.matches(own.der, own.key) for record in wanted):
        return None
    anchors = [record for record in wanted if record.usage == DANE_TA]
    if not anchors:
        return Failure(tls_policy.TLSA_INVALID, "the certificate matches none of the host's TLSA records")
    others = [cert for der in chain[1 : MAX_CHAIN + 1] if (cert := _load(der)) is not None]
    others += [cert for der in _in_full(anchors) if (cert := _load(der)) is not None]
    if not _reaches(anchors, own, others, now):
        text = "no valid chain leads from the certificate to one of the host's TLSA records"
        return Failure(tls_policy.TLSA_INVALID, text)
    return _own_fault(own.cert, names, now)


def _strongest(records: list[Tlsa]) -> list[Tlsa]:
    """Without the digests of a usage and selector for which there are stronger ones (RFC 7671 section 9)."""
    best: dict[tuple[int, int], int] = {}
    for record in records:
        key = record.usage, record.selector
        best[key] = max(best.get(key, 0), record.matching)
    return [record for record in records if record.matching in (FULL, best[record.usage, record.selector])]


def _in_full(anchors: list[Tlsa]) -> Iterator[bytes]:
    """The certificates that DNS holds, which the host need not send."""
    return (record.data for record in anchors[:MAX_CHAIN] if (record.selector, record.matching) == (CERTIFICATE, FULL))


class _Certificate(NamedTuple):
    cert: x509.Certificate
    der: bytes
    key: bytes


def _load(der: bytes) -> _Certificate | None:
    try:
        cert = x509.load_der_x509_certificate(der)
        key = cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE:
        return None
    return _Certificate(cert, der, key)


def _reaches(anchors: list[Tlsa], own: _Certificate, others: list[_Certificate], now: datetime) -> bool:
    """Whether issuers lead from `own` to an anchor. Each certificate is taken as an issuer once, so it ends soon."""
    reached, waiting = [(own, 0)], list(others)
    for subject, below in reached:  # grows meanwhile
        for issuer in [candidate for candidate in waiting if _issued(candidate.cert, subject.cert, below, now)]:
            if any(record.matches(issuer.der, issuer.key) for record in anchors):
                return True
            waiting.remove(issuer)
            reached.append((issuer, below + 1))
    return False


def _issued(issuer: x509.Certificate, subject: x509.Certificate, below: int, now: datetime) -> bool:
    """Whether `issuer` may and did sign `subject` (RFC 5280); `below`: certificates of authorities under it."""
    try:
        if not _fresh(issuer, now) or not _understood(issuer) or not _understood(subject):
            return False
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca or (constraints.path_length is not None and constraints.path_length < below):
            return False
        usage = _extension(issuer, x509.KeyUsage)
        if usage is not None and not usage.key_cert_sign:
            return False
        algorithm = subject.signature_hash_algorithm
        if algorithm is not None and algorithm.name in WEAK_HASHES:
            return False
        subject.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature, x509.ExtensionNotFound):
        return False
    return True


def _own_fault(cert: x509.Certificate, names: Sequence[str], now: datetime) -> Failure | None:
    if not _fresh(cert, now):
        return Failure(tls_policy.CERTIFICATE_EXPIRED, f"the certificate is not valid now, but until {_until(cert)}")
    usage = _extension(cert, x509.ExtendedKeyUsage)
    if usage is not None and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        usage
    ):
        return Failure(tls_policy.CERTIFICATE_NOT_TRUSTED, "the certificate is not for servers")
    found = _names(cert)
    if not any(tls_policy.matches_mx(name, pattern) for name in names for pattern in found):
        text = f"the certificate is for {', '.join(found[:5]) or 'no name'}, not for {names[0] if names else '?'}"
        return Failure(tls_policy.CERTIFICATE_HOST_MISMATCH, text)
    return None


def _names(cert: x509.Certificate) -> list[str]:
    """The DNS names of a certificate; its common name only when it has none (RFC 6125 section 6.4.4)."""
    alternatives = _extension(cert, x509.SubjectAlternativeName)
    found = alternatives.get_values_for_type(x509.DNSName) if alternatives is not None else []
    return found or [str(attribute.value) for attribute in cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _extension(cert: x509.Certificate, kind: type[Kind]) -> Kind | None:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _understood(cert: x509.Certificate) -> bool:
    return all(not extension.critical or extension.oid in UNDERSTOOD for extension in cert.extensions)


def _fresh(cert: x509.Certificate, now: datetime) -> bool:
    return cert.not_valid_before_utc <= now <= cert.not_valid_after_utc


def _until(cert: x509.Certificate) -> str:
    return cert.not_valid_after_utc.strftime("%Y-%m-%d")
