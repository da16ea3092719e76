"""Campaign, priority and TLS as the envelope or the header of a message asks for them."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailerd.config import SendingDomain, Stream
from mailerd.errors import Refused
from mailerd.intake.envelope import Envelope, Track
from mailerd.intake.wishes import Wishes, read_wishes
from tests.support.dns_server import DnsServer
from tests.support.relay import CONTENT, RunningRelay, relay_config, running_relay

STORED = "SELECT campaign, lane, require_tls, content FROM messages"
FACTS = "SELECT data::text FROM events WHERE type = 'message.accepted'"


@pytest.fixture
async def relay(database: str, tmp_path: Path) -> AsyncIterator[RunningRelay]:
    """What is submitted here waits until tomorrow."""
    async with DnsServer() as dns:
        streams = {"transactional": Stream(), "marketing": Stream(), "bulk": Stream(precedence=7)}
        domains = {"sender.example": SendingDomain(tracking_url="https://t.example")}
        async with running_relay(relay_config(tmp_path, dns, streams=streams, domains=domains), database) as running:
            yield running


async def stored(relay: RunningRelay, *fields: str, **envelope: Any) -> tuple[str, int, bool | None, bytes]:
    content = "".join(f"{line}\r\n" for line in fields).encode() + CONTENT
    tomorrow = relay.clock.now + timedelta(days=1)
    receipt = await relay.submit("bob@example.net", content=content, not_before=tomorrow, **envelope)
    (row,) = await relay.pool.fetch(f"{STORED} WHERE id = $1", receipt.message_id)
    return row["campaign"], row["lane"], row["require_tls"], bytes(row["content"])


def wishes(*fields: str, **envelope: Any) -> Wishes:
    header = "".join(f"{line}\r\n" for line in fields).encode("utf-8", "surrogateescape")
    return read_wishes(Envelope("", [], **envelope), header)


def test_a_message_that_asks_for_nothing_is_of_no_campaign_and_of_normal_priority() -> None:
    assert wishes("From: a@b.example") == Wishes("", "normal", None)


def test_the_header_asks_where_the_envelope_is_silent() -> None:
    fields = ("X-Mailerd-Campaign:  Frühling 27 ", "x-MAILERD-priority: HIGH", "TLS-Required: No")

    assert wishes(*fields) == Wishes("Frühling 27", "high", False, said=True)
    assert wishes(*fields, campaign="", priority="low", require_tls=True) == Wishes("", "low", True, said=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["TLS-Required: no"], False),
        (["TLS-Required: No", "TLS-Required: No"], None),
        (["TLS-Required: Yes"], None),
        (["X-TLS-Required: No"], None),
        (["Subject: TLS-Required: No"], None),
    ],
)
def test_only_one_plain_no_says_that_tls_is_not_required(fields: list[str], expected: bool | None) -> None:
    assert wishes(*fields).require_tls is expected


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (["X-Mailerd-Campaign: a/b"], "invalid_campaign"),
        (["X-Mailerd-Campaign: a:b"], "invalid_campaign"),
        (["X-Mailerd-Campaign: a!b"], "invalid_campaign"),
        (["X-Mailerd-Campaign: a\tb"], "invalid_campaign"),
        (["X-Mailerd-Campaign: a\u2028b"], "invalid_campaign"),
        (["X-Mailerd-Campaign: a\udcffb"], "invalid_campaign"),  # no UTF-8
        (["X-Mailerd-Campaign: " + "x" * 101], "invalid_campaign"),
        (["X-Mailerd-Campaign: " + "ü" * 51], "invalid_campaign"),
        (["X-Mailerd-Topic: " + "ü" * 51], "invalid_topic"),
        (["X-Mailerd-Topic: " + "İ" * 50], "invalid_topic"),  # three bytes each in lower case
        (["X-Mailerd-Topic: a\udcffb"], "invalid_topic"),
        (["X-Mailerd-Campaign: a", "X-Mailerd-Campaign: a"], "malformed_header"),
        (["X-Mailerd-Priority: urgent"], "invalid_priority"),
        (["X-Mailerd-Priority: 1"], "invalid_priority"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: list[str], name: str) -> None:
    with pytest.raises(Refused) as caught:
        wishes(*fields)
    assert caught.value.name == name
    assert caught.value.code >= 550


@pytest.mark.parametrize("asked", ["weekly", "Weekly", "WEEKLY"])
def test_a_topic_is_the_same_in_upper_and_lower_case(asked: str) -> None:
    assert wishes(f"X-Mailerd-Topic: {asked}").topic == "weekly"
    assert wishes(topic=asked).topic == "weekly"


def test_a_topic_is_the_same_however_its_letters_are_put_together() -> None:
    assert wishes(topic="CAFE\u0301").topic == wishes(topic="café").topic == "caf\u00e9"


def test_names_have_up_to_a_hundred_bytes() -> None:
    assert wishes(topic="ü" * 50, campaign="Ü" * 50).topic == "ü" * 50


async def test_wishes_are_stored_and_their_fields_leave_the_message(relay: RunningRelay) -> None:
    campaign, lane, require_tls, content = await stored(
        relay, "X-Mailerd-Campaign: spring\r\n sale", "X-MAILERD-PRIORITY : high", "TLS-Required: No", stream="bulk"
    )

    assert (campaign, lane, require_tls) == ("spring sale", 21, False)
    assert b"x-mailerd" not in content.lower()
    assert content.count(b"TLS-Required: No\r\n") == 1  # those after us are asked as well
    assert content.endswith(CONTENT)
    facts = json.loads(await relay.pool.fetchval(FACTS))
    assert (facts["campaign"], facts["priority"], facts["require_tls"]) == ("spring sale", "high", False)


@pytest.mark.parametrize(
    ("stream", "priority", "lane"),
    [
        ("transactional", None, 1),
        ("transactional", "high", 0),
        ("transactional", "low", 2),
        ("marketing", None, 4),
        ("bulk", "low", 23),
    ],
)
async def test_the_lane_is_precedence_and_priority(
    relay: RunningRelay, stream: str, priority: str | None, lane: int
) -> None:
    assert (await stored(relay, stream=stream, priority=priority))[1] == lane


async def test_an_envelope_that_asks_for_no_tls_says_so_to_those_after_us(relay: RunningRelay) -> None:
    _, _, require_tls, content = await stored(relay, require_tls=False)

    assert require_tls is False
    assert b"\r\nTLS-Required: No\r\n" in content


async def test_requiretls_overrules_the_header(relay: RunningRelay) -> None:
    assert (await stored(relay, "TLS-Required: No", require_tls=True))[2] is True


async def test_a_report_of_ours_asks_nothing_of_tls_and_wants_no_bounce(relay: RunningRelay) -> None:
    await relay.relay.submitter.submit_report("reports@sender.example", "tlsrpt@example.net", CONTENT)

    (message,) = await relay.pool.fetch("SELECT sender, stream, credential, require_tls FROM messages")
    assert tuple(message) == ("reports@sender.example", "transactional", "mailerd", False)
    assert await relay.pool.fetchval("SELECT notify FROM recipients") == "NEVER"


async def test_a_new_configuration_is_what_the_next_message_is_held_to(relay: RunningRelay, tmp_path: Path) -> None:
    async with DnsServer() as dns:
        streams = {"transactional": Stream(precedence=3), "later": Stream()}
        relay.relay.submitter.reconfigure(relay_config(tmp_path, dns, streams=streams))

    assert (await stored(relay, stream="later"))[1] == 4
    assert (await stored(relay))[1] == 10
    with pytest.raises(Refused):
        await relay.submit("bob@example.net", stream="marketing")


def test_what_is_tracked_is_said_by_the_envelope_or_else_by_the_header() -> None:
    assert wishes("X-Mailerd-Track: opens, Clicks").track == Track(opens=True, clicks=True)
    assert wishes("X-Mailerd-Track: clicks").track == Track(clicks=True)
    assert wishes("X-Mailerd-Track: off").track == Track()
    assert wishes("X-Mailerd-Track: opens", track=Track()).track == Track()
    with pytest.raises(Refused, match="X-Mailerd-Track"):
        wishes("X-Mailerd-Track: yes")


async def test_mail_by_smtp_is_tracked_as_its_header_asks_and_nobody_else_sees_that(relay: RunningRelay) -> None:
    html = b'MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n<a href="https://a.example/">a</a>'
    field = b"X-Mailerd-Track: opens, clicks\r\nFrom: a@sender.example\r\n"

    receipt = await relay.submit(
        "bob@example.net", content=field + html, not_before=relay.clock.now + timedelta(days=1)
    )

    content = await relay.pool.fetchval("SELECT content FROM messages WHERE id = $1", receipt.message_id)
    assert b"X-Mailerd" not in content
    assert b'<a href="https://t.example/c/' in content
    assert b'<img src="https://t.example/o/' in content
    facts = json.loads(await relay.pool.fetchval(FACTS))
    assert facts["tracking"] == ["opens", "clicks"]


@pytest.mark.parametrize(
    ("fields", "track"),
    [
        (b"x-mAiLeRd-TrAcK: opens,\r\n clicks\r\n", None),
        (b"X-Mailerd-Track:\r\n\topens\r\n , clicks\r\n", None),
        (b"X-Mailerd-Track \t: opens\r\n", None),
        (b"X-Mailerd-Track: off\r\n", None),
        (b"X-MAILERD-TRACK: opens\r\nSubject: x\r\nX-Mailerd-Track:\r\n nonsense\r\n", Track()),
        (b"X-Mailerd-Track: opens\r\nSubject: x\r\nx-mailerd-track: clicks\r\n", Track(True, True)),
    ],
)
async def test_the_field_that_asks_for_tracking_never_goes_out(
    relay: RunningRelay, fields: bytes, track: Track | None
) -> None:
    html = b"Content-Type: text/html\r\n\r\n<p>x</p>\r\n"

    for content in (fields + b"From: a@sender.example\r\n" + html, b"From: a@sender.example\r\n" + fields + html):
        tomorrow = relay.clock.now + timedelta(days=1)
        receipt = await relay.submit("bob@example.net", content=content, not_before=tomorrow, track=track)

        stored = await relay.pool.fetchval("SELECT content FROM messages WHERE id = $1", receipt.message_id)
        header = stored.partition(b"\r\n\r\n")[0].lower()
        assert b"mailerd-track" not in header
        assert not any(word in header for word in (b"opens", b"clicks", b"nonsense"))
