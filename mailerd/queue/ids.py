"""Ids as everybody writes them: a prefix that says of what, and the number.

Message ids are time-ordered 63-bit numbers that workers make without asking anyone.
42 bits of milliseconds since 1970, 11 bits of worker number, 10 bits of counter. A worker gets its number from a
sequence in the database, so two workers share one only after 2,048 starts, and then not in the same millisecond.
"""

from collections.abc import Callable
from functools import lru_cache

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
LENGTH = 13  # 65 bits
PREFIX = "msg_"
PAIRS = [first + second for first in ALPHABET for second in ALPHABET]  # by ten bits
VALUES = {letter: value for value, letter in enumerate(ALPHABET)}
COUNTER_BITS = 10
WORKER_BITS = 11
SUPPRESSION = "sup_"
IMPORT = "imp_"  # of suppressions
CONTACT = "con_"
LIST = "lst_"
SEGMENT = "seg_"
TAG = "tag_"
CONSENT = "cst_"
CONTACT_IMPORT = "cim_"
TEMPLATE = "tpl_"
CAMPAIGN = "cmp_"


class IdMaker:
    """Hands out ids that grow, also when the clock is set back or a millisecond is used up."""

    def __init__(self, worker: int, milliseconds: Callable[[], int]) -> None:
        if not 0 <= worker < 1 << WORKER_BITS:
            raise ValueError(f"worker number {worker} is not in 0..{(1 << WORKER_BITS) - 1}")
        self._worker = worker
        self._milliseconds = milliseconds
        self._last = 0  # milliseconds and counter, as one number

    def next(self) -> int:
        self._last = max(self._last + 1, self._milliseconds() << COUNTER_BITS)
        milliseconds, counter = divmod(self._last, 1 << COUNTER_BITS)
        return (milliseconds << WORKER_BITS | self._worker) << COUNTER_BITS | counter


def milliseconds_of(message_id: int) -> int:
    """When the id was made, in milliseconds since 1970."""
    return message_id >> (WORKER_BITS + COUNTER_BITS)


def first_id_at(milliseconds: int) -> int:
    """The smallest id that can have been made at that time."""
    return milliseconds << (WORKER_BITS + COUNTER_BITS)


@lru_cache(maxsize=128)  # it is said some four times on the way of a mail, mostly within milliseconds
def format_message_id(message_id: int) -> str:
    """`msg_` and 13 letters that sort as the numbers do."""
    return (
        f"{PREFIX}{ALPHABET[message_id >> 60]}{PAIRS[message_id >> 50 & 1023]}{PAIRS[message_id >> 40 & 1023]}"
        f"{PAIRS[message_id >> 30 & 1023]}{PAIRS[message_id >> 20 & 1023]}{PAIRS[message_id >> 10 & 1023]}"
        f"{PAIRS[message_id & 1023]}"
    )


def parse_message_id(text: str) -> int:
    """The number behind `msg_…`; raises ValueError for anything else."""
    letters = text.removeprefix(PREFIX)
    if len(letters) != LENGTH or letters == text or any(letter not in VALUES for letter in letters):
        raise ValueError(f"{text[:40]!r} is not a message id such as msg_38g13rwt40000")
    number = 0
    for letter in letters:
        number = number << 5 | VALUES[letter]
    if number >> 63:
        raise ValueError(f"{text!r} is not a message id of ours")
    return number


def format_id(prefix: str, number: int) -> str:
    """`sup_17`: a number that the database gave."""
    return f"{prefix}{number}"


def parse_id(prefix: str, text: str) -> int:
    """The number behind `sup_17`, which is above 0; raises ValueError for anything else, also for other spellings."""
    digits = text.removeprefix(prefix)
    if digits == text or not digits.isascii() or not digits.isdigit() or digits[0] == "0" or len(digits) > 18:
        raise ValueError(f"{text[:40]!r} is not an id such as {prefix}17")
    return int(digits)


def names_campaign(text: str) -> bool:
    """Whether mail with that `campaign` is of a campaign of ours, `cmp_17`, not of a name that a client chose."""
    try:
        parse_id(CAMPAIGN, text)
    except ValueError:
        return False
    return True
