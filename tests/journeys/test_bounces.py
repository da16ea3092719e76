"""The whole daemon: mail goes out with a signed return path, comes back through the inbound listener, and counts."""

import re
import smtplib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import document
from tests.support.live import CONFIG, LiveDaemon, free_port
from tests.support.returned import bounce, complaint

COMES_BACK = """
domains: {{here.example: {{return_path: bounce.here.example}}}}
inbound: {{forward: {{postmaster: ops@there.example}}}}
"""
LISTENER = '  - {{bind: "127.0.0.1:0", starttls: off, auth: optional, trusted: [127.0.0.0/8]}}\n'
PATIENCE = 60.0  # seconds


class Daemon(LiveDaemon):
    """With an inbound listener on `inbound`."""

    def __init__(self, directory: Path) -> None:
        self.inbound = ("127.0.0.1", free_port())
        listener = f'  - {{{{bind: "127.0.0.1:{self.inbound[1]}", kind: inbound, starttls: off}}}}\n'
        config = CONFIG.replace(LISTENER, LISTENER + listener).replace('"127.0.0.1:0"}}\nroutes', PUBLIC)
        super().__init__(directory, config=config + COMES_BACK)

    def send(self, to: str, *, marketing: bool = False) -> str:
        """Hand in a message; its id, when it is delivered."""
        wish = "X-Mailerd-Unsubscribe: yes\r\n" if marketing else ""
        with smtplib.SMTP(*self.smtp) as client:
            client.ehlo()
            client.mail("news@here.example")
            client.rcpt(to)
            _, reply = client.data(f"From: news@here.example\r\n{wish}Subject: hello\r\n\r\nhello\r\n".encode())
        message = reply.decode().rpartition(" ")[2]
        self.wait(message, "delivered")
        return message

    def wait(self, message: str, state: str) -> dict:
        """What trace shows, as soon as the recipient is in that state."""
        deadline = time.monotonic() + PATIENCE
        while (shown := document(self.command("trace", message, "--json")))["recipients"][0]["state"] != state:
            assert time.monotonic() < deadline, shown
        return shown

    def come_back(self, to: str, content: bytes, sender: str = "") -> None:
        with smtplib.SMTP(*self.inbound) as client:
            client.sendmail(sender, [to], content)

    def received(self, address: str) -> str:
        """The message that the sandbox got for an address, with its envelope."""
        return self.command("sandbox", "show", address).out


PUBLIC = '"127.0.0.1:0", public_url: "https://mail.here.example"}}\nroutes'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("mailerd")) as running:
        yield running


def path_of(daemon: Daemon, address: str) -> str:
    """The return path that the address's host was told."""
    shown = daemon.command("sandbox", "list", "--json").out
    line = next(line for line in shown.splitlines() if address in line)
    match = re.search(r"b-[a-z2-7]{31}@bounce\.here\.example", line)
    assert match is not None, line
    return match[0]


def test_a_bounce_that_comes_later_is_told_and_the_address_is_not_mailed_again(daemon):
    message = daemon.send("ann@there.example")

    daemon.come_back(path_of(daemon, "ann@there.example"), bounce("ann@there.example"))

    shown = daemon.wait(message, "bounced")
    assert shown["recipients"][0]["attempts"] == 1
    assert "no such user" in shown["recipients"][0]["last_reply"]
    with smtplib.SMTP(*daemon.smtp) as client, pytest.raises(smtplib.SMTPException):
        client.sendmail("news@here.example", ["ann@there.example"], "Subject: again\r\n\r\nagain\r\n")


def test_strangers_cannot_relay_nor_make_up_return_paths(daemon):
    for address in ("ann@elsewhere.example", f"b-{'a' * 31}@bounce.here.example", "nobody@bounce.here.example"):
        with smtplib.SMTP(*daemon.inbound) as client:
            client.ehlo()
            client.mail("")
            assert client.rcpt(address)[0] == 550


def test_a_complaint_without_a_name_finds_its_recipient(daemon):
    message = daemon.send("bob@there.example")
    path = path_of(daemon, "bob@there.example")
    report = complaint(returned=f"Return-Path: <{path}>\r\nSubject: hello\r\n")

    daemon.come_back("fbl@mail.test", report, "complaints@provider.example")

    steps = document(daemon.command("trace", message, "--json"))["steps"]
    assert "recipient.complained" in [step["type"] for step in steps]
    assert "complained" in daemon.command("trace", message).out


def test_reports_are_counted(daemon):
    daemon.come_back(
        "postmaster@mail.test", b"From: eve@there.example\r\nSubject: hi\r\n\r\nhi\r\n", "eve@there.example"
    )

    assert '"event": "report.received"' in daemon.log or "report.received" in daemon.log
