"""The table of contacts: one row for each address of a tenant, changed under its lock, deleted with what hangs on it.

The hash of an erased address is looked for after the new row is in: whoever erases the address at the same moment
holds the old row, so the new one comes after the erasure and sees it.
"""

import hmac
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from msgspec import Struct

from mailerd.campaigns.contacts.consent import ConsentFacts, check_time, is_full, record, too_many
from mailerd.campaigns.contacts.definitions import DefinitionStore
from mailerd.campaigns.contacts.fields import FieldProblem, check_fields, merged, too_large
from mailerd.campaigns.contacts.lists import move_counts
from mailerd.campaigns.contacts.members import MemberStore
from mailerd.campaigns.contacts.moving import MovingStore
from mailerd.campaigns.contacts.refusals import ContactExistsError, FieldsRefusedError, refused
from mailerd.campaigns.contacts.status import MARKETING, binds_sql, status_sql
from mailerd.campaigns.contacts.tags import TagStore
from mailerd.campaigns.contacts.values import Contact, parse_email
from mailerd.db import Connection, Pool
from mailerd.queue.suppression import SuppressionStore

SCANNED = 5_000  # contacts that one page of a rare filter looks at
MAX_ID = (1 << 63) - 1

# $1 tenant, $2 now. What one-click and the like have suppressed shows here too: the suppressions are the truth.
READ = f"""
    SELECT c.id, c.tenant, c.email, c.address, c.first_name, c.last_name, c.phone, c.time_zone, c.custom_fields,
           c.tracking, {status_sql("c", now="$2")} AS status, c.subscribed_at, c.created_at, c.updated_at,
           CASE WHEN gone.at IS NOT NULL THEN coalesce(c.unsubscribed_at, gone.at) END AS unsubscribed_at,
           CASE WHEN gone.at IS NULL THEN '' WHEN c.unsubscribe_reason <> '' THEN c.unsubscribe_reason
                ELSE gone.detail END AS unsubscribe_reason,
           ARRAY(SELECT t.name FROM contact_tags AS ct JOIN tags AS t ON t.id = ct.tag_id
                  WHERE ct.contact_id = c.id ORDER BY t.name COLLATE "C") AS tags
      FROM contacts AS c LEFT JOIN LATERAL (
           SELECT min(s.created_at) AS at,
                  coalesce(min(s.detail) FILTER (WHERE s.tenant = c.tenant AND s.detail <> ''), '') AS detail
             FROM suppressions AS s
            WHERE {binds_sql("c", "s", MARKETING, "$2")} AND s.reason = 'unsubscribe') AS gone ON true
     WHERE c.tenant = $1
"""
GET = f"{READ} AND c.id = $3"
MANY = f"{READ} AND c.id = ANY ($3::bigint[]) ORDER BY c.id"
FIND = "SELECT id FROM contacts WHERE tenant = $1 AND address = $2"
# Where a page begins to look; then which of those fit. $3 below this id, $4 how many are looked at, $5 tag, $6 list.
SEEN = {
    "all": "SELECT id FROM contacts WHERE tenant = $1 AND id < $3 ORDER BY id DESC LIMIT $4",
    "tag": "SELECT contact_id AS id FROM contact_tags WHERE tag_id = $5 AND contact_id < $3 ORDER BY id DESC LIMIT $4",
    "list": """SELECT contact_id AS id FROM list_contacts WHERE list_id = $6 AND contact_id < $3
                ORDER BY id DESC LIMIT $4""",
}
PAGE = """
    WITH seen AS MATERIALIZED ({seen})
    SELECT c.id, (SELECT count(*) FROM seen) AS looked_at, (SELECT min(id) FROM seen) AS last
      FROM (SELECT) AS one LEFT JOIN LATERAL (
           SELECT c.id FROM seen JOIN contacts AS c ON c.id = seen.id AND c.tenant = $1
            WHERE ($5::bigint IS NULL OR EXISTS (SELECT FROM contact_tags AS t
                                                  WHERE t.contact_id = c.id AND t.tag_id = $5))
              AND ($6::bigint IS NULL OR EXISTS (SELECT FROM list_contacts AS l WHERE l.list_id = $6
                                                    AND l.contact_id = c.id AND l.status = 'subscribed'))
              AND ($7::text IS NULL OR {status} = $7)
            ORDER BY c.id DESC LIMIT $8) AS c ON true
"""
CREATE = """
    INSERT INTO contacts (tenant, email, address, first_name, last_name, phone, time_zone, custom_fields, tracking,
                          subscribed_at, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $10) ON CONFLICT (tenant, address) DO NOTHING RETURNING id
"""
LOCK = """
    SELECT id, email, address, first_name, last_name, phone, time_zone, custom_fields, tracking FROM contacts
     WHERE tenant = $1 AND id = $2 FOR UPDATE
"""
# A bounce, which is the worse, hides that the person wants no mail.
STATUS = f"SELECT {status_sql('c', now='$2', bounces=False)} FROM contacts AS c WHERE c.id = $1"
CHANGE = """
    UPDATE contacts SET email = $2, address = $3, first_name = $4, last_name = $5, phone = $6, time_zone = $7,
           custom_fields = $8, tracking = $9, updated_at = $10
     WHERE id = $1
"""
TAKEN = "SELECT id FROM contacts WHERE tenant = $1 AND address = $2 AND id <> $3"
DELETE = "DELETE FROM contacts WHERE tenant = $1 AND id = $2 RETURNING address, email"
DELETE_REST = (
    "DELETE FROM contact_tags WHERE contact_id = $1",
    "DELETE FROM subscription_history WHERE contact_id = $1",
    "DELETE FROM engagements WHERE contact_id = $1",
)
DELETE_ROWS = """
    DELETE FROM list_contacts WHERE contact_id = $1 AND list_id = ANY (ARRAY(
           SELECT list_id FROM list_contacts WHERE contact_id = $1 ORDER BY list_id FOR UPDATE))
    RETURNING list_id, status
"""
ERASED = "SELECT hash, erased_at FROM erasures WHERE tenant = $1 AND hash = ANY ($2::bytea[])"
FORGET_ERASURE = "DELETE FROM erasures WHERE tenant = $1 AND hash = $2"


class ContactValues(Struct, frozen=True, kw_only=True):
    """What is to be written, checked but for the custom fields; None: not given, stays as it is."""

    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    phone: str | None = None
    time_zone: str | None = None
    tags: Sequence[str] | None = None  # names as `values.tag_name` makes them: these and no others
    custom_fields: dict[str, Any] | None = None  # those given replace, None removes, others stay
    tracking: bool | None = None


class ContactFilters(Struct, frozen=True, kw_only=True):
    """Which contacts; None: any. `address` is normalised; `list_id`: subscribed to it."""

    address: str | None = None
    status: str | None = None
    tag_id: int | None = None
    list_id: int | None = None


class ContactPage(NamedTuple):
    """`position` is the id below which to go on; None: that was all."""

    contacts: list[Contact]
    position: int | None


class Deleted(NamedTuple):
    address: str
    email: str


def erasure_hash(secret: bytes, tenant: str, address: str) -> bytes:
    """What stays of an erased address: nobody without the installation's secret can tell whose it is."""
    key = hmac.digest(secret, b"mailerd erasure", "sha256")
    return hmac.digest(key, f"{tenant}\0{address}".encode(), "sha256")


async def erased(
    connection: Connection | Pool, secret: bytes, tenant: str, addresses: Sequence[str]
) -> dict[str, datetime]:
    """Those of these normalised addresses that were erased, and when. Ask after the rows are in: see the module."""
    hashes = {erasure_hash(secret, tenant, address): address for address in addresses}
    return {hashes[row["hash"]]: row["erased_at"] for row in await connection.fetch(ERASED, tenant, list(hashes))}


async def delete_contact(connection: Connection, tenant: str, contact_id: int) -> Deleted | None:
    """Delete a contact with its tags, lists, history and engagements; None: no such contact.

    What was said of its address stays: suppressions, and the ledger of consents.
    """
    row = await connection.fetchrow(DELETE, tenant, contact_id)
    if row is None:
        return None
    for statement in DELETE_REST:
        await connection.execute(statement, contact_id)
    rows = await connection.fetch(DELETE_ROWS, contact_id)
    await move_counts(connection, {each["list_id"]: -1 for each in rows if each["status"] == "subscribed"})
    return Deleted(**row)


class ContactStore:
    """Makes, reads, changes and deletes contacts. Times are those of `clock`; `secret` is the installation's."""

    def __init__(
        self,
        pool: Pool,
        secret: bytes,
        clock: Callable[[], datetime],
        tags: TagStore,
        definitions: DefinitionStore,
        members: MemberStore,
        suppressions: SuppressionStore,
    ) -> None:
        self._pool = pool
        self._secret = secret
        self._clock = clock
        self._tags = tags
        self._definitions = definitions
        self._members = members
        self._moving = MovingStore(suppressions)

    async def create(
        self,
        connection: Connection,
        tenant: str,
        values: ContactValues,
        *,
        list_ids: Sequence[int] = (),
        consent: ConsentFacts | None = None,
        source: str,
    ) -> int:
        """A new contact, on these lists, with its consent on record; returns its id.

        Raises `ContactExistsError`, `FieldsRefusedError`, and `Refused` for lists that are not there, too many tags,
        and addresses that were erased, unless a consent younger than that is given.
        """
        now = self._clock()
        email, address = parse_email(values.email or "")
        fields = merged({}, await self._checked(connection, tenant, values.custom_fields or {}))
        contact_id = None
        while contact_id is None:
            contact_id = await connection.fetchval(
                CREATE,
                tenant,
                email,
                address,
                values.first_name or "",
                values.last_name or "",
                values.phone or "",
                values.time_zone or "",
                fields,
                values.tracking is not False,
                now,
            )
            if contact_id is None and (there := await connection.fetchval(FIND, tenant, address)) is not None:
                raise ContactExistsError(there)
        await self._check_erasure(connection, tenant, address, consent)
        await self._tags.set(connection, tenant, contact_id, values.tags or (), now=now)
        if consent is not None:
            check_time(consent, now)
            if await is_full(connection, tenant, address):
                raise too_many()
            lists: list[int | None] = [*list_ids] or [None]
            await record(connection, tenant, address, contact_id, "granted", consent, actor=source, list_ids=lists)
        for list_id in sorted(set(list_ids)):
            await self._members.add(tenant, list_id, [contact_id], source=source, now=now, connection=connection)
        return int(contact_id)

    async def get(self, tenant: str, contact_id: int) -> Contact | None:
        row = await self._pool.fetchrow(GET, tenant, self._clock(), contact_id)
        return None if row is None else Contact(**row)

    async def many(self, tenant: str, contact_ids: Sequence[int]) -> list[Contact]:
        """Those of these that there are, by id."""
        rows = await self._pool.fetch(MANY, tenant, self._clock(), list(contact_ids))
        return [Contact(**row) for row in rows]

    async def find(self, tenant: str, address: str) -> int | None:
        """The contact of this normalised address."""
        found: int | None = await self._pool.fetchval(FIND, tenant, address)
        return found

    async def list(self, tenant: str, filters: ContactFilters, *, limit: int, before: int = MAX_ID) -> ContactPage:
        """Newest first, ids below `before`. With a rare filter a page may be short, or empty, and not be the last."""
        if filters.address is not None:
            id_ = await self.find(tenant, filters.address)
            if id_ is None or id_ >= before:
                return ContactPage([], None)
            before, limit = id_ + 1, 1
        source = "tag" if filters.tag_id is not None else "list" if filters.list_id is not None else "all"
        looked = 1 if filters.address is not None else limit + 1 if filters == ContactFilters() else SCANNED
        now = self._clock()
        rows = await self._pool.fetch(
            PAGE.format(seen=SEEN[source], status=status_sql("c", now="$2")),
            tenant,
            now,
            before,
            looked,
            filters.tag_id,
            filters.list_id,
            filters.status,
            limit + 1,
        )
        ids = sorted((row["id"] for row in rows if row["id"] is not None), reverse=True)
        contacts = sorted(await self.many(tenant, ids[:limit]), key=lambda each: -each.id)
        if filters.address is not None:
            return ContactPage(contacts, None)
        if len(ids) > limit:
            return ContactPage(contacts, ids[limit - 1])
        return ContactPage(contacts, rows[0]["last"] if rows[0]["looked_at"] == looked else None)

    async def change(
        self, tenant: str, contact_id: int, values: ContactValues, *, consent: ConsentFacts | None = None
    ) -> bool:
        """Write what is given; False: no such contact.

        Raises what `create` does. The address changes only of contacts that are active or no more than bounced: else
        it would be a way around what the person said. What goes with the contact: see `moving`.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                return await self._change(connection, tenant, contact_id, values, consent)
        except asyncpg.UniqueViolationError:  # made by somebody else at this moment
            _, address = parse_email(values.email or "")
            raise ContactExistsError(await self.find(tenant, address) or 0) from None

    async def _change(
        self,
        connection: Connection,
        tenant: str,
        contact_id: int,
        values: ContactValues,
        consent: ConsentFacts | None,
    ) -> bool:
        now = self._clock()
        given = await self._checked(connection, tenant, values.custom_fields or {})
        row = await connection.fetchrow(LOCK, tenant, contact_id)
        if row is None:
            return False
        fields = merged(row["custom_fields"], given)
        if too_large(fields):
            raise FieldsRefusedError([FieldProblem("", "too_large", "All fields together are too large.")])
        email, address = (row["email"], row["address"]) if values.email is None else parse_email(values.email)
        counts: dict[int, int] = {}
        if address != row["address"]:
            counts = await self._move(connection, tenant, contact_id, row["address"], address, consent)
        await connection.execute(
            CHANGE,
            contact_id,
            email,
            address,
            row["first_name"] if values.first_name is None else values.first_name,
            row["last_name"] if values.last_name is None else values.last_name,
            row["phone"] if values.phone is None else values.phone,
            row["time_zone"] if values.time_zone is None else values.time_zone,
            fields,
            row["tracking"] if values.tracking is None else values.tracking,
            now,
        )
        if values.tags is not None:
            await self._tags.set(connection, tenant, contact_id, values.tags, now=now)
        await move_counts(connection, counts)
        return True

    async def delete(self, tenant: str, contact_id: int) -> bool:
        """False: no such contact. Its address stays as suppressed as it is, and may come again."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await delete_contact(connection, tenant, contact_id) is not None

    async def _checked(self, connection: Connection, tenant: str, fields: dict[str, Any]) -> dict[str, Any]:
        if not fields:
            return fields
        if problems := check_fields(fields, await self._definitions.for_writing(connection, tenant)):
            raise FieldsRefusedError(problems)
        return fields

    async def _check_erasure(
        self, connection: Connection, tenant: str, address: str, consent: ConsentFacts | None
    ) -> None:
        at = (await erased(connection, self._secret, tenant, [address])).get(address)
        if at is None:
            return
        if consent is None or consent.at < at:
            detail = "This person was erased; say by what later consent they came back, or leave them in peace."
            raise refused("erased", detail, field="email")
        await connection.execute(FORGET_ERASURE, tenant, erasure_hash(self._secret, tenant, address))

    async def _move(
        self, connection: Connection, tenant: str, id_: int, old: str, new: str, consent: ConsentFacts | None
    ) -> dict[int, int]:
        """What that adds to the counts of lists."""
        status = await connection.fetchval(STATUS, id_, self._clock())
        if status != "active":
            detail = f"The contact is {status}: another address would be a way around that."
            raise refused(f"contact_{status}", detail, field="email")
        if (other := await connection.fetchval(TAKEN, tenant, new, id_)) is not None:
            raise ContactExistsError(other)
        await self._check_erasure(connection, tenant, new, consent)
        return await self._moving.follow(connection, tenant, id_, old, new, self._clock())
