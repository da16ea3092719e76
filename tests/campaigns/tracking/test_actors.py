"""Who made a hit: what it says of itself, and what else is done with the same mail at the same time."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.campaigns.tracking.actors import GAP, LATE, LONGEST, SECOND, SETTLED, folded, groups, judge
from mailerd.campaigns.tracking.agents import automation
from mailerd.campaigns.tracking.records import Hit

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
EDGE = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
PREFETCH = f"{EDGE} Chrome/42.0.2311.135 Safari/537.36 Edge/12.246 Mozilla/5.0"
OUTLOOK = "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 10.0; Microsoft Outlook 16.0.9126; ms-office; MSOffice 16)"
THUNDERBIRD = "Mozilla/5.0 (Windows NT 10.0; rv:115.0) Gecko/20100101 Thunderbird/115.9"


def hit(at: float = 0.0, link: int = 0, *, ip: str = "192.0.2.1", agent: str = FIREFOX, method: str = "GET") -> Hit:
    return Hit(
        at=int(at * SECOND),
        kind="clicked" if link else "opened",
        message_id=1,
        campaign_id=2,
        contact_id=3,
        link=link,
        url="https://a.example/" if link else "",
        method="HEAD" if method == "HEAD" else "GET",
        ip=ip,
        user_agent=agent,
    )


def actors(*hits: Hit, **facts: object) -> list[str]:
    return [str(judged.actor) for judged in judge(hits, **facts)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "actor", "reasons"),
    [
        (hit(), "human", ()),
        (hit(link=1), "human", ()),
        (hit(agent=OUTLOOK), "human", ()),
        (hit(agent=THUNDERBIRD), "human", ()),
        (hit(agent=GMAIL), "human", ("image_proxy",)),
        (hit(agent="Mozilla/5.0"), "machine_open", ("bare_agent",)),
        (hit(agent="Mozilla/5.0", link=1), "scanner", ("bare_agent",)),
        (hit(agent=PREFETCH), "prefetch", ("gmail_prefetch",)),
        (hit(agent=""), "unknown", ("no_agent",)),
        (hit(method="HEAD"), "scanner", ("head",)),
        (hit(method="HEAD", link=1, agent=GMAIL), "scanner", ("head",)),
        (hit(agent="curl/8.5.0", link=1), "scanner", ("automation:curl",)),
        (hit(agent="python-requests/2.32"), "scanner", ("automation:python-requests",)),
        (hit(agent="Barracuda Sentinel (EE)", link=1), "scanner", ("automation:barracuda",)),
        (hit(agent="Mozilla/5.0 (compatible; bingbot/2.0)", link=1), "scanner", ("automation:bot",)),
        (hit(agent="Mozilla/5.0 (Linux; Android 9; CUBOT_X19) Mobile", link=1), "human", ()),
        (hit(ip="198.51.100.9", link=1), "scanner", ("scanner_network",)),
        (hit(ip="::ffff:198.51.100.9", link=1), "scanner", ("scanner_network",)),
        (hit(ip="198.51.100.9"), "human", ()),
        (hit(ip="no address", link=1), "human", ()),
    ],
)
def test_what_a_hit_says_of_itself(made, actor, reasons):
    (judged,) = judge([made], scanners=[ip_network("198.51.100.0/24")])

    assert judged == (actor, reasons)


def test_three_links_within_two_seconds_are_a_burst_and_all_of_it_is():
    assert actors(hit(0, 1), hit(0.9, 2), hit(1.9, 3)) == ["scanner"] * 3
    assert actors(hit(0, 1), hit(1.2, 2), hit(2.4, 3)) == ["human"] * 3
    assert actors(hit(0, 1), hit(0.1, 1), hit(0.2, 2)) == ["human"] * 3
    assert judge([hit(0, 1), hit(0, 2), hit(0, 3, agent="curl/8")])[2].reasons == ("burst", "automation:curl")


def test_a_burst_may_come_from_many_addresses():
    assert actors(*(hit(0.1 * n, n, ip=f"10.{n}.0.1") for n in range(1, 5))) == ["scanner"] * 4


def test_who_made_a_burst_made_also_the_hits_around_it():
    burst = [hit(1.0 + 0.1 * n, n, agent="scan") for n in range(1, 5)]
    around = [hit(0.0, agent="scan"), *burst, hit(3.0, 9, agent="scan")]

    assert actors(*around) == ["scanner"] * 6


def test_a_person_who_opens_the_mail_meanwhile_remains_one():
    burst = [hit(0.1 * n, n, ip="10.0.0.1", agent=EDGE) for n in range(1, 5)]

    assert actors(*burst, hit(0.5), hit(2.5, 1)) == ["scanner"] * 4 + ["human"] * 2


def test_every_link_at_once_by_somebody_who_did_not_look_is_a_scanner():
    both = [hit(0, 1), hit(0.5, 2)]

    assert actors(*both, links=2) == ["scanner"] * 2
    assert actors(*both, links=3) == ["human"] * 2
    assert actors(*both, links=0) == ["human"] * 2
    assert actors(hit(0, 1), links=1) == ["human"]
    assert actors(hit(0), *both, links=2) == ["human"] * 3
    assert actors(hit(0, agent="Mozilla/5.0"), *both, links=2) == ["machine_open", "scanner", "scanner"]


def test_hits_of_one_mail_belong_together_until_nothing_comes_for_two_seconds():
    times = [0, GAP, 2 * GAP, 4 * GAP]

    assert groups(times, SETTLED - 1) == []
    assert groups(times, SETTLED) == []
    assert groups(times, 2 * GAP + LATE) == [slice(0, 3)]
    assert groups(times, 4 * GAP + SETTLED) == [slice(0, 3), slice(3, 4)]


def test_who_never_pauses_is_not_waited_for():
    times = [n * SECOND for n in range(40)]

    (first, *_) = groups(times, 20 * SECOND)
    assert first == slice(0, 16)
    assert groups(times[:3], LONGEST, cut=True) == [slice(0, 3)]


@given(st.lists(st.integers(0, 60 * SECOND), max_size=60).map(sorted), st.integers(0, 90 * SECOND))
def test_groups_follow_one_another_and_all_are_told_in_the_end(times, now):
    found = groups(times, now)

    assert [place for group in found for place in range(group.start, group.stop)] == list(
        range(found[-1].stop if found else 0)
    )
    assert sum(group.stop - group.start for group in groups(times, 1_000 * SECOND)) == len(times)


def test_the_same_hit_taken_by_two_workers_is_one():
    first, again, later = hit(0, 1), hit(0.5, 1, ip="192.0.2.9"), hit(1.2, 1)

    folds = folded([first, again, hit(0.6, 2), later])

    assert [(fold.hit.at, fold.hit.times, fold.places) for fold in folds] == [
        (0, 2, [0, 1]),
        (600_000, 1, [2]),
        (1_200_000, 1, [3]),
    ]


@given(st.text(max_size=500))
def test_any_agent_can_be_asked_about(text):
    assert automation(text) == automation(text.swapcase()) or not text.isascii()


def test_a_long_agent_takes_no_time():
    assert automation("a" * 100_000 + "bot") == "bot"
