"""What telling endpoints costs mail: none, a healthy one (with and without batches), a hanging one, a hundred.

All are told by one mailerd, one kind after the other, in rounds; the receiver is a process of its own on this machine,
so the healthy ones also cost what it takes itself.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from aiohttp import web

from benchmarks import machine
from benchmarks.cgroup import accounting
from benchmarks.load import Bench, Load, Run
from benchmarks.peers import free_port
from benchmarks.peers.mailerd import Mailerd
from benchmarks.report import Results, machine_line
from benchmarks.signing import SELECTOR, make_key
from mailerd.db import Pool, connect_pool
from mailerd.db.embedded import running_url
from mailerd.events import START
from mailerd.feedback.webhooks.store import WebhookStore
from mailerd.feedback.webhooks.teller import new_id
from mailerd.feedback.webhooks.values import Webhook

KB = 1024
WARM_UP = 500
CATCH_UP = 120.0  # seconds for a healthy endpoint after the mail
SETTINGS = {"webhooks": {"allow_private": ["localhost"], "timeout": "15s"}}


@dataclass(frozen=True)
class Kind:
    """`count` endpoints at the path `path` of the receiver."""

    name: str
    count: int = 0
    path: str = "/ok"
    events: str = "email.*"
    batch: int = 1


KINDS = (
    Kind("no endpoint"),
    Kind("healthy, bounces only", 1, events="email.bounced"),
    Kind("healthy, all events, 100 a request", 1, batch=100),
    Kind("healthy, all events, one a request", 1),
    Kind("hanging, all events", 1, path="/hang"),
    Kind("refusing (503), all events", 1, path="/503"),
    Kind("100 endpoints, bounces only", 100, events="email.bounced"),
    Kind("100 hanging endpoints, all events", 100, path="/hang"),
)


class System:
    """mailerd and the receiver."""

    def __init__(self, work: Path) -> None:
        self.port = free_port()
        self.receiver = subprocess.Popen([sys.executable, "-m", "benchmarks.webhooks", str(self.port)])
        self.peer = Mailerd(work / "mailerd", **SETTINGS)

    def add(self, kind: Kind) -> list[int]:
        """Endpoints; more than the API lets a tenant have."""
        return asyncio.run(self._add(kind))

    async def _add(self, kind: Kind) -> list[int]:
        async with self._pool() as pool:
            made = [
                await WebhookStore(pool).add(self._webhook(kind), limit=1_000, actor="bench") for _ in range(kind.count)
            ]
        return [webhook.id for webhook in made if webhook is not None]

    def _webhook(self, kind: Kind) -> Webhook:
        now = datetime.now(UTC)
        return Webhook(
            id=new_id(now),
            tenant="default",
            url=f"http://localhost:{self.port}{kind.path}",
            events=(kind.events,),
            batch_events=kind.batch,
            batch_wait=1000 if kind.batch > 1 else 0,
            secret=os.urandom(32),
            position=START,
            created_at=now,
        )

    def delete(self, ids: list[int]) -> None:
        asyncio.run(self._delete(ids))

    async def _delete(self, ids: list[int]) -> None:
        async with self._pool() as pool:
            for id_ in ids:
                await WebhookStore(pool).delete(id_, "default", actor="bench")

    @asynccontextmanager
    async def _pool(self) -> AsyncIterator[Pool]:
        url = running_url(self.peer.data_dir)
        assert url is not None
        pool = await connect_pool(url, min=1, max=1)
        try:
            yield pool
        finally:
            await pool.close()

    def wait(self) -> float:
        """Seconds until all endpoints came to the end, at most `CATCH_UP`."""
        begun = time.monotonic()
        while time.monotonic() - begun < CATCH_UP:
            before = self.told()
            time.sleep(1.0)
            if self.told() == before:
                break
        return time.monotonic() - begun

    def told(self) -> int:
        counted = subprocess.run(
            ["curl", "-s", f"http://localhost:{self.port}/count"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        ).stdout
        return int(counted) if re.fullmatch(r"\d+", counted) else 0

    def close(self) -> None:
        self.receiver.terminate()
        self.receiver.wait(10)


def run(work: Path, results: Results, *, rounds: int, count: int) -> None:
    """Measure, write, say."""
    described = machine.describe(work)
    with ExitStack() as stack:
        source, sink_group = accounting("source"), accounting("sink")
        stack.callback(source.close)
        stack.callback(sink_group.close)
        bench = Bench(work, source, sink_group)
        stack.callback(bench.close)
        system = System(work)
        stack.callback(system.close)
        stack.callback(system.peer.stop)
        system.peer.start(bench.sink.port, make_key(work)[0], SELECTOR)
        results.line(machine=described)
        bench.run(system.peer, Load(count=WARM_UP))
        runs: dict[str, list[tuple[Run, int, float]]] = {kind.name: [] for kind in KINDS}
        for number in range(rounds):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                ids = system.add(kind)
                time.sleep(2.0)  # they are heard of
                before = system.told()
                one = bench.run(system.peer, Load(count=count))
                late = system.wait() if kind.path == "/ok" and kind.count else 0.0
                told = system.told() - before
                system.delete(ids)
                runs[kind.name].append((one, told, late))
                results.line(round=number, kind=kind.name, told=told, late=round(late, 1), **one.as_dict())
        rows = [
            (
                name,
                f"{median(one.rate for one, _, _ in many):,.0f}",
                f"{median(one.cpu_us for one, _, _ in many):,.0f}",
                f"{median(told for _, told, _ in many):,.0f}",
                f"{median(late for _, _, late in many):.0f}",
            )
            for name, many in runs.items()
        ]
    lines = ["| endpoints | mail/s | CPU of a mail, µs | events told | s after the mail |", "|---|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    results.text("\n".join([*lines, "", machine_line(described)]))


def serve(port: int) -> None:
    """The receiver: `/ok` counts, `/hang` never answers, `/503` refuses, `/count` says."""
    told = 0

    async def take(request: web.Request) -> web.StreamResponse:
        nonlocal told
        if request.path == "/count":
            return web.Response(text=str(told))
        body = await request.read()
        if request.path == "/hang":
            await asyncio.Event().wait()
        if request.path == "/503":
            return web.Response(status=503)
        told += body.count(b'"timestamp"')
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    web.run_app(app, host="localhost", port=port, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
