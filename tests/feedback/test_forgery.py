"""What outsiders could make up: reports about other people's mail, and mail of strangers taken for ours."""

import re
import time

import pytest

from mailerd.feedback import inbound
from mailerd.feedback.dmarc import DmarcReport
from mailerd.feedback.reading import read_report
from tests.support.returned import ReturningWorld, bounce, complaint

POSTMASTER = "postmaster@bounce.sender.example"
FBL = "fbl@bounce.sender.example"
MARKETING = {"stream": "marketing"}
UNSIGNED = {"sender": "ann@other.example"}  # it has no return path of ours
BOB = ("bob@example.net", "default", "")


def letter(message_id: str, sender: str = "news@other.example") -> bytes:
    return f"From: {sender}\r\nMessage-ID: {message_id}\r\nSubject: hello\r\n\r\nhi\r\n".encode()


def returned(message_id: str) -> str:
    return f"Message-ID: {message_id}\r\nSubject: hello\r\nFrom: news@other.example\r\n"


async def test_mail_with_a_return_path_names_its_recipient_in_its_header_and_its_event_says_so(
    world: ReturningWorld,
) -> None:
    await world.sent("bob@example.net", "carol@example.net")

    for delivery in world.mx.delivered:
        fields = re.findall(rb"^X-Mailerd-Recipient: (\S+)\r$", delivery.content, re.MULTILINE)
        assert fields == [delivery.sender.partition("@")[0].encode()]
    rows = await world.pool.fetch("SELECT data FROM events WHERE type = 'recipient.delivered'")
    assert [row["data"].get("personal") for row in rows] == [True, True]


async def test_mail_without_a_return_path_is_not_marked(world: ReturningWorld) -> None:
    await world.sent(**UNSIGNED)

    assert b"X-Mailerd-Recipient" not in world.mx.delivered[-1].content
    assert "personal" not in await world.event("recipient.delivered")


async def test_our_mark_that_comes_in_again_does_not_go_out_again(world: ReturningWorld) -> None:
    await world.sent()
    mark = re.search(rb"X-Mailerd-Recipient: \S+\r\n", world.mx.delivered[-1].content)
    assert mark is not None
    await world.sent(**UNSIGNED, content=mark[0] + letter("<again@other.example>"))

    assert b"X-Mailerd-Recipient" not in world.mx.delivered[-1].content


async def test_the_mark_in_a_returned_header_finds_its_recipient(world: ReturningWorld) -> None:
    await world.sent()

    await world.receive(bounce(address="hidden@else.example", returned=world.header), POSTMASTER)

    assert await world.suppressions() == []
    assert (await world.event("recipient.bounced"))["late"] is True
    await world.receive(complaint(returned=world.header), FBL, sender="fbl@provider.example")
    assert await world.suppressions() == [(*BOB, "complaint")]


@pytest.mark.parametrize("report", ["bounce", "complaint"])
async def test_who_got_the_message_too_cannot_speak_for_another(world: ReturningWorld, report: str) -> None:
    content = letter("<co@sender.example>", "news@sender.example")
    await world.sent("bob@example.net", "carol@example.net", content=content)
    forged = (
        bounce(address="carol@example.net", returned=returned("<co@sender.example>"))
        if report == "bounce"
        else complaint(recipient="carol@example.net", returned=returned("<co@sender.example>"))
    )
    before = await world.state()

    await world.receive(forged, FBL, sender="bob@example.net" if report == "complaint" else "")

    assert await world.state() == before
    path = next(each.sender for each in world.mx.delivered if each.recipient == "carol@example.net")
    await world.receive(bounce(address="carol@example.net"), path)
    assert await world.suppressions() == [("carol@example.net", "default", "", "bounce")]


async def test_a_link_to_unsubscribe_is_no_proof_of_a_bounce(world: ReturningWorld) -> None:
    await world.sent(**MARKETING)
    link = re.search(r"/u/([A-Za-z0-9_-]+)>", world.header.replace("\r\n ", ""))
    assert link is not None
    before = await world.state()

    stolen = f"Subject: x\r\nFrom: a@b.example\r\nX-Any: https://foo/u/{link[1]}\r\n"
    await world.receive(bounce(returned=stolen), FBL)

    assert await world.state() == before


async def test_messages_that_share_a_message_id_are_told_apart_by_their_recipients(world: ReturningWorld) -> None:
    people = [f"bob{n}@example.net" for n in range(6)]
    for person in people:
        await world.relay.submit(person, content=letter("<news@other.example>"), sender=UNSIGNED["sender"])
        world.clock.advance(seconds=1)
    await world.relay.settled()

    for person in people:
        await world.receive(
            complaint(recipient=person, returned=returned("<news@other.example>")), FBL, sender="f@p.example"
        )

    assert [entry[0] for entry in await world.suppressions()] == people


async def test_mail_of_strangers_with_the_same_message_id_hides_none_of_ours(world: ReturningWorld) -> None:
    await world.sent(content=letter("<news@other.example>"), **UNSIGNED)
    for _ in range(4):
        world.clock.advance(seconds=1)
        await world.receive(letter("<news@other.example>"), POSTMASTER, sender="x@evil.example")
    await world.relay.settled()

    await world.receive(
        complaint(recipient="bob@example.net", returned=returned("<news@other.example>")), FBL, sender="f@p.example"
    )

    assert await world.suppressions() == [(*BOB, "complaint")]


async def test_an_address_is_found_however_it_is_spelled(world: ReturningWorld) -> None:
    await world.sent('"bob"@example.net', content=letter("<q@other.example>"), **UNSIGNED)

    await world.receive(
        complaint(recipient="BOB@example.net", returned=returned("<q@other.example>")), FBL, sender="f@p.example"
    )

    assert await world.suppressions() == [(*BOB, "complaint")]


@pytest.mark.parametrize("report", ["bounce", "complaint"])
async def test_outsiders_cannot_cut_off_whoever_reads_postmaster_s_mail(world: ReturningWorld, report: str) -> None:
    await world.receive(letter("<evil@evil.example>"), POSTMASTER, sender="x@evil.example")
    await world.relay.settled()
    make = bounce(address="ops@example.org", returned=returned("<evil@evil.example>"))
    if report == "complaint":
        make = complaint(recipient="ops@example.org", returned=returned("<evil@evil.example>"))

    await world.receive(make, FBL, sender="" if report == "bounce" else "z@evil.example")
    await world.relay.settled()

    assert await world.suppressions() == []
    assert [each.recipient for each in world.mx.delivered] == ["ops@example.org"]  # nothing went to x@evil.example


async def test_postmaster_s_mail_goes_on_whatever_is_suppressed_and_suppresses_nobody(world: ReturningWorld) -> None:
    await world.pool.execute(
        "INSERT INTO suppressions (address, tenant, stream, topic, reason, source, detail, created_at)"
        " VALUES ('ops@example.org', '', '', '', 'manual', 'api', '', now())"
    )
    await world.receive(letter("<1@human.example>"), POSTMASTER, sender="x@human.example")
    await world.relay.settled()
    assert [each.recipient for each in world.mx.delivered] == ["ops@example.org"]
    await world.pool.execute("DELETE FROM suppressions")

    world.mx.on("RCPT TO:<ops@example.org>", "550 5.1.1 no such user")
    await world.receive(letter("<2@human.example>"), POSTMASTER, sender="x@human.example")
    await world.relay.settled()

    assert await world.event("recipient.bounced")
    assert await world.suppressions() == []


async def test_what_a_person_writes_about_a_bounce_is_none(world: ReturningWorld) -> None:
    await world.sent()
    content = (
        b"From: carol@example.net\r\nSubject: Undeliverable mail to bob?\r\nTo: ann@sender.example\r\n\r\n"
        b"When I write to bob@example.net I get 550 5.1.1 user unknown, delivery failed. Can you check?\r\n"
    )
    assert read_report(content).kind == "bounce"

    await world.receive(content, sender="carol@example.net")

    assert await world.suppressions() == []
    assert await world.pool.fetchval("SELECT count(*) FROM events WHERE type = 'recipient.bounced'") == 0


@pytest.mark.parametrize("sender", ["MAILER-DAEMON@mx.example.net", "bounces@gateway.example"])
async def test_a_host_that_does_not_send_its_bounces_from_nobody_is_heard(world: ReturningWorld, sender: str) -> None:
    await world.sent()

    await world.receive(bounce(), sender=sender)

    assert await world.suppressions() == [(*BOB, "bounce")]


async def test_a_member_of_an_alias_who_is_gone_does_not_end_mail_to_the_alias(world: ReturningWorld) -> None:
    await world.sent("team@example.net")

    await world.receive(bounce(address="gone@other.example", diagnostic="550 5.1.1 <gone@other.example> user unknown"))

    assert await world.suppressions() == []
    assert await world.pool.fetchval("SELECT address FROM soft_bounces") == "team@example.net"


async def test_mail_that_meets_a_bug_of_ours_is_taken_and_logged(
    world: ReturningWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await world.sent()

    def broken(content: bytes) -> None:
        raise RuntimeError("a bug")

    for name in ("read_report", "dmarc_reports"):
        monkeypatch.setattr(inbound, name, broken)
    await world.receive(bounce())
    await world.receive(bounce(), "dmarc@bounce.sender.example")

    assert await world.suppressions() == []
    assert capsys.readouterr().out.count("report.crashed") == 3  # the second has two readers


async def test_aggregate_reports_do_not_hold_up_bounces_and_have_only_so_much_time(
    world: ReturningWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.sent()
    monkeypatch.setattr(inbound, "UNPACK", 0.1)

    def slow(content: bytes) -> list[DmarcReport]:
        time.sleep(1)
        return []

    monkeypatch.setattr(inbound, "dmarc_reports", slow)
    begun = time.monotonic()

    await world.receive(b"Subject: x\r\n\r\n", "dmarc@bounce.sender.example", sender="x@p.example")
    await world.receive(bounce())

    assert time.monotonic() - begun < 0.9
    assert await world.suppressions() == [(*BOB, "bounce")]
