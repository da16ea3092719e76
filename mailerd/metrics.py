"""What is counted: Prometheus metrics of one process, and their sum over all processes.

Import this before anything else imports prometheus_client: with `PROMETHEUS_MULTIPROC_DIR` set, every process writes
its values into files there and `render()` adds them up, whichever process is asked.

Counting is on the path of every message, so each combination of labels is looked up once and then kept. Labels that
strangers choose are bounded: after `MAX_SITES` sites, further ones are counted together as `other`.
"""

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as _multiprocess

MAX_SITES = 200
MAX_SOURCES = 200
MANY = 50  # of every other label
OTHER = "other"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
LONG = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 345_600.0)  # seconds
AMOUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class Bounded:
    """Lets the first `limit` different values through, and calls the others `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) == self._limit:
            return OTHER
        self._seen.add(value)
        return value


def _children(metric: _Metric, *bounds: int) -> Callable[..., _Metric]:
    """Return `labels(*values)` of a metric, each value bounded, each child made once."""
    known: dict[tuple[str, ...], _Metric] = {}
    limits = [Bounded(bound) for bound in bounds]

    def labels(*values: str) -> _Metric:
        child = known.get(values)
        if child is None:
            bounded = tuple(limit(value) for limit, value in zip(limits, values, strict=True))
            child = metric.labels(*bounded)
            if bounded == values:  # an endless row of strangers must not fill the memory
                known[values] = child
        return child

    return labels


class _OfEndpoints:
    """A gauge of each endpoint of webhooks, `MAX_SITES` of them, as long as it is told anything.

    Processes share files from which nothing can be taken away: NaN stands for none there, and `render()` leaves it out.
    """

    def __init__(self, name: str, documentation: str) -> None:
        self._gauge = Gauge(name, documentation, ["webhook"], multiprocess_mode="mostrecent")
        self._known: set[str] = set()

    def set(self, webhook: str, value: float) -> None:
        if webhook not in self._known and len(self._known) == MAX_SITES:
            webhook = OTHER
        else:
            self._known.add(webhook)
        self._gauge.labels(webhook).set(value)

    def forget(self, webhook: str) -> None:
        if webhook in self._known:
            self._known.remove(webhook)
            self._gauge.labels(webhook).set(math.nan)


_accepted = _children(
    Counter("mailerd_messages_accepted", "Messages committed to the queue", ["stream", "protocol"]),
    MANY,
    MANY,
)
_accepted_recipients = _children(
    Counter("mailerd_recipients_accepted", "Recipients committed to the queue", ["stream", "protocol"]),
    MANY,
    MANY,
)
_accepted_bytes = _children(
    Counter("mailerd_accepted_bytes", "Content committed to the queue", ["stream", "protocol"]), MANY, MANY
)
_refused = _children(
    Counter("mailerd_submissions_refused", "Submissions refused, by the name of the refusal", ["protocol", "name"]),
    MANY,
    MANY,
)
_commit_seconds = Histogram("mailerd_commit_seconds", "Duration of one group commit", buckets=SHORT)
_commit_messages = Histogram("mailerd_commit_messages", "Messages in one group commit", buckets=AMOUNTS)
_attempts = _children(
    Counter("mailerd_attempts", "Recipients tried, by what became of them", ["stream", "site", "outcome", "kind"]),
    MANY,
    MAX_SITES,
    MANY,
    MANY,
)
# Not a label of the one above: each source sends to each site.
_attempts_from = _children(
    Counter("mailerd_source_attempts", "Recipients tried from a source", ["source", "outcome", "kind"]),
    MAX_SOURCES,
    MANY,
    MANY,
)
_attempt_seconds = _children(
    Histogram("mailerd_attempt_seconds", "Duration of one SMTP transaction", ["stream"], buckets=SHORT), MANY
)
_delivery_seconds = _children(
    Histogram("mailerd_delivery_seconds", "From acceptance to delivery of a recipient", ["stream"], buckets=LONG),
    MANY,
)
_finished = _children(
    Counter("mailerd_recipients_finished", "Recipients that reached their final state", ["stream", "state"]),
    MANY,
    MANY,
)
_sessions = _children(
    Gauge("mailerd_sessions", "Open SMTP connections", ["direction"], multiprocess_mode="livesum"), MANY
)
_waiting = _children(
    Gauge("mailerd_queue_recipients", "Recipients in the queue", ["stream", "state"], multiprocess_mode="mostrecent"),
    MANY,
    MANY,
)
_memory = _children(
    Gauge("mailerd_memory", "Accepted or claimed mail held in memory", ["unit"], multiprocess_mode="livesum"),
    MANY,
)
_requests = _children(Counter("mailerd_http_requests", "HTTP requests answered", ["operation", "status"]), MANY, MANY)
_behind = _children(
    Gauge(
        "mailerd_follower_events_behind",
        "Events that a follower has not read yet",
        ["follower"],
        multiprocess_mode="mostrecent",
    ),
    MANY,
)
_behind_seconds = _children(
    Gauge(
        "mailerd_follower_seconds_behind",
        "Age of the first event that a follower has not read yet",
        ["follower"],
        multiprocess_mode="mostrecent",
    ),
    MANY,
)
_sunk = _children(Counter("mailerd_sink_events", "Events written to a sink", ["sink"]), MANY)
_reports = _children(
    Counter("mailerd_reports", "Mail that came back, by what it is and how it led to a message", ["kind", "joined"]),
    MANY,
    MANY,
)
_report_effects = _children(
    Counter("mailerd_report_effects", "Recipients that reports were about, by what followed", ["effect"]), MANY
)
_inbound_refused = _children(
    Counter(
        "mailerd_inbound_refused", "Addresses that were refused: forged (a token that is none) or unknown", ["why"]
    ),
    MANY,
)
_webhook_requests = _children(
    Counter("mailerd_webhook_requests", "Requests to endpoints of webhooks, by outcome", ["outcome"]), MANY
)
_webhook_seconds = Histogram("mailerd_webhook_seconds", "Duration of one request to an endpoint", buckets=SHORT)
_webhooks_disabled = Counter("mailerd_webhooks_disabled", "Endpoints disabled because they failed")
_webhook_behind = _OfEndpoints("mailerd_webhook_seconds_behind", "Age of the first event that an endpoint was not told")
_webhook_pending = _OfEndpoints("mailerd_webhook_pending", "Requests that an endpoint did not take yet")
_hits = _children(
    Counter("mailerd_hits", "Requests for pixels and tracked links: taken, repeated or forged", ["kind", "outcome"]),
    MANY,
    MANY,
)
_hits_lost = _children(
    Counter("mailerd_hits_lost", "Hits that were answered and could not be kept, by the reason", ["why"]), MANY
)
_hits_told = _children(
    Counter("mailerd_hits_told", "Hits that it is known of who made them, by that", ["kind", "actor"]), MANY, MANY
)
_hit_files = Gauge("mailerd_hit_files_bytes", "Hits in files, waiting to be stored", multiprocess_mode="mostrecent")
_request_seconds = _children(
    Histogram("mailerd_http_request_seconds", "Duration of one HTTP request", ["operation"], buckets=SHORT), MANY
)


# Adding to a shared counter costs as much as parsing a command. What is counted for each message is added up here
# first, and goes to the shared counters when somebody calls `flush()`, as the worker does every second.
_pending: dict[Counter, float] = {}


_changes: dict[Gauge, int] = {}


def _count(counter: Counter, amount: float = 1.0) -> None:
    _pending[counter] = _pending.get(counter, 0.0) + amount


_observed: dict[Histogram, list[float]] = {}  # how often in each bucket, and at the end their sum


def _observe(histogram: Histogram, value: float) -> None:
    seen = _observed.get(histogram)
    bounds = histogram._upper_bounds
    if seen is None:
        seen = _observed[histogram] = [0.0] * (len(bounds) + 1)
    seen[bisect_left(bounds, value)] += 1
    seen[-1] += value


def flush() -> None:
    """Hand what was counted to the shared counters."""
    for counter, amount in _pending.items():
        counter.inc(amount)
    _pending.clear()
    for gauge, change in _changes.items():
        gauge.inc(change)
    _changes.clear()
    for histogram, (*counts, total) in _observed.items():
        histogram._sum.inc(total)
        for bucket, count in zip(histogram._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
    _observed.clear()


def accepted(stream: str, protocol: str, recipients: int, size: int) -> None:
    """One message was committed; `protocol` is smtp or http."""
    _count(_accepted(stream, protocol))
    _count(_accepted_recipients(stream, protocol), recipients)
    _count(_accepted_bytes(stream, protocol), size)


def refused(protocol: str, name: str) -> None:
    """A submission was refused; `name` is `Refused.name`."""
    _count(_refused(protocol, name))


def committed(messages: int, seconds: float) -> None:
    """One group commit is done."""
    _observe(_commit_messages, messages)
    _observe(_commit_seconds, seconds)


def attempted(stream: str, site: str, outcome: str, kind: str) -> None:
    """One recipient was tried, with this verdict."""
    _count(_attempts(stream, site, outcome, kind))


def attempted_from(source: str, outcome: str, kind: str) -> None:
    """One recipient was tried from this source, with this verdict."""
    _count(_attempts_from(source, outcome, kind))


def transacted(stream: str, seconds: float) -> None:
    """One SMTP transaction ended, however."""
    _observe(_attempt_seconds(stream), seconds)


def finished(stream: str, state: str, seconds: float) -> None:
    """One recipient reached its final state, `seconds` after it was accepted."""
    _count(_finished(stream, state))
    if state == "delivered":
        _observe(_delivery_seconds(stream), seconds)


def sessions(direction: str, change: int) -> None:
    """Connections were opened (+1) or closed (-1); `direction` is in or out."""
    child = _sessions(direction)
    _changes[child] = _changes.get(child, 0) + change


_known_waiting: set[tuple[str, str]] = set()


def waiting(depth: Mapping[tuple[str, str], int]) -> None:
    """So many recipients wait, by stream and state; what was there before and is not now counts as none."""
    _known_waiting.update(depth)
    for stream, state in _known_waiting:
        _waiting(stream, state).set(depth.get((stream, state), 0))


def memory(recipients: int, size: int) -> None:
    """So much mail is held by this process."""
    _memory("recipients").set(recipients)
    _memory("bytes").set(size)


def followed(follower: str, events: int, seconds: float) -> None:
    """A follower has so many events before it, the first of them that old."""
    _behind(follower).set(events)
    _behind_seconds(follower).set(seconds)


def sunk(sink: str, events: int) -> None:
    """So many events were written to a sink, durably."""
    _count(_sunk(sink), events)


def report_received(kind: str, joined: str) -> None:
    """A mail came back; `joined` to a message by token, header, message_id, or none."""
    _count(_reports(kind, joined))


def report_followed(effect: str) -> None:
    """What a report led to for one recipient: late, complained, unsubscribed, known, old ..."""
    _count(_report_effects(effect))


def inbound_refused(why: str) -> None:
    """An address was refused: it is forged, or unknown."""
    _count(_inbound_refused(why))


def webhook_answered(outcome: str, seconds: float) -> None:
    """An endpoint was asked to take something; `outcome` is delivered or failed."""
    _count(_webhook_requests(outcome))
    _webhook_seconds.observe(seconds)


def webhook_disabled() -> None:
    """An endpoint failed for too long, or said that it is gone."""
    _count(_webhooks_disabled)


def webhook_behind(webhook: str, seconds: float, pending: int) -> None:
    """How far an endpoint is behind, and how many requests it did not take yet."""
    _webhook_behind.set(webhook, seconds)
    _webhook_pending.set(webhook, pending)


def webhook_left(webhook: str) -> None:
    """An endpoint is told nothing more: it is disabled or deleted."""
    _webhook_behind.forget(webhook)
    _webhook_pending.forget(webhook)


def hit(kind: str, outcome: str) -> None:
    """A pixel or a tracked link was asked for; `kind` is opened or clicked."""
    _count(_hits(kind, outcome))


def hits_lost(why: str, hits: int) -> None:
    """So many hits could not be kept: the disk, the bound of all files, or a torn or unreadable record."""
    _count(_hits_lost(why), hits)


def hits_told(kind: str, actor: str, hits: int) -> None:
    """So many hits have become events, or `unwanted` ones nothing."""
    _count(_hits_told(kind, actor), hits)


def hit_files(size: int) -> None:
    """So many bytes of hits wait to be stored, on this node."""
    _hit_files.set(size)


def requested(operation: str, status: int, seconds: float) -> None:
    """One HTTP request was answered."""
    _count(_requests(operation, str(status)))
    _request_seconds(operation).observe(seconds)


def render() -> bytes:
    """All metrics in the text format of Prometheus; of all processes when they share a directory."""
    flush()
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        _multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    text = generate_latest(registry)
    return b"".join(line for line in text.splitlines(keepends=True) if not line.endswith(b" NaN\n"))


def forget_process(pid: int) -> None:
    """Drop the gauges of a worker that has gone; its counters stay in the sums."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        _multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
