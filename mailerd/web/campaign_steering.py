"""Letting campaigns go out, and stopping them. Whoever lets mail go out needs the scope `send`."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from mailerd.campaigns.compliance import Finding, Sample, errors
from mailerd.campaigns.lifecycle import NOT_OVER, WrongStatusError
from mailerd.campaigns.store import audit
from mailerd.campaigns.trial import UnknownContactError
from mailerd.campaigns.values import Campaign
from mailerd.db import Connection
from mailerd.intake.idempotency import Answer
from mailerd.queue.ids import CONTACT, parse_id
from mailerd.web import problems
from mailerd.web.campaign_bodies import (
    Because,
    CampaignStatus,
    CheckResult,
    FindingView,
    Resending,
    Schedule,
    TestMail,
    TestResult,
)
from mailerd.web.campaign_calls import (
    CHANGES,
    PATH,
    actor_of,
    answer_of,
    before_of,
    desk_of,
    fields_of,
    id_of,
    may_go,
    needs,
    optional_body,
    present_of,
    unchanged,
    worked,
)
from mailerd.web.campaign_resends import resend_of
from mailerd.web.campaign_tests import send_test
from mailerd.web.campaign_wishes import draft_of, recurrence_of, scheduled, timing_of
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError

PATIENCE = 5.0  # seconds that an answer waits until what is in the queue is held or let go
ENDED = ("sent", "cancelled", "failed")


async def send(call: Call) -> web.Response:
    needs(call, "manage")
    if (before := await before_of(call, b"")) is not None:
        return before
    present = await present_of(call)
    if present.status in ("draft", "scheduled") and present.recurrence is None:
        await may_go(call, present, thorough=True)

    async def work(connection: Connection) -> Answer:
        now = call.services.now()
        await unchanged(call, None, connection)
        sent = await desk_of(call).lifecycle.send(present, actor=actor_of(call), now=now, connection=connection)
        return answer_of(202, sent)

    return await worked(call, b"", work)


async def schedule(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, Schedule)
        if (before := await before_of(call, body)) is not None:
            return before
        needs(call, "manage")
        present = await present_of(call)
        if present.status not in ("draft", "scheduled"):
            raise ProblemError(409, "wrong_status", str(WrongStatusError(present, "scheduled")))
        changed = present
        if asked.timing is not None:
            changed = replace(changed, timing=timing_of(asked.timing))
        if asked.recurrence is not None:
            changed = replace(changed, recurrence=recurrence_of(asked.recurrence, present.recurrence))
        changed = scheduled(changed, asked.schedule_time, call.services.now())
        await may_go(call, changed, thorough=True)

        async def work(connection: Connection) -> Answer:
            await unchanged(call, present, connection)
            now = call.services.now()
            made = await desk_of(call).lifecycle.schedule(changed, actor=actor_of(call), now=now, connection=connection)
            return answer_of(200, made)

        return await worked(call, body, work)


async def pause(call: Call) -> web.Response:
    return await _step(call, Because, _pause)


async def resume(call: Call) -> web.Response:
    needs(call, "manage")
    return await _step(call, None, _resume)


async def cancel(call: Call) -> web.Response:
    return await _step(call, Because, _cancel)


Step = Callable[[Call, Any, Connection], Awaitable[Campaign]]


async def _pause(call: Call, asked: Because, connection: Connection) -> Campaign:
    return await desk_of(call).lifecycle.pause(
        id_of(call),
        call.caller.tenant,
        actor=actor_of(call),
        reason=asked.reason,
        now=call.services.now(),
        connection=connection,
    )


async def _resume(call: Call, _asked: None, connection: Connection) -> Campaign:
    return await desk_of(call).lifecycle.resume(
        id_of(call), call.caller.tenant, actor=actor_of(call), now=call.services.now(), connection=connection
    )


async def _cancel(call: Call, asked: Because, connection: Connection) -> Campaign:
    return await desk_of(call).lifecycle.cancel(
        id_of(call),
        call.caller.tenant,
        actor=actor_of(call),
        reason=asked.reason,
        now=call.services.now(),
        connection=connection,
    )


async def _step(call: Call, type_: type[msgspec.Struct] | None, step: Step) -> web.Response:
    """Take a step, then see to the mail in the queue: the answer waits for that, but not for long."""
    async with optional_body(call) as body:
        asked = None if type_ is None else problems.decode(body or b"{}", type_)

        async def work(connection: Connection) -> Answer:
            return answer_of(200, await step(call, asked, connection))

        response = await worked(call, body, work)
    await desk_of(call).steerer.steer(id_of(call), actor=actor_of(call), patience=PATIENCE)
    return response


async def resend(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, Resending)
        if (before := await before_of(call, body)) is not None:
            return before
        present = await present_of(call)
        if present.status not in ENDED:
            error = WrongStatusError(present, "resent before it is over", NOT_OVER)
            raise ProblemError(409, "wrong_status", str(error))
        if "cancelled" in asked.statuses and await desk_of(call).steerer.under_way(present.id):
            detail = f"Mail of {present.name_outside} is still being taken back from the queue: ask again when it is."
            raise ProblemError(409, "not_over", detail, retry_after=1)
        again = resend_of(present.id, asked.statuses)
        if not await desk_of(call).recipients.any_of(again):
            raise ProblemError(409, "nobody", f"Nobody of {present.name_outside} is {' or '.join(asked.statuses)}.")
        draft = draft_of(call, present, asked.name or f"Again: {present.name}"[:255])
        draft = replace(
            draft,
            audience={},
            subject=present.subject if asked.subject is None else asked.subject,
            options=msgspec.structs.replace(present.options, resend=again),
        )
        if asked.send:
            needs(call, "send")
            await may_go(call, draft)

        async def work(connection: Connection) -> Answer:
            desk, now = desk_of(call), call.services.now()
            made = await desk.store.create(draft, connection)
            assert made is not None
            await audit(connection, actor_of(call), "campaign.resend", made, of=present.name_outside)
            if asked.send:
                made = await desk.lifecycle.send(made, actor=actor_of(call), now=now, connection=connection)
            return answer_of(201, made)

        return await worked(call, body, work)


async def check(call: Call) -> web.Response:
    campaign = await present_of(call)
    found = await desk_of(call).checker.check(campaign, call.caller, thorough=True)
    views = [FindingView(**fields_of(each)) for each in found]
    return json_answer(200, CheckResult(ready=not errors(found), findings=views))


async def test(call: Call) -> web.Response:
    async with call.body() as body:
        asked = problems.decode(body, TestMail)
        needs(call, "manage")
        if asked.contact_id is not None:
            needs(call, "read")
        campaign = await present_of(call)
        sample, failures = await _sample(call, campaign, asked.contact_id)
        if sample is None:
            raise ProblemError(422, "render_failed", " ".join(each.detail for each in errors(failures))[:500])
        return await send_test(call, body, campaign, sample, asked.to)


async def _sample(call: Call, campaign: Campaign, contact: str | None) -> tuple[Sample | None, list[Finding]]:
    contact_id = None
    if contact is not None:
        contact_id = 0
        with suppress(ValueError):
            contact_id = parse_id(CONTACT, contact)
    try:
        return await desk_of(call).checker.sample(campaign, contact_id)
    except UnknownContactError:
        fault = FieldError("unknown_contact", "There is no such contact of yours.", pointer="/contact_id")
        raise problems.invalid([fault]) from None


OPERATIONS = (
    Operation(
        id="campaigns.send",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/send",
        scope="send",
        summary="Begin now, to everybody at once whatever its schedule says; needs the scope manage, too",
        handler=send,
        answers={202: (JSON, CampaignStatus)},
        problems=(400, 404, 409, 412, 422),
        idempotent=True,
    ),
    Operation(
        id="campaigns.schedule",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/schedule",
        scope="send",
        summary="Let a draft begin later, or a scheduled campaign at another time; needs the scope manage, too",
        handler=schedule,
        bodies={JSON: Schedule},
        example={"schedule_time": "2026-12-01T09:00:00Z"},
        answers={200: (JSON, CampaignStatus)},
        problems=(400, *CHANGES),
        idempotent=True,
    ),
    Operation(
        id="campaigns.pause",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/pause",
        scope="manage",
        summary="Hand nothing more over and hold what is in the queue; of a recurring one no more campaigns come",
        handler=pause,
        bodies={JSON: Because},
        answers={200: (JSON, CampaignStatus)},
        problems=(400, 404, 408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="campaigns.resume",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/resume",
        scope="send",
        summary="Go on where it was paused; a recurring one with its next time, not those missed; needs manage",
        handler=resume,
        answers={200: (JSON, CampaignStatus)},
        problems=(400, 404, 409, 422),
        idempotent=True,
    ),
    Operation(
        id="campaigns.cancel",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/cancel",
        scope="manage",
        summary="Give up what is not handed over, and take back what is still in the queue",
        handler=cancel,
        bodies={JSON: Because},
        answers={200: (JSON, CampaignStatus)},
        problems=(400, 404, 408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="campaigns.resend",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/resend",
        scope="manage",
        summary="A new campaign for those whom one that is over did not reach, or who did not open or click",
        handler=resend,
        bodies={JSON: Resending},
        example={"statuses": ["failed", "in_doubt"]},
        answers={201: (JSON, CampaignStatus)},
        problems=(400, 404, 408, 409, 413, 415, 422),
        idempotent=True,
    ),
    Operation(
        id="campaigns.check",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/check",
        scope="read",
        summary="All that would keep it from being sent, and what is doubtful; sends nothing",
        handler=check,
        answers={200: (JSON, CheckResult)},
        problems=(404,),
    ),
    Operation(
        id="campaigns.test",
        method="POST",
        path=f"{PATH}/{{campaign_id}}/test",
        scope="send",
        summary="Send the mail with made-up or a contact's data to a few addresses, as its sender; needs manage, too",
        handler=test,
        bodies={JSON: TestMail},
        example={"to": ["me@shop.example"]},
        answers={202: (JSON, TestResult)},
        problems=(400, 404, 408, 409, 413, 415, 422, 429),
        idempotent=True,
    ),
)
