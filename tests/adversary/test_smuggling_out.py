"""What we send is one message to every receiver, also to one that takes more than CRLF.CRLF for the end.

All that a client of ours may put into a message is tried with every form of an end: what is taken at all is composed,
and read as the most lenient receiver would read it.
"""

import re

import msgspec
import pytest

from mailerd.web import bodies, problems
from mailerd.web.composing import prepare_email, prepare_raw
from mailerd.web.services import Limits
from mailerd.wire.smtp import dot_stuff, line_problem
from tests.intake.test_smuggling import NOT_THE_END, SMUGGLED

LIMITS = Limits()
PLAIN = {"from": "a@b.example", "to": ["c@d.example"], "subject": "s", "text": "t"}
# Line ends, whatever stands beside the dot that some server overlooked.
LENIENT_END = re.compile(rb"(?:\r\n|\r|\n)[\0]*\.[\0]*(?:\r\n|\r|\n)")
FORMS = [*NOT_THE_END, b"\r\n.\r\n", b"\r\n.\r\n.\r\n", b"\n.\n.\r\n", b"\r\n..\n.\r\n"]
WAYS = {
    "text": lambda text: {**PLAIN, "text": text},
    "html": lambda text: {**PLAIN, "html": text},
    "subject": lambda text: {**PLAIN, "subject": text},
    "header": lambda text: {**PLAIN, "headers": {"X-A": text}},
    "header name": lambda text: {**PLAIN, "headers": {text: "a"}},
    "sender's name": lambda text: {**PLAIN, "from": {"email": "a@b.example", "name": text}},
    "name in a text": lambda text: {**PLAIN, "from": f'"{text}" <a@b.example>'},
    "recipient's name": lambda text: {**PLAIN, "to": [{"email": "c@d.example", "name": text}]},
    "sender": lambda text: {**PLAIN, "from": f"a{text}@b.example"},
    "quoted sender": lambda text: {**PLAIN, "from": f'"a{text}"@b.example'},
    "recipient": lambda text: {**PLAIN, "to": [f'"c{text}"@d.example']},
    "reply_to": lambda text: {**PLAIN, "reply_to": [f"c@d.example{text}"]},
    "file name": lambda text: {**PLAIN, "attachments": [{"filename": text, "content": "YQ=="}]},
    "content type": lambda text: {**PLAIN, "attachments": [{"filename": "a", "content": "YQ==", "content_type": text}]},
    "content id": lambda text: {**PLAIN, "attachments": [{"filename": "a", "content": "YQ==", "content_id": text}]},
}


def one_message(content: bytes) -> None:
    assert line_problem(content) is None
    sent = dot_stuff(content)
    ends = [match.start() for match in LENIENT_END.finditer(b"\r\n" + sent)]
    assert ends == [len(sent) - 3], "one end, and it is the last that is sent"


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_an_email_makes_two_of_it(way: str, form: bytes) -> None:
    text = (b"x" + form + SMUGGLED).decode("utf-8", "replace")
    try:
        prepared = prepare_email(problems.decode(msgspec.json.encode(WAYS[way](text)), bodies.Email), LIMITS)
    except problems.ProblemError:
        return  # it is not taken: that is fine, too
    one_message(prepared.content)
    for address in (prepared.envelope.sender, *(each.address.address for each in prepared.envelope.recipients)):
        assert not set("\r\n\0") & set(address)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_nothing_in_a_raw_message_makes_two_of_it(form: bytes) -> None:
    raw = b"From: a@b.example\r\nSubject: x\r\n\r\nhello" + form + SMUGGLED
    body = msgspec.json.encode({"from": "a@b.example", "to": ["c@d.example"], "raw": raw})
    try:
        prepared = prepare_raw(problems.decode(body, bodies.RawEmail), LIMITS)
    except problems.ProblemError:
        return  # it is not taken: that is fine, too
    one_message(prepared.content)
