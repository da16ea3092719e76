"""What a campaign must have before it may be sent: pure. `checking` gathers the facts.

An `error` keeps it from being sent, a `warning` is worth reading. The grounds: a way to unsubscribe that works, the
postal address of who writes and a true sender are asked for by law (CAN-SPAM section 5, GDPR and ePrivacy article 13)
and by the large providers (List-Unsubscribe, RFC 8058; a DKIM key of the sender's domain).
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from mailerd.wire.address import parse_mailbox

TAG = re.compile(r"<[^>]*>")
THEN = {
    "next_day": "they get it at that hour of the next day",
    "send_now": "they get it at schedule_time, whatever the hour is there",
    "skip": "they do not get it",
}
TRANSACTIONAL = "transactional"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong or doubtful; `pointer` says where in the campaign (RFC 6901), "" when nowhere in it."""

    code: str
    severity: Literal["error", "warning"]
    detail: str
    pointer: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """The mail as one contact would get it, rendered with `unsubscribe_url`."""

    subject: str
    html: str
    text: str
    unsubscribe_url: str


@dataclass(frozen=True, slots=True)
class Past:
    """Contacts in whose time zones the hour of the schedule is past, and what happens to them (`Timing.past`)."""

    contacts: int
    exact: bool
    then: Literal["send_now", "next_day", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the checks look at. `sample` None: it could not be rendered, see `failures`; `audience` None: not counted.

    `domains` are those of the configuration, `configured` whether the sender's is among them or below one, `signed`
    whether that has a DKIM key. `streams` and `pools` are their names.
    """

    sender_email: str
    reply_to: str
    stream: str
    pool: str | None
    postal_address: str
    sample: Sample | None
    failures: Sequence[Finding]
    may_send_as: bool
    domains: bool
    configured: bool
    signed: bool
    public_url: str | None
    streams: Sequence[str]
    pools: Sequence[str]
    audience: int | None = None
    audience_named: bool = True
    past: Past | None = None


def findings(facts: Facts) -> list[Finding]:
    """All that is found, errors first."""
    found = [*_sender(facts), *_way(facts), *_content(facts), *_audience(facts)]
    return sorted(found, key=lambda each: each.severity != "error")


def errors(found: Sequence[Finding]) -> list[Finding]:
    """What keeps the campaign from being sent."""
    return [each for each in found if each.severity == "error"]


def _sender(facts: Facts) -> list[Finding]:
    pointer = "/sender_email"
    try:
        domain = parse_mailbox(facts.sender_email).domain
    except ValueError as error:
        return [_error("invalid_sender", f"The sender is no address that mail can come from: {error}.", pointer)]
    found = []
    if not facts.may_send_as:
        found.append(_error("sender_not_allowed", f"This API key may not send as {domain}.", pointer))
    if facts.domains and not facts.configured:
        detail = f"{domain} is none of our sending domains; an operator adds it to `domains`."
        found.append(_error("sender_domain_unknown", detail, pointer))
    elif not facts.signed:
        detail = f"There is no DKIM key for {domain}: large providers refuse or hide bulk mail without one."
        found.append(_warning("no_dkim_key", detail, pointer))
    if facts.reply_to:
        try:
            parse_mailbox(facts.reply_to)
        except ValueError as error:
            found.append(_error("invalid_reply_to", f"Nobody can answer to that address: {error}.", "/reply_to"))
    return found


def _way(facts: Facts) -> list[Finding]:
    found = []
    if facts.public_url is None:
        detail = "Nobody could unsubscribe: an operator says in `http.public_url` where the world reaches us."
        found.append(_error("no_public_url", detail))
    if facts.stream == TRANSACTIONAL:
        detail = "Campaigns are marketing: the stream transactional is for mail that somebody waits for."
        found.append(_error("transactional_stream", detail, "/options/stream"))
    elif facts.stream not in facts.streams:
        known = ", ".join(sorted(facts.streams))
        detail = f"There is no stream {facts.stream}; known: {known}."
        found.append(_error("unknown_stream", detail, "/options/stream"))
    if facts.pool is not None and facts.pool not in facts.pools:
        found.append(_error("unknown_pool", f"There is no pool {facts.pool}.", "/options/pool"))
    return found


def _content(facts: Facts) -> list[Finding]:
    found = list(facts.failures)
    if not facts.postal_address.strip():
        detail = "Say in `options.postal_address` where who writes can be reached by post; or an operator does."
        found.append(_error("no_postal_address", detail, "/options/postal_address"))
    sample = facts.sample
    if sample is None:
        return found  # said in `failures`
    if not sample.subject.strip():
        found.append(_error("empty_subject", "The subject is empty.", "/subject"))
    for part, shown in (("HTML", html.unescape(sample.html)), ("text", sample.text)):
        if sample.unsubscribe_url not in shown:
            detail = f"The {part} part of the template has no {{{{ unsubscribe_url }}}}."
            found.append(_error("no_unsubscribe_link", detail, "/template_id"))
        if facts.postal_address.strip() and _words(facts.postal_address) not in _words(_plain(shown, part)):
            detail = f"The {part} part of the template does not show the {{{{ postal_address }}}}."
            found.append(_error("postal_address_not_shown", detail, "/template_id"))
    return found


def _audience(facts: Facts) -> list[Finding]:
    if not facts.audience_named:
        detail = "Say in `contact_list_ids` or `audience` whom it is for."
        return [_error("no_audience", detail, "/audience")]
    if facts.audience == 0:
        return [_error("empty_audience", "There is nobody in the audience.", "/audience")]
    past = facts.past
    if past is not None and past.contacts:
        count = f"{'' if past.exact else 'about '}{past.contacts:,} contact{'' if past.contacts == 1 else 's'}"
        detail = f"In the time zones of {count} of the audience the hour is past already: {THEN[past.then]}."
        return [_warning("local_hour_past", detail, "/timing/past")]
    return []


def _plain(shown: str, part: str) -> str:
    return TAG.sub(" ", shown) if part == "HTML" else shown


def _words(text: str) -> str:
    """For comparing: line ends, spaces and commas between may differ, and upper and lower case."""
    return " ".join(text.replace(",", " ").split()).casefold()


def _error(code: str, detail: str, pointer: str = "") -> Finding:
    return Finding(code, "error", detail, pointer)


def _warning(code: str, detail: str, pointer: str = "") -> Finding:
    return Finding(code, "warning", detail, pointer)
