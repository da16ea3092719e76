"""Mail of strangers that goes on to a person: once, not without end, and never lost in silence."""

import pytest

from mailerd.errors import Refused, Unavailable
from mailerd.feedback.forwarding import MAX_HEADER, OF_A_PEER
from mailerd.intake.credentials import CredentialStore
from mailerd.wire.srs import Srs
from tests.support.returned import ReturningWorld, bounce, complaint

POSTMASTER, ABUSE = "postmaster@bounce.sender.example", "abuse@bounce.sender.example"
LETTER = b"From: eve@human.example\r\nSubject: question\r\n\r\nhello?\r\n"


async def goes(world: ReturningWorld, content: bytes, *to: str, sender: str = "eve@human.example") -> int:
    """It comes in; how many messages go on."""
    before: int = await world.pool.fetchval("SELECT count(*) FROM messages")
    await world.receive(content, *to, sender=sender)
    after: int = await world.pool.fetchval("SELECT count(*) FROM messages")
    return after - before


async def srs_path(world: ReturningWorld) -> str:
    srs = Srs(await CredentialStore(world.pool).secret())
    return srs.forward("eve@human.example", "mail.sender.example", world.clock())


async def test_mail_goes_on_once_to_each_however_often_it_names_us(world: ReturningWorld) -> None:
    to = [POSTMASTER] * 50 + ["Postmaster@bounce.sender.example", ABUSE, "postmaster@mail.sender.example"]

    assert await goes(world, LETTER, *to) == 1
    await world.relay.settled()

    (delivery,) = world.mx.delivered
    assert delivery.recipient == "ops@example.org"
    assert delivery.content.count(b"Delivered-To: ") == 4


async def test_mail_that_had_been_at_one_of_our_addresses_is_a_loop_in_any_case_of_letters(
    world: ReturningWorld,
) -> None:
    with pytest.raises(Refused, match="mail loop"):
        await goes(world, b"delivered-to: POSTMASTER@bounce.sender.example\r\n" + LETTER, POSTMASTER)


@pytest.mark.parametrize(
    "content",
    [
        b"From: eve@human.example\r\nthis is no field\r\nSubject: abuse\r\n\r\nx\r\n",
        b"From: eve@human.example\r\nSubject: a\0buse\r\n\r\nx\r\n",
        b"X: y\r\n" * (MAX_HEADER // 6 + 1) + LETTER,
    ],
    ids=["no field", "NUL", "large"],
)
async def test_what_cannot_go_on_as_it_is_is_refused(world: ReturningWorld, content: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        await goes(world, content, POSTMASTER)

    assert refusal.value.code == 554
    assert (await world.state())["messages"] == 0


async def test_a_line_that_continues_none_goes_on_behind_a_field_of_ours(world: ReturningWorld) -> None:
    assert await goes(world, b" folded\r\n" + LETTER, POSTMASTER) == 1


async def test_a_report_is_acted_upon_though_it_cannot_go_on(world: ReturningWorld) -> None:
    await world.sent()
    path = world.path

    await world.receive(b"Delivered-To: postmaster@bounce.sender.example\r\n" + bounce(), path, POSTMASTER)

    assert await world.suppressions() == [("bob@example.net", "default", "", "bounce")]


async def test_one_bad_recipient_does_not_refuse_the_others(world: ReturningWorld) -> None:
    path = await srs_path(world)

    assert await goes(world, LETTER, path, POSTMASTER) == 1
    with pytest.raises(Refused) as refusal:
        await goes(world, LETTER, path)
    assert refusal.value.code == 550


async def test_a_recipient_that_is_none_any_more_does_not_refuse_the_others(world: ReturningWorld) -> None:
    await world.sent()
    gone = f"b-{'a' * 31}@bounce.sender.example"  # as one is after its time

    await world.inbound.receive("", [gone, world.path], bounce(), "127.0.0.9", "mx.example.net", "")

    assert await world.suppressions() == [("bob@example.net", "default", "", "bounce")]
    with pytest.raises(Refused):
        await world.inbound.receive("", [gone], bounce(), "127.0.0.9", "mx.example.net", "")


async def test_strangers_send_on_only_so_much_in_an_hour(world: ReturningWorld) -> None:
    for _ in range(OF_A_PEER):
        await world.inbound.receive("x@e.example", [POSTMASTER], LETTER, "192.0.2.1", "x", "")
    with pytest.raises(Unavailable):
        await world.inbound.receive("x@e.example", [POSTMASTER], LETTER, "192.0.2.1", "x", "")
    await world.inbound.receive("x@e.example", [POSTMASTER], LETTER, "192.0.2.2", "x", "")
    world.clock.advance(hours=1)
    await world.inbound.receive("x@e.example", [POSTMASTER], LETTER, "192.0.2.1", "x", "")


async def test_a_complaint_counts_when_no_more_mail_goes_on(world: ReturningWorld) -> None:
    await world.sent(stream="marketing")
    report = complaint(returned=world.header)
    for _ in range(OF_A_PEER):
        await world.inbound.receive("x@e.example", [ABUSE], LETTER, "2001:db8::1", "x", "")

    await world.inbound.receive("f@p.example", [ABUSE], report, "2001:db8::2", "x", "")

    assert await world.suppressions() == [("bob@example.net", "default", "", "complaint")]
    assert (await world.state())["messages"] <= OF_A_PEER + 1


async def test_a_report_about_forwarded_mail_is_not_about_ours(world: ReturningWorld) -> None:
    await world.sent()
    before = await world.suppressions()

    await world.receive(bounce(returned=world.header), await srs_path(world))

    assert await world.suppressions() == before == []
