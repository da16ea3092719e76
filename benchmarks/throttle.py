"""The control loop of a path beside fixed limits, at receivers that throttle; simulated, so on any machine the same.

What a receiver takes is hidden from the senders. Fixed limits are what somebody would write into a file: too low, the
true average, too high, and for each receiver the best of a whole row of them, chosen afterwards. "With brake" is the
average with the usual rule on top: after a refusal one message a minute for 90 minutes, then back to full speed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import cos, inf, pi

from benchmarks import chart
from benchmarks.report import Results
from benchmarks.simulation import (
    BIN,
    HOUR,
    MINUTE,
    REPLY,
    Adaptive,
    Fixed,
    FixedWithBrake,
    Outcome,
    Receiver,
    Sender,
    Simulation,
)

LOW, HIGH = 0.2, 3.0  # times the average
ROW = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)  # times the average
MOST = 20  # connections of every sender
SMOOTH = 5  # minutes of one point of a curve
OURS = "control loop"
SERIES = (OURS, "fixed average", "average with brake", "fixed high")  # of a picture
STRICT = partial(Receiver, patience=30, penalty=5 * MINUTE)
Senders = dict[str, Callable[[], Sender]]


def by_the_hour(now: float) -> float:
    return (8.0, 2.0, 5.0, 1.0, 8.0, 4.0)[int(now / HOUR) % 6]


def by_day(now: float) -> float:
    """10/s at midnight, 1/s at noon."""
    return 5.5 + 4.5 * cos(2 * pi * now / (24 * HOUR))


def constant(now: float) -> float:
    return 5.0


def slow(now: float) -> float:
    return 1 / 6


def six_then_three(now: float) -> float:
    return 6 if now % (6 * HOUR) < 3 * HOUR else 3


def third_hour(now: float) -> bool:
    return 2 * HOUR <= now < 3 * HOUR


@dataclass(frozen=True)
class Scenario:
    name: str
    receiver: Callable[[], Receiver]
    hours: float
    drawn: bool = False
    by_connections: bool = False  # what a fixed limit is about

    def possible(self, now: float) -> float:
        """Messages a second that the receiver takes at that time."""
        receiver = self.receiver()
        connections = min(receiver.connections(now), MOST) * 2 / sum(REPLY)
        return 0.0 if receiver.shut(now) else min(receiver.rate(now), connections)

    @property
    def seconds(self) -> float:
        return self.hours * HOUR

    @property
    def average(self) -> float:
        """Messages a second that it takes."""
        minutes = int(self.seconds / BIN)
        return sum(self.possible(minute * BIN) for minute in range(minutes)) / minutes

    @property
    def total(self) -> float:
        """Messages that it takes in all, with what is in its bucket at the beginning."""
        saved_up = 0.0 if self.by_connections else self.possible(0.0) * self.receiver().burst
        return self.average * self.seconds + saved_up

    def fixed(self, factor: float) -> Fixed:
        """A limit so many times the true average."""
        if not self.by_connections:
            return Fixed(self.average * factor, MOST)
        return Fixed(inf, max(1, round(self.average * factor * sum(REPLY) / 2)))


SCENARIOS = (
    Scenario("5/s", lambda: Receiver(constant), 6),
    Scenario("5/s, strict", lambda: STRICT(constant), 6),
    Scenario("10/min, strict", lambda: STRICT(slow, burst=60), 24),
    Scenario("1 to 8/s by the hour", lambda: Receiver(by_the_hour), 6),
    Scenario("1 to 8/s by the hour, strict", lambda: STRICT(by_the_hour), 6, drawn=True),
    Scenario("1 to 10/s by day, strict", lambda: STRICT(by_day), 24, drawn=True),
    Scenario(
        "6, then 3 connections, strict", lambda: STRICT(connections=six_then_three), 6, drawn=True, by_connections=True
    ),
    Scenario("5/s, one hour of 421", lambda: Receiver(constant, shut=third_hour), 6),
    Scenario("5/s, one hour of 421, strict", lambda: STRICT(constant, shut=third_hour), 6, drawn=True),
)
COLUMNS = ("fixed low", "fixed average", "fixed high", "best fixed", "average with brake", OURS)


def run(results: Results, *, quick: bool) -> None:
    results.text(
        f"Simulated senders with a backlog that never ends and up to {MOST} connections. Accepted in % of what the "
        "receiver would have taken, then refusals (messages and connections) for each 100 accepted. Receivers have a "
        "hidden token bucket of 10 seconds (a minute for 10/min); a strict one that refuses more than 30 times in a "
        "minute takes nothing for 5 minutes. "
        f"Low is {LOW:g} times the average, high {HIGH:g} times; best: the one of {len(ROW)} limits from "
        f"{ROW[0]:g} to {ROW[-1]:g} times the average that got most accepted, chosen afterwards."
    )
    rows, pictures = [], []
    for scenario in SCENARIOS:
        chosen = replace(scenario, hours=scenario.hours / 6) if quick else scenario
        outcomes = dict(_outcomes(chosen, results))
        rows.append([chosen.name, f"{chosen.total:,.0f}", *(_cell(outcomes[name], chosen) for name in COLUMNS)])
        if chosen.drawn:
            pictures.append(_picture(chosen, outcomes))
    results.table("What receivers that throttle accept, and refuse", ["receiver", "would take", *COLUMNS], rows)
    results.picture(chart.page(pictures))


def _outcomes(scenario: Scenario, results: Results) -> Iterator[tuple[str, Outcome]]:
    senders: Senders = {f"fixed {factor:g}": partial(scenario.fixed, factor) for factor in ROW}
    average = scenario.fixed(1.0)
    senders["average with brake"] = partial(FixedWithBrake, average.rate, average.most)
    senders[OURS] = partial(Adaptive, MOST)
    seen: dict[str, Outcome] = {}
    for name, make in senders.items():
        outcome = seen[name] = Simulation(scenario.receiver(), make()).run(scenario.seconds)
        results.line(
            receiver=scenario.name,
            sender=name,
            hours=scenario.hours,
            would_take=round(scenario.total),
            accepted=sum(outcome.accepted),
            deferred=sum(outcome.deferred),
            refused_connections=sum(outcome.refused),
            most_connections=outcome.most_connections,
        )
    yield "fixed low", seen[f"fixed {LOW:g}"]
    yield "fixed average", seen["fixed 1"]
    yield "fixed high", seen[f"fixed {HIGH:g}"]
    yield "best fixed", max((seen[f"fixed {factor:g}"] for factor in ROW), key=lambda outcome: sum(outcome.accepted))
    yield "average with brake", seen["average with brake"]
    yield OURS, seen[OURS]


def _cell(outcome: Outcome, scenario: Scenario) -> str:
    accepted = sum(outcome.accepted)
    refused = 100 * (sum(outcome.deferred) + sum(outcome.refused)) / max(1, accepted)
    return f"{100 * accepted / scenario.total:.0f} %, {f'{refused:.1f}' if refused < 1000 else '>1000'}"


def _picture(scenario: Scenario, outcomes: dict[str, Outcome]) -> str:
    minutes = int(scenario.seconds / BIN)
    possible = _smooth([scenario.possible(minute * BIN) * BIN for minute in range(minutes)])
    curves = [(name, _smooth(outcomes[name].accepted[:minutes])) for name in reversed(SERIES)]
    return chart.lines(
        f"Accepted messages a second: {scenario.name}", ("would take", possible), curves, hours=scenario.hours
    )


def _smooth(counts: Sequence[float]) -> list[float]:
    """Messages a second of each few minutes."""
    pieces = [counts[start : start + SMOOTH] for start in range(0, len(counts), SMOOTH)]
    return [sum(piece) / len(piece) / BIN for piece in pieces]
