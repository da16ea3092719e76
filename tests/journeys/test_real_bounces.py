"""Postfix and Exim as receiving hosts: they take mail, refuse it later, and say so in mails of their own making."""

import asyncio
import os
import re
import smtplib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mailerd.db import Pool, connect_pool
from tests.support import exim, postfix
from tests.support.dns_server import DnsServer
from tests.support.exim import Exim
from tests.support.live import LiveDaemon
from tests.support.postfix import Postfix
from tests.support.scripted_mx import EXTENSIONS, ScriptedMx

needs_postfix = pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())
needs_exim = pytest.mark.skipif(bool(exim.missing()), reason=exim.missing())

PATIENCE = 60.0  # seconds
HOME, EXIM, POSTFIX, HOP, GATE, SMALL, INBOUND, NOBODY = (f"127.0.0.{n}" for n in (3, 6, 7, 8, 10, 11, 9, 12))
CONTENT = (
    b"From: Ann <ann@sender.example>\r\nSubject: hello\r\nMessage-ID: <one@sender.example>\r\n\r\n" + b"x\r\n" * 500
)
CONFIG = """
hostname: mail.sender.example
data_dir: {{data_dir}}
workers: 1
database: {{{{url: "{database}"}}}}
listeners:
  - {{{{bind: "127.0.0.1:0", starttls: off, auth: trusted, trusted: [127.0.0.0/8]}}}}
  - {{{{bind: "{inbound}", kind: inbound, starttls: off}}}}
http: null
resolver: {{{{nameservers: ["{dns}"], timeout: 2s}}}}
delivery: {{{{port: {port}, allow_private: true, mta_sts: false}}}}
domains:
  sender.example: {{{{return_path: bounce.sender.example}}}}
  loop.example: {{{{return_path: bounce.sender.example}}}}
log: {{{{format: json}}}}
"""

# What they do with mail that they have taken: some is given to programs, as filters and mailbox programs are, some to
# mailboxes with a limit; the rest goes on to hosts that refuse it.
POSTFIX_SETTINGS = {
    "myhostname": "mx.postfix.example",
    "mydestination": "example.net, loop.example",
    "local_recipient_maps": "",  # who exists is known when it is delivered, and not before
    "alias_maps": "texthash:{directory}/aliases",
    "alias_database": "",
    "virtual_mailbox_domains": "boxes.example",
    "virtual_mailbox_base": "{directory}/boxes",
    "virtual_mailbox_maps": "inline:{ full@boxes.example=full }",
    "virtual_mailbox_limit": "10000",
    "message_size_limit": "10000",
    "virtual_uid_maps": "static:65534",
    "virtual_gid_maps": "static:65534",
    "relay_domains": "hop.example, gate.example, small.example, away.example",
    "transport_maps": "texthash:{directory}/transports",
    "smtp_dns_support_level": "disabled",
    "delay_warning_time": "1s",
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "1s",
    "queue_run_delay": "1s",
    "maximal_queue_lifetime": "6s",
    "bounce_queue_lifetime": "6s",
}
ALIASES = """\
ann /dev/null
bob /dev/null
moved gone@hop.example
quota "|echo '452 4.2.2 Quota exceeded (mailbox for user is full)'; exit 77"
unknown-box "|echo 'user unknown'; exit 67"
filter "|echo 'Message rejected: virus found'; exit 77"
"""
HOP_SAYS = {
    "gone": "550 5.1.1 The email account that you tried to reach does not exist",
    "full": "552 5.2.2 The recipient's mailbox is over quota",
    "closed": "550 5.2.1 The email account that you tried to reach is disabled",
    "policy": "550 5.7.1 Message refused by local policy",
    "spam": "554 5.7.1 Message content rejected as spam",
}
ONWARD = ("hop.example", "gate.example", "small.example", "away.example")
EXIM_ROUTERS = """\
sendback:
  driver = manualroute
  domains = bounce.sender.example
  transport = smtp
  route_list = * {inbound}
  self = send
hop:
  driver = manualroute
  domains = hop.example : gate.example : small.example : away.example
  transport = smtp
  route_list = hop.example {hop}; gate.example {gate}; small.example {small}; away.example {away}
  self = send
fail:
  driver = redirect
  domains = exim.example
  local_parts = closed
  allow_fail
  data = :fail: This account has been closed
moved:
  driver = redirect
  domains = exim.example
  local_parts = moved
  data = gone@hop.example
filter:
  driver = accept
  domains = exim.example
  local_parts = filter
  transport = filter
full:
  driver = accept
  domains = exim.example
  local_parts = full
  transport = full
large:
  driver = accept
  domains = exim.example
  local_parts = large
  transport = large
taken:
  driver = accept
  domains = exim.example
  local_parts = ann : bob
  transport = nowhere
"""
EXIM_TRANSPORTS = """\
smtp:
  driver = smtp
  allow_localhost
  hosts_try_fastopen =
nowhere:
  driver = appendfile
  file = /dev/null
full:
  driver = appendfile
  file = {directory}/full
  quota = 500
large:
  driver = appendfile
  file = {directory}/large
  message_size_limit = 500
filter:
  driver = pipe
  command = /bin/sh -c "echo 'Message rejected: virus found'; exit 77"
  return_output
"""
EXIM_SETTINGS = "delay_warning = 1s\ndelay_warning_condition = yes\n"
EXIM_RETRY = "away.example * F,6s,1s\n"


@dataclass(frozen=True)
class Ports:
    """Known before anybody listens: of all mail exchangers, and where bounces come in."""

    mx: int
    inbound: int
    closed: int


@pytest.fixture(scope="module")
def ports() -> Ports:
    """Free on all addresses a moment ago."""
    listening = [socket.create_server(("", 0)) for _ in range(3)]
    numbers = [int(each.getsockname()[1]) for each in listening]
    for each in listening:
        each.close()
    return Ports(*numbers)


@pytest.fixture(scope="module")
def postfix_host(ports: Ports) -> Iterator[Postfix]:
    host = Postfix(POSTFIX, ports.mx, settings=POSTFIX_SETTINGS)
    (host.directory / "aliases").write_text(ALIASES)
    onward = {"hop.example": HOP, "gate.example": GATE, "small.example": SMALL}
    lines = [f"{domain} smtp:[{address}]:{ports.mx}\n" for domain, address in onward.items()]
    lines.append(f"away.example smtp:[{NOBODY}]:{ports.closed}\n")
    lines.append(f"bounce.sender.example smtp:[{INBOUND}]:{ports.inbound}\n")
    (host.directory / "transports").write_text("".join(lines))
    boxes = host.directory / "boxes"
    boxes.mkdir()
    boxes.chmod(0o777)
    (boxes / "full").write_bytes(b"x" * 9_999 + b"\n")
    os.chown(boxes / "full", 65_534, 65_534)
    with host:
        yield host


@pytest.fixture(scope="module")
def exim_host(ports: Ports) -> Iterator[Exim]:
    places = {
        "inbound": f"{INBOUND}::{ports.inbound}",
        "hop": f"{HOP}::{ports.mx}",
        "gate": f"{GATE}::{ports.mx}",
        "small": f"{SMALL}::{ports.mx}",
        "away": f"{NOBODY}::{ports.closed}",
    }
    routers = EXIM_ROUTERS.format(**places)
    with Exim(
        EXIM,
        ports.mx,
        name="mx.exim.example",
        settings=EXIM_SETTINGS,
        routers=routers,
        transports=EXIM_TRANSPORTS,
        retry=EXIM_RETRY,
    ) as host:
        yield host


@dataclass
class Laboratory:
    """A daemon with a database of its own, its senders' mail exchanger `home`, and hosts behind the receiving hosts."""

    daemon: LiveDaemon
    pool: Pool
    dns: DnsServer
    home: ScriptedMx
    inbound: tuple[str, int]

    def receives(self, address: str, *domains: str) -> None:
        """Let mail to these domains go to `address`."""
        name = f"mx-{address.rpartition('.')[2]}.example"
        self.dns.add(name, "A", address)
        for domain in domains:
            self.dns.add(domain, "MX", f"10 {name}.")

    async def submit(self, *to: str, sender: str = "ann@sender.example", content: bytes = CONTENT) -> None:
        def send() -> None:
            with smtplib.SMTP(*self.daemon.smtp, timeout=PATIENCE) as client:
                client.sendmail(sender, to, content)

        await asyncio.to_thread(send)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not what():
                await asyncio.sleep(0.05)

    def reports(self, *kinds: str) -> list[dict[str, Any]]:
        """What the daemon has logged of mail that came back; of these kinds, or all."""
        lines = [line for line in self.daemon.log.splitlines() if "report.received" in line]
        found: list[dict[str, Any]] = [msgspec.json.decode(line) for line in lines]
        return [each for each in found if not kinds or each["kind"] in kinds]

    async def late(self) -> dict[str, str]:
        """The recipients that bounced after their acceptance, with the class of it."""
        rows = await self.pool.fetch(
            "SELECT address, data FROM events WHERE type = 'recipient.bounced' AND data->>'late' = 'true'"
        )
        assert len({row["address"] for row in rows}) == len(rows)  # each of them once
        return {row["address"]: row["data"]["kind"] for row in rows}

    async def history(self, address: str) -> list[str]:
        """The events of the mail to this address."""
        rows = await self.pool.fetch(
            "SELECT type FROM events WHERE address = $1 AND type NOT LIKE 'suppression.%' ORDER BY txid, seq", address
        )
        return [row["type"] for row in rows]

    async def suppressed(self) -> dict[str, str]:
        """The addresses that must not be mailed, with the reason."""
        rows = await self.pool.fetch("SELECT address, reason FROM suppressions")
        return {row["address"]: row["reason"] for row in rows}

    async def counted(self) -> set[str]:
        """The addresses with a soft bounce."""
        return {row["address"] for row in await self.pool.fetch("SELECT address FROM soft_bounces")}

    async def accepted(self) -> list[tuple[str, str]]:
        """Sender and recipient of all mail that the daemon has taken."""
        rows = await self.pool.fetch(
            "SELECT address, first_value(data->>'sender') OVER (PARTITION BY message_id ORDER BY n) AS sender"
            "  FROM events WHERE type = 'message.accepted' ORDER BY message_id, n"
        )
        return [(row["sender"], row["address"]) for row in rows]


@pytest.fixture
async def laboratory(database: str, ports: Ports, tmp_path: Path) -> AsyncIterator[Laboratory]:
    async with DnsServer() as dns, ScriptedMx(HOME, port=ports.mx, name="mx.sender.example") as home:
        config = CONFIG.format(database=database, inbound=f"{INBOUND}:{ports.inbound}", dns=dns.address, port=ports.mx)
        daemon = LiveDaemon(tmp_path, config=config)
        await asyncio.to_thread(daemon.start)
        pool = await connect_pool(database, min=1, max=2)
        laboratory = Laboratory(daemon, pool, dns, home, (INBOUND, ports.inbound))
        laboratory.receives(HOME, "sender.example")
        try:
            yield laboratory
        finally:
            await pool.close()
            await asyncio.to_thread(daemon.stop)


@pytest.fixture
async def behind(ports: Ports) -> AsyncIterator[None]:
    """The hosts that the receiving hosts send on to, which refuse each in its own way."""
    extensions = tuple("SIZE 500" if each.startswith("SIZE") else each for each in EXTENSIONS)
    async with (
        ScriptedMx(HOP, port=ports.mx, name="mx.hop.example") as hop,
        ScriptedMx(GATE, port=ports.mx, name="mx.gate.example") as gate,
        ScriptedMx(SMALL, port=ports.mx, name="mx.small.example", extensions=extensions) as small,
    ):
        for name, reply in HOP_SAYS.items():
            hop.on(f"RCPT TO:<{name}@hop.example>", reply)
        small.on("MAIL FROM:", "552 5.3.4 Message size exceeds fixed maximum message size")
        gate.on("DOT", "554 5.7.1 Message rejected: it contains a virus")
        yield


POSTFIX_REFUSES = {
    "nobody-here@example.net": ("invalid_recipient", "suppressed"),
    "unknown-box@example.net": ("invalid_recipient", "suppressed"),
    "quota@example.net": ("mailbox_full", "counted"),
    "filter@example.net": ("content", ""),
    "moved@example.net": ("invalid_recipient", "suppressed"),
    "full@boxes.example": ("mailbox_full", "counted"),
}
EXIM_REFUSES = {
    "nobody-here@exim.example": ("invalid_recipient", "counted"),  # "Unrouteable" may be their mistake
    "closed@exim.example": ("inactive", "suppressed"),
    "filter@exim.example": ("content", ""),
    "full@exim.example": ("mailbox_full", "counted"),
    "large@exim.example": ("other", ""),  # it does not say why
    "moved@exim.example": ("invalid_recipient", "suppressed"),
}
BEHIND_REFUSES = {
    "gone@hop.example": ("invalid_recipient", "suppressed"),
    "full@hop.example": ("mailbox_full", "counted"),
    "closed@hop.example": ("inactive", "suppressed"),
    "policy@hop.example": ("policy", ""),
    "spam@hop.example": ("content", ""),
    "someone@gate.example": ("content", ""),
    "someone@small.example": ("too_large", ""),
}


async def verdicts(laboratory: Laboratory) -> dict[str, tuple[str, str]]:
    """The class of each late bounce, and what followed for the address."""
    suppressed, counted = await laboratory.suppressed(), await laboratory.counted()
    assert set(suppressed.values()) <= {"bounce"}
    late = await laboratory.late()
    assert suppressed.keys() | counted <= late.keys()

    def effect(address: str) -> str:
        return "suppressed" if address in suppressed else "counted" if address in counted else ""

    return {address: (kind, effect(address)) for address, kind in late.items()}


async def all_of(laboratory: Laboratory, refused: dict[str, tuple[str, str]], *taken: str) -> None:
    """Mail to all of them in one message: who is refused later ends as it says, and nothing happens to who is taken."""
    await laboratory.submit(*refused, *taken)
    await laboratory.until(lambda: len(laboratory.reports("bounce")) >= len(refused))
    await laboratory.until(lambda: len(laboratory.home.delivered) >= len(refused))

    assert await verdicts(laboratory) == refused
    assert {each["joined"] for each in laboratory.reports()} == {"token"}
    assert [each["effects"] for each in laboratory.reports("bounce")] == [["late"]] * len(refused)
    for address in taken:
        assert await laboratory.history(address) == ["message.accepted", "recipient.delivered"]
    for address in refused:
        assert await laboratory.history(address) == ["message.accepted", "recipient.delivered", "recipient.bounced"]


def forwarded(laboratory: Laboratory, host: str) -> list[str]:
    """The subjects of what the sender has got; all of it from `host`, with the null sender."""
    subjects = []
    for recipient, content, sender in laboratory.home.delivered:
        mail = message_from_bytes(content, policy=policy.default)
        assert (recipient, sender) == ("ann@sender.example", "")
        assert host in str(mail["From"])
        assert str(mail["Delivered-To"]).startswith("b-")
        subjects.append(str(mail["Subject"]))
    return subjects


@needs_postfix
async def test_what_postfix_refuses_later_ends_as_the_right_verdict_on_the_right_recipient(
    laboratory: Laboratory, postfix_host: Postfix, behind: None
) -> None:
    laboratory.receives(POSTFIX, "example.net", "boxes.example", *ONWARD)
    refused = POSTFIX_REFUSES | BEHIND_REFUSES
    await all_of(laboratory, refused, "ann@example.net", "bob@example.net", "well@hop.example")
    assert forwarded(laboratory, "mx.postfix.example") == ["Undelivered Mail Returned to Sender"] * len(refused)


@needs_exim
async def test_what_exim_refuses_later_ends_as_the_right_verdict_on_the_right_recipient(
    laboratory: Laboratory, exim_host: Exim, behind: None
) -> None:
    laboratory.receives(EXIM, "exim.example", *ONWARD)
    refused = EXIM_REFUSES | BEHIND_REFUSES
    await all_of(laboratory, refused, "ann@exim.example", "bob@exim.example", "well@hop.example")
    subjects = forwarded(laboratory, "mx.exim.example")
    assert subjects == ["Mail delivery failed: returning message to sender"] * len(refused)


@needs_postfix
async def test_whoever_did_not_exist_at_postfix_is_not_mailed_again(
    laboratory: Laboratory, postfix_host: Postfix
) -> None:
    laboratory.receives(POSTFIX, "example.net")
    await laboratory.submit("never-was@example.net", "ann@example.net")
    await laboratory.until(lambda: len(laboratory.reports("bounce")) == 1)
    shown = laboratory.daemon.command("trace", laboratory.reports()[0]["messages"][0])
    assert "(at report, class invalid_recipient)" in shown.out
    assert "reported by mx.postfix.example" in shown.out
    with pytest.raises(smtplib.SMTPResponseException, match="never-was"):
        await laboratory.submit("Never-Was@example.net")
    assert postfix_host.log.lower().count("to=<never-was@example.net>") == 1


async def gives_up_after_a_warning(laboratory: Laboratory) -> dict[str, tuple[str, str]]:
    """Nothing follows from the warning but that it is known; what follows from the end."""
    await laboratory.submit("slow@away.example")
    await laboratory.until(lambda: bool(laboratory.reports("delayed") and laboratory.home.delivered))
    assert await verdicts(laboratory) == {}
    history = await laboratory.history("slow@away.example")
    assert sorted(history) == ["message.accepted", "recipient.answered", "recipient.delivered"]
    warned = len(laboratory.home.delivered)

    await laboratory.until(lambda: bool(laboratory.reports("bounce")))
    await laboratory.until(lambda: len(laboratory.home.delivered) > warned)
    assert {each["joined"] for each in laboratory.reports()} == {"token"}
    assert {each.sender for each in laboratory.home.delivered} == {""}
    return await verdicts(laboratory)


@needs_postfix
async def test_a_warning_of_postfix_changes_nothing_until_it_gives_up(
    laboratory: Laboratory, postfix_host: Postfix
) -> None:
    laboratory.receives(POSTFIX, "away.example")
    assert await gives_up_after_a_warning(laboratory) == {"slow@away.example": ("network", "")}
    assert forwarded(laboratory, "mx.postfix.example")[0] == "Delayed Mail (still being retried)"


@needs_exim
async def test_a_warning_of_exim_changes_nothing_until_it_gives_up(laboratory: Laboratory, exim_host: Exim) -> None:
    laboratory.receives(EXIM, "away.example")
    assert await gives_up_after_a_warning(laboratory) == {"slow@away.example": ("expired", "")}
    assert "delayed" in forwarded(laboratory, "mx.exim.example")[0]


@needs_postfix
async def test_a_sender_whose_postfix_refuses_its_bounces_ends_the_matter(
    laboratory: Laboratory, postfix_host: Postfix
) -> None:
    laboratory.receives(POSTFIX, "example.net", "loop.example")
    await laboratory.submit("nobody-here@example.net", sender="gone@loop.example")
    refused = re.compile(r": (\w+): to=<gone@loop\.example>.* status=bounced")
    await laboratory.until(lambda: bool(refused.search(postfix_host.log)))
    match = refused.search(postfix_host.log)
    assert match is not None
    await laboratory.until(lambda: f"{match[1]}: removed" in postfix_host.log)
    assert f"{match[1]}: sender non-delivery" not in postfix_host.log
    await it_went_back_once(laboratory, "nobody-here@example.net")


@needs_exim
async def test_a_sender_whose_exim_refuses_its_bounces_ends_the_matter(laboratory: Laboratory, exim_host: Exim) -> None:
    laboratory.receives(EXIM, "exim.example", "loop.example")
    await laboratory.submit("closed@exim.example", sender="gone@loop.example")
    await laboratory.until(lambda: "** gone@loop.example: Unrouteable address" in exim_host.log)
    await laboratory.until(lambda: "Frozen (delivery error message)" in exim_host.log)
    await it_went_back_once(laboratory, "closed@exim.example")


async def it_went_back_once(laboratory: Laboratory, refused: str) -> None:
    assert len(laboratory.reports()) == 1
    assert await laboratory.accepted() == [("gone@loop.example", refused), ("", "gone@loop.example")]
    assert list(await verdicts(laboratory)) == [refused]


@needs_postfix
async def test_a_bounce_that_went_on_to_its_sender_and_is_sent_back_to_us_changes_nothing(
    laboratory: Laboratory, postfix_host: Postfix
) -> None:
    laboratory.receives(POSTFIX, "example.net")
    await laboratory.submit("nobody-here@example.net")
    await laboratory.until(lambda: len(laboratory.home.delivered) == 1)
    content = laboratory.home.delivered[0].content
    to = str(message_from_bytes(content, policy=policy.default)["Delivered-To"])

    def send() -> None:
        with smtplib.SMTP(*laboratory.inbound, timeout=PATIENCE) as client:
            client.sendmail("", [to], content)

    await asyncio.to_thread(send)
    again = laboratory.reports()[-1]
    assert (again["effects"], again["forwarded"]) == (["known"], 0)
    assert len(await laboratory.accepted()) == 2
    assert await laboratory.late() == {"nobody-here@example.net": "invalid_recipient"}
