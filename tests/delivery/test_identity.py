import asyncio
import os
from datetime import date
from pathlib import Path

import dns.message
import dns.rcode
import dns.rrset
import pytest
import yaml

from mailerd.config import Config, DkimKey, FilePath, NameServer, SendingDomain
from mailerd.config import Resolver as ResolverSettings
from mailerd.delivery.identity import (
    Identity,
    Published,
    check,
    compare,
    generate,
    key_path,
    rotate,
    zone_record,
)
from mailerd.delivery.resolver import Resolver
from mailerd.errors import ConfigError
from mailerd.wire.dkim import dns_record, load_key, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")
    return {kind: generate(directory / f"{kind}.pem", kind) for kind in ("rsa", "ed25519")} | {"path": directory}


def config(data_dir: Path, **domains: SendingDomain) -> Config:
    names = {name.replace("_", "."): settings for name, settings in domains.items()}
    return Config(data_dir=str(data_dir), domains=names)


def with_keys(*entries: tuple[str, str]) -> SendingDomain:
    dkim = tuple(DkimKey(selector=selector, key_file=FilePath(path)) for selector, path in entries)
    return SendingDomain(dkim=dkim)


def selectors(identity: Identity, author: str, sender: str = "") -> list[tuple[str, str]]:
    header = f"Subject: x\r\nFrom: {author}\r\n".encode()
    return [(key.domain, key.selector) for key in identity.signing_keys(header, sender)]


def test_the_author_domain_decides_then_its_parents_then_the_envelope_sender(keys):
    identity = Identity(
        config(
            keys["path"],
            example_com=with_keys(("s1", "rsa.pem"), ("e1", str(keys["path"] / "ed25519.pem"))),
            news_example_com=with_keys(("n1", "rsa.pem")),
            unsigned_example_com=with_keys(),
        )
    )
    both = [("example.com", "s1"), ("example.com", "e1")]
    assert selectors(identity, "Ann <ann@EXAMPLE.com>") == both
    assert selectors(identity, "ann@a.b.example.com") == both
    assert selectors(identity, "ann@news.example.com", "bounce@example.com") == [("news.example.com", "n1")]
    assert selectors(identity, "ann@deep.news.example.com") == [("news.example.com", "n1")]
    assert selectors(identity, "ann@unsigned.example.com", "bounce@example.com") == []
    assert selectors(identity, "ann@other.example", "bounce@Example.com") == both
    assert selectors(identity, "ann@notexample.com", "x@com") == []
    assert selectors(identity, "", "") == []


def test_settings_are_found_the_same_way(keys):
    settings = with_keys()
    identity = Identity(config(keys["path"], example_com=settings))
    assert identity.sending_domain("www.example.com") is settings
    assert identity.sending_domain("example.net") is None


def test_domains_in_their_own_script_are_those_of_their_a_labels(keys):
    identity = Identity(config(keys["path"], bücher_example=with_keys(("s1", "rsa.pem"))))
    assert selectors(identity, "ann@xn--bcher-kva.example") == [("xn--bcher-kva.example", "s1")]
    assert selectors(identity, "ann@bücher.example") == [("xn--bcher-kva.example", "s1")]


def test_all_bad_keys_are_named_at_once(keys):
    (keys["path"] / "junk.pem").write_text("junk")
    settings = with_keys(("s1", "absent.pem"), ("s2", "junk.pem"), ("bad selector", "rsa.pem"), ("s4", "rsa.pem"))
    with pytest.raises(ConfigError) as raised:
        Identity(config(keys["path"], example_com=settings, **{"no domain": with_keys()}))
    assert [(problem.file, problem.key) for problem in raised.value.problems] == [
        (str(keys["path"] / "absent.pem"), "domains.example.com.dkim[0].key_file"),
        (str(keys["path"] / "junk.pem"), "domains.example.com.dkim[1].key_file"),
        ("", "domains.example.com.dkim[2].selector"),
        ("", "domains.no domain"),
    ]
    assert "No such file" in str(raised.value)
    assert "not a private key in PEM form" in str(raised.value)


def test_a_generated_key_is_private_and_never_overwritten(tmp_path):
    path = tmp_path / "new" / "key.pem"
    key = generate(path, "ed25519")
    written = path.read_bytes()

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert dns_record(load_key(written)) == dns_record(key)
    with pytest.raises(FileExistsError):
        generate(path, "ed25519")
    assert path.read_bytes() == written


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_made_by_root_a_key_and_its_directories_belong_to_whom_the_data_directory_belongs(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    generate(tmp_path / "dkim" / "example.com" / "key.pem", "ed25519")
    made = [tmp_path / "dkim", tmp_path / "dkim/example.com", tmp_path / "dkim/example.com/key.pem"]
    assert [path.stat().st_uid for path in made] == [12345] * 3


def test_a_zone_record_is_read_by_a_name_server_as_the_text_it_stands_for(keys):
    line = zone_record("example.com", "s1", keys["rsa"])
    name, ttl, kind, record_type, data = line.split(" ", 4)
    rrset = dns.rrset.from_text(name, int(ttl), kind, record_type, data.strip("() "))
    assert name == "s1._domainkey.example.com."
    assert b"".join(rrset[0].strings).decode() == dns_record(keys["rsa"])
    assert len(rrset[0].strings[0]) == 255


def test_rotation_makes_a_key_beside_the_old_ones(tmp_path):
    generate(tmp_path / "old key.pem", "ed25519")
    before = config(tmp_path, example_com=with_keys(("s1", "old key.pem")))
    rotation = rotate(before, "example.com", date(2026, 11, 22), "ed25519")

    assert rotation.selector == "s20261122"
    assert rotation.key_file == tmp_path / "dkim/example.com/s20261122.pem"
    assert rotation.record == zone_record("example.com", "s20261122", load_key(rotation.key_file.read_bytes()))
    lines = yaml.safe_load(rotation.configuration)
    assert lines == {
        "domains": {
            "example.com": {
                "dkim": [
                    {"selector": "s20261122", "key_file": "dkim/example.com/s20261122.pem"},
                    {"selector": "s1", "key_file": "old key.pem"},
                ],
            }
        }
    }

    entries = [(entry["selector"], entry["key_file"]) for entry in lines["domains"]["example.com"]["dkim"]]
    identity = Identity(config(tmp_path, example_com=with_keys(*entries)))
    both = identity.signing_keys(b"From: ann@example.com\r\n", "")
    assert sign(b"From: ann@example.com\r\n\r\n", both, now=1).count(b"DKIM-Signature:") == 2


def test_a_taken_selector_gets_a_number(tmp_path):
    before = config(tmp_path, example_com=with_keys(("s20261122", "elsewhere.pem")))
    made = [rotate(before, "example.com", date(2026, 11, 22), "ed25519").selector for _ in range(2)]
    assert made == ["s20261122-2", "s20261122-3"]


def test_only_a_configured_domain_is_rotated(tmp_path):
    with pytest.raises(KeyError):
        rotate(config(tmp_path), "example.com", date(2026, 11, 22))
    assert list(tmp_path.iterdir()) == []


def test_key_files_are_relative_to_the_data_directory(tmp_path):
    assert key_path(tmp_path, DkimKey(selector="s", key_file=FilePath("a/b"))) == tmp_path / "a/b"
    assert key_path(tmp_path, DkimKey(selector="s", key_file=FilePath("/a/b"))) == Path("/a/b")


@pytest.mark.parametrize(
    ("change", "state", "text"),
    [
        (lambda record: record, Published.OK, "as it should be"),
        (lambda record: record.replace("v=DKIM1; ", ""), Published.OK, "as it should be"),
        (lambda record: record.replace("k=rsa; ", ""), Published.OK, "as it should be"),
        (lambda record: record.replace("p=MIIB", "p= MI IB\t") + " ;", Published.OK, "as it should be"),
        (lambda record: record + "; t=y:s; n=note", Published.OK, "t=y"),
        (lambda record: record + "; h=sha1:sha256; s=email", Published.OK, "as it should be"),
        (lambda record: record.replace("k=rsa", "k=ed25519"), Published.DIFFERS, "k=ed25519"),
        (lambda record: record.replace("p=MIIB", "p=MIIC"), Published.DIFFERS, "another key"),
        (lambda record: "v=DKIM1; p=", Published.DIFFERS, "revokes"),
        (lambda record: record + "; h=sha1", Published.DIFFERS, "sha256"),
        (lambda record: record + "; s=tlsrpt", Published.DIFFERS, "email"),
        (lambda record: record[:-9], Published.SYNTAX, "base64"),
        (lambda record: record.replace("p=", 'p="'), Published.SYNTAX, "base64"),
        (lambda record: "v=DKIM1; k=rsa", Published.SYNTAX, "no p="),
        (lambda record: "v=spf1 -all", Published.SYNTAX, "v=DKIM1"),
        (lambda record: "", Published.SYNTAX, "tag"),
        (lambda record: record + "; p=AAAA", Published.SYNTAX, "twice"),
        (lambda record: record.replace("DKIM1", "DKIM2"), Published.SYNTAX, "v=DKIM1"),
        (lambda record: record.removeprefix("v=DKIM1; ") + "; v=DKIM1", Published.SYNTAX, "v=DKIM1"),
    ],
)
def test_a_published_text_is_judged(keys, change, state, text):
    found, words = compare(change(dns_record(keys["rsa"])), keys["rsa"])
    assert found == state, words
    assert text in words


class TxtServer(asyncio.DatagramProtocol):
    """A name server on UDP that knows TXT records, and says SERVFAIL for names with `broken` in them."""

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name
        response = dns.message.make_response(query)
        texts = self.records.get(name.to_text(omit_final_dot=True))
        if "broken" in name.to_text():
            response.set_rcode(dns.rcode.SERVFAIL)
        elif texts is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif texts:
            quoted = [" ".join(f'"{text[at : at + 100]}"' for at in range(0, len(text), 100)) for text in texts]
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *quoted))
        self.transport.sendto(response.to_wire(), peer)


@pytest.fixture
async def name_server():
    records: dict[str, list[str]] = {}
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: TxtServer(records), local_addr=("127.0.0.1", 0))
    address = "{}:{}".format(*transport.get_extra_info("sockname"))
    yield records, Resolver(ResolverSettings(nameservers=(NameServer(address),)))
    transport.close()


async def test_a_key_is_checked_against_what_dns_answers(keys, name_server):
    records, resolver = name_server
    right, other = dns_record(keys["rsa"]), dns_record(keys["ed25519"])
    records["s1._domainkey.example.com"] = [right]
    records["s2._domainkey.example.com"] = [other]
    records["s3._domainkey.example.com"] = [right, "v=spf1 -all"]
    records["s4._domainkey.example.com"] = []
    records["s5._domainkey.example.com"] = ["hello"]

    async def state(selector: str) -> Published:
        return (await check("example.com", selector, keys["rsa"], resolver)).state

    assert await state("s1") == Published.OK
    assert await state("s2") == Published.DIFFERS
    assert await state("s3") == Published.SEVERAL
    assert await state("s4") == Published.MISSING
    assert await state("s5") == Published.SYNTAX
    assert await state("absent") == Published.MISSING
    assert await state("broken") == Published.UNKNOWN


async def test_a_check_tells_the_name_and_what_was_found(keys, name_server):
    records, resolver = name_server
    records["s1._domainkey.example.com"] = [dns_record(keys["ed25519"])]
    result = await check("example.com", "s1", keys["rsa"], resolver)
    assert result.name == "s1._domainkey.example.com"
    assert result.found == (dns_record(keys["ed25519"]),)
    assert "k=ed25519" in result.text


async def test_a_check_without_an_answer_says_why_in_words(keys, name_server):
    _, resolver = name_server
    result = await check("example.com", "broken", keys["rsa"], resolver)
    server = resolver.nameservers[0]
    name = "broken._domainkey.example.com"
    assert result.text == f"TXT lookup of {name} failed: {server} answered SERVFAIL; try again"
