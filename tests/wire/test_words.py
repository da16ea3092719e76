"""Encoded words, read for people, whoever wrote them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.wire.words import decode_words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Your order 1001", "Your order 1001"),
        ("Grüße", "Grüße"),
        ("=?utf-8?B?R3LDvMOfZQ==?=", "Grüße"),
        ("=?utf-8?B?R3LDvA==?= =?utf-8?B?w59l?=", "Grüße"),
        ("Re: =?iso-8859-1?Q?Gr=FC=DFe?= from us", "Re: Grüße from us"),
        ("Grüße, =?utf-8?Q?=E2=82=AC?=", "Grüße, €"),
        ("=?utf-8?B?R3LDvMOfZQ==?= =?utf-8?B?R3L", "Grüße…"),
        ("=?x-unknown?B?R3LDvMOfZQ==?=", "=?x-unknown?B?R3LDvMOfZQ==?="),
        ("=?utf-8?B?R?=", "=?utf-8?B?R?="),
        ("=?utf-8?Q?=FF?=", "\N{REPLACEMENT CHARACTER}"),
        ("2 =? 3", "2 =? 3"),
        ("", ""),
    ],
)
def test_encoded_words_are_shown_as_what_they_say(text: str, shown: str) -> None:
    assert decode_words(text) == shown


WORDS = st.from_regex(r"=\?(utf-8|utf-7|utf-16|idna|punycode|hex|rot13|raw-unicode-escape)\?[BQ]\?.{0,20}\?=")


@given(st.lists(st.text() | WORDS).map(" ".join))
def test_whatever_stands_there_becomes_text_that_can_be_written(text: str) -> None:
    decode_words(text).encode()
