"""Campaigns made of what clients ask for. Raises `ProblemError` (422) for what cannot be, 409 for what is too late."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from mailerd.campaigns import recurrence, timing
from mailerd.campaigns.audience import AudienceBody, AudienceError, audience_body, parse_audience, read_audience
from mailerd.campaigns.lifecycle import copy_of, is_past
from mailerd.campaigns.recurrence import Recurrence
from mailerd.campaigns.timing import Timing, TimingError
from mailerd.campaigns.values import Campaign, Options, Resend
from mailerd.queue.ids import SEGMENT, TEMPLATE, parse_id
from mailerd.queue.suppression import normalised_topic
from mailerd.web import problems
from mailerd.web.campaign_bodies import AbTest, CampaignOptions, ChangedCampaign, NewCampaign, RecurrenceBody
from mailerd.web.campaign_calls import fields_of, no_template
from mailerd.web.operations import Call
from mailerd.web.problems import FieldError, ProblemError
from mailerd.wire.address import parse_mailbox

AGO, AHEAD = timedelta(days=1), timedelta(days=3_653)  # of a schedule
WHILE_SENDING = frozenset({"name", "options"})  # what may be changed then, and of the options the pace


def new_campaign(call: Call, asked: NewCampaign) -> Campaign:
    now = call.services.now()
    blank = Campaign(
        id=0,
        tenant=call.caller.tenant,
        name=asked.name,
        subject=asked.subject,
        template_id=_template(asked.template_id),
        sender_email=_address(asked.sender_email, "/sender_email"),
        sender_name=asked.sender_name,
        reply_to=asked.reply_to and _address(asked.reply_to, "/reply_to"),
        status="draft",
        status_reason="",
        audience=_audience(asked.contact_list_ids, asked.audience),
        schedule_time=None,
        timing=timing_of(asked.timing),
        recurrence=None if asked.recurrence is None else recurrence_of(asked.recurrence, None),
        parent_id=None,
        options=_options(asked.options),
        ab_test_config=_ab_test(asked.ab_test_config),
        revision=1,
        created_by=call.caller.name,
        created_at=now,
        updated_at=now,
        started_at=None,
        finished_at=None,
    )
    return blank if asked.schedule_time is None else scheduled(blank, asked.schedule_time, now)


def scheduled(campaign: Campaign, at: datetime | None, now: datetime) -> Campaign:
    """The campaign with its time: of a recurring one its first, not before `at`. Raises `ProblemError` (422)."""
    if at is not None:
        _check_reach(at, now)
    rule = campaign.recurrence
    if rule is not None:
        just_before = max(now, at) if at is not None else now
        first = recurrence.following(rule, just_before if at is None else just_before - recurrence.MOMENT)
        if first is None:
            raise problems.invalid([FieldError("invalid_value", "That is over.", pointer="/recurrence/until")])
        return replace(campaign, schedule_time=first, status="scheduled", status_reason="")
    if at is None:
        raise problems.invalid([FieldError("missing_field", "Say when.", pointer="/schedule_time")])
    campaign = replace(campaign, schedule_time=at, status="scheduled", status_reason="")
    if is_past(campaign, now):
        raise problems.invalid([FieldError("invalid_value", "That is over already.", pointer="/schedule_time")])
    return campaign


def _check_reach(at: datetime, now: datetime) -> None:
    """What is far off is a mistake, and no calendar reckons with the ends of time."""
    if not now - AGO <= at <= now + AHEAD:
        detail = f"It lies between yesterday and {now + AHEAD:%Y-%m-%d}."
        raise problems.invalid([FieldError("invalid_value", detail, pointer="/schedule_time")])


def given_of(asked: ChangedCampaign) -> list[str]:
    return [name for name in asked.__struct_fields__ if getattr(asked, name) is not UNSET]


def merged(call: Call, present: Campaign, asked: ChangedCampaign) -> Campaign:
    """The campaign with what was given instead. Raises `ProblemError` 409 where that may not change any more."""
    given = given_of(asked)
    if present.status not in ("draft", "scheduled"):
        pace_only = isinstance(asked.options, UnsetType) or set(asked.options) <= {"pace"}
        if present.status not in ("sending", "paused") or not (set(given) <= WHILE_SENDING and pace_only):
            detail = f"The campaign is {present.status}: only name and options.pace change while it is being sent."
            raise ProblemError(409, "wrong_status", detail)
    changes: dict[str, Any] = {
        name: getattr(asked, name)
        for name in ("name", "sender_email", "sender_name", "subject", "reply_to")
        if name in given
    }
    for name in ("sender_email", "reply_to"):
        if name in changes and (name == "sender_email" or changes[name]):
            _address(changes[name], f"/{name}")
    if not isinstance(asked.template_id, UnsetType):
        changes["template_id"] = _template(asked.template_id)
    lists = None if isinstance(asked.contact_list_ids, UnsetType) else asked.contact_list_ids
    audience = None if isinstance(asked.audience, UnsetType) else asked.audience
    if lists is not None or audience is not None:
        if present.options.resend is not None:
            detail = "It is for those of another campaign: see `resend_of` and `resend_to`."
            pointer = "/audience" if lists is None else "/contact_list_ids"
            raise problems.invalid([FieldError("contradiction", detail, pointer=pointer)])
        changes["audience"] = _audience(lists, audience, present.audience)
    if not isinstance(asked.timing, UnsetType):
        changes["timing"] = timing_of(asked.timing)
    if not isinstance(asked.recurrence, UnsetType):
        rule = asked.recurrence
        changes["recurrence"] = None if rule is None else recurrence_of(rule, present.recurrence)
    if not isinstance(asked.options, UnsetType):
        changes["options"] = _changed_options(present.options, asked.options)
    if not isinstance(asked.ab_test_config, UnsetType):
        changes["ab_test_config"] = _ab_test(asked.ab_test_config)
    changed = replace(present, **changes)
    if isinstance(asked.schedule_time, datetime):
        return scheduled(changed, asked.schedule_time, call.services.now())
    if asked.schedule_time is None:
        return replace(changed, schedule_time=None, status="draft")
    if changed.status == "scheduled" and changed.recurrence is not None and "recurrence" in given:
        return scheduled(changed, None, call.services.now())
    return changed


def draft_of(call: Call, campaign: Campaign, name: str) -> Campaign:
    """A new draft that says the same."""
    return copy_of(campaign, name=name, created_by=call.caller.name, now=call.services.now())


def _address(text: str, pointer: str) -> str:
    try:
        parse_mailbox(text)
    except ValueError as error:
        detail = f"That is no address: {error}."
        raise problems.invalid([FieldError("invalid_address", detail, pointer=pointer)]) from None
    return text


def _template(text: str) -> int:
    try:
        return parse_id(TEMPLATE, text)
    except ValueError:
        raise no_template() from None


def _audience(
    lists: Sequence[str] | None, body: AudienceBody | None, present: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What is stored. Lists alone change only which lists and segments of the audience that was there."""
    if lists is not None and body is not None:
        detail = "Say it in `contact_list_ids` or in `audience`, not in both."
        raise problems.invalid([FieldError("contradiction", detail, pointer="/contact_list_ids")])
    pointers = "/audience"
    if lists is not None:
        whole = audience_body(read_audience(present or {}))
        body = msgspec.structs.replace(
            whole,
            list_ids=[each for each in lists if not each.startswith(SEGMENT)],
            segment_ids=[each for each in lists if each.startswith(SEGMENT)],
        )
        pointers = "/contact_list_ids"
    try:
        return msgspec.to_builtins(parse_audience(body or AudienceBody()))  # type: ignore[no-any-return]
    except AudienceError as error:
        faults = [FieldError(each.code, each.detail, pointer=f"{pointers}{each.pointer}") for each in error.problems]
        if pointers == "/contact_list_ids":
            faults = [msgspec.structs.replace(each, pointer=pointers) for each in faults]
        raise problems.invalid(faults) from None


def timing_of(given: Timing) -> Timing:
    try:
        return timing.checked(given)
    except TimingError as error:
        raise problems.invalid([FieldError("invalid_value", error.detail, pointer=f"/timing{error.pointer}")]) from None


def recurrence_of(given: RecurrenceBody, present: Recurrence | None) -> Recurrence:
    """The rule that is asked for; the campaigns that came of the present one count for its `count`."""
    made = 0 if present is None else present.made
    try:
        if given.count is not None and given.count <= made:
            detail = f"{made} campaigns came of it already: say more than that, or null for no such end."
            raise TimingError("/count", detail)
        return recurrence.checked(msgspec.convert(fields_of(given) | {"made": made}, Recurrence))
    except TimingError as error:
        fault = FieldError("invalid_value", error.detail, pointer=f"/recurrence{error.pointer}")
        raise problems.invalid([fault]) from None


def _options(given: CampaignOptions, resend: Resend | None = None) -> Options:
    return Options(**fields_of(given) | {"topic": normalised_topic(given.topic)}, resend=resend)


def _changed_options(present: Options, given: dict[str, Any]) -> Options:
    old = {name: getattr(present, name) for name in CampaignOptions.__struct_fields__}
    try:
        merged = msgspec.convert(old | given, CampaignOptions)
    except msgspec.ValidationError as error:
        fault = problems.of_validation(error, CampaignOptions)
        raise problems.invalid([msgspec.structs.replace(fault, pointer=f"/options{fault.pointer}")]) from None
    return _options(merged, present.resend)


def _ab_test(given: AbTest | None) -> dict[str, Any] | None:
    if given is None:
        return None
    if given.enabled:
        fault = FieldError("not_supported_yet", "A/B tests are not supported yet.", pointer="/ab_test_config/enabled")
        raise ProblemError(422, "not_supported_yet", fault.detail, errors=[fault])
    return msgspec.to_builtins(given)  # type: ignore[no-any-return]
