"""The corpus of what comes back is read as its labels say."""

import base64
import email
import html
import re
from functools import cache
from pathlib import Path

import pytest

from mailerd.delivery.verdict import Action, Kind
from mailerd.feedback.reading import ReportKind, read_report
from tests.feedback.corpus import DIRECTORY, HOLDOUTS, Measure, Sample, measure, samples, verdict_of

LEAST = 0.8  # of one class: most have few messages
BASE64 = re.compile(rb"^(?:[A-Za-z0-9+/]{76}\r\n)+[A-Za-z0-9+/]+={0,2}", re.MULTILINE)
RARE = {Kind.SUPPRESSED}  # classes that no report of another system has
ALL = (DIRECTORY, *HOLDOUTS)

each_directory = pytest.mark.parametrize("directory", ALL, ids=lambda directory: directory.name)


@cache
def corpus(directory: Path = DIRECTORY) -> list[Sample]:
    return samples(directory)


def everything() -> list[Sample]:
    return [sample for directory in ALL for sample in corpus(directory)]


@cache
def measured(directory: Path = DIRECTORY) -> Measure:
    return measure(corpus(directory))


def faults(directory: Path = DIRECTORY) -> str:
    return "\n".join(measured(directory).faults)


def everything_readable(content: bytes) -> str:
    """The message with all its parts decoded and HTML undone, for looking addresses up."""
    parts = [content, *(base64.b64decode(found + b"==") for found in BASE64.findall(content))]
    for part in email.message_from_bytes(content).walk():
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            parts.append(payload)
    return html.unescape("\n".join(part.decode("utf-8", "replace") for part in parts))


def test_the_corpus_is_as_large_as_promised() -> None:
    systems = {sample.system for sample in corpus() if sample.kind != "other"}
    assert len(corpus()) >= 180
    assert len(systems) >= 35


def test_the_holdouts_are_as_large_as_promised() -> None:
    assert all(len(corpus(directory)) >= least for directory, least in zip(HOLDOUTS, (120, 60), strict=False))
    assert len({sample.content for sample in everything()}) == len(everything())


@each_directory
def test_every_file_has_a_label_and_every_label_a_file(directory: Path) -> None:
    assert {path.name for path in directory.glob("*.eml")} == {sample.name for sample in corpus(directory)}


@pytest.mark.parametrize("sample", everything(), ids=lambda sample: sample.name)
def test_labels_say_what_the_file_holds(sample: Sample) -> None:
    text = everything_readable(sample.content)
    assert sample.kind in set(ReportKind)
    assert all(one.kind in set(Kind) | {""} for one in sample.recipients)
    assert all(one.address in text for one in sample.recipients)
    assert sample.message_id in text


def test_every_class_comes_back_from_at_least_four_systems() -> None:
    systems: dict[str, set[str]] = {kind.value: set() for kind in Kind}
    for sample in corpus():
        for one in sample.recipients:
            if one.kind:
                systems[one.kind].add(sample.system)
    assert {kind: len(names) for kind, names in systems.items() if len(names) < 4 and kind not in RARE} == {}


@each_directory
def test_what_a_message_is_is_read_right(directory: Path) -> None:
    assert measured(directory).kinds.recall() >= 0.97, faults(directory)


@each_directory
def test_whom_a_report_speaks_of_is_read_right(directory: Path) -> None:
    addresses = measured(directory).addresses
    assert min(addresses.precision(), addresses.recall()) >= 0.97, faults(directory)


@each_directory
def test_verdicts_of_reports_are_right(directory: Path) -> None:
    classes = measured(directory).classes
    assert min(classes.precision(), classes.recall()) >= 0.95, faults(directory)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in RARE])
def test_no_class_is_neglected(kind: Kind) -> None:
    classes = measured().classes
    assert min(classes.precision(kind), classes.recall(kind)) >= LEAST, faults()


@pytest.mark.parametrize("kind", list(ReportKind))
def test_no_kind_of_message_is_neglected(kind: ReportKind) -> None:
    kinds = measured().kinds
    assert min(kinds.precision(kind), kinds.recall(kind)) >= LEAST, faults()


@each_directory
def test_the_message_that_came_back_is_recognised(directory: Path) -> None:
    assert measured(directory).message_ids.recall() >= 0.97, faults(directory)


def test_nobody_is_suppressed_whose_bounce_does_not_speak_of_the_address() -> None:
    gone = {Kind.INVALID_RECIPIENT, Kind.INACTIVE, Kind.BAD_DOMAIN, Kind.COMPLAINT, Kind.SUPPRESSED}
    for sample in everything():
        report = read_report(sample.content)
        labels = {one.address.lower(): one.kind for one in sample.recipients}
        for one in report.recipients:
            if verdict_of(report, one).action is Action.SUPPRESS:
                assert labels.get(one.address.lower()) in gone, (sample.name, one.address)


def test_nobody_is_suppressed_for_what_is_no_bounce_and_no_complaint() -> None:
    for sample in everything():
        if sample.kind in ("bounce", "complaint"):
            continue
        report = read_report(sample.content)
        if report.kind in (ReportKind.BOUNCE, ReportKind.COMPLAINT, ReportKind.DELAYED, ReportKind.DELIVERED):
            actions = {verdict_of(report, one).action for one in report.recipients}
            assert Action.SUPPRESS not in actions, sample.name


@pytest.mark.parametrize("feedback_type", ["not-spam", "auth-failure"])
def test_feedback_that_is_no_complaint_suppresses_nobody(feedback_type: str) -> None:
    (sample,) = (sample for sample in corpus() if sample.feedback_type == feedback_type)
    report = read_report(sample.content)
    assert {verdict_of(report, one).action for one in report.recipients}.isdisjoint({Action.SUPPRESS})
