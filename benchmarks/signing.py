"""The keys that all peers have, to sign with and for STARTTLS, and the check by somebody else's verifier."""

import datetime
from pathlib import Path

import dkim
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mailerd.wire.dkim import dns_record, generate_key, load_key

SELECTOR = "bench"


def make_key(work: Path) -> tuple[Path, str]:
    """The file of a new RSA-2048 key, and its DNS record."""
    file = work / "dkim.pem"
    pem = generate_key("rsa")
    file.write_bytes(pem)
    file.chmod(0o644)  # OpenDKIM runs as another user, and it signs for a domain that does not exist
    return file, dns_record(load_key(pem))


def make_certificate(work: Path) -> tuple[Path, Path]:
    """The files of a new certificate that nobody signed but itself, and of its ECDSA P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench.localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .sign(key, hashes.SHA256())
    )
    files = work / "certificate.pem", work / "certificate.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def verify(sample: Path, record: str) -> bool:
    """Whether the message that the sink kept verifies with dkimpy."""
    wire = sample.read_bytes()
    content = wire[: wire.index(b"\r\n.\r\n") + 2].replace(b"\r\n..", b"\r\n.")
    return bool(dkim.verify(content, dnsfunc=lambda *_args, **_kwargs: record.encode()))  # type: ignore[no-untyped-call]
