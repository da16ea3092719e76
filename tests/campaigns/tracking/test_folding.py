"""Folding: the same hit again is counted, and none is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.campaigns.tracking.folding import PER_MESSAGE, WINDOW, Folding, network_of
from mailerd.campaigns.tracking.records import Hit

START = 1_800_000_000_000_000


def hit(at: int = 0, message: int = 1, link: int = 0, ip: str = "192.0.2.1", agent: str = "Firefox") -> Hit:
    return Hit(
        at=START + at,
        kind="clicked" if link else "opened",
        message_id=message,
        campaign_id=2,
        contact_id=3,
        link=link,
        ip=ip,
        user_agent=agent,
    )


def test_the_first_is_written_at_once_and_its_repetitions_as_one_when_the_second_has_passed():
    folding = Folding()
    assert folding.take(hit()) == [hit()]
    assert [folding.take(hit(at)) for at in range(1, 1000)] == [[]] * 999
    (repeated, new) = folding.take(hit(WINDOW))
    assert (repeated.times, new) == (999, hit(WINDOW))
    assert folding.all() == []


def test_repetitions_are_written_also_when_nothing_follows():
    folding = Folding()
    folding.take(hit())
    folding.take(hit(1, ip="192.0.2.200"))
    assert folding.end(START + WINDOW - 1) == []
    assert [each.times for each in folding.end(START + WINDOW)] == [1]
    assert folding.end(START + 9 * WINDOW) == []


@pytest.mark.parametrize("other", [{"message": 2}, {"link": 1}, {"ip": "192.0.3.1"}, {"agent": "Safari"}])
def test_what_differs_is_written(other):
    folding = Folding()
    folding.take(hit())
    assert folding.take(hit(**other)) == [hit(**other)]


def test_whoever_varies_agent_and_address_gets_no_further():
    folding = Folding()
    written = [folding.take(hit(n, agent=f"agent {n}", ip=f"10.{n // 256}.{n % 256}.1")) for n in range(1_000)]
    assert len([each for each in written if each]) == PER_MESSAGE + 1
    assert sum(each.times for each in folding.all()) == 1_000 - PER_MESSAGE - 1


def test_links_of_a_message_are_told_apart_however_many_there_are():
    folding = Folding()
    assert all(folding.take(hit(n, link=n, agent=f"agent {n}")) for n in range(1, 500))


@given(
    st.lists(
        st.tuples(st.integers(0, 3 * WINDOW), st.integers(1, 3), st.integers(0, 2), st.sampled_from("ab")), max_size=200
    )
)
def test_none_is_lost_whatever_comes_and_also_when_the_clock_goes_back(hits):
    folding = Folding()
    written = [each for at, message, link, agent in hits for each in folding.take(hit(at, message, link, agent=agent))]
    written += folding.all()
    assert sum(each.times for each in written) == len(hits)


def test_the_memory_is_bounded():
    folding = Folding()
    for message in range(25_000):
        folding.take(hit(message=message))
    assert len(folding._open) <= 10_000
    assert len(folding._records) <= 10_000


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("192.0.2.77", "192.0.2"),
        ("::ffff:192.0.2.77", "192.0.2"),
        ("2001:db8:1:2:3::4", "2001:0db8:0001:0002"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("nowhere", "nowhere"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_networks(ip, network):
    assert network_of(ip) == network
