"""Tokens: only ours are read, each in one spelling, whatever the case."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.wire.tokens import LENGTH, MAX_N, RecipientToken, Tokens
from mailerd.wire.unsubscribe import Subscription, read_subscription

SECRET = b"s" * 32
TOKENS = Tokens(SECRET, "return-path")
MESSAGE = 116_000_000_000_000_000


@given(message_id=st.integers(0, 2**63 - 1), n=st.integers(0, MAX_N))
def test_what_was_made_is_read_in_any_case(message_id, n):
    token = TOKENS.make(message_id, n)
    assert len(token) == LENGTH
    assert token.isalnum()
    assert token == token.lower()
    mixed = "".join(letter.upper() if at % 2 else letter for at, letter in enumerate(token))
    assert {TOKENS.read(token), TOKENS.read(token.upper()), TOKENS.read(mixed)} == {RecipientToken(message_id, n)}


def test_every_other_letter_at_every_place_is_refused():
    token = TOKENS.make(MESSAGE, 7)
    for at, own in enumerate(token):
        for letter in string.printable:
            if letter.lower() != own:
                assert TOKENS.read(token[:at] + letter + token[at + 1 :]) is None


def test_a_cut_or_longer_token_is_refused():
    token = TOKENS.make(MESSAGE, 7)
    assert all(TOKENS.read(token[:length]) is None for length in range(len(token)))
    assert all(TOKENS.read(token + more) is None for more in ("=", "a", "\n", " "))


@pytest.mark.parametrize("other", [Tokens(SECRET, "unsubscribe"), Tokens(b"t" * 32, "return-path")])
def test_a_token_of_another_purpose_or_installation_is_none(other):
    assert other.read(TOKENS.make(MESSAGE, 1)) is None
    assert other.open(TOKENS.seal(b"facts")) is None


@given(st.text(max_size=40))
def test_any_text_is_read_without_a_complaint(text):
    assert TOKENS.read(text) is None
    assert TOKENS.open(text) is None


@given(st.binary(min_size=1, max_size=300))
def test_what_was_sealed_is_opened(facts):
    sealed = TOKENS.seal(facts)
    assert set(sealed) <= set(string.ascii_letters + string.digits + "-_")
    assert TOKENS.open(sealed) == facts
    assert TOKENS.seal(facts) == sealed


def test_a_sealed_token_has_one_spelling():
    sealed = TOKENS.seal(b"tenant\0stream\0topic\0bob@example.net")
    for at, own in enumerate(sealed):
        for letter in string.printable:
            if letter != own:
                assert TOKENS.open(sealed[:at] + letter + sealed[at + 1 :]) is None
    for more in ("=", "==", "\n", "!", "AAAA"):
        assert TOKENS.open(sealed + more) is None
        assert TOKENS.open(more + sealed) is None


@pytest.mark.parametrize(
    "address", ["bob@example.net", "jürgen@example.net", '"a b"@example.net', "用户@xn--fsq.example"]
)
def test_a_subscription_comes_back_with_its_address(address):
    subscription = Subscription("acme", "marketing", "Angebote für März", "frühling", address, MESSAGE, 3)
    tokens = Tokens(SECRET, "unsubscribe")
    assert read_subscription(tokens, subscription.seal(tokens)) == subscription
