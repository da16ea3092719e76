"""A whole running mailerd for each test module."""

import json
import smtplib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.live import Finished, LiveDaemon

Submit = Callable[..., str]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("mailerd")) as running:
        yield running


@pytest.fixture(scope="module")
def submit(daemon: LiveDaemon) -> Submit:
    """Hand in a message by SMTP; its id."""

    def submit(*to: str, sender: str = "me@here.example", subject: str = "a test") -> str:
        with smtplib.SMTP(*daemon.smtp) as client:
            client.ehlo()
            client.mail(sender)
            for address in to:
                client.rcpt(address)
            _, reply = client.data(f"From: {sender}\r\nSubject: {subject}\r\n\r\nhello\r\n".encode())
        return reply.decode().rpartition(" ")[2]

    return submit


@pytest.fixture
def settled(daemon: LiveDaemon, submit: Submit) -> Submit:
    """Hand in a message; its id, once no recipient waits for its first attempt any more."""

    def settled(*to: str, **options: str) -> str:
        message = submit(*to, **options)
        while not all(recipient["attempts"] for recipient in traced(daemon, message)["recipients"]):
            pass
        return message

    return settled


def traced(daemon: LiveDaemon, message: str) -> dict[str, Any]:
    return document(daemon.command("trace", message, "--json"))


def document(finished: Finished) -> dict[str, Any]:
    """The one JSON document that a command printed."""
    assert finished.out.count("\n") == 1, finished
    value = json.loads(finished.out)
    assert isinstance(value, dict)
    return value


def lines(finished: Finished) -> list[dict[str, Any]]:
    """The JSON lines that a command printed."""
    return [json.loads(line) for line in finished.out.splitlines()]
