"""Whose turn it is: lanes, flows, and that nothing is lost or doubled."""

from collections import Counter
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mailerd.delivery.attempt import Job
from mailerd.delivery.line import QUANTUM, Line
from mailerd.queue.mail import Message, Recipient

NOW = datetime(2026, 11, 1, 9, tzinfo=UTC)


def job(tenant: str, recipients: int = 1, *, lane: int = 4, id_: int = 0, campaign: str = "") -> Job:
    message = Message(id_, "", "marketing", "default", "", tenant, 100, NOW, lane=lane, campaign=campaign)
    message.recipients = [Recipient(message, n, f"u{n}@x.example", "x.example", NOW, NOW) for n in range(recipients)]
    return Job(message, list(message.recipients))


def take_first(line: Line) -> Job:
    return line.take(next(line.heads()))


def shares(line: Line, recipients: int) -> Counter[str]:
    """How many of the first so many recipients are whose."""
    taken: Counter[str] = Counter()
    while taken.total() < recipients:
        next_job = take_first(line)
        taken[next_job.message.tenant] += len(next_job.recipients)
    return taken


def test_ten_messages_behind_a_thousand_of_another_tenant_are_gone_after_two_turns() -> None:
    line = Line()
    for _ in range(1_000):
        line.push(job("large"))
    for _ in range(10):
        line.push(job("small"))
    assert shares(line, 2 * QUANTUM)["small"] == 10


def test_flows_share_by_recipients_however_large_their_messages_are() -> None:
    line = Line()
    for _ in range(50):
        line.push(job("lists", 100))
    for _ in range(2_000):
        line.push(job("letters"))
    for _ in range(700):
        line.push(job("families", 3))
    taken = shares(line, 3_000)
    assert all(850 <= share <= 1_150 for share in taken.values()), taken


def test_a_lower_precedence_goes_first_whenever_it_comes_and_a_priority_within_its_tenant() -> None:
    line = Line()
    for lane in (5, 4):
        for _ in range(3):
            line.push(job("a", lane=lane))
    assert [take_first(line).message.lane for _ in range(2)] == [4, 4]
    line.push(job("b", lane=1))
    assert line.lane == 0
    assert [take_first(line).message.lane for _ in range(5)] == [1, 4, 5, 5, 5]
    assert line.lane is None


def test_a_tenant_gets_no_more_turns_by_many_campaigns_or_by_calling_all_mail_urgent() -> None:
    line = Line()
    for number in range(1_000):
        line.push(job("many", campaign=f"c{number % 100}"))
        line.push(job("urgent", lane=3))
        line.push(job("plain"))
    taken = shares(line, 600)
    assert all(190 <= share <= 210 for share in taken.values()), taken


def test_a_flow_that_cannot_leave_now_stands_in_nobodys_way() -> None:
    line = Line()
    for tenant in ("slow", "quick", "other"):
        for _ in range(30):
            line.push(job(tenant))
    taken: Counter[str] = Counter()
    for _ in range(60):
        taken[line.take(next(j for j in line.heads() if j.message.tenant != "slow")).message.tenant] += 1
    assert taken == {"quick": 30, "other": 30}
    assert len(line) == 30


def test_a_job_that_comes_back_unsent_is_the_next_of_its_flow_and_costs_it_no_turn() -> None:
    line = Line()
    for number in range(3):
        line.push(job("a", id_=number))
    for _ in range(5):
        line.push_back(take_first(line))
    assert [take_first(line).message.id for _ in range(3)] == [0, 1, 2]
    returned = job("b", id_=9)
    line.push_back(returned)  # of a flow that has nothing else left
    assert take_first(line) is returned


def test_the_last_of_a_flow_is_found_wherever_its_turn_stands() -> None:
    line = Line()
    jobs = [job("a", QUANTUM) for _ in range(3)]
    for each in jobs:
        line.push(each)
    line.push(job("b"))
    take_first(line)
    assert line.last_of(job("a")) is jobs[-1]
    assert line.last_of(job("c")) is None
    assert line.last_of(job("a", lane=1)) is None


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(1, 40), st.sampled_from((1, 4, 5))),
        st.tuples(st.sampled_from(("take", "back", "filter")), st.integers(0, 5)),
    ),
    max_size=80,
)


@given(ACTIONS)
def test_nothing_is_lost_or_doubled_and_each_flow_keeps_its_order(actions: list[tuple[object, ...]]) -> None:
    line = Line()
    pushed = 0
    waiting: dict[tuple[int, str], list[Job]] = {}
    for action, *details in actions:
        if action == "push":
            tenant, recipients, lane = details
            new = job(str(tenant), int(str(recipients)), lane=int(str(lane)), id_=pushed)
            pushed += 1
            line.push(new)
            waiting.setdefault((new.message.lane, new.message.flow), []).append(new)
        elif action == "filter":
            dropped = details[0]
            line.filter(lambda each, dropped=dropped: each.message.id % 6 != dropped)  # type: ignore[misc]
            waiting = {
                key: kept for key, jobs in waiting.items() if (kept := [j for j in jobs if j.message.id % 6 != dropped])
            }
        elif heads := list(line.heads()):
            assert Counter(map(id, heads)) == Counter(id(jobs[0]) for jobs in waiting.values())
            assert [head.message.lane // 3 for head in heads] == sorted(head.message.lane // 3 for head in heads)
            for tenant in {head.message.tenant for head in heads}:
                lanes = [head.message.lane for head in heads if head.message.tenant == tenant]
                assert lanes == sorted(lanes)
            chosen = line.take(heads[int(str(details[0])) % len(heads)])
            key = (chosen.message.lane, chosen.message.flow)
            assert waiting[key].pop(0) is chosen
            if action == "back":
                line.push_back(chosen)
                waiting[key].insert(0, chosen)
            elif not waiting[key]:
                del waiting[key]
        assert len(line) == sum(map(len, waiting.values()))
    left = line.clear()
    assert sorted(map(id, left)) == sorted(id(each) for jobs in waiting.values() for each in jobs)
    assert len(line) == 0
    assert list(line.heads()) == []


def test_the_next_of_one_flow_are_upcoming_in_their_order_and_of_several_a_turn_of_each() -> None:
    line = Line()
    jobs = [job("one", id_=n) for n in range(30)]
    for each in jobs:
        line.push(each)
    assert line.upcoming(20) == jobs[:20]
    assert line.upcoming(100) == jobs

    other = job("two", id_=99)
    line.push(other)
    assert line.upcoming(100) == [*jobs[:QUANTUM], other]
    assert line.upcoming(3) == jobs[:3]
    assert Line().upcoming(3) == []
