"""What is taken in, from whom, for when; and that nothing in a message can keep the database from taking others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailerd.config import Pool, Rate, SendingDomain, Stream
from mailerd.errors import Refused
from mailerd.intake.credentials import TRUSTED, Credential
from mailerd.intake.envelope import Envelope, Origin, Track
from mailerd.intake.idempotency import Conflict, Idempotency, Replayed
from mailerd.intake.submission import Item
from mailerd.queue.suppression import Reason, Suppression
from mailerd.wire.smtp import parse_rcpt
from tests.support.dns_server import DnsServer
from tests.support.relay import CONTENT, RunningRelay, relay_config, running_relay

SHOP = Credential(name="shop", sender_domains=("shop.example", "*.news.example"))
TO = "bob@example.net"


@pytest.fixture
async def relay(database: str, tmp_path: Path) -> AsyncIterator[RunningRelay]:
    """Nothing leaves here: what these tests are about is over before."""
    async with DnsServer() as dns:
        config = relay_config(
            tmp_path,
            dns,
            pools={"default": Pool(), "warm": Pool()},
            streams={"transactional": Stream(), "news": Stream(pool="warm"), "broken": Stream(pool="lost")},
        )
        async with running_relay(config, database) as running:
            yield running


async def refusal(relay: RunningRelay, *to: str, **arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(Refused) as caught:
        await relay.submit(*(to or (TO,)), **arguments)
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 0
    return caught.value.code, caught.value.name, caught.value.field


def content_from(value: str, *more: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (f"From: {value}", *more, "", "body")).encode("utf-8", "surrogateescape")


ASKING = b"X-Mailerd-Unsubscribe: yes\r\n" + CONTENT
OWN_WAY = b"List-Unsubscribe: <https://shop.example/leave>\r\n" + ASKING


@pytest.mark.parametrize("asked", [{"unsubscribe": True}, {"content": ASKING}])
async def test_no_click_can_stop_all_transactional_mail(relay: RunningRelay, asked: dict[str, Any]) -> None:
    assert await refusal(relay, **asked) == (550, "topic_needed", "topic")


@pytest.mark.parametrize(
    "asked",
    [
        {"unsubscribe": True, "topic": "receipts"},
        {"content": b"X-Mailerd-Topic: receipts\r\n" + ASKING},
        {"unsubscribe": True, "stream": "news"},
        {"content": OWN_WAY},  # that one is its sender's
        {"unsubscribe": False},
    ],
)
async def test_what_stops_less_may_be_asked_for(relay: RunningRelay, asked: dict[str, Any]) -> None:
    assert (await relay.submit(TO, **asked)).message_id


@pytest.mark.parametrize(
    ("sender", "allowed"),
    [
        ("a@shop.example", True),
        ("a@eu.news.example", True),
        ("a@de.eu.news.example", True),
        ("", True),  # reports have no sender
        ("a@news.example", False),
        ("a@notshop.example", False),
        ("a@shop.example.evil.example", False),
        ("a@other.example", False),
    ],
)
async def test_an_envelope_sender_has_an_allowed_domain(relay: RunningRelay, sender: str, allowed: bool) -> None:
    content = content_from("a@shop.example")
    if allowed:
        assert (await relay.submit(TO, sender=sender, content=content, credential=SHOP)).message_id
    else:
        refused = await refusal(relay, sender=sender, content=content, credential=SHOP)
        assert refused == (550, "sender_not_allowed", "from")


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        ("Shop <a@SHOP.example>", True),
        ('"a@evil.example" <a@shop.example>', True),
        ("Undisclosed:;", True),  # shows nobody
        ("a@evil.example", False),
        ("Shop <a@shop.example> <a@evil.example>", False),  # readers see one, some of them the other
        ("(a@shop.example) a@evil.example", False),
        ('"a@shop.example" <a@evil.example>', False),
        ("a@evil.example, a@shop.example", False),
    ],
)
async def test_the_author_shown_has_an_allowed_domain_too(relay: RunningRelay, value: str, allowed: bool) -> None:
    if allowed:
        assert await relay.submit(TO, sender="a@shop.example", content=content_from(value), credential=SHOP)
    else:
        refused = await refusal(relay, sender="a@shop.example", content=content_from(value), credential=SHOP)
        assert refused == (550, "sender_not_allowed", "from")


async def test_without_sender_domains_any_sender_will_do(relay: RunningRelay) -> None:
    assert await relay.submit(TO, sender="x@anywhere.example", content=content_from("y@elsewhere.example"))


@pytest.mark.parametrize(
    ("credential", "envelope", "expected"),
    [
        ({}, {}, ("transactional", "default")),
        ({}, {"stream": "news"}, ("news", "warm")),
        ({}, {"stream": "news", "pool": "default"}, ("news", "default")),
        ({"stream": "news"}, {}, ("news", "warm")),
        ({"stream": "news"}, {"stream": "news"}, ("news", "warm")),
        ({"pool": "warm"}, {}, ("transactional", "warm")),
        ({"pool": "warm"}, {"pool": "default"}, ("transactional", "warm")),
        ({"stream": "news"}, {"stream": "transactional"}, "stream_not_allowed"),
        ({}, {"stream": "lost"}, "unknown_stream"),
        ({"stream": "lost"}, {}, "unknown_stream"),
        ({}, {"pool": "lost"}, "unknown_pool"),
        ({}, {"stream": "broken"}, "unknown_pool"),
    ],
)
async def test_stream_and_pool_are_those_of_the_credential_or_else_as_asked(
    relay: RunningRelay, credential: dict[str, Any], envelope: dict[str, Any], expected: object
) -> None:
    who = Credential(name="who", **credential)
    if isinstance(expected, str):
        assert (await refusal(relay, credential=who, **envelope))[1] == expected
        return
    view = await relay.view(await relay.submit(TO, credential=who, **envelope))
    assert (view.stream, view.pool) == expected


@pytest.mark.parametrize(
    ("not_before", "expires_at", "expected"),
    [  # in hours from now; expected: due and expiry, or the refusal
        (None, None, (0, 96)),
        (-5, None, (0, 96)),
        (5, None, (5, 101)),
        (5, 6, (5, 6)),
        (None, 1, (0, 1)),
        (365 * 24, None, (365 * 24, 369 * 24)),
        (366 * 24, None, "too_far_ahead"),
        (None, 0, "expires_too_soon"),
        (None, -1, "expires_too_soon"),
        (5, 5, "expires_too_soon"),
        (None, 365 * 24, (0, 365 * 24)),
        (None, 366 * 24, "expires_too_late"),
    ],
)
async def test_mail_has_a_time_to_leave_and_a_time_to_expire(
    relay: RunningRelay, not_before: float | None, expires_at: float | None, expected: object
) -> None:
    now = relay.clock.now
    times: dict[str, Any] = {
        name: None if hours is None else now + timedelta(hours=hours)
        for name, hours in (("not_before", not_before), ("expires_at", expires_at))
    }
    if isinstance(expected, str):
        assert (await refusal(relay, **times))[1] == expected
        return
    view = (await relay.view(await relay.submit(TO, **times))).recipients[0]
    assert view.expires_at is not None
    assert view.due_at is not None
    due = max(timedelta(0), timedelta(hours=not_before or 0))
    assert (due / timedelta(hours=1), (view.expires_at - now) / timedelta(hours=1)) == expected
    assert view.due_at >= now + due


async def test_a_credential_sends_at_its_rate_by_smtp_too(relay: RunningRelay) -> None:
    slow = Credential(name="slow", message_rate=Rate(2, 3600), recipient_rate=Rate(5, 3600))
    await relay.submit(TO, credential=slow)
    with pytest.raises(Refused) as caught:
        await relay.submit(*(f"user{n}@example.net" for n in range(5)), credential=slow)
    assert (caught.value.code, caught.value.enhanced, caught.value.name) == (451, "4.7.1", "rate_limited")
    await relay.submit(TO, credential=slow)
    with pytest.raises(Refused):
        await relay.submit(TO, credential=slow)
    assert await relay.submit(TO, credential=TRUSTED)


PROBLEMS = [
    (b"From: a@b.example\r\nnonsense\r\n\r\nx\r\n", "malformed_header"),
    (b"From: a@b.example\r\nFrom: b@b.example\r\n\r\nx\r\n", "malformed_header"),
    (b"From: a@b.example\r\nSubject: a\0b\r\n\r\nx\r\n", "malformed_header"),
    (b"Received: x\r\n" * 101 + b"From: a@b.example\r\n\r\nx\r\n", "mail_loop"),
]


@pytest.mark.parametrize(("content", "name"), PROBLEMS)
async def test_a_header_that_cannot_be_passed_on_is_refused(relay: RunningRelay, content: bytes, name: str) -> None:
    assert (await refusal(relay, content=content))[:2] == (554, name)


async def test_a_hundred_hops_are_no_loop(relay: RunningRelay) -> None:
    assert await relay.submit(TO, content=b"Received: x\r\n" * 100 + b"From: a@b.example\r\n\r\nx\r\n")


async def test_postmaster_without_a_domain_is_ours(relay: RunningRelay) -> None:
    receipt = await relay.submit("postmaster")

    assert receipt.recipients == [(1, "postmaster@mail.sender.example")]


ODD = [
    b"\xff\xfe\x80",
    "Grüße 😀".encode(),
    b"\xed\xa0\x80",  # a surrogate in the UTF-8 of those who do not know better
    b"\\u0000 \\ud800",
    b"x" * 900,
    b"\x01\x02\x1b[31m\x7f",
    b"=?utf-8?q?=00=ED=A0=80?=",
]


@pytest.mark.parametrize("value", ODD, ids=ascii)
async def test_odd_headers_are_stored_and_shown(relay: RunningRelay, value: bytes) -> None:
    content = b"From: a@b.example\r\nSubject: %b\r\nMessage-ID: <%b@x>\r\nX-Odd: %b\r\n\r\n%b\r\n"
    receipt = await relay.submit(TO, content=content % ((value,) * 4), not_before=tomorrow(relay))

    facts = await relay.pool.fetchval("SELECT data FROM events WHERE message_id = $1", receipt.message_id)
    assert len(facts["subject"]) <= 200
    assert (await relay.view(receipt)).sender == "ann@sender.example"
    assert value in await relay.pool.fetchval("SELECT content FROM messages")


@pytest.mark.parametrize("helo", ["a\0b", "\udcff", "x" * 5000, "a\r\nBcc: x", "(", "😀"], ids=ascii)
async def test_an_odd_helo_is_no_obstacle(relay: RunningRelay, helo: str) -> None:
    origin = Origin("smtp", "2001:db8::1", helo, "TLSv1.3 AES", TRUSTED)
    envelope = Envelope("ann@sender.example", [parse_rcpt(f"TO:<{TO}>")], not_before=tomorrow(relay))
    await relay.relay.submitter.submit(envelope, CONTENT, origin)

    content = await relay.pool.fetchval("SELECT content FROM messages")
    assert content.startswith(b"Received: from ")
    assert b"\nBcc" not in content


@pytest.mark.parametrize(
    "envelope",
    [
        {"labels": {"a": "\0"}},
        {"labels": {"\0": ""}},
        {"labels": {"a": "\ud800"}},
        {"envid": "\0"},
        {"sender": "a\udcff@b.example"},
    ],
    ids=ascii,
)
async def test_text_that_no_database_takes_is_refused_and_harms_no_neighbour(
    relay: RunningRelay, envelope: dict[str, Any]
) -> None:
    answers = await asyncio.gather(
        relay.submit(TO), relay.submit(TO, **envelope), relay.submit(TO), return_exceptions=True
    )

    assert isinstance(answers[1], Refused)
    assert answers[1].name == "invalid_text"
    accepted = "SELECT count(*) FROM events WHERE type = 'message.accepted' AND data->>'sender' <> ''"
    assert await relay.pool.fetchval(accepted) == 2


async def test_a_keyed_request_is_done_once_and_its_refusals_leave_the_key_free(relay: RunningRelay) -> None:
    slow = Credential(name="slow", message_rate=Rate(1, 3600))
    origin = Origin("http", "127.0.0.1", "", "", slow)
    request = Idempotency("slow", "POST /x", "key", b"digest")

    async def send(sender: str) -> Any:
        envelope = Envelope(sender, [parse_rcpt(f"TO:<{TO}>")], not_before=tomorrow(relay))
        return await relay.relay.submitter.submit_batch(
            [(envelope, CONTENT)], origin, request, 202, lambda results: b"answer"
        )

    refused, response = await send("a\0@b.example")
    assert (refused[0].name, response) == ("invalid_text", b"")
    (receipt,), response = await send("ann@sender.example")
    assert response == b"answer"
    assert await relay.pool.fetchval("SELECT id FROM messages") == receipt.message_id
    assert await send("ann@sender.example") == Replayed(202, b"answer")  # the rate is used up, and does not matter
    other = Idempotency("slow", "POST /x", "key", b"other")
    again = await relay.relay.submitter.submit_batch([], origin, other, 202, lambda results: b"")
    assert again is Conflict.OTHER_REQUEST


def tomorrow(relay: RunningRelay) -> Any:
    return relay.clock.now + timedelta(days=1)


async def test_a_batch_is_taken_but_for_what_must_not_be_mailed(relay: RunningRelay) -> None:
    now = relay.clock.now
    no = [
        Suppression(f"no{n}@example.net", tenant="default", reason=Reason.MANUAL, source="api", created_at=now)
        for n in (1, 2)
    ]
    await relay.relay.suppressions.add(no)
    several = [("no1@example.net",), ("no2@example.net", "yes@example.net"), ("yes@example.net",)]
    later = now + timedelta(hours=1)
    items = [
        (Envelope("a@shop.example", [parse_rcpt(f"TO:<{to}>") for to in each], not_before=later), CONTENT)
        for each in several
    ]
    origin = Origin("http", "127.0.0.1", "", "", TRUSTED)
    request = Idempotency("trusted", "POST /", "key", b"x" * 32)

    outcome = await relay.relay.submitter.submit_batch(items, origin, request, 202, lambda results: b"answer")

    assert isinstance(outcome, tuple)
    refused, partly, wholly = outcome[0]
    assert isinstance(refused, Refused)
    assert not isinstance(partly, Refused)
    assert not isinstance(wholly, Refused)
    assert (refused.name, refused.http) == ("suppressed", 422)
    assert partly.recipients == [(2, "yes@example.net")]
    assert [(n, address) for n, address, _ in partly.suppressed] == [(1, "no2@example.net")]
    assert wholly.suppressed == []
    assert await relay.pool.fetchval("SELECT count(*) FROM messages") == 2  # the answer says it: no report by mail
    rows = await relay.pool.fetch("SELECT message_id FROM events WHERE type = 'recipient.suppressed' ORDER BY 1")
    assert [row["message_id"] for row in rows] == [0, partly.message_id]
    again = await relay.relay.submitter.submit_batch(items, origin, request, 202, lambda results: b"other")
    assert again == Replayed(202, b"answer")


async def test_a_batch_of_nothing_but_suppressed_mail_is_refused_and_told(relay: RunningRelay) -> None:
    entry = Suppression(TO, tenant="default", reason=Reason.COMPLAINT, source="report", created_at=relay.clock.now)
    await relay.relay.suppressions.add([entry])
    origin = Origin("http", "127.0.0.1", "", "", TRUSTED)
    item = (Envelope("a@shop.example", [parse_rcpt(f"TO:<{TO}>")]), CONTENT)

    outcome = await relay.relay.submitter.submit_batch([item, item], origin, None, 202, lambda results: b"answer")

    assert isinstance(outcome, tuple)
    assert [isinstance(result, Refused) for result in outcome[0]] == [True, True]
    assert outcome[1] == b""
    told = "SELECT count(*) FROM events WHERE type = 'recipient.suppressed' AND message_id = 0"
    assert await relay.pool.fetchval(told) == 2


async def test_others_get_their_turn_while_a_batch_with_much_to_mark_is_prepared(database: str, tmp_path: Path) -> None:
    turns = 0
    seen: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    class Watched(list[Item]):
        def __iter__(self) -> Iterator[Item]:
            for item in super().__iter__():
                yield item
                seen.append(turns)  # when it was prepared, and others had their turn

    html = b'<a href="https://a.example/">x</a>\r\n' * 1_000 + b"<p>x\r\n" * 40_000
    content = b"From: ann@sender.example\r\nContent-Type: text/html\r\n\r\n" + html
    origin = Origin("http", "127.0.0.1", "", "", TRUSTED)
    async with DnsServer() as dns:
        domains = {"sender.example": SendingDomain(tracking_url="https://t.example")}
        async with running_relay(relay_config(tmp_path, dns, domains=domains), database) as relay:
            to = [parse_rcpt(f"TO:<{TO}>")]
            envelope = Envelope("ann@sender.example", to, not_before=tomorrow(relay), track=Track(True, True))
            other = asyncio.create_task(others())
            await relay.relay.submitter.submit_batch(
                Watched([(envelope, content)] * 4), origin, None, 202, lambda results: b""
            )
            other.cancel()
    assert len(set(seen)) >= 3


async def test_refused_mail_counts_for_the_rate_of_its_credential(relay: RunningRelay) -> None:
    entry = Suppression(TO, tenant="default", reason=Reason.MANUAL, source="api", created_at=relay.clock.now)
    await relay.relay.suppressions.add([entry])
    slow = Credential(name="slow", message_rate=Rate(2, 3600))
    names = []
    for _ in range(3):
        with pytest.raises(Refused) as caught:
            await relay.submit(TO, credential=slow)
        names.append(caught.value.name)
    assert names == ["suppressed", "suppressed", "rate_limited"]


async def test_content_as_it_was_submitted_is_not_held_until_the_message_is_on_disk(relay: RunningRelay) -> None:
    class Watched(bytes):
        gone = False

        def __del__(self) -> None:
            Watched.gone = True

    envelope = Envelope("ann@sender.example", [parse_rcpt(f"TO:<{TO}>")], len(CONTENT))
    origin = Origin("smtp", "127.0.0.1", "client.example", "", TRUSTED)
    submitting = asyncio.create_task(relay.relay.submitter.submit(envelope, Watched(CONTENT), origin))
    while not Watched.gone and not submitting.done():
        await asyncio.sleep(0)

    assert Watched.gone
    assert not submitting.done()
    await submitting
