"""Mail that leaves soon is made ready together.

The same steps for several mails in a row take two thirds of the time that they take between the steps of others: the
processor has the code at hand.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from mailerd.delivery.rendering import Rendered, Withheld
from mailerd.queue.mail import Message, Recipient

log = structlog.get_logger()

IN_A_ROW = 16  # mails, for some ten milliseconds in which nothing else is done
MOST_BYTES = 2_000_000  # that wait to leave, of one call

Mail = tuple[Message, Recipient]


class Ready(NamedTuple):
    """A mail as it was rendered, and the fields to put before it, DKIM-Signature first; None: not signed yet."""

    rendered: Rendered | Withheld
    signature: bytes | None


class Readying:
    """Renders and signs ahead. `sign` None: signing is not done in this thread, and not here."""

    def __init__(
        self,
        render: Callable[[Sequence[Mail]], Awaitable[Sequence[Rendered | Withheld]]],
        sign: Callable[[Message, Recipient, Rendered], bytes] | None,
    ) -> None:
        self._render = render
        self._sign = sign
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, mails: Sequence[Mail]) -> list["asyncio.Future[Ready | None]"]:
        """What becomes of each; None: it was not made ready, do it yourself. Never an exception."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Ready | None]] = [loop.create_future() for _ in mails]
        task = loop.create_task(self._make(mails, futures), name="mail made ready")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return futures

    async def _make(self, mails: Sequence[Mail], futures: Sequence["asyncio.Future[Ready | None]"]) -> None:
        try:
            size = 0
            for first in range(0, len(mails), IN_A_ROW):
                row = mails[first : first + IN_A_ROW]
                rendered = await self._render(row)
                for mail, outcome, future in zip(row, rendered, futures[first:], strict=False):
                    if not future.done():
                        future.set_result(Ready(outcome, self._signature(*mail, outcome)))
                    size += len(outcome.content) if isinstance(outcome, Rendered) else 0
                if size > MOST_BYTES:
                    return
                await asyncio.sleep(0)
        except Exception as error:  # each will find out for itself
            log.debug("ready.failed", error=repr(error))
        finally:
            for future in futures:
                if not future.done():
                    future.set_result(None)

    def _signature(self, message: Message, recipient: Recipient, outcome: Rendered | Withheld) -> bytes | None:
        if self._sign is None or isinstance(outcome, Withheld):
            return None
        return self._sign(message, recipient, outcome)
