"""What a reply, or its absence, or a report means for a recipient: one taxonomy for all of them.

The reply code alone can make something permanent (RFC 5321 section 4.2.1); the class comes from the text where people
agree on words, then from the enhanced code (RFC 3463), then from the code and the stage. The text goes first because
enhanced codes lie: `5.7.1` is anything, `5.2.2` comes with 550, 552 and 554, `552` with "no such user". The words, the
codes and what follows from each class stand in `mailerd/verdicts.yaml` (`mailerd.config.verdicts`).

A suppression is for ever, so only what is surely and permanently about the recipient has the action `suppress`: never
a 4yz, however often it came, and never what only a bare code says.
"""

from enum import StrEnum

import msgspec

from mailerd.config.verdicts import Action, Blame, Detail, Kind, VerdictRules, parse_verdicts
from mailerd.delivery.diagnostic import Said, detail_in, read_diagnostic, telling, without_codes
from mailerd.delivery.verdict_book import REPORT, Told, VerdictBook
from mailerd.wire.smtp import Reply, printable

__all__ = [
    "Action",
    "Blame",
    "Kind",
    "Outcome",
    "Verdict",
    "classify",
    "complaint",
    "expired",
    "in_force",
    "local_verdict",
    "network_verdict",
    "of_report",
    "use",
]


class Outcome(StrEnum):
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"


class Verdict(msgspec.Struct, frozen=True):
    """What became of one recipient in one attempt, or what a report says of it.

    `code` and `enhanced` are the peer's, or the ones we would have given when there was no reply. `retry_other_host`:
    the next host of the route may be tried within this attempt, since this host said nothing about the recipient.
    `rule` is the id of the rule that spoke, "" when only codes did or we ourselves.
    """

    outcome: Outcome
    kind: str
    code: int
    enhanced: str
    text: str
    blame: str = Blame.NOBODY
    retry_other_host: bool = False
    action: Action = Action.NOTHING
    rule: str = ""

    @property
    def closing(self) -> bool:
        """The host ends the connection after this (421 at any step, RFC 5321 section 3.8)."""
        return self.code == 421

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


class _InForce:
    """The rules of this process. The built-in ones are made ready when first asked for: most commands never do."""

    def __init__(self) -> None:
        self._book: VerdictBook | None = None

    @property
    def book(self) -> VerdictBook:
        if self._book is None:
            self._book = VerdictBook(parse_verdicts({}))
        return self._book

    def replace(self, book: VerdictBook) -> None:
        self._book = book


_rules = _InForce()


def use(rules: VerdictRules | VerdictBook) -> None:
    """Let these rules be in force in this process from now on, instead of the built-in ones or the last.

    Rules take a tenth of a second to be made ready: who has mail under way hands in a book that is.
    """
    _rules.replace(rules if isinstance(rules, VerdictBook) else VerdictBook(rules))


def in_force() -> VerdictBook:
    """The rules in force in this process."""
    return _rules.book


def classify(reply: Reply, stage: str) -> Verdict:
    """The verdict of a final reply at `stage`: connect, greeting, ehlo, starttls, auth, mail, rcpt, data or dot.

    Only a 2yz at `dot` is a delivery, only a 5yz can be a bounce. Some 5yz are deferred all the same: those of classes
    that are never permanent (greylisting, rates, too many recipients), and those of STARTTLS and AUTH, which speak
    about our credentials and settings and would bounce a whole queue for a mistyped password.
    """
    code, enhanced, text = reply.code, reply.enhanced, reply.text
    if 200 <= code < 300 and stage == "dot":
        return Verdict(Outcome.DELIVERED, Kind.DELIVERED, code, enhanced, text)
    if not 400 <= code < 600:
        return _made(Outcome.DEFERRED, Told(Kind.PROTOCOL, None, ""), code, enhanced, text, stage)
    book = _rules.book
    told = _fit_to_stage(book.told(code, enhanced or detail_in(text, str(code)[0]), text, stage), code, stage)
    permanent = code >= 500 and book.classes[told.kind].permanent and stage not in ("starttls", "auth")
    return _made(Outcome.BOUNCED if permanent else Outcome.DEFERRED, told, code, enhanced, text, stage)


def network_verdict(error_kind: str, text: str, *, in_doubt: bool = False) -> Verdict:
    """The verdict when there was no reply to speak of; always deferred. `error_kind` is a key of `NETWORK_KINDS`.

    `text` may quote what the peer sent, whatever and how much that was: it comes out printable and cut, as rows and
    logs need it.

    `in_doubt`: the final dot had been written, so the host may have taken the message and no other may be tried now.
    """
    kind, code, enhanced, blame = NETWORK_KINDS[error_kind]
    retry_other_host = not in_doubt and kind != Kind.DNS
    text = printable(text[:MAX_REPORTED])
    return Verdict(Outcome.DEFERRED, kind, code, enhanced, text, blame, retry_other_host, action=Action.RETRY)


def local_verdict(kind: str, code: int, enhanced: str, text: str, *, blame: str | None = None) -> Verdict:
    """A verdict of our own, such as a null MX or an expiry: 5yz bounces, 4yz defers; no other host is asked."""
    outcome = Outcome.BOUNCED if code >= 500 else Outcome.DEFERRED
    told = Told(Kind(kind), None, "")
    blame = _rules.book.classes[told.kind].blame if blame is None else blame
    return Verdict(outcome, kind, code, enhanced, printable(text), blame, action=_action(outcome, told, enhanced))


def expired(last_reply: str) -> Verdict:
    """The bounce of a recipient whose time is over (RFC 3463 X.4.7); `last_reply` is the last thing a host said.

    It counts against the address only when that was about the recipient: our own network may have been down for days.
    """
    text = f"delivery time expired; the last answer was: {last_reply}" if last_reply else "delivery time expired"
    told = Told(Kind.EXPIRED, None, "")
    book = _rules.book
    said = read_diagnostic(last_reply)
    last = book.told(said.code, said.enhanced, said.text, REPORT)
    if last_reply and book.classes[last.kind].blame is Blame.RECIPIENT:
        told = Told(Kind.EXPIRED, Action.COUNT, last.rule)
    action = _action(Outcome.BOUNCED, told, "5.4.7")
    blame = book.classes[Kind.EXPIRED].blame
    return Verdict(Outcome.BOUNCED, Kind.EXPIRED, 554, "5.4.7", printable(text), blame, action=action, rule=told.rule)


def of_report(action: str, status: str, code: int, diagnostic: str, words: str) -> Verdict:
    """The verdict of what a report says of one recipient: the fields of a DSN (RFC 3464), or the words of any bounce.

    `action` is failed, delayed, delivered, relayed or expanded; anything else counts as failed. `status` is an enhanced
    code or "", `code` a reply code or 0. The diagnostic decides, then the status, then the words, then the code. What
    failed is over, however temporary the reason: it bounces, but suppresses only where the codes say "permanent".
    """
    said, in_words = read_diagnostic(diagnostic), read_diagnostic(words)
    code = said.code or (code if 400 <= code < 600 else 0) or in_words.code
    enhanced = said.enhanced or status or in_words.enhanced
    text = without_codes(printable(diagnostic or words), code, enhanced)[:MAX_REPORTED]
    if action in ("delivered", "relayed", "expanded"):
        return Verdict(Outcome.DELIVERED, Kind.DELIVERED, code or 250, enhanced, text)
    stage = said.stage or in_words.stage or REPORT
    told = _fit_to_stage(_told_by_report(code, said, status, words, stage), code, stage)
    if EXPIRED in (said.enhanced[2:], status[2:]) and told.kind in REASONS_TO_WAIT:
        told = Told(Kind.EXPIRED, None, told.rule)
    if action == "delayed":
        blame = _blame(told.kind, stage)
        return Verdict(Outcome.DEFERRED, told.kind, code or 451, enhanced, text, blame, rule=told.rule)
    final = _made(Outcome.BOUNCED, told, code or 554, enhanced, text, stage)
    temporary = code < 500 if code else enhanced.startswith("4")
    if temporary and final.action is Action.SUPPRESS:
        return msgspec.structs.replace(final, action=Action.COUNT)
    return final


def complaint(feedback_type: str) -> Verdict:
    """The verdict of a feedback report (RFC 5965, `Feedback-Type`): the message was delivered, and not wanted.

    Every type stops mail for good but those that say the contrary, or speak about our authentication or our content.
    """
    text = f"complaint: {printable(feedback_type)[:100]}" if feedback_type else "complaint"
    harmless = feedback_type.strip().lower() in HARMLESS_FEEDBACK
    told = Told(Kind.COMPLAINT, HARMLESS_FEEDBACK[feedback_type.strip().lower()] if harmless else None, "")
    act = _action(Outcome.BOUNCED, told, "")
    blame = _rules.book.classes[Kind.COMPLAINT].blame
    return Verdict(Outcome.DELIVERED, Kind.COMPLAINT, 250, "", text, blame, action=act)


NETWORK_KINDS: dict[str, tuple[Kind, int, str, Blame]] = {
    "connection_refused": (Kind.NETWORK, 421, "4.4.1", Blame.NETWORK),
    "unreachable": (Kind.NETWORK, 421, "4.4.1", Blame.NETWORK),
    "timeout": (Kind.NETWORK, 421, "4.4.2", Blame.NETWORK),
    "reset": (Kind.NETWORK, 421, "4.4.2", Blame.NETWORK),
    "closed": (Kind.NETWORK, 421, "4.4.2", Blame.NETWORK),
    "tls_failed": (Kind.TLS, 454, "4.7.5", Blame.REMOTE),
    "dns_servfail": (Kind.DNS, 451, "4.4.3", Blame.NETWORK),
    "dns_timeout": (Kind.DNS, 451, "4.4.3", Blame.NETWORK),
    "garbage": (Kind.PROTOCOL, 451, "4.5.0", Blame.REMOTE),
}
HARMLESS_FEEDBACK = {
    "not-spam": Action.NOTHING,
    "dismissal": Action.NOTHING,
    "auth-failure": Action.TELL,  # RFC 6591
    "dmarc": Action.TELL,
    "virus": Action.TELL,
}
EXPIRED = "4.7"  # the detail of RFC 3463
REASONS_TO_WAIT = frozenset({Kind.NETWORK, Kind.DNS, Kind.ROUTING, Kind.PROTOCOL, Kind.OTHER})
MAX_REPORTED = 1_000  # characters that a verdict keeps of a report's words, or of what an error quotes
HOST_STAGES = frozenset({"connect", "greeting", "ehlo", "starttls"})
RECIPIENT_KINDS = frozenset(
    {Kind.INVALID_RECIPIENT, Kind.INACTIVE, Kind.MAILBOX_FULL, Kind.BAD_DOMAIN, Kind.TOO_MANY_RECIPIENTS}
)
UNCHANGED_BY_STAGE = frozenset({"rcpt", "data", "dot", REPORT})


def _made(outcome: Outcome, told: Told, code: int, enhanced: str, text: str, stage: str) -> Verdict:
    return Verdict(
        outcome,
        told.kind,
        code,
        enhanced,
        text,
        _blame(told.kind, stage),
        _about_host(code, stage),
        _action(outcome, told, enhanced or detail_in(text, "")),
        told.rule,
    )


def _told_by_report(code: int, said: Said, status: str, words: str, stage: str) -> Told:
    book, in_words = _rules.book, read_diagnostic(words)
    if said.text and (told := next(book.fitting(code, said.enhanced or status, said.text, stage), None)):
        return told
    details = [each[2:] for each in (said.enhanced, status, in_words.enhanced)]
    for detail in details[:2]:
        # X.4.z only says that the way there failed, and people read why.
        if not detail.startswith("4.") and (told := book.by_detail(detail, exact=True)):
            return told
    enhanced = in_words.enhanced or said.enhanced or status
    exact = next((told for detail in details if (told := book.by_detail(detail, exact=True))), None)
    for text in telling(in_words.text):
        told = next(book.fitting(code, enhanced, text, stage), None)
        if told and not (exact and told.kind is Kind.EXPIRED):  # "too long in the queue" says less than any code
            return told
    by_subject = next((told for detail in details if (told := book.by_detail(detail))), None)
    found = exact or by_subject or _told_before_reply(code, enhanced, words if in_words.code else "", stage)
    return found or book.by_code(code, stage) or Told(Kind.OTHER, None, "")


def _told_before_reply(code: int, enhanced: str, words: str, stage: str) -> Told | None:
    """What stands in front of a reply that tells nothing, as of a program that was run: it counts at most."""
    book = _rules.book
    told = next((told for text in telling(words) for told in book.fitting(code, enhanced, text, stage)), None)
    if told and Action.SUPPRESS in (told.action, None if told.action else book.classes[told.kind].action):
        return Told(told.kind, Action.COUNT, told.rule)
    return told


def _action(outcome: Outcome, told: Told, enhanced: str) -> Action:
    """What to do: of a bounce what the rule or its class says, of a deferral another try, at most more gently."""
    of_class = _rules.book.classes[told.kind]
    action = of_class.action if told.action is None else told.action
    if outcome is Outcome.DEFERRED:
        return action if action in (Action.OTHER_SOURCE, Action.SLOW) else Action.RETRY
    if action is Action.SUPPRESS:
        doubtful = enhanced.startswith("4") or (of_class.only_with and not _proved(enhanced, of_class.only_with))
        return Action.COUNT if doubtful else action
    return Action.TELL if action is Action.RETRY else action  # too late to try again


def _proved(enhanced: str, only_with: tuple[Detail, ...]) -> bool:
    return any(enhanced[2:] in detail.details() for detail in only_with)


def _fit_to_stage(told: Told, code: int, stage: str) -> Told:
    """A host cannot say anything about a recipient that it has not been told of."""
    if stage in UNCHANGED_BY_STAGE:
        return told
    if stage == "auth":
        return Told(Kind.AUTH_FAILURE, None, told.rule) if code >= 500 else told
    if stage == "starttls":
        return Told(Kind.TLS, None, told.rule)
    if told.kind not in RECIPIENT_KINDS or code in (521, 556):
        return told
    return Told(Kind.INVALID_SENDER if stage == "mail" else Kind.POLICY, None, told.rule)


def _blame(kind: Kind, stage: str) -> Blame:
    if stage == "auth":
        return Blame.SOURCE
    if stage in HOST_STAGES and kind in (Kind.AUTH_FAILURE, Kind.INVALID_SENDER, Kind.POLICY):
        return Blame.SOURCE  # it knows nothing but our address and name so far
    return _rules.book.classes[kind].blame


def _about_host(code: int, stage: str) -> bool:
    return stage in HOST_STAGES or code == 421
