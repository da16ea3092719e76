"""Contents beside the rows of their messages: in `large_contents`, a row for each page, written by COPY.

TOAST would cut them into rows of 2 KB, each with an index entry and log records of its own, and an array of them is
copied several times on its way into the table. COPY costs round trips, so this is for groups of messages that are large
together.
"""

from collections.abc import AsyncIterator, Sequence
from struct import Struct

from mailerd.db import Connection
from mailerd.queue.mail import Message

LARGE = 400_000  # bytes of all contents that are written together, from which on that is cheaper
SMALLEST = 4_000  # bytes of one: what is below would fill half a page
PART = 8_100  # bytes of one row: it must fit on a page, beside the row's other columns
PARTS_AT_ONCE = 8  # rows of one message to the server

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # of COPY's binary format: no flags, no extension
TRAILER = b"\xff\xff"
ROW = Struct("!hiqiii")  # three columns, each behind its length; the last one's bytes follow

# The content of a row of `messages`, wherever it stands.
CONTENT = """
    COALESCE(content, (SELECT string_agg(bytes, ''::bytea ORDER BY part) FROM large_contents WHERE message_id = id))
"""


def beside(messages: Sequence[Message]) -> dict[int, bytes]:
    """By message id the contents that are written beside their messages, if these are stored together."""
    found = {message.id: message.content for message in messages if message.content and not message.render}
    if sum(map(len, found.values())) < LARGE:
        return {}
    return {id_: content for id_, content in found.items() if len(content) >= SMALLEST}


async def store(contents: dict[int, bytes], connection: Connection) -> None:
    """Write them, in the caller's transaction."""
    await connection.copy_to_table(
        "large_contents", columns=("message_id", "part", "bytes"), source=_rows(contents), format="binary"
    )


async def _rows(contents: dict[int, bytes]) -> AsyncIterator[bytes]:
    pieces: list[bytes | memoryview] = [HEADER]
    for message_id, content in contents.items():
        view = memoryview(content)
        for part, start in enumerate(range(0, len(view), PART)):
            bytes_ = view[start : start + PART]
            pieces += ROW.pack(3, 8, message_id, 4, part, len(bytes_)), bytes_
            if len(pieces) >= 2 * PARTS_AT_ONCE:
                yield b"".join(pieces)
                pieces = []
    yield b"".join([*pieces, TRAILER])
