"""Who of a campaign's audience was reached, and who was not and why: the ledger, joined with the contacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mailerd.campaigns.ledger import GIVEN_UP, Mark
from mailerd.campaigns.values import Resend
from mailerd.db import Pool

# What contacts are asked for by, and told of.
MARKS = {"opened": Mark.OPENED, "clicked": Mark.CLICKED, "unsubscribed": Mark.UNSUBSCRIBED,
         "complained": Mark.COMPLAINED}  # fmt: skip
LOOKED_AT = 20_000  # rows of the ledger for one page
PAGE = """
    WITH seen AS MATERIALIZED (
        SELECT contact_id, due_at, waiting, status, marks, message_id, changed_at, reason FROM campaign_contacts
         WHERE campaign_id = $1 AND contact_id > $2 ORDER BY contact_id LIMIT $3
    ), fitting AS (
        SELECT * FROM seen WHERE ($4::smallint[] IS NULL OR status = ANY ($4)) AND ($5::text IS NULL OR reason = $5)
           AND marks & $8 = $8 AND marks & $9 = 0
         ORDER BY contact_id LIMIT $6
    )
    SELECT f.*, COALESCE(c.email, '') AS email, e.looked_at, e.last
      FROM (SELECT count(*) AS looked_at, max(contact_id) AS last FROM seen) AS e
      LEFT JOIN fitting AS f ON true LEFT JOIN contacts AS c ON c.id = f.contact_id AND c.tenant = $7
     ORDER BY f.contact_id
"""
ANY = f"""
    SELECT EXISTS (SELECT FROM campaign_contacts WHERE campaign_id = $1 AND marks & 48 = 0
                      AND (status = ANY ($2::smallint[]) OR status = 2 AND $3 <> 0 AND marks & $3 = 0
                           OR {GIVEN_UP.format(statuses="$2")}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """One row of the ledger. `email` is "" when the contact was erased."""

    contact_id: int
    email: str
    due_at: datetime
    waiting: bool
    status: int
    marks: int
    message_id: int | None
    changed_at: datetime | None
    reason: str

    @property
    def done(self) -> dict[str, bool]:
        """What was done with the mail: the words of `MARKS`, by people, and of machines what only they did so far."""
        return {word: bool(self.marks & mark) for word, mark in MARKS.items()} | {
            "machine_opened": self.marks & (Mark.OPENED | Mark.MACHINE_OPENED) == Mark.MACHINE_OPENED,
            "machine_clicked": self.marks & (Mark.CLICKED | Mark.MACHINE_CLICKED) == Mark.MACHINE_CLICKED,
        }


@dataclass(frozen=True, slots=True)
class ReachedPage:
    """By contact id. `after` None: that was all; a page may be short, or empty, and not be the last."""

    data: list[Reached]
    after: int | None


def marks_of(asked: Mapping[str, bool | None]) -> tuple[int, int]:
    """`marked` and `unmarked` of `RecipientStore.page`, by words of `MARKS`; None: either way."""
    marked = sum(int(MARKS[word]) for word, has in asked.items() if has is True)
    return marked, sum(int(MARKS[word]) for word, has in asked.items() if has is False)


class RecipientStore:
    """Reads ledgers; whose campaign it is the caller has found out."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self,
        campaign_id: int,
        tenant: str,
        *,
        limit: int,
        after: int = 0,
        statuses: Sequence[int] | None = None,
        reason: str | None = None,
        marked: int = 0,
        unmarked: int = 0,
    ) -> ReachedPage:
        """Up to `limit` contacts that fit, behind that contact id; of at most `LOOKED_AT` rows.

        `marked` and `unmarked` are marks that they all have, or all lack.
        """
        wanted = (statuses, reason, limit + 1, tenant, marked, unmarked)
        rows = await self._pool.fetch(PAGE, campaign_id, after, LOOKED_AT, *wanted)
        names = Reached.__dataclass_fields__
        found = [Reached(**{name: row[name] for name in names}) for row in rows if row["contact_id"] is not None]
        if len(found) > limit:
            return ReachedPage(found[:limit], found[limit - 1].contact_id)
        more = bool(rows) and rows[0]["looked_at"] == LOOKED_AT
        return ReachedPage(found, rows[0]["last"] if more else None)

    async def any_of(self, resend: Resend) -> bool:
        """Is there anybody to send to again, as far as the ledger knows?"""
        return bool(await self._pool.fetchval(ANY, resend.campaign, resend.statuses, resend.unmarked))
