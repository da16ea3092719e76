"""Exim of the Debian package (exim4-daemon-light), unpacked; its own DKIM and TLS (GnuTLS)."""

import os
import shutil
from pathlib import Path

from benchmarks.peers import Peer, Tls, free_port
from benchmarks.peers.installed import accounts, in_place_of, unpacked

PACKAGE = "exim4-daemon-light"
USER, NUMBER = "Debian-exim", 64_000
# As it comes, but for what a relay under load needs: more than 20 clients and 10 messages on a connection are delivered
# at once, signatures that come in are not verified, the spool is split. It has no lookups of names to make.
MAIN = """\
primary_hostname = bench.localhost
exim_path = {binary}
keep_environment =
deliver_drop_privilege = true
spool_directory = {directory}/spool
log_file_path = {directory}/%slog
pid_file_path = {directory}/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
message_size_limit = 50M
smtp_accept_max = 300
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 300
smtp_accept_max_per_connection = 0
split_spool_directory = true
dns_dnssec_ok = -1
acl_smtp_connect = start
acl_smtp_rcpt = accept
acl_smtp_data = accept
{server}
begin acl
start:
  accept control = dkim_disable_verify
begin routers
encrypted:
  driver = manualroute
  domains = tls.example
  transport = ${{if match_domain{{$sender_address_domain}}{{signed.example}}{{signed}}{{unsigned}}}}
  route_list = * 127.0.0.1::{tls_sink}
  self = send
sink:
  driver = manualroute
  transport = ${{if match_domain{{$sender_address_domain}}{{signed.example}}{{signed}}{{unsigned}}}}
  route_list = * 127.0.0.1::{sink}
  self = send
begin transports
unsigned:
  driver = smtp
  hosts_try_dane =
  tls_verify_certificates =
signed:
  driver = smtp
  hosts_try_dane =
  tls_verify_certificates =
  dkim_domain = signed.example
  dkim_selector = {selector}
  dkim_private_key = {key}
  dkim_canon = relaxed
begin retry
* * F,1h,10s
"""
SERVER = """\
tls_advertise_hosts = *
tls_certificate = {directory}/certificate.pem
tls_privatekey = {directory}/certificate.key
"""


class Exim(Peer):
    """One process for each connection, and one for each message that it delivers."""

    name = "exim"
    at_250 = "two files of the spool, header and content, each fsynced"

    @classmethod
    def prepare(cls) -> None:
        unpacked(PACKAGE)

    def version(self) -> str:
        return f"Exim {(unpacked(PACKAGE) / 'version').read_text()}"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        self._port = free_port()
        # A copy: it runs itself again as its own user, who need not be able to read where we live.
        binary = Path(shutil.copy(unpacked(PACKAGE) / "usr/sbin/exim4", self.directory))
        binary.chmod(0o755)
        names = accounts(self.directory, {USER: NUMBER})
        signing = self._own(key, mode=0o644)
        if tls is not None:
            for file in (tls.certificate, tls.key):
                self._own(file, mode=0o644)
        config = self.directory / "exim.conf"
        config.write_text(
            MAIN.format(
                binary=binary,
                directory=self.directory,
                port=self._port,
                server=SERVER.format(directory=self.directory) if tls else "tls_advertise_hosts =",
                sink=sink_port,
                tls_sink=tls.sink_port if tls else sink_port,
                selector=selector,
                key=signing,
            )
        )
        os.chown(self.directory, NUMBER, NUMBER)
        self._run([*in_place_of(names), binary, "-C", config, "-bdf", "-q10s"], "said")
        self._wait_for_port(self._port)

    def port(self, *, signed: bool) -> int:
        """One for both: the sender's domain decides."""
        return self._port
