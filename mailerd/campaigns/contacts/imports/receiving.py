"""A file that comes in piece by piece: kept in parts, never whole in memory, and looked at before it is taken."""

import asyncio
from contextlib import suppress

import msgspec
from msgspec import Struct

from mailerd.campaigns.contacts.csv_reading import EncodingGuess
from mailerd.campaigns.contacts.imports.columns import Columns, ColumnsError, find_delimiter, first_record
from mailerd.campaigns.contacts.imports.store import PART, Import, ImportStore
from mailerd.campaigns.contacts.imports.values import Mode, Position, Settings
from mailerd.errors import MailerdError
from mailerd.queue.commit import LOST


class TooLargeError(MailerdError):
    """The file has more bytes than a file may have."""


class WithdrawnError(MailerdError):
    """It was cancelled while it came in."""


class Request(Struct, frozen=True, kw_only=True):
    """What is to become of a file. The list, if any, is a static one of this tenant."""

    tenant: str
    mode: Mode = "upsert"
    dry_run: bool = False
    list_id: int | None = None
    settings: Settings = Settings()
    created_by: str


class Receiver:
    """Takes one file.

    receiver = await Receiver.begin(store, request, most)
    async with receiver:            # whatever leaves it undone makes it as if it had never been
        await receiver.feed(data) …
        made = await receiver.finish()
    """

    def __init__(self, store: ImportStore, request: Request, made: Import, most: int) -> None:
        self._store = store
        self._request = request
        self._import = made
        self._most = most
        self._rest = bytearray()
        self._parts = 0
        self._size = 0
        self._head = b""
        self._guess = EncodingGuess()
        self._done = False

    @classmethod
    async def begin(cls, store: ImportStore, request: Request, most: int) -> "Receiver":
        """`most`: so many bytes are taken."""
        made = await store.begin(
            request.tenant,
            mode=request.mode,
            dry_run=request.dry_run,
            list_id=request.list_id,
            settings=request.settings,
            created_by=request.created_by,
        )
        return cls(store, request, made, most)

    async def __aenter__(self) -> "Receiver":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """What is not finished is forgotten."""
        if not self._done:
            with suppress(*LOST):  # the importer sweeps it up
                await asyncio.shield(self._store.forget(self._import.id))

    async def feed(self, data: bytes) -> None:
        """The next bytes. Raises ColumnsError as soon as it is clear, TooLargeError, WithdrawnError."""
        self._size += len(data)
        if self._size > self._most:
            raise TooLargeError(f"A file of contacts may have {self._most:,} bytes.")
        if self._request.settings.format == "csv" and not self._request.settings.encoding:
            self._guess.feed(data)
        self._rest += data
        while len(self._rest) >= PART:
            await self._keep(bytes(self._rest[:PART]))
            del self._rest[:PART]

    async def complete(self) -> None:
        """That was all: keep the rest of it. Raises what `feed` does.

        `finish` does it too, but who has it begin in a transaction would hold one connection and wait for another.
        """
        if not self._size:
            raise ColumnsError("The file is empty.")
        if self._rest:
            await self._keep(bytes(self._rest))
            self._rest.clear()

    async def finish(self, store: ImportStore | None = None) -> Import:
        """That was all: from now on it is imported, whatever happens to us. Raises what `feed` does.

        `store`: of the caller's transaction, with which it begins.
        """
        await self.complete()
        settings, position = self._look()
        made = await (store or self._store).received(self._import.id, self._size, settings, position)
        if made is None:
            raise WithdrawnError("It was cancelled.")
        self._done = True
        return made

    async def _keep(self, part: bytes) -> None:
        if not self._parts:
            self._head = part
            self._look()  # before a gigabyte comes in vain
        if not await self._store.add_part(self._import.id, self._parts, part):
            raise WithdrawnError("It was cancelled.")
        self._parts += 1

    def _look(self) -> tuple[Settings, Position]:
        """How the file is to be read, by what is there of it so far."""
        settings = self._request.settings
        if settings.format == "json":
            return settings, Position()
        whole = self._size <= PART
        encoding = settings.encoding or self._guess.result()
        delimiter = settings.delimiter or find_delimiter(self._head, encoding, settings, whole=whole)
        columns = Columns(first_record(self._head, encoding, delimiter, whole=whole), settings)
        settings = msgspec.structs.replace(settings, encoding=encoding, delimiter=delimiter)
        return settings, Position(
            columns=columns.fields, ignored=columns.ignored, names=columns.names, header=columns.header
        )
