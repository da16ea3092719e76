"""What is in hand is counted exactly, and each kind of mail finds its room."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.config import Delivery, Size
from mailerd.delivery.memory import Memory
from mailerd.queue.mail import Message, Recipient

NOW = datetime(2026, 11, 1, 9, tzinfo=UTC)
LIMITS = Delivery(memory_messages=100, memory_bytes=Size(10_000))


def mail(recipients: int = 1, *, size: int = 10, lane: int = 4, id_: int = 1, domain: str = "x.example") -> Message:
    message = Message(id_, "", "marketing", "default", "", "acme", size, NOW, content=b"x" * size, lane=lane)
    message.recipients = [Recipient(message, n, f"u{n}@{domain}", domain, NOW, NOW) for n in range(recipients)]
    return message


def test_mail_that_goes_first_finds_room_that_bulk_mail_cannot_take() -> None:
    memory = Memory(LIMITS)
    memory.take(mail(50))
    assert not memory.has_room_for(mail())
    assert memory.has_room_for(mail(lane=2))
    assert (memory.room_to_claim(first=False), memory.room_to_claim(first=True)) == (25, 50)
    memory.take(mail(25, id_=2))
    assert (memory.room_to_claim(first=False), memory.room_to_claim(first=True)) == (0, 25)
    assert memory.has_room_for(mail(15, lane=0))
    assert not memory.has_room_for(mail(16, lane=0))
    memory.take(mail(25, id_=3, lane=0))
    assert memory.room_to_claim(first=True) == 0


def test_bytes_bind_as_recipients_do() -> None:
    memory = Memory(LIMITS)
    memory.take(mail(size=5_000))
    assert not memory.has_room_for(mail(size=10))
    assert memory.room_to_claim(first=False) > 0
    memory.take(mail(size=2_500, id_=2))
    assert (memory.room_to_claim(first=False), memory.bytes_left) == (0, 2_500)
    assert memory.room_to_claim(first=True) > 0


def test_one_queue_takes_half_at_most() -> None:
    memory = Memory(LIMITS)
    memory.take(mail(50))
    assert memory.crowded(mail().recipients[0].queue)
    assert not memory.crowded(mail(domain="y.example").recipients[0].queue)


def test_however_many_campaigns_are_stuck_there_is_room_for_one_that_is_not() -> None:
    memory = Memory(Delivery(memory_messages=4_000))
    held = []
    for n in range(1, 8):
        room = memory.room_of_campaign(f"acme:cmp_{n}", 10)
        message = mail(room, id_=n)
        message.flow = f"acme:cmp_{n}"
        memory.take(message)
        held.append(room)
        assert memory.room_of_campaign(message.flow, 10) == 0

    assert held[0] == 667
    assert min(held) > 30
    assert memory.room_of_campaign("acme:cmp_8", 10) > 30
    assert memory.room_to_claim_of_campaign("acme:cmp_1") == 0
    assert memory.room_to_claim_of_campaign("acme:cmp_8") > 300
    memory.release(message.recipients)
    assert message.flow not in memory.of_flow


def test_smaller_limits_are_followed_at_once() -> None:
    memory = Memory(LIMITS)
    memory.take(mail(20))
    memory.reconfigure(Delivery(memory_messages=10))
    assert memory.room_to_claim(first=True) == 0
    assert not memory.half_empty


def test_content_goes_with_the_last_recipient() -> None:
    memory = Memory(LIMITS)
    message = mail(2)
    memory.take(message)
    memory.release(message.recipients[:1])
    assert message.content
    assert memory.bytes == 10
    memory.release(message.recipients[1:])
    assert message.content is None
    assert memory.bytes == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50), st.sampled_from("ab")), max_size=20), st.randoms())
def test_what_came_and_went_leaves_nothing(messages: list[tuple[int, int, str]], chance: random.Random) -> None:
    memory = Memory(LIMITS)
    recipients = []
    for number, (count, size, domain) in enumerate(messages):
        message = mail(count, size=size, id_=number, domain=f"{domain}.example")
        memory.take(message)
        recipients += message.recipients
    assert memory.recipients == len(recipients) == sum(memory.in_hand.values()) == memory.of_queue.total()
    assert memory.bytes == sum(size for _, size, _ in messages)
    chance.shuffle(recipients)
    for recipient in recipients:
        memory.release([recipient])
    assert (memory.recipients, memory.bytes) == (0, 0)
    assert not memory.of_queue
    assert not memory.in_hand


def test_what_is_claimed_while_it_is_put_back_is_in_hand_until_both_are_settled() -> None:
    memory = Memory(LIMITS)
    before, again = mail(), mail()
    memory.take(before)
    memory.take(again)
    memory.release(before.recipients)
    assert memory.in_hand == {(1, 0): 1}
    memory.release(again.recipients)
    assert not memory.in_hand


@pytest.mark.parametrize("recipients", [51, 1_000])
def test_a_message_larger_than_the_memory_comes_by_way_of_the_database(recipients: int) -> None:
    assert not Memory(LIMITS).has_room_for(mail(recipients))
