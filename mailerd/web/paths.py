"""Why mail waits, and the brakes that make it wait: `/api/v1/paths` and `/api/v1/effects`.

Both are about all mail of the installation, so they answer keys of the operators' tenant only.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from mailerd.config.values import parse_duration, parse_rate
from mailerd.delivery.effects import Kind, by_operator, value_of
from mailerd.delivery.explain import Mail
from mailerd.delivery.explained import EffectView, Explanation, effect_view
from mailerd.web import problems
from mailerd.web.bodies import Answer, Campaign, Request
from mailerd.web.operations import JSON, Call, Operation, json_answer
from mailerd.web.problems import FieldError, ProblemError
from mailerd.wire.address import domain_to_ascii, parse_mailbox

OPERATORS = "default"  # the tenant of those who run the installation
DAY = 86_400.0  # seconds
T = TypeVar("T")
Word = Annotated[str, Meta(max_length=255)]


class PathQuery(Request, frozen=True, kw_only=True):
    """With `address` (or a domain): what mail for it meets, of this sender, tenant, stream and pool, and whether it is
    suppressed for that tenant and stream. Else the paths in use.
    """

    address: Word | None = None
    sender: Word = ""
    stream: Word = "transactional"
    pool: Word = ""
    tenant: Word = ""
    source: Word | None = None
    site: Word | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class NewEffect(Request, frozen=True, kw_only=True):
    """A brake on what fits `source`, `provider`, `site`, `tenant` and `campaign`; one of them at least.

    `rate` (`10/min`) is for `slow`, `connections` for `connections`. It ends after `for` (`2h`; a day if not given,
    7d at most).
    """

    kind: Kind
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    source: Word = ""
    provider: Word = ""
    site: Word = ""
    tenant: Word = ""
    campaign: Campaign = ""
    rate: Word | None = None
    connections: Annotated[int, Meta(ge=1, le=1000)] | None = None
    for_: Word | None = msgspec.field(name="for", default=None)


class EffectList(Answer, frozen=True, kw_only=True):
    """Those that hold, the one that ends first first."""

    data: list[EffectView]


async def list_paths(call: Call) -> web.Response:
    _operators_only(call)
    query = call.query(PathQuery)
    explainer = call.services.explainer()
    if query.address is None:
        return json_answer(200, await explainer.paths(source=query.source, site=query.site, limit=query.limit))
    try:
        domain = _domain(query.address)
    except ValueError as error:
        raise _invalid(error, parameter="address") from None
    recipient = query.address if "@" in query.address else f"@{domain}"
    mail = Mail(sender=query.sender, stream=query.stream, pool=query.pool, tenant=query.tenant, recipient=recipient)
    try:
        return json_answer(200, await explainer.domain(domain, mail))
    except ValueError as error:
        raise _invalid(error) from None


def _domain(address: str) -> str:
    if "@" in address:
        return parse_mailbox(address).domain
    return address if address.startswith("[") else domain_to_ascii(address)


async def list_effects(call: Call) -> web.Response:
    _operators_only(call)
    effects = await call.services.effects.active(call.services.now())
    return json_answer(200, EffectList(data=[effect_view(effect) for effect in effects]))


async def add_effect(call: Call) -> web.Response:
    _operators_only(call)
    async with call.body() as body:
        asked = problems.decode(body, NewEffect)
    if not any((asked.source, asked.provider, asked.site, asked.tenant, asked.campaign)):
        raise problems.invalid([FieldError("missing_field", "Say what it is for: source, provider, site, tenant …")])
    now = call.services.now()
    until = now + timedelta(seconds=DAY if asked.for_ is None else _parsed(parse_duration, asked.for_, "/for"))
    try:
        call.services.explainer().check_names(source=asked.source, provider=asked.provider)
        effect = by_operator(
            asked.kind,
            reason=asked.reason,
            actor=call.caller.name,
            now=now,
            until=until,
            source=asked.source,
            provider=asked.provider,
            site=asked.site,
            tenant=asked.tenant,
            campaign=asked.campaign,
            value=_value(asked),
        )
    except ValueError as error:
        raise _invalid(error) from None
    added = await call.services.effects.add(effect, actor=call.caller.name)
    call.facts["effect"] = added.id
    return json_answer(201, effect_view(added))


def _parsed(parse: Callable[[str], T], text: str, pointer: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise _invalid(error, pointer=pointer) from None


def _value(asked: NewEffect) -> float:
    rate = None if asked.rate is None else _parsed(parse_rate, asked.rate, "/rate")
    return value_of(asked.kind, rate=rate, connections=asked.connections)


async def cancel_effect(call: Call) -> web.Response:
    _operators_only(call)
    given = call.request.match_info["id"]
    effects, now = call.services.effects, call.services.now()
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise _no_such_effect()
    ended = await effects.cancel(int(given), actor=call.caller.name, now=now)
    if ended is None:
        raise _no_such_effect()
    call.facts["effect"] = ended.id
    return json_answer(200, effect_view(ended))


def _no_such_effect() -> ProblemError:
    return ProblemError(404, "not_found", "No effect of that id holds.")


def _operators_only(call: Call) -> None:
    if call.caller.tenant != OPERATORS:
        raise ProblemError(403, "forbidden", "This is for those who run the installation: keys of the default tenant.")


def _invalid(error: ValueError, parameter: str = "", pointer: str = "") -> ProblemError:
    text = str(error)
    return problems.invalid(
        [FieldError("invalid_value", f"{text[:1].upper()}{text[1:]}.", parameter=parameter, pointer=pointer)]
    )


EXAMPLE = {"kind": "pause", "provider": "google", "reason": "postmaster asked us to", "for": "2h"}
EFFECT_PROBLEMS = (408, 413, 415, 422)

OPERATIONS = (
    Operation(
        id="paths.list",
        method="GET",
        path="/api/v1/paths",
        scope="read",
        summary="What limits the paths in use; or what mail for an address meets, what waits, why, and until when",
        handler=list_paths,
        query=PathQuery,
        answers={200: (JSON, Explanation)},
        problems=(422,),
    ),
    Operation(
        id="effects.list",
        method="GET",
        path="/api/v1/effects",
        scope="read",
        summary="The brakes that hold",
        handler=list_effects,
        answers={200: (JSON, EffectList)},
    ),
    Operation(
        id="effects.add",
        method="POST",
        path="/api/v1/effects",
        scope="manage",
        summary="Let a brake hold at once, on every node; the same one again lasts longer",
        handler=add_effect,
        bodies={JSON: NewEffect},
        example=EXAMPLE,
        answers={201: (JSON, EffectView)},
        problems=EFFECT_PROBLEMS,
    ),
    Operation(
        id="effects.cancel",
        method="DELETE",
        path="/api/v1/effects/{id}",
        scope="manage",
        summary="End a brake now: what waits for it may leave",
        handler=cancel_effect,
        answers={200: (JSON, EffectView)},
        problems=(404,),
    ),
)
