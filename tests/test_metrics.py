import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mailerd import metrics


def test_what_is_counted_is_shown() -> None:
    metrics.flush()  # what other tests have counted
    before = REGISTRY.get_sample_value("mailerd_recipients_accepted_total", {"stream": "marketing", "protocol": "smtp"})
    metrics.accepted("marketing", "smtp", recipients=3, size=1000)
    metrics.flush()

    after = REGISTRY.get_sample_value("mailerd_recipients_accepted_total", {"stream": "marketing", "protocol": "smtp"})
    assert (after or 0) - (before or 0) == 3
    assert b'mailerd_messages_accepted_total{protocol="smtp",stream="marketing"}' in metrics.render()


def test_attempts_are_counted_by_source() -> None:
    metrics.attempted_from("mta1", "deferred", "rate_limit")
    assert b'mailerd_source_attempts_total{kind="rate_limit",outcome="deferred",source="mta1"} 1.0' in metrics.render()


def test_sites_beyond_the_limit_are_counted_together() -> None:
    """In a process of its own: the limit holds for all that this one has ever counted."""
    count = (
        "import sys; from mailerd import metrics\n"
        "for n in range(metrics.MAX_SITES + 50): metrics.attempted('s', f'mx{n}.example', 'delivered', 'ok')\n"
        "sys.stdout.buffer.write(metrics.render())"
    )
    shown = subprocess.run([sys.executable, "-c", count], check=True, capture_output=True).stdout.splitlines()

    lines = [line for line in shown if line.startswith(b"mailerd_attempts_total")]
    assert len(lines) == metrics.MAX_SITES + 1
    assert b'mailerd_attempts_total{kind="ok",outcome="delivered",site="other",stream="s"} 50.0' in lines


def test_processes_are_added_up(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    count = (
        "from mailerd import metrics\n"
        "metrics.accepted('marketing', 'http', 1, 10); metrics.sessions('in', 2); metrics.flush()"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", count], env=environment, check=True)
    show = "import sys; from mailerd import metrics; sys.stdout.buffer.write(metrics.render())"
    shown = subprocess.run([sys.executable, "-c", show], env=environment, check=True, capture_output=True).stdout

    assert b'mailerd_messages_accepted_total{protocol="http",stream="marketing"} 2.0' in shown


def test_a_queue_that_has_drained_is_shown_as_empty() -> None:
    metrics.waiting({("transactional", "held"): 7})
    assert b'mailerd_queue_recipients{state="held",stream="transactional"} 7.0' in metrics.render()
    metrics.waiting({})
    assert b'mailerd_queue_recipients{state="held",stream="transactional"} 0.0' in metrics.render()


@pytest.mark.parametrize("shared", [False, True])
def test_the_gauges_of_an_endpoint_end_with_it(tmp_path: Path, shared: bool) -> None:
    environment = {**os.environ, **({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else {})}
    code = (
        "import sys; from mailerd import metrics\n"
        "for name in ('one', 'two'): metrics.webhook_behind(name, 3.0, 1)\n"
        "metrics.webhook_left('one'); metrics.webhook_left('unknown')\n"
        "sys.stdout.buffer.write(metrics.render())"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout
    assert b'mailerd_webhook_pending{webhook="two"} 1.0' in shown
    assert b'"one"' not in shown
    assert b'"unknown"' not in shown
