"""One block of an import, written in one transaction: contacts, tags, lists, consents, counts, refused rows, the place.

Those that are not there yet come in by COPY, with numbers taken before; the others by a staging table and one UPDATE.
Both in the order in which all lock (see `contacts.lists`). Should somebody else make one of the new ones at that
moment, the transaction fails and is tried again.
"""

import asyncio
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from mailerd.campaigns.contacts.consent import left_sql
from mailerd.campaigns.contacts.csv_reading import Fault
from mailerd.campaigns.contacts.definitions import DefinitionStore
from mailerd.campaigns.contacts.imports.blocks import LINE, Line, Ready, without_removals
from mailerd.campaigns.contacts.imports.leaving import LeavingStore
from mailerd.campaigns.contacts.imports.store import Import, held
from mailerd.campaigns.contacts.imports.values import MAX_ERRORS, Counts, Position
from mailerd.campaigns.contacts.lists import move_counts
from mailerd.campaigns.contacts.members import static_list
from mailerd.campaigns.contacts.status import suppressed_sql
from mailerd.campaigns.contacts.store import ERASED, erasure_hash
from mailerd.campaigns.contacts.tags import TagStore
from mailerd.db import Connection
from mailerd.errors import MailerdError
from mailerd.queue.suppression import SuppressionStore

# Plans by key only, as those of pools; and a hash of all contacts is never what a block needs.
SESSION = """
    SET enable_seqscan = off; SET enable_mergejoin = off; SET enable_hashjoin = off; SET jit = off;
    SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SET idle_in_transaction_session_timeout = '30s';
    CREATE TEMP TABLE incoming (
        id bigint, tenant text, email text, address text, first_name text, last_name text, phone text, time_zone text,
        custom_fields jsonb, subscribed_at timestamptz, created_at timestamptz, updated_at timestamptz
    ) ON COMMIT DELETE ROWS
"""
TAKE = "SELECT pg_try_advisory_lock(hashtextextended('mailerd import ' || $1::text, 0))"
NOW = "SELECT now()"
KNOWN = """
    SELECT c.address, c.id, c.updated_at = $3 AS again
      FROM unnest($2::text[]) AS given (address) JOIN contacts AS c ON c.tenant = $1 AND c.address = given.address
"""
MAY_BE_HELD = """
    SELECT EXISTS (SELECT FROM suppressions WHERE tenant IN ($1, '')) OR EXISTS (SELECT FROM consents WHERE tenant = $1)
"""
# Who must not be subscribed: suppressed, or by his own word no more on this list.
HELD = f"""
    SELECT c.address FROM (SELECT $1::text AS tenant, unnest($2::text[]) AS address) AS c
     WHERE {suppressed_sql("c")} OR ($3::bigint IS NOT NULL AND {left_sql("c", "$3::bigint")})
"""
ANY_ERASED = "SELECT EXISTS (SELECT FROM erasures WHERE tenant = $1)"
NUMBERS = """
    SELECT array_agg(nextval(pg_get_serial_sequence('contacts', 'id'))) FROM generate_series(1, $1::int)
"""
# `||` puts null where a field is to be removed. An empty field changes nothing.
CHANGED = """
    coalesce(nullif(i.first_name, ''), c.first_name) AS first_name,
    coalesce(nullif(i.last_name, ''), c.last_name) AS last_name,
    coalesce(nullif(i.phone, ''), c.phone) AS phone,
    coalesce(nullif(i.time_zone, ''), c.time_zone) AS time_zone,
    CASE WHEN i.custom_fields = '{}' THEN c.custom_fields
         ELSE jsonb_strip_nulls(c.custom_fields || i.custom_fields) END AS custom_fields
"""
DIFFER = f"""
    SELECT i.id, i.updated_at, new.* FROM incoming AS i JOIN contacts AS c ON c.id = i.id
     CROSS JOIN LATERAL (SELECT {CHANGED}) AS new
     WHERE (new.first_name, new.last_name, new.phone, new.time_zone, new.custom_fields)
           IS DISTINCT FROM (c.first_name, c.last_name, c.phone, c.time_zone, c.custom_fields)
"""
WOULD_CHANGE = f"SELECT count(*) FROM ({DIFFER}) AS differ WHERE NOT id = ANY ($1::bigint[])"
CHANGE = f"""
    WITH differ AS MATERIALIZED ({DIFFER} ORDER BY i.id FOR NO KEY UPDATE OF c),
         done AS (UPDATE contacts AS c
                     SET first_name = d.first_name, last_name = d.last_name, phone = d.phone, time_zone = d.time_zone,
                         custom_fields = d.custom_fields, updated_at = d.updated_at
                    FROM differ AS d WHERE c.id = d.id RETURNING c.id)
    SELECT count(*) FROM done WHERE NOT id = ANY ($1::bigint[])
"""
LOCK_CONTACTS = "SELECT id FROM contacts WHERE tenant = $1 AND id = ANY ($2::bigint[]) ORDER BY id FOR KEY SHARE"
# Who is on the list already stays as he is there.
JOIN_LIST = """
    WITH there AS (
        INSERT INTO list_contacts (list_id, contact_id, status, source)
        SELECT $1, id, status, $4 FROM unnest($2::bigint[], $3::text[]) AS given (id, status) ORDER BY id
        ON CONFLICT DO NOTHING RETURNING status)
    SELECT count(*) FROM there WHERE status = 'subscribed'
"""
NOT_ON_LIST = """
    SELECT contact_id FROM list_contacts
     WHERE list_id = $1 AND contact_id = ANY ($2::bigint[]) AND status <> 'subscribed'
"""
GIVE_TAGS = """
    INSERT INTO contact_tags (contact_id, tag_id)
    SELECT contact_id, tag_id FROM unnest($1::bigint[], $2::bigint[]) AS given (contact_id, tag_id)
     ORDER BY contact_id, tag_id ON CONFLICT DO NOTHING
"""
MOVE = """
    UPDATE contact_imports
       SET bytes_done = $2, position = $3, rows = rows + $4, created = created + $5, updated = updated + $6,
           unchanged = unchanged + $7, skipped = skipped + $8, refused = refused + $9
     WHERE id = $1
"""
DROP_DONE = "DELETE FROM contact_import_parts WHERE import_id = $1 AND n < $2"


class MovedError(MailerdError):
    """The import is not where it was any more, or must not go on."""


class OtherTypesError(MailerdError):
    """The definitions of custom fields are others by now: the block must be read again."""


class ErasedError(MailerdError):
    """Somebody was erased at this moment: the block is to be written again, without them."""


class _People(NamedTuple):
    """The people of a block: those that are there, by address, and who of them was written by this import before."""

    known: dict[str, int]
    again: frozenset[str]
    new: dict[str, int]
    held: frozenset[str]


class BlockStore:
    """Writes the blocks of one import over a connection of its own."""

    def __init__(
        self,
        connection: Connection,
        definitions: DefinitionStore,
        tags: TagStore,
        suppressions: SuppressionStore,
        secret: bytes,
    ) -> None:
        self._connection = connection
        self._definitions = definitions
        self._tags = tags
        self._leaving = LeavingStore(connection, suppressions)
        self._secret = secret

    async def prepare(self) -> None:
        """Before anything else."""
        await self._connection.execute(SESSION)

    async def take(self, id_: int) -> bool:
        """Whether the import is ours, until the connection ends."""
        taken: bool = await self._connection.fetchval(TAKE, str(id_))
        return taken

    async def write(self, work: Import, ready: Ready, types: Mapping[str, str], seconds: float) -> Import:
        """Write a block that begins where the import is; returns the import as it is then.

        `types` are the definitions that the block was read with, `seconds` how long that took. Raises MovedError,
        OtherTypesError, and `Refused` when the list is gone or there are too many tags. All or nothing.
        """
        connection = self._connection
        async with connection.transaction():
            now = await connection.fetchval(NOW)
            there = await held(connection, work.id)
            if there is None or there.state != "processing" or there.bytes_done != work.bytes_done:
                raise MovedError(f"{work.name} was moved or ended by somebody else")
            if await self._definitions.for_writing(connection, work.tenant) != types:
                raise OtherTypesError("custom fields have other types by now")
            if work.list_id is not None:
                await static_list(connection, work.tenant, work.list_id)
            counts = await self._write(there, ready, now)
            position = await self._note(there, ready, counts, seconds)
        return _moved(there, ready, counts, position)

    async def _write(self, work: Import, ready: Ready, now: datetime) -> Counts:
        lines = ready.lines
        counts = Counts(rows=ready.batch.rows, refused=len(ready.batch.faults), duplicates=ready.batch.duplicates)
        if not lines:
            return counts
        if work.mode == "unsubscribe":
            counts.updated = await self._leaving.unsubscribe(work, sorted(lines), now)
            counts.unchanged = len(lines) - counts.updated
            return counts
        gone = await self._erased(work.tenant, lines)
        if gone:
            lines = {address: line for address, line in lines.items() if address not in gone}
        counts.erased = counts.skipped = len(gone)
        people = await self._look_up(work, list(lines))
        counts.created, counts.duplicates = len(people.new), counts.duplicates + len(people.again)
        others = len(people.known) - len(people.again)
        if work.mode == "skip":
            counts.skipped += others
        else:
            counts.updated = await self._change(work, lines, people)
            counts.unchanged = others - counts.updated
        counts.not_subscribed = sum(1 for address in people.held if address not in people.again)
        if not work.dry_run:
            await self._create(work, lines, people)
            await self._surround(work, lines, people, counts, now)
        return counts

    async def _look_up(self, work: Import, addresses: list[str]) -> _People:
        connection = self._connection
        rows = await connection.fetch(KNOWN, work.tenant, addresses, work.created_at)
        known = {row["address"]: row["id"] for row in rows}
        again = frozenset(row["address"] for row in rows if row["again"])
        missing = [address for address in addresses if address not in known]
        numbers: Sequence[int] = range(len(missing))
        if missing and not work.dry_run:
            numbers = await connection.fetchval(NUMBERS, len(missing))
        asked = missing if work.mode == "skip" else addresses
        may_be_held = await connection.fetchval(MAY_BE_HELD, work.tenant)
        stay = await connection.fetch(HELD, work.tenant, asked, work.list_id) if may_be_held and asked else []
        new = dict(zip(missing, numbers, strict=True))
        return _People(known, again, new, frozenset(row["address"] for row in stay))

    async def _change(self, work: Import, lines: Mapping[str, Line], people: _People) -> int:
        """Write what is new about those who are there; how many that changes, without those of this file."""
        if not people.known:
            return 0
        ordered = sorted((id_, lines[address][1]) for address, id_ in people.known.items())
        await self._copy("incoming", ("id", *LINE), (f"{id_}\t{line}" for id_, line in ordered))
        again = [people.known[address] for address in people.again]
        return int(await self._connection.fetchval(WOULD_CHANGE if work.dry_run else CHANGE, again))

    async def _create(self, work: Import, lines: Mapping[str, Line], people: _People) -> None:
        if people.new:
            mark = work.created_at.isoformat()
            times = f"{mark}\t{mark}\t{mark}\n"
            made = (
                f"{id_}\t{without_removals(lines[address], work.tenant, times)}" for address, id_ in people.new.items()
            )
            await self._copy("contacts", ("id", *LINE), made)
            # Whoever erases one of them at this moment had its row, for which we have waited: now it is known.
            if await self._erased(work.tenant, people.new):
                raise ErasedError("somebody of the file was erased at this moment")

    async def _erased(self, tenant: str, addresses: Collection[str]) -> frozenset[str]:
        """Those that must not come back."""
        if not await self._connection.fetchval(ANY_ERASED, tenant):
            return frozenset()
        hashes = await asyncio.to_thread(_hashes, self._secret, tenant, list(addresses))
        return frozenset(hashes[row["hash"]] for row in await self._connection.fetch(ERASED, tenant, list(hashes)))

    async def _surround(
        self, work: Import, lines: Mapping[str, Line], people: _People, counts: Counts, now: datetime
    ) -> None:
        """Tags, list and consent of all who are meant: with mode skip, of those that are new."""
        ids = people.new if work.mode == "skip" else people.new | people.known
        if work.settings.tags or any(lines[address][0].tags for address in ids):
            tags = {id_: (*work.settings.tags, *lines[address][0].tags) for address, id_ in ids.items()}
            await self._give_tags(work, tags, people, now)
        joined = 0
        if work.list_id is not None:
            joined = await self._join(work, work.list_id, ids, people, counts)
        if work.settings.consent is not None:
            fresh = [address for address in ids if address not in people.held and address not in people.again]
            await self._record(work, {address: ids[address] for address in fresh}, now)
        if work.list_id is not None:
            await move_counts(self._connection, {work.list_id: joined})

    async def _give_tags(
        self, work: Import, wanted: Mapping[int, Sequence[str]], people: _People, now: datetime
    ) -> None:
        names = {name for each in wanted.values() for name in each}
        numbers = await self._tags.resolve(self._connection, work.tenant, names, now=now)
        there = await self._there(work, people)
        new = frozenset(people.new.values())
        pairs = sorted(
            {(id_, numbers[name]) for id_, each in wanted.items() if id_ in new or id_ in there for name in each}
        )
        added = [pair for pair in pairs if pair[0] in new]
        await self._copy("contact_tags", ("contact_id", "tag_id"), (f"{id_}\t{tag}\n" for id_, tag in added))
        if others := [pair for pair in pairs if pair[0] not in new]:
            await self._connection.execute(GIVE_TAGS, *map(list, zip(*others, strict=True)))

    async def _join(self, work: Import, list_id: int, ids: Mapping[str, int], people: _People, counts: Counts) -> int:
        """Put them on the list; how many are subscribed that were not."""
        source = f"import:{work.name}"
        added = {id_: address in people.held for address, id_ in people.new.items()}
        await self._copy(
            "list_contacts",
            ("list_id", "contact_id", "status", "source"),
            (f"{list_id}\t{id_}\t{_status(stays)}\t{source}\n" for id_, stays in added.items()),
        )
        joined = len(added) - sum(added.values())
        there = await self._there(work, people)
        known = {id_: address in people.held for address, id_ in ids.items() if id_ in there}
        if known:
            statuses = [_status(stays) for stays in known.values()]
            joined += await self._connection.fetchval(JOIN_LIST, list_id, list(known), statuses, source)
            away = await self._connection.fetch(NOT_ON_LIST, list_id, list(known))
            again = {people.known[address] for address in people.again}
            counts.not_subscribed += sum(
                1 for row in away if not known[row["contact_id"]] and row["contact_id"] not in again
            )
        return joined

    async def _there(self, work: Import, people: _People) -> frozenset[int]:
        """Those of the known whom nobody has deleted meanwhile, nor will before we are done."""
        if not people.known:
            return frozenset()
        rows = await self._connection.fetch(LOCK_CONTACTS, work.tenant, sorted(people.known.values()))
        return frozenset(row["id"] for row in rows)

    async def _record(self, work: Import, ids: Mapping[str, int], now: datetime) -> None:
        consent = work.settings.consent
        assert consent is not None
        said = (consent.method, consent.text_version, consent.ip, work.created_by, min(consent.at or now, now))
        await self._connection.copy_records_to_table(
            "consents",
            columns=("tenant", "address", "contact_id", "list_id", "action", *_SAID),
            records=((work.tenant, address, id_, work.list_id, "granted", *said) for address, id_ in ids.items()),
        )

    async def _note(self, work: Import, ready: Ready, counts: Counts, seconds: float) -> Position:
        faults = ready.batch.faults[: MAX_ERRORS - work.position.errors]
        await self._keep(work, faults)
        position = msgspec.structs.replace(
            work.position,
            line=ready.line,
            skipping=ready.skipping,
            wary=ready.wary,
            header=False,
            duplicates=work.position.duplicates + counts.duplicates,
            not_subscribed=work.position.not_subscribed + counts.not_subscribed,
            erased=work.position.erased + counts.erased,
            errors=work.position.errors + len(faults),
            seconds=round(work.position.seconds + seconds, 3),
        )
        moved = (counts.rows, counts.created, counts.updated, counts.unchanged, counts.skipped, counts.refused)
        await self._connection.execute(MOVE, work.id, ready.end, msgspec.to_builtins(position), *moved)
        await self._connection.execute(DROP_DONE, work.id, ready.done_parts)
        return position

    async def _keep(self, work: Import, faults: Iterable[Fault]) -> None:
        records = [(work.id, fault.line, fault.code, fault.detail, fault.content) for fault in faults]
        if records:
            columns = ("import_id", "line", "code", "detail", "content")
            await self._connection.copy_records_to_table("contact_import_errors", columns=columns, records=records)

    async def _copy(self, table: str, columns: Sequence[str], lines: Iterable[str]) -> None:
        data = "".join(lines).encode()
        if data:
            await self._connection.copy_to_table(table, source=io.BytesIO(data), columns=columns, format="text")


def _hashes(secret: bytes, tenant: str, addresses: Sequence[str]) -> dict[bytes, str]:
    return {erasure_hash(secret, tenant, address): address for address in addresses}


_SAID = ("method", "text_version", "ip", "actor", "at")


def _status(stays: bool) -> str:
    return "unsubscribed" if stays else "subscribed"


def _moved(work: Import, ready: Ready, counts: Counts, position: Position) -> Import:
    total = Counts(**{name: getattr(work.counts, name) + getattr(counts, name) for name in Counts.__struct_fields__})
    return msgspec.structs.replace(work, bytes_done=ready.end, position=position, counts=total)
