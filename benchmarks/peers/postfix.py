"""Postfix of the Debian package, an instance beside the system's own; OpenDKIM as its milter where mail is signed."""

import grp
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from benchmarks.cgroup import Accounting, accounting
from benchmarks.peers import Peer, free_port

# Debian's main.cf as far as it matters to a relay; nothing of it runs in a chroot, so that the spool needs no copy of
# /etc. The log is a file of its own: syslog would be somebody else's CPU time.
MAIN = """\
compatibility_level = 3.6
queue_directory = {spool}
data_directory = {data}
maillog_file = {log}
maillog_file_prefixes = {directory}
syslog_name = {name}
myhostname = bench.localhost
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [127.0.0.1]:{sink}
alias_maps =
alias_database =
local_recipient_maps =
biff = no
append_dot_mydomain = no
readme_directory = no
message_size_limit = 52428800
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_tls_security_level = none
smtpd_tls_security_level = none
"""
# What the documentation's tuning chapter offers for this load: no brake on intake while the queue moves, a concurrency
# that a single sink serves best (measured: 10; 20, the default, is slower).
TUNED = """\
in_flow_delay = 0
default_destination_concurrency_limit = 10
initial_destination_concurrency = 10
"""
MASTER = """\
127.0.0.1:{plain} inet n - n - - smtpd
127.0.0.1:{signing} inet n - n - - smtpd
  -o smtpd_milters=inet:127.0.0.1:{milter}
  -o milter_default_action=tempfail
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
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
    more = ""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._milter = accounting(f"{self.name}-opendkim")

    def parts(self, *, signed: bool) -> list[Accounting]:
        return [self.group, self._milter] if signed else [self.group]

    def start(self, sink_port: int, key: Path, selector: str) -> None:
        self._ports = {False: free_port(), True: free_port()}
        milter = free_port()
        self._start_opendkim(milter, key, selector)
        self._write_configuration(sink_port, milter)
        # Into the group by way of a shell that ends: the master process leaves its parent.
        self._postfix("start")
        for port in self._ports.values():
            self._wait_for_port(port)

    def port(self, *, signed: bool) -> int:
        return self._ports[signed]

    def stop(self) -> None:
        self._postfix("stop")
        super().stop()
        self._milter.close()

    def _write_configuration(self, sink_port: int, milter: int) -> None:
        spool, data, config = (self.directory / name for name in ("spool", "data", "etc"))
        for path in (spool, data, config):
            path.mkdir()
        user = pwd.getpwnam("postfix")
        os.chown(data, user.pw_uid, grp.getgrnam("postfix").gr_gid)
        fields = {"spool": spool, "data": data, "directory": self.directory, "log": self.directory / "maillog"}
        (config / "main.cf").write_text(MAIN.format(**fields, name=self.name, sink=sink_port) + self.more)
        ports = {"plain": self._ports[False], "signing": self._ports[True], "milter": milter}
        (config / "master.cf").write_text(MASTER.format(**ports))
        for name in ("dynamicmaps.cf", "postfix-files"):
            if Path("/etc/postfix", name).exists():
                shutil.copy(Path("/etc/postfix", name), config)

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
        subprocess.run(self.group.command(words), check=True, stderr=subprocess.DEVNULL, timeout=60)


class TunedPostfix(Postfix):
    """As somebody who knows it would set it for this load."""

    name = "postfix-tuned"
    more = TUNED


def missing() -> str:
    """What is not installed, in words for people; empty: nothing."""
    needed = {"postfix": "postfix", "smtp-source": "postfix", "opendkim": "opendkim"}
    packages = sorted({package for program, package in needed.items() if shutil.which(program) is None})
    return f"apt-get install {' '.join(packages)}" if packages else ""
