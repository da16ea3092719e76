"""Postfix of the Debian package, an instance beside the system's own; OpenDKIM as its milter where mail is signed."""

import shutil
import subprocess
from pathlib import Path

from benchmarks.cgroup import Accounting, accounting
from benchmarks.peers import Peer, Tls, UnavailableError, check_open, free_port
from benchmarks.peers.installed import apt_install
from tests.support.postfix import lay_out

# As little as a relay needs. The log is a file of its own: syslog would be somebody else's CPU time.
MAIN = """\
syslog_name = {name}
myhostname = bench.localhost
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
relayhost = [127.0.0.1]:{sink}
alias_maps =
alias_database =
local_recipient_maps =
message_size_limit = 52428800
smtpd_relay_restrictions = permit_mynetworks, reject
"""
# What the documentation's tuning chapter offers for this load: no brake on intake while the queue moves, a concurrency
# that a single sink serves best (measured: 10; 20, the default, is slower).
TUNED = """\
in_flow_delay = 0
default_destination_concurrency_limit = 10
initial_destination_concurrency = 10
"""
# As the package sets it, and with a way of its own for what is to go encrypted. smtp_tls_connection_reuse would keep
# its connections, but the tlsproxy that it needs dies by a signal at the first of them (3.7.11 of Debian 12).
ENCRYPTED = """\
smtpd_tls_chain_files = {directory}/server.pem
smtp_tls_session_cache_database = btree:{directory}/data/smtp_scache
transport_maps = inline:{{tls.example=encrypted:[127.0.0.1]:{sink}}}
"""
SMTPD_TLS = "  -o smtpd_tls_security_level=may\n"
SMTP_TLS = """\
encrypted unix - - n - - smtp
  -o smtp_tls_security_level=may
"""
MASTER = """\
127.0.0.1:{plain} inet n - n - - smtpd
{tls}127.0.0.1:{signing} inet n - n - - smtpd
{tls}  -o smtpd_milters=inet:127.0.0.1:{milter}
  -o milter_default_action=tempfail
"""
# Signing only, with what its manual names for it; the fields and the canonicalisation that mailerd uses.
OPENDKIM = """\
Socket inet:{milter}@127.0.0.1
Domain signed.example
Selector {selector}
KeyFile {key}
Mode s
Canonicalization relaxed/relaxed
InternalHosts 127.0.0.0/8
Syslog no
UserID opendkim
RequireSafeKeys no
"""


class Postfix(Peer):
    """As the package leaves it."""

    name = "postfix"
    at_250 = "the queue file, fsynced by cleanup"
    more = ""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._milter = accounting(f"{self.name}-opendkim")

    def parts(self, *, signed: bool) -> list[Accounting]:
        return [self.group, self._milter] if signed else [self.group]

    @classmethod
    def prepare(cls) -> None:
        if packages := _lacking():
            apt_install(*packages)
        if _lacking():
            raise UnavailableError(missing())

    def version(self) -> str:
        words = ["postconf", "-hd", "mail_version"]
        number = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
        return f"Postfix {number}"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        check_open(self.directory)
        self._ports = {False: free_port(), True: free_port()}
        milter = free_port()
        self._start_opendkim(milter, key, selector)
        self._write_configuration(sink_port, milter, tls)
        # Into the group by way of a shell that ends: the master process leaves its parent.
        self._postfix("start")
        for port in self._ports.values():
            self._wait_for_port(port)

    def port(self, *, signed: bool) -> int:
        return self._ports[signed]

    def stop(self) -> None:
        try:
            self._postfix("stop")
        finally:
            try:
                super().stop()
            finally:
                self._milter.close()

    def _write_configuration(self, sink_port: int, milter: int, tls: Tls | None) -> None:
        ports = {"plain": self._ports[False], "signing": self._ports[True], "milter": milter}
        settings = MAIN.format(name=self.name, sink=sink_port) + self.more
        services = MASTER.format(**ports, tls=SMTPD_TLS if tls else "")
        if tls is not None:
            (self.directory / "server.pem").write_bytes(tls.key.read_bytes() + tls.certificate.read_bytes())
            (self.directory / "server.pem").chmod(0o600)
            settings += ENCRYPTED.format(directory=self.directory, sink=tls.sink_port)
            services += SMTP_TLS
        lay_out(self.directory, settings, services)

    def _start_opendkim(self, milter: int, key: Path, selector: str) -> None:
        own = self.directory / "key.pem"
        shutil.copy(key, own)
        shutil.chown(own, "opendkim")
        file = self.directory / "opendkim.conf"
        file.write_text(OPENDKIM.format(milter=milter, key=own, selector=selector))
        self._run(["opendkim", "-f", "-x", file], "opendkim.log", self._milter)
        self._wait_for_port(milter)

    def _postfix(self, order: str) -> None:
        words = ["postfix", "-c", str(self.directory / "etc"), order]
        # A file, not a pipe: the master process may keep it. What went wrong is in its own log, or only in here.
        self._logs = [self.directory / "postfix.log", self.directory / "maillog"]
        with self._logs[0].open("wb") as output:
            done = subprocess.run(self.group.command(words), check=False, stdout=output, stderr=output, timeout=60)
        if done.returncode:
            raise RuntimeError(f"postfix {order} ended with status {done.returncode}{self._said()}")


class TunedPostfix(Postfix):
    """As somebody who knows it would set it for this load."""

    name = "postfix-tuned"
    more = TUNED


def _lacking() -> list[str]:
    needed = {"postfix": "postfix", "smtp-source": "postfix", "opendkim": "opendkim"}
    return sorted({package for program, package in needed.items() if shutil.which(program) is None})


def missing() -> str:
    """What is not installed, in words for people; empty: nothing."""
    packages = _lacking()
    return f"apt-get install {' '.join(packages)}" if packages else ""
