"""One open SMTP connection as we use it: groups of commands out, exactly as many replies back."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from mailerd import failpoints
from mailerd.errors import RemoteProtocolError
from mailerd.wire.smtp import Reply, ReplyReader

SHUTDOWN = 421  # RFC 5321 4.2.1: "closing transmission channel", allowed as the reply to anything, or to nothing


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a connection can no longer be used. `kind` is an error kind of `verdict.network_verdict`.

    `unsent`: bytes that the peer had not taken when we gave up; 0 also when that is not known.
    """

    kind: str
    text: str
    unsent: int = 0


class Pipeline(asyncio.Protocol):
    """Matches replies to commands by their number, and notices when that is no longer possible.

    Replies never shift: one too many, or one that nothing asked for, ends the connection instead of answering the next
    command. There is one timer for the life of the connection; `exchange` only moves the deadline that it looks at,
    because two timers a message cost more than the rest of the exchange.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.trouble: Trouble | None = None
        self.late = False  # cut, because what was written left later than it might
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._replies: list[Reply] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._patience = math.inf  # seconds until the next reply
        self._deadline = math.inf
        self._unsent = 0  # bytes that the peer had not taken when the timer last looked; 0: not sending content
        self._patience_after = math.inf  # seconds from the last byte of content to the reply
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        transport.set_protocol(self)

    @property
    def unsent(self) -> int:
        """Bytes that we still hold: while there are any, the peer cannot have seen the end of the content."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    async def exchange(
        self, commands: bytes, wanted: int, seconds: float, in_time: Callable[[], bool] | None = None
    ) -> list[Reply]:
        """Write `commands`, return their `wanted` replies, each at most `seconds` after the one before.

        Fewer replies come back when the connection ended; `trouble` then says why. `in_time` is asked when the kernel
        has the commands; False: the connection is cut, and `late`. It is cut too when the kernel does not take them all
        at once: the rest could leave at any time.
        """
        self._unsent = 0
        return await self._exchange(commands, wanted, seconds, in_time)

    async def exchange_content(self, content: bytes, block: float, dot: float) -> list[Reply]:
        """Write `content`, which ends with the dot, and return its reply, if it came.

        The peer has to take some of it every `block` seconds, and has about `dot` seconds once it has all.
        """
        self._unsent = len(content)
        self._patience_after = dot
        return await self._exchange(content, 1, block)

    async def _exchange(
        self, data: bytes, wanted: int, seconds: float, in_time: Callable[[], bool] | None = None
    ) -> list[Reply]:
        if self.trouble is not None:
            return []
        replies: list[Reply] = []
        self._replies = replies
        self._wanted = wanted
        self._patience = seconds
        self._transport.write(data)
        if failpoints.ON and self._unsent:
            failpoints.reached("attempt.after_dot")
        if in_time is not None:
            if self.unsent:
                self.fail("reset", "the connection did not take our commands at once")
                return []
            if not in_time():
                self.late = True
                self.fail("closed", "held up while writing")
                return []
        self._set_deadline(self._loop.time() + seconds)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.fail("closed", "given up by us")
            raise
        finally:
            self._waiter = None
            self._wanted = 0
            self._replies = []
            self._deadline = math.inf
        return replies

    def fail(self, kind: str, text: str) -> None:
        """End the connection at once; the first reason stays."""
        if self.trouble is None:
            self.trouble = Trouble(kind, text, self.unsent)
        self._transport.abort()
        self._stop_timer()
        self._wake()

    def close(self) -> None:
        """Say QUIT without waiting for the answer, and close."""
        if self.trouble is None:
            self.trouble = Trouble("closed", "closed by us")
            if not self.unsent:
                self._transport.write(b"QUIT\r\n")
        self._stop_timer()
        self._hang_up()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        new: list[Reply] = []
        broken = ""
        try:
            new = self._reader.feed(data)
            if len(new) < data.count(b"\n"):  # lines that are no whole reply: does the reader hold a broken one?
                self._reader.feed(b"")
        except RemoteProtocolError as error:
            broken = str(error)
        replies = self._replies
        for reply in new:
            replies.append(reply)
            if reply.code == SHUTDOWN:
                self._shut_down(reply)
                return
        missing = self._wanted - len(replies)
        if broken:
            self.fail("garbage", broken)
        elif missing < 0:
            self.fail("garbage", f"a reply that answers nothing: {replies[self._wanted]}")
        elif missing == 0:
            if not data.endswith(b"\n"):
                self.fail("garbage", "the beginning of a reply that answers nothing")
            self._wake()
        elif new:
            self._deadline = self._loop.time() + self._patience

    def eof_received(self) -> None:
        """Return None: the transport closes itself, and `connection_lost` tells."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self.trouble is None:
            closed = Trouble("closed", "the peer closed the connection")
            self.trouble = closed if exc is None else Trouble("reset", f"connection lost: {exc}")
        self._stop_timer()
        self._wake()

    # the rest

    def _shut_down(self, reply: Reply) -> None:
        if self.trouble is None:
            self.trouble = Trouble("closed", str(reply))
        self._hang_up()
        self._stop_timer()
        self._wake()

    def _hang_up(self) -> None:
        if self.unsent:  # close() would wait for a peer that may never read it
            self._transport.abort()
        else:
            self._transport.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._rings_at:
            self._stop_timer()
            self._start_timer(deadline)

    def _start_timer(self, when: float) -> None:
        self._rings_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._rings_at = math.inf

    def _ring(self) -> None:
        self._timer = None
        self._rings_at = math.inf
        if self._deadline == math.inf:
            return
        now = self._loop.time()
        if now >= self._deadline and not self._prolonged(now):
            self.fail("timeout", f"no reply within {self._patience:g} s")
        else:
            self._start_timer(self._deadline)

    def _prolonged(self, now: float) -> bool:
        """True when content is on its way and the peer took some of it, or now has it all."""
        if not self._unsent:
            return False
        unsent = self.unsent
        if unsent == 0:
            self._patience = self._patience_after
        elif unsent >= self._unsent:
            return False
        self._unsent = unsent
        self._deadline = now + self._patience
        return True
