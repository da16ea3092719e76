"""The ledger of consents: who agreed to what, when, how, and who took it back. Records are added, never changed.

A record is of an address, of one list or (`list_id` None) of all mail of the tenant. What counts is when the person
spoke (`at`), not when it was recorded: an old yes that is recorded late does not outdo a later no.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct

from mailerd.campaigns.contacts.refusals import refused, unknown
from mailerd.db import Connection, Pool
from mailerd.errors import Refused

Action = Literal["granted", "withdrawn"]
MAX_CONSENTS = 1_000  # records of one address
AHEAD = timedelta(minutes=5)  # so far may the client's clock be before ours


class ConsentFacts(Struct, frozen=True, kw_only=True):
    """How a person said it: `method` (form, double-opt-in, phone …), which text was shown, from where, and when."""

    method: str
    text_version: str = ""
    ip: str = ""
    at: datetime


class Consent(Struct, frozen=True, kw_only=True):
    """One record. `actor` is who recorded it."""

    id: int
    list_id: int | None
    action: Action
    method: str
    text_version: str
    ip: str
    actor: str
    at: datetime


RECORD = """
    INSERT INTO consents (tenant, address, contact_id, list_id, action, method, text_version, ip, actor, at)
    SELECT $1, $2, $3, list_id, $5, $6, $7, $8, $9, $10 FROM unnest($4::bigint[]) AS list_id
"""
COUNT = "SELECT count(*) FROM consents WHERE tenant = $1 AND address = $2"
LIST = """
    SELECT id, list_id, action, method, text_version, ip, actor, at FROM consents
     WHERE tenant = $1 AND address = $2 ORDER BY at DESC, id DESC LIMIT $3
"""
ADDRESS = "SELECT address FROM contacts WHERE tenant = $1 AND id = $2"
LOCKED_ADDRESS = f"{ADDRESS} FOR NO KEY UPDATE"
OWN_LIST = "SELECT true FROM contact_lists WHERE tenant = $1 AND id = $2"


def agreed_sql(alias: str, lists: str = "ARRAY[]::bigint[]") -> str:
    """SQL: whether a record says that this contact agreed to mail for any of these lists, or to all, and holds still.

    `alias` is a row with `tenant` and `address`; `lists` SQL of type bigint[].
    """
    return f"""EXISTS (SELECT FROM consents AS yes
        WHERE yes.tenant = {alias}.tenant AND yes.address = {alias}.address AND yes.action = 'granted'
          AND (yes.list_id IS NULL OR yes.list_id = ANY ({lists}))
          AND NOT EXISTS (SELECT FROM consents AS no
               WHERE no.tenant = yes.tenant AND no.address = yes.address AND no.action = 'withdrawn'
                 AND (no.list_id IS NULL OR no.list_id = yes.list_id) AND (no.at, no.id) > (yes.at, yes.id)))"""


def left_sql(alias: str, list_id: str) -> str:
    """SQL: whether the last that was said of this list alone is that the person left it.

    So it holds also for who was deleted, or removed from the list, and comes anew: nobody is subscribed again by that.
    """
    return f"""coalesce((SELECT said.action = 'withdrawn' FROM consents AS said
        WHERE said.tenant = {alias}.tenant AND said.address = {alias}.address AND said.list_id = {list_id}
        ORDER BY said.at DESC, said.id DESC LIMIT 1), false)"""


async def record(
    connection: Connection,
    tenant: str,
    address: str,
    contact_id: int,
    action: Action,
    facts: ConsentFacts,
    *,
    actor: str,
    list_ids: Sequence[int | None] = (None,),
) -> None:
    """Add a record for each of these lists (None: all mail), in the caller's transaction."""
    said = (facts.method, facts.text_version, facts.ip, actor, facts.at)
    await connection.execute(RECORD, tenant, address, contact_id, list(list_ids), action, *said)


async def is_full(connection: Connection, tenant: str, address: str) -> bool:
    """Whether an address has as many records as it may have; only what takes something back is still recorded."""
    return bool(await connection.fetchval(COUNT, tenant, address) >= MAX_CONSENTS)


def too_many() -> Refused:
    return refused("too_many", f"An address has at most {MAX_CONSENTS} records of consent.")


def check_time(facts: ConsentFacts, now: datetime) -> None:
    """Raises `Refused` for what was said in the future."""
    if facts.at > now + AHEAD:
        raise refused("invalid_value", "The consent is in the future.", http=422, field="consent")


class ConsentStore:
    """Reads the ledger, and adds what was granted. What is withdrawn comes by `SubscriptionStore.unsubscribe`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def grant(
        self,
        connection: Connection,
        tenant: str,
        contact_id: int,
        facts: ConsentFacts,
        *,
        list_id: int | None,
        actor: str,
        now: datetime,
    ) -> Consent:
        """Record that the person agreed, in the caller's transaction.

        It subscribes nobody again who has left: see `SubscriptionStore.subscribe`.

        Raises `Refused`: no such contact or list, in the future, too many.
        """
        check_time(facts, now)
        address = await connection.fetchval(LOCKED_ADDRESS, tenant, contact_id)
        if address is None:
            raise unknown("contact")
        if list_id is not None and not await connection.fetchval(OWN_LIST, tenant, list_id):
            raise unknown("list")
        if await is_full(connection, tenant, address):
            raise too_many()
        said = (facts.method, facts.text_version, facts.ip, actor, facts.at)
        id_ = await connection.fetchval(
            f"{RECORD} RETURNING id", tenant, address, contact_id, [list_id], "granted", *said
        )
        return Consent(
            id=id_,
            list_id=list_id,
            action="granted",
            actor=actor,
            method=facts.method,
            text_version=facts.text_version,
            ip=facts.ip,
            at=facts.at,
        )

    async def of(
        self, tenant: str, contact_id: int, *, limit: int = MAX_CONSENTS, connection: Connection | None = None
    ) -> list[Consent] | None:
        """What is on record of the contact's address, the last said first; None: no such contact."""
        source = connection or self._pool
        address = await source.fetchval(ADDRESS, tenant, contact_id)
        if address is None:
            return None
        return [Consent(**row) for row in await source.fetch(LIST, tenant, address, limit)]
