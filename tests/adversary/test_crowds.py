"""Ten thousand connections at once, by SMTP and by HTTP: no more memory than their number allows, and others served."""

import contextlib
import http.client
import json
import os
import resource
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailerd.web.services import Limits
from tests.adversary.crowd import most
from tests.support.live import CONFIG, TOP, LiveDaemon

CROWD = min(10_000, most())
TURNED_AWAY = 500
EACH = 30_000  # bytes of ours for one idle connection, and that is generous
LIMITED = CONFIG + f"smtp: {{{{max_connections: {CROWD - TURNED_AWAY}}}}}\n"
USUAL = 1024  # files that a process may have where nobody has raised that


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveDaemon]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    daemon = LiveDaemon(tmp_path, config=LIMITED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL, soft), hard))  # it inherits that, and raises it itself
    try:
        daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    yield daemon
    daemon.stop()


@contextlib.contextmanager
def crowd(address: tuple[str, int], count: int, *more: str) -> Iterator[dict[str, int]]:
    """What became of so many connections, which are held meanwhile."""
    command = [sys.executable, "-m", "tests.adversary.crowd", address[0], str(address[1]), str(count), *more]
    with subprocess.Popen(command, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


def resident(pid: int) -> int:
    """Bytes of our own of a process and of those below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    own = (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGESIZE")
    return own + sum(resident(int(child)) for child in children)


def sends(live: LiveDaemon) -> None:
    with smtplib.SMTP(*live.smtp, timeout=30) as smtp:
        smtp.sendmail("me@here.example", ["ann@there.example"], "Subject: x\r\n\r\nx\r\n")


def healthy(live: LiveDaemon) -> bool:
    connection = http.client.HTTPConnection(*live.http, timeout=30)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.mark.timeout(240)
def test_ten_thousand_connections_cost_bounded_memory_and_keep_nobody_out(live: LiveDaemon) -> None:
    before = resident(live.process.pid)
    sends(live)

    with crowd(live.smtp, CROWD) as became:
        assert became == {"220": CROWD - TURNED_AWAY, "421": TURNED_AWAY, "silent": 0}
        assert resident(live.process.pid) - before < CROWD * EACH
        assert healthy(live), "HTTP is another matter"
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            sends(live)
    with crowd(live.smtp, CROWD - TURNED_AWAY - 50) as became:  # those before have gone
        assert became["220"] == CROWD - TURNED_AWAY - 50
        sends(live)

    with crowd(live.http, CROWD + TURNED_AWAY, "--ask") as became:
        assert became.get("HTT", 0) <= Limits().connections, "more are closed at once"
        assert became.get("HTT", 0) + became.get("closed", 0) == CROWD + TURNED_AWAY
        assert resident(live.process.pid) - before < 2 * CROWD * EACH
        sends(live)
    assert healthy(live)
