"""MTA-STS (RFC 8461): which hosts a domain has, and that their certificates have to be valid.

A policy is announced by a TXT record, fetched by HTTPS from a host that the web's authorities certify, and kept in the
database until it expires, so that nobody who controls the network later can make us forget it.
"""

import asyncio
import random
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import aiohttp
import asyncpg
import structlog

from mailerd.clock import utc_now
from mailerd.db import Pool
from mailerd.delivery import tls_policy
from mailerd.delivery.https import Outside
from mailerd.delivery.resolver import Failed, Found, Resolver, SingleFlight
from mailerd.delivery.tls_client import web_context
from mailerd.delivery.tls_policy import TlsOutcome
from mailerd.delivery.turns import Turns, party_of

log = structlog.get_logger()

MAX_POLICY = 64 * 1024  # bytes (RFC 8461 section 3.3)
MAX_AGE = 31_557_600  # seconds (section 3.2)
MAX_MX = 100  # patterns; nobody has so many hosts
MAX_TEXT = 4_000  # characters of a policy that are kept for reports
MAX_KEPT = 5_000  # policies in memory
MAX_FETCHES = 200  # under way at once: many, so that slow web servers leave room for others
MAX_OF_PARTY = 4  # of them for the names of one registered domain
FETCH_TIMEOUT = 12.0  # seconds; section 3.3 suggests 60, which is 12 times as long as mail waits
PATIENCE = 5.0  # seconds that mail waits for a policy that has to be fetched
FAILED_FOR = 300.0  # seconds until a failed fetch is tried again (section 3.3)
READ_AGAIN = (0.1, 0.4, 1.5)  # seconds: a database that restarts is asked again after these
UNREAD_FOR = 3.0  # seconds that nothing is known because the database could not be read
WAITING_FOR = 30.0  # seconds that mail goes without a policy whose fetch takes longer than PATIENCE
SHORTEST = 60.0  # seconds that an answer is relied upon, however short its max_age
LONGEST = 3_600.0  # seconds that an answer is relied upon, whatever the TTL of the record
# A policy that is in use is fetched again after this (section 3.3), or after half of its time, so that whoever would
# keep the next one from us has to do so for as long.
REFRESH_AFTER = timedelta(days=1)
REFRESH_BEFORE = timedelta(days=2)  # its end, a policy is fetched again though nobody asks for it
REFRESH_EVERY = 3_600.0  # seconds
ID_FIELD = re.compile(r"[ \t]*id[ \t]*=[ \t]*([A-Za-z0-9]{1,32})[ \t]*")
MX_PATTERN = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{1,63}")
FIELD = re.compile(r"(?P<key>[A-Za-z0-9][A-Za-z0-9_.-]{0,31})[ \t]*:[ \t]*(?P<value>.*?)[ \t]*")


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """What a domain published; `lines` as it was served, as far as reports need it. Patterns `mx` are in lower case."""

    id: str
    mode: str  # enforce, testing, none
    mx: tuple[str, ...]
    lines: tuple[str, ...]
    fetched_at: datetime
    expires_at: datetime

    @property
    def refresh_at(self) -> datetime:
        return self.fetched_at + min(REFRESH_AFTER, (self.expires_at - self.fetched_at) / 2)


class Known(NamedTuple):
    """The policy in force for a domain, if any, and until when (the resolver's clock) that need not be asked again.

    `unread`: there may be one, seen earlier: the database did not tell. To send without it would undo its promise.
    """

    policy: StsPolicy | None
    expires: float
    unread: bool = False


def record_id(texts: Sequence[str]) -> str:
    """The id in the TXT records of `_mta-sts.DOMAIN`; "" unless exactly one announces a policy (section 3.1)."""
    announcing = [text for text in texts if re.match(r"v=STSv1[ \t]*;", text)]
    # Field by field: one expression for the whole record can be made to take for ever by who writes it.
    fields = announcing[0].split(";")[1:] if len(announcing) == 1 else []
    return next((match[1] for field in fields if (match := ID_FIELD.fullmatch(field))), "")


def parse_policy(text: str, announced: str, now: datetime) -> StsPolicy:
    """The policy in the body of `mta-sts.txt` (section 3.2), whose id is `announced`. Raises ValueError."""
    fields: dict[str, str] = {}
    patterns: list[str] = []
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        match = FIELD.fullmatch(line)
        if match is None:
            raise ValueError(f"not a field: {line[:80]!r}")
        if match["key"] == "mx":
            patterns.append(_pattern(match["value"]))
        else:
            fields.setdefault(match["key"], match["value"])
    if fields.get("version") != "STSv1":
        raise ValueError(f"version is {fields.get('version', 'missing')[:20]!r}, not 'STSv1'")
    mode, age = fields.get("mode", ""), fields.get("max_age", "")
    if mode not in ("enforce", "testing", "none"):
        raise ValueError(f"mode is {mode[:20]!r}, not enforce, testing or none")
    if not re.fullmatch(r"[0-9]{1,10}", age, re.ASCII):
        raise ValueError(f"max_age is {age[:20]!r}, not a number of seconds")
    if (mode != "none" and not patterns) or len(patterns) > MAX_MX:
        raise ValueError(f"{len(patterns)} mx patterns")
    expires = now + timedelta(seconds=min(int(age), MAX_AGE))
    shown = tuple("\n".join(lines)[:MAX_TEXT].split("\n"))
    return StsPolicy(announced, mode, tuple(patterns), shown, now, expires)


def _pattern(text: str) -> str:
    pattern = text.lower().rstrip(".")
    if MX_PATTERN.fullmatch(pattern) is None:
        raise ValueError(f"not a host name or *. and one: {text[:80]!r}")
    return pattern


READ = """
    SELECT domain, id, mode, mx, text, fetched_at, expires_at FROM sts_policies WHERE domain = ANY ($1::text[])
"""
WRITE = """
    INSERT INTO sts_policies (domain, id, mode, mx, text, fetched_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (domain) DO UPDATE SET id = EXCLUDED.id, mode = EXCLUDED.mode, mx = EXCLUDED.mx, text = EXCLUDED.text,
           fetched_at = EXCLUDED.fetched_at, expires_at = EXCLUDED.expires_at
     WHERE sts_policies.fetched_at < EXCLUDED.fetched_at
"""
ENDING = """
    SELECT domain FROM sts_policies
     WHERE expires_at < $1 AND fetched_at + LEAST($3::interval, (expires_at - fetched_at) / 2) < $2
     ORDER BY expires_at LIMIT 500
"""
FORGET = "DELETE FROM sts_policies WHERE expires_at < $1"


class StsStore:
    """The policies of all nodes (table sts_policies)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._asked: set[str] = set()
        self._reading: asyncio.Task[dict[str, StsPolicy]] | None = None  # that will ask for them
        self._turn = asyncio.Lock()

    async def read(self, domain: str) -> StsPolicy | None:
        """The policy of a domain. What is asked for while the database answers is asked of it at once after that."""
        self._asked.add(domain)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="policies")
        return (await asyncio.shield(self._reading)).get(domain)

    async def _read(self) -> dict[str, StsPolicy]:
        async with self._turn:
            asked, self._asked, self._reading = self._asked, set(), None
            rows = await self._pool.fetch(READ, list(asked))
        return {row["domain"]: _policy(row) for row in rows}

    async def write(self, domain: str, policy: StsPolicy) -> None:
        """Keep a policy, unless a younger one is there."""
        text = "\n".join(policy.lines)
        await self._pool.execute(
            WRITE, domain, policy.id, policy.mode, policy.mx, text, policy.fetched_at, policy.expires_at
        )

    async def ending(self, before: datetime, now: datetime) -> list[str]:
        """Domains whose policy ends `before`, except those that were fetched lately."""
        return [row["domain"] for row in await self._pool.fetch(ENDING, before, now, REFRESH_AFTER)]

    async def forget(self, now: datetime) -> None:
        """Delete what expired."""
        await self._pool.execute(FORGET, now)


def _policy(row: asyncpg.Record) -> StsPolicy:
    lines = tuple(row["text"].splitlines())
    return StsPolicy(row["id"], row["mode"], tuple(row["mx"]), lines, row["fetched_at"], row["expires_at"])


class StsPolicies:
    """The policies in force, by domain. Never raises for what DNS, web servers or the database do.

    A policy once seen stays in force until its `max_age` is over, whether or not DNS and the web server still show it.
    `store` None: they are kept in memory only. `note` is told when one cannot be fetched. `port` and `trust` (a PEM
    file of CAs) are for tests.
    """

    def __init__(
        self,
        store: StsStore | None,
        resolver: Resolver,
        *,
        clock: Callable[[], datetime] = utc_now,
        note: Callable[[TlsOutcome], None] = lambda outcome: None,
        allow_private: bool = False,
        patience: float = PATIENCE,
        port: int = 443,
        trust: str | None = None,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._clock = clock
        self._note = note
        self._patience = patience
        self._port = port
        self._tls = web_context(trust)
        self._web = Outside(resolver, allow_private=allow_private, tls=self._tls)
        self._kept: OrderedDict[str, StsPolicy] = OrderedDict()
        self._failed: OrderedDict[str, float] = OrderedDict()  # until when, by the resolver's clock
        self._flights: SingleFlight[str, StsPolicy | None] = SingleFlight()
        self._turns = Turns(MAX_FETCHES, each=MAX_OF_PARTY)

    def reconfigure(self, *, allow_private: bool) -> None:
        """Fetch from private addresses from now on, or no longer."""
        self._web = Outside(self._resolver, allow_private=allow_private, tls=self._tls)

    async def policy(self, domain: str) -> Known:
        """The policy of `domain` (A-labels). Waits for one that has to be fetched, but not for long."""
        answer, stored = await asyncio.gather(self._resolver.txt(f"_mta-sts.{domain}"), self._stored(domain))
        policy, unread = stored
        now = self._resolver.clock()
        announced = record_id(answer.records) if isinstance(answer, Found) else ""
        expires = now + FAILED_FOR if isinstance(answer, Failed) else min(answer.expires, now + LONGEST)
        if announced and (policy is None or policy.id != announced):
            fetched, expires = await self._fetched(domain, announced, expires)
            policy = fetched or policy
        elif announced and policy is not None and policy.refresh_at < self._clock():
            self._start(domain, announced)
        if policy is None and unread:
            return Known(None, min(expires, now + UNREAD_FOR), unread=True)
        if policy is not None:
            left = (policy.expires_at - self._clock()).total_seconds()
            expires = min(expires, now + max(left, SHORTEST))
        return Known(policy, expires)

    async def run(self) -> None:
        """Fetch policies again before they end, also those that nobody asks for; one worker of a node does it."""
        while True:
            await asyncio.sleep(REFRESH_EVERY * random.uniform(0.5, 1.5))  # noqa: S311 - nodes take turns
            try:
                await self.refresh()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("sts.not_refreshed", reason=str(error))

    async def refresh(self) -> None:
        """Fetch once what ends soon, and forget what is over."""
        now = self._clock()
        if self._store is None:
            return
        for domain in await self._store.ending(now + REFRESH_BEFORE, now):
            answer = await self._resolver.txt(f"_mta-sts.{domain}")
            announced = record_id(answer.records) if isinstance(answer, Found) else ""
            if announced:
                await self._flights.run(domain, partial(self._fetch, domain, announced))
        await self._store.forget(now)

    async def close(self) -> None:
        await self._flights.close()

    async def _stored(self, domain: str) -> tuple[StsPolicy | None, bool]:
        """The policy that was seen earlier and is in force, and whether one may be there that cannot be read."""
        policy, unread = self._kept.get(domain), False
        over = policy is None or policy.expires_at <= self._clock()
        if over and self._store is not None:  # another worker may have a younger one
            try:
                policy = await self._read(self._store, domain)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("sts.not_read", domain=domain, reason=str(error))
                unread = True
        if policy is None or policy.expires_at <= self._clock():
            return None, unread
        self._keep(domain, policy)
        return policy, False

    async def _read(self, store: StsStore, domain: str) -> StsPolicy | None:
        """From a database that may be busy starting again; raises its last error."""
        for pause in READ_AGAIN:
            try:
                return await store.read(domain)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(pause)
        return await store.read(domain)

    def _keep(self, domain: str, policy: StsPolicy) -> None:
        self._kept[domain] = policy
        self._kept.move_to_end(domain)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    async def _fetched(self, domain: str, announced: str, expires: float) -> tuple[StsPolicy | None, float]:
        """The policy that `announced` stands for, None without one for now, and until when to rely on that."""
        kept = self._kept.get(domain)
        if kept is not None and kept.id == announced and kept.expires_at > self._clock():
            return kept, expires  # others fetched it while the database was read
        now = self._resolver.clock()
        if (until := self._failed.get(domain, now)) > now:
            return None, min(expires, until)
        try:
            async with asyncio.timeout(self._patience):
                policy = await self._flights.run(domain, partial(self._fetch, domain, announced))
        except TimeoutError:
            return None, min(expires, now + WAITING_FOR)
        return policy, expires if policy is not None else min(expires, now + FAILED_FOR)

    def _start(self, domain: str, announced: str) -> None:
        """Fetch a policy again while mail goes by the old one."""
        if self._failed.get(domain, 0.0) <= self._resolver.clock():
            self._flights.start(domain, partial(self._fetch, domain, announced))

    async def _fetch(self, domain: str, announced: str) -> StsPolicy | None:
        """Get the policy and keep it; None, and a word for the report, when that fails."""
        try:
            async with self._turns.slot(party_of(domain)):
                policy = parse_policy(await self._get(domain), announced, self._clock())
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            result, text = _explained(error)
            log.info("sts.fetch_failed", domain=domain, result=result, reason=text)
            self._note(TlsOutcome(domain, "sts", (), "", "", result, text))
            self._failed[domain] = self._resolver.clock() + FAILED_FOR
            if len(self._failed) > MAX_KEPT:
                self._failed.popitem(last=False)
            return None
        self._failed.pop(domain, None)
        self._keep(domain, policy)
        try:
            if self._store is not None:
                await self._store.write(domain, policy)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("sts.not_written", domain=domain, reason=str(error))
        return policy

    async def _get(self, domain: str) -> str:
        port = "" if self._port == 443 else f":{self._port}"
        url = f"https://mta-sts.{domain}{port}/.well-known/mta-sts.txt"
        body = await self._web.get(url, content_type="text/plain", most=MAX_POLICY, timeout=FETCH_TIMEOUT)
        return body.decode("utf-8")


def _explained(error: Exception) -> tuple[str, str]:
    """The result type of RFC 8460 section 4.3.2.2, and words for people."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        text = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else str(cause)
        return tls_policy.STS_WEBPKI_INVALID, text
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return tls_policy.STS_POLICY_INVALID, str(error)
    if isinstance(error, TimeoutError):
        return tls_policy.STS_POLICY_FETCH_ERROR, f"no policy within {FETCH_TIMEOUT:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    return tls_policy.STS_POLICY_FETCH_ERROR, " ".join(str(error).split()) or type(error).__name__
