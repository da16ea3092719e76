"""The control loop of a path: how many connections, and how fast, this receiver takes today. Pure.

Nobody publishes the limits that bind, and they change by the hour. So a path begins with two connections, doubles them
for each round of accepted mail, goes down by a share when the receiver says "too much", and creeps back up: quickly to
where it went wrong, slowly from there on, and bolder the longer nothing happens (RFC 5681's slow start and additive
increase, RFC 9438's memory of the height of the last trouble, Postfix's concurrency feedback). Two things are steered:

* the *window* of connections, which suits receivers that count connections;
* the *rate* of messages, unbounded until something is refused, for those that count messages. A window alone cannot
  follow them: its smallest step, from two connections to one, halves the traffic.

It cannot tell refusals that would come at any rate. Stray ones are tolerated; from about one in thirty on they slow the
path down until they come minutes apart. So only what is about the amount of mail is to be reported as such.

Rules of `shaping.yaml` and effects stand beside this: the strictest holds. A `Pace` lives as eight floats in the record
of its path in the ledger, which the workers share:

    pace = Pace.unpack(meter.state(), now)
    ledger.update(meter, lambda values: after_delivery(Pace.unpack(values, now), 1, now, limit=20, busy=True).pack())

Times are seconds of one monotonic clock; facts may come a little out of order.
"""

from collections.abc import Sequence
from math import exp, inf, isfinite
from typing import NamedTuple

FIRST_WINDOW = 2.0  # connections of a new path: one alone would not show whether a second is welcome
JUDGED = 50  # messages, about, over which the share of refusals is taken
TOLERATED = 0.06  # of them: four in short order. A stray refusal has other reasons, and going slower would not help
ROUND = 2.0  # seconds: replies to what was under way at a decrease come within one transaction, and count once
WINDOW_KEPT = 0.7  # of the window after a decrease, as in RFC 9438 section 4.6: windows here are too small to halve
RATE_KEPT = 0.8  # of the rate that was accepted: that is already close to the limit, so a small step down is enough
LEAST_KEPT = 0.5  # of a bounded rate is taken as accepted even if less mail than that was there to send
SLOW_START = 0.5  # below this share of the last height of trouble, growth is by doubling
DOUBLING = 10.0  # seconds that a bounded rate takes to double: the minute-wise counters of receivers can follow
MOST_DOUBLINGS = 10.0  # at once, for many messages reported together
WINDOW_STEP = 10.0  # seconds for each connection regained, up to the last trouble
WINDOW_PROBE = 300.0  # seconds for each connection beyond it: where it went wrong once, it likely does again
RATE_STEP = 0.1 / 60  # of the last height of trouble, each second: two minutes from a decrease back to it
BOLDER = 180.0  # seconds without trouble after which probing grows in proportion to the time without trouble
BOLDER_MESSAGES = 100.0  # and so many messages, where the rate is slow
BOLDEST = 20.0  # times the careful step, as after an hour
FLOW = 10.0  # seconds over which accepted mail is averaged: longer than a burst, shorter than a change of mind
FLOW_MESSAGES = 5.0  # and over so many messages, where the rate is slow
BLIND_KEPT = 0.25  # of the rate accepted, at the first trouble: a receiver's saved-up allowance hid what it takes
BLIND = 4.0  # times the rate accepted, as the height of the first trouble: up to it, growth is by doubling
AGAIN_KEPT = 0.5  # of the rate, where trouble comes again before the average says anything
TRICKLE = 1.0  # messages a second at most after a round in which nothing was accepted
COLLAPSE = 0.25  # of the rate for each further round of that kind
SLOWEST = 1 / 300  # messages a second; something has to ask whether the trouble is over
SLOWEST_CONNECTING = 1 / 60  # the same where hosts cannot be reached: who is down does not mind being asked
CLEAN = 1800.0  # seconds without trouble before a rate that does not bind is forgotten
SLACK = 2.0  # a rate more than so many times what is accepted does not bind, and need not grow (RFC 7661)
USED = 0.9  # of a bounded rate is in use: more connections would not carry more mail
PROOF = 3.0  # seconds of growth that one accepted message is worth, at most: slow paths learn slowly
IDLE = 600.0  # seconds without mail that leave a pace as it is, and then halve its window each (RFC 7661's reason)
STALE = 3600.0  # seconds of idleness that double a rate: what was learnt is worth less and less
FORGET = 6 * 3600.0  # seconds without mail after which nothing is known any more


class Pace(NamedTuple):
    """What a path may do; immutable. All zeros, as in a fresh record, is START."""

    window: float  # connections
    peak: float  # window at the last trouble; inf: none yet
    rate: float  # messages a second; inf: unbounded
    ceiling: float  # rate at the last trouble; inf: none yet
    flow: float  # messages a second accepted lately, as of `touched`
    burst: int  # refusals that still belong to the last decrease; 0: something was accepted since
    decreased: float  # when; -inf: never
    touched: float  # when the last fact came in
    share: float  # of the messages since the last decrease that were refused, the latest weighing most; below 1

    @classmethod
    def unpack(cls, values: Sequence[float], now: float) -> "Pace":
        """The pace in `values` (from `pack()`, or eight zeros) as it stands now: long idle ones fade towards START."""
        window, peak, rate, ceiling, flow, burst_and_share, decreased, touched = values
        if not window >= 1:
            return START
        burst = int(burst_and_share)
        pace = cls(window, peak, rate, ceiling, flow, burst, decreased, touched, burst_and_share - burst)
        idle = now - pace.touched
        if idle < -ROUND:  # the clock began anew: the host was restarted
            return pace._replace(touched=now, decreased=min(pace.decreased, now))
        return pace if idle <= IDLE else _faded(pace, idle)

    def pack(self) -> tuple[float, ...]:
        """Eight floats."""
        return (*self[:5], self.burst + self.share, self.decreased, self.touched)

    def connections(self, limit: int) -> int:
        """How many may be open, at least 1 and at most `limit`."""
        return max(1, min(limit, int(self.window)))

    @property
    def interval(self) -> float:
        """Seconds between messages, over all connections of the path; 0 when unbounded."""
        return 1 / self.rate

    @property
    def braked(self) -> bool:
        """Whether trouble still shows: a bounded rate, or fewer connections than before the trouble."""
        return isfinite(self.rate) or self.window < self.peak < inf


START = Pace(FIRST_WINDOW, inf, inf, inf, 0.0, 0, -inf, 0.0, 0.0)


def after_delivery(pace: Pace, n: int, now: float, *, limit: int, busy: bool) -> Pace:
    """`n` messages were accepted since the last call.

    `limit` is what the configuration allows in connections, effects aside; `busy` says that all the connections this
    pace allows were in use: only what is made use of may grow (RFC 7661). Whether the rate is, shows by itself.
    """
    gap = max(0.0, now - pace.touched)
    flow = _flow(pace, now) + n / _span(pace)
    clean = now - pace.decreased
    bold = max(1.0, min(BOLDEST, clean / max(BOLDER, BOLDER_MESSAGES * pace.interval)))
    window = min(pace.window, limit)
    rate = _faster(pace, flow, n, gap, bold)
    if busy and flow < USED * pace.rate:
        window = min(float(limit), _wider(pace, window, n, gap, bold))
        if clean > CLEAN and rate > SLACK * flow:
            rate = inf
    share = pace.share * (1 - 1 / JUDGED) ** n
    return Pace(window, pace.peak, rate, pace.ceiling, flow, 0, pace.decreased, max(now, pace.touched), share)


def after_throttle(pace: Pace, now: float) -> Pace:
    """A message was refused because of how much we send, or together with everything else ("421 try again later").

    Not for what a receiver does to everybody's first try (greylisting), nor for what it says of one recipient.
    """
    if _same_round(pace, now):
        return _counted(pace, now)
    share = pace.share + (1 - pace.share) / JUDGED
    flow = _flow(pace, now)
    if not pace.burst and share < TOLERATED:
        return pace._replace(flow=flow, touched=max(now, pace.touched), share=share)
    if pace.burst:
        rate = max(SLOWEST, min(TRICKLE, pace.rate * COLLAPSE))
        return _collapsed(pace, now, flow, rate)
    if pace.rate == inf:
        accepted = max(TRICKLE, flow)
        return _decreased(pace, now, flow, accepted * BLIND_KEPT, accepted * BLIND)
    if now - pace.decreased < _span(pace):  # `flow` still counts what was accepted before
        return _decreased(pace, now, flow, max(SLOWEST, pace.rate * AGAIN_KEPT), pace.rate)
    accepted = max(pace.rate * LEAST_KEPT, min(pace.rate, flow))
    slower = _decreased(pace, now, flow, max(SLOWEST, accepted * RATE_KEPT), accepted)
    return slower._replace(window=pace.window, peak=pace.peak)  # connections are not what it minds


def after_connection_failure(pace: Pace, now: float) -> Pace:
    """A connection was refused, or broke before a message could be offered on it ("421 too many connections")."""
    if _same_round(pace, now):
        return _counted(pace, now)
    flow = _flow(pace, now)
    if not pace.burst:
        return _decreased(pace, now, flow, pace.rate, pace.ceiling)
    if pace.window > 1:
        return _collapsed(pace, now, flow, pace.rate)  # the rate is left alone until one connection is too many
    rate = max(min(pace.rate, SLOWEST_CONNECTING), min(TRICKLE, pace.rate * COLLAPSE))
    return _collapsed(pace, now, flow, rate)


def _span(pace: Pace) -> float:
    return max(FLOW, FLOW_MESSAGES * pace.interval)


def _flow(pace: Pace, now: float) -> float:
    return pace.flow * exp(-max(0.0, now - pace.touched) / _span(pace))


def _wider(pace: Pace, window: float, n: int, gap: float, bold: float) -> float:
    if window < SLOW_START * pace.peak:
        return window + n
    if window < pace.peak - 1:
        return window + min(n / window, gap / WINDOW_STEP)
    return window + min(n / window, gap / WINDOW_PROBE * bold)


def _faster(pace: Pace, flow: float, n: int, gap: float, bold: float) -> float:
    if pace.rate == inf or pace.rate > max(SLACK * flow, pace.ceiling / BLIND):
        return pace.rate
    if pace.rate < SLOW_START * pace.ceiling:
        return pace.rate * 2 ** min(float(n), gap / DOUBLING, MOST_DOUBLINGS)
    return pace.rate + pace.ceiling * RATE_STEP * min(gap, n * PROOF) * bold


def _same_round(pace: Pace, now: float) -> bool:
    return now - pace.decreased < ROUND and pace.burst != 1


def _counted(pace: Pace, now: float) -> Pace:
    return pace._replace(burst=max(1, pace.burst - 1) if pace.burst else 0)


def _decreased(pace: Pace, now: float, flow: float, rate: float, ceiling: float) -> Pace:
    window = max(1.0, pace.window * WINDOW_KEPT)
    in_use = flow * _span(pace) >= 1  # else it is not the number of connections that went wrong
    peak = pace.window if in_use else pace.peak
    return Pace(window, peak, rate, ceiling, flow, 1 + int(pace.window), now, max(now, pace.touched), 0.0)


def _collapsed(pace: Pace, now: float, flow: float, rate: float) -> Pace:
    """Nothing was accepted in a whole round: start over from one connection, up to half of the height of before."""
    return Pace(1.0, pace.peak, rate, pace.ceiling, flow, 1 + int(pace.window), now, max(now, pace.touched), 0.0)


def _faded(pace: Pace, idle: float) -> Pace:
    if idle > FORGET:
        return START
    window = max(min(FIRST_WINDOW, pace.window), pace.window * 0.5 ** ((idle - IDLE) / IDLE))
    rate = pace.rate * 2 ** ((idle - IDLE) / STALE)
    clean_since = pace.decreased + idle - IDLE  # nothing was tried, so nothing went well
    return pace._replace(window=window, rate=rate, decreased=clean_since)
