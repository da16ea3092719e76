"""The Sender Rewriting Scheme: a return path of ours for mail of others that we send on (SRS0 and SRS1, guarded).

The next host asks whether we may use the return path (SPF), so it has to be of a domain of ours. It carries the
sender's own, with a MAC, so that nobody can have us send to addresses that they made up.

    ann@example.com               SRS0=XXXXXX=TT=example.com=ann@ours.example
    SRS0=hhh=tt=a.example=ann@b.example   SRS1=XXXXXX=b.example==hhh=tt=a.example=ann@ours.example
"""

import hmac
import re
from base64 import b32encode
from datetime import datetime
from hashlib import sha256

from mailerd.wire.address import MAX_LOCAL, parse_mailbox, quoted, unquoted

MAC = 6  # letters: a billion tries for one address that is good for three weeks
MAX_AGE = 21  # days, as Mail::SRS has it
STAMPS = 1024  # days, then the letters come again; the MAC is over the day itself
SECONDS_OF_A_DAY = 86_400
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

_SRS0 = re.compile(r"SRS0([-+=].+)", re.IGNORECASE | re.ASCII)
_SRS1 = re.compile(r"SRS1[-+=]([^=]*)=([^=]+)=([-+=].+)", re.IGNORECASE | re.ASCII)
_STAMPED = re.compile(r"=([A-Z2-7]+)=([A-Z2-7]{2})=([^=]+)=(.+)", re.IGNORECASE | re.ASCII)


def is_srs(address: str) -> bool:
    """Does this address look like a rewritten one, of whomever?"""
    return address[:5].lower() in ("srs0=", "srs0+", "srs0-", "srs1=", "srs1+", "srs1-")


class Srs:
    """Rewrites under the installation's secret. Upper and lower case may change on the way."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"mailerd srs", sha256)

    def forward(self, sender: str, domain: str, now: datetime) -> str:
        """The return path at `domain`, in lower-case A-labels, for mail of `sender`, an address or "".

        "" when there is none, or it would be too long for other hosts: bounces of that mail are lost, as all bounces
        of bounces are.
        """
        if not sender:
            return ""
        local, _, host = sender.rpartition("@")
        local = unquoted(local)
        if match := _SRS0.fullmatch(local):
            rewritten = self._again(host, match[1])
        elif match := _SRS1.fullmatch(local):
            rewritten = self._again(match[2], match[3])
        else:
            day = _day(now)
            stamp = LETTERS[day % STAMPS >> 5] + LETTERS[day % 32]
            rewritten = f"SRS0={self._mac('0', str(day), host, local)}={stamp}={host}={local}"
        local = quoted(rewritten)
        return f"{local}@{domain}" if len(local.encode()) <= MAX_LOCAL else ""

    def _again(self, host: str, rest: str) -> str:
        """Of a path that another forwarder made: that one will read the rest, with its own MAC and stamp."""
        return f"SRS1={self._mac('1', host, rest)}={host}={rest}"

    def reverse(self, address: str, now: datetime) -> str | None:
        """The sender whose mail was sent on under this return path; None when it is not ours, or three weeks old."""
        local = unquoted(address.rpartition("@")[0])
        if match := _SRS0.fullmatch(local):
            found = self._first(match[1], now)
        elif match := _SRS1.fullmatch(local):
            mac, host, rest = match.groups()
            found = f"{quoted('SRS0' + rest)}@{host}" if self._fits(mac, "1", host, rest) else None
        else:
            return None
        return _valid(found) if found is not None else None

    def _first(self, rest: str, now: datetime) -> str | None:
        match = _STAMPED.fullmatch(rest)
        if match is None:
            return None
        mac, stamp, host, local = match.groups()
        high, low = map(LETTERS.index, stamp.upper())
        today = _day(now)
        age = (today - (high << 5 | low)) % STAMPS
        if age == STAMPS - 1:  # made by a node whose clock is ahead
            age = -1
        if age > MAX_AGE or not self._fits(mac, "0", str(today - age), host, local):
            return None
        return f"{quoted(local)}@{host}"

    def _fits(self, mac: str, *facts: str) -> bool:
        return hmac.compare_digest(mac.upper().encode(), self._mac(*facts).encode())

    def _mac(self, *facts: str) -> str:
        return b32encode(hmac.digest(self._key, "=".join(facts).lower().encode(), sha256))[:MAC].decode()


def _day(now: datetime) -> int:
    return int(now.timestamp()) // SECONDS_OF_A_DAY


def _valid(address: str) -> str | None:
    try:
        return parse_mailbox(address).address
    except ValueError:
        return None
