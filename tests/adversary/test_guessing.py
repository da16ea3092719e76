"""Guessing: soon refused, by address and by name; and nothing tells a name that exists from one that does not."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import argon2
import asyncpg
import pytest

from mailerd import config
from mailerd.intake import authenticator as checking
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import CredentialStore
from tests.support.smtp_intake import Client, Intake, Outbox
from tests.web.conftest import Api

PASSWORD, WRONG = "correct horse battery", "battery horse correct"
GUESSES = 4
NAMES = ("ann", "nobody", "app", "gone", "ANN", "ann@example.com", "é" * 70, "")


@pytest.fixture
async def store(database: str) -> AsyncIterator[CredentialStore]:
    """ann has a password, app a token, gone is disabled."""
    async with asyncpg.create_pool(database, min_size=1, max_size=3) as pool:
        store = CredentialStore(pool)
        await store.create("ann", password=PASSWORD)
        await store.create("app")
        await store.create("gone", password=PASSWORD)
        await store.disable("gone", now=datetime(2026, 11, 22, tzinfo=UTC))
        yield store


def plain(name: str, password: str) -> str:
    return "AUTH PLAIN " + base64.b64encode(f"\0{name}\0{password}".encode()).decode()


async def guesser(intake: Intake, source: str) -> Client:
    client = await intake.connect_from(source)
    await client.say("EHLO guesser.example")
    return client


async def test_a_wrong_password_and_an_unknown_name_get_the_same_words_and_cost_the_same(
    store: CredentialStore, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    verify = checking._verify

    def counted(expected: str, password: str) -> bool:
        hashed.append(str(argon2.extract_parameters(expected)))
        return verify(expected, password)

    monkeypatch.setattr(checking, "_verify", counted)
    authenticator = Authenticator(store, failures=config.Rate(1_000, 600.0))
    replies, work = set(), []
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        for name in NAMES:
            hashed.clear()
            client = await guesser(intake, "127.0.0.1")
            replies.add(await client.say(plain(name, WRONG)))
            work.append(tuple(hashed))
        replies.add(await (await guesser(intake, "127.0.0.1")).say(plain("gone", PASSWORD)))
    assert replies == {"535 5.7.8 Authentication credentials invalid"}
    assert len(set(work)) == 1
    assert len(work[0]) == 1, "one hash, of the same parameters"


@pytest.mark.parametrize("name", ["ann", "nobody"])
async def test_one_address_may_guess_so_often_whomever_it_guesses(
    store: CredentialStore, outbox: Outbox, name: str
) -> None:
    authenticator = Authenticator(store, failures=config.Rate(GUESSES, 600.0))
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        for guess in range(GUESSES):
            client = await guesser(intake, "127.0.0.7")
            assert (await client.say(plain(f"{name}{guess}", WRONG))).startswith("535 5.7.8")
        for _ in range(2):
            client = await guesser(intake, "127.0.0.7")
            refused = await client.say(plain("ann", PASSWORD))
            assert refused == "454 4.7.0 too many failures, try again later", "also when it has guessed right"
        elsewhere = await guesser(intake, "127.0.0.8")
        assert (await elsewhere.say(plain("ann", PASSWORD))).startswith("235")


@pytest.mark.parametrize("name", ["ann", "nobody"])
async def test_one_name_may_be_guessed_so_often_from_however_many_addresses(
    store: CredentialStore, outbox: Outbox, name: str
) -> None:
    """Whether or not there is such a name: or the lock would tell."""
    authenticator = Authenticator(store, failures=config.Rate(GUESSES, 600.0))
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        replies = []
        for guess in range(GUESSES + 2):
            client = await guesser(intake, f"127.0.1.{guess + 1}")
            replies.append((await client.say(plain(name, WRONG)))[:9])
    assert replies == ["535 5.7.8"] * GUESSES + ["454 4.7.0"] * 2


async def test_one_connection_guesses_in_parallel_in_vain(store: CredentialStore, outbox: Outbox) -> None:
    authenticator = Authenticator(store, failures=config.Rate(GUESSES, 600.0))
    async with Intake(outbox, authenticator, listener={"auth": "required"}) as intake:
        client = await guesser(intake, "127.0.0.1")
        client.write(f"{plain('ann', WRONG)}\r\n".encode() * 50)
        replies = (await client.rest()).splitlines()
    assert [reply[:3] for reply in replies] == ["535"] * GUESSES + ["421"]


async def test_no_command_tells_who_is_there(store: CredentialStore, outbox: Outbox) -> None:
    authenticator = Authenticator(store, failures=config.Rate(1_000, 600.0))
    async with Intake(outbox, authenticator, listener={"auth": "optional", "trusted": ()}) as intake:
        for command in ("VRFY {}", "VRFY {}@example.com", "EXPN {}", "HELP {}", "NOOP {}", "RCPT TO:<{}@example.com>"):
            said = {
                (await intake.session("MAIL FROM:<x@example.com>", command.format(name)))[1]
                for name in ("ann", "app", "nobody", "root")
            }
            assert len(said) == 1, command
            assert not said.pop().startswith("250 2.1.5")
    assert outbox.messages == []


@pytest.mark.parametrize("failures", [config.Rate(GUESSES, 60.0)], indirect=True)
async def test_keys_of_the_api_are_guessed_in_vain(api: Api) -> None:
    stored = await api.relay.pool.fetchval("SELECT secret_hash FROM credentials WHERE name = 'all'")
    near = api.tokens["all"][:-1] + ("0" if api.tokens["all"][-1] != "0" else "1")
    answers = [await api.ask("GET", "/api/v1/emails", key=key) for key in (stored, near, "mlr_", "x")]
    assert {(answer.status, answer.problem.code, answer.problem.detail) for answer in answers} == {
        (401, "unauthorized", "Send the header `Authorization: Bearer` with a valid API key.")
    }
    refused = await api.ask("GET", "/api/v1/emails", key="sender")
    assert (refused.status, refused.problem.code) == (429, "too_many_auth_failures"), "right, and too late"
    assert "Retry-After" in refused.headers
