"""Between mailerd and its database, so that a test can take the database away, or only its answers."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

NAME = ".s.PGSQL.5432"


class DatabaseProxy:
    """Forwards a UNIX socket of its own to the server behind `url`.

    `cut()` ends all connections, `stop()` refuses new ones too, until `start()`. After `swallow()` what the server says
    on the connections of that moment reaches nobody, and `cut(server_sees=False)` leaves the server believing in its
    clients. `turn_to(url)` sends new connections elsewhere, and `slow` seconds pass before each answer goes on.
    """

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.username}@{parts.path}?host={quote(str(directory), safe='')}"
        self._path = directory / NAME
        self._behind = _socket(url)
        self.slow = 0.0
        self._pairs: list[_Pair] = []
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def start(self) -> None:
        self._listener = await asyncio.start_unix_server(self._serve, self._path)

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
            self._listener = None
        self.cut()

    def turn_to(self, url: str) -> None:
        self._behind = _socket(url)
        self.cut()

    def swallow(self) -> None:
        for pair in self._pairs:
            pair.mute = True

    def cut(self, *, server_sees: bool = True) -> None:
        for pair in self._pairs:
            pair.client.transport.abort()
            if server_sees:
                pair.server.transport.abort()
        if server_sees:
            self._pairs.clear()

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_unix_connection(self._behind)
        pair = _Pair(client, server)
        self._pairs.append(pair)
        await asyncio.gather(self._forward(reader, server, None), self._forward(answers, client, pair))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, muted: "_Pair | None") -> None:
        try:
            while data := await reader.read(65_536):
                if muted is not None and self.slow:
                    await asyncio.sleep(self.slow)
                if muted is None or not muted.mute:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass  # an end as good as any
        if muted is not None:
            writer.close()  # the server has closed, so its client hears of it; the other way `cut` decides


def _socket(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0]) / NAME


class _Pair:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.mute = False
