import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd import config
from mailerd.config import Config, Duration, Endpoint, Rate, load, parse, values
from mailerd.config.checks import BUILT_IN_PLANS
from mailerd.delivery.warmup import PLANS
from mailerd.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]
REFERENCE = (REPOSITORY / "config/mailerd.yaml").read_text()


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="m.yaml", environ=environ)
    return [str(problem) for problem in caught.value.problems]


def test_an_empty_file_gives_the_defaults() -> None:
    assert parse("") == Config()
    assert parse("# nothing but a comment\n") == Config()


def test_the_reference_file_equals_the_defaults() -> None:
    assert parse(REFERENCE) == Config()


def node_classes(wanted: msgspec.inspect.Type) -> Iterator[type[config.Node]]:
    match wanted:
        case msgspec.inspect.StructType(cls=cls, fields=fields) if issubclass(cls, config.Node):
            yield cls
            for field in fields:
                yield from node_classes(field.type)
        case msgspec.inspect.UnionType(types=types):
            for one in types:
                yield from node_classes(one)
        case msgspec.inspect.DictType(value_type=item) | msgspec.inspect.VarTupleType(item_type=item):
            yield from node_classes(item)


def test_the_reference_file_names_every_key_of_the_tree() -> None:
    for cls in node_classes(msgspec.inspect.type_info(Config)):
        for field in msgspec.structs.fields(cls):
            assert re.search(rf"(^|[\s{{#]){field.name}:\s", REFERENCE), f"{cls}.{field.name}"


def test_the_examples_in_the_reference_file_are_a_valid_configuration(tmp_path: Path) -> None:
    examples = "\n".join(line[1:] for line in REFERENCE.splitlines() if re.match(r"#(?=[^\s#]|  )", line))
    found = parse(examples, environ={"CREDENTIALS_DIRECTORY": "/run/credentials/mailerd.service"})
    assert found.hostname == "mail.example.com"
    assert found.tls.key == "/run/credentials/mailerd.service/tls-key"
    assert [listener.bind.port for listener in found.listeners] == [587, 465, 2525, 25]
    assert found.routes[1].auth is not None
    assert found.routes[1].auth.password_file == "/run/credentials/mailerd.service/relay-password"
    assert found.pools["transactional"].sources[0].weight == 3


def test_the_development_file_sends_everything_to_its_own_sandbox() -> None:
    dev = load(REPOSITORY / "config/dev.yaml", environ={})
    assert dev.routes[0].match.domain == "*"
    assert dev.routes[0].hosts == (dev.sandbox.bind,)
    assert dev.listeners[0].takes_auth_in_clear
    assert dev.data_dir == str(Path.cwd() / "var")
    assert dev.first_key
    assert dev.webhooks.allow_private == ("localhost", "127.0.0.1")


def test_every_problem_is_reported_with_its_line_and_key() -> None:
    text = """\
hostname: "not a name!"
worker: 4
listeners:
  - bind: 127.0.0.1
    startls: off
  - {bind: "0.0.0.0:587", starttls: maybe}
streams:
  transactional:
    expires: 3 days
    pool: fast
delivery: {connections_per_path: 0}
sandbox: [1]
first_key: yes
"""
    assert problems(text) == [
        "m.yaml:1: hostname: 'not a name!': expected a domain name, such as mail.example.com",
        f"m.yaml:2: worker: unknown key (did you mean workers?): allowed are {', '.join(Config.__struct_fields__)}",
        "m.yaml:4: listeners[0].bind: '127.0.0.1': expected host:port, such as 127.0.0.1:2525, [::1]:2525 or "
        "mx.example.com:25",
        "m.yaml:5: listeners[0].startls: unknown key (did you mean starttls?): allowed are bind, kind, starttls, auth, "
        "trusted, auth_without_tls, name",
        "m.yaml:6: listeners[1].starttls: 'maybe': expected off or optional or required",
        "m.yaml:9: streams.transactional.expires: '3 days': expected a duration: a number and ms, s, m, h, d, w or y, "
        "such as 500ms, 20m, 4d; or 0",
        "m.yaml:11: delivery.connections_per_path: '0': expected a whole number from 1 to 1000",
        "m.yaml:12: sandbox: a list does not fit here: expected a mapping (key: value); leave the key out for its "
        "default",
        "m.yaml:13: first_key: 'yes': expected true or false",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # YAML itself
        ("workers: 1\nworkers: 2", "m.yaml:2: workers: is here twice, first in line 1"),
        ("database: {url: null, url: null}", "m.yaml:1: database.url: is here twice, first in line 1"),
        ("a: [1", "m.yaml:1: YAML: "),
        ("a: 1\n---\nb: 2", "m.yaml:2: YAML: expected a single document"),
        ("hostname: \x01", "m.yaml:0: YAML: "),
        ("[" * 5_000, "m.yaml:0: YAML: is nested too deeply"),
        ("just words", "m.yaml:1: file: 'just words': expected a mapping"),
        ("[a, b]: 1", "m.yaml:1: file: a key must be plain text"),
        ("a: &a [*a]\nrouts: *a", "did you mean routes?"),
        ("hostname: !!python/object:os.system x", "m.yaml:1: hostname: 'x': "),
        # Types
        ("workers: 0", "workers: '0': expected a whole number from 1 to 256 or auto"),
        ("workers: '2'", "workers: '2': expected a whole number from 1 to 256 or auto"),
        ("workers: 2.5", "workers: '2.5': expected a whole number"),
        ("tls:", "m.yaml:1: tls: is empty: expected a mapping"),
        ("routes: {}", "routes: a mapping does not fit here: expected a list"),
        ("hostname: [x]", "hostname: a list does not fit here: expected text"),
        ("data_dir: ~", "data_dir: is empty: expected text"),
        ("listeners: [{kind: submission}]", "m.yaml:1: listeners[0].bind: is missing"),
        ("smtp: {max_size: 25MX}", "smtp.max_size: '25MX': expected a size"),
        ("smtp: {auth_failures: 5/year}", "smtp.auth_failures: '5/year': expected a rate"),
        ("sources: {a: {address: 300.1.1.1}}", "sources.a.address: '300.1.1.1': expected an address"),
        ("sources: {a: {warmup: {plans: standard}}}", "sources.a.warmup.plans: unknown key (did you mean plan?)"),
        ("shaping: {files: shaping.yaml}", "shaping.files: 'shaping.yaml': expected a list"),
        ("resolver: {nameservers: [dns.example]}", "resolver.nameservers[0]: 'dns.example': expected an address"),
        # What must fit together
        (
            "pools: {default: {sources: [{name: m}]}}",
            "pools.default.sources[0].name: there is no source 'm': no sources",
        ),
        (
            "sources: {a: {address: 127.0.0.5}, b: {address: 127.0.0.5}}",
            "m.yaml:1: sources.b.address: is that of source 'a' already",
        ),
        ("sources: {a: {address: '::'}}", "sources.a.address: expected an address of this host"),
        ("source_checks: {every: 0}", "m.yaml:1: source_checks.every: expected at least 1s"),
        (
            "source_checks: {lists: [{zone: a.example}, {zone: A.example}]}",
            "source_checks.lists[1].zone: list a.example is here twice",
        ),
        ("streams: {transactional: {pool: x}}", "streams.transactional.pool: there is no pool 'x': pools are default"),
        ("streams: {news: {}}", "m.yaml:1: streams: stream transactional must be here"),
        ("pools: {a: {}}", "m.yaml:1: streams.transactional.pool: there is no pool 'default': pools are a"),
        ("pools: {a/b: {}, default: {}}", "pools.a/b: expected a name of a-z"),
        ("streams: {transactional: {expires: 0}}", "streams.transactional.expires: expected longer than 0"),
        ("listeners: [{bind: '127.0.0.1:1', auth: trusted}]", "listeners[0].auth: trusted needs networks"),
        ("listeners: [{bind: '127.0.0.1:1', auth: optional}]", "listeners[0].auth: optional needs networks"),
        ("listeners: [{bind: '127.0.0.1:1', trusted: [10.0.0.0/8]}]", "listeners[0].trusted: does nothing with auth"),
        (
            "listeners: [{bind: '127.0.0.1:1', auth: trusted, trusted: [10.1.2.3/8]}]",
            "listeners[0].trusted[0]: '10.1.2.3/8': has host bits set: expected 10.0.0.0/8",
        ),
        (
            "listeners: [{bind: '127.0.0.1:1', auth: trusted, trusted: [0.0.0.0/0]}]",
            "is too wide and would make an open relay",
        ),
        ("listeners: [{bind: '127.0.0.1:1', auth: trusted, trusted: ['::/0']}]", "is too wide"),
        ("listeners: [{bind: '0.0.0.0:465', kind: submissions}]", "kind: submissions needs tls.certificate"),
        ("listeners: [{bind: '0.0.0.0:587', starttls: required}]", "starttls: required needs tls.certificate"),
        ("listeners: [{bind: '0.0.0.0:587'}]", "listeners[0].auth: passwords would cross the network in clear"),
        (
            "tls: {certificate: c, key: k}\nlisteners: [{bind: '0.0.0.0:587', starttls: off}]",
            "m.yaml:2: listeners[0].auth: passwords would cross the network in clear",
        ),
        (
            "listeners: [{bind: '0.0.0.0:25', kind: inbound, trusted: [127.0.0.0/8]}]",
            "listeners[0].trusted: does nothing here",
        ),
        (
            "listeners: [{bind: '0.0.0.0:25', kind: inbound, auth: required}]",
            "m.yaml:1: listeners[0].auth: does nothing here",
        ),
        (
            "listeners: [{bind: '0.0.0.0:25', kind: inbound, auth_without_tls: false}]",
            "listeners[0].auth_without_tls: does nothing here",
        ),
        (
            "\ndomains: {a.example: {return_path: b.a.example}}",
            "m.yaml:2: domains.a.example.return_path: bounces would come to nobody: expected a listener of kind",
        ),
        ("tenants: {acme: {return_path: b.example}}", "tenants.acme.return_path: bounces would come to nobody"),
        (
            "domains: {a.example: {return_path: a.example}}\ninbound: {forward: {postmaster: ops@a.example}}",
            "m.yaml:1: domains.a.example.return_path: is the sending domain itself",
        ),
        ("inbound: {complaints: [b-fbl]}", "inbound.complaints[0]: expected another name: b-, u-, srs0, srs1 begin"),
        ("inbound: {forward: {srs0: a@b.example}}", "inbound.forward.srs0: expected another name"),
        ("inbound: {forward: {u-turn: a@b.example}}", "inbound.forward.u-turn: expected another name"),
        ("inbound: {dmarc_reports: [srs1+x]}", "inbound.dmarc_reports[0]: expected another name"),
        (
            "streams: {transactional: {unsubscribe: true}}",
            "streams.transactional.unsubscribe: one click would stop all of it",
        ),
        (
            "webhooks: {allow_private: [10.0.0.0/8]}",
            "webhooks.allow_private[0]: '10.0.0.0/8': expected a domain name or",
        ),
        ("webhooks: {allow_private: ['127.1']}", "webhooks.allow_private[0]: '127.1': expected a domain name or"),
        (
            "sinks: {log: {kind: jsonl, directory: d, streams: [transactional, bulk]}}",
            "m.yaml:1: sinks.log.streams[1]: there is no stream 'bulk': streams are transactional, marketing",
        ),
        ("http: {public_url: 'http://mail.example.com'}", "http.public_url: expected https"),
        ("domains: {a.example: {tracking_url: 'javascript:x'}}", "domains.a.example.tracking_url: expected where"),
        ("http: {public_url: mail.example.com}", "http.public_url: expected where the world reaches us"),
        ("inbound: {complaints: [fbl], dmarc_reports: [fbl]}", "inbound.dmarc_reports[0]: 'fbl' is here twice"),
        ("inbound: {forward: {postmaster: ops}}", "inbound.forward.postmaster: expected an address"),
        (
            "tenants: {acme: {return_path: b.example}}\ninbound: {forward: {abuse: ops@b.example}}",
            "inbound.forward.abuse: comes back here",
        ),
        (
            f"domains: {{a.example: {{return_path: {'b.' * 110}example}}}}",
            "domains.a.example.return_path: is longer than 220",
        ),
        ("routes: [{hosts: ['a:25'], upstream: ses}]", "routes[0].upstream: there is no upstream 'ses'"),
        ("listeners: [{bind: 'mx.example:25'}]", "listeners[0].bind: 'mx.example' cannot be listened on"),
        ("http: {bind: '127.0.0.1:2525'}", "http.bind: 127.0.0.1:2525 is taken by listeners[0]"),
        ("tls: {certificate: c}", "m.yaml:1: tls.key: is missing: certificate and key go together"),
        ("routes: [{hosts: ['mx.example:0']}]", "routes[0].hosts[0]: expected a port from 1 to 65535"),
        ("routes: [{hosts: ['-x:25']}]", "routes[0].hosts[0]: '-x:25': expected a domain name"),
        ("routes: [{tls: implicit}]", "routes[0].tls: implicit needs hosts"),
        ("routes: [{match: {stream: x}}]", "routes[0].match.stream: there is no stream 'x'"),
        ("routes: [{match: {domain: 'a.*'}}]", "routes[0].match.domain: 'a.*': expected a domain"),
        ("routes: [{auth: {username: u, password: p}, tls: verify}]", "routes[0].auth: needs hosts"),
        ("routes: [{hosts: ['s.example:587'], tls: verify, auth: {username: u}}]", "expected either password or"),
        (
            "routes: [{hosts: ['s.example:587'], auth: {username: u, password: p}}]",
            "routes[0].auth: the password could cross the network in clear",
        ),
        ("domains: {Example.COM: {}}", "domains.Example.COM: expected it in lower case and A-labels: example.com"),
        ("domains: {a.example: {dkim: [{selector: 'a b', key_file: f}]}}", "selector: 'a b': expected letters"),
        (
            "tls_reports: {organization: Us}",
            "m.yaml:1: tls_reports.sender: an organization that reports needs a sender",
        ),
        ("tls_reports: {organization: Us, sender: us}", "tls_reports.sender: expected an address"),
        ("tls_reports: {organization: Us, sender: a@B.example}", "tls_reports.sender: expected an ASCII address"),
        (
            "domains: {example.com: {}}\ntls_reports: {organization: Us, sender: tls@example.com}",
            "m.yaml:2: tls_reports.sender: reports have to be signed: example.com needs an entry with dkim",
        ),
        ("tls_reports: {contact: Ann}", "tls_reports.contact: expected an address"),
        ("smtp: {command_timeout: 0}", "smtp.command_timeout: expected more than 0"),
        ("resolver: {min_ttl: 2d}", "resolver.min_ttl: is longer than max_ttl"),
        ("resolver: {dnssec: require}", "resolver.dnssec: require needs validating name servers on this machine"),
        (
            "resolver: {dnssec: require, nameservers: ['[::1]:53', 9.9.9.9]}",
            "resolver.nameservers[1]: is not on this machine",
        ),
        ("resolver: {dnssec_probe: a b}", "resolver.dnssec_probe: 'a b'"),
        ("delivery: {retry: [1m, 0]}", "delivery.retry[1]: expected at least 1s"),
        ("tls: {certificate: credential:c, key: k}", "tls.certificate: 'credential:c': needs $CREDENTIALS_DIRECTORY"),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(text: str, expected: str) -> None:
    found = problems(text)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    "who", ["listeners: [{bind: '0.0.0.0:25', kind: inbound}]", "inbound: {elsewhere: true}\nlisteners: []"]
)
def test_a_return_path_needs_somebody_who_listens_here_or_elsewhere(who: str) -> None:
    found = parse(f"domains: {{a.example: {{return_path: b.a.example}}}}\n{who}")
    assert found.domains["a.example"].return_path == "b.a.example"


def test_a_domain_that_is_its_own_return_path_is_one_slip() -> None:
    text = "domains: {a.example: {return_path: a.example}}\ninbound: {elsewhere: true, forward: {abuse: ops@a.example}}"
    assert len(problems(text)) == 1


def test_private_hosts_are_names_and_addresses() -> None:
    found = parse("webhooks: {allow_private: [LocalHost, 127.0.0.1, '0:0::1', app.internal]}").webhooks.allow_private
    assert found == ("localhost", "127.0.0.1", "::1", "app.internal")


def test_reports_may_be_signed_by_a_parent_domain() -> None:
    text = "domains: {example.com: {dkim: [{selector: s, key_file: f}]}}\n"
    text += "tls_reports: {organization: Us, sender: tls@mail.example.com, contact: ann@example.com}"
    assert parse(text).tls_reports.sender == "tls@mail.example.com"


def test_one_slip_gives_one_problem() -> None:
    assert len(problems("tls: {certificate: {}}\nlisteners: [{bind: '0.0.0.0:587', starttls: required}]")) == 1
    assert len(problems("pools: {default: {sources: 7}}")) == 1


def test_starttls_off_is_the_word_and_not_a_boolean() -> None:
    assert parse("listeners: [{bind: '127.0.0.1:0', starttls: off}]").listeners[0].starttls == "off"


def test_a_password_of_digits_stays_text() -> None:
    text = "routes: [{hosts: ['127.0.0.1:25'], auth: {username: 007, password: 0123}}]"
    auth = parse(text).routes[0].auth
    assert auth is not None
    assert (auth.username, auth.password) == ("007", "0123")


def test_passwords_in_clear_from_other_machines_need_the_operators_word() -> None:
    assert parse("listeners: [{bind: '0.0.0.0:587', auth_without_tls: true}]").listeners[0].takes_auth_in_clear
    assert (
        not parse("tls: {certificate: c, key: k}\nlisteners: [{bind: '0.0.0.0:587'}]").listeners[0].takes_auth_in_clear
    )


def test_anchors_of_yaml_work() -> None:
    text = "streams: {transactional: &s {expires: 2d}, marketing: *s}"
    assert parse(text).streams["marketing"].expires == Duration(2 * 86_400)


def test_a_database_url_is_never_repeated() -> None:
    assert "hunter2" not in "\n".join(problems("database: {url: 'mysql://u:hunter2@h/db'}"))
    assert "hunter2" not in "\n".join(problems("", {"MAILERD_DATABASE_URL": "u:hunter2@h/db"}))


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("hostname: file.example\ndatabase: {url: 'postgresql://file/db', connections: 7}\n")
    (tmp_path / "database-url").write_text("postgresql://credential/db\n")
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    assert load(file, environ={}).database.url == "postgresql://file/db"
    assert load(file, environ=credentials).database.url == "postgresql://credential/db"
    found = load(
        file,
        environ=credentials
        | {
            "MAILERD_DATABASE_URL": "postgresql://env/db",
            "MAILERD_HOSTNAME": "Env.Example",
            "MAILERD_DATA_DIR": "relative",
        },
    )
    assert found.database == config.Database(url="postgresql://env/db", connections=7)
    assert found.hostname == "env.example"
    assert found.data_dir == str(Path.cwd() / "relative")


def test_problems_of_the_environment_name_the_variable() -> None:
    found = problems("", {"MAILERD_HOSTNAME": "a b", "MAILERD_DATABASE_URL": "x"})
    assert [problem.split(": ")[:2] for problem in found] == [
        ["environment:0", "MAILERD_HOSTNAME"],
        ["environment:0", "MAILERD_DATABASE_URL"],
    ]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc/passwd"])
def test_a_credential_is_a_plain_file_name(name: str) -> None:
    found = problems(f"tls: {{certificate: c, key: 'credential:{name}'}}", {"CREDENTIALS_DIRECTORY": "/run/c"})
    assert "expected credential: and a file name" in found[0]


def test_a_file_that_cannot_be_read_is_a_problem_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "absent.yaml", environ={})
    (tmp_path / "latin1.yaml").write_bytes(b"hostname: caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "latin1.yaml", environ={})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("500ms", 0.5),
        ("5s", 5),
        ("20m", 1_200),
        ("1.5h", 5_400),
        ("2w", 1_209_600),
        ("1y", 31_536_000),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "-5s", "5 s", "5S", "1h30m", "101y", "inf", "nan", "1e3s", "٣s", "9" * 40 + "s"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        values.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("0", 0),
        ("64KB", 64_000),
        ("25MB", 25_000_000),
        ("64KiB", 65_536),
        ("1.5MiB", 1_572_864),
        ("2GiB", 2**31),
    ],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1.5", "25mb", "25 MB", "-1", "9999999TiB", "KB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        values.parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10, 1.0)),
        ("100/min", Rate(100, 60.0)),
        ("20/10min", Rate(20, 600.0)),
        ("5000/d", Rate(5000, 86_400.0)),
    ],
)
def test_rates_are_a_count_in_a_period(text: str, rate: Rate) -> None:
    assert values.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "10", "0/s", "10/0s", "1.5/s", "10/m", "10/"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        values.parse_rate(text)


@pytest.mark.parametrize("text", ["6/min", "100/h", "20/10min", "5000/d", "3/90s"])
def test_a_rate_is_told_as_it_is_written(text: str) -> None:
    assert str(values.parse_rate(text)) == text


@pytest.mark.parametrize("text", ["10MB/s", "1GB/10min", "3MiB/h", "500 bytes/s"])
def test_a_rate_of_bytes_is_told_as_it_is_written(text: str) -> None:
    assert str(values.parse_byte_rate(text.replace(" bytes", ""))) == text


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:2525", Endpoint("127.0.0.1", 2525)),
        ("[::1]:0", Endpoint("::1", 0)),
        ("MX.Example.com:25", Endpoint("mx.example.com", 25)),
        ("bücher.example:25", Endpoint("xn--bcher-kva.example", 25)),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(text: str, endpoint: Endpoint) -> None:
    assert values.parse_endpoint(text) == endpoint
    assert values.parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text", ["", ":25", "a", "::1:25", "[127.0.0.1]:25", "a:65536", "a:-1", "a:b", "1.2.3:25", "a b:25", "a..b:25"]
)
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        values.parse_endpoint(text)


@given(st.text(max_size=40))
def test_no_text_makes_a_parser_fail_in_another_way(text: str) -> None:
    for parser in values.PARSERS.values():
        with contextlib.suppress(ValueError):
            assert parser(text) is not None


KEYS = st.sampled_from([*Config.__struct_fields__, "bind", "name", "url", "x"]) | st.text(max_size=5)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(TREES.map(lambda tree: msgspec.json.encode(tree).decode()) | st.text())  # JSON is YAML
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text), Config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "sources: {a: {warmup: {plan: fast}}}\nwarmup: {plans: {ours: {stages: [1]}}}",
            "sources.a.warmup.plan: there is no plan 'fast': plans are documents, standard, conservative, ours",
        ),
        ("warmup: {plans: {standard: {stages: [1]}}}", "warmup.plans.standard: is a built-in plan"),
        ("warmup: {plans: {a b: {stages: [1]}}}", "warmup.plans.a b: expected a name of a-z"),
        ("warmup: {plans: {ours: {stages: []}}}", "warmup.plans.ours.stages: expected at least one stage"),
        ("warmup: {plans: {ours: {stages: [5, 5]}}}", "warmup.plans.ours.stages[1]: stages grow: expected more than 5"),
        ("warmup: {plans: {ours: {stages: [2000000000]}}}", "ours.stages: expected at most 1000000000 recipients"),
        ("warmup: {plans: {ours: {stages: [0]}}}", "warmup.plans.ours.stages[0]: '0': expected a whole number"),
        ("warmup: {idle: 23h}", "warmup.idle: expected at least 1d"),
    ],
)
def test_a_warm_up_that_cannot_be_followed_is_refused(text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(text)), problems(text)


def test_a_source_may_warm_up_by_a_built_in_plan_or_one_of_its_own() -> None:
    config = parse("sources: {a: {warmup: {}}, b: {warmup: {plan: ours}}}\nwarmup: {plans: {ours: {stages: [1, 2]}}}")

    assert [source.warmup.plan for source in config.sources.values() if source.warmup] == ["standard", "ours"]
    assert tuple(PLANS) == BUILT_IN_PLANS
