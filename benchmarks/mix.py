"""The mail of the long run: most is taken, some is deferred first, some refused, some taken slowly.

What becomes of message `number` follows from the number alone, so that source, sink and driver agree without talking.
"""

from typing import Literal

Fate = Literal["taken", "deferred", "bounced", "slow"]
FATES: tuple[Fate, ...] = ("taken", "deferred", "bounced", "slow")
SHARES = {"taken": 90, "deferred": 6, "bounced": 3, "slow": 1}  # of a hundred messages
STEP = 37  # no divisor of 100: the fates of neighbours differ
PROVIDERS = 10  # domains; what is slow has one of its own
SENDER = "signed.example"


def fate(number: int) -> Fate:
    """What the sink does with it."""
    place = number * STEP % 100
    for name in FATES:
        place -= SHARES[name]
        if place < 0:
            return name
    raise AssertionError("the shares are of a hundred")


def recipient(number: int) -> str:
    """`deferred.123@d3.mix.example`."""
    name = fate(number)
    domain = "slow.example" if name == "slow" else f"d{number // 100 % PROVIDERS}.mix.example"
    return f"{name}.{number}@{domain}"


def sender(number: int) -> str:
    """A bounce goes to an address of its own, so that each can be told from the others."""
    return f"b.{number}@{SENDER}" if fate(number) == "bounced" else f"bench@{SENDER}"


def parts(address: str) -> tuple[str, int]:
    """Fate and number of a recipient, or `b` and the number of a sender that got a bounce. Raises ValueError."""
    name, number = address.partition("@")[0].split(".")
    return name, int(number)
