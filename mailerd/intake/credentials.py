"""Credentials: who may submit, as what, and how much.

Two kinds. A `token` is made by us, 256 random bits, and stored as HMAC-SHA256 under the installation's secret: fast to
check, and worthless without the secret. A `password` is what a person chose, and stored as argon2id.
"""

import contextlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import argon2
import asyncpg

from mailerd.config import Rate
from mailerd.config.values import parse_rate
from mailerd.errors import Refused

TOKEN_PREFIX = "mlr_"  # noqa: S105 (secret scanners find our tokens by it)
SCOPES = frozenset({"send", "read", "manage"})
RESERVED_NAMES = frozenset({"trusted"})
MIN_PASSWORD = 12

_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")  # queues are named after it
_DOMAIN = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN_LENGTH = 43  # base 62 digits of 256 bits
_PERIODS = {"d": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}

# OWASP's smaller profile of argon2id: about 20 ms and 19 MiB a check, so that two at a time hurt nobody.
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """Who may submit. `sender_domains` empty: any; `stream` None: transactional, and the submitter may choose."""

    name: str
    tenant: str = "default"
    scopes: frozenset[str] = frozenset({"send"})
    sender_domains: tuple[str, ...] = ()
    stream: str | None = None
    pool: str | None = None
    message_rate: Rate | None = None
    recipient_rate: Rate | None = None
    kind: str = "token"
    created_at: datetime | None = None
    disabled_at: datetime | None = None

    def may_send_as(self, domain: str) -> bool:
        """Whether `domain` (lower case, A-labels) is among the sender domains; `*.example.com` is not example.com."""
        if not self.sender_domains:
            return True
        return any(
            domain.endswith(allowed[1:]) if allowed.startswith("*.") else domain == allowed
            for allowed in self.sender_domains
        )


TRUSTED = Credential(name="trusted", kind="trusted")
"""What a listener's trusted networks submit as when they do not authenticate."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A credential and what its secret is checked against."""

    credential: Credential
    secret_hash: str


class CredentialStore:
    """The table of credentials. Changes made here are in force everywhere within a minute: see `Authenticator`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._secret = b""

    async def create(
        self,
        name: str,
        *,
        password: str | None = None,
        tenant: str = "default",
        scopes: frozenset[str] = frozenset({"send"}),
        sender_domains: Sequence[str] = (),
        stream: str | None = None,
        pool: str | None = None,
        message_rate: Rate | None = None,
        recipient_rate: Rate | None = None,
    ) -> str:
        """Store a new credential and return its secret: the given password, or a new token, shown only this once.

        Raises `Refused` for a name, password, scope or domain that cannot be, and for a name that is taken.
        """
        _check(name, password, scopes, sender_domains)
        if not _TENANT.fullmatch(tenant):
            raise _invalid("tenant", "a tenant is 1 to 64 of A-Z a-z 0-9 . _ @ + -, and begins with a letter or digit")
        secret = new_token() if password is None else password
        try:
            await self._pool.execute(
                INSERT,
                name,
                "token" if password is None else "password",
                await self._hash(secret) if password is None else HASHER.hash(secret),
                tenant,
                sorted(scopes),
                list(sender_domains),
                stream,
                pool,
                _rate_text(message_rate),
                _rate_text(recipient_rate),
            )
        except asyncpg.UniqueViolationError:
            raise _invalid("name", f"there is a credential {name} already") from None
        return secret

    async def list(self) -> list[Credential]:
        """All credentials by name, the disabled ones too."""
        return [_stored(row).credential for row in await self._pool.fetch(f"{SELECT} ORDER BY name")]

    async def get(self, name: str) -> Credential | None:
        stored = await self.find_by_name(name)
        return stored.credential if stored else None

    async def find_by_name(self, name: str) -> Stored | None:
        row = await self._pool.fetchrow(f"{SELECT} WHERE name = $1", name)
        return _stored(row) if row else None

    async def find_by_token(self, token: str) -> Stored | None:
        row = await self._pool.fetchrow(f"{SELECT} WHERE kind = 'token' AND secret_hash = $1", await self._hash(token))
        return _stored(row) if row else None

    async def disable(self, name: str, *, now: datetime) -> bool:
        """Refuse it from now on, at the latest 60 s from now; False when there is no such enabled credential."""
        result = await self._pool.execute(
            "UPDATE credentials SET disabled_at = $2 WHERE name = $1 AND disabled_at IS NULL", name, now
        )
        return bool(result == "UPDATE 1")

    async def enable(self, name: str) -> bool:
        result = await self._pool.execute("UPDATE credentials SET disabled_at = NULL WHERE name = $1", name)
        return bool(result == "UPDATE 1")

    async def delete(self, name: str) -> bool:
        """Forget it; what it submitted stays. False when there is none of that name."""
        return bool(await self._pool.execute("DELETE FROM credentials WHERE name = $1", name) == "DELETE 1")

    async def rotate(self, name: str) -> str | None:
        """Give the credential a new token, whatever its kind was, and return it; None when there is no such name."""
        token = new_token()
        result = await self._pool.execute(
            "UPDATE credentials SET kind = 'token', secret_hash = $2 WHERE name = $1", name, await self._hash(token)
        )
        return token if result == "UPDATE 1" else None

    async def make_first(self, data_dir: Path) -> str | None:
        """If there is no credential yet, create the token `first` with all scopes and keep it in data_dir/api-key.

        Returns the token, None when there are credentials. The row is committed after the file is on disk, so there is
        never a key that nobody can read.
        """
        token = new_token()
        secret_hash = await self._hash(token)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE credentials IN SHARE ROW EXCLUSIVE MODE")
            if await connection.fetchval("SELECT EXISTS (SELECT FROM credentials)"):
                return None
            await connection.execute(
                INSERT, "first", "token", secret_hash, "default", sorted(SCOPES), [], None, None, None, None
            )
            write_secret(data_dir / "api-key", token + "\n")
        return token

    async def secret(self) -> bytes:
        """The installation's secret, the same for all nodes on this database; made when it is first asked for."""
        if not self._secret:
            await self._pool.execute(
                "INSERT INTO installation (secret) VALUES ($1) ON CONFLICT DO NOTHING", secrets.token_bytes(32)
            )
            self._secret = await self._pool.fetchval("SELECT secret FROM installation")
        return self._secret

    async def _hash(self, token: str) -> str:
        return hmac.digest(await self.secret(), token.encode(), "sha256").hex()


async def make_first_key(pool: asyncpg.Pool, data_dir: str | Path) -> str | None:
    """See `CredentialStore.make_first`."""
    return await CredentialStore(pool).make_first(Path(data_dir))


SELECT = """
    SELECT name, kind, secret_hash, tenant, scopes, sender_domains, stream, pool, message_rate, recipient_rate,
           created_at, disabled_at
      FROM credentials
"""
INSERT = """
    INSERT INTO credentials (name, kind, secret_hash, tenant, scopes, sender_domains, stream, pool, message_rate,
                             recipient_rate)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""


def new_token() -> str:
    """A random token: `mlr_` and 256 bits in base 62."""
    number, digits = secrets.randbits(256), ""
    for _ in range(_TOKEN_LENGTH):
        number, digit = divmod(number, 62)
        digits += _ALPHABET[digit]
    return TOKEN_PREFIX + digits


def write_secret(path: Path, text: str) -> None:
    """Put `text` into `path`, readable by its owner only: whole or not at all, and on disk when this returns."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _stored(row: asyncpg.Record) -> Stored:
    credential = Credential(
        name=row["name"],
        kind=row["kind"],
        tenant=row["tenant"],
        scopes=frozenset(row["scopes"]),
        sender_domains=tuple(row["sender_domains"]),
        stream=row["stream"],
        pool=row["pool"],
        message_rate=_rate(row["message_rate"]),
        recipient_rate=_rate(row["recipient_rate"]),
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
    )
    return Stored(credential, row["secret_hash"])


def _check(name: str, password: str | None, scopes: frozenset[str], sender_domains: Sequence[str]) -> None:
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES or name.startswith(TOKEN_PREFIX):
        raise _invalid("name", "a name is 1 to 64 of a-z 0-9 . _ @ + -, begins with a letter or digit, is not trusted")
    if password is not None and (len(password) < MIN_PASSWORD or password.startswith(TOKEN_PREFIX)):
        raise _invalid("password", f"a password has at least {MIN_PASSWORD} characters and does not start like a token")
    if not scopes or scopes - SCOPES:
        raise _invalid("scopes", f"scopes are {', '.join(sorted(SCOPES))}")
    for domain in sender_domains:
        if not _DOMAIN.fullmatch(domain):
            raise _invalid("sender_domains", "a sender domain is such as example.com or *.example.com, in lower case")


def _invalid(field: str, text: str) -> Refused:
    return Refused(550, "5.7.1", text, name="invalid_credential", field=field)


def _rate_text(rate: Rate | None) -> str | None:
    """As the configuration writes it, so that `parse_rate` reads it."""
    if rate is None:
        return None
    for unit, seconds in _PERIODS.items():
        periods, rest = divmod(rate.period, seconds)
        if periods and not rest:
            return f"{rate.count}/{int(periods) if periods > 1 else ''}{unit}"
    raise _invalid("rate", "a rate is a number per seconds, minutes, hours or days, such as 100/min or 20/10min")


def _rate(text: str | None) -> Rate | None:
    return None if text is None else parse_rate(text)
