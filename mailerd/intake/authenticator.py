"""Checks a secret that somebody shows us: fast for those who are right, slow and soon closed for those who guess."""

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, ip_address

import argon2
import asyncpg

from mailerd.config import Rate
from mailerd.errors import Refused, Unavailable
from mailerd.intake.credentials import HASHER, TOKEN_PREFIX, Credential, CredentialStore, Stored

REMEMBERED = 60.0  # seconds: so long may a disabled credential still be taken
MAX_REMEMBERED = 10_000
MAX_COUNTED = 100_000  # addresses and user names
CHECKS_AT_ONCE = 2  # argon2 checks, each in a thread with 19 MiB

_NOBODY = HASHER.hash(secrets.token_hex(16))  # checked when there is no such name, so that names cannot be timed


@dataclass(frozen=True, slots=True)
class _Known:
    stored: Stored
    until: float


class Authenticator:
    """Good answers are remembered for 60 s; a credential that is disabled or changed is therefore refused within 60 s.

    Remembered under a hash keyed by this process, never the secret itself. When the time is over, one row is read
    again; argon2 runs anew only if the stored hash has changed. Wrong answers count against the peer and the user name;
    past the limit every unknown secret is refused unseen until the period is over, while remembered ones still work:
    nobody can lock a running application out by guessing.
    """

    def __init__(self, store: CredentialStore, *, failures: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._failures = Failures(failures)
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)

    def reconfigure(self, failures: Rate) -> None:
        """Judge by another limit; periods that have begun end when they would have ended."""
        self._failures.limit = failures

    async def password(self, username: str, password: str, peer: str) -> Credential | None:
        """The credential that these open, None when they are wrong.

        A token is good as password with any user name. Raises `Refused` (454) after too many failures of `peer` or
        `username`, and `Unavailable` when the database cannot be asked.
        """
        if password.startswith(TOKEN_PREFIX):
            return await self.token(password, peer)
        keys = (_network(peer), f"user {username.lower()[:64]}")
        return await self._answer(
            f"password\0{username}", password, keys, lambda: self._check_password(username, password)
        )

    async def token(self, token: str, peer: str) -> Credential | None:
        """The credential of this token, None when it is wrong; raises as `password` does."""
        return await self._answer("token", token, (_network(peer),), partial(self._store.find_by_token, token))

    async def _answer(
        self, what: str, secret: str, keys: tuple[str, ...], check: Callable[[], Awaitable[Stored | None]]
    ) -> Credential | None:
        now = self._clock()
        fingerprint = hmac.digest(self._key, f"{what}\0{secret}".encode("utf-8", "surrogatepass"), "sha256")
        known = self._known.get(fingerprint)
        if known is not None and now < known.until:
            return known.stored.credential
        stored = None
        try:
            stored = await self._unchanged(known.stored) if known else None
            if stored is None:
                stored = await self._limited(keys, now, check)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise Unavailable("credentials cannot be read") from error
        if stored is None:
            self._known.pop(fingerprint, None)
            return None
        self._remember(fingerprint, _Known(stored, now + REMEMBERED))
        return stored.credential

    async def _limited(
        self, keys: tuple[str, ...], now: float, check: Callable[[], Awaitable[Stored | None]]
    ) -> Stored | None:
        """Check, unless there were too many failures. A check under way counts as one: guess in parallel in vain."""
        if any(self._failures.exhausted(key, now) for key in keys):
            raise Refused(454, "4.7.0", "too many failures, try again later", name="too_many_auth_failures")
        for key in keys:
            self._failures.count(key, now)
        failed = False
        try:
            stored = await check()
            failed = stored is None or stored.credential.disabled_at is not None
        finally:
            if not failed:
                for key in keys:
                    self._failures.forgive(key)
        return None if failed else stored

    async def _unchanged(self, stored: Stored) -> Stored | None:
        """The credential as it is stored now, None when its secret is no longer the one that was checked."""
        current = await self._store.find_by_name(stored.credential.name)
        if current is None or current.credential.disabled_at is not None:
            return None
        return current if hmac.compare_digest(current.secret_hash, stored.secret_hash) else None

    async def _check_password(self, username: str, password: str) -> Stored | None:
        stored = await self._store.find_by_name(username)
        is_password = stored is not None and stored.credential.kind == "password"
        expected = stored.secret_hash if stored is not None and is_password else _NOBODY
        async with self._checks:
            right = await asyncio.to_thread(_verify, expected, password)
        return stored if right and is_password else None

    def _remember(self, fingerprint: bytes, known: _Known) -> None:
        self._known[fingerprint] = known
        self._known.move_to_end(fingerprint)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


class Failures:
    """Counts failures by key in periods that begin with the first of them; bounded, the oldest period goes first."""

    def __init__(self, limit: Rate) -> None:
        self.limit = limit
        self._periods: OrderedDict[str, tuple[int, float]] = OrderedDict()  # failures so far, the period's end

    def exhausted(self, key: str, now: float) -> bool:
        count, end = self._periods.get(key, (0, 0.0))
        return now < end and count >= self.limit.count

    def count(self, key: str, now: float) -> None:
        count, end = self._periods.get(key, (0, 0.0))
        if now >= end:
            count, end = 0, now + self.limit.period
            self._periods.pop(key, None)
        self._periods[key] = (count + 1, end)
        if len(self._periods) > MAX_COUNTED:
            self._periods.popitem(last=False)

    def forgive(self, key: str) -> None:
        """Take back one count."""
        count, end = self._periods.get(key, (0, 0.0))
        if count > 1:
            self._periods[key] = (count - 1, end)
        else:
            self._periods.pop(key, None)


def _network(peer: str) -> str:
    """What failures of a peer are counted by: an IPv4 address, or the /64 that one IPv6 host can choose from."""
    address = ip_address(peer.partition("%")[0])
    if isinstance(address, IPv4Address):
        return f"peer {address}"
    return f"peer {address.ipv4_mapped or address.exploded[:19]}"


def _verify(expected: str, password: str) -> bool:
    try:
        return HASHER.verify(expected, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
