"""What a remote host said, found in the diagnostic or the words of a report: `smtp; 550 5.1.1 user unknown`.

Pure. Reports quote replies in many ways: after a type and a semicolon (RFC 3464 section 2.3.6), after `said:`, after
`<<<`, in a sentence. Never raises; time is linear in the length.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_LOOKED_AT = 2_000  # characters

CODE = re.compile(
    r"(?:^|(?<=[\s;:>\"'#(\[,=]))([45][0-9][0-9])(?:-|\s+|(?=[.:;,\"')]|$))[\s:.#-]{0,4}"
    r"(?:([45]\.[0-9]{1,3}\.[0-9]{1,3})[\s:;,.)\]-]*)?"
)
DETAIL = re.compile(r"(?:^|(?<=[\s;:>\"'#(\[,]))([45]\.[0-9]{1,3}\.[0-9]{1,3})(?=[\s:;,.)\]>\"'-]|$)")
INTRODUCES = re.compile(
    r"(?:^|said|says|error|code|reply|replied|returned?|response|responded|answer(?:ed)?|was|with|diagnostic|status"
    r"|command|smtp|message|reason|because|<<<|[;:>\"#(\[=])[\s:;\"'(<#=-]*\Z",
    re.IGNORECASE,
)
KIND = re.compile(r"\s*(?:smtp|x-[a-z0-9-]{1,40}|unix|dns|x\.?400|lmtp|mta)\s*;\s*", re.IGNORECASE)
AFTER = r"(?:reply to|after|response to|>>>)\s*(?:the )?"
STAGES = tuple(
    (stage, re.compile(pattern, re.IGNORECASE))
    for stage, pattern in (
        ("rcpt", rf"{AFTER}RCPT\b"),
        ("mail", rf"{AFTER}MAIL\b"),
        (
            "dot",
            rf"{AFTER}(?:end of (?:the )?(?:DATA|message)|sending (?:the )?(?:data|message)|\.)|>>>\s*DATA\s*<<<\s*354",
        ),
        ("data", rf"{AFTER}DATA\b"),
        ("greeting", rf"refused to talk to me|{AFTER}(?:(?:initial )?connection|EHLO|HELO)\b"),
    )
)


@dataclass(frozen=True, slots=True)
class Said:
    """`code` is 0, the others "" where nothing is said of them. `text` is what follows the codes, or all of it."""

    code: int
    enhanced: str
    text: str
    stage: str


def read_diagnostic(diagnostic: str) -> Said:
    """Take a diagnostic apart, or a sentence with a reply in it."""
    text = diagnostic[:MAX_LOOKED_AT]
    kind = KIND.match(text)
    if kind is not None:
        text = text[kind.end() :]
    text = text.strip().strip("\"'")
    stage = next((name for name, pattern in STAGES if pattern.search(text)), "")
    for match in CODE.finditer(text):
        if INTRODUCES.search(text[max(0, match.start() - 40) : match.start()]):
            rest = _without(text[match.end() :], match[1])
            return Said(int(match[1]), match[2] or detail_in(rest, match[1][0]), rest.strip(), stage)
    return Said(0, detail_in(text, ""), text, stage)


def _without(text: str, code: str) -> str:
    """The later lines of a reply without its codes, when they have come to stand in one."""
    if code not in text:
        return text
    return re.sub(rf"(?:^|\s){code}[- ](?:{code[0]}\.[0-9]{{1,3}}\.[0-9]{{1,3}}\s)?", " ", text)


def without_codes(diagnostic: str, code: int, enhanced: str) -> str:
    """What a reply has for a text: a diagnostic that begins with its type, or these codes, loses them."""
    kind = KIND.match(diagnostic)
    text = diagnostic[kind.end() :] if kind is not None else diagnostic
    for said in (str(code), enhanced):
        if said and text.startswith(said) and not text[len(said) : len(said) + 1].isalnum():
            text = text[len(said) :].lstrip(" -")
    return text


def detail_in(text: str, code_class: str) -> str:
    """An enhanced code anywhere in it, such as qmail's `(#5.1.1)`."""
    match = DETAIL.search(text)
    return match[1] if match and match[1].startswith(code_class) else ""


# What systems write whatever the reason is.
BOILERPLATE = re.compile(
    r"(?:created|generated) automatically by mail delivery software"
    r"|this is (?:an? )?(?:permanent|automatic\w*)[^.;:]{0,60}"
    r"|(?:could|can|has|have|was|were|might) ?not (?:yet )?(?:be |been )?(?:delivered|reached|sent)\b"
    r"(?: to (?:one|all|some|any|the following|its)\b[^.;:]{0,40})?"
    r"|(?:wasn.t|was not|were|am|been) (?:un)?able to (?:be )?deliver(?:ed)?"
    r"(?: (?:your|the following|this) (?:message|e?-?mail)s?)?(?: to[^.;:]{0,40})?"
    r"|i.ve given up|sorry it didn.t work out"
    r"|the following address(?:\(es\)|es)? failed|had permanent fatal errors|did not reach the following[^.;:]{0,40}"
    r"|please (?:check|verify|contact|send mail|do not|direct|include)[^.;]{0,80}"
    r"|if you [^.;]{0,80}|for further assistance",
    re.IGNORECASE,
)
HELPERS = r"(?!(?:postmaster|mailer-daemon|abuse|support|help\w*|admin\w*)@)"
RECIPIENT = re.compile(
    rf"(?<!\S)[\"'<(\[]{{0,2}}{HELPERS}[\w.+=~!#$%&*/?^`{{|}}-]{{1,64}}@[\w-]+\.[\w.-]+[\"'>)\]]{{0,2}}:?",
    re.IGNORECASE,
)


def telling(words: str) -> Iterator[str]:
    """The parts of a bounce's words that may say why, the likeliest first: what follows the recipient, then all.

    Both without what systems write whatever the reason is, such as "this is a permanent error".
    """
    kept = BOILERPLATE.sub(" ", words)
    recipient = RECIPIENT.search(kept)
    after = kept[recipient.end() :].strip() if recipient else ""
    if after:
        yield after
    if kept.strip():
        yield kept
