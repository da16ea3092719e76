"""Mail made ready ahead of its turn: each gets its own; whatever goes wrong, the one who waits goes on by himself."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from mailerd.delivery.ready import IN_A_ROW, MOST_BYTES, Mail, Readying
from mailerd.delivery.rendering import Rendered, Withheld
from mailerd.queue.mail import Message, Recipient

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def mails(count: int) -> list[Mail]:
    made = []
    for number in range(count):
        message = Message(number, "", "marketing", "default", "c", "t", 0, NOW, render=f"1:1:{number}")
        made.append((message, Recipient(message, 1, f"u{number}@example.net", "example.net", NOW, NOW)))
    return made


class Press:
    """Renders the number of a message; what is in `spoilt` cannot be, `withheld` must not be."""

    def __init__(self, *, size: int = 0, spoilt: int = -1, withheld: int = -1) -> None:
        self.size = size
        self.spoilt = spoilt
        self.withheld = withheld
        self.rendered: list[int] = []

    async def render(self, mails: Sequence[Mail]) -> list[Rendered | Withheld]:
        return [self._rendered(message) for message, _ in mails]

    def _rendered(self, message: Message) -> Rendered | Withheld:
        self.rendered.append(message.id)
        if message.id == self.spoilt:
            raise ConnectionError("the database is away")
        if message.id == self.withheld:
            return Withheld("erased", "the contact is not there any more")
        return Rendered(b"%d" % message.id + b"x" * self.size, 1.0)

    def sign(self, message: Message, recipient: Recipient, rendered: Rendered) -> bytes:
        assert rendered.content.startswith(b"%d" % message.id)
        return b"signed %d for " % message.id + recipient.address.encode()


async def test_each_gets_its_own_mail_and_signature() -> None:
    press = Press()
    ready = await asyncio.gather(*Readying(press.render, press.sign).begin(mails(2 * IN_A_ROW + 1)))
    for number, made in enumerate(ready):
        assert made is not None
        assert made.rendered == Rendered(b"%d" % number, 1.0)
        assert made.signature == f"signed {number} for u{number}@example.net".encode()


async def test_where_others_sign_it_is_only_rendered() -> None:
    press = Press()
    (made,) = await asyncio.gather(*Readying(press.render, None).begin(mails(1)))
    assert made == (Rendered(b"0", 1.0), None)


async def test_what_must_not_be_sent_is_not_signed() -> None:
    press = Press(withheld=1)
    first, second = await asyncio.gather(*Readying(press.render, press.sign).begin(mails(2)))
    assert first is not None
    assert first.signature
    assert second == (Withheld("erased", "the contact is not there any more"), None)


async def test_what_fails_leaves_those_behind_it_to_themselves() -> None:
    press = Press(spoilt=IN_A_ROW)
    ready = await asyncio.gather(*Readying(press.render, press.sign).begin(mails(IN_A_ROW + 3)))
    assert [made is None for made in ready] == [False] * IN_A_ROW + [True] * 3


async def test_no_more_is_made_ready_than_memory_is_set_aside_for() -> None:
    press = Press(size=MOST_BYTES)
    ready = await asyncio.gather(*Readying(press.render, press.sign).begin(mails(5 * IN_A_ROW)))
    assert sum(made is not None for made in ready) == len(press.rendered) == IN_A_ROW


async def test_one_who_stops_waiting_takes_nothing_from_the_others() -> None:
    press = Press()
    futures = Readying(press.render, press.sign).begin(mails(3))
    futures[1].cancel()
    first, third = await asyncio.gather(futures[0], futures[2])
    assert first is not None
    assert third is not None
