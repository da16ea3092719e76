"""What contacts say of the mail they get, and what is known of them: `/api/v1/contacts/{contact_id}/…`."""

import asyncio
from datetime import datetime
from typing import Any

from aiohttp import web

from mailerd.campaigns.contacts.person import Person
from mailerd.db import Connection
from mailerd.errors import Refused
from mailerd.feedback.names import OutsideEvent
from mailerd.intake.idempotency import Answer as Done
from mailerd.queue.ids import CAMPAIGN, CONTACT, format_id, format_message_id
from mailerd.queue.suppression import GRACE
from mailerd.web import problems
from mailerd.web.bodies import Answer
from mailerd.web.contact_bodies import (
    CONTACTS,
    ConsentList,
    ConsentView,
    ContactView,
    NewConsent,
    Subscribe,
    SubscriptionChange,
    Subscriptions,
    SubscriptionView,
    Unsubscribe,
    Unsubscribed,
    consent_facts,
    consent_view,
    contact_view,
    list_name,
    list_number,
    list_numbers,
    missing,
    path_number,
    problem_of,
)
from mailerd.web.contacts import contact_answer
from mailerd.web.idempotency import once
from mailerd.web.operations import JSON, Call, Operation, json_answer

PATH = f"{CONTACTS}/{{contact_id}}"
WRITING = (404, 408, 409, 413, 415, 422)
KEPT = (
    "Rows of campaigns' ledgers with the number of the contact, without an address: counts stay right.",
    "A hash of the address, keyed with a secret of this installation: no import brings the person back.",
    "Suppressions of the address, without what was said: mail must not go there (GDPR articles 17(3)(b) and 21).",
    "Events of mail to the address, with contact@erased.invalid in its place and without replies, links, subjects, IP "
    "addresses and mail clients.",
)


class CampaignReceived(Answer, frozen=True, kw_only=True):
    """What became of one campaign's mail: its ledger row. `marks`: opened, clicked, unsubscribed, complained …"""

    campaign_id: str
    name: str
    status: str
    marks: list[str]
    email_id: str | None
    due_at: datetime
    changed_at: datetime | None
    reason: str


class EngagementView(Answer, frozen=True, kw_only=True):
    """One open or click; `machine`: most likely not by the person."""

    at: datetime
    campaign_id: str
    email_id: str
    kind: str
    machine: bool
    link: int


class SuppressedBy(Answer, frozen=True, kw_only=True):
    """Why mail does not go to the address, or to all of its domain; scope `global` binds all tenants."""

    scope: str
    address: str
    stream: str
    topic: str
    reason: str
    detail: str
    created_at: datetime
    expires_at: datetime | None


class PersonExport(Answer, frozen=True, kw_only=True):
    """Everything that is known of a person; of each kind the last 10,000, of events 2,000."""

    contact: ContactView
    lists: list[SubscriptionView]
    history: list[SubscriptionChange]
    consents: list[ConsentView]
    campaigns: list[CampaignReceived]
    engagements: list[EngagementView]
    suppressions: list[SuppressedBy]
    events: list[OutsideEvent]


class ErasedView(Answer, frozen=True, kw_only=True):
    """`events` were made anonymous, `suppressions` of the address stay; `kept` says what else, and why."""

    contact_id: str
    erased_at: datetime
    events: int
    suppressions: int
    kept: list[str]


async def unsubscribe(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    async with call.body() as body:
        asked = problems.decode(body, Unsubscribe)
    list_id = None if asked.list_id is None else list_number(asked.list_id, pointer="/list_id")
    book, tenant = call.services.contacts, call.caller.tenant
    try:
        changed = await book.subscriptions.unsubscribe(
            tenant, number, list_id=list_id, reason=asked.reason, source=f"api:{call.caller.name}"
        )
    except Refused as error:
        raise problem_of(error) from None
    contact = None if changed is None else await book.contacts.get(tenant, number)
    if contact is None or changed is None:
        raise missing("contact")
    id_ = format_id(CONTACT, number)
    answer = Unsubscribed(contact_id=id_, list_id=list_name(list_id), status=contact.status, changed=changed)
    return json_answer(200, answer)


async def subscribe(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    async with call.body() as body:
        asked = problems.decode(body, Subscribe)
    consent, lists = consent_facts(asked.consent, call.services.now()), list_numbers(asked.list_ids)
    assert consent is not None
    source = f"api:{call.caller.name}"
    try:
        found = await call.services.contacts.subscriptions.subscribe(
            call.caller.tenant, number, consent=consent, list_ids=lists, source=source
        )
    except Refused as error:
        raise problem_of(error) from None
    if not found:
        raise missing("contact")
    return await contact_answer(call, number)


async def subscriptions(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    book, tenant = call.services.contacts, call.caller.tenant
    contact = await book.contacts.get(tenant, number)
    if contact is None:
        raise missing("contact")
    answer = Subscriptions(
        contact_id=format_id(CONTACT, number),
        status=contact.status,
        data=[_subscription(each) for each in await book.subscriptions.of(tenant, number)],
        history=[_change(each) for each in await book.subscriptions.history(tenant, number)],
    )
    return json_answer(200, answer)


async def add_consent(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    async with call.body() as body:
        asked = problems.decode(body, NewConsent)
    facts = consent_facts(asked, call.services.now(), pointer="")
    assert facts is not None
    list_id = None if asked.list_id is None else list_number(asked.list_id, pointer="/list_id")
    book, tenant, actor = call.services.contacts, call.caller.tenant, f"api:{call.caller.name}"

    async def work(connection: Connection) -> Done:
        if asked.action == "granted":
            now = call.services.now()
            made = await book.consents.grant(connection, tenant, number, facts, list_id=list_id, actor=actor, now=now)
            return Done(201, problems.encode(consent_view(made)))
        left = await book.subscriptions.unsubscribe(
            tenant,
            number,
            list_id=list_id,
            reason="consent withdrawn",
            source=actor,
            facts=facts,
            connection=connection,
        )
        found = None if left is None else await book.consents.of(tenant, number, connection=connection)
        ours = [each for each in found or () if each.action == "withdrawn" and each.list_id == list_id]
        if not ours:
            raise missing("contact")
        return Done(201, problems.encode(consent_view(max(ours, key=lambda each: each.id))))

    try:
        response = await once(call, body, work)
    except Refused as error:
        raise problem_of(error) from None
    if asked.action == "withdrawn":
        await asyncio.sleep(GRACE)  # then it holds for all mail whose DATA has not begun
    return response


async def list_consents(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    found = await call.services.contacts.consents.of(call.caller.tenant, number)
    if found is None:
        raise missing("contact")
    return json_answer(200, ConsentList(data=[consent_view(each) for each in found]))


async def export(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    person = await call.services.contacts.persons.export(call.caller.tenant, number)
    if person is None:
        raise missing("contact")
    answer = json_answer(200, _exported(person))
    answer.headers["Content-Disposition"] = f'attachment; filename="{format_id(CONTACT, number)}.json"'
    return answer


async def erase(call: Call) -> web.Response:
    number = path_number(call, "contact_id", CONTACT)
    try:
        done = await call.services.contacts.erasures.erase(call.caller.tenant, number)
    except Refused as error:
        raise problem_of(error) from None
    call.facts["erased"] = format_id(CONTACT, number)
    answer = ErasedView(
        contact_id=format_id(CONTACT, number),
        erased_at=done.erased_at,
        events=done.events,
        suppressions=done.suppressions,
        kept=list(KEPT),
    )
    return json_answer(200, answer)


def _exported(person: Person) -> PersonExport:
    return PersonExport(
        contact=contact_view(person.contact),
        lists=[_subscription(each) for each in person.subscriptions],
        history=[_change(each) for each in person.history],
        consents=[consent_view(each) for each in person.consents],
        campaigns=[
            CampaignReceived(
                campaign_id=format_id(CAMPAIGN, each.campaign_id),
                name=each.name,
                status=each.status,
                marks=each.marks,
                email_id=None if each.message_id is None else format_message_id(each.message_id),
                due_at=each.due_at,
                changed_at=each.changed_at,
                reason=each.reason,
            )
            for each in person.campaigns
        ],
        engagements=[
            EngagementView(
                at=each.at,
                campaign_id=format_id(CAMPAIGN, each.campaign_id),
                email_id=format_message_id(each.message_id),
                kind=each.kind,
                machine=each.machine,
                link=each.link,
            )
            for each in person.engagements
        ],
        suppressions=[
            SuppressedBy(
                scope="global" if each.everybody else "tenant",
                address=each.address,
                stream=each.stream,
                topic=each.topic,
                reason=each.reason,
                detail=each.detail,
                created_at=each.created_at,
                expires_at=each.expires_at,
            )
            for each in person.suppressions
        ],
        events=person.events,
    )


def _subscription(each: object) -> SubscriptionView:
    return SubscriptionView(**_facts(each, SubscriptionView))


def _change(each: object) -> SubscriptionChange:
    return SubscriptionChange(**_facts(each, SubscriptionChange))


def _facts(each: object, type_: type[Answer]) -> dict[str, Any]:
    facts = {name: getattr(each, name) for name in type_.__struct_fields__}
    return facts | {"list_id": list_name(facts["list_id"])}


CONSENT = {"method": "form", "text_version": "2026-03", "ip": "203.0.113.7", "at": "2026-11-22T09:30:00Z"}

OPERATIONS = (
    Operation(
        id="contacts.unsubscribe",
        method="POST",
        path=f"{PATH}/unsubscribe",
        scope="manage",
        summary="No more mail of campaigns to this contact, or of one list; it holds when this answers",
        handler=unsubscribe,
        bodies={JSON: Unsubscribe},
        example={"reason": "too many mails"},
        answers={200: (JSON, Unsubscribed)},
        problems=WRITING,
    ),
    Operation(
        id="contacts.subscribe",
        method="POST",
        path=f"{PATH}/subscribe",
        scope="manage",
        summary="The person wants mail again, and there is a consent of after they left; lifts no bounce or complaint",
        handler=subscribe,
        bodies={JSON: Subscribe},
        example={"consent": CONSENT, "list_ids": ["lst_1"]},
        answers={200: (JSON, ContactView)},
        problems=WRITING,
    ),
    Operation(
        id="contacts.subscriptions",
        method="GET",
        path=f"{PATH}/subscriptions",
        scope="read",
        summary="Which lists the contact is on, what it is there, and what it was",
        handler=subscriptions,
        answers={200: (JSON, Subscriptions)},
        problems=(404,),
    ),
    Operation(
        id="contacts.add_consent",
        method="POST",
        path=f"{PATH}/consents",
        scope="manage",
        summary="Put on record that the person agreed, or (withdrawn, which unsubscribes) took it back",
        handler=add_consent,
        bodies={JSON: NewConsent},
        example={"action": "granted"} | CONSENT,
        answers={201: (JSON, ConsentView)},
        problems=WRITING,
        idempotent=True,
    ),
    Operation(
        id="contacts.consents",
        method="GET",
        path=f"{PATH}/consents",
        scope="read",
        summary="The ledger of consents of the contact's address",
        handler=list_consents,
        answers={200: (JSON, ConsentList)},
        problems=(404,),
    ),
    Operation(
        id="contacts.export_person",
        method="GET",
        path=f"{PATH}/export",
        scope="read",
        summary="Everything that is known of the person, as JSON (GDPR articles 15 and 20)",
        handler=export,
        answers={200: (JSON, PersonExport)},
        problems=(404,),
    ),
    Operation(
        id="contacts.erase",
        method="POST",
        path=f"{PATH}/erase",
        scope="manage",
        summary="Forget the person (GDPR article 17): no import brings the address back",
        handler=erase,
        answers={200: (JSON, ErasedView)},
        problems=(404,),
    ),
)
