"""Content that is made right before it is sent: what the relay asks of whoever knows how.

A message with a `render` reference has one recipient and no content of its own. Whoever wrote the reference renders it
for each attempt, so a retry says what holds then.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mailerd.queue.mail import Message, Recipient


class Withheld(NamedTuple):
    """The mail is not to be sent after all: a word that says why, and a sentence."""

    reason: str
    detail: str


class Rendered(NamedTuple):
    """The RFC 5322 bytes with CRLF lines, and since when it is known that they may be sent, of the monotonic clock.

    `canonical`: it is known that their body is in DKIM's relaxed form.
    """

    content: bytes
    asked_at: float
    canonical: bool = False


class Renderer(Protocol):
    """Makes content."""

    def ahead(self, mails: Sequence[tuple[Message, Recipient]]) -> None:
        """These are about to be rendered: what is asked for each may be asked for all together."""
        ...

    async def render(self, message: Message, recipient: Recipient) -> Rendered | Withheld:
        """The mail, or why there is none. May raise what asking the database raises."""
        ...

    async def render_row(self, mails: Sequence[tuple[Message, Recipient]]) -> Sequence[Rendered | Withheld]:
        """What `render` makes of each; may raise the same, and then made none."""
        ...

    async def still(self, message: Message, recipient: Recipient) -> Withheld | None:
        """Why what was rendered a moment ago is not to be sent after all; None: it is. May raise as `render` does."""
        ...


class NoRenderer:
    """Of a relay that nobody has given one: such mail waits for a worker that has."""

    def ahead(self, mails: Sequence[tuple[Message, Recipient]]) -> None: ...

    async def render(self, message: Message, recipient: Recipient) -> Rendered | Withheld:
        raise LookupError(f"nobody here renders {message.render}")

    async def render_row(self, mails: Sequence[tuple[Message, Recipient]]) -> Sequence[Rendered | Withheld]:
        raise LookupError("nobody here renders mail")

    async def still(self, message: Message, recipient: Recipient) -> Withheld | None:
        raise LookupError(f"nobody here renders {message.render}")
