"""What strangers answer, and what their hosts are called, does no harm to anybody else's mail."""

import timeit
from collections.abc import Callable
from datetime import timedelta

import pytest

from mailerd.config import Delivery
from mailerd.delivery.bounds import MANY
from mailerd.delivery.effects import MOST_NARROW, Effect
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.transaction import Result
from mailerd.delivery.verdict import classify
from mailerd.relay import builtin_rules
from mailerd.web.emails import _reason_for_tenants
from mailerd.wire.smtp import Reply
from tests.delivery.test_traffic import NOW, World, pool, world

__all__ = ["pool", "world"]  # fixtures

SLOW_DOWN = Reply(421, ("4.7.1 Messages rate limited due to IP reputation",))
TOO_MANY = Reply(452, ("4.5.3 Domain policy size per transaction exceeded, please try in a separate transaction",))


def answer(world: World, site: str, reply: Reply, *, provider: str = "default") -> None:
    path = world.traffic.path("a", site, provider)
    world.traffic.lessons.note(path, [Result(classify(reply, "rcpt"), "rcpt", reply)], 1)


def by_strangers(number: int) -> list[Effect]:
    until = NOW + timedelta(hours=2)
    return [
        Effect(n, "slow", "a", "", f"mx{n}.evil.example", "", "", 1.0, "r", "f:1", NOW, until) for n in range(number)
    ]


def microseconds(work: Callable[[], object]) -> float:
    """What it costs at best: the machine may be busy."""
    return min(timeit.repeat(work, number=10, repeat=20)) / 10 * 1e6


@pytest.fixture(autouse=True)
def shipped_rules(world: World) -> None:
    rules = builtin_rules()
    delivery = Delivery(control=False)
    world.traffic.lessons.reconfigure(world.traffic.lessons._config, RuleBook(rules, delivery))


def test_replies_of_one_site_do_not_count_against_another(world: World) -> None:
    for number in range(3):
        answer(world, f"mx{number}.evil.example", SLOW_DOWN)
    answer(world, "mx.honest.example", SLOW_DOWN)
    assert world.brakes == []
    for _ in range(2):
        answer(world, "mx.honest.example", SLOW_DOWN)
    assert [effect.site for effect in world.brakes] == ["mx.honest.example"]


def test_brakes_of_strangers_sites_cost_other_mail_nothing(world: World) -> None:
    world.effects._set(by_strangers(20_000))
    assert microseconds(lambda: world.traffic.avoided("a", "default", "mx.any.example")) < 50
    assert [effect.id for effect in world.effects.of_path("a", "default", "mx7.evil.example")] == [7]


def test_strangers_make_only_so_many_brakes_and_providers_as_many_as_they_like(world: World) -> None:
    world.effects._set(by_strangers(MOST_NARROW))
    for _ in range(5):
        answer(world, "mx.evil.example", SLOW_DOWN)
        answer(
            world, "mx.comcast.example", Reply(421, ("4.1.0 Throttled - try again later RL000003",)), provider="comcast"
        )
    assert {effect.provider for effect in world.brakes} == {"comcast"}
    world.effects._set(by_strangers(MOST_NARROW - 1))
    answer(world, "mx.evil.example", SLOW_DOWN)
    assert world.brakes[-1].site == "mx.evil.example"


def test_a_host_of_a_customer_is_not_the_provider() -> None:
    book = RuleBook(builtin_rules(), Delivery())
    for name in ("c-192-0-2-7.hsd1.ca.comcast.net", "lfbn-par-1-2-3.w86-1.abo.wanadoo.fr"):
        assert book.provider_of("evil.example", [name]) == "default"


def test_recipients_that_are_refused_as_too_many_cost_a_site_little_and_not_for_long(world: World) -> None:
    path = world.traffic.path("a", "mx.big.example", "google")
    for _ in range(20):
        answer(world, "mx.big.example", TOO_MANY, provider="google")
    assert path.most_recipients == 10
    world.seconds += 1800
    answer(world, "mx.big.example", TOO_MANY, provider="google")
    world.seconds += 1801
    world.traffic.recipients_per_transaction(path)
    assert (path.most_recipients or MANY) == MANY
    answer(world, "mx.big.example", Reply(452, ("4.5.3 Error: too many recipients (limit 4)",)), provider="google")
    assert path.most_recipients == 4  # said in so many words
    answer(world, "mx.big.example", TOO_MANY, provider="google")
    assert path.most_recipients == 4


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("effect 7: paused: tss05: 421 4.7.0 [TSS05] ann@rival.example (builtin:9)", "effect 7 (tss05)"),
        (
            "effect 7: slowed to 1 messages a minute: too-fast: 450 4.7.1 for <ann@rival.example> (f:1)",
            "effect 7 (too-fast)",
        ),
        ("effect 7: paused: Rival Ltd: sent spam (me)", "effect 7"),
        ("effect 7: paused: 421 stop (me)", "effect 7"),
        ("greylisted: 451 4.7.1 effect 7: paused", "greylisted: 451 4.7.1 effect 7: paused"),
        (
            "warm-up of a at google: 7 recipients a day are used up",
            "warm-up of a at google: 7 recipients a day are used up",
        ),
    ],
)
def test_tenants_see_the_rule_of_an_effect_and_not_whose_reply_it_was(reason: str, shown: str) -> None:
    assert _reason_for_tenants(reason) == shown
