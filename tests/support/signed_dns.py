"""A validating name server on 127.0.0.1: unbound, over zones that the tests sign, well or badly.

    zone = SignedZone("example.com")
    zone.add("@", "MX", "10 mx.example.com.")
    async with SignedDns([zone, ...]) as dns:
        resolver = Resolver(config.Resolver(nameservers=(dns.address,), dnssec_probe="signed.test"))

`signed.test` is always there and right.
"""

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.asyncquery
import dns.dnssec
import dns.message
import dns.name
import dns.rdataset
import dns.rdatatype
import dns.zone
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

DAY = 86_400
PROBE = "signed.test"

needs_unbound = pytest.mark.skipif(shutil.which("unbound") is None, reason="needs unbound (apt: unbound)")


class SignedZone:
    """A zone by name; `signed` False: nobody signed it. `age` in days of its signatures: 40 means expired."""

    def __init__(self, name: str, *, signed: bool = True, age: int = 0) -> None:
        self.name = name
        self.signed = signed
        self.age = age
        self.bogus: set[tuple[str, str]] = set()  # (name, type): changed after it was signed
        self._records: list[tuple[str, str, str]] = []

    def add(self, name: str, rdtype: str, *records: str) -> Self:
        """Records of a name relative to the zone, `@` for the zone itself."""
        self._records += [(name, rdtype, record) for record in records]
        return self

    def tamper(self, name: str, rdtype: str) -> Self:
        """Let the records of a name not be what was signed."""
        self.bogus.add((name, rdtype))
        return self

    def write(self, folder: Path) -> tuple[Path, str]:
        """The zone file, and the trust anchor for it, "" if it is not signed."""
        lines = ["@ 300 IN SOA ns.invalid. host.invalid. 1 3600 600 86400 60", "@ 300 IN NS ns.invalid."]
        lines += [f"{name} 300 IN {rdtype} {record}" for name, rdtype, record in self._records]
        zone = dns.zone.from_text("\n".join(lines), origin=f"{self.name}.", relativize=False)
        anchor = ""
        if self.signed:
            key = ec.generate_private_key(ec.SECP256R1())
            dnskey = dns.dnssec.make_dnskey(key.public_key(), "ECDSAP256SHA256", flags=257)
            now = int(time.time())
            begun = now - DAY - self.age * DAY
            dns.dnssec.sign_zone(zone, keys=[(key, dnskey)], inception=begun, expiration=begun + 30 * DAY)
            anchor = f"{self.name}. 300 IN DNSKEY {dnskey}"
        for name, rdtype in self.bogus:
            self._spoil(zone, name, rdtype)
        path = folder / f"{self.name}.zone"
        path.write_text(zone.to_text(relativize=False))
        return path, anchor

    def _spoil(self, zone: dns.zone.Zone, name: str, rdtype: str) -> None:
        """Replace the signature over the records with one over others."""
        node = zone.get_node(dns.name.from_text(name, zone.origin))
        assert node is not None
        covered = dns.rdatatype.from_text(rdtype)
        signatures = node.get_rdataset(dns.rdataclass.IN, dns.rdatatype.RRSIG, covered)
        assert signatures is not None
        [signature] = signatures
        node.replace_rdataset(
            dns.rdataset.from_rdata(300, signature.replace(signature=bytes(len(signature.signature))))
        )


class SignedDns:
    """unbound, answering from the zones and nothing else, as a validating resolver of this machine would."""

    def __init__(self, zones: Sequence[SignedZone]) -> None:
        self._zones = [*zones, SignedZone(PROBE)]
        self._folder = Path(tempfile.mkdtemp(prefix="mailerd-test-dns-"))
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._written = [zone.write(self._folder) for zone in self._zones]
        for _ in range(10):  # until a port is free for both protocols
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
            (self._folder / "unbound.conf").write_text(self._configuration())
            self._process = await asyncio.create_subprocess_exec(
                "unbound", "-d", "-c", str(self._folder / "unbound.conf"), stderr=asyncio.subprocess.DEVNULL
            )
            if await self._answering():
                return self
        raise RuntimeError("unbound does not start")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        shutil.rmtree(self._folder)

    def _configuration(self) -> str:
        zones, anchors = "", ""
        for zone, (path, anchor) in zip(self._zones, self._written, strict=True):
            anchors += f'  trust-anchor: "{anchor}"\n' if anchor else ""
            zones += (
                f'auth-zone:\n  name: "{zone.name}"\n  zonefile: "{path}"\n'
                "  for-upstream: yes\n  for-downstream: no\n  fallback-enabled: no\n"
            )
        return (
            f"server:\n  interface: 127.0.0.1@{self._port}\n  access-control: 127.0.0.0/8 allow\n  use-syslog: no\n"
            f'  username: ""\n  chroot: ""\n  directory: "{self._folder}"\n  pidfile: ""\n  do-daemonize: no\n'
            '  module-config: "validator iterator"\n  num-threads: 1\n  local-zone: "test." nodefault\n'
            f'  local-zone: "example." nodefault\n  local-zone: "invalid." nodefault\n{anchors}'
            f"remote-control:\n  control-enable: no\n{zones}"
        )

    async def _answering(self) -> bool:
        query = dns.message.make_query(PROBE, "SOA")
        async with asyncio.timeout(60):
            while self._process.returncode is None:
                try:
                    await dns.asyncquery.udp(query, "127.0.0.1", port=self._port, timeout=0.2)
                    return self._process.returncode is None
                except (dns.exception.Timeout, OSError):
                    continue
        return False
