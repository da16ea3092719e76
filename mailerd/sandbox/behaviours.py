"""Which local parts the sandbox acts on, and how."""

from collections.abc import Mapping
from dataclasses import dataclass

from mailerd.sandbox.answers import Kind
from mailerd.sandbox.readers import Act


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the sandbox does for a local part: at RCPT, or at the final dot ("" there: no reply, or the usual one).

    `answer` is what comes back for a message that was taken, `act` what its reader does.
    """

    about: str
    rcpt: str = ""
    dot: str = ""
    answer: Kind | None = None
    act: Act | None = None


BEHAVIOURS: Mapping[str, Behaviour] = {
    "bounce": Behaviour("refused at RCPT for good", rcpt="550 5.1.1 no such mailbox"),
    "unknown": Behaviour("the same", rcpt="550 5.1.1 no such mailbox"),
    "full": Behaviour("refused at RCPT: mailbox full", rcpt="552 5.2.2 the mailbox is full"),
    "defer": Behaviour(
        "greylisted: put off on the first attempt of a sender, then taken", rcpt="451 4.7.1 greylisted, come back later"
    ),
    "always-defer": Behaviour("put off at RCPT, every time", rcpt="451 4.7.1 come back later"),
    "421": Behaviour("the connection is closed at RCPT", rcpt="421 4.3.2 the sandbox closes this connection"),
    "spam": Behaviour("refused after the content", dot="554 5.7.1 this looks like spam"),
    "slow": Behaviour("taken, the reply comes after 3 seconds"),
    "drop": Behaviour("the connection is closed after the content, without a reply"),
    "late-bounce": Behaviour("taken, then a bounce comes back: no such mailbox", answer="unknown"),
    "late-full": Behaviour("taken, then a bounce comes back: mailbox full", answer="full"),
    "complain": Behaviour("taken, then the reader's complaint comes back", answer="complaint"),
    "vacation": Behaviour("taken, then a vacation notice comes back", answer="vacation"),
    "open": Behaviour("taken and opened: the pixel of a campaign is fetched", act="open"),
    "click": Behaviour("taken, opened, and the first tracked link clicked", act="click"),
    "unsubscribe": Behaviour("taken, opened, and left with one click", act="unsubscribe"),
}


def behaviour_name(address: str) -> str | None:
    """The local part without its tag, when it is one that the sandbox acts on."""
    name = address.rpartition("@")[0].partition("+")[0].lower()
    return name if name in BEHAVIOURS else None
