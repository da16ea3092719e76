"""OpenSMTPD of the Debian package, unpacked. It has no DKIM: that would be a filter in another process."""

from pathlib import Path

from benchmarks.peers import Peer, Tls, free_port
from benchmarks.peers.installed import accounts, in_place_of, unpacked

PACKAGE = "opensmtpd"
USERS = {"opensmtpd": 64_010, "opensmtpq": 64_011}
# Its brakes are made for the Internet: five messages in a row to one host, seconds between connections, and so on.
# With them, a relay to one host stands still most of the time.
CONFIG = """\
smtp max-message-size 50M
smtp limit max-mails 1000000
mta limit max-conn-per-host 100 max-conn-per-route 100 max-conn-per-source 1000
mta limit max-conn-per-connector 100 max-conn-per-relay 100 max-conn-per-domain 100
mta limit conn-delay-host 0 conn-delay-source 0 conn-delay-connector 0 conn-delay-relay 0 conn-delay-domain 0
mta limit session-mail-max 100000 session-transaction-delay 0 task-hiwat 5000 task-lowat 3000 task-release 1000
scheduler limit max-inflight 50000 max-evp-batch-size 1000 max-msg-batch-size 1000 max-schedule 1000
listen on 127.0.0.1 port {port} hostname bench.localhost
action "sink" relay host "smtp+notls://127.0.0.1:{sink}" helo bench.localhost
match from any for any action "sink"
"""


class OpenSmtpd(Peer):
    """Seven processes, one of them each for the queue, the scheduler and all of SMTP.

    Five connections may wait to be accepted, which is compiled in: of many at once some are tried again a second later.
    """

    name = "opensmtpd"
    no_signature = "does not sign"
    # https://github.com/OpenSMTPD/OpenSMTPD/issues/1171: its key is in another process, where OpenSSL 3 does not look.
    no_tls = "no STARTTLS: this version cannot be a TLS server with OpenSSL 3"
    at_250 = "files of message and envelope, written and renamed; Debian's build does not fsync them"

    @classmethod
    def prepare(cls) -> None:
        unpacked(PACKAGE)

    def version(self) -> str:
        return f"OpenSMTPD {(unpacked(PACKAGE) / 'version').read_text()}"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        self._port = free_port()
        config = self.directory / "smtpd.conf"
        config.write_text(CONFIG.format(port=self._port, sink=sink_port))
        config.chmod(0o600)
        places = accounts(self.directory, USERS)
        # It asks for the name of every client: nobody is to wait for a name server here.
        (self.directory / "resolv.conf").write_text("lookup file\n")
        places["/etc/resolv.conf"] = self.directory / "resolv.conf"
        for theirs in ("/var/spool", "/var/lib", "/run"):
            places[theirs] = self.directory / theirs.strip("/").replace("/", "-")
            places[theirs].mkdir()
        (places["/var/spool"] / "smtpd").mkdir(mode=0o711)
        (places["/var/lib"] / "opensmtpd" / "empty").mkdir(parents=True)
        program = unpacked(PACKAGE) / "usr/sbin/smtpd"
        self._run([*in_place_of(places), program, "-d", "-f", config], "log")
        self._wait_for_port(self._port)

    def port(self, *, signed: bool) -> int:
        return self._port
