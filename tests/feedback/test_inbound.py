"""What comes back, and what follows from it; with a real relay that sent the mail, and a real database."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from mailerd import db
from mailerd.config import DkimKey, FilePath, SendingDomain
from mailerd.delivery.identity import Identity
from mailerd.errors import Refused, Unavailable
from mailerd.relay import builtin_rules
from mailerd.wire.dkim import generate_key
from tests.support.database_proxy import DatabaseProxy
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock
from tests.support.returned import BOUNCES, ReturningWorld, bounce, complaint, returning_world
from tests.support.scripted_mx import ScriptedMx

MARKETING = {"stream": "marketing"}
Behind = tuple[ReturningWorld, DatabaseProxy]
ALL_OR_NOTHING = """
    SELECT (SELECT count(*) FROM events WHERE type = 'recipient.bounced' AND data ? 'late'),
           (SELECT count(*) FROM suppressions),
           (SELECT count(*) FROM events WHERE data->>'protocol' = 'inbound'),
           (SELECT COALESCE(sum(bounced), 0) FROM traffic_days WHERE provider = 'mx.example.net')
"""


@pytest.fixture
async def world_behind(database: str, tmp_path: Path) -> AsyncIterator[Behind]:
    """A world whose database can be taken away."""
    async with DnsServer() as dns, ScriptedMx("127.0.0.2", name="mx.example.net") as mx:
        dns.add("mx.example.net", "A", "127.0.0.2")
        dns.add("example.net", "MX", "10 mx.example.net.")
        async with (
            DatabaseProxy(database, tmp_path) as proxy,
            returning_world(proxy.url, dns, mx, tmp_path, Clock()) as world,
        ):
            yield world, proxy


async def test_a_late_bounce_suppresses_its_recipient_and_stands_in_the_trace(world: ReturningWorld) -> None:
    receipt = await world.sent()

    await world.receive(bounce())

    assert await world.relay.events(receipt) == [
        "message.accepted",
        "recipient.delivered",
        "recipient.bounced",
        "suppression.added",
    ]
    data = await world.event("recipient.bounced")
    assert data["late"] is True
    assert (data["kind"], data["code"], data["enhanced"]) == ("invalid_recipient", 550, "5.1.1")
    assert data["reporter"] == "mx.example.net"
    assert await world.suppressions() == [("bob@example.net", "default", "", "bounce")]
    view = (await world.relay.view(receipt)).recipients[0]
    assert (view.state, view.attempts) == ("bounced", 1)
    assert "no such user" in view.last_reply


async def test_the_same_report_again_changes_nothing(world: ReturningWorld) -> None:
    await world.sent()
    await world.receive(bounce())
    await world.relay.settled()
    before = await world.state()

    await world.receive(bounce())
    await asyncio.gather(*(world.receive(bounce()) for _ in range(5)))

    assert await world.state() == before


async def test_the_same_report_many_times_at_once_counts_once(world: ReturningWorld) -> None:
    await world.sent()
    path = world.path

    await asyncio.gather(*(world.receive(bounce(), path) for _ in range(8)))

    assert await world.pool.fetchval("SELECT count(*) FROM events WHERE type = 'recipient.bounced'") == 1
    assert (await world.state())["books"] == 1
    assert await world.pool.fetchval("SELECT count(*) FROM events WHERE data->>'protocol' = 'inbound'") == 1


async def test_a_late_bounce_counts_in_the_books_of_the_source_that_delivered(world: ReturningWorld) -> None:
    await world.sent()
    await world.receive(bounce())

    row = await world.pool.fetchrow("SELECT * FROM traffic_days WHERE bounced > 0")
    assert (row["bounced"], row["provider"], row["day"]) == (1, "mx.example.net", world.clock.now.date())


async def test_a_full_mailbox_is_counted_and_suppressed_only_after_three_over_a_day(world: ReturningWorld) -> None:
    full = bounce(status="5.2.2", diagnostic="552 5.2.2 mailbox full")
    for _ in range(2):
        await world.sent()
        await world.receive(full)
        world.clock.advance(hours=13)
        assert await world.suppressions() == []
    await world.sent()
    await world.receive(full)

    assert await world.suppressions() == [("bob@example.net", "default", "", "soft_bounce")]


async def test_a_bounce_that_blames_our_content_suppresses_nobody(world: ReturningWorld) -> None:
    await world.sent()
    await world.receive(bounce(status="5.7.1", diagnostic="550 5.7.1 message rejected as spam by content filter"))

    assert (await world.event("recipient.bounced"))["late"] is True
    assert await world.suppressions() == []


async def test_a_report_to_the_wrong_place_is_joined_by_the_return_path_in_the_returned_header(
    world: ReturningWorld,
) -> None:
    await world.sent()
    returned = f"Return-Path: <{world.path.upper()}>\r\n{world.header}"

    await world.receive(bounce(returned=returned), "postmaster@mail.sender.example")

    assert await world.suppressions() == [("bob@example.net", "default", "", "bounce")]


async def test_without_a_token_the_message_id_and_a_named_recipient_join(world: ReturningWorld) -> None:
    content = b"From: ann@other.example\r\nMessage-ID: <unique.1@other.example>\r\nSubject: hello\r\n\r\nhi\r\n"
    await world.sent("Bob@example.net", "carl@example.net", sender="ann@other.example", content=content)
    assert world.path == "ann@other.example"

    await world.receive(bounce(address="BOB@EXAMPLE.NET", returned=world.header), "postmaster@mail.sender.example")

    assert (await world.event("recipient.bounced"))["late"] is True
    assert await world.pool.fetchval("SELECT address FROM soft_bounces") == "bob@example.net"
    assert await world.suppressions() == []


async def test_a_message_id_that_we_made_joins_too(world: ReturningWorld) -> None:
    await world.sent(sender="ann@other.example")

    await world.receive(bounce(returned=world.header), "postmaster@mail.sender.example")

    assert await world.pool.fetchval("SELECT address FROM soft_bounces") == "bob@example.net"


@pytest.mark.parametrize(
    ("address", "returned"),
    [
        ("victim@example.net", "Message-ID: <unique.1@other.example>\r\n"),
        ("bob@example.net", "Message-ID: <guessed@other.example>\r\n"),
        ("bob@example.net", "Subject: hello\r\n"),
        ("bob@example.net", f"Return-Path: <b-{'a' * 31}@{BOUNCES}>\r\n"),
    ],
    ids=["not a recipient", "an id of nobody", "no id", "a forged token"],
)
async def test_what_is_not_joined_changes_nothing(world: ReturningWorld, address: str, returned: str) -> None:
    content = b"From: ann@other.example\r\nMessage-ID: <unique.1@other.example>\r\nSubject: hello\r\n\r\nhi\r\n"
    await world.sent(sender="ann@other.example", content=content)
    before = await world.state()

    await world.receive(bounce(address=address, returned=returned), "fbl@mail.sender.example")
    await world.receive(complaint(recipient=address, returned=returned), "fbl@mail.sender.example")

    assert await world.state() == before


async def test_forged_and_unknown_addresses_are_refused_at_rcpt(world: ReturningWorld) -> None:
    for address in (
        f"b-{'a' * 31}@{BOUNCES}",
        f"nobody@{BOUNCES}",
        "b-@mail.sender.example",
        "postmaster@else.example",
    ):
        with pytest.raises(Refused) as refusal:
            world.inbound.accepts(address)
        assert (refusal.value.code, refusal.value.enhanced) == (550, "5.1.1")


async def test_a_bounce_a_month_later_changes_nothing(world: ReturningWorld) -> None:
    await world.sent()
    before = await world.state()
    world.clock.advance(days=31)

    await world.receive(bounce())

    assert await world.state() == before


async def test_a_bounce_of_what_is_still_in_the_queue_is_only_recorded(world: ReturningWorld) -> None:
    world.mx.on("RCPT TO:<bob@example.net>", "451 4.3.0 later", then="250 2.1.5 ok")
    receipt = await world.sent()
    path = next(line for line in world.mx.commands if line.startswith("MAIL"))[len("MAIL FROM:<") :].partition(">")[0]

    await world.receive(bounce(), path)

    assert (await world.event("recipient.bounced"))["late"] is True
    assert await world.suppressions() == []
    assert await world.relay.states(receipt) == ["deferred"]
    world.clock.advance(hours=1)
    await world.relay.run_once()
    assert await world.relay.states(receipt) == ["delivered"]


async def test_who_got_it_is_not_blamed_for_another_who_did_not(world: ReturningWorld) -> None:
    await world.sent(**MARKETING)
    other = "Final-Recipient: rfc822; carl@inner.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n"
    mine = "Final-Recipient: rfc822; bob@example.net\r\nAction: delivered\r\nStatus: 2.0.0\r\n"
    fields = b"Reporting-MTA: dns; mx.example.net\r\n\r\n"
    head, _, rest = bounce().partition(fields)
    rest = rest[rest.index(b"\r\n--=_b") :]

    await world.receive(head + fields + f"{other}{mine}".encode() + rest)

    assert await world.suppressions() == []


async def test_a_delay_is_no_bounce(world: ReturningWorld) -> None:
    receipt = await world.sent(**MARKETING)
    before = await world.state()

    await world.receive(bounce(action="delayed", status="4.4.1", diagnostic="451 4.4.1 no answer from host"))

    assert await world.state() == before | {"events": before["events"] + 1}
    assert (await world.event("recipient.answered"))["kind"] == "delayed"
    assert await world.relay.states(receipt) == ["delivered"]


async def test_an_answer_stands_in_the_trace_once_of_a_kind(world: ReturningWorld) -> None:
    receipt = await world.sent()
    away = b"From: bob@example.net\r\nSubject: Out of office\r\nAuto-Submitted: auto-replied\r\n\r\nI am away.\r\n"
    for _ in range(3):
        await world.receive(away, world.path)
    assert await world.relay.events(receipt) == ["message.accepted", "recipient.delivered", "recipient.answered"]
    assert (await world.event("recipient.answered"))["kind"] == "auto_reply"
    await world.receive(bounce())  # it changes nothing for what comes later
    assert (await world.relay.view(receipt)).recipients[0].state == "bounced"


async def test_a_complaint_suppresses_for_good_and_counts_once(world: ReturningWorld) -> None:
    receipt = await world.sent(**MARKETING)
    report = complaint(returned=world.header)

    await world.receive(report, "fbl@mail.sender.example", sender="complaints@provider.example")
    before = await world.state()
    await world.receive(report, "fbl@mail.sender.example", sender="complaints@provider.example")

    assert await world.state() == before
    assert before["books"] == 1
    assert await world.suppressions() == [("bob@example.net", "default", "", "complaint")]
    assert (await world.event("recipient.complained"))["feedback_type"] == "abuse"
    assert await world.relay.states(receipt) == ["delivered"]


async def test_a_redacted_complaint_is_joined_by_the_unsubscribe_link(world: ReturningWorld) -> None:
    await world.sent(**MARKETING, sender="ann@other.example")
    links = [line for line in world.header.split("\r\n") if "/u/" in line]
    assert links
    assert "mailto" not in world.header

    await world.receive(complaint(returned="\r\n".join(links) + "\r\n"), "fbl@mail.sender.example")

    assert await world.suppressions() == [("bob@example.net", "default", "marketing", "complaint")]


async def test_an_opt_out_leaves_the_stream_and_not_spam_nothing(world: ReturningWorld) -> None:
    await world.sent(**MARKETING)
    await world.receive(complaint("not-spam", returned=world.header), "fbl@mail.sender.example")
    assert await world.suppressions() == []

    await world.receive(complaint("opt-out", returned=world.header), "fbl@mail.sender.example")
    assert await world.suppressions() == [("bob@example.net", "default", "marketing", "unsubscribe")]


def unsubscribe_address(world: ReturningWorld) -> str:
    return world.header.partition("mailto:")[2].partition("?")[0]


@pytest.mark.parametrize(
    "content",
    [
        b"From: bob@example.net\r\nSubject: unsubscribe\r\n\r\n",
        b"From: bob@example.net\r\nSubject: Re: your offers\r\n\r\nI like them!\r\n",
        b"From: bob@example.net\r\nSubject: unsubscribe\r\nAuto-Submitted: auto-generated\r\n\r\n"
        b"This message was automatically generated.\r\n",
    ],
)
async def test_whoever_writes_to_the_unsubscribe_address_is_unsubscribed(world: ReturningWorld, content: bytes) -> None:
    await world.sent(**MARKETING)

    for _ in range(2):
        await world.receive(content, unsubscribe_address(world), sender="bob@example.net")

    assert await world.suppressions() == [("bob@example.net", "default", "marketing", "unsubscribe")]
    assert (await world.event("recipient.unsubscribed"))["source"] == "mailto"


async def test_an_absence_note_unsubscribes_nobody(world: ReturningWorld) -> None:
    await world.sent(**MARKETING)
    away = b"From: bob@example.net\r\nSubject: Out of office\r\nAuto-Submitted: auto-replied\r\n\r\nI am away.\r\n"

    await world.receive(away, unsubscribe_address(world), sender="bob@example.net")

    assert await world.suppressions() == []


async def test_a_bounce_goes_on_to_the_sender_of_transactional_mail_with_the_null_sender(
    world: ReturningWorld,
) -> None:
    await world.sent(sender="app@example.org", content=b"From: app@example.org\r\nSubject: hi\r\n\r\nhi\r\n")
    await world.receive(bounce(returned=world.header), "postmaster@mail.sender.example")
    await world.relay.settled()
    assert {delivery.recipient for delivery in world.mx.delivered[1:]} == {"app@example.org", "ops@example.org"}


async def test_a_bounce_by_a_return_path_goes_on_as_it_is(world: ReturningWorld) -> None:
    await world.sent(sender="app@sender.example")
    path, report = world.path, bounce()
    await world.pool.execute('UPDATE events SET data = data || \'{"sender": "app@example.org"}\' WHERE n = 1')

    await world.receive(report, path)
    await world.relay.settled()

    last = world.mx.delivered[-1]
    assert (last.recipient, last.sender) == ("app@example.org", "")
    assert last.content.endswith(report)
    assert f"\r\nDelivered-To: {path}\r\n".encode() in last.content


async def test_bounces_of_marketing_mail_and_of_who_wants_none_go_to_nobody(world: ReturningWorld) -> None:
    await world.sent(**MARKETING)
    await world.receive(bounce())
    await world.sent("carl@example.net NOTIFY=NEVER")
    await world.receive(bounce(address="carl@example.net"))

    assert len(await world.suppressions()) == 2
    assert await world.pool.fetchval("SELECT count(*) FROM events WHERE data->>'protocol' = 'inbound'") == 0


async def test_mail_to_postmaster_goes_on_and_its_bounces_find_back(world: ReturningWorld) -> None:
    letter = b"From: eve@example.net\r\nSubject: question\r\n\r\nhello?\r\n"
    await world.receive(letter, "postmaster@mail.sender.example", sender="eve@example.net")
    await world.relay.settled()
    forwarded = world.mx.delivered[-1]
    assert forwarded.recipient == "ops@example.org"

    await world.receive(bounce(address="ops@example.org"), forwarded.sender)
    await world.relay.settled()
    back = world.mx.delivered[-1]
    assert (back.recipient, back.sender) == ("eve@example.net", "")


async def test_what_strangers_wrote_is_sent_on_without_a_signature_of_ours(
    world: ReturningWorld, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(generate_key("ed25519"))
    keys = (DkimKey(selector="s1", key_file=FilePath(str(key))),)
    domains = {"sender.example": SendingDomain(dkim=keys)}
    config = msgspec.structs.replace(world.config, domains=domains)
    world.relay.relay.reconfigure(config, Identity(config), builtin_rules())
    await world.sent()
    assert b"DKIM-Signature" in world.mx.delivered[-1].content

    letter = b"From: The Boss <boss@sender.example>\r\nSubject: pay this\r\n\r\nnow\r\n"
    await world.receive(letter, "postmaster@mail.sender.example", sender="boss@sender.example")
    await world.relay.settled()
    assert world.mx.delivered[-1].recipient == "ops@example.org"
    assert b"DKIM-Signature" not in world.mx.delivered[-1].content


async def test_a_forwarding_loop_ends(world: ReturningWorld) -> None:
    letter = b"Delivered-To: postmaster@mail.sender.example\r\nFrom: eve@example.net\r\nSubject: x\r\n\r\nhello?\r\n"
    with pytest.raises(Refused, match="mail loop"):
        await world.receive(letter, "postmaster@mail.sender.example", sender="eve@example.net")
    hops = b"".join(b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n" for _ in range(101))
    with pytest.raises(Refused, match="mail loop"):
        await world.receive(hops + b"Subject: x\r\n\r\n", "postmaster@mail.sender.example", sender="eve@example.net")

    assert (await world.state())["messages"] == 0


async def test_only_bounces_may_use_the_way_back_of_forwarded_mail(world: ReturningWorld) -> None:
    letter = b"From: eve@example.net\r\nSubject: question\r\n\r\nhello?\r\n"
    await world.receive(letter, "postmaster@mail.sender.example", sender="eve@example.net")
    await world.relay.settled()
    path = world.mx.delivered[-1].sender
    assert path.upper().startswith("SRS0=")

    with pytest.raises(Refused) as refusal:
        await world.receive(letter, path, sender="spammer@example.net")
    assert refusal.value.code == 550


async def test_a_complaint_to_abuse_counts_and_goes_on(world: ReturningWorld) -> None:
    await world.sent(**MARKETING)
    await world.receive(complaint(returned=world.header), "abuse@mail.sender.example", sender="a@provider.example")
    await world.relay.settled()

    assert await world.suppressions() == [("bob@example.net", "default", "", "complaint")]
    assert world.mx.delivered[-1].recipient == "ops@example.org"


async def test_fields_for_us_in_foreign_mail_ask_nothing_of_us(world: ReturningWorld) -> None:
    letter = (
        b"X-Mailerd-Campaign: a\r\nX-Mailerd-Campaign: b\r\nX-Mailerd-Priority: high\r\nFrom: e@x.example\r\n\r\nhi\r\n"
    )
    await world.receive(letter, "postmaster@mail.sender.example", sender="e@example.net")

    data = (await world.pool.fetchrow("SELECT data, campaign FROM events WHERE type = 'message.accepted'"))["data"]
    assert "priority" not in data


async def test_reports_of_dmarc_and_tls_are_kept_once(world: ReturningWorld) -> None:
    begin = int(world.clock().timestamp()) - 86_400
    xml = (
        b"<feedback><report_metadata><org_name>p.example</org_name><report_id>r1</report_id><date_range>"
        b"<begin>%d</begin><end>%d</end></date_range></report_metadata><policy_published>"
        b"<domain>sender.example</domain><p>none</p></policy_published><record><row><source_ip>192.0.2.1</source_ip>"
        b"<count>7</count><policy_evaluated><dkim>pass</dkim><spf>fail</spf></policy_evaluated></row></record></feedback>"
    ) % (begin, begin + 86_399)
    mail = b"Content-Type: application/gzip\r\nContent-Transfer-Encoding: binary\r\n\r\n" + gzip.compress(xml)
    for _ in range(2):
        await world.receive(mail, "dmarc@mail.sender.example", sender="noreply@p.example")

    assert await world.pool.fetchval("SELECT sum(messages)::int FROM dmarc_records") == 7


@pytest.mark.parametrize("moment", range(0, 40, 3))
async def test_when_the_database_goes_away_meanwhile_all_of_it_has_happened_or_nothing(
    database: str, world_behind: Behind, moment: int
) -> None:
    world, proxy = world_behind
    await world.sent()
    path = world.path
    receiving = asyncio.create_task(world.receive(bounce(), path))
    for _ in range(moment):
        await asyncio.sleep(0.001)
    proxy.cut()
    with suppress(Unavailable):
        await receiving

    async with db.connected(database) as connection:
        counts = await connection.fetchrow(ALL_OR_NOTHING)
    assert tuple(counts) in ((0, 0, 0, 0), (1, 1, 1, 1))
    await world.receive(bounce(), path)
    async with db.connected(database) as connection:
        assert tuple(await connection.fetchrow(ALL_OR_NOTHING)) == (1, 1, 1, 1)


async def test_without_a_database_the_peer_is_asked_to_come_again(world_behind: Behind) -> None:
    world, proxy = world_behind
    await world.sent()
    proxy.stop()
    with pytest.raises(Unavailable):
        await world.receive(bounce())
    await proxy.start()
    await world.receive(bounce())

    assert await world.suppressions() == [("bob@example.net", "default", "", "bounce")]
