"""Postfix of the Debian package, as instances beside the system's own: nothing of them outside their directory.

    with Postfix("127.0.0.7", port, settings={"mydestination": "example.net"}) as postfix:
        ...  # mail to it, and look into postfix.log

Needs root, and the user and group that the package makes. `lay_out` is for whoever starts it in another way.
"""

import grp
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

START = 60.0  # seconds that an order to it may take

# Where it lives, and that nothing of it runs in a chroot, so that the spool needs no copy of /etc. The log is a file of
# its own.
PLACES = """\
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
maillog_file = {directory}/maillog
maillog_file_prefixes = {directory}
inet_protocols = ipv4
biff = no
append_dot_mydomain = no
readme_directory = no
smtp_tls_security_level = none
smtpd_tls_security_level = none
"""
SERVICES = """\
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
local     unix  -       n       n       -       -       local
virtual   unix  -       n       n       -       -       virtual
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""


def missing() -> str:
    """What keeps us from starting one, in words for people; "": nothing."""
    if shutil.which("postfix") is None:
        return "apt-get install postfix"
    return "" if os.geteuid() == 0 else "Postfix is started by root only"


def lay_out(directory: Path, settings: str, services: str) -> Path:
    """Make the spool and the configuration of an instance in `directory`; where its configuration is."""
    for name in ("spool", "data", "etc"):
        (directory / name).mkdir()
    os.chown(directory / "data", pwd.getpwnam("postfix").pw_uid, grp.getgrnam("postfix").gr_gid)
    etc = directory / "etc"
    (etc / "main.cf").write_text(PLACES.format(directory=directory) + settings)
    (etc / "master.cf").write_text(services + SERVICES)
    for name in ("dynamicmaps.cf", "postfix-files"):
        if Path("/etc/postfix", name).exists():
            shutil.copy(Path("/etc/postfix", name), etc)
    return etc


class Postfix:
    """Listens on `address`:`port` and takes mail for its own domains. `services` are more lines of its master.cf.

    In `settings` and `services` `{directory}` stands for where it lives: a directory that all of its users may enter.
    """

    def __init__(self, address: str, port: int, *, settings: Mapping[str, str], services: str = "") -> None:
        self.address = address
        self.port = port
        # Not that of pytest: only its own user may enter that.
        self._temporary = tempfile.TemporaryDirectory(prefix="mailerd-postfix-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self.directory.chmod(0o755)
        # It insists on an address that an interface is configured with; master.cf says where it really listens.
        own = {"inet_interfaces": "127.0.0.1", "mynetworks": "127.0.0.0/8", "mydestination": "", **settings}
        lines = "".join(f"{name} = {value}\n" for name, value in own.items())
        listening = f"{address}:{port} inet n - n - - smtpd\n"
        self._etc = lay_out(
            self.directory,
            lines.replace("{directory}", str(self.directory)),
            listening + services.replace("{directory}", str(self.directory)),
        )

    @property
    def log(self) -> str:
        file = self.directory / "maillog"
        return file.read_text() if file.exists() else ""

    def __enter__(self) -> Self:
        self._order("start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._order("abort")  # at once: nothing in its queue is worth waiting for
        self._temporary.cleanup()

    def _order(self, order: str) -> None:
        words = ["postfix", "-c", str(self._etc), order]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=START)
        assert done.returncode == 0, f"postfix {order}: {done.stderr} {self.log}"
