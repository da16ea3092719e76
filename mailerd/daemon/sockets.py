"""The listening sockets: bound here, or handed over by systemd; every worker accepts from them."""

import errno
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from mailerd.config import Config, Endpoint
from mailerd.config.documents import Documents
from mailerd.config.places import exact_line_in
from mailerd.daemon.data_dir import StartError

log = structlog.get_logger()

BACKLOG = 4_096  # connections that wait while workers are busy or being restarted; net.core.somaxconn limits it
FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
HTTP = "http"  # the FileDescriptorName of the HTTP socket
HINTS = {
    errno.EADDRINUSE: "; `ss -ltnp` shows what listens there: end that, or take another port",
    errno.EADDRNOTAVAIL: "; no interface of this machine has the address",
    errno.EACCES: "; ports below 1024 need root, CAP_NET_BIND_SERVICE or a systemd socket",
    errno.EPERM: "; ports below 1024 need root, CAP_NET_BIND_SERVICE or a systemd socket",
}
HANDED_OVER = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(slots=True)
class Sockets:
    listeners: list[tuple[socket.socket, int]] = field(default_factory=list)  # with the index into config.listeners
    http: list[socket.socket] = field(default_factory=list)

    @property
    def all(self) -> list[socket.socket]:
        return [*(sock for sock, _ in self.listeners), *self.http]

    def close(self) -> None:
        for sock in self.all:
            sock.close()

    def __str__(self) -> str:
        """`smtp=127.0.0.1:2525,[::1]:2525 http=127.0.0.1:8025`"""
        parts = []
        if self.listeners:
            parts.append("smtp=" + ",".join(_name(sock) for sock, _ in self.listeners))
        if self.http:
            parts.append("http=" + ",".join(_name(sock) for sock in self.http))
        return " ".join(parts)


def open_sockets(config: Config, environ: Mapping[str, str], documents: Documents) -> Sockets:
    """Every socket of `config`: one that systemd handed over under its name or address, else a new one.

    Raises `StartError` when an address cannot be bound; it says where in `documents` that stands.
    """
    handed_over = _take_over(environ)
    sockets = Sockets()
    bind = partial(_bind, documents=documents)
    try:
        for index, listener in enumerate(config.listeners):
            taken = _matching(handed_over, listener.name or f"smtp{index}", listener.bind)
            sockets.listeners += [(sock, index) for sock in taken or bind(listener.bind, f"listeners[{index}].bind")]
        if config.http is not None:
            sockets.http += _matching(handed_over, HTTP, config.http.bind) or bind(config.http.bind, "http.bind")
    except BaseException:
        sockets.close()
        raise
    for name, sock in handed_over:
        log.warning("socket.unused", name=name, address=_name(sock))
        sock.close()
    return sockets


def _take_over(environ: Mapping[str, str]) -> list[tuple[str, socket.socket]]:
    """What systemd hands to this process (sd_listen_fds(3)), with the names."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    count = int(environ.get("LISTEN_FDS", "0"))
    taken = []
    for offset in range(count):
        sock = socket.socket(fileno=FIRST_DESCRIPTOR + offset)
        sock.set_inheritable(False)
        taken.append((names[offset] if offset < len(names) else "", sock))
    return taken


def _matching(handed_over: list[tuple[str, socket.socket]], name: str, bind: Endpoint) -> list[socket.socket]:
    """Take those of `name` out of the list, else those bound to the address."""
    chosen = [entry for entry in handed_over if entry[0] == name]
    chosen = chosen or [entry for entry in handed_over if _address(entry[1]) == (bind.host, bind.port)]
    for entry in chosen:
        handed_over.remove(entry)
    return [sock for _, sock in chosen]


def _bind(bind: Endpoint, key: str, *, documents: Documents) -> list[socket.socket]:
    """Listen on every address that the host stands for."""
    bound: list[socket.socket] = []
    try:
        for family, address in _resolve(bind):
            sock = socket.socket(family, socket.SOCK_STREAM)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # so that 0.0.0.0 and [::] may both be listeners
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in bound:
            sock.close()
        line = exact_line_in(documents.text, key)
        place = f"{documents.path}:{line}: {key}" if line else key
        text = f"{place}: cannot listen on {_text(bind.host, bind.port)}: {error.strerror}"
        raise StartError(text + HINTS.get(error.errno or 0, ""), os.EX_UNAVAILABLE) from error
    return bound


def _resolve(bind: Endpoint) -> Iterable[tuple[socket.AddressFamily, tuple[object, ...]]]:
    found = socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return dict.fromkeys((socket.AddressFamily(entry[0]), entry[4]) for entry in found)


def _address(sock: socket.socket) -> tuple[str, int]:
    with suppress(OSError):
        address = sock.getsockname()
        if isinstance(address, tuple):
            return address[0], address[1]
    return "", 0


def _name(sock: socket.socket) -> str:
    return _text(*_address(sock))


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
