"""What flufl.bounce knows, when our own rules find nobody: detectors of systems that are rare by now."""

import email
import email.policy
import logging
import re

from flufl.bounce import all_failures

from mailerd.feedback.reading.replies import clean_address

MAX_CONTENT = 16_384  # bytes: its patterns and the parser below it are not linear
MAX_BOUNDARIES = 40  # lines that may be one

MAX_LINES = 500
MAX_NESTED = 5  # parts that hold parts

_NESTING = re.compile(rb"multipart/|message/", re.IGNORECASE)
_LONG_LINE = re.compile(rb"[^\n]{1200}")

logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)  # it tells of every detector that it runs


def ask_flufl(content: bytes) -> list[str]:
    """The addresses that failed or are late, as far as flufl.bounce knows the form."""
    content = content[:MAX_CONTENT]
    if (
        content.count(b"\n") > MAX_LINES
        or content.count(b"\n--") > MAX_BOUNDARIES
        or len(_NESTING.findall(content)) > MAX_NESTED
        or _LONG_LINE.search(content)
    ):
        return []
    try:
        delayed, failed = all_failures(email.message_from_bytes(content, policy=email.policy.compat32))
    except Exception:
        return []
    texts = (clean_address(address.decode("utf-8", "replace")) for address in failed | delayed)
    return sorted(filter(None, texts))
