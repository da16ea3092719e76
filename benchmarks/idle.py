"""Many clients that are connected and say nothing: what each costs, and whether mail still gets in beside them."""

import smtplib
import socket
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks import machine
from benchmarks.cgroup import memory
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from benchmarks.sink import Sink

CLIENTS = [f"127.0.0.{last}" for last in range(2, 12)]  # addresses to connect from, in turn
PROBES = 50
WATCH = 5.0  # seconds of doing nothing
CONTENT = "From: probe@plain.example\r\nSubject: probe\r\n\r\n" + ("x" * 70 + "\r\n") * 140


def run(work: Path, results: Results, *, connections: int) -> None:
    """Postfix is not beside it: it needs a process for each connection, and stops at 100 of them by default."""
    described = machine.describe(work)
    sink = Sink([], work)
    peer = Mailerd(work / "mailerd")
    peer.start(sink.port, make_key(work)[0], SELECTOR)
    clients: list[socket.socket] = []
    try:
        _probe(peer.port(signed=False))  # warm
        before, waits_before = memory(peer.group.pids()), _probe(peer.port(signed=False))
        cpu, begun = peer.group.cpu(), time.monotonic()
        clients += [_connect(peer.port(signed=False), number) for number in range(connections)]
        opened, cpu_opened = time.monotonic() - begun, peer.group.cpu() - cpu
        time.sleep(1.0)
        after, cpu = memory(peer.group.pids()), peer.group.cpu()
        time.sleep(WATCH)
        resting = (peer.group.cpu() - cpu) / WATCH
        waits_after = _probe(peer.port(signed=False))
        alive = sum(_alive(client) for client in clients)
    finally:
        for client in clients:
            client.close()
        peer.stop()
        sink.close()
    figures = {
        "connections": connections,
        "alive": alive,
        "memory_before_mb": round(before / 1e6, 1),
        "memory_after_mb": round(after / 1e6, 1),
        "kb_each": round((after - before) / connections / 1000, 2),
        "opened_per_second": round(connections / opened),
        "open_cpu_us": round(cpu_opened / connections * 1e6),
        "idle_cpu_percent": round(resting * 100, 2),
        "accept_ms": _milliseconds(waits_before),
        "accept_ms_beside_them": _milliseconds(waits_after),
    }
    results.line(machine=described)
    results.line(**figures)
    results.text(machine_line(described))
    results.table(
        "Idle SMTP connections", ["what", "value"], [[name, _shown(value)] for name, value in figures.items()]
    )


def _connect(port: int, number: int) -> socket.socket:
    """A client that got the greeting and the answer to EHLO, as one that waits for its next message has."""
    client = socket.create_connection(("127.0.0.1", port), 30.0, (CLIENTS[number % len(CLIENTS)], 0))
    client.recv(1024)
    client.sendall(b"EHLO idle.localhost\r\n")
    client.recv(4096)
    return client


def _alive(client: socket.socket) -> bool:
    client.sendall(b"NOOP\r\n")
    return client.recv(1024).startswith(b"250")


def _probe(port: int) -> list[float]:
    """Seconds from connecting to the reply after the dot, of new clients one after the other."""
    waits = []
    for number in range(PROBES):
        begun = time.monotonic()
        with smtplib.SMTP("127.0.0.1", port, "probe.localhost") as client:
            client.sendmail("probe@plain.example", [f"{number}@sink.example"], CONTENT)
            waits.append(time.monotonic() - begun)
    return waits


def _shown(value: object) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def _milliseconds(waits: list[float]) -> dict[str, float]:
    return {
        "p50": round(median(waits) * 1e3, 2),
        "p90": round(quantiles(waits, n=10)[-1] * 1e3, 2),
        "max": round(max(waits) * 1e3, 2),
    }
