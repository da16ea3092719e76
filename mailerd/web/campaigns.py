"""Campaigns: `/api/v1/campaigns`. Whoever lets mail go out (here by a schedule) needs the scope `send`."""

from typing import Any, Literal

from aiohttp import web

from mailerd.campaigns.audience import AudienceError, audience_body, read_audience
from mailerd.campaigns.store import audit, notify
from mailerd.campaigns.values import Campaign, Standing
from mailerd.db import Connection
from mailerd.intake.idempotency import Answer
from mailerd.queue.ids import CAMPAIGN, LIST, SEGMENT, TEMPLATE, format_id
from mailerd.web import problems
from mailerd.web.bodies import Request
from mailerd.web.campaign_bodies import (
    CampaignLine,
    CampaignOptions,
    CampaignPage,
    CampaignQuery,
    CampaignStatus,
    CampaignView,
    ChangedCampaign,
    Copy,
    Finish,
    NewCampaign,
)
from mailerd.web.campaign_calls import (
    CHANGES,
    PATH,
    actor_of,
    answer_of,
    before_of,
    desk_of,
    etag_of,
    fields_of,
    id_of,
    may_go,
    no_template,
    optional_body,
    position_of,
    present_of,
    standing_of,
    unchanged,
    worked,
)
from mailerd.web.campaign_resends import words_of
from mailerd.web.campaign_steering import PATIENCE
from mailerd.web.campaign_wishes import draft_of, given_of, merged, new_campaign
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError


async def create(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, NewCampaign)
        if (before := await before_of(call, body)) is not None:
            return before
        campaign = await _checked(call, new_campaign(call, asked))
        if campaign.status == "scheduled":
            await may_go(call, campaign)

        async def work(connection: Connection) -> Answer:
            made = await desk_of(call).store.create(campaign, connection)
            assert made is not None
            await audit(connection, actor_of(call), "campaign.create", made, name=made.name)
            return answer_of(201, made)

        return await once(call, body, work)


async def show(call: Call) -> web.Response:
    standing = await standing_of(call)
    ahead = await desk_of(call).forecast(standing)
    view = CampaignView(
        **_line(standing),
        audience=audience_body(read_audience(standing.campaign.audience)),
        forecast=None if ahead is None else Finish(**fields_of(ahead)),
    )
    response = json_answer(200, view)
    response.headers["ETag"] = etag_of(standing.campaign)
    return response


async def list_(call: Call) -> web.Response:
    query = call.query(CampaignQuery)
    search = _Search(call.caller.tenant, query.status)
    statuses = None if query.status is None else [query.status]
    found = await desk_of(call).store.list(
        call.caller.tenant, statuses=statuses, limit=query.limit + 1, before=position_of(call, search, query.cursor)
    )
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = call.tools.cursors.make(search, shown[-1].campaign.id) if more else None
    data = [CampaignLine(**_line(each)) for each in shown]
    return json_answer(200, CampaignPage(data=data, has_more=more, next_cursor=cursor))


class _Search(Request, frozen=True):
    """What a cursor is good for."""

    tenant: str
    status: str | None


async def change(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, ChangedCampaign)
        present = await present_of(call)
        changed = merged(call, present, asked)
        if present.status in ("draft", "scheduled"):
            changed = await _checked(call, changed)
            if changed.status == "scheduled":
                await may_go(call, changed)

        async def work(connection: Connection) -> Answer:
            store = desk_of(call).store
            await unchanged(call, present, connection)
            made = await store.change(changed, call.services.now(), connection)
            await audit(connection, actor_of(call), "campaign.change", made, fields=given_of(asked))
            await notify(connection, made.id)
            return answer_of(200, made)

        return await worked(call, body, work)


async def delete(call: Call) -> web.Response:
    id_, actor = id_of(call), actor_of(call)

    async def work(connection: Connection) -> Answer:
        await desk_of(call).store.lock_run(id_, call.caller.tenant, connection)
        await unchanged(call, None, connection)
        await desk_of(call).lifecycle.delete(id_, call.caller.tenant, actor=actor, connection=connection)
        return Answer(204, b"")

    await worked(call, b"", work)
    done = await desk_of(call).steerer.steer(id_, actor=actor, patience=PATIENCE)
    return web.Response(status=204 if done else 202)


async def duplicate(call: Call) -> web.Response:
    async with optional_body(call) as body:
        asked = problems.decode(body or b"{}", Copy)
        present = await present_of(call)
        name = asked.name or f"Copy of {present.name}"[:255]
        copy = draft_of(call, present, name)

        async def work(connection: Connection) -> Answer:
            made = await desk_of(call).store.create(copy, connection)
            assert made is not None
            await audit(connection, actor_of(call), "campaign.duplicate", made, of=present.name_outside)
            return answer_of(201, made)

        return await worked(call, body, work)


async def _checked(call: Call, campaign: Campaign) -> Campaign:
    """Raises `ProblemError` (422) when its template, or what its audience names, is not there (R68)."""
    desk = desk_of(call)
    if not await desk.store.has_template(campaign.template_id, campaign.tenant):
        raise no_template()
    try:
        await desk.audiences.check(campaign.tenant, read_audience(campaign.audience))
    except AudienceError as error:
        raise _audience_problem(error) from None
    return campaign


def _audience_problem(error: AudienceError) -> ProblemError:
    return problems.invalid(
        [FieldError(each.code, each.detail, pointer=f"/audience{each.pointer}") for each in error.problems]
    )


def _line(standing: Standing) -> dict[str, Any]:
    campaign, counts = standing.campaign, standing.counts
    audience = read_audience(campaign.audience)
    again = campaign.options.resend
    same = ("name", "subject", "sender_email", "sender_name", "reply_to", "status", "status_reason", "schedule_time",
            "timing", "recurrence", "ab_test_config", "created_by", "created_at", "updated_at", "started_at",
            "finished_at")  # fmt: skip
    counted = ("sent", "delivered", "opened", "clicked", "bounced", "unsubscribed", "complained", "failed",
               "suppressed", "cancelled", "in_doubt")  # fmt: skip
    return (
        {name: getattr(campaign, name) for name in same}
        | {f"{name}_count": counts.get(name, 0) for name in counted}
        | {
            "campaign_id": campaign.name_outside,
            "template_id": format_id(TEMPLATE, campaign.template_id),
            "contact_list_ids": [
                *(format_id(LIST, each) for each in audience.list_ids),
                *(format_id(SEGMENT, each) for each in audience.segment_ids),
            ],
            "parent_id": None if campaign.parent_id is None else format_id(CAMPAIGN, campaign.parent_id),
            "resend_of": None if again is None else format_id(CAMPAIGN, again.campaign),
            "resend_to": [] if again is None else words_of(again),
            "options": CampaignOptions(
                **{name: getattr(campaign.options, name) for name in CampaignOptions.__struct_fields__}
            ),
            "total_recipients": 0 if standing.run is None else standing.run.total,
            "waiting_count": standing.waiting,
            "handed_over_count": counts.get("queued", 0),
        }
    )


METHODS: tuple[tuple[str, Literal["PUT", "PATCH"]], ...] = (("change", "PUT"), ("patch", "PATCH"))
EXAMPLE = {
    "name": "Spring",
    "template_id": "tpl_1",
    "sender_email": "news@shop.example",
    "sender_name": "Shop",
    "contact_list_ids": ["lst_1"],
    "schedule_time": "2026-12-01T09:00:00Z",
}
OPERATIONS = (
    Operation(
        id="campaigns.create",
        method="POST",
        path=PATH,
        scope="manage",
        summary="Make a draft, or with schedule_time (and the scope send) a campaign that begins then",
        handler=create,
        bodies={JSON: NewCampaign},
        example=EXAMPLE,
        answers={201: (JSON, CampaignStatus)},
        problems=(400, 408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="campaigns.list",
        method="GET",
        path=PATH,
        scope="read",
        summary="The campaigns with their counts, newest first",
        handler=list_,
        query=CampaignQuery,
        answers={200: (JSON, CampaignPage)},
        problems=(400, 422),
    ),
    Operation(
        id="campaigns.show",
        method="GET",
        path=f"{PATH}/{{campaign_id}}",
        scope="read",
        summary="One campaign: where it stands, its counts, when it will be through and what that hangs on",
        handler=show,
        answers={200: (JSON, CampaignView)},
        problems=(404,),
    ),
    *(
        Operation(
            id=f"campaigns.{name}",
            method=method,
            path=f"{PATH}/{{campaign_id}}",
            scope="manage",
            summary="Change what is given (If-Match: only if it is still so); while it is sent only name and pace",
            handler=change,
            bodies={JSON: ChangedCampaign},
            example={"name": "Spring, second try"},
            answers={200: (JSON, CampaignStatus)},
            problems=CHANGES,
        )
        for name, method in METHODS
    ),
    Operation(
        id="campaigns.delete",
        method="DELETE",
        path=f"{PATH}/{{campaign_id}}",
        scope="manage",
        summary="Forget a campaign that is not being sent, with its ledger and its queued mail (202: still at it)",
        handler=delete,
        answers={202: ("", bytes), 204: ("", bytes)},
        problems=(404, 409, 412),
    ),
    Operation(
        id="campaigns.duplicate",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/duplicate",
        scope="manage",
        summary="A new draft that says the same",
        handler=duplicate,
        bodies={JSON: Copy},
        answers={201: (JSON, CampaignStatus)},
        problems=(400, 404, 408, 409, 413, 415, 422),
        idempotent=True,
    ),
)
