"""DANE and MTA-STS from DNS to the last command: signed zones at unbound, a policy host, real TLS at real hosts."""

import contextlib
import random
import socket
import ssl

import pytest

from mailerd import config
from mailerd.config import Config, Delivery, Duration, Endpoint, RouteMatch, RouteRule
from mailerd.delivery.mta_sts import StsPolicies
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.routing import NoRoute, Route, Router
from mailerd.delivery.session import Session, SessionError
from mailerd.delivery.tls_policy import TlsOutcome, TlsPolicy
from mailerd.delivery.transaction import Timeouts
from mailerd.delivery.verdict import Kind, Outcome
from tests.support.authority import Issued, issue, root
from tests.support.policy_host import GOOD, PolicyHost
from tests.support.scripted_mx import CLOSE, EXTENSIONS, ScriptedMx
from tests.support.signed_dns import PROBE, SignedDns, SignedZone, needs_unbound

pytestmark = needs_unbound

ROOT = root()
MX = "mx.example.com"
GOOD_HOST = issue(ROOT, MX)
PATIENT = Timeouts(quit=1)
CONTENT = b"Subject: hi\r\n\r\nhello\r\n"


class World:
    """One domain, example.com with mx.example.com; tests change its zone, host and policy before `send`."""

    def __init__(self, port: int, trust: str) -> None:
        self.port = port
        self.zone = SignedZone("example.com").add("mx", "A", "127.0.0.2")
        self.host = ScriptedMx("127.0.0.2", port=port, name=MX, tls="starttls", context=GOOD_HOST.context())
        self.web = PolicyHost(issue(ROOT, "mta-sts.example.com").context())
        self.delivery: dict[str, object] = {}
        self.routes: tuple[RouteRule, ...] = ()
        self.resolver_settings: dict[str, object] = {"dnssec_probe": PROBE}
        self.noted: list[TlsOutcome] = []
        self.trust = trust
        self._stack = contextlib.AsyncExitStack()

    def tlsa(self, *records: str) -> None:
        self.zone.add(f"_{self.port}._tcp.mx", "TLSA", *records)

    def serve(self, issued: Issued) -> None:
        self.host._context = issued.context()

    def sts(self, mode: str = "enforce", mx: str = MX) -> None:
        self.zone.add("_mta-sts", "TXT", '"v=STSv1; id=1;"').add("mta-sts", "A", "127.0.0.1")
        self.web.text = GOOD.replace("enforce", mode).replace(MX, mx)

    async def start(self, *zones: SignedZone, mx: str = "") -> None:
        self.zone.add("@", "MX", mx or "10 mx.example.com.")
        if ("_tlsa", "TLSA") in self.zone.bogus:
            self.zone.bogus = {(f"_{self.port}._tcp.mx", "TLSA")}
        self.dns = await self._stack.enter_async_context(SignedDns([self.zone, *zones]))
        await self._stack.enter_async_context(self.host)
        await self._stack.enter_async_context(self.web)
        settings = config.Resolver(nameservers=(self.dns.address,), timeout=Duration(5), **self.resolver_settings)
        self.resolver = Resolver(settings)
        self.policies = StsPolicies(
            None, self.resolver, note=self.noted.append, allow_private=True, port=self.web.port, trust=self.trust
        )
        delivery = Delivery(allow_private=True, port=self.port, **self.delivery)
        self.router = Router(
            Config(hostname="out.example", delivery=delivery, resolver=settings, routes=self.routes),
            self.resolver,
            own=(),
            rng=random.Random(7),
            sts=self.policies,
            note=self.noted.append,
        )

    async def find(self, *, ignore_policy: bool = False) -> Route | NoRoute:
        facts = {"sender": "me@ours.example", "stream": "transactional", "pool": "default"}
        return await self.router.route("example.com", ignore_policy=ignore_policy, **facts)

    async def open(self, *, ignore_policy: bool = False) -> Session:
        route = await self.find(ignore_policy=ignore_policy)
        assert isinstance(route, Route), route
        return await Session.open(route.hosts[0], ehlo="out.example", tls=route.tls, timeouts=PATIENT, trust=self.trust)

    async def send(self, **options: bool) -> tuple[str, TlsOutcome | None]:
        """What became of a mail, and of TLS."""
        before = len(self.host.delivered)
        try:
            session = await self.open(ignore_policy=options.pop("ignore_policy", False))
        except SessionError as failure:
            error = failure
        else:
            return await self._send(session, options)
        assert (error.verdict.outcome, error.verdict.kind) == (Outcome.DEFERRED, Kind.TLS), error
        assert len(self.host.delivered) == before
        return "deferred", error.tls_outcome

    async def _send(self, session: Session, options: dict[str, bool]) -> tuple[str, TlsOutcome | None]:
        done = await session.transact("me@ours.example", ["ann@example.com"], CONTENT, **options)
        await session.quit()
        return str(done.results[0].verdict.outcome), session.tls_outcome

    async def close(self) -> None:
        await self._stack.aclose()
        await self.router.close()
        await self.policies.close()
        await self.resolver.close()


@pytest.fixture
async def world(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    world = World(port, ROOT.save(tmp_path))
    yield world
    await world.close()


# -- DANE --


@pytest.mark.parametrize(
    "record",
    [GOOD_HOST.tlsa(3, 1, 1), GOOD_HOST.tlsa(3, 0, 2), ROOT.tlsa(2, 1, 1), ROOT.tlsa(2, 0, 0)],
    ids=lambda record: record[:5],
)
async def test_mail_goes_to_the_host_that_tlsa_records_stand_for(world, record):
    world.tlsa(record)
    await world.start()
    outcome = TlsOutcome("example.com", "tlsa", (record,), MX, "127.0.0.2", "success")
    assert [await world.send() for _ in range(3)] == [("delivered", outcome)] * 3
    route = await world.find()
    assert (str(route.tls), route.hosts[0].dane.base) == ("DANE", MX)


IMPOSTORS = {
    "another key": ([issue(ROOT, MX).tlsa(3, 1, 1)], GOOD_HOST, "tlsa-invalid"),
    "another authority": ([root().tlsa(2, 0, 1)], GOOD_HOST, "tlsa-invalid"),
    "another name": ([ROOT.tlsa(2, 0, 1)], issue(ROOT, "example.com"), "certificate-host-mismatch"),
    "an expired certificate": ([ROOT.tlsa(2, 0, 1)], issue(ROOT, MX, days=-2), "certificate-expired"),
}


@pytest.mark.parametrize(("records", "host", "result"), IMPOSTORS.values(), ids=IMPOSTORS)
async def test_mail_waits_when_the_host_is_not_the_one_that_tlsa_records_stand_for(world, records, host, result):
    world.tlsa(*records)
    world.serve(host)
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.result) == ("deferred", "tlsa", result)
    assert outcome.detail.startswith("DANE: ")
    assert world.host.commands == ["EHLO out.example", "STARTTLS"]


@pytest.mark.parametrize("record", [GOOD_HOST.tlsa(3, 1, 1), "1 1 1 " + "00" * 32], ids=["usable", "unusable"])
async def test_tls_is_mandatory_where_there_are_tlsa_records_even_without_a_use_for_them(world, record):
    world.tlsa(record)
    world.host.tls = ""
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.result) == ("deferred", "tlsa", "starttls-not-supported")


async def test_any_certificate_will_do_where_no_tlsa_record_is_of_use(world):
    world.tlsa("1 1 1 " + "00" * 32)
    world.serve(issue(root("Nobody"), "elsewhere.example"))
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.result) == ("delivered", "success")
    assert not (await world.open()).verified


@pytest.mark.parametrize("records", [0, 1], ids=["without", "with"])
async def test_records_of_an_unsigned_zone_mean_nothing(world, records):
    world.zone.signed = False
    world.tlsa(*["3 1 1 " + "00" * 32][:records])
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.policy) == ("delivered", "no-policy-found", ())


async def test_a_signed_zone_without_tlsa_records_is_mailed_as_ever(world):
    world.host.tls = ""
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.result) == ("delivered", "no-policy-found", "starttls-not-supported")


FORGERIES = {
    "the MX records are forged": lambda zone: zone.tamper("@", "MX"),
    "the addresses are forged": lambda zone: zone.tamper("mx", "A"),
    "the TLSA records are forged": lambda zone: zone.tamper("_tlsa", "TLSA"),
    "the signatures are expired": lambda zone: setattr(zone, "age", 40),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_mail_waits_while_dns_is_forged_or_badly_signed(world, forge):
    world.tlsa(GOOD_HOST.tlsa(3, 1, 1))
    forge(world.zone)
    await world.start()
    found = await world.find()
    assert isinstance(found, NoRoute)
    assert (found.verdict.outcome, found.verdict.kind, found.verdict.enhanced) == (Outcome.DEFERRED, Kind.DNS, "4.4.3")


async def test_a_host_whose_tlsa_records_cannot_be_looked_up_is_left_for_the_next(world):
    world.tlsa(GOOD_HOST.tlsa(3, 1, 1))
    world.zone.tamper("_tlsa", "TLSA").add("mx2", "A", "127.0.0.3")
    world.zone.add("@", "MX", "20 mx2.example.com.")
    await world.start()
    route = await world.find()
    assert [host.name for host in route.hosts] == ["mx2.example.com"]
    [noted] = world.noted
    assert (noted.domain, noted.mx, noted.result) == ("example.com", MX, "dnssec-invalid")
    assert "TLSA" in noted.detail


async def test_records_of_a_signed_host_mean_nothing_when_the_way_to_it_is_not_signed(world):
    """RFC 7672 section 2.2.1: whoever forges the MX records of an unsigned domain would name a host of theirs."""
    hosting = SignedZone("hosting.example").add("mx", "A", "127.0.0.2")
    hosting.add(f"_{world.port}._tcp.mx", "TLSA", "3 1 1 " + "00" * 32)
    world.zone.signed = False
    await world.start(hosting, mx="10 mx.hosting.example.")
    assert (await world.send())[0] == "delivered"


async def test_a_host_behind_a_signed_alias_is_asked_for_by_its_real_name(world):
    hosting = SignedZone("hosting.example").add("real", "A", "127.0.0.2")
    host = issue(ROOT, "real.hosting.example")
    hosting.add(f"_{world.port}._tcp.real", "TLSA", ROOT.tlsa(2, 0, 1))
    world.zone.add("alias", "CNAME", "real.hosting.example.")
    world.serve(host)
    await world.start(hosting, mx="10 alias.example.com.")
    became, outcome = await world.send()
    assert (became, outcome.policy_type) == ("delivered", "tlsa")
    assert (await world.find()).hosts[0].dane.base == "real.hosting.example"


async def test_a_signed_alias_of_an_unsigned_host_may_have_records_of_its_own(world):
    hosting = SignedZone("hosting.example", signed=False).add("real", "A", "127.0.0.2")
    host = issue(ROOT, "real.hosting.example")
    world.zone.add("alias", "CNAME", "real.hosting.example.")
    world.zone.add(f"_{world.port}._tcp.alias", "TLSA", host.tlsa(3, 1, 1))
    world.serve(host)
    await world.start(hosting, mx="10 alias.example.com.")
    became, outcome = await world.send()
    assert (became, outcome.policy_type) == ("delivered", "tlsa")
    assert (await world.find()).hosts[0].dane.base == "alias.example.com"


@pytest.mark.parametrize(
    "settings", [{"dnssec": "off"}, {"dnssec_probe": "unsigned.test"}], ids=["off", "without proof"]
)
async def test_dane_is_followed_only_where_the_name_servers_are_believed(world, settings):
    world.resolver_settings = settings
    world.tlsa("3 1 1 " + "00" * 32)
    await world.start(SignedZone("unsigned.test", signed=False))
    assert (await world.send())[0] == "delivered"
    assert await world.resolver.dnssec_doubt()


async def test_dane_can_be_switched_off(world):
    world.delivery = {"dane": False}
    world.tlsa("3 1 1 " + "00" * 32)
    await world.start()
    assert (await world.send())[0] == "delivered"


async def test_a_smart_host_by_name_is_held_to_its_tlsa_records_too(world):
    world.tlsa("3 1 1 " + "00" * 32)
    world.routes = (RouteRule(hosts=(Endpoint(MX, world.port),)),)
    await world.start()
    assert (await world.send())[0] == "deferred"


async def test_name_servers_elsewhere_are_never_believed():
    settings = config.Resolver(nameservers=("9.9.9.9", "127.0.0.1"))
    assert "9.9.9.9" in await Resolver(settings).dnssec_doubt()
    assert "nameservers" in await Resolver(config.Resolver()).dnssec_doubt()


# -- MTA-STS --


@pytest.mark.parametrize("pattern", [MX, "*.example.com"])
async def test_mail_goes_to_a_host_of_the_policy_with_a_valid_certificate(world, pattern):
    world.zone.signed = False
    world.sts(mx=pattern)
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.result) == ("delivered", "sts", "success")
    assert outcome.policy == tuple(world.web.text.split("\r\n")[:-1])


BAD_HOSTS = {
    "a certificate of another name": (issue(ROOT, "elsewhere.example"), "certificate-host-mismatch"),
    "an expired certificate": (issue(ROOT, MX, days=-2), "certificate-expired"),
    "a certificate of nobody we know": (issue(root("Nobody"), MX), "certificate-not-trusted"),
    "no TLS": (None, "starttls-not-supported"),
}


@pytest.mark.parametrize("mode", ["enforce", "testing"])
@pytest.mark.parametrize(("host", "result"), BAD_HOSTS.values(), ids=BAD_HOSTS)
async def test_a_bad_host_gets_no_mail_unless_the_policy_is_only_tested(world, mode, host, result):
    world.sts(mode)
    if host is None:
        world.host.tls = ""
    else:
        world.serve(host)
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.result) == (
        "deferred" if mode == "enforce" else "delivered",
        "sts",
        result,
    )


async def test_a_tested_policy_still_means_tls_where_a_certificate_is_bad(world):
    world.sts("testing")
    world.serve(BAD_HOSTS["an expired certificate"][0])
    await world.start()
    session = await world.open()
    assert session.tls
    assert not session.verified


async def test_a_host_that_the_policy_does_not_list_gets_no_mail(world):
    world.sts(mx="mx.other.example")
    await world.start()
    found = await world.find()
    assert isinstance(found, NoRoute)
    assert (found.verdict.outcome, found.verdict.kind) == (Outcome.DEFERRED, Kind.TLS)
    assert [(outcome.policy_type, outcome.result) for outcome in world.noted] == [("sts", "validation-failure")]
    assert world.host.connections == 0


async def test_a_host_that_a_tested_policy_does_not_list_is_reported(world):
    world.sts("testing", mx="mx.other.example")
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.result) == ("delivered", "validation-failure")
    assert MX in outcome.detail


async def test_only_the_listed_hosts_of_several_are_used(world):
    world.zone.add("@", "MX", "5 evil.example.com.").add("evil", "A", "127.0.0.9")
    world.sts()
    await world.start()
    assert [host.name for host in (await world.find()).hosts] == [MX]


async def test_while_nobody_can_tell_of_a_policy_only_hosts_that_dns_vouches_for_are_used(world, monkeypatch):
    class Away:
        async def read(self, domain: str) -> None:
            raise OSError(f"no database to ask for {domain}")

    world.zone.add("@", "MX", "5 other.example.com.").add("other", "A", "127.0.0.9")
    world.tlsa(GOOD_HOST.tlsa(3, 1, 1))
    await world.start()
    monkeypatch.setattr("mailerd.delivery.mta_sts.READ_AGAIN", ())
    monkeypatch.setattr(world.policies, "_store", Away())
    assert [host.name for host in (await world.find()).hosts] == [MX]


async def test_a_policy_of_mode_none_asks_for_nothing(world):
    world.sts("none")
    world.host.tls = ""
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type) == ("delivered", "no-policy-found")


async def test_dane_goes_before_mta_sts(world):
    """RFC 8461 section 2: a valid certificate must not make up for records that do not match."""
    world.sts()
    world.tlsa("3 1 1 " + "00" * 32)
    await world.start()
    became, outcome = await world.send()
    assert (became, outcome.policy_type, outcome.result) == ("deferred", "tlsa", "tlsa-invalid")
    assert str((await world.find()).tls) == "DANE, MTA-STS"


async def test_mta_sts_can_be_switched_off(world):
    world.delivery = {"mta_sts": False}
    world.sts(mx="mx.other.example")
    await world.start()
    assert (await world.send())[0] == "delivered"
    assert world.web.asked == 0


@pytest.mark.parametrize("tls", ["none", "required"])
async def test_a_route_that_says_what_it_wants_stands_above_what_is_published(world, tls):
    world.sts(mx="mx.other.example")
    world.tlsa("3 1 1 " + "00" * 32)
    world.routes = (RouteRule(match=RouteMatch(domain="example.com"), tls=tls),)
    await world.start()
    assert await world.send() == ("delivered", None)
    assert (await world.find()).tls == TlsPolicy(tls)


# -- the sender's wish --


async def test_policies_are_ignored_for_mail_that_need_not_be_protected(world):
    world.sts(mx="mx.other.example")
    world.tlsa("3 1 1 " + "00" * 32)
    await world.start()
    assert isinstance(await world.find(), Route)
    became, outcome = await world.send(ignore_policy=True)
    assert (became, outcome.policy_type) == ("delivered", "no-policy-found")
    assert (await world.send())[0] == "deferred"


async def test_requiretls_is_passed_on_to_a_verified_host_that_offers_it(world):
    world.tlsa(GOOD_HOST.tlsa(3, 1, 1))
    world.host.extensions = (*EXTENSIONS, "REQUIRETLS")
    await world.start()
    assert (await world.send(require_tls=True))[0] == "delivered"
    assert next(line for line in world.host.commands if line.startswith("MAIL")).endswith(" REQUIRETLS")


@pytest.mark.parametrize(("named", "became"), [(True, "delivered"), (False, "bounced")], ids=["ours", "of DNS"])
async def test_a_certificate_for_a_name_that_unsigned_dns_gave_is_not_enough_for_requiretls(world, named, became):
    world.zone.signed = False
    hosts = (Endpoint(MX, world.port),) if named else ()
    world.routes = (RouteRule(match=RouteMatch(domain="example.com"), tls="verify", hosts=hosts),)
    world.host.extensions = (*EXTENSIONS, "REQUIRETLS")
    await world.start()
    assert (await world.send())[0] == "delivered"
    assert (await world.send(require_tls=True))[0] == became


@pytest.mark.parametrize(
    ("verified", "offered"), [(True, False), (False, True), (False, False)], ids=["not offered", "not verified", "no"]
)
async def test_mail_that_requires_tls_bounces_where_nobody_promises_it(world, verified, offered):
    if verified:
        world.sts()
    if offered:
        world.host.extensions = (*EXTENSIONS, "REQUIRETLS")
    await world.start()
    session = await world.open()
    done = await session.transact("me@ours.example", ["ann@example.com"], CONTENT, require_tls=True)
    verdict = done.results[0].verdict
    assert (verdict.outcome, verdict.code, verdict.enhanced, verdict.kind) == (Outcome.BOUNCED, 550, "5.7.30", Kind.TLS)
    assert done.usable
    assert not [line for line in world.host.commands if line.startswith("MAIL")]


# -- the rest --


@pytest.mark.parametrize("said", [["220 go", CLOSE], "454 4.7.0 not now"], ids=["broken handshake", "refused"])
async def test_no_trouble_with_tls_makes_mail_go_in_clear_where_a_policy_is_in_force(world, said):
    world.tlsa(GOOD_HOST.tlsa(3, 1, 1))
    await world.start()
    world.host.on("STARTTLS", said)
    assert (await world.send())[0] == "deferred"
    assert world.host.delivered == []


async def test_the_oldest_tls_is_a_setting(world):
    world.delivery = {"tls_minimum": "TLSv1.3"}
    world.routes = (RouteRule(tls="required"),)
    await world.start()
    world.host._context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await world.send())[0] == "deferred"


async def test_a_new_configuration_routes_anew(world):
    world.tlsa("3 1 1 " + "00" * 32)
    await world.start()
    assert (await world.send())[0] == "deferred"
    delivery = Delivery(allow_private=True, port=world.port, dane=False)
    world.router.reconfigure(Config(hostname="out.example", delivery=delivery))
    assert (await world.find()).tls == TlsPolicy()
