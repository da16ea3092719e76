"""As whom we send: the domains of the configuration, their DKIM keys, and the care of those keys.

`Identity` answers the hot path from memory. The functions below it are what `mailerd dkim generate|rotate|check` does.
"""

import os
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path

from mailerd.config import Config, DkimKey, FilePath, SendingDomain
from mailerd.delivery.resolver import Failed, NoData, NoDomain, Resolver
from mailerd.errors import ConfigError, ConfigProblem
from mailerd.wire.address import domain_to_ascii, with_parents
from mailerd.wire.dkim import KeyKind, PrivateKey, SigningKey, dns_record, generate_key, load_key
from mailerd.wire.message import first_address_domain

FOREIGN = "inbound"  # credential of mail that others wrote and we send on: a signature of ours would vouch for it
TXT_STRING = 255  # bytes of one string of a TXT record: RFC 1035 section 3.3.14
SELECTOR = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class Identity:
    """The domains we may send as and their keys. A domain without an entry takes that of its nearest parent."""

    def __init__(self, config: Config, files: Mapping[str, bytes] | None = None) -> None:
        """Load every key, from `files` (by path) those that are there.

        Raises ConfigError with all that is wrong, each problem naming the file and the key.
        """
        problems: list[ConfigProblem] = []
        self._domains: dict[str, SendingDomain] = {}
        self._keys: dict[str, tuple[SigningKey, ...]] = {}
        for name, settings in config.domains.items():
            try:
                domain = domain_to_ascii(name)
            except ValueError as error:
                problems.append(ConfigProblem("", 0, f"domains.{name}", str(error)))
                continue
            self._domains[domain] = settings
            self._keys[domain] = _load_keys(domain, name, settings, Path(config.data_dir), files or {}, problems)
        if problems:
            raise ConfigError(problems)

    def sending_domain(self, domain: str) -> SendingDomain | None:
        """The settings for a domain in lower-case A-labels: its own, else those of its nearest parent."""
        return next((self._domains[name] for name in with_parents(domain) if name in self._domains), None)

    def signing_keys(self, header: bytes, sender: str) -> tuple[SigningKey, ...]:
        """The keys to sign with: of the From field's domain, so that DMARC aligns, else of the envelope sender's.

        Empty when neither has an entry. An entry without keys is an answer: that domain's mail is not signed.
        """
        for domain in (first_address_domain(header, b"from"), sender.rpartition("@")[2].lower()):
            for name in with_parents(domain):
                if name in self._keys:
                    return self._keys[name]
        return ()


def _load_keys(
    domain: str,
    name: str,
    settings: SendingDomain,
    data_dir: Path,
    files: Mapping[str, bytes],
    problems: list[ConfigProblem],
) -> tuple[SigningKey, ...]:
    keys = []
    for index, entry in enumerate(settings.dkim):
        where = f"domains.{name}.dkim[{index}]"
        path = key_path(data_dir, entry)
        if not SELECTOR.fullmatch(entry.selector):
            text = "not a selector, write letters, digits and hyphens"
            problems.append(ConfigProblem("", 0, f"{where}.selector", f"{entry.selector!r} is {text}"))
        try:
            pem = files[str(path)] if str(path) in files else path.read_bytes()
            keys.append(SigningKey(domain, entry.selector, load_key(pem)))
        except OSError as error:
            text = f"the key file cannot be read: {error.strerror}"
            problems.append(ConfigProblem(str(path), 0, f"{where}.key_file", text))
        except ValueError as error:
            problems.append(ConfigProblem(str(path), 0, f"{where}.key_file", str(error)))
    return tuple(keys)


def key_path(data_dir: Path, entry: DkimKey) -> Path:
    """Where a key file is: `key_file` itself when absolute, else within the data directory."""
    return data_dir / entry.key_file


# ---------------------------------------------------------------------------------------------- generate and rotate


def generate(path: Path, kind: KeyKind = "rsa") -> PrivateKey:
    """Write a new key to `path`, readable by its owner only, and return it.

    Raises FileExistsError when there is a file already: a key is never overwritten. Run as root, the file and the
    directories made for it get the owner of the directory they are in, because the daemon that must read them does not
    run as root.
    """
    _make_directory(path.parent)
    pem = generate_key(kind)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    return load_key(pem)


def _make_directory(path: Path) -> None:
    for directory in reversed([each for each in (path, *path.parents) if not each.exists()]):
        directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            owner = directory.parent.stat()
            os.chown(directory, owner.st_uid, owner.st_gid)


def record_name(domain: str, selector: str) -> str:
    """The name of the TXT record, without a final dot."""
    return f"{selector}._domainkey.{domain}"


def zone_record(domain: str, selector: str, key: PrivateKey) -> str:
    """The record to publish, as a line of a zone file: its text in strings of at most 255 bytes."""
    text = dns_record(key)
    strings = " ".join(f'"{text[at : at + TXT_STRING]}"' for at in range(0, len(text), TXT_STRING))
    return f"{record_name(domain, selector)}. 3600 IN TXT ( {strings} )"


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new key beside the old ones, and what the operator has to do to bring it into use."""

    selector: str
    key_file: Path
    record: str  # to publish first, as a line of a zone file
    configuration: str  # the lines of the domain for the configuration file, once the record is there


def rotate(config: Config, domain: str, today: date, kind: KeyKind = "rsa") -> Rotation:
    """Make the next key of a domain: selector `s20261122`, or `s20261122-2` and on when that one is taken.

    The old keys stay, in the file system and in the lines to configure: for as long as both sign, either record in DNS
    is enough for a receiver. Raises KeyError when the domain is not in the configuration.
    """
    settings = config.domains[domain]
    ascii_domain = domain_to_ascii(domain)
    data_dir = Path(config.data_dir)
    taken = {entry.selector for entry in settings.dkim}
    number = 1
    while True:
        selector = f"s{today:%Y%m%d}" + (f"-{number}" if number > 1 else "")
        entry = DkimKey(selector=selector, key_file=FilePath(f"dkim/{ascii_domain}/{selector}.pem"))
        number += 1
        if selector in taken:
            continue
        try:
            key = generate(key_path(data_dir, entry), kind)
        except FileExistsError:
            continue
        record = zone_record(ascii_domain, selector, key)
        return Rotation(selector, key_path(data_dir, entry), record, _configuration(domain, settings, entry))


def _configuration(domain: str, settings: SendingDomain, new: DkimKey) -> str:
    lines = ["domains:", f"  {domain}:", "    dkim:"]
    lines.append(f"      - {{selector: {new.selector}, key_file: {_yaml(new.key_file)}}}")
    if settings.dkim:
        lines.append(
            f"      # remove what follows a week after {new.selector} is in use, its DNS record another week later"
        )
    lines += [f"      - {{selector: {old.selector}, key_file: {_yaml(old.key_file)}}}" for old in settings.dkim]
    return "\n".join(lines) + "\n"


def _yaml(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9/.][A-Za-z0-9/._-]*", text):
        return text
    return "'" + text.replace("'", "''") + "'"


# ------------------------------------------------------------------------------------------------------------ check


class Published(StrEnum):
    """What DNS says of a key."""

    OK = "ok"
    MISSING = "missing"
    DIFFERS = "differs"
    SEVERAL = "several"  # records: receivers may take any or none (RFC 6376 section 3.6.2.2)
    SYNTAX = "syntax"
    UNKNOWN = "unknown"  # DNS did not answer


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison of a key with its record; `text` is for people and says what to do."""

    state: Published
    name: str
    text: str
    found: tuple[str, ...] = ()


async def check(domain: str, selector: str, key: PrivateKey, resolver: Resolver) -> Check:
    """Ask DNS for the record of a key and say whether receivers will verify with it."""
    name = record_name(domain, selector)
    answer = await resolver.txt(name)
    if isinstance(answer, NoData | NoDomain):
        return Check(Published.MISSING, name, f"there is no TXT record {name}: publish it")
    if isinstance(answer, Failed):
        return Check(Published.UNKNOWN, name, f"TXT lookup of {name} failed: {answer.text}; try again")
    found = answer.records
    if len(found) > 1:
        return Check(Published.SEVERAL, name, f"{len(found)} TXT records at {name}: leave only one", found)
    state, text = compare(found[0], key)
    return Check(state, name, text, found)


def compare(text: str, key: PrivateKey) -> tuple[Published, str]:
    """What a published text means for a key: the state, and words for people."""
    try:
        published, wanted = _tags(text), _tags(dns_record(key))
    except ValueError as error:
        return Published.SYNTAX, f"the record is not a tag list (RFC 6376 section 3.6.1): {error}"
    if published.get("v", "DKIM1") != "DKIM1" or ("v" in published and not text.lstrip().startswith("v")):
        return Published.SYNTAX, "the record must start with v=DKIM1"
    if "p" not in published:
        return Published.SYNTAX, "the record has no p= (the public key)"
    kind = published.get("k", "rsa")
    if kind != wanted["k"]:
        return Published.DIFFERS, f"k={kind} is published, the key is {wanted['k']}"
    if not published["p"]:
        return Published.DIFFERS, "the record revokes the key: its p= is empty"
    try:
        b64decode(published["p"], validate=True)
    except ValueError:
        return Published.SYNTAX, "p= is not base64: perhaps quotes or spaces got into it, or a part got lost"
    if published["p"] != wanted["p"]:
        return Published.DIFFERS, "p= is the public half of another key"
    if "h" in published and "sha256" not in _list(published["h"]):
        return Published.DIFFERS, f"h={published['h']} does not allow sha256"
    if "s" in published and not {"*", "email"} & set(_list(published["s"])):
        return Published.DIFFERS, f"s={published['s']} does not allow email"
    if "y" in _list(published.get("t", "")):
        return Published.OK, "published, but t=y tells receivers that this is a test: remove it"
    return Published.OK, "published as it should be"


def _tags(text: str) -> dict[str, str]:
    """RFC 6376 section 3.2. ValueError says what is no tag, or stands twice."""
    tags: dict[str, str] = {}
    for part in text.rstrip("; \t\r\n").split(";"):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ValueError(f"{part.strip()[:40]!r} is no tag=value")
        if name in tags:
            raise ValueError(f"{name}= stands twice")
        tags[name] = re.sub(r"\s+", "", value) if name == "p" else value.strip()
    return tags


def _list(value: str) -> list[str]:
    return [item.strip() for item in value.split(":")]
