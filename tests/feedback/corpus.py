"""The corpus of what comes back: messages in the formats of many mail systems, what each is, and how well it is read.

`corpus/*.eml` were written for it after what the systems named send; `corpus/labels.yaml` says what each of them is.
`holdout` and `holdout2` hold the wording of mail that people posted in public, labelled before the rules met it.
Labels change only when they are wrong, never because the code reads a message in another way.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mailerd.delivery import verdict
from mailerd.delivery.verdict import Verdict
from mailerd.feedback.reading import Report, Reported, ReportKind, read_report

DIRECTORY = Path(__file__).parent / "corpus"
HOLDOUTS = (Path(__file__).parent / "holdout", Path(__file__).parent / "holdout2")
# Only of these does it matter whom they speak of: nothing is done to the sender of an automatic reply.
ABOUT_RECIPIENTS = frozenset({ReportKind.BOUNCE, ReportKind.DELAYED, ReportKind.DELIVERED, ReportKind.COMPLAINT})


@dataclass(frozen=True)
class Expected:
    """What a message says of one recipient; a class of "" is not measured, a status of "" is not stated."""

    address: str
    kind: str
    status: str


@dataclass(frozen=True)
class Sample:
    """One message of the corpus and its label; "" in `feedback_type` and `message_id`: the message does not say."""

    name: str
    system: str
    kind: str
    recipients: tuple[Expected, ...]
    feedback_type: str
    message_id: str
    content: bytes  # with CRLF


def samples(directory: Path = DIRECTORY) -> list[Sample]:
    """All messages of a directory with a labels.yaml, by name."""
    labels = yaml.safe_load((directory / "labels.yaml").read_text(encoding="utf-8"))
    return [
        Sample(
            name=name,
            system=label["system"],
            kind=label["kind"],
            recipients=tuple(
                Expected(one["address"], one.get("class", ""), one.get("status", ""))
                for one in label.get("recipients", ())
            ),
            feedback_type=label.get("feedback_type", ""),
            message_id=label.get("message_id", ""),
            content=(directory / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        )
        for name, label in labels.items()
    ]


def verdict_of(report: Report, reported: Reported) -> Verdict:
    """The verdict of a recipient of a report, as the daemon makes it."""
    if report.kind == ReportKind.COMPLAINT:
        return verdict.complaint(report.feedback_type)
    return verdict.of_report(reported.action, reported.status, reported.code, reported.diagnostic, reported.words)


@dataclass
class Tally:
    """Expected and found things, by name: how often each was expected, found, and both."""

    expected: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    def add(self, expected: Iterable[str], found: Iterable[str]) -> None:
        """Count the things of one message, or of one recipient; the order does not matter."""
        wanted, got = Counter(expected), Counter(found)
        self.expected += wanted
        self.found += got
        self.right += wanted & got

    def precision(self, name: str | None = None) -> float:
        """Of what was found, the share that was expected; of all names together without `name`; 1 when none was."""
        return _share(self.right, self.found, name)

    def recall(self, name: str | None = None) -> float:
        """Of what was expected, the share that was found."""
        return _share(self.right, self.expected, name)


def _share(part: Counter[str], whole: Counter[str], name: str | None) -> float:
    above, below = (part.total(), whole.total()) if name is None else (part[name], whole[name])
    return above / below if below else 1.0


@dataclass
class Measure:
    """What the reader and the verdicts made of the corpus."""

    kinds: Tally = field(default_factory=Tally)
    addresses: Tally = field(default_factory=Tally)  # all under one name: "address"
    classes: Tally = field(default_factory=Tally)
    message_ids: Tally = field(default_factory=Tally)
    systems: Tally = field(default_factory=Tally)  # messages without any fault
    faults: list[str] = field(default_factory=list)  # "file (system): what was expected and found", one line each


def measure(corpus: Iterable[Sample]) -> Measure:
    """Read every message and compare."""
    result = Measure()
    for sample in corpus:
        report = read_report(sample.content)
        faults = list(_compare(sample, report, result))
        result.systems.add([sample.system], [] if faults else [sample.system])
        result.faults += [f"{sample.name} ({sample.system}): {fault}" for fault in faults]
    return result


def _compare(sample: Sample, report: Report, result: Measure) -> Iterator[str]:
    result.kinds.add([sample.kind], [report.kind.value])
    if sample.kind != report.kind.value:
        yield f"kind {sample.kind}, found {report.kind.value}"
    found = {_canonical(one.address): one for one in report.recipients} if report.kind in ABOUT_RECIPIENTS else {}
    expected = {_canonical(one.address): one for one in sample.recipients}
    result.addresses.add(["address"] * len(expected), ["address"] * len(expected.keys() & found.keys()))
    result.addresses.found["address"] += len(found.keys() - expected.keys())
    if expected.keys() != found.keys():
        yield f"recipients {sorted(expected)}, found {sorted(found)}"
    for address, one in expected.items():
        kind = str(verdict_of(report, found[address]).kind) if address in found else ""
        if one.kind:
            result.classes.add([one.kind], [kind] if kind else [])
            if kind not in ("", one.kind):
                yield f"{address or '(redacted)'} is {one.kind}, found {kind}: {_said(found[address])}"
        status = found[address].status if address in found else one.status
        if one.status and status != one.status:
            yield f"{address} has status {one.status}, found {status or 'none'}"
    if sample.feedback_type and report.feedback_type != sample.feedback_type:
        yield f"feedback type {sample.feedback_type}, found {report.feedback_type or 'none'}"
    if sample.message_id:
        result.message_ids.add(
            ["message_id"], ["message_id"] if report.returned.message_id == sample.message_id else []
        )
        if report.returned.message_id != sample.message_id:
            yield f"message {sample.message_id}, found {report.returned.message_id or 'none'}"


def _canonical(address: str) -> str:
    local, at, domain = address.rpartition("@")
    return local + at + domain.lower()


def _said(reported: Reported) -> str:
    return f"{reported.status} {reported.code} {(reported.diagnostic or reported.words)[:160]!r}"
