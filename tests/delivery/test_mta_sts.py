"""MTA-STS (RFC 8461) with a real web server, a real database and real DNS answers."""

import asyncio
import datetime

import asyncpg
import pytest

from mailerd import config
from mailerd.delivery.mta_sts import MAX_AGE, StsPolicies, StsStore, parse_policy, record_id
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.tls_policy import TlsOutcome
from tests.support.authority import issue, root
from tests.support.dns_server import DnsServer
from tests.support.policy_host import GOOD, PolicyHost

DOMAIN = "example.com"
HOST = "mta-sts.example.com"
NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
ROOT = root()
DAY = 86_400


# -- the record and the policy, as text --


@pytest.mark.parametrize(
    ("texts", "announced"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; id=-; id=2 "], "2"),
        (["v=STSv1;" + " ;" * 30_000], ""),  # at once, not after the end of time
        (["v=STSv1 ; a=b; id = x1 ; c=d"], "x1"),
        (["v=spf1 -all", "v=STSv1; id=1;"], "1"),
        (["v=STSv1; id=1;", "v=STSv1; id=2;"], ""),
        (["v=STSv1; id=;"], ""),
        (["v=STSv1;"], ""),
        (["v=STSv1; id=a-b;"], ""),
        (["v=STSv1; id=" + "1" * 33], ""),
        (["v=STSv2; id=1"], ""),
        (["V=STSv1; id=1"], ""),
        ([" v=STSv1; id=1"], ""),
        ([], ""),
    ],
)
def test_exactly_one_record_announces_a_policy(texts, announced):
    assert record_id(texts) == announced


def test_a_policy_is_read_as_it_is_written():
    text = "version: STSv1\nmode: testing\nmx: MX1.example.com\nmx:*.Example.net \nmax_age:  604800\nfuture: thing\n"
    policy = parse_policy(text, "7", NOW)
    assert (policy.id, policy.mode, policy.mx) == ("7", "testing", ("mx1.example.com", "*.example.net"))
    assert policy.expires_at - policy.fetched_at == datetime.timedelta(days=7)
    assert policy.lines == tuple(text.splitlines())


def test_the_first_of_repeated_fields_counts_and_nothing_lasts_longer_than_a_year():
    text = "version: STSv1\nmode: none\nmode: enforce\nmax_age: 9999999999\nmax_age: 1\n"
    policy = parse_policy(text, "1", NOW)
    assert (policy.mode, policy.mx) == ("none", ())
    assert (policy.expires_at - NOW).total_seconds() == MAX_AGE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>welcome</html>",
        GOOD.replace("STSv1", "STSv2"),
        GOOD.replace("version: STSv1\r\n", ""),
        GOOD.replace("enforce", "Enforced"),
        GOOD.replace("mode: enforce\r\n", ""),
        GOOD.replace("max_age: 86400\r\n", ""),
        GOOD.replace("86400", "-1"),
        GOOD.replace("86400", "1d"),
        GOOD.replace("86400", "1" * 11),
        GOOD.replace("mx: mx.example.com\r\n", ""),
        GOOD.replace("mx.example.com", "*"),
        GOOD.replace("mx.example.com", "mx.*.com"),
        GOOD.replace("mx.example.com", "127.0.0.1 evil"),
        GOOD.replace("mx.example.com", ""),
        GOOD + "mx: x.example.com\r\n" * 1_000,
    ],
)
def test_a_policy_with_a_mistake_is_none(text):
    with pytest.raises(ValueError):
        parse_policy(text, "1", NOW)


# -- the way to it --


class World:
    """Policies of a worker, with its web server, name server and database; `restart` makes another worker."""

    def __init__(self, dns: DnsServer, host: PolicyHost, pool: asyncpg.Pool, trust: str) -> None:
        self.dns, self.host = dns, host
        self.now = NOW
        self.ticks = 1000.0
        self.noted: list[TlsOutcome] = []
        self.store = StsStore(pool)
        self._trust = trust
        self._made: list[StsPolicies] = []
        self.restart()

    def restart(self, *, patience: float = 5.0, allow_private: bool = True) -> None:
        settings = config.Resolver(nameservers=(self.dns.address,), timeout=config.Duration(0.5))
        resolver = Resolver(settings, clock=lambda: self.ticks)
        self.policies = StsPolicies(
            self.store,
            resolver,
            clock=lambda: self.now,
            note=self.noted.append,
            allow_private=allow_private,
            patience=patience,
            port=self.host.port,
            trust=self._trust,
        )
        self._made.append(self.policies)

    def advance(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)
        self.ticks += seconds

    def announce(self, number: str) -> None:
        self.dns.add(f"_mta-sts.{DOMAIN}", "TXT", f'"v=STSv1; id={number};"', ttl=60)

    async def mode(self) -> str:
        policy = (await self.policies.policy(DOMAIN)).policy
        return policy.mode if policy is not None else ""

    @property
    def results(self) -> list[str]:
        return [outcome.result for outcome in self.noted]

    async def close(self) -> None:
        for policies in self._made:
            await policies.close()


@pytest.fixture
async def world(database, tmp_path):
    async with (
        DnsServer() as dns,
        PolicyHost(issue(ROOT, HOST).context()) as host,
        asyncpg.create_pool(database, min_size=1, max_size=2) as pool,
    ):
        dns.add(HOST, "A", "127.0.0.1")
        world = World(dns, host, pool, ROOT.save(tmp_path))
        world.announce("1")
        yield world
        await world.close()


async def test_a_policy_is_fetched_once_and_kept(world):
    known = await world.policies.policy(DOMAIN)
    assert (known.policy.mode, known.policy.mx, known.policy.lines[0]) == (
        "enforce",
        ("mx.example.com",),
        "version: STSv1",
    )
    assert known.expires == pytest.approx(world.ticks + 60)
    assert [await world.mode() for _ in range(3)] == ["enforce"] * 3
    assert (world.host.asked, world.noted) == (1, [])


async def test_a_domain_without_a_record_has_none_and_its_web_server_is_left_alone(world):
    world.dns.remove(f"_mta-sts.{DOMAIN}", "TXT")
    assert await world.mode() == ""
    assert (world.host.asked, world.noted) == (0, [])


async def test_a_policy_that_vanishes_stays_in_force_until_its_end_also_for_another_worker(world):
    assert await world.mode() == "enforce"
    world.dns.remove(f"_mta-sts.{DOMAIN}", "TXT")
    world.host.status = 404
    world.restart()
    world.advance(DAY - 10)
    assert await world.mode() == "enforce"
    world.advance(20)
    assert await world.mode() == ""


@pytest.mark.parametrize("mode", ["servfail", "drop"])
async def test_a_policy_stays_in_force_while_dns_is_silenced(world, mode):
    assert await world.mode() == "enforce"
    world.dns.misbehave(f"_mta-sts.{DOMAIN}", mode)
    world.restart()
    assert await world.mode() == "enforce"


async def test_another_id_brings_the_new_policy_and_one_that_fails_leaves_the_old(world):
    assert await world.mode() == "enforce"
    world.announce("2")
    world.host.text = GOOD.replace("enforce", "testing")
    world.advance(61)
    assert await world.mode() == "testing"
    world.announce("3")
    world.host.status = 500
    world.advance(61)
    assert await world.mode() == "testing"
    assert world.results == ["sts-policy-fetch-error"]


FAULTS = {
    "missing": ({"status": 404}, "sts-policy-fetch-error"),
    "moved": ({"status": 301, "headers": {"Location": "https://mta-sts.example.com/x"}}, "sts-policy-fetch-error"),
    "html": ({"headers": {"Content-Type": "text/html"}}, "sts-policy-invalid"),
    "too large": ({"text": GOOD + "x: y\r\n" * 20_000}, "sts-policy-invalid"),
    "rubbish": ({"text": b"\xff\xfe"}, "sts-policy-invalid"),
    "no policy": ({"text": "hello"}, "sts-policy-invalid"),
}


@pytest.mark.parametrize(("answer", "result"), FAULTS.values(), ids=FAULTS)
async def test_a_policy_that_cannot_be_had_is_none_and_the_failure_is_noted(world, answer, result):
    for name, value in answer.items():
        setattr(world.host, name, value)
    assert [await world.mode(), await world.mode()] == ["", ""]
    assert world.host.asked == 1, "a failed fetch is not repeated for every mail"
    [outcome] = world.noted
    assert (outcome.domain, outcome.policy_type, outcome.result, bool(outcome.detail)) == (DOMAIN, "sts", result, True)

    world.host.status, world.host.text, world.host.headers = 200, GOOD, {"Content-Type": "text/plain"}
    world.advance(301)
    assert await world.mode() == "enforce"


CERTIFICATES = {
    "of another name": issue(ROOT, "mta-sts.other.example"),
    "expired": issue(ROOT, HOST, days=-2),
    "of nobody we know": issue(root("Nobody"), HOST),
}


@pytest.mark.parametrize("host", CERTIFICATES.values(), ids=CERTIFICATES)
async def test_a_web_server_with_a_bad_certificate_is_not_believed(world, host):
    async with PolicyHost(host.context()) as impostor:
        world.host = impostor
        world.restart()
        assert await world.mode() == ""
    assert (world.results, impostor.asked) == (["sts-webpki-invalid"], 0)


async def test_a_private_address_is_not_connected_to_unless_allowed(world):
    world.restart(allow_private=False)
    assert await world.mode() == ""
    assert world.host.asked == 0
    assert "private" in world.noted[0].detail


async def test_mail_does_not_wait_long_for_a_slow_web_server_whose_policy_comes_later(world):
    world.host.hold = asyncio.Event()
    world.restart(patience=0.1)
    known = await world.policies.policy(DOMAIN)
    assert known.policy is None
    assert known.expires <= world.ticks + 30
    world.host.hold.set()
    world.restart()
    async with asyncio.timeout(60):
        while await world.store.read(DOMAIN) is None:
            await asyncio.sleep(0.01)
    assert await world.mode() == "enforce"
    assert world.host.asked == 1


async def test_many_mails_at_once_share_one_fetch(world):
    assert await asyncio.gather(*(world.mode() for _ in range(50))) == ["enforce"] * 50
    assert world.host.asked == 1


async def test_policies_are_renewed_before_they_end_also_when_nobody_asks(world):
    assert await world.mode() == "enforce"
    world.host.text = GOOD.replace("enforce", "testing")
    await world.policies.refresh()
    assert world.host.asked == 1, "fetched lately"
    world.advance(DAY // 2 + 1)
    world.restart()
    policy = await world.store.read(DOMAIN)
    await world.store.write("other.example", policy)
    await world.policies.refresh()
    assert world.host.asked == 2
    assert await world.mode() == "testing"
    assert await world.store.read("other.example") is not None
    world.advance(DAY)
    await world.policies.refresh()
    assert await world.store.read("other.example") is None, "over, and nobody announces it any more"


async def test_a_policy_of_a_day_is_renewed_at_half_of_it_so_that_its_web_server_may_be_away_at_its_end(world):
    assert await world.mode() == "enforce"
    world.advance(DAY // 2 + 1)
    assert await world.mode() == "enforce"
    async with asyncio.timeout(60):
        while world.host.asked < 2 or (await world.store.read(DOMAIN)).fetched_at == NOW:
            await asyncio.sleep(0.01)
    world.host.status = 500
    world.advance(DAY // 2)
    assert await world.mode() == "enforce"


async def test_a_database_that_is_away_does_not_stop_mail(world, database):
    await world.store._pool.close()
    assert await world.mode() == "enforce"
    assert await world.mode() == "enforce"


async def test_a_short_lived_policy_is_not_fetched_for_every_mail(world):
    world.host.text = GOOD.replace("86400", "0")
    known = await world.policies.policy(DOMAIN)
    assert known.expires >= world.ticks + 60


async def test_many_domains_are_asked_for_in_few_queries(world, database):
    await world.policies.policy(DOMAIN)
    queries = []
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool:
        store = StsStore(Watched(pool, queries))
        found = await asyncio.gather(*(store.read(name) for name in [DOMAIN, *(f"d{n}.example" for n in range(50))]))
    assert [policy.mode if policy else "" for policy in found] == ["enforce", *[""] * 50]
    assert len(queries) <= 2


class Watched:
    """A pool that notes what it is asked."""

    def __init__(self, pool: asyncpg.Pool, queries: list[str]) -> None:
        self._pool = pool
        self._queries = queries

    async def fetch(self, query: str, *parameters: object) -> list[asyncpg.Record]:
        self._queries.append(query)
        return await self._pool.fetch(query, *parameters)
