"""Opens connections from many addresses of 127/8 and holds them: `python -m tests.adversary.crowd HOST PORT COUNT`.

A process of its own, with as many files as it may have. It says what has become of the connections, a line of JSON,
when each is either answered or closed; then it holds them until its standard input ends. `--ask`: by HTTP, where the
client speaks first.
"""

import argparse
import json
import resource
import select
import socket
import sys
import time
from collections import Counter

FROM_ONE = 250  # connections of one address
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE = 60.0  # seconds
SPARE = 200  # files beside the connections
AT_ONCE = 200  # that are being opened: no more than wait to be accepted


def most() -> int:
    """Connections that one process may have here."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE


def run(host: str, port: int, count: int, request: bytes) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    poll = select.epoll()
    open_: dict[int, socket.socket] = {}
    waiting: set[int] = set()
    became: Counter[str] = Counter()
    made, began = 0, time.monotonic()
    while made < count or waiting:
        while made < count and len(waiting) < AT_ONCE:
            sock = _begin(host, port, made // FROM_ONE)
            open_[sock.fileno()] = sock
            waiting.add(sock.fileno())
            poll.register(sock, select.EPOLLOUT if request else select.EPOLLIN)
            made += 1
        for number, events in poll.poll(0.1, 1_000):
            if events == select.EPOLLOUT:
                open_[number].send(request)
                poll.modify(number, select.EPOLLIN)
                continue
            poll.unregister(number)  # held, and not listened to any more
            waiting.discard(number)
            became[_said(open_[number])] += 1
        if time.monotonic() - began > PATIENCE:
            break
    became["silent"] = len(waiting)
    print(json.dumps(became), flush=True)
    sys.stdin.read()


def _begin(host: str, port: int, source: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is found when it connects
    sock.bind((f"127.1.{source // 250}.{source % 250 + 1}", 0))
    sock.connect_ex((host, port))
    return sock


def _said(sock: socket.socket) -> str:
    """The first three bytes, "closed" when there is nothing but the end."""
    try:
        return sock.recv(100)[:3].decode() or "closed"
    except ConnectionError:
        return "closed"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--ask", action="store_true")
    given = parser.parse_args()
    run(given.host, given.port, given.count, REQUEST if given.ask else b"")
