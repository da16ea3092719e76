"""Exim of the Debian package, unpacked and not installed: Debian has one mail server at a time, and that is Postfix.

    with Exim("127.0.0.6", port, routers=..., transports=...) as exim:
        ...  # mail to it, and look into exim.log

`scripts/exim` unpacks it into .venv/exim. It insists on a user Debian-exim, which the package would make: to it alone
(nss_wrapper) nobody has that name, or we ourselves where we are not root. So it has no privilege and needs none.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

TOP = Path(__file__).parents[2]
BINARY = TOP / ".venv" / "exim" / "usr" / "sbin" / "exim4"
START = 30.0  # seconds
USER = "Debian-exim"

# As it comes, but that everybody may have mail accepted and that a delivery is over within seconds.
MAIN = """\
primary_hostname = {name}
exim_path = {binary}
keep_environment = LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
deliver_drop_privilege = true
spool_directory = {directory}/spool
log_file_path = {directory}/%slog
pid_file_path = {directory}/pid
local_interfaces = {address}
daemon_smtp_ports = {port}
tls_advertise_hosts =
acl_smtp_rcpt = accept
acl_smtp_data = accept
{settings}
begin routers
{routers}
begin transports
{transports}
begin retry
{retry}
"""


def missing() -> str:
    """What keeps us from starting one, in words for people; "": nothing."""
    if not BINARY.exists() or _wrapper() is None:
        return "Exim is not unpacked: scripts/exim does it"
    return ""


def _wrapper() -> Path | None:
    return next(Path("/usr/lib").glob("*/libnss_wrapper.so"), None)


class Exim:
    """Listens on `address`:`port`; `settings`, `routers`, `transports` and `retry` are text of its configuration.

    Of these, `{directory}` stands for where it lives. Its queue is run every second.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        name: str,
        routers: str,
        transports: str,
        settings: str = "",
        retry: str = "",
    ) -> None:
        self.address = address
        self.port = port
        self._temporary = tempfile.TemporaryDirectory(prefix="mailerd-exim-", ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        # It runs itself again as that user, who may not get at ours: a checkout need not be readable for others.
        self._binary = Path(shutil.copy(BINARY, self.directory))
        self._config = self.directory / "exim.conf"
        own = {"settings": settings, "routers": routers, "transports": transports, "retry": retry}
        self._config.write_text(
            MAIN.format(
                name=name,
                binary=self._binary,
                directory=self.directory,
                address=address,
                port=port,
                **{key: text.replace("{directory}", str(self.directory)) for key, text in own.items()},
            )
        )
        self._config.chmod(0o644)
        self.directory.chmod(0o755)
        self._environ = self._names(user)
        self._process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        file = self.directory / "mainlog"
        return file.read_text() if file.exists() else ""

    def __enter__(self) -> Self:
        command = [str(self._binary), "-C", str(self._config), "-bdf", "-q1s"]
        with (self.directory / "said").open("ab") as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=said, env=self._environ)
        deadline = time.monotonic() + START
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, self.port), timeout=1.0).close()
                return self
            assert self._process.poll() is None, (self.directory / "said").read_text() + self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(START)
        self._temporary.cleanup()

    def _names(self, user: pwd.struct_passwd) -> dict[str, str]:
        """The environment in which `user` is called Debian-exim, and its directories are theirs."""
        users, groups = self.directory / "passwd", self.directory / "group"
        root = "root:x:0:0:root:/root:/bin/sh\n"
        users.write_text(f"{root}{USER}:x:{user.pw_uid}:{user.pw_gid}::/nonexistent:/bin/sh\n")
        groups.write_text(f"root:x:0:\n{USER}:x:{user.pw_gid}:\n")
        for path in (users, groups):
            path.chmod(0o644)
        os.chown(self.directory, user.pw_uid, user.pw_gid)
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_PRELOAD": str(_wrapper()),
            "NSS_WRAPPER_PASSWD": str(users),
            "NSS_WRAPPER_GROUP": str(groups),
        }
