"""Why mail waits, asked of a relay at work: each limit, effect, budget and policy with its place and end."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from mailerd.config import Pool, PoolSource, Source, WarmUpOf
from mailerd.config.shaping import BUILTIN_NAME, builtin_shaping, parse_shaping
from mailerd.delivery.effects import EffectStore, by_operator
from mailerd.delivery.explain import ConfigText, Mail, hosts_of
from mailerd.delivery.explained import Explanation
from mailerd.delivery.paths import of_meter
from mailerd.delivery.routing import site_name
from mailerd.intake.credentials import Credential
from mailerd.queue.control import ControlStore, Selection
from tests.support.dns_server import DnsServer
from tests.support.relay import Clock, RunningRelay, relay_config, running_relay
from tests.support.scripted_mx import ScriptedMx

TEXT = """
delivery:
  connections_per_path: 7
sources:
  mta1: {address: 127.0.0.31, warmup: {plan: standard}}
"""
RULES = """
providers:
  slowpost:
    match: {mx: [mx.example.net]}
    per_path: {message_rate: 1/h}
    rules:
      - {id: too-fast, match: "4[.]7[.]28", effect: pause, for: 2h, scope: path, samples: ["421 4.7.28 slow down"]}
tenants:
  acme: {message_rate: 1/h}
"""


def rules(text: str = ""):
    files = {BUILTIN_NAME: builtin_shaping()}
    return parse_shaping(files | ({"own.yaml": text} if text else {}))


async def about(relay: RunningRelay, domain: str = "example.net", **mail: str) -> Explanation:
    return await relay.relay.explainer(ConfigText("mailerd.yaml", TEXT)).domain(domain, Mail(**mail))


async def test_mail_that_may_leave_is_told_its_way(relay: RunningRelay, mx: ScriptedMx) -> None:
    told = await about(relay)
    (destination,) = told.destinations
    (path,) = destination.paths

    assert (destination.site, destination.provider) == ("mx.example.net", "default")
    assert [(host.name, host.address, host.port) for host in destination.hosts] == [
        ("mx.example.net", "127.0.0.2", mx.port)
    ]
    assert (destination.tls, destination.tls_by) == ("opportunistic", "nothing is published about it")
    assert destination.next == f"an attempt at once from this host to mx.example.net [127.0.0.2]:{mx.port}"
    assert (path.source, path.state, path.waits) == ("", "ok", None)
    assert told.unknown == []


async def test_limits_are_shown_with_what_is_used_and_the_line_that_sets_them(relay: RunningRelay) -> None:
    await relay.submit("ann@example.net")
    await relay.settled()
    (path,) = (await about(relay)).destinations[0].paths
    found = {limit.name: limit for limit in path.limits}

    # The learnt window of a new path is smaller than what the configuration allows.
    assert found["connections learnt from its replies"].place == "delivery.control"
    assert found["connections learnt from its replies"].used == f"{path.connections} open"
    assert found["this host to mx.example.net: connections"].allows == "20 connections"
    assert found["this host to mx.example.net: connections"].place == "mailerd.yaml:3"
    assert found["this host to mx.example.net: messages per connection"].allows == "1000"
    assert found["this host to mx.example.net: messages per connection"].place == "delivery.messages_per_connection"
    used = (await relay.relay.explainer(ConfigText("mailerd.yaml", TEXT)).paths()).paths
    assert [(each.source, each.site) for each in used] == [("", "mx.example.net")]


async def test_nothing_is_taken_by_asking(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, clock=now) as relay:
        relay.relay.reconfigure(config, relay.relay.identity, rules(RULES))
        for _ in range(3):
            assert (await about(relay)).destinations[0].paths[0].waits is None
        await relay.submit("ann@example.net")
        await relay.settled()
        assert len(mx.delivered) == 1


async def test_a_rate_that_binds_is_named_with_file_line_and_end(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, clock=now) as relay:
        relay.relay.reconfigure(config, relay.relay.identity, rules(RULES))
        first = await relay.submit("ann@example.net")
        await relay.settled()
        second = await relay.submit("bob@example.net")
        await relay.settled()
        told = await about(relay)
        message = await relay.relay.explainer(ConfigText("", "")).message(second.message_id)

    assert len(mx.delivered) == 1
    (destination,) = told.destinations
    waits = destination.paths[0].waits
    assert destination.provider == "slowpost"
    assert destination.provider_place == "own.yaml:3"
    assert waits is not None
    assert "message rate (own.yaml:5)" in waits.reason
    assert waits.until is not None
    assert timedelta(minutes=50) < waits.until - now.now <= timedelta(minutes=61)
    assert [queue.queue.recipients for queue in destination.queues] == [1]
    (recipient,) = message.waiting
    assert (recipient.address, recipient.n) == ("bob@example.net", 1)
    assert "own.yaml:5" in recipient.reason
    assert "own.yaml:5" in message.destinations[0].next
    assert message.destinations[0].next_at == recipient.due_at
    assert first.message_id != second.message_id


async def test_an_effect_of_a_rule_is_named_with_its_reply_and_rule(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    mx.on("RCPT TO:<", "421 4.7.28 slow down", then="250 ok")
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, clock=now) as relay:
        relay.relay.reconfigure(config, relay.relay.identity, rules(RULES))
        await relay.submit("ann@example.net")
        await relay.settled()
        async with asyncio.timeout(60):
            while not await EffectStore(relay.pool).active(now.now):
                pass
        path = (await about(relay)).destinations[0].paths[0]

    (effect,) = path.effects
    assert (effect.kind, effect.site, effect.rule) == ("pause", "mx.example.net", "own.yaml:7")
    assert "421 4.7.28 slow down" in effect.reason
    assert effect.until - effect.since == timedelta(hours=2)
    assert path.waits is not None
    assert path.waits.until == effect.until
    assert f"effect {effect.id}: paused" in path.waits.reason


async def test_what_limits_only_a_tenant_or_campaign_is_told_for_its_messages(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(tmp_path, dns, mx.port)
    async with running_relay(config, database, clock=now) as relay:
        relay.relay.reconfigure(config, relay.relay.identity, rules(RULES.replace("per_path: {message_rate: 1/h}", "")))
        effect = by_operator(
            "pause",
            reason="wrong template",
            actor="cli:eve",
            now=now.now,
            until=now.now + timedelta(hours=3),
            campaign="spring",
        )
        await EffectStore(relay.pool).add(effect)
        relay.relay.upkeep.changed()
        sent = await relay.submit(
            "ann@example.org", credential=Credential("key", tenant="acme"), campaign="spring", stream="transactional"
        )
        later = now.now + timedelta(days=1)
        await ControlStore(relay.pool).reschedule(
            Selection(message=sent.message_id), due_at=later, actor="test", now=now.now
        )
        told = await relay.relay.explainer(ConfigText("", "")).message(sent.message_id)
        queues = (await about(relay, "example.org")).destinations[0].queues

    (destination,) = told.destinations
    names = {limit.name.partition(":")[0]: limit for limit in destination.limits}
    assert (destination.tenant, destination.campaign) == ("acme", "spring")
    assert names["message rate of tenant acme"].place.startswith("own.yaml:")
    paused = next(limit for limit in destination.limits if "wrong template" in limit.name)
    assert (paused.place, paused.waits_until) == ("cli:eve", effect.until)
    assert [each.queue.campaign for each in queues] == ["spring"]
    assert queues[0].waits is not None
    assert "wrong template" in queues[0].waits.reason


async def test_held_mail_says_who_holds_it(relay: RunningRelay, now: Clock) -> None:
    sent = await relay.submit("ann@example.net", not_before=now.now + timedelta(hours=1))
    await ControlStore(relay.pool).hold(Selection(message=sent.message_id), actor="cli:eve", now=now.now)
    told = await relay.relay.explainer(ConfigText("", "")).message(sent.message_id)

    assert told.destinations[0].next == "nothing, until it is released: held by cli:eve"


async def test_a_message_that_is_delivered_waits_for_nothing(relay: RunningRelay) -> None:
    sent = await relay.submit("ann@example.net")
    await relay.settled()
    told = await relay.relay.explainer(ConfigText("", "")).message(sent.message_id)
    assert (told.waiting, told.destinations) == ([], [])


async def test_a_refusal_is_told_before_anybody_tries(relay: RunningRelay, dns: DnsServer) -> None:
    dns.add("null.example", "MX", "0 .")
    (destination,) = (await about(relay, "null.example")).destinations
    assert destination.refusal is not None
    assert destination.refusal.outcome == "bounced"
    assert destination.next.startswith("it would be returned: 556 5.1.10")
    assert destination.paths == []


async def test_sources_come_in_their_order_with_state_and_warm_up(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(
        tmp_path,
        dns,
        mx.port,
        sources={
            "mta1": Source(address="127.0.0.31", warmup=WarmUpOf(plan="standard")),
            "mta2": Source(address="192.0.2.77"),
        },
        pools={"default": Pool(sources=(PoolSource(name="mta1"), PoolSource(name="mta2")))},
    )
    async with running_relay(config, database, clock=now) as relay:
        await relay.relay.upkeep._warmups.judge(now.now.date())
        await relay.submit("ann@example.net", "bob@example.net")
        await relay.settled()
        (destination,) = (await about(relay)).destinations

    one, two = destination.paths
    assert (one.source, one.address, one.state) == ("mta1", "127.0.0.31", "ok")
    assert (two.source, two.state) == ("mta2", "failing")
    assert "192.0.2.77" in two.reason
    warming = next(limit for limit in one.limits if limit.name == "warm-up")
    assert warming.place == "mailerd.yaml:5"
    assert warming.allows == "200 recipients a day"
    assert 2 <= int(warming.used.removesuffix(" used")) <= 10  # two, and a worker has drawn a few beforehand
    assert two.waits is not None
    assert two.waits.reason == f"it sends nothing: {two.reason}"


async def test_a_pool_without_a_usable_source_says_so(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(
        tmp_path,
        dns,
        mx.port,
        sources={"mta2": Source(address="192.0.2.77")},
        pools={"default": Pool(sources=(PoolSource(name="mta2"),))},
    )
    async with running_relay(config, database, clock=now) as relay:
        (destination,) = (await about(relay)).destinations
    assert destination.next.startswith("no source of pool default may be used here: mta2:")
    assert [path.state for path in destination.paths] == ["failing"]


async def test_a_path_is_explained_by_its_name(relay: RunningRelay) -> None:
    await relay.submit("ann@example.net")
    await relay.settled()
    ask = relay.relay.explainer(ConfigText("", ""))
    named = await ask.path("", "mx.example.net")
    by_site = await ask.path(None, "mx.example.net")
    assert named.paths == by_site.paths
    assert named.paths[0].lately > 0
    assert await ask.knows_site("mx.example.net")
    assert not await ask.knows_site("mx.example.org")


@pytest.mark.parametrize(
    ("source", "site", "why"),
    [
        ("nosuch", "mx.example.net", "there is no source 'nosuch', only none"),
        ("", "fresh.example", "no site 'fresh.example'; fresh.example is at mx.example.net"),
        (None, "127.0.0.1:2526", "no site '127.0.0.1:2526'; nothing was sent"),
    ],
)
async def test_a_path_that_there_is_not_is_not_invented(
    relay: RunningRelay, dns: DnsServer, source: str | None, site: str, why: str
) -> None:
    dns.add("fresh.example", "MX", "10 mx.example.net.")
    with pytest.raises(LookupError, match=why):
        await relay.relay.explainer(ConfigText("", "")).path(source, site)


async def test_a_site_that_was_not_used_yet_is_known_by_its_host(relay: RunningRelay) -> None:
    told = await relay.relay.explainer(ConfigText("", "")).path("", "mx.example.net")
    assert told.paths[0].waits is None


async def test_mail_of_a_pool_that_was_taken_away_says_so(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(tmp_path, dns, mx.port, pools={"default": Pool(), "old": Pool()})
    async with running_relay(config, database, clock=now) as relay:
        sent = await relay.submit("ann@nowhere.example", pool="old", not_before=now.now + timedelta(hours=1))
        less = replace(config, pools={"default": Pool()})
        relay.relay.reconfigure(less, relay.relay.identity, rules())
        told = await relay.relay.explainer(ConfigText("", "")).message(sent.message_id)
        by_domain = await about(relay, "nowhere.example")

    (destination,), (recipient,) = told.destinations, told.waiting
    assert destination.refusal is None
    assert destination.next.startswith("nothing: there is no pool old any more; put it back")
    assert recipient.reason == "there is no pool old any more"
    assert [each.waits and each.waits.reason for each in by_domain.destinations[0].queues] == [recipient.reason]


async def test_the_source_whose_path_waits_least_is_named_as_the_next(
    database: str, dns: DnsServer, mx: ScriptedMx, now: Clock, tmp_path: Path
) -> None:
    config = relay_config(
        tmp_path,
        dns,
        mx.port,
        sources={
            "mta1": Source(address="127.0.0.31"),
            "mta2": Source(address="127.0.0.32", warmup=WarmUpOf(plan="standard", started="2099-01-01")),
        },
        pools={"default": Pool(sources=(PoolSource(name="mta1"), PoolSource(name="mta2")))},
    )
    async with running_relay(config, database, clock=now) as relay:
        relay.relay.reconfigure(config, relay.relay.identity, rules(RULES))
        await relay.relay.upkeep._warmups.judge(now.now.date())
        await relay.submit("ann@example.net")
        await relay.settled()
        waiting = [await relay.submit(f"u{n}@example.net") for n in range(8)]
        await relay.settled()
        asked = [await relay.relay.explainer(ConfigText("", "")).message(each.message_id) for each in waiting]
        (destination,) = (await about(relay)).destinations

    assert len(mx.delivered) == 1
    for each in (destination, *(told.destinations[0] for told in asked)):
        assert each.next.startswith("an attempt from mta1")
        assert "mta1 to mx.example.net: message rate (own.yaml:5)" in each.next
    limits = {limit.name: limit for path in destination.paths for limit in path.limits}
    assert limits["mta1 to mx.example.net: message rate"].allows == "1/h"
    assert (limits["warm-up"].allows, limits["warm-up"].used) == ("nothing before 2099-01-01", "")


async def test_without_a_ledger_it_is_said_what_is_not_known(relay: RunningRelay, tmp_path: Path) -> None:
    (tmp_path / "ledger").unlink()
    told = await about(relay)
    (text,) = told.unknown
    assert "No such file" in text
    assert told.destinations[0].site == "mx.example.net"


async def test_streams_and_pools_that_there_are_not_are_named(relay: RunningRelay) -> None:
    with pytest.raises(ValueError, match="no stream 'x'"):
        await about(relay, stream="x")
    with pytest.raises(ValueError, match="no pool 'x'"):
        await about(relay, pool="x")


@pytest.mark.parametrize(
    "hosts",
    [
        ["mx.example.net"],
        ["gmail-smtp-in.l.google.com", "alt1.gmail-smtp-in.l.google.com", "alt2.gmail-smtp-in.l.google.com"],
        ["a.example.net", "b.example.net"],
        ["mx.one.example", "mx.two.test"],
    ],
)
def test_the_hosts_of_a_site_are_read_from_its_name(hosts: list[str]) -> None:
    assert sorted(hosts_of(site_name(hosts))) == sorted(hosts)


@pytest.mark.parametrize(
    ("site", "hosts"),
    [
        ("user@10.0.0.5:587,relay.example", ["10.0.0.5", "relay.example"]),
        ("[::1]:26", ["::1"]),
        ("127.0.0.1:2600", ["127.0.0.1"]),
    ],
)
def test_the_hosts_of_a_fixed_route_are_read_from_its_name(site: str, hosts: list[str]) -> None:
    assert hosts_of(site) == hosts


@pytest.mark.parametrize(
    ("meter", "path"),
    [
        ("mta1>mx.example.com", ("mta1", "mx.example.com")),
        (">127.0.0.1:2600", ("", "127.0.0.1:2600")),
        ("mta1>(alt1|alt2)?.gmail-smtp-in.l.google.com", ("mta1", "(alt1|alt2)?.gmail-smtp-in.l.google.com")),
        ("mta1>(a|b)?~0123456789abcdef", ("mta1", "(a|b)?~0123456789abcdef")),
        ("rule too-fast mta1>google", None),
        ("mta1>mx.example.com!", None),
        ("mta1>mx.example.com!!", None),
        ("mta1>mx.example.com!more", None),
        ("mta1>mx.example.com!more0", None),
        ("mta1>mx.example.com#open", None),
        ("mta1@google", None),
        ("site mx.example.com", None),
        ("grant mta1>x", None),
    ],
)
def test_paths_are_told_from_other_meters(meter: str, path: tuple[str, str] | None) -> None:
    assert of_meter(meter) == path
