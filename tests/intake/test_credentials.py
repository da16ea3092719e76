"""Credentials and their checking, on a real database."""

import hashlib
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from mailerd.config import Rate
from mailerd.errors import Refused, Unavailable
from mailerd.intake.authenticator import MAX_COUNTED, Authenticator, Failures
from mailerd.intake.credentials import Credential, CredentialStore, make_first_key, new_token, write_secret

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PEER = "192.0.2.1"
PASSWORD = "correct horse battery"


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database, min_size=1, max_size=3) as pool:
        yield pool


@pytest.fixture
def store(pool: asyncpg.Pool) -> CredentialStore:
    return CredentialStore(pool)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authenticator(store: CredentialStore, clock: Clock) -> Authenticator:
    return Authenticator(store, failures=Rate(3, 600.0), clock=clock)


async def test_a_token_is_shown_once_and_only_its_keyed_hash_is_stored(store, pool):
    token = await store.create("app")
    assert len(token) == 47
    assert token.startswith("mlr_")
    row = await pool.fetchrow("SELECT * FROM credentials")
    assert token not in str(dict(row))
    assert row["secret_hash"] != hashlib.sha256(token.encode()).hexdigest()


async def test_a_password_is_stored_as_argon2id(store, pool):
    assert await store.create("ann", password=PASSWORD) == PASSWORD
    assert (await pool.fetchval("SELECT secret_hash FROM credentials")).startswith("$argon2id$")


async def test_what_was_created_is_listed_with_all_its_limits(store):
    await store.create(
        "shop",
        tenant="acme",
        scopes=frozenset({"send", "read"}),
        sender_domains=["example.com", "*.example.com"],
        stream="marketing",
        pool="warm",
        message_rate=Rate(1000, 3600.0),
        recipient_rate=Rate(20, 600.0),
    )
    await store.create("ann", password=PASSWORD)
    ann, shop = await store.list()
    assert ann.name == "ann"
    assert ann.kind == "password"
    assert shop.tenant == "acme"
    assert shop.scopes == {"send", "read"}
    assert shop.sender_domains == ("example.com", "*.example.com")
    assert (shop.stream, shop.pool) == ("marketing", "warm")
    assert shop.message_rate == Rate(1000, 3600.0)
    assert shop.recipient_rate == Rate(20, 600.0)
    assert shop.created_at is not None
    assert shop.disabled_at is None
    assert await store.get("shop") == shop
    assert await store.get("nobody") is None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": "trusted"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "Up"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "mlr_x"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "app"}, "name"),
        ({"name": "new", "password": "short"}, "password"),
        ({"name": "new", "password": "mlr_looks_like_a_token"}, "password"),
        ({"name": "new", "scopes": frozenset()}, "scopes"),
        ({"name": "new", "scopes": frozenset({"root"})}, "scopes"),
        ({"name": "new", "sender_domains": ["Example.com"]}, "sender_domains"),
        ({"name": "new", "sender_domains": ["*"]}, "sender_domains"),
        ({"name": "new", "sender_domains": ["a@example.com"]}, "sender_domains"),
        ({"name": "new", "message_rate": Rate(1, 0.5)}, "rate"),
    ],
)
async def test_what_cannot_be_a_credential_is_refused(store, arguments, field):
    await store.create("app")
    with pytest.raises(Refused) as refused:
        await store.create(**arguments)
    assert refused.value.field == field
    assert len(await store.list()) == 1


@pytest.mark.parametrize(
    ("allowed", "domain", "may"),
    [
        ((), "anything.example", True),
        (("example.com",), "example.com", True),
        (("example.com",), "a.example.com", False),
        (("example.com",), "badexample.com", False),
        (("*.example.com",), "a.example.com", True),
        (("*.example.com",), "a.b.example.com", True),
        (("*.example.com",), "example.com", False),
        (("*.example.com",), "badexample.com", False),
        (("a.example", "b.example"), "b.example", True),
        (("a.example",), "", False),
    ],
)
def test_sender_domains(allowed, domain, may):
    assert Credential("app", sender_domains=allowed).may_send_as(domain) is may


async def test_a_token_is_good_with_any_user_name_and_a_password_only_with_its_own(store, authenticator):
    token = await store.create("app")
    await store.create("ann", password=PASSWORD)
    assert (await authenticator.password("apikey", token, PEER)).name == "app"
    assert (await authenticator.token(token, PEER)).name == "app"
    assert (await authenticator.password("ann", PASSWORD, PEER)).name == "ann"
    assert await authenticator.password("app", PASSWORD, PEER) is None
    assert await authenticator.password("nobody", PASSWORD, PEER) is None


async def test_the_hash_of_a_token_does_not_open_anything(store, authenticator, pool):
    await store.create("app")
    stored = await pool.fetchval("SELECT secret_hash FROM credentials")
    assert await authenticator.password("app", stored, PEER) is None
    assert await authenticator.token(stored, PEER) is None


async def test_a_disabled_credential_is_refused_after_at_most_a_minute(store, authenticator, clock):
    token = await store.create("app")
    assert await authenticator.token(token, PEER)
    assert await store.disable("app", now=NOW)
    assert not await store.disable("app", now=NOW)
    assert await authenticator.token(token, PEER), "remembered"
    clock.seconds += 60
    assert await authenticator.token(token, PEER) is None
    assert await store.enable("app")
    assert await authenticator.token(token, PEER)


@pytest.mark.parametrize("end", ["delete", "rotate"])
async def test_a_deleted_or_rotated_credential_is_refused_after_at_most_a_minute(store, authenticator, clock, end):
    token = await store.create("app")
    assert await authenticator.token(token, PEER)
    result = await getattr(store, end)("app")
    clock.seconds += 60
    assert await authenticator.token(token, PEER) is None
    if end == "rotate":
        assert (await authenticator.token(result, PEER)).name == "app"
    assert not await getattr(store, end)("nobody")


async def test_a_remembered_answer_needs_no_database(store, authenticator, pool):
    await store.create("ann", password=PASSWORD)
    assert await authenticator.password("ann", PASSWORD, PEER)
    await pool.close()
    assert await authenticator.password("ann", PASSWORD, PEER)


async def test_without_a_database_nobody_is_called_wrong(store, authenticator, pool):
    token = await store.create("app")
    await pool.close()
    for _ in range(10):  # and it is no failure that counts
        with pytest.raises(Unavailable):
            await authenticator.token(token, PEER)


async def test_guessing_is_stopped_by_address_until_the_period_is_over(store, authenticator, clock):
    token = await store.create("app")
    for guess in range(3):
        assert await authenticator.password(f"user{guess}", "wrong wrong wrong", PEER) is None
    with pytest.raises(Refused) as refused:
        await authenticator.token(token, PEER)
    assert (refused.value.code, refused.value.enhanced) == (454, "4.7.0")
    assert await authenticator.token(token, "192.0.2.2"), "from elsewhere it is good"
    clock.seconds += 600
    assert await authenticator.password("app", "wrong wrong wrong", PEER) is None


async def test_guessing_is_stopped_by_user_name_from_however_many_addresses(store, authenticator):
    await store.create("ann", password=PASSWORD)
    for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        assert await authenticator.password("Ann", "wrong wrong wrong", peer) is None
    with pytest.raises(Refused):
        await authenticator.password("ann", "wrong wrong wrong", "192.0.2.4")


async def test_guessing_does_not_lock_out_who_is_already_in(store, authenticator, clock):
    await store.create("ann", password=PASSWORD)
    assert await authenticator.password("ann", PASSWORD, PEER)
    for _ in range(3):
        assert await authenticator.password("ann", "wrong wrong wrong", PEER) is None
    clock.seconds += 61
    assert await authenticator.password("ann", PASSWORD, PEER)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
async def test_an_ipv6_host_is_counted_by_its_network(authenticator, first, second, same):
    for guess in range(3):
        await authenticator.token(f"mlr_{guess}", first)
    if same:
        with pytest.raises(Refused):
            await authenticator.token("mlr_x", second)
    else:
        assert await authenticator.token("mlr_x", second) is None


def test_counting_failures_needs_bounded_memory():
    failures = Failures(Rate(3, 600.0))
    for number in range(MAX_COUNTED + 10):
        failures.count(f"peer {number}", 0.0)
    assert len(failures._periods) == MAX_COUNTED


async def test_odd_bytes_as_name_or_password_are_just_wrong(authenticator):
    assert await authenticator.password("é" * 100, "ü" * 10_000, PEER) is None


async def test_the_first_key_is_made_once_and_kept_for_its_owner_only(pool, tmp_path):
    token = await make_first_key(pool, tmp_path)
    kept = tmp_path / "api-key"
    assert token is not None
    assert kept.read_text() == f"{token}\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["api-key"]
    (first,) = await CredentialStore(pool).list()
    assert (first.name, first.scopes) == ("first", {"send", "read", "manage"})
    assert await make_first_key(pool, tmp_path) is None
    assert kept.read_text() == f"{token}\n"


async def test_a_first_key_that_cannot_be_written_is_not_created(pool, tmp_path):
    with pytest.raises(OSError):
        await make_first_key(pool, tmp_path / "missing")
    assert await CredentialStore(pool).list() == []


def test_a_secret_replaces_an_older_one_whole(tmp_path: Path):
    path = tmp_path / "api-key"
    path.write_text("old")
    write_secret(path, "new\n")
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tokens_differ_and_are_alphanumeric():
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token[4:].isalnum() and token.isascii() for token in tokens)
