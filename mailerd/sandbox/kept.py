"""What the sandbox took, as two files for each message. One process writes, any number read."""

import re
from collections import deque
from datetime import datetime
from pathlib import Path

import msgspec

from mailerd.clock import utc_now

MESSAGE_ID = re.compile(r"[0-9a-f]{14}", re.ASCII)


class Stored(msgspec.Struct, frozen=True):
    """The envelope of a message that the sandbox took, and what a list shows of it."""

    id: str  # hexadecimal, in the order of arrival
    received_at: datetime
    sender: str
    recipients: tuple[str, ...]
    peer: str
    helo: str
    size: int  # bytes
    subject: str = ""
    parameters: str = ""  # of MAIL, as sent


def list_messages(directory: Path) -> list[Stored]:
    """The kept messages, oldest first; those that vanish meanwhile are left out."""
    stored = (_read_envelope(path) for path in sorted(directory.glob("*.json")))
    return [one for one in stored if one is not None]


def read_message(directory: Path, message_id: str) -> tuple[Stored, bytes] | None:
    """Envelope and content; None when there is no such message (any more)."""
    if not MESSAGE_ID.fullmatch(message_id):
        return None
    stored = _read_envelope(directory / f"{message_id}.json")
    try:
        content = (directory / f"{message_id}.eml").read_bytes()
    except FileNotFoundError:
        return None
    return (stored, content) if stored is not None else None


class Kept:
    """The last messages on disk: content in ID.eml, then envelope in ID.json, which makes both visible."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._ids: deque[str] = deque()
        self._last = 0

    def open(self) -> None:
        """Make the directory, and tidy what a crash left half written."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        complete = {path.stem for path in self._directory.glob("*.json") if MESSAGE_ID.fullmatch(path.stem)}
        for path in self._directory.iterdir():
            if path.suffix == ".part" or (path.suffix == ".eml" and path.stem not in complete):
                path.unlink(missing_ok=True)
        self._ids = deque(sorted(complete))
        self._last = int(self._ids[-1], 16) if self._ids else 0
        self._prune()

    def next_id(self) -> str:
        """Microseconds since 1970, made unique and rising also when the clock is set back."""
        self._last = max(self._last + 1, int(utc_now().timestamp() * 1e6))
        return f"{self._last:014x}"

    def add(self, stored: Stored, content: bytes) -> None:
        envelope = self._directory / f"{stored.id}.json"
        part = envelope.with_suffix(".part")
        # Nobody looks at the content before its envelope is there, so one rename is enough.
        envelope.with_suffix(".eml").write_bytes(content)
        part.write_bytes(msgspec.json.encode(stored))
        part.rename(envelope)
        self._ids.append(stored.id)
        self._prune()

    def _prune(self) -> None:
        while len(self._ids) > self._keep:
            oldest = self._ids.popleft()
            (self._directory / f"{oldest}.json").unlink(missing_ok=True)
            (self._directory / f"{oldest}.eml").unlink(missing_ok=True)


def _read_envelope(path: Path) -> Stored | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stored)
    except (FileNotFoundError, ValueError, msgspec.DecodeError):
        return None
