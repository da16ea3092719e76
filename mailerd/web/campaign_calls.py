"""What all calls about campaigns do: find the campaign, hold it to If-Match, answer with where it stands."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from aiohttp import web

from mailerd.campaigns.compliance import Finding, errors
from mailerd.campaigns.desk import CampaignDesk
from mailerd.campaigns.lifecycle import ChangedMeanwhileError, UnknownCampaignError, WrongStatusError
from mailerd.campaigns.store import NoTemplateError
from mailerd.campaigns.values import Campaign, Standing
from mailerd.db import Connection
from mailerd.intake.idempotency import Answer
from mailerd.queue.ids import CAMPAIGN, parse_id
from mailerd.web import problems
from mailerd.web.campaign_bodies import CampaignStatus
from mailerd.web.idempotency import earlier, key_of, once
from mailerd.web.operations import Call
from mailerd.web.problems import FieldError, ProblemError

PATH = "/api/v1/campaigns"
CHANGES = (404, 408, 409, 412, 413, 415, 422)


def desk_of(call: Call) -> CampaignDesk:
    return call.services.campaigns


def actor_of(call: Call) -> str:
    return f"api:{call.caller.name}"


def id_of(call: Call) -> int:
    with suppress(ValueError):
        return parse_id(CAMPAIGN, call.request.match_info["campaign_id"])
    raise unknown()


def unknown() -> ProblemError:
    return ProblemError(404, "not_found", "There is no such campaign of yours.")


async def present_of(call: Call) -> Campaign:
    campaign = await desk_of(call).store.get(id_of(call), call.caller.tenant)
    if campaign is None:
        raise unknown()
    return campaign


async def standing_of(call: Call) -> Standing:
    standing = await desk_of(call).store.standing(id_of(call), call.caller.tenant)
    if standing is None:
        raise unknown()
    return standing


def needs(call: Call, scope: str) -> None:
    if scope not in call.caller.scopes:
        raise ProblemError(403, "forbidden", f"This needs an API key with the scope {scope}, too.")


@asynccontextmanager
async def optional_body(call: Call) -> AsyncIterator[bytes]:
    """The body of a request that needs none: b"" when there is none, whatever its type."""
    if not call.operation.bodies or not call.request.body_exists:
        yield b""
        return
    async with call.body() as body:
        yield body


async def before_of(call: Call, body: bytes) -> web.Response | None:
    """The answer if this request came before: what would be found wrong with it now does not matter then."""
    key = key_of(call, body)
    found = None if key is None else await call.services.idempotency.find(key)
    return None if found is None else earlier(call, found)


async def worked(call: Call, body: bytes, work: Callable[[Connection], Awaitable[Answer]]) -> web.Response:
    try:
        return await once(call, body, work)
    except UnknownCampaignError:
        raise unknown() from None
    except WrongStatusError as error:
        raise ProblemError(409, "wrong_status", str(error)) from None
    except ChangedMeanwhileError as error:
        raise ProblemError(409, "changed_meanwhile", str(error)) from None
    except NoTemplateError:
        raise no_template() from None


async def unchanged(call: Call, present: Campaign | None, connection: Connection) -> None:
    """Lock the campaign; raises 412 when it is not what If-Match wants, 409 when it is not what was checked."""
    locked = await desk_of(call).store.locked(id_of(call), call.caller.tenant, connection)
    if locked is None:
        raise UnknownCampaignError(id_of(call))
    wanted = call.request.headers.get("If-Match", "*")
    if wanted != "*" and etag_of(locked) not in [each.strip() for each in wanted.split(",")]:
        detail = f"The campaign has changed: it is {etag_of(locked)} now. Read it again."
        raise ProblemError(412, "precondition_failed", detail)
    if present is not None and locked.revision != present.revision:
        raise ChangedMeanwhileError(locked)


def etag_of(campaign: Campaign) -> str:
    return f'"{campaign.revision}"'


def answer_of(status: int, campaign: Campaign) -> Answer:
    view = CampaignStatus(campaign_id=campaign.name_outside, status=campaign.status)
    headers = [("ETag", etag_of(campaign))]
    if status == 201:
        headers.append(("Location", f"{PATH}/{campaign.name_outside}"))
    return Answer(status, problems.encode(view), tuple(headers))


def position_of(call: Call, search: msgspec.Struct, cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        return call.tools.cursors.read(search, cursor)
    except ValueError:
        detail = "Take next_cursor as it was given, with the same filters and API key."
        raise ProblemError(400, "invalid_cursor", detail) from None


async def may_go(call: Call, campaign: Campaign, *, thorough: bool = False) -> None:
    """Raises `ProblemError` (422) with all that keeps it from being sent, and 403 without the scope."""
    needs(call, "send")
    found: Sequence[Finding] = await desk_of(call).checker.check(campaign, call.caller, thorough=thorough)
    if wrong := errors(found):
        detail = wrong[0].detail if len(wrong) == 1 else f"{len(wrong)} things keep it from being sent; see errors."
        faults = [FieldError(each.code, each.detail, pointer=each.pointer) for each in wrong]
        raise ProblemError(422, "not_ready", detail, errors=faults)


def no_template() -> ProblemError:
    fault = FieldError("unknown_template", "There is no such template of yours.", pointer="/template_id")
    return problems.invalid([fault])


def fields_of(value: Any) -> dict[str, Any]:
    names = getattr(value, "__struct_fields__", None) or value.__dataclass_fields__
    return {name: getattr(value, name) for name in names}
