"""The words of the configuration: how durations, sizes, rates, addresses and names are written, and what is refused.

Each `parse_…` takes the text of one YAML scalar and raises `ValueError` saying what is allowed. `PARSERS` is what the
reader looks a type up in.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from typing import Any

import idna
from msgspec import Struct


class Duration(float):
    """Seconds; written `500ms`, `5s`, `20m`, `4h`, `4d`, `2w`, `1y` (365 d), or `0`."""


class Size(int):
    """Bytes; written `1000`, `64KB`, `25MB`, `2GB` (powers of 1,000) or `64KiB`, `25MiB`, `2GiB` (powers of 1,024)."""


class Rate(Struct, frozen=True):
    """`count` per `period` seconds; written `100/min`, `10/s`, `1000/h`, `5000/d`, `20/10min`."""

    count: int
    period: float

    def __str__(self) -> str:
        return f"{self.count}/{_period(self.period)}"


class ByteRate(Struct, frozen=True):
    """`size` bytes per `period` seconds; written `10MB/s`, `1GB/10min`."""

    size: int
    period: float

    def __str__(self) -> str:
        unit = max((unit for unit, size in SIZE_UNITS.items() if self.size % size == 0), key=SIZE_UNITS.__getitem__)
        return f"{self.size // SIZE_UNITS[unit]}{unit or ' bytes'}/{_period(self.period)}"


class Endpoint(Struct, frozen=True):
    """Host and port; written `127.0.0.1:2525`, `[::1]:2525`, `mx.example.com:25`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Hostname(str):
    """A domain name in lower case and A-labels: `mail.example.com`; U-labels in the file are converted."""

    __slots__ = ()


class Host(str):
    """A name or an address: `app.example.com`, `localhost`, `10.1.2.3`, `::1`, or that with a port, `[::1]:8080`."""

    __slots__ = ()


class DomainPattern(str):
    """`example.com`, `*.example.com` (not example.com itself) or `*`."""

    __slots__ = ()


class IpAddress(str):
    """`203.0.113.10` or `2001:db8::1`."""

    __slots__ = ()


class Network(str):
    """`127.0.0.0/8`, `2001:db8::/32`, or one address."""

    __slots__ = ()


class NameServer(str):
    """`9.9.9.9`, `127.0.0.1:5353` or `[::1]:53`."""

    __slots__ = ()


class Date(str):
    """A calendar day (UTC): `2026-11-01`."""

    __slots__ = ()


class Percent(float):
    """A share in percent: `0.3`, `5`."""


class FilePath(str):
    """A file, kept as written; the reader has put the path in the place of `credential:NAME` (systemd's)."""

    __slots__ = ()


DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
RATE_UNITS = {"s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}

NUMBER_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([A-Za-z]*)", re.ASCII)
RATE = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,4})?(s|min|h|d)", re.ASCII)
PERIOD = re.compile(r"([1-9][0-9]{0,4})?(s|min|h|d)", re.ASCII)
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
LONGEST = 100 * 365 * 86_400  # seconds: a due time must stay a timestamp
LARGEST = 2**62  # bytes


def parse_duration(text: str) -> Duration:
    match = NUMBER_UNIT.fullmatch(text)
    if text == "0":
        return Duration(0)
    if match is None or match[2] not in DURATION_UNITS:
        raise ValueError("expected a duration: a number and ms, s, m, h, d, w or y, such as 500ms, 20m, 4d; or 0")
    seconds = float(match[1]) * DURATION_UNITS[match[2]]
    if seconds > LONGEST:
        raise ValueError("expected a duration of at most 100y")
    return Duration(seconds)


def parse_size(text: str) -> Size:
    match = NUMBER_UNIT.fullmatch(text)
    if match is None or match[2] not in SIZE_UNITS or ("." in match[1] and SIZE_UNITS[match[2]] == 1):
        raise ValueError("expected a size: bytes, or a number and KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 25MB")
    size = float(match[1]) if "." in match[1] else int(match[1])
    if size * SIZE_UNITS[match[2]] > LARGEST:
        raise ValueError("expected a size of at most 4000000TiB")
    return Size(size * SIZE_UNITS[match[2]])


def parse_rate(text: str) -> Rate:
    match = RATE.fullmatch(text)
    if match is None:
        raise ValueError("expected a rate: count/s, count/min, count/h or count/d, such as 100/min or 20/10min")
    return Rate(int(match[1]), int(match[2] or 1) * RATE_UNITS[match[3]])


def _period(seconds: float) -> str:
    """As it is written behind the slash of a rate: `min`, `10min`."""
    length, unit = max((length, unit) for unit, length in RATE_UNITS.items() if seconds % length == 0 or length == 1)
    return unit if seconds == length else f"{seconds / length:g}{unit}"


def parse_byte_rate(text: str) -> ByteRate:
    size, _, period = text.partition("/")
    match = PERIOD.fullmatch(period)
    try:
        count = parse_size(size)
    except ValueError:
        count = Size(0)
    if match is None or count == 0:
        raise ValueError(
            "expected a size and a period: size/s, size/min, size/h or size/d, such as 10MB/s or 1GB/10min"
        )
    return ByteRate(count, int(match[1] or 1) * RATE_UNITS[match[2]])


def parse_endpoint(text: str) -> Endpoint:
    """Split host and port; the host is an address or a domain name, the port 0 to 65535 (0: the system chooses)."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65_535:
        raise ValueError("expected host:port, such as 127.0.0.1:2525, [::1]:2525 or mx.example.com:25")
    if host.startswith("[") and host.endswith("]"):
        return Endpoint(_address(host[1:-1], version=6), int(port))
    if ":" in host:
        raise ValueError("expected an IPv6 address in brackets, such as [::1]:2525")
    return Endpoint(_address(host) if _looks_numeric(host) else parse_hostname(host), int(port))


def parse_hostname(text: str) -> Hostname:
    """Give the name in lower case and A-labels; a trailing dot is refused, so that names can be compared."""
    name = text.lower()
    if not text.isascii():
        try:
            name = idna.encode(text, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"expected a domain name ({error})") from None
    if len(name) > 253 or not all(LABEL.fullmatch(label) for label in name.split(".")) or _looks_numeric(name):
        raise ValueError("expected a domain name, such as mail.example.com")
    return Hostname(name)


def parse_host(text: str) -> Host:
    with suppress(ValueError):
        return Host(ipaddress.ip_address(text))
    host, _, port = text.rpartition(":")
    if host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536:
        bracketed = host.startswith("[") and host.endswith("]")
        with suppress(ValueError):
            address = ipaddress.ip_address(host[1:-1] if bracketed else host)
            if (address.version == 6) == bracketed:
                return Host(f"[{address}]:{int(port)}" if bracketed else f"{address}:{int(port)}")
        with suppress(ValueError):
            return Host(f"{parse_hostname(host)}:{int(port)}")
    with suppress(ValueError):
        return Host(parse_hostname(text))
    raise ValueError("expected a domain name or an address, such as app.example.com, 10.1.2.3, ::1 or localhost:8080")


def parse_domain_pattern(text: str) -> DomainPattern:
    if text == "*":
        return DomainPattern(text)
    star = "*." if text.startswith("*.") else ""
    try:
        return DomainPattern(star + parse_hostname(text.removeprefix("*.")))
    except ValueError:
        raise ValueError("expected a domain: example.com, *.example.com or *") from None


def parse_date(text: str) -> Date:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
        raise ValueError("expected a day, such as 2026-11-01")
    try:
        date.fromisoformat(text)
    except ValueError:
        raise ValueError("expected a day that exists, such as 2026-11-01") from None
    return Date(text)


def parse_percent(text: str) -> Percent:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text, re.ASCII) or not 0 < float(text) <= 100:
        raise ValueError("expected a share in percent, above 0 and at most 100, such as 0.3")
    return Percent(text)


def parse_ip_address(text: str) -> IpAddress:
    return IpAddress(_address(text))


def parse_network(text: str) -> Network:
    """Refuse host bits (10.1.2.3/8 is a slip) and networks so wide that trusting them makes an open relay."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("expected a network, such as 127.0.0.0/8, 2001:db8::/32, or one address") from None
    if network != _strict_network(text):
        raise ValueError(f"has host bits set: expected {network} or one address")
    if network.prefixlen < (8 if network.version == 4 else 7):
        raise ValueError("is too wide and would make an open relay: expected /8 or narrower (IPv6: /7)")
    return Network(network)


def parse_name_server(text: str) -> NameServer:
    try:
        return NameServer(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        endpoint = parse_endpoint(text)
        _address(endpoint.host)
    except ValueError:
        raise ValueError("expected an address, such as 9.9.9.9, 127.0.0.1:5353 or [::1]:53") from None
    if endpoint.port == 0:
        raise ValueError("expected a port from 1 to 65535")
    return NameServer(endpoint)


def _address(text: str, version: int | None = None) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("expected an address, such as 203.0.113.10 or 2001:db8::1") from None
    if version not in (None, address.version):
        raise ValueError("expected an IPv6 address in the brackets")
    return str(address)


def _strict_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _looks_numeric(host: str) -> bool:
    """True for 10.0.0.5 and for slips like 10.0.0 or 300.1.1.1: no top-level domain is a number."""
    return host.rpartition(".")[2].isdecimal()


PARSERS: Mapping[type, Callable[[str], Any]] = {
    Duration: parse_duration,
    Size: parse_size,
    Rate: parse_rate,
    ByteRate: parse_byte_rate,
    Endpoint: parse_endpoint,
    Hostname: parse_hostname,
    Host: parse_host,
    DomainPattern: parse_domain_pattern,
    IpAddress: parse_ip_address,
    Network: parse_network,
    NameServer: parse_name_server,
    Date: parse_date,
    Percent: parse_percent,
}
