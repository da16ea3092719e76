"""The tree of the configuration: every key, its type and its default; `config/mailerd.yaml` explains each.

A key that nothing reads does not belong here: the reader refuses what the tree does not have.
"""

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from mailerd.config.values import (
    Date,
    DomainPattern,
    Duration,
    Endpoint,
    FilePath,
    Host,
    Hostname,
    IpAddress,
    NameServer,
    Network,
    Percent,
    Rate,
    Size,
)


class Node(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every mapping of the file: frozen, unknown keys refused."""


class Database(Node, frozen=True):
    url: str | None = None  # null: the embedded server under data_dir; else postgresql://user:password@host:port/name
    connections: Annotated[int, Meta(ge=2, le=64)] = 4  # of each worker
    reports_url: str | None = None  # a replica that reports read; null: the database itself
    shared_buffers: Size = Size(32 * 1024**2)  # of the embedded server
    max_wal_size: Size = Size(2 * 1024**3)  # of the embedded server


class Listener(Node, frozen=True):
    bind: Endpoint
    kind: Literal["submission", "submissions", "inbound"] = "submission"
    starttls: Literal["off", "optional", "required"] = "optional"
    auth: Literal["required", "optional", "trusted"] = "required"  # nothing of it is for inbound
    trusted: tuple[Network, ...] = ()  # networks that may submit without AUTH, when auth is trusted or optional
    auth_without_tls: bool = False  # take passwords in clear from other machines too
    name: str = ""  # the FileDescriptorName of a systemd socket unit, when the socket is handed over

    @property
    def takes_auth_in_clear(self) -> bool:
        """Whether AUTH may be offered before TLS: on loopback (nobody listens in) or when the operator says so."""
        return self.auth_without_tls or is_loopback(self.bind.host)


class Http(Node, frozen=True):
    bind: Endpoint = Endpoint("127.0.0.1", 8025)
    max_body: Size = Size(40_000_000)  # of one request
    public_url: str | None = None  # where the world reaches it, such as https://mail.example.com: for links in mail


class Tls(Node, frozen=True):
    certificate: FilePath | None = None  # PEM files; a chain, our own first
    key: FilePath | None = None
    minimum: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"  # of what we serve


class Resolver(Node, frozen=True):
    nameservers: tuple[NameServer, ...] = ()  # `9.9.9.9`, `127.0.0.1:5353`; empty: those of /etc/resolv.conf
    timeout: Duration = Duration(5)  # of one lookup, all name servers and tries together
    cache: Annotated[int, Meta(ge=100)] = 50_000  # answers
    min_ttl: Duration = Duration(5)
    max_ttl: Duration = Duration(86_400)
    # Whether "authenticated data" of the name servers is believed (DANE): auto, if all are named here, are on loopback
    # and prove to validate; require: the start fails where they do not, and what is not proved later is no answer; off.
    dnssec: Literal["auto", "require", "off"] = "auto"
    dnssec_probe: str = "."  # a signed name, by whose SOA a name server shows that it validates


class WarmUpOf(Node, frozen=True):
    """The warm-up of one source."""

    plan: str = "standard"
    started: Date | None = None  # null: the day of its first mail
    overflow: Literal["sources", "wait"] = "sources"  # to warm sources of the pool, or wait for the next window


class Source(Node, frozen=True):
    address: IpAddress | None = None  # null: the system chooses
    ehlo: Hostname | None = None  # null: hostname
    warmup: WarmUpOf | None = None  # null: warm


class WarmUpPlan(Node, frozen=True, kw_only=True):
    """How many recipients a source may mail at one provider, stage by stage; a stage lasts at least one sending day."""

    per: Literal["hour", "day"] = "day"
    stages: tuple[Annotated[int, Meta(ge=1)], ...]


class WarmUp(Node, frozen=True):
    """When a source goes on, stays or goes back in its plan; shares are of a day's recipients, in percent."""

    plans: dict[str, WarmUpPlan] = {}  # beside the built-in ones: documents, standard, conservative
    advance: Annotated[int, Meta(ge=1, le=100)] = 90  # of the stage delivered that day: the next stage
    deferred: Annotated[int, Meta(ge=1, le=100)] = 10  # above: hold; above twice of it: one stage back
    bounced: Annotated[int, Meta(ge=1, le=100)] = 5
    complained: Percent = Percent(0.3)
    idle: Duration = Duration(30 * 86_400)  # without mail: start again


class BlockList(Node, frozen=True):
    """A DNS block list (RFC 5782)."""

    zone: Hostname
    listed: tuple[Network, ...] = (Network("127.0.0.0/8"),)  # answers that mean "listed"
    refused: tuple[Network, ...] = (Network("127.255.255.0/24"),)  # answers that mean "your resolver is refused"


class SourceChecks(Node, frozen=True):
    """What is looked after for each source with a public address. act: a source that fails leaves its pools."""

    every: Duration = Duration(600)
    ptr: Literal["act", "warn", "off"] = "act"  # the address has a name that leads back to it
    ehlo: Literal["act", "warn", "off"] = "act"  # the EHLO name leads to the address
    spf: Literal["act", "warn", "off"] = "warn"  # the domains we send as name the address in SPF
    block_lists: Literal["act", "warn", "off"] = "act"
    lists: tuple[BlockList, ...] = ()


class PoolSource(Node, frozen=True):
    name: str
    weight: Annotated[int, Meta(ge=0, le=1000)] = 1


class Pool(Node, frozen=True):
    sources: tuple[PoolSource, ...] = ()


class RouteMatch(Node, frozen=True):
    domain: DomainPattern | None = None  # `example.com`, `*.example.com` (not example.com itself), `*`; null: any
    sender: DomainPattern | None = None  # the sender's domain, in the same form
    stream: str | None = None
    pool: str | None = None


class RouteAuth(Node, frozen=True):
    username: str
    password: str | None = None
    password_file: FilePath | None = None


class RouteRule(Node, frozen=True):
    match: RouteMatch = RouteMatch()
    hosts: tuple[Endpoint, ...] = ()  # empty: direct to MX
    tls: Literal["none", "opportunistic", "required", "verify", "implicit"] = "opportunistic"
    tls_minimum: Literal["TLSv1.2", "TLSv1.3"] | None = None  # null: delivery.tls_minimum
    auth: RouteAuth | None = None
    upstream: str | None = None  # whose events about this mail come back by HTTP (upstreams)


class Stream(Node, frozen=True):
    pool: str = "default"
    expires: Duration = Duration(4 * 86_400)
    delay_notice: Duration = Duration(4 * 3_600)  # a delay report to the sender after this long; 0: never
    precedence: Annotated[int, Meta(ge=0, le=9)] | None = None  # lower goes first; null: transactional 0, others 1
    unsubscribe: bool | None = None  # List-Unsubscribe fields of ours; null: marketing has them, others on demand
    forward_bounces: bool | None = None  # what comes back late goes on to the sender; null: all but marketing


class DkimKey(Node, frozen=True):
    selector: str
    key_file: FilePath


class SendingDomain(Node, frozen=True):
    dkim: tuple[DkimKey, ...] = ()
    return_path: Hostname | None = None  # bounces come back to addresses of this domain; null: that of the tenant
    tracking_url: str | None = None  # where opens and clicks of its mail are counted; null: http.public_url


class Tenant(Node, frozen=True):
    return_path: Hostname | None = None  # for sending domains that name none; null: the sender's own address stays
    name: str = ""  # who writes, for the pages that readers see
    postal_address: str = ""  # of campaigns that say none: they must have one (CAN-SPAM)
    consent: Literal["implied", "required"] = "implied"  # required: campaigns reach only who has a record of consent


class Inbound(Node, frozen=True):
    """What `inbound` listeners take besides bounces, at the hostname and every return-path domain; by local part."""

    complaints: tuple[str, ...] = ("fbl",)  # addresses registered at feedback loops
    dmarc_reports: tuple[str, ...] = ("dmarc",)  # the rua of DMARC records
    tls_reports: tuple[str, ...] = ("tlsrpt",)  # the rua of TLSRPT records
    forward: dict[str, str] = {}  # postmaster: ops@example.com
    elsewhere: bool = False  # none of our listeners need be inbound: another node's takes what comes back
    max_size: Size = Size(10_000_000)


class Suppression(Node, frozen=True):
    """When an address is not mailed any more; that of a tenant never binds another one."""

    scope: Literal["tenant", "global"] = "tenant"  # of what bounces and complaints lead to
    soft_bounces: Annotated[int, Meta(ge=1, le=100)] = 3  # so many, with no delivery between them,
    soft_span: Duration = Duration(86_400)  # over so long at least
    soft_memory: Duration = Duration(30 * 86_400)  # without another one: forgotten


class Webhooks(Node, frozen=True):
    """How applications are told."""

    # Hosts of endpoints that may have loopback and private addresses. They may be posted to without TLS: `host` at 80,
    # 443 and from 1024 on, `host:port` at that port.
    allow_private: tuple[Host, ...] = ()
    timeout: Duration = Duration(15)
    connections: Annotated[int, Meta(ge=1, le=100)] = 4  # at once, to one endpoint
    log: Duration = Duration(7 * 86_400)  # how long deliveries are remembered


class Sink(Node, frozen=True):
    """Where events are written to, all of them or those named."""

    kind: Literal["jsonl", "kafka", "amqp", "nats"]
    events: tuple[str, ...] = ()  # email.bounced, email.*; empty: all
    streams: tuple[str, ...] = ()
    directory: FilePath | None = None  # jsonl
    rotate_size: Size = Size(100_000_000)  # jsonl; before compression
    rotate_every: Duration = Duration(86_400)  # jsonl
    keep: Duration = Duration(90 * 86_400)  # jsonl; 0: for ever
    servers: tuple[Endpoint, ...] = ()  # kafka, nats
    url: str | None = None  # amqp
    url_file: FilePath | None = None  # amqp, nats: with its password
    topic: str = "mailerd.events"  # kafka: topic; amqp: exchange; nats: subject, the event's type is appended
    tls: bool = False  # kafka, nats
    username: str | None = None
    password_file: FilePath | None = None


class Upstream(Node, frozen=True):
    """A service that relays mail for us and reports by HTTP to /api/v1/upstreams/NAME/events."""

    kind: Literal["ses", "sendgrid", "mailgun", "postmark"]
    # ses: the ARN of the topic; sendgrid: its public key; mailgun: the signing key; postmark: user:password
    key: str | None = None
    key_file: FilePath | None = None


class Campaigns(Node, frozen=True):
    """Campaigns, and the tracking of what their readers do."""

    pace: Rate = Rate(10_000, 60.0)  # of one campaign that says nothing else
    batch: Annotated[int, Meta(ge=1, le=1_000)] = 200  # recipients handed over at a time
    in_doubt: Literal["give_up", "retry"] = "give_up"  # a recipient who may have the mail already, after a crash
    late_start: Duration = Duration(86_400)  # so late a scheduled campaign still begins; later it fails
    max_import: Size = Size(2_000_000_000)  # of one file of contacts
    scanners: tuple[Network, ...] = ()  # networks whose clicks are those of machines


class Smtp(Node, frozen=True):
    """Limits of what our listeners take."""

    max_size: Size = Size(50_000_000)
    max_recipients: Annotated[int, Meta(ge=1, le=100_000)] = 1_000  # of one transaction
    max_connections: Annotated[int, Meta(ge=1)] = 20_000  # of each worker
    max_connections_per_ip: Annotated[int, Meta(ge=1)] = 20_000  # of each worker
    max_errors: Annotated[int, Meta(ge=1)] = 20  # of one connection
    max_auth_failures: Annotated[int, Meta(ge=1)] = 5  # of one connection
    auth_failures: Rate = Rate(20, 600.0)  # of one address or user name, then refused for the rest of the period
    command_timeout: Duration = Duration(300)
    data_timeout: Duration = Duration(600)  # of one whole message
    data_memory: Size = Size(256_000_000)  # of each worker: messages being received, all connections together
    long_lines: Literal["refuse", "accept"] = "accept"  # content lines over 998 bytes (RFC 5322 2.1.1)


class Delivery(Node, frozen=True):
    port: Annotated[int, Meta(ge=1, le=65_535)] = 25
    connections_per_path: Annotated[int, Meta(ge=1, le=1000)] = 20  # all workers together
    messages_per_connection: Annotated[int, Meta(ge=1)] = 1_000
    recipients_per_transaction: Annotated[int, Meta(ge=1, le=1000)] = 100
    idle: Duration = Duration(5)  # how long an idle connection is kept
    connect_timeout: Duration = Duration(30)
    max_hosts: Annotated[int, Meta(ge=1)] = 8  # addresses tried in one attempt
    memory_messages: Annotated[int, Meta(ge=10)] = 4_000  # of each worker: accepted or claimed, waiting in memory
    memory_bytes: Size = Size(48_000_000)
    retry: tuple[Duration, ...] = ()  # waits between attempts; empty: by verdict class (queue.retry)
    mta_sts: bool = True  # follow the policies of RFC 8461
    dane: bool = True  # follow TLSA records (RFC 7672) where resolver.dnssec can be relied on
    tls_minimum: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"
    control: bool = True  # learn each path's connections and rate from its replies (delivery.control)
    allow_private: bool = False  # connect to loopback, private and link-local addresses that an MX lookup returned


class Shaping(Node, frozen=True):
    files: tuple[FilePath, ...] = (FilePath("builtin"),)  # later ones win; builtin: config/shaping.yaml as shipped


class Verdicts(Node, frozen=True):
    files: tuple[FilePath, ...] = (FilePath("builtin"),)  # later ones win; builtin: config/verdicts.yaml as shipped


class TlsReports(Node, frozen=True):
    """Daily reports about TLS to the domains that ask for them (RFC 8460)."""

    organization: str = ""  # empty: no reports
    contact: str = ""  # an address for questions, in the report
    sender: str = ""  # the From of mailed reports; its domain has to be one that we sign for


class Log(Node, frozen=True):
    format: Literal["json", "console", "auto"] = "auto"  # auto: console on a terminal
    level: Literal["debug", "info", "warning", "error"] = "info"


class Retention(Node, frozen=True):
    events: Duration = Duration(365 * 86_400)
    bodies: Duration = Duration(0)  # of finished messages
    idempotency_keys: Duration = Duration(86_400)


class Sandbox(Node, frozen=True):
    """The built-in sink: a mail exchanger whose replies follow the address, for trying things out."""

    bind: Endpoint | None = None  # null: off
    keep: Annotated[int, Meta(ge=1, le=100_000)] = 1_000  # messages
    inbound: Endpoint | None = None  # the listener of ours to which its bounces and complaints go; null: it has none


class Config(Node, frozen=True):
    hostname: str = ""  # empty: the machine's fully qualified name
    data_dir: str = "/var/lib/mailerd"
    database: Database = Database()
    workers: Annotated[int, Meta(ge=1, le=256)] | Literal["auto"] = "auto"
    listeners: tuple[Listener, ...] = (
        Listener(
            bind=Endpoint("127.0.0.1", 2525),
            starttls="off",
            auth="trusted",
            trusted=(Network("127.0.0.0/8"), Network("::1/128")),
        ),
    )
    http: Http | None = Http()
    tls: Tls = Tls()
    resolver: Resolver = Resolver()
    sources: dict[str, Source] = {}
    source_checks: SourceChecks = SourceChecks()
    warmup: WarmUp = WarmUp()
    pools: dict[str, Pool] = field(default_factory=lambda: {"default": Pool()})
    routes: tuple[RouteRule, ...] = ()
    streams: dict[str, Stream] = field(
        default_factory=lambda: {"transactional": Stream(expires=Duration(86_400)), "marketing": Stream()}
    )
    domains: dict[str, SendingDomain] = {}
    tenants: dict[str, Tenant] = {}
    inbound: Inbound = Inbound()
    suppression: Suppression = Suppression()
    webhooks: Webhooks = Webhooks()
    sinks: dict[str, Sink] = {}
    upstreams: dict[str, Upstream] = {}
    campaigns: Campaigns = Campaigns()
    smtp: Smtp = Smtp()
    delivery: Delivery = Delivery()
    shaping: Shaping = Shaping()
    verdicts: Verdicts = Verdicts()
    tls_reports: TlsReports = TlsReports()
    retention: Retention = Retention()
    sandbox: Sandbox = Sandbox()
    log: Log = Log()
    first_key: bool = False  # on the first start make an API key, print it once and keep it in data_dir/api-key


def precedence(streams: Mapping[str, Stream], name: str) -> int:
    """Which mail goes first on every path: lower before higher."""
    stream = streams.get(name)
    if stream is not None and stream.precedence is not None:
        return stream.precedence
    return 0 if name == "transactional" else 1


def unsubscribes(streams: Mapping[str, Stream], name: str) -> bool:
    """Does mail of this stream go out with List-Unsubscribe fields of ours, if it does not say?"""
    stream = streams.get(name)
    return stream.unsubscribe if stream is not None and stream.unsubscribe is not None else name == "marketing"


def forwards_bounces(streams: Mapping[str, Stream], name: str) -> bool:
    """Does what comes back late about mail of this stream go on to its sender?"""
    stream = streams.get(name)
    return stream.forward_bounces if stream is not None and stream.forward_bounces is not None else name != "marketing"


def is_loopback(host: str) -> bool:
    """Whether `host` (an address or a name) is this machine and no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
