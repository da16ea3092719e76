"""The contacts of a campaign and what became of the mail to each: `/api/v1/campaigns/{campaign_id}/recipients`."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from mailerd.campaigns.contacts.csv_reading import without_formula
from mailerd.campaigns.ledger import Status
from mailerd.campaigns.recipients import MARKS, Reached, marks_of
from mailerd.queue.ids import CONTACT, format_id, format_message_id
from mailerd.web.bodies import Request
from mailerd.web.campaign_bodies import RecipientFilter, RecipientOfCampaign, RecipientPage, RecipientQuery
from mailerd.web.campaign_calls import PATH, desk_of, position_of, present_of
from mailerd.web.operations import JSON, Call, Operation, json_answer

CSV = "text/csv"
FILE_PAGE = 2_000  # contacts


class _RecipientSearch(Request, frozen=True):
    campaign: int
    tenant: str
    wanted: dict[str, Any]


async def recipients(call: Call) -> web.Response:
    query = call.query(RecipientQuery)
    campaign = await present_of(call)
    wanted = _wanted(query)
    search = _RecipientSearch(campaign.id, campaign.tenant, wanted)
    after = position_of(call, search, query.cursor) or 0
    page = await desk_of(call).recipients.page(campaign.id, campaign.tenant, limit=query.limit, after=after, **wanted)
    cursor = None if page.after is None else call.tools.cursors.make(search, page.after)
    data = [_reached(each) for each in page.data]
    return json_answer(200, RecipientPage(data=data, has_more=cursor is not None, next_cursor=cursor))


async def recipients_file(call: Call) -> web.Response:
    wanted = _wanted(call.query(RecipientFilter))
    campaign = await present_of(call)
    store = desk_of(call).recipients

    async def lines() -> AsyncIterator[bytes]:
        yield _csv([RecipientOfCampaign.__struct_fields__])
        after: int | None = 0
        while after is not None:
            page = await store.page(campaign.id, campaign.tenant, limit=FILE_PAGE, after=after, **wanted)
            yield _csv([_cell(value) for value in msgspec.structs.astuple(_reached(each))] for each in page.data)
            after = page.after

    headers = {"Content-Disposition": f'attachment; filename="{campaign.name_outside}-recipients.csv"'}
    return web.Response(body=lines(), content_type=CSV, charset="utf-8", headers=headers)


def _wanted(query: RecipientFilter) -> dict[str, Any]:
    """As `RecipientStore.page` wants it."""
    marked, unmarked = marks_of({word: getattr(query, word) for word in MARKS})
    return {
        "statuses": None if query.status is None else [int(Status[query.status.upper()])],
        "reason": query.reason,
        "marked": marked,
        "unmarked": unmarked,
    }


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)  # RFC 4180 section 2
    return out.getvalue().encode()


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.astimezone(UTC).isoformat()
        case _:
            return without_formula(str(value))


def _reached(row: Reached) -> RecipientOfCampaign:
    return RecipientOfCampaign(
        contact_id=format_id(CONTACT, row.contact_id),
        email=row.email or None,
        status=Status(row.status).word,  # type: ignore[arg-type]
        reason=row.reason,
        email_id=None if row.message_id is None else format_message_id(row.message_id),
        due_at=row.due_at,
        changed_at=row.changed_at,
        **row.done,
    )


OPERATIONS = (
    Operation(
        id="campaigns.recipients",
        method="GET",
        path=f"{PATH}/{{campaign_id}}/recipients",
        scope="read",
        summary="The contacts and what became of the mail to each: who was not reached, and why",
        handler=recipients,
        query=RecipientQuery,
        answers={200: (JSON, RecipientPage)},
        problems=(400, 404, 422),
    ),
    Operation(
        id="campaigns.recipients_file",
        method="GET",
        path=f"{PATH}/{{campaign_id}}/recipients.csv",
        scope="read",
        summary="The same as a CSV file, all of them; cells that a spreadsheet would run have an apostrophe",
        handler=recipients_file,
        query=RecipientFilter,
        answers={200: (CSV, str)},
        problems=(404, 422),
    ),
)
