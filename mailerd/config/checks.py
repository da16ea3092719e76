"""What must fit together across the tree. Each check is a function of the whole `Config` that yields its findings."""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from mailerd.config.tree import Config, Listener, RouteRule, is_loopback
from mailerd.config.values import Endpoint, parse_endpoint, parse_hostname
from mailerd.wire.address import parse_mailbox, with_parents

Place = tuple[str | int, ...]  # the way to a key: ("listeners", 0, "bind")
Findings = Iterator[tuple[Place, str]]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)  # no slash: queues are named stream/pool/flow/domain
# What delivery.warmup has tables for; the largest stage that it counts with.
BUILT_IN_PLANS = ("documents", "standard", "conservative")
LARGEST_STAGE = 1_000_000_000
SHORTEST_IDLE = 86_400  # seconds
LONGEST_RETURN_PATH = 220  # characters: an address has 254 at most, and a token with its @ 34
LOCAL_PART = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}", re.ASCII)
TAKEN = ("b-", "u-", "srs0", "srs1")  # what the addresses begin with that we make up (delivery.personal, wire.srs)
SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)

# Durations and sizes with which nothing would work at 0.
POSITIVE = (
    ("resolver", "timeout"),
    ("smtp", "max_size"),
    ("smtp", "command_timeout"),
    ("smtp", "data_timeout"),
    ("smtp", "data_memory"),
    ("delivery", "connect_timeout"),
    ("delivery", "memory_bytes"),
    ("retention", "events"),
    ("retention", "idempotency_keys"),
    ("database", "shared_buffers"),
    ("database", "max_wal_size"),
    ("http", "max_body"),
    ("inbound", "max_size"),
    ("webhooks", "timeout"),
)


def check_names(config: Config) -> Findings:
    for section in ("sources", "pools", "streams", "sinks", "upstreams"):
        for name in getattr(config, section):
            if not NAME.fullmatch(name):
                yield (section, name), "expected a name of a-z, 0-9, - and _, at most 63 characters"


def check_sinks(config: Config) -> Findings:
    for name, sink in config.sinks.items():
        place = ("sinks", name)
        if sink.kind == "jsonl" and sink.directory is None:
            yield place, "expected directory: where its files stand"
        if sink.kind == "jsonl" and (sink.rotate_size <= 0 or sink.rotate_every <= 0):
            yield place, "expected rotate_size and rotate_every above 0"
        if sink.kind == "kafka" and not sink.servers:
            yield place, "expected servers: where to find the brokers"
        if sink.kind == "amqp" and (sink.url is None) == (sink.url_file is None):
            yield place, "expected either url or url_file"
        if sink.kind == "nats" and not sink.servers and sink.url_file is None:
            yield place, "expected servers or url_file"
        if (sink.username is None) != (sink.password_file is None):
            yield place, "expected username and password_file, or neither"
        for index, stream in enumerate(sink.streams):
            if stream not in config.streams:
                yield (*place, "streams", index), f"there is no stream {stream!r}: {_known('streams', config.streams)}"


def check_hostname(config: Config) -> Findings:
    if config.hostname:
        yield from _name_findings(("hostname",), config.hostname)


def check_data_dir(config: Config) -> Findings:
    if not config.data_dir or "\0" in config.data_dir:
        yield ("data_dir",), "expected a directory"


def check_database(config: Config) -> Findings:
    """The URL holds a password: no finding repeats any of it."""
    if config.database.url is None:
        return
    try:
        parts = urlsplit(config.database.url)
        fits = parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1 and (parts.port is None or parts.port)
    except ValueError:
        fits = False
    if not fits:
        yield ("database", "url"), "expected postgresql://user:password@host:port/name, or null for the embedded server"


def check_warmup(config: Config) -> Findings:
    if config.warmup.idle < SHORTEST_IDLE:
        yield ("warmup", "idle"), "expected at least 1d: warm-up goes by whole days"
    for name, plan in config.warmup.plans.items():
        place: Place = ("warmup", "plans", name)
        if name in BUILT_IN_PLANS:
            yield place, "is a built-in plan: give yours another name"
        elif not NAME.fullmatch(name):
            yield place, "expected a name of a-z, 0-9, - and _, at most 63 characters"
        if not plan.stages:
            yield (*place, "stages"), "expected at least one stage"
        for index, (stage, following) in enumerate(pairwise(plan.stages), 1):
            if following <= stage:
                yield (*place, "stages", index), f"stages grow: expected more than {stage}"
        if plan.stages and max(plan.stages) > LARGEST_STAGE:
            yield (*place, "stages"), f"expected at most {LARGEST_STAGE} recipients"


def check_warmups(config: Config) -> Findings:
    plans = (*BUILT_IN_PLANS, *config.warmup.plans)
    for name, source in config.sources.items():
        if source.warmup is not None and source.warmup.plan not in plans:
            place = ("sources", name, "warmup", "plan")
            yield place, f"there is no plan {source.warmup.plan!r}: {_known('plans', plans)}"


def check_sources(config: Config) -> Findings:
    """Limits are kept by source, and receivers see addresses: one of each."""
    names: dict[str, str] = {}
    for name, source in config.sources.items():
        place = ("sources", name, "address")
        if source.address is None:
            continue
        address = ipaddress.ip_address(source.address)
        if address.is_unspecified or address.is_multicast:
            yield place, "expected an address of this host, such as 203.0.113.10, or null: the system chooses"
        elif source.address in names:
            yield place, f"is that of source {names[source.address]!r} already"
        names.setdefault(source.address, name)


def check_source_checks(config: Config) -> Findings:
    if config.source_checks.every < 1:
        yield ("source_checks", "every"), "expected at least 1s"
    zones: set[str] = set()
    for index, block_list in enumerate(config.source_checks.lists):
        if block_list.zone in zones:
            yield ("source_checks", "lists", index, "zone"), f"list {block_list.zone} is here twice"
        zones.add(block_list.zone)


def check_sources_of_pools(config: Config) -> Findings:
    for pool, settings in config.pools.items():
        seen: set[str] = set()
        for index, source in enumerate(settings.sources):
            place = ("pools", pool, "sources", index, "name")
            if source.name not in config.sources:
                yield place, f"there is no source {source.name!r}: {_known('sources', config.sources)}"
            if source.name in seen:
                yield place, f"source {source.name!r} is in this pool twice: give it a weight instead"
            seen.add(source.name)
        if settings.sources and not any(source.weight for source in settings.sources):
            yield ("pools", pool, "sources"), "all weights are 0: at least one source must be used"


def check_streams(config: Config) -> Findings:
    if "transactional" not in config.streams:
        yield ("streams",), "stream transactional must be here: it is what mail without a stream goes by"
    for name, stream in config.streams.items():
        if stream.pool not in config.pools:
            yield ("streams", name, "pool"), f"there is no pool {stream.pool!r}: {_known('pools', config.pools)}"
        if stream.expires <= 0:
            yield ("streams", name, "expires"), "expected longer than 0"
        if name == "transactional" and stream.unsubscribe:
            text = "one click would stop all of it: leave it out; messages that have a topic may ask for it"
            yield ("streams", name, "unsubscribe"), text


def check_listeners(config: Config) -> Findings:
    for index, listener in enumerate(config.listeners):
        for key, message in _listener_findings(listener, has_certificate=config.tls.certificate is not None):
            yield ("listeners", index, key), message


def _listener_findings(listener: Listener, *, has_certificate: bool) -> Iterator[tuple[str, str]]:
    if listener.kind == "inbound":
        if listener.starttls == "required" and not has_certificate:
            yield "starttls", "required needs tls.certificate and tls.key"
        return
    if listener.auth != "required" and not listener.trusted:
        yield "auth", f"{listener.auth} needs networks: name them in `trusted`, such as [127.0.0.0/8]"
    if listener.auth == "required" and listener.trusted:
        yield "trusted", "does nothing with auth: required; expected auth: optional or trusted, or no networks"
    if listener.kind == "submissions" and not has_certificate:
        yield "kind", "submissions needs tls.certificate and tls.key"
    if listener.kind == "submission" and listener.starttls == "required" and not has_certificate:
        yield "starttls", "required needs tls.certificate and tls.key"
    # With auth: trusted there is no AUTH at all; starttls: optional without a certificate is simply not advertised.
    tls_possible = listener.kind == "submissions" or (has_certificate and listener.starttls != "off")
    if listener.auth != "trusted" and not tls_possible and not listener.takes_auth_in_clear:
        yield (
            "auth",
            "passwords would cross the network in clear: expected TLS (tls.certificate and starttls: required), "
            "a loopback bind, or auth_without_tls: true",
        )
    if listener.auth_without_tls and (listener.kind == "submissions" or listener.starttls == "required"):
        yield "auth_without_tls", "does nothing where TLS is always on: leave it out"


def check_given(config: Config, given: Collection[Place]) -> Findings:
    """What stands in the file, as its default may, and does nothing. `given`: the places of all that does."""
    for index, listener in enumerate(config.listeners):
        for key in ("auth", "trusted", "auth_without_tls"):
            if listener.kind == "inbound" and ("listeners", index, key) in given:
                yield ("listeners", index, key), "does nothing here: nobody submits to an inbound listener"


def check_binds(config: Config) -> Findings:
    seen: dict[Endpoint, str] = {}
    for place, bind in _binds(config):
        if not _is_bindable(bind.host):
            yield place, f"{bind.host!r} cannot be listened on: expected an address such as 0.0.0.0, [::] or 127.0.0.1"
        if bind.port and bind in seen:
            yield place, f"{bind} is taken by {seen[bind]}"
        seen.setdefault(bind, f"{place[0]}[{place[1]}]" if place[0] == "listeners" else str(place[0]))


def check_sandbox(config: Config) -> Findings:
    """Its answers are what anybody may send to an inbound listener: they go nowhere else."""
    inbound = config.sandbox.inbound
    if inbound is None:
        return
    listening = [each.bind for each in config.listeners if each.kind == "inbound"]
    if inbound not in listening:
        known = ", ".join(map(str, listening)) or "none"
        yield ("sandbox", "inbound"), f"expected an inbound listener of ours: there is {known}"
    if config.sandbox.bind is None:
        yield ("sandbox", "inbound"), "does nothing without sandbox.bind"


def _binds(config: Config) -> Iterator[tuple[Place, Endpoint]]:
    for index, listener in enumerate(config.listeners):
        yield ("listeners", index, "bind"), listener.bind
    if config.http is not None:
        yield ("http", "bind"), config.http.bind
    if config.sandbox.bind is not None:
        yield ("sandbox", "bind"), config.sandbox.bind


def _is_bindable(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def check_public_url(config: Config) -> Findings:
    if config.http is not None and config.http.public_url is not None:
        yield from _public(("http", "public_url"), config.http.public_url)


def check_tracking_urls(config: Config) -> Findings:
    for name, domain in config.domains.items():
        if domain.tracking_url is not None:
            yield from _public(("domains", name, "tracking_url"), domain.tracking_url)
            if config.http is None:
                yield ("domains", name, "tracking_url"), "nobody answers there: http is null"


def _public(key: tuple[str, ...], url: str) -> Findings:
    """A URL that links in mail begin with."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("https", "http") and parts.hostname and not (parts.query or parts.fragment)
    except ValueError:
        fits = False
    if not fits or not url.isascii() or not url.isprintable():
        yield key, "expected where the world reaches us, such as https://mail.example.com"
    elif parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        yield key, "expected https: links in mail are clicked anywhere (RFC 8058 asks for it)"


def check_inbound(config: Config) -> Findings:
    """Local parts that mean one thing each."""
    inbound = config.inbound
    seen: set[str] = set()
    lists = (("complaints", inbound.complaints), ("dmarc_reports", inbound.dmarc_reports))
    for key, names in (*lists, ("tls_reports", inbound.tls_reports), ("forward", tuple(inbound.forward))):
        for index, name in enumerate(names):
            place = ("inbound", key, name if key == "forward" else index)
            if not LOCAL_PART.fullmatch(name):
                yield place, "expected the part before the @, in lower case, such as fbl"
            elif name.startswith(TAKEN):
                yield place, "expected another name: " + ", ".join(TAKEN) + " begin addresses that we make up"
            elif name in seen:
                yield place, f"{name!r} is here twice"
            seen.add(name)
    for name, address in inbound.forward.items():
        yield from _address_findings(("inbound", "forward", name), address)


def check_return_paths(config: Config) -> Findings:
    """Bounces have to fit an address and come to somebody, and what goes on must not come back here."""
    heard = config.inbound.elsewhere or any(listener.kind == "inbound" for listener in config.listeners)
    ours: set[str] = set()
    for section in ("domains", "tenants"):
        for name, settings in getattr(config, section).items():
            place: Place = (section, name, "return_path")
            if settings.return_path is None:
                continue
            if section == "domains" and settings.return_path == name:
                text = "is the sending domain itself, whose MX would have to be ours"
                yield place, f"{text}: expected one for this alone, such as bounce.{name}"
                continue
            ours.add(settings.return_path)
            if len(settings.return_path) > LONGEST_RETURN_PATH:
                yield place, f"is longer than {LONGEST_RETURN_PATH}: its addresses would be too long for mail"
            if not heard:
                text = "bounces would come to nobody: expected a listener of kind inbound"
                yield place, f"{text}, or inbound.elsewhere: true where another node has it"
    for name, address in config.inbound.forward.items():
        if address.rpartition("@")[2] in ours:
            yield ("inbound", "forward", name), "comes back here: expected an address at another host"


def check_upstreams(config: Config) -> Findings:
    for name, upstream in config.upstreams.items():
        if (upstream.key is None) == (upstream.key_file is None):
            yield ("upstreams", name), "expected either key or key_file: without it anybody could report"
    for index, route in enumerate(config.routes):
        if route.upstream is not None and route.upstream not in config.upstreams:
            known = _known("upstreams", config.upstreams)
            yield ("routes", index, "upstream"), f"there is no upstream {route.upstream!r}: {known}"
        if route.upstream is not None and not route.hosts:
            yield ("routes", index, "upstream"), "needs hosts: those of the service"


def check_tls(config: Config) -> Findings:
    if (config.tls.certificate is None) != (config.tls.key is None):
        missing = "key" if config.tls.key is None else "certificate"
        yield ("tls", missing), "is missing: certificate and key go together"


def check_routes(config: Config) -> Findings:
    for index, route in enumerate(config.routes):
        for place, message in _route_findings(route):
            yield ("routes", index, *place), message
        for key, value, known in (
            ("stream", route.match.stream, config.streams),
            ("pool", route.match.pool, config.pools),
        ):
            if value is not None and value not in known:
                yield ("routes", index, "match", key), f"there is no {key} {value!r}: {_known(key + 's', known)}"


def _route_findings(route: RouteRule) -> Findings:
    for index, host in enumerate(route.hosts):
        if host.port == 0:
            yield ("hosts", index), "expected a port from 1 to 65535"
    if route.tls == "implicit" and not route.hosts:
        yield ("tls",), "implicit needs hosts: an MX speaks no TLS before SMTP"
    if route.auth is None:
        return
    if not route.hosts:
        yield ("auth",), "needs hosts: no password goes to whatever host an MX record names"
    if (route.auth.password is None) == (route.auth.password_file is None):
        yield ("auth",), "expected either password or password_file"
    if route.tls in ("none", "opportunistic") and not all(is_loopback(host.host) for host in route.hosts):
        yield ("auth",), "the password could cross the network in clear: expected tls: verify, required or implicit"


def check_domains(config: Config) -> Findings:
    for domain, settings in config.domains.items():
        yield from _name_findings(("domains", domain), domain)
        selectors: set[str] = set()
        for index, key in enumerate(settings.dkim):
            place = ("domains", domain, "dkim", index, "selector")
            if not SELECTOR.fullmatch(key.selector):
                yield place, f"{key.selector!r}: expected letters, digits, dots and hyphens, such as s2026"
            if key.selector in selectors:
                yield place, f"selector {key.selector!r} is here twice"
            selectors.add(key.selector)


def check_tls_reports(config: Config) -> Findings:
    """Reports without a DKIM signature are thrown away (RFC 8460 section 3)."""
    reports = config.tls_reports
    if reports.contact:
        yield from _address_findings(("tls_reports", "contact"), reports.contact)
    if not reports.organization:
        return
    if not reports.sender:
        yield ("tls_reports", "sender"), "an organization that reports needs a sender"
        return
    faults = list(_address_findings(("tls_reports", "sender"), reports.sender))
    yield from faults
    domain = reports.sender.rpartition("@")[2]
    entry = next((config.domains[name] for name in with_parents(domain) if name in config.domains), None)
    if not faults and (entry is None or not entry.dkim):
        yield ("tls_reports", "sender"), f"reports have to be signed: {domain} needs an entry with dkim under domains"


def check_resolver(config: Config) -> Findings:
    """What `dnssec: require` needs; whether the name servers validate is seen at the start (delivery.resolver)."""
    settings = config.resolver
    if settings.dnssec_probe != ".":
        yield from _name_findings(("resolver", "dnssec_probe"), settings.dnssec_probe)
    if settings.dnssec != "require":
        return
    if not settings.nameservers:
        yield ("resolver", "dnssec"), "require needs validating name servers on this machine: name them in nameservers"
    for n, server in enumerate(settings.nameservers):
        if not is_loopback(parse_endpoint(server).host if server.count(":") == 1 or "]" in server else server):
            yield ("resolver", "nameservers", n), "is not on this machine, as resolver.dnssec: require needs it"


def check_ranges(config: Config) -> Findings:
    for section, key in POSITIVE:
        settings: Any = getattr(config, section)
        if settings is not None and getattr(settings, key) <= 0:
            yield (section, key), "expected more than 0"
    if config.resolver.min_ttl > config.resolver.max_ttl:
        yield ("resolver", "min_ttl"), "is longer than max_ttl"
    for index, wait in enumerate(config.delivery.retry):
        if wait < 1:
            yield ("delivery", "retry", index), "expected at least 1s"


def _name_findings(place: Place, name: str) -> Findings:
    try:
        written = parse_hostname(name)
    except ValueError as error:
        yield place, f"{name!r}: {error}"
        return
    if written != name:
        yield place, f"expected it in lower case and A-labels: {written}"


def _address_findings(place: Place, text: str) -> Findings:
    try:
        mailbox = parse_mailbox(text)
    except ValueError as error:
        yield place, f"expected an address: {error}"
        return
    if mailbox.address != text or not text.isascii():
        yield place, "expected an ASCII address, its domain in lower case and A-labels"


def _known(what: str, names: Iterable[str]) -> str:
    return f"{what} are {', '.join(names)}" if list(names) else f"no {what} are defined"


# Each with the top-level keys it reads: it is left out when one of them could not be read.
CHECKS: tuple[tuple[frozenset[str], Callable[[Config], Findings]], ...] = (
    (frozenset({"sources", "pools", "streams", "sinks", "upstreams"}), check_names),
    (frozenset({"sinks", "streams"}), check_sinks),
    (frozenset({"hostname"}), check_hostname),
    (frozenset({"data_dir"}), check_data_dir),
    (frozenset({"database"}), check_database),
    (frozenset({"warmup"}), check_warmup),
    (frozenset({"sources", "warmup"}), check_warmups),
    (frozenset({"sources"}), check_sources),
    (frozenset({"source_checks"}), check_source_checks),
    (frozenset({"sources", "pools"}), check_sources_of_pools),
    (frozenset({"streams", "pools"}), check_streams),
    (frozenset({"listeners", "tls"}), check_listeners),
    (frozenset({"listeners", "http", "sandbox"}), check_binds),
    (frozenset({"listeners", "sandbox"}), check_sandbox),
    (frozenset({"http"}), check_public_url),
    (frozenset({"domains", "http"}), check_tracking_urls),
    (frozenset({"inbound"}), check_inbound),
    (frozenset({"domains", "tenants", "inbound", "listeners"}), check_return_paths),
    (frozenset({"routes", "upstreams"}), check_upstreams),
    (frozenset({"tls"}), check_tls),
    (frozenset({"resolver"}), check_resolver),
    (frozenset({"routes", "streams", "pools"}), check_routes),
    (frozenset({"domains"}), check_domains),
    (frozenset({"domains", "tls_reports"}), check_tls_reports),
    (frozenset({section for section, _ in POSITIVE}), check_ranges),
)
