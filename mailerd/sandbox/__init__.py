"""The sandbox: a built-in mail exchanger whose replies follow the address, for trying things out.

The local part decides (case and a `+tag` do not matter, nor does the domain); `BEHAVIOURS` is the list. Any other
address is taken. A transaction has one reply after the final dot, so there the strongest of its recipients speaks for
all: drop, then spam, then slow. What is taken is kept as two files in a directory, the last `keep` messages, without
fsync: a playground, not a store. One process writes, any number read with `list_messages` and `read_message`.

Some addresses take a message and answer later, as real hosts do: with a bounce, a complaint, a vacation notice. That
goes to an inbound listener of ours, `sandbox.inbound`. Others have readers, who open a mail, click, or unsubscribe: by
links of our own daemon, at `http.public_url`, and no others.
"""

import asyncio
from pathlib import Path

import structlog

from mailerd import config
from mailerd.config import Endpoint
from mailerd.sandbox.answers import Taken, answer
from mailerd.sandbox.behaviours import BEHAVIOURS, Behaviour, behaviour_name
from mailerd.sandbox.conversation import Conversation
from mailerd.sandbox.kept import Kept, Stored, list_messages, read_message
from mailerd.sandbox.readers import Readers
from mailerd.sandbox.sending import Sender

__all__ = ["BEHAVIOURS", "Behaviour", "Sandbox", "Stored", "list_messages", "read_message"]

log = structlog.get_logger()

MAX_PAIRS = 10_000  # greylisted sender and recipient pairs remembered


class Sandbox:
    """The exchanger: listens from `start()` to `stop()`; one event loop, one process.

    Complaints are sent to `feedback`, or where it is "" to the return path. Readers follow links that begin with
    `links`, and none when it is "".
    """

    def __init__(
        self,
        settings: config.Sandbox,
        directory: Path,
        *,
        hostname: str = "sandbox.localhost",
        feedback: str = "",
        links: str = "",
        slow: float = 3.0,
    ) -> None:
        self._bind = settings.bind or Endpoint("127.0.0.1", 0)
        self.hostname = hostname
        self.slow = slow  # seconds that slow@ waits
        self.kept = Kept(directory, settings.keep)
        self._feedback = feedback
        self._sender = Sender(settings.inbound, hostname) if settings.inbound is not None else None
        self._readers = Readers(links) if links else None
        self.stopping = asyncio.Event()
        self._seen: dict[tuple[str, str], None] = {}
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def address(self) -> Endpoint:
        """Where it listens, with the port that the system chose."""
        assert self._server is not None, "not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return Endpoint(host, port)

    async def start(self) -> None:
        """Raise OSError when the address cannot be bound or the directory not written."""
        self.kept.open()
        self._server = await asyncio.start_server(self._converse, self._bind.host, self._bind.port, backlog=1_024)
        if self._sender is not None:
            self._sender.start()
        if self._readers is not None:
            self._readers.start()
        log.info("sandbox.started", address=str(self.address))

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is None:
            return
        self.stopping.set()
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        if self._open:
            await asyncio.wait(list(self._open))
        if self._sender is not None:
            await self._sender.stop()
        if self._readers is not None:
            await self._readers.stop()
        await self._server.wait_closed()
        self._server = None

    def greylists(self, sender: str, recipient: str) -> bool:
        """True on the first attempt of this pair; remembers it."""
        pair = (sender, recipient)
        if pair in self._seen:
            return False
        if len(self._seen) >= MAX_PAIRS:
            del self._seen[next(iter(self._seen))]
        self._seen[pair] = None
        return True

    def taken(self, stored: Stored, content: bytes) -> None:
        """Let those of its recipients answer that do. Nobody answers what has the null sender (RFC 5321 4.5.5)."""
        for n, recipient in enumerate(stored.recipients, 1):
            name = behaviour_name(recipient)
            behaviour = BEHAVIOURS[name] if name else None
            if behaviour is None:
                continue
            if behaviour.act is not None and self._readers is not None:
                self._readers.put(behaviour.act, content)
            if (kind := behaviour.answer) is not None and self._sender is not None and stored.sender:
                copy = Taken(stored.sender, recipient, content, stored.received_at)
                message_id = f"{stored.id}.{n}@{self.hostname}"
                self._sender.put(
                    answer(kind, copy, hostname=self.hostname, feedback=self._feedback, message_id=message_id)
                )

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            await Conversation(self, reader, writer).run()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # gone or silent: there is nobody to tell
        except Exception:  # one bad conversation must not end the others
            log.exception("sandbox.conversation_crashed")
        finally:
            del self._open[task]
            writer.close()
