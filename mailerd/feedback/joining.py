"""Which recipient of which message of ours a report is about.

Only what cannot be guessed counts: a token of ours, in the address it came to or in our returned header, or the
Message-ID of a message together with the address of one of its recipients. How far each of them is believed is a
matter of `Trust`. Mail that strangers wrote and we sent on is no mail of ours: its Message-ID is known to them.

A message's id tells when it was accepted, which spares the older partitions of events.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import islice

import asyncpg

from mailerd.db import Connection
from mailerd.delivery.identity import FOREIGN
from mailerd.events import COLUMNS, Event
from mailerd.feedback.reading import Report, Reported
from mailerd.queue.ids import milliseconds_of
from mailerd.queue.suppression import normalised
from mailerd.wire.tokens import RecipientToken, Tokens
from mailerd.wire.unsubscribe import PURPOSE, read_subscription

SLACK = timedelta(minutes=5)  # between the clock that made an id and the one that made its events
MAX_LOOKED_AT = 65_536  # bytes of a returned header
MAX_TOKENS = 20  # of it, that are checked
MAX_NAMED = 1_000  # recipients of one report
MAX_MESSAGES = 1_000  # that share a Message-ID, the newest
MAX_FOUND = 10_000  # of their recipients

BOUNCED_OR_DELIVERED = ("recipient.bounced", "recipient.delivered")
FINAL = frozenset(
    f"recipient.{state}" for state in ("delivered", "bounced", "expired", "cancelled", "suppressed")
)  # after which a recipient is not in the queue any more

_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_PATH, _LEAVE = (
    re.compile(rb"(?<![a-z2-7])%b-([a-z2-7]{31})(?![a-z2-7])" % kind, re.IGNORECASE) for kind in (b"b", b"u")
)
_SEALED = re.compile(rb"/u/([A-Za-z0-9_-]{40,3000})")


class Trust(Enum):
    """How sure it is that whoever reports knows of this recipient's mail from its host."""

    SURE = "sure"  # a token that only this recipient's mail carried, or a service that signs what it says
    LINK = "link"  # the way to unsubscribe: whoever was shown the mail has it
    NAMED = "named"  # the Message-ID and the address: any other recipient of the message knows both


@dataclass(frozen=True, slots=True)
class Trail:
    """By what a report leads to mail of ours: for counters `how`, token, header, link, message_id or "" (by nothing).

    `vouched`: who reports has signed it with a key that we know.
    """

    how: str = ""
    tokens: tuple[RecipientToken, ...] = ()
    message_id: str = ""
    vouched: bool = False

    def trust(self, key: "Key") -> Trust:
        """As far as a recipient goes to whom it leads."""
        if self.how == "link":
            return Trust.LINK
        return Trust.SURE if self.vouched or key in self.tokens else Trust.NAMED


class Trails:
    """Finds them. `secret` is the installation's."""

    def __init__(self, secret: bytes) -> None:
        self._paths = Tokens(secret, "return-path")
        self._unsubscribes = Tokens(secret, PURPOSE)

    def of(self, tokens: Sequence[RecipientToken], report: Report, *, links: bool = True) -> Trail:
        """The best there is: `tokens` are those of the addresses that the report came to.

        Without `links` the ways to unsubscribe that the returned header has lead nowhere.
        """
        if tokens:
            return Trail("token", tuple(dict.fromkeys(tokens)))
        text = _FOLD.sub(b"", report.returned.header[:MAX_LOOKED_AT])
        if (token := self._path_in(text)) is not None:
            return Trail("header", (token,))
        if links and (token := self._link_in(text)) is not None:
            return Trail("link", (token,))
        if report.returned.message_id:
            return Trail("message_id", message_id=report.returned.message_id)
        return Trail()

    def _path_in(self, text: bytes) -> RecipientToken | None:
        """The first recipient whose return path stands there, wherever it stands."""
        found = islice(_PATH.finditer(text), MAX_TOKENS)
        return next((token for match in found if (token := self._paths.read(match[1].decode())) is not None), None)

    def _link_in(self, text: bytes) -> RecipientToken | None:
        """The first recipient of whom a way to unsubscribe stands there."""
        for match in islice(_LEAVE.finditer(text), MAX_TOKENS):
            if (token := self._unsubscribes.read(match[1].decode())) is not None:
                return token
        for match in islice(_SEALED.finditer(text), MAX_TOKENS):
            if (subscription := read_subscription(self._unsubscribes, match[1].decode())) is not None:
                return RecipientToken(subscription.message_id, subscription.n)
        return None


@dataclass(frozen=True, slots=True)
class Sent:
    """A message of ours, as its first event tells."""

    message_id: int
    tenant: str
    sender: str
    stream: str
    topic: str
    campaign: str
    accepted_at: datetime
    foreign: bool = False  # strangers wrote it


@dataclass(frozen=True, slots=True)
class Subject:
    """The recipient whom a report is about, and all that has happened to it so far, in order."""

    sent: Sent
    n: int
    address: str
    notify: str  # NOTIFY of RFC 3461, "" when not given
    past: tuple[Event, ...] = ()

    @property
    def delivered(self) -> Event | None:
        return next((event for event in reversed(self.past) if event.type == "recipient.delivered"), None)

    @property
    def personal(self) -> bool:
        """Did it go out with a token of its recipient that comes back with it?"""
        return self.delivered is not None and bool((self.delivered.data or {}).get("personal"))

    @property
    def waits(self) -> bool:
        """It is still in our queue."""
        return not any(event.type in FINAL and not (event.data or {}).get("late") for event in self.past)

    @property
    def bounced(self) -> bool:
        """Has it bounced, at once or late, since it was delivered last?"""
        last = next((each for each in reversed(self.past) if each.type in BOUNCED_OR_DELIVERED), None)
        return last is not None and last.type == "recipient.bounced"

    @property
    def complained(self) -> bool:
        return any(event.type == "recipient.complained" for event in self.past)


Key = tuple[int, int]  # message, n


def accepted_about(message_id: int) -> datetime:
    """When a message of this id was accepted, to a few seconds."""
    return datetime.fromtimestamp(milliseconds_of(message_id) / 1000, UTC)


def choose(reported: Sequence[Reported], address: str) -> Reported | None:
    """What is said of this address, else the first that failed, else the first: a token has told who is meant."""
    wanted = normalised(address)
    for each in reported:
        if wanted in (normalised(each.original), normalised(each.address)):
            return each
    failed = (each for each in reported if each.action in ("failed", ""))
    return next(failed, reported[0] if reported else None)


# The partial index finds the messages by their hash; the text makes sure. An address that has no other spelling than in
# upper and lower case is compared here, any other by `_named`.
NAMED = """
    (lower(event.address) = ANY ($3) OR octet_length(event.address) <> length(event.address)
     OR strpos(event.address, '"') > 0)
"""
BY_MESSAGE_ID = f"""
    WITH messages AS MATERIALIZED (
        SELECT message_id, at FROM events
         WHERE type = 'message.accepted' AND n = 1
           AND hashtextextended(data->>'message_id', 0) = hashtextextended($1, 0) AND data->>'message_id' = $1
           AND data->>'credential' IS DISTINCT FROM $4 AND at >= $2
         ORDER BY at DESC LIMIT $5)
    SELECT event.message_id, event.n, event.address, event.tenant
      FROM messages JOIN events AS event ON event.message_id = messages.message_id AND event.at = messages.at
     WHERE event.type = 'message.accepted' AND {NAMED} ORDER BY event.message_id DESC LIMIT $6
"""
BY_ADDRESS = f"""
    SELECT message_id, n, address, tenant FROM events AS event
     WHERE message_id = ANY ($1::bigint[]) AND at >= $2 AND type = 'message.accepted' AND {NAMED}
     ORDER BY message_id DESC LIMIT $4
"""
# What is true of all of a message stands in the event of its first recipient.
PAST = f"""
    SELECT {COLUMNS} FROM events AS event
      JOIN unnest($1::bigint[], $2::int[]) AS wanted (of_message, of_n)
        ON event.message_id = of_message AND (event.n = of_n OR event.n = 1 AND event.type = 'message.accepted')
     WHERE event.at >= $3 ORDER BY event.txid, event.seq
"""
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('mailerd.feedback', 0) # id) FROM unnest($1::bigint[]) AS id"


class JoinStore:
    """Finds recipients, in the transaction that acts on them."""

    async def find(
        self, connection: Connection, trail: Trail, named: Sequence[Reported], since: datetime
    ) -> dict[Key, Reported | None]:
        """Whom a report means and what it says of each; of messages accepted at `since` or later."""
        found: dict[Key, Reported | None] = {}
        whole: list[int] = []
        for token in trail.tokens:
            if accepted_about(token.message_id) < since:
                continue
            if token.n:
                found[token] = None
            else:
                whole.append(token.message_id)
        said = _by_address(named)
        if whole and said:
            rows = await connection.fetch(BY_ADDRESS, whole, accepted_about(min(whole)) - SLACK, list(said), MAX_FOUND)
            found |= _named(rows, said)
        if trail.message_id and said:
            rows = await connection.fetch(
                BY_MESSAGE_ID, trail.message_id, since, list(said), FOREIGN, MAX_MESSAGES, MAX_FOUND
            )
            found |= _named(rows, said)
        return found

    async def lock(self, connection: Connection, keys: Sequence[Key]) -> None:
        """Let nobody else record reports about these messages until the transaction ends."""
        await connection.execute(LOCK, sorted({message_id for message_id, _ in keys}))

    async def subjects(self, connection: Connection, keys: Sequence[Key]) -> list[Subject]:
        """The recipients with their past; without those that are not known any more, and of mail of strangers."""
        since = accepted_about(min(message_id for message_id, _ in keys)) - SLACK
        columns = [list(column) for column in zip(*keys, strict=True)]
        past: dict[Key, list[Event]] = {}
        seen: set[tuple[int, int, str, datetime]] = set()
        for row in await connection.fetch(PAST, *columns, since):
            event = Event(**row)
            key = (event.message_id, event.n, event.type, event.at)
            if key not in seen:  # the first recipient's acceptance is found once for each recipient
                seen.add(key)
                past.setdefault((event.message_id, event.n), []).append(event)
        subjects = [subject for key in keys if (subject := _subject(key, past)) is not None]
        return [subject for subject in subjects if not subject.sent.foreign]


def _by_address(named: Sequence[Reported]) -> dict[str, Reported]:
    """What is said of each address: as we mailed it first, as it ended up else."""
    said: dict[str, Reported] = {}
    for each in named[:MAX_NAMED]:
        for address in filter(None, (each.original, each.address)):
            said.setdefault(normalised(address), each)
    return said


def _named(rows: Sequence[asyncpg.Record], said: Mapping[str, Reported]) -> dict[Key, Reported | None]:
    """Those who are named, of all spellings; each once of a tenant, by the newest message."""
    found: dict[Key, Reported | None] = {}
    seen: set[tuple[str, str]] = set()
    for message_id, n, address, tenant in rows:
        who = (normalised(address), tenant)
        if who[0] in said and who not in seen:
            seen.add(who)
            found[message_id, n] = said[who[0]]
    return found


def _subject(key: Key, past: dict[Key, list[Event]]) -> Subject | None:
    mine = past.get(key, [])
    first = next((event for event in past.get((key[0], 1), ()) if event.type == "message.accepted"), None)
    accepted = next((event for event in mine if event.type == "message.accepted"), None)
    if first is None or accepted is None:
        return None
    facts = first.data or {}
    sent = Sent(
        message_id=key[0],
        tenant=first.tenant,
        sender=facts.get("sender", ""),
        stream=first.stream or facts.get("stream", ""),
        topic=facts.get("topic", ""),
        campaign=first.campaign,
        accepted_at=first.at,
        foreign=facts.get("credential") == FOREIGN,
    )
    return Subject(sent, key[1], accepted.address, (accepted.data or {}).get("notify", ""), tuple(mine))
