"""The template of a campaign, tried out with a made-up contact before any real one gets it."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec

from mailerd.campaigns.audience import read_audience
from mailerd.campaigns.audience_store import AudienceStore
from mailerd.campaigns.compliance import Finding, Sample, errors
from mailerd.campaigns.contacts.definitions import DefinitionStore
from mailerd.campaigns.templates import checking
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.contexts import of_person
from mailerd.campaigns.templates.languages import TEXT
from mailerd.campaigns.templates.preflight import SAMPLE_SIZE, preflight
from mailerd.campaigns.templates.rendering import Prepared, PreparedCache
from mailerd.campaigns.templates.store import TemplateStore
from mailerd.campaigns.templates.values import CompiledTemplate, RenderError, TemplateError, TemplateProblem
from mailerd.campaigns.values import Campaign
from mailerd.db import Pool

UNSUBSCRIBE_URL = "https://unsubscribe.invalid/u/sample"
PREFERENCES_URL = "https://unsubscribe.invalid/p/sample"
MADE_UP = "Sample"
SHOWN = 10  # failures
UNKNOWN = Finding("unknown_template", "error", "Its template is not there any more.", "/template_id")
MEANT = ("", "/subject")  # what is said of a subject points there
KEPT = 10_000  # templates with a subject, of which is known what is doubtful


class UnknownContactError(LookupError):
    """The tenant has no such contact."""


class Trial:
    """A `checking.Rendering`."""

    def __init__(
        self, pool: Pool, audiences: AudienceStore, clock: Callable[[], datetime], prepared: PreparedCache
    ) -> None:
        self._templates = TemplateStore(pool)
        self._definitions = DefinitionStore(pool)
        self._audiences = audiences
        self._clock = clock
        self._ready = prepared
        self._found: dict[tuple[int, str], list[Finding]] = {}  # versions never change
        self._preparing = asyncio.Lock()

    async def sample(
        self, campaign: Campaign, postal_address: str, contact_id: int | None = None
    ) -> tuple[Sample | None, list[Finding]]:
        """The mail as a made-up contact would get it, or that one, and what is wrong with it; None: there is none.

        Raises `UnknownContactError`.
        """
        prepared, faults = await self._prepared(campaign)
        if prepared is None:
            return None, faults
        context, who = _context(campaign, postal_address), "a made-up contact"
        if contact_id is not None:
            people = await self._templates.people(campaign.tenant, [contact_id])
            if not people:
                raise UnknownContactError(contact_id)
            person = of_person(people[0], _campaign_words(campaign), postal_address)
            context |= {name: person[name] for name in ("contact", "custom_fields")}
            who = "that contact"
        try:
            mail = await asyncio.to_thread(prepared.render, context, lenient=contact_id is None, clock=time.thread_time)
        except RenderError as error:
            detail = f"It cannot be rendered for {who}: {error}"
            return None, [*faults, Finding(error.code, "error", detail, "/template_id")]
        return Sample(mail.subject, mail.html, mail.text, UNSUBSCRIBE_URL), faults

    async def preflight(self, campaign: Campaign, postal_address: str) -> list[Finding]:
        """What goes wrong with the first contacts of the audience: warnings, unless it does so with all of them."""
        prepared, _ = await self._prepared(campaign)
        ids = await self._audiences.first(campaign.tenant, read_audience(campaign.audience), SAMPLE_SIZE, self._clock())
        if prepared is None or not ids:
            return []
        people = await self._templates.people(campaign.tenant, ids)
        words = _campaign_words(campaign)
        failures = await preflight(prepared, (of_person(person, words, postal_address) for person in people))
        severity: Literal["error", "warning"] = "error" if len(failures) == len(people) else "warning"
        tried = f"of {len(people)} contacts tried {len(failures)} would get no mail"
        known = set(await self._definitions.types(campaign.tenant))
        known.update(name for person in people for name in person.custom_fields)
        return [
            *(
                Finding(failure.code, severity, f"{failure.contact_id}: {failure.detail} ({tried})", "/template_id")
                for failure in failures[:SHOWN]
            ),
            *_unknown_fields(prepared.compiled, campaign.subject, known, len(people)),
        ]

    async def _prepared(self, campaign: Campaign) -> tuple[Prepared | None, list[Finding]]:
        """The template with the subject of the campaign, as it is now, or why there is none."""
        id_ = await self._templates.current_id(campaign.tenant, campaign.template_id)
        if id_ is None:
            return None, [UNKNOWN]
        if (known := self._known(id_, campaign.subject)) is not None:
            return known
        async with self._preparing:  # one at a time: the others may want the same
            if (known := self._known(id_, campaign.subject)) is not None:
                return known
            version = await self._templates.version(id_)
            if version is None:
                return None, [UNKNOWN]
            ready = self._ready.get(id_, campaign.subject)
            prepared, faults = await asyncio.to_thread(_prepare, version.compiled, campaign.subject, ready)
            self._found[id_, campaign.subject] = faults
            while len(self._found) > KEPT:
                del self._found[next(iter(self._found))]
            if prepared is not None:
                self._ready.put(id_, prepared, campaign.subject)
        return prepared, faults

    def _known(self, version_id: int, subject: str) -> tuple[Prepared | None, list[Finding]] | None:
        faults = self._found.get((version_id, subject))
        if faults is None:
            return None
        if errors(faults):
            return None, faults
        ready = self._ready.get(version_id, subject)
        return None if ready is None else (ready, faults)


def _prepare(compiled: CompiledTemplate, subject: str, ready: Prepared | None) -> tuple[Prepared | None, list[Finding]]:
    """Ready to be rendered, with what is doubtful; or what is wrong. Takes milliseconds, more of a large template."""
    faults = [_warning(each) for each in compiled.problems if each.severity == "warning"]
    if subject:
        found = _of_subject(subject, compiled.required)
        if errors(found):
            return None, found
        faults += found
        compiled = msgspec.structs.replace(compiled, subject=subject)
    return ready or Prepared(compiled), faults


def _warning(problem: TemplateProblem) -> Finding:
    line = "" if problem.line is None else f" (line {problem.line})"
    return Finding(problem.code, "warning", f"{problem.detail}{line}", "/template_id")


def _of_subject(subject: str, declared: list[str]) -> list[Finding]:
    """What is wrong with the subject of a campaign, or else doubtful."""
    try:
        found = compile_template(subject, "<p>text</p>", "text", variables=declared).problems
    except TemplateError as error:
        found = [each for each in error.problems if each.severity == "error"]
    return [Finding(each.code, each.severity, each.detail, "/subject") for each in found if each.pointer in MEANT]


def _unknown_fields(compiled: CompiledTemplate, subject: str, known: set[str], tried: int) -> list[Finding]:
    of_subject = checking.check(TEXT, subject, "/subject").used if subject else []
    return [
        Finding(
            "unknown_custom_field",
            "warning",
            f"{name} is empty: no such field is defined, and none of {tried} contacts tried has it.",
            "/subject" if name in of_subject else "/template_id",
        )
        for name in dict.fromkeys([*compiled.used, *of_subject])
        if (field := _custom_field(name)) and field not in known
    ]


def _custom_field(name: str) -> str:
    """`city` of `custom_fields.city` and of `contact.custom_fields.city`; "" of what is none."""
    root, _, rest = name.removeprefix("contact.").partition(".")
    return rest.partition(".")[0] if root == "custom_fields" else ""


def _context(campaign: Campaign, postal_address: str) -> dict[str, Any]:
    """Of somebody of whom no more is known than of everybody: what the law wants must stand in his mail, too."""
    fields: dict[str, Any] = {}
    return {
        "contact": {
            "contact_id": "con_1",
            "email": "sample@example.com",
            "first_name": MADE_UP,
            "last_name": MADE_UP,
            "phone": "+1 555 0100",
            "tags": [MADE_UP],
            "custom_fields": fields,
            "time_zone": campaign.timing.time_zone,
            "created_at": campaign.created_at.isoformat(),
        },
        "custom_fields": fields,
        "campaign": _campaign_words(campaign),
        "unsubscribe_url": UNSUBSCRIBE_URL,
        "preferences_url": PREFERENCES_URL,
        "view_url": "",
        "postal_address": postal_address,
        "sender_name": campaign.sender_name,
    }


def _campaign_words(campaign: Campaign) -> dict[str, str]:
    return {
        "campaign_id": campaign.name_outside,
        "name": campaign.name,
        "subject": campaign.subject,
        "sender_name": campaign.sender_name,
        "sender_email": campaign.sender_email,
    }
