"""The key that all peers sign with, and the check by somebody else's verifier."""

from pathlib import Path

import dkim

from mailerd.wire.dkim import dns_record, generate_key, load_key

SELECTOR = "bench"


def make_key(work: Path) -> tuple[Path, str]:
    """The file of a new RSA-2048 key, and its DNS record."""
    file = work / "dkim.pem"
    pem = generate_key("rsa")
    file.write_bytes(pem)
    file.chmod(0o644)  # OpenDKIM runs as another user, and it signs for a domain that does not exist
    return file, dns_record(load_key(pem))


def verify(sample: Path, record: str) -> bool:
    """Whether the message that the sink kept verifies with dkimpy."""
    wire = sample.read_bytes()
    content = wire[: wire.index(b"\r\n.\r\n") + 2].replace(b"\r\n..", b"\r\n.")
    return bool(dkim.verify(content, dnsfunc=lambda *_args, **_kwargs: record.encode()))  # type: ignore[no-untyped-call]
