"""What systemd wants to hear: sd_notify(3) without libsystemd."""

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
PATIENCE = 1.0  # seconds that one word may wait for room in the queue of the service manager


class Service:
    """Speaks to the service manager that started us; to nobody when there is none.

    Takes its variables out of `environ`, so that no child of ours takes itself for the service.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = int(environ.get("WATCHDOG_USEC", "0")) if watched else 0
        self.watchdog_every: float | None = period / 2_000_000 or None  # seconds: half of what is allowed
        for name in OURS:
            environ.pop(name, None)

    def ready(self) -> None:
        self._notify("READY=1")

    def reloading(self) -> None:
        """To be followed by `ready`. With the time that Type=notify-reload wants."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reading the configuration again")

    def stopping(self) -> None:
        self._notify("STOPPING=1\nSTATUS=stopping")

    def status(self, text: str) -> None:
        self._notify(f"STATUS={text}")

    def watchdog(self) -> None:
        self._notify("WATCHDOG=1", patience=0.0)  # another one follows

    def _notify(self, state: str, patience: float = PATIENCE) -> None:
        """Say it, or give it up: whoever does not read (its queue holds ten) must not hold us up."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(patience)
                sock.connect(self._address)
                sock.send(state.encode())
