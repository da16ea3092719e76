"""Certificate authorities of our own, and servers with certificates that they issued."""

import datetime
import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
CA_USAGE = x509.KeyUsage(
    digital_signature=True,  # for authorities that are servers too
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and the authorities between it and the root, in the order that a server sends them."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain(self) -> list[bytes]:
        return [self.der, *(certificate.public_bytes(Encoding.DER) for certificate in self.above)]

    def tlsa(self, usage: int, selector: int, matching: int) -> str:
        """The TLSA record (RFC 6698) that stands for this certificate."""
        public_key = self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        data = self.der if selector == 0 else public_key
        digest = {0: bytes, 1: lambda d: hashlib.sha256(d).digest(), 2: lambda d: hashlib.sha512(d).digest()}[matching]
        return f"{usage} {selector} {matching} {digest(data).hex()}"

    def context(self) -> ssl.SSLContext:
        """For a server that has this certificate."""
        with tempfile.NamedTemporaryFile("wb", suffix=".pem") as file:
            file.write(
                self.key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            )
            for certificate in (self.certificate, *self.above):
                file.write(certificate.public_bytes(Encoding.PEM))
            file.flush()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file.name)
        return context

    def save(self, folder: Path) -> str:
        """A PEM file of the certificate, to be trusted."""
        path = folder / f"{self.certificate.serial_number}.pem"
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return str(path)


def root(name: str = "Test Root", *, ca: bool = True, path_length: int | None = None, days: int = 9) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return Issued(_sign(subject, key, subject, key, ca=ca, path_length=path_length, days=days), key)


def issue(
    by: Issued,
    *names: str,
    ca: bool = False,
    path_length: int | None = None,
    days: int = 9,
    common_name: str = "somebody",
    client_only: bool = False,
    critical: str = "",
    send_root: bool = True,
) -> Issued:
    """A certificate for DNS names and addresses, valid for `days` (negative: until so long ago)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    issuer = by.certificate.subject
    certificate = _sign(
        subject,
        key,
        issuer,
        by.key,
        names=names,
        ca=ca,
        path_length=path_length,
        days=days,
        client_only=client_only,
        critical=critical,
    )
    is_root = by.certificate.subject == by.certificate.issuer
    return Issued(certificate, key, (by.certificate, *by.above) if send_root or not is_root else ())


def _sign(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    by: ec.EllipticCurvePrivateKey,
    *,
    names: tuple[str, ...] = (),
    ca: bool = False,
    path_length: int | None = None,
    days: int = 9,
    client_only: bool = False,
    critical: str = "",
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if ca:
        builder = builder.add_extension(CA_USAGE, critical=True)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ip_address(n)) if n.replace(".", "").isdigit() else x509.DNSName(n) for n in names]
            ),
            critical=False,
        )
    if client_only:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    if critical:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(critical), b"\x05\x00")
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(by, hashes.SHA256())
