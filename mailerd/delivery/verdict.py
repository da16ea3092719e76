"""What a reply, or its absence, means for a recipient: one taxonomy for replies, network errors and reports.

The reply code alone can make something permanent (RFC 5321 section 4.2.1); the class comes from the text where people
agree on words, then from the enhanced code (RFC 3463), then from the code and the stage. The text goes first because
enhanced codes lie: `5.7.1` is anything, `5.2.2` comes with 550, 552 and 554, `552` with "no such user".
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from mailerd.wire.smtp import Reply, printable


class Outcome(StrEnum):
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"


class Blame(StrEnum):
    """Whose fault: suppression may follow only `recipient`."""

    RECIPIENT = "recipient"
    SENDER = "sender"
    CONTENT = "content"
    SOURCE = "source"  # our address, name, credentials or configuration
    NETWORK = "network"
    REMOTE = "remote"
    NOBODY = ""


class Kind(StrEnum):
    """The class of a verdict; a stable word that logs, events, metrics and the retry schedule use."""

    DELIVERED = "delivered"
    INVALID_RECIPIENT = "invalid_recipient"
    INACTIVE = "inactive"
    MAILBOX_FULL = "mailbox_full"
    BAD_DOMAIN = "bad_domain"
    INVALID_SENDER = "invalid_sender"
    GREYLISTED = "greylisted"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_RECIPIENTS = "too_many_recipients"
    SPAM_BLOCK = "spam_block"  # who sends: addresses, reputation, block lists
    CONTENT = "content"  # what is sent: spam score, virus, attachment
    POLICY = "policy"
    AUTH_FAILURE = "auth_failure"  # SPF, DKIM, DMARC, reverse DNS; SMTP AUTH
    RELAY_DENIED = "relay_denied"
    TOO_LARGE = "too_large"
    ROUTING = "routing"
    DNS = "dns"
    NETWORK = "network"
    TLS = "tls"
    PROTOCOL = "protocol"
    EXPIRED = "expired"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one recipient in one attempt.

    `code` and `enhanced` are the peer's, or the ones we would have given when there was no reply. `retry_other_host`:
    the next host of the route may be tried within this attempt, since this host said nothing about the recipient.
    """

    outcome: Outcome
    kind: str
    code: int
    enhanced: str
    text: str
    blame: str = Blame.NOBODY
    retry_other_host: bool = False

    @property
    def closing(self) -> bool:
        """The host ends the connection after this (421 at any step, RFC 5321 section 3.8)."""
        return self.code == 421

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


def classify(reply: Reply, stage: str) -> Verdict:
    """The verdict of a final reply at `stage`: connect, greeting, ehlo, starttls, auth, mail, rcpt, data or dot.

    Only a 2yz at `dot` is a delivery, only a 5yz can be a bounce. Some 5yz are deferred all the same: those that say
    "later" or "fewer" in words (greylisting, rates, too many recipients), and those of STARTTLS and AUTH, which speak
    about our credentials and settings and would bounce a whole queue for a mistyped password.
    """
    code, enhanced, text = reply.code, reply.enhanced, reply.text
    if 200 <= code < 300 and stage == "dot":
        return Verdict(Outcome.DELIVERED, Kind.DELIVERED, code, enhanced, text)
    if not 400 <= code < 600:
        return Verdict(Outcome.DEFERRED, Kind.PROTOCOL, code, enhanced, text, Blame.REMOTE, _about_host(code, stage))
    kind = _fit_to_stage(_kind(code, enhanced, text, stage), code, stage)
    permanent = code >= 500 and kind not in NEVER_PERMANENT and stage not in ("starttls", "auth")
    outcome = Outcome.BOUNCED if permanent else Outcome.DEFERRED
    return Verdict(outcome, kind, code, enhanced, text, _blame(kind, stage), _about_host(code, stage))


def network_verdict(error_kind: str, text: str, *, in_doubt: bool = False) -> Verdict:
    """The verdict when there was no reply to speak of; always deferred. `error_kind` is a key of `NETWORK_KINDS`.

    `text` may quote what the peer sent, whatever bytes that was: it comes out printable, as rows and logs need it.

    `in_doubt`: the final dot had been written, so the host may have taken the message and no other may be tried now.
    """
    kind, code, enhanced, blame = NETWORK_KINDS[error_kind]
    return Verdict(Outcome.DEFERRED, kind, code, enhanced, printable(text), blame, not in_doubt and kind != Kind.DNS)


def local_verdict(kind: str, code: int, enhanced: str, text: str, *, blame: str | None = None) -> Verdict:
    """A verdict of our own, such as a null MX or an expiry: 5yz bounces, 4yz defers; no other host is asked."""
    outcome = Outcome.BOUNCED if code >= 500 else Outcome.DEFERRED
    return Verdict(outcome, kind, code, enhanced, printable(text), BLAME[Kind(kind)] if blame is None else blame)


def expired(last_reply: str) -> Verdict:
    """The bounce of a recipient whose time is over (RFC 3463 X.4.7); `last_reply` is the last thing a host said."""
    text = f"delivery time expired; the last answer was: {last_reply}" if last_reply else "delivery time expired"
    return local_verdict(Kind.EXPIRED, 554, "5.4.7", text)


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

NEVER_PERMANENT = frozenset({Kind.GREYLISTED, Kind.RATE_LIMITED, Kind.TOO_MANY_RECIPIENTS})
HOST_STAGES = frozenset({"connect", "greeting", "ehlo", "starttls"})
RECIPIENT_KINDS = frozenset(
    {Kind.INVALID_RECIPIENT, Kind.INACTIVE, Kind.MAILBOX_FULL, Kind.BAD_DOMAIN, Kind.TOO_MANY_RECIPIENTS}
)

BLAME: dict[Kind, Blame] = {
    Kind.DELIVERED: Blame.NOBODY,
    Kind.INVALID_RECIPIENT: Blame.RECIPIENT,
    Kind.INACTIVE: Blame.RECIPIENT,
    Kind.MAILBOX_FULL: Blame.RECIPIENT,
    Kind.BAD_DOMAIN: Blame.RECIPIENT,
    Kind.INVALID_SENDER: Blame.SENDER,
    Kind.GREYLISTED: Blame.REMOTE,
    Kind.RATE_LIMITED: Blame.SOURCE,
    Kind.TOO_MANY_RECIPIENTS: Blame.REMOTE,
    Kind.SPAM_BLOCK: Blame.SOURCE,
    Kind.CONTENT: Blame.CONTENT,
    Kind.POLICY: Blame.REMOTE,
    Kind.AUTH_FAILURE: Blame.SENDER,
    Kind.RELAY_DENIED: Blame.REMOTE,
    Kind.TOO_LARGE: Blame.CONTENT,
    Kind.ROUTING: Blame.REMOTE,
    Kind.DNS: Blame.NETWORK,
    Kind.NETWORK: Blame.NETWORK,
    Kind.TLS: Blame.REMOTE,
    Kind.PROTOCOL: Blame.REMOTE,
    Kind.EXPIRED: Blame.REMOTE,
    Kind.OTHER: Blame.REMOTE,
}

# What people write, most specific first: the first rule that matches anywhere in the text wins, wherever it stands.
# Each is a phrase, not a word: "see https://example.com/spam" in a user-unknown reply must not make it spam.
TEXT_RULES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind.GREYLISTED, (r"gr[ea]y.?list", r"postgrey")),
    (
        Kind.RELAY_DENIED,
        (
            r"relay(?:ing)?(?: access)? (?:is )?(?:denied|prohibited|not (?:permitted|allowed))",
            r"(?:unable|not permitted|not allowed|attempt) to relay",
            r"(?:do|does) not relay",
            r"relaying mail to",
            r"\brcpthosts\b",
        ),
    ),
    (
        Kind.INVALID_SENDER,
        (
            r"sender (?:e-?mail )?(?:address )?(?:rejected|denied|verif|invalid|unknown|domain|refused)",
            r"sender\b.{0,40}?\b(?:not (?:exist|found|valid)|unknown)",
            r"invalid sender",
            r"your domain",
            r"(?:domain of|your) sender",
            r"mail from (?:address|domain)",
            r"return.path (?:domain|does)",
            r"callout.{0,20}fail",
        ),
    ),
    (
        Kind.AUTH_FAILURE,
        (
            r"\b(?:dmarc|spf|dkim|ptr)\b",
            r"unauthenticated (?:e-?mail|sender)",
            r"not pass authentication",
            r"authentication (?:required|checks?|failed|credentials|unsuccessful)",
            r"reverse (?:dns|hostname|lookup)",
            r"cannot find your hostname",
            r"username and password not accepted",
        ),
    ),
    (
        Kind.TLS,
        (
            r"must issue (?:a )?starttls",
            r"(?:tls|encryption) (?:is |connection )?(?:required|needed)",
            r"requires (?:tls|encryption)",
        ),
    ),
    (
        Kind.RATE_LIMITED,
        (
            r"rate.?limit",
            r"too (?:many|much) (?:\w+ ){0,2}?(?:connections?|messages|e-?mails?|mails?|sessions|requests)",
            r"too (?:fast|frequent)",
            r"throttl",
            r"slow down",
            r"\bper (?:second|minute|hour|day)\b",
            r"receiving mail at a rate",
            r"(?:sending|send|daily|hourly|message|submission) (?:\w+ )?(?:rate|quota|limit)\b(?!.{0,20}size)",
            r"unexpected volume",
            r"connection (?:limit|frequency)",
        ),
    ),
    (
        Kind.TOO_MANY_RECIPIENTS,
        (
            r"too many recipients",
            r"max(?:imum)? (?:number of )?recipients",
            r"recipients? (?:limit|count)",
        ),
    ),
    (
        Kind.TOO_LARGE,
        (
            r"(?:message|mail|content|data|attachment)s? (?:size |length |is |was )*(?:too (?:large|big|long)|exceed)",
            r"exceed\w* (?:\S+ ){0,4}?size",
            r"size limit",
            r"maximum (?:\w+ )?size",
            r"message size",
        ),
    ),
    (
        Kind.MAILBOX_FULL,
        (
            r"(?:mailbox|inbox|folder|account|user)\b.{0,40}?\b(?:is |are )?full\b",
            r"full mailbox",
            r"quota",
            r"exceed\w* (?:\S+ ){0,3}?storage",
            r"out of (?:\w+ )?(?:storage|space)",
            r"exhausted (?:\w+ )?storage",
            r"insufficient (?:mailbox|user)",
        ),
    ),
    (
        Kind.INACTIVE,
        (
            r"(?:account|mailbox|user|recipient|address)\b.{0,60}?"
            r"\b(?:disabled|inactive|suspended|deactivated|closed|locked|expired|dormant|discontinued|not active"
            r"|no longer (?:active|available|in use|valid|works?))",
            r"(?:inactive|disabled) (?:account|mailbox|user|recipient)",
        ),
    ),
    (
        Kind.INVALID_RECIPIENT,
        (
            r"no such (?:\w+ )?(?:user|recipient|mailbox|person|address|account|customer|alias)",
            r"unknown (?:user|recipient|mailbox|local|address|account)",
            r"(?:user|recipient|mailbox|address|account|addressee|alias)\b.{0,80}?"
            r"\b(?:unknown|not found|(?:do(?:es)?|did) ?n[o']t exist|not exist|not known|is invalid|undeliverable"
            r"|not listed|(?:couldn't|could not) be found)",
            r"invalid (?:recipient|mailbox|user|address)",
            r"(?:no|not a valid) (?:mailbox|user|recipient)\b",
            r"unknown in (?:local|virtual|relay)",
            r"(?:unrouteable|undeliverable) address",
            r"nobody by that name",
            r"do(?:es)?(?: not|n't) have an? \S+ account",
            r"not our customer",
        ),
    ),
    (
        Kind.SPAM_BLOCK,
        (
            r"spamhaus|spamcop|barracuda|sorbs|senderscore|invaluement",
            r"\b\w*(?:dnsbl|rbl)\b",
            r"(?:black|block|deny).?list",
            r"blocked using",
            r"(?:listed|listing) (?:in|by|on|at) ",
            r"banned (?:sending|ip)",
            r"(?:\bip\b|host|client|server|network)\b.{0,60}?"
            r"\b(?:is |are |been |was )(?:temporarily )?(?:blocked|banned|denied)",
            r"unusual rate of unsolicited",
        ),
    ),
    (
        Kind.CONTENT,
        (
            r"\b(?:virus|malware|phish\w*|trojan)\b",
            r"spam (?:message|content|score|detected|rejected|filter|mail)",
            r"(?:is|as|like|be|considere?d?|suspected|likely|contains?|probable) (?:\w+ )?(?:spam|unsolicited|junk)\b",
            r"(?:content|spam|attachment)\b.{0,20}?\b(?:reject|block|prohibit|denied|not (?:allowed|accepted))",
            r"(?:because|due to)(?: its)? (?:\w+ )?content",
            r"(?:prohibited|forbidden|illegal|blocked|unacceptable) (?:attachment|content|file)",
        ),
    ),
    (
        Kind.POLICY,
        (
            r"(?<!rejected: )access denied",  # with it: Microsoft's unknown mailbox, told by its 5.4.1
            r"administrative(?:ly)? prohibit",
            r"\bpolic(?:y|ies)\b",
            r"not authori[sz]ed",
        ),
    ),
    (Kind.SPAM_BLOCK, (r"\bblocked\b", r"reputation", r"user complaints", r"suspicious activity")),
    (Kind.CONTENT, (r"(?<![/.-])\bspam\b(?![/.-])",)),
    (
        Kind.BAD_DOMAIN,
        (
            r"(?:domain|host)(?: name)? (?:\S+ )?(?:not found|unknown|(?:does not|doesn't) (?:exist|accept))",
            r"unrouteable mail domain",
            r"unknown (?:domain|host)",
            r"no such domain",
        ),
    ),
)
# The lookahead makes the alternatives an ordered list: without it the leftmost match would win.
TEXT = re.compile(
    "|".join(f"(?=.*?(?:{'|'.join(phrases)}))(?P<r{n}>)" for n, (_, phrases) in enumerate(TEXT_RULES)),
    re.IGNORECASE | re.DOTALL,
)
TEXT_LIMIT = 600  # characters looked at: replies of many lines repeat themselves, and a hostile one must stay cheap

ENHANCED: dict[str, Kind] = {  # subject.detail of RFC 3463 and its registry
    "1.0": Kind.INVALID_RECIPIENT,
    "1.1": Kind.INVALID_RECIPIENT,
    "1.2": Kind.BAD_DOMAIN,
    "1.3": Kind.INVALID_RECIPIENT,
    "1.4": Kind.INVALID_RECIPIENT,
    "1.6": Kind.INACTIVE,  # moved, no forwarding address
    "1.7": Kind.INVALID_SENDER,
    "1.8": Kind.INVALID_SENDER,
    "1.10": Kind.BAD_DOMAIN,  # null MX
    "2.1": Kind.INACTIVE,
    "2.2": Kind.MAILBOX_FULL,
    "2.3": Kind.TOO_LARGE,
    "2.4": Kind.INVALID_RECIPIENT,
    "3.1": Kind.OTHER,  # the host's disk, not the mailbox
    "3.2": Kind.NETWORK,
    "3.4": Kind.TOO_LARGE,
    "4.1": Kind.NETWORK,
    "4.2": Kind.NETWORK,
    "4.3": Kind.DNS,
    "4.4": Kind.ROUTING,
    "4.5": Kind.RATE_LIMITED,
    "4.6": Kind.ROUTING,
    "4.7": Kind.EXPIRED,
    "5.3": Kind.TOO_MANY_RECIPIENTS,
    "7.5": Kind.TLS,
    "7.8": Kind.AUTH_FAILURE,
    "7.9": Kind.AUTH_FAILURE,
    "7.10": Kind.TLS,
    "7.11": Kind.TLS,
    "7.13": Kind.INACTIVE,
    "7.17": Kind.INVALID_RECIPIENT,  # mailbox owner has changed
    "7.18": Kind.BAD_DOMAIN,  # domain owner has changed
    "7.20": Kind.AUTH_FAILURE,  # no passing DKIM signature
    "7.21": Kind.AUTH_FAILURE,
    "7.22": Kind.AUTH_FAILURE,
    "7.23": Kind.AUTH_FAILURE,  # SPF
    "7.24": Kind.AUTH_FAILURE,
    "7.25": Kind.AUTH_FAILURE,  # reverse DNS
    "7.26": Kind.AUTH_FAILURE,  # several checks failed
    "7.27": Kind.INVALID_SENDER,  # the sender's domain has a null MX
    "7.28": Kind.RATE_LIMITED,  # mail flood
    "7.29": Kind.AUTH_FAILURE,  # ARC
}
VAGUE = ("", "0.0", "5.0")  # say less than the code; 5.5.0 is Microsoft's for an unknown mailbox
SUBJECT: dict[str, Kind] = {"5": Kind.PROTOCOL, "6": Kind.CONTENT, "7": Kind.POLICY}

AUTH_CODES = (530, 534, 535, 538)  # RFC 4954 section 6, whatever 5.7.x comes with them
CODE: dict[int, Kind] = {
    500: Kind.PROTOCOL,
    501: Kind.PROTOCOL,
    502: Kind.PROTOCOL,
    503: Kind.PROTOCOL,
    504: Kind.PROTOCOL,
    521: Kind.BAD_DOMAIN,  # RFC 7504: no mail service here
    523: Kind.TOO_LARGE,
    525: Kind.INACTIVE,
    555: Kind.PROTOCOL,
    556: Kind.BAD_DOMAIN,
}
CODE_AT: dict[tuple[int, str], Kind] = {
    (452, "rcpt"): Kind.TOO_MANY_RECIPIENTS,
    (552, "rcpt"): Kind.TOO_MANY_RECIPIENTS,  # RFC 5321 section 4.5.3.1.10: treat as 452
    (550, "rcpt"): Kind.INVALID_RECIPIENT,
    (551, "rcpt"): Kind.INVALID_RECIPIENT,
    (553, "rcpt"): Kind.INVALID_RECIPIENT,
    (553, "mail"): Kind.INVALID_SENDER,
    (550, "mail"): Kind.INVALID_SENDER,
    (552, "mail"): Kind.TOO_LARGE,  # of the declared SIZE, RFC 1870
    (552, "data"): Kind.TOO_LARGE,
    (552, "dot"): Kind.TOO_LARGE,
}


def _kind(code: int, enhanced: str, text: str, stage: str) -> Kind:
    match = TEXT.match(text[:TEXT_LIMIT])
    if match is not None and match.lastgroup is not None:
        return TEXT_RULES[int(match.lastgroup[1:])][0]
    detail = enhanced.partition(".")[2]
    if detail == "4.1" and code >= 500 and stage == "rcpt":
        return Kind.INVALID_RECIPIENT  # Microsoft's "550 5.4.1 Recipient address rejected: Access denied"
    by_code = CODE_AT.get((code, stage)) or CODE.get(code)
    if detail in VAGUE and by_code is not None:
        return by_code
    if code in AUTH_CODES:
        return Kind.AUTH_FAILURE
    by_detail = ENHANCED.get(detail) or SUBJECT.get(detail.partition(".")[0])
    return by_detail or by_code or (Kind.SPAM_BLOCK if code == 554 and stage == "greeting" else Kind.OTHER)


def _fit_to_stage(kind: Kind, code: int, stage: str) -> Kind:
    """A host cannot say anything about a recipient that it has not been told of."""
    if stage in ("rcpt", "data", "dot"):
        return kind
    if stage == "auth":
        return Kind.AUTH_FAILURE if code >= 500 else kind
    if stage == "starttls":
        return Kind.TLS
    if kind not in RECIPIENT_KINDS or code in (521, 556):
        return kind
    return Kind.INVALID_SENDER if stage == "mail" else Kind.POLICY


def _blame(kind: Kind, stage: str) -> Blame:
    if stage == "auth":
        return Blame.SOURCE
    if stage in HOST_STAGES and kind in (Kind.AUTH_FAILURE, Kind.INVALID_SENDER, Kind.POLICY):
        return Blame.SOURCE  # it knows nothing but our address and name so far
    return BLAME[kind]


def _about_host(code: int, stage: str) -> bool:
    return stage in HOST_STAGES or code == 421
