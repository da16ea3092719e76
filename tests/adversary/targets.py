"""Everything that reads bytes of others, in one table: for hypothesis in CI and for `scripts/fuzz`.

A target takes any bytes. It may raise what its line says, and nothing else, and take so much time for each kilobyte.
What must hold of a result is asserted inside. Found cases stand in `corpus/TARGET/` and are tried each time.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from multidict import CIMultiDict

from mailerd import config
from mailerd.campaigns import recurrence, timing, zones
from mailerd.campaigns.contacts.csv_reading import CsvReader, EncodingGuess, meant, without_formula
from mailerd.campaigns.contacts.fields import from_text
from mailerd.campaigns.contacts.imports.columns import Columns, ColumnsError, find_delimiter, first_record
from mailerd.campaigns.contacts.imports.json_lines import JsonLinesReader
from mailerd.campaigns.contacts.imports.rows import RowReader
from mailerd.campaigns.contacts.imports.values import Settings
from mailerd.campaigns.contacts.values import parse_email
from mailerd.campaigns.segments.conditions import ConditionError
from mailerd.campaigns.segments.parsing import parse_conditions
from mailerd.campaigns.templates import markup
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.rendering import Prepared
from mailerd.campaigns.templates.values import RenderError, TemplateError
from mailerd.campaigns.tracking import records
from mailerd.config import values as config_values
from mailerd.config.shaping import parse_shaping
from mailerd.config.verdicts import parse_verdicts
from mailerd.delivery import dane, identity, mta_sts
from mailerd.delivery.diagnostic import read_diagnostic
from mailerd.delivery.session import _features
from mailerd.delivery.verdict import classify, of_report
from mailerd.errors import ConfigError, Refused, RemoteProtocolError
from mailerd.feedback.addresses import Addresses
from mailerd.feedback.aggregates import dmarc_reports, tls_reports
from mailerd.feedback.attachments import documents
from mailerd.feedback.dmarc import parse_dmarc
from mailerd.feedback.forwarding import way_of
from mailerd.feedback.inbound import _from_a_system
from mailerd.feedback.names import parse_event_id
from mailerd.feedback.reading import read_report
from mailerd.feedback.reading.mime import read_mail
from mailerd.feedback.reading.text import html_to_text as report_text
from mailerd.feedback.sinks.jsonl import _time_of
from mailerd.feedback.upstreams import mailgun, postmark, sendgrid, ses
from mailerd.feedback.upstreams.values import Forged, Unreadable
from mailerd.queue import journal
from mailerd.queue.ids import parse_message_id
from mailerd.queue.suppression_csv import NotCsvError, Row, normalised_entry, read_rows, write_rows
from mailerd.sandbox.conversation import _subject
from mailerd.web import bodies, problems
from mailerd.web.composing import parse_named, prepare_email, prepare_raw
from mailerd.web.cursors import Cursors
from mailerd.web.services import Limits
from mailerd.wire import message, smtp, spf, tls_report
from mailerd.wire.address import parse_mailbox, quoted, unquoted
from mailerd.wire.compose import html_to_text
from mailerd.wire.dkim import SigningKey, canonical_body, canonical_field, generate_key, load_key, sign
from mailerd.wire.preferences import read_preferences
from mailerd.wire.srs import Srs
from mailerd.wire.tokens import Tokens
from mailerd.wire.tracking import Tracking, is_target, location
from mailerd.wire.unsubscribe import read_subscription
from mailerd.wire.words import decode_words

SECRET = b"s" * 32
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CUT = 2_000  # bytes that are fed one by one: nobody reads so, and it may take the square
TYPES = {"age": "number", "born": "date", "vip": "boolean", "plan": "text"}


@dataclass(frozen=True)
class Target:
    """`seeds` are what mutations begin with; `per_kb` CPU seconds are allowed beside half a second for anything."""

    name: str
    read: Callable[[bytes], Any]
    allowed: tuple[type[BaseException], ...] = ()
    seeds: tuple[bytes, ...] = (b"",)
    per_kb: float = 0.01

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(*self.allowed):
            self.read(data)


def text_of(data: bytes) -> str:
    """As what is read from wires and files becomes text; lone surrogates among it."""
    return data.decode("utf-8", "surrogateescape")


def utf8(data: bytes) -> str:
    """As what is known to be UTF-8 becomes text."""
    return data.decode("utf-8", "replace")


# ---- SMTP


def replies(data: bytes) -> list[str]:
    def read(pieces: list[bytes]) -> list[str]:
        reader = smtp.ReplyReader()
        found: list[smtp.Reply] = []
        try:
            for piece in pieces:
                found += reader.feed(piece)
            found += reader.feed(b"")
        except RemoteProtocolError:
            return [*map(str, found), "broken"]
        return list(map(str, found))

    whole = read([data])
    assert read([data[at : at + 1] for at in range(len(data))]) == whole
    assert read([data[at : at + 7] for at in range(0, len(data), 7)]) == whole
    for each in whole:
        each.encode()
    try:
        first = smtp.ReplyReader().feed(data)
    except RemoteProtocolError:
        first = []
    for reply in first:
        assert reply.text.isprintable()
        _features(smtp.parse_ehlo(reply), verified=True)
        for stage in ("greeting", "ehlo", "mail", "rcpt", "data", "dot"):
            classify(reply, stage)
    return whole


def mail_command(data: bytes) -> None:
    command = smtp.parse_mail(text_of(data))
    for text in (command.sender, command.envid, command.auth or ""):
        assert not set("\r\n\0") & set(text)
        text.encode()


def rcpt_command(data: bytes) -> None:
    command = smtp.parse_rcpt(text_of(data), smtputf8=True)
    assert not set("\r\n\0") & set(command.address.address + command.orcpt)
    smtp.orcpt_encode(command.orcpt).encode("ascii")


def data_content(data: bytes) -> None:
    if smtp.line_problem(data) is None:
        stuffed = smtp.dot_stuff(data)
        assert (b"\r\n" + stuffed).find(b"\r\n.\r\n") == len(stuffed) - 3, "one end, and it is at the end"
        ended = data if not data or data.endswith(b"\r\n") else data + b"\r\n"
        assert smtp.dot_unstuff(stuffed) == ended
    smtp.dot_unstuff(data)


def address(data: bytes) -> None:
    mailbox = parse_mailbox(text_of(data))
    assert parse_mailbox(mailbox.address) == mailbox
    assert quoted(unquoted(mailbox.local))
    assert not set("\r\n\0<>") & set(mailbox.address) or mailbox.local.startswith('"')


# ---- messages


@cache
def _key() -> SigningKey:
    return SigningKey("example.com", "s", load_key(generate_key("ed25519")))


def headers(data: bytes) -> None:
    header, body = message.split(data)
    assert data.endswith(body)
    problem = message.header_problem(header)
    message.address_domains(header, b"from")
    message.first_address_domain(header, b"sender")
    message.remove_headers(header, [b"bcc", b"from"])
    if problem is None and smtp.line_problem(data) is None:
        fixed = message.fix_up(data, message_id="a@b.example", date="now", received=b"Received: x\r\n")
        assert smtp.line_problem(fixed) is None
        assert message.split(fixed)[1] == body
        assert smtp.line_problem(sign(fixed, [_key()], now=1)) is None


def canonical(data: bytes) -> None:
    once = canonical_body(data)
    assert canonical_body(once) == once
    canonical_field(data)


def words(data: bytes) -> None:
    decode_words(utf8(data)[:4096]).encode()


def html(data: bytes) -> None:
    html_to_text(utf8(data)[:20_000])


# ---- what comes back


def report(data: bytes) -> None:
    found = read_report(data)
    for each in found.recipients:
        f"{each.address}{each.diagnostic}{each.words}{found.subject}".encode()
        of_report(each.action, each.status, each.code, each.diagnostic, each.words)
    read_mail(data)
    _from_a_system(data)
    way_of(data)


def aggregates(data: bytes) -> None:
    dmarc_reports(data)
    tls_reports(data)
    for document in documents(data):
        assert document


def diagnostic(data: bytes) -> None:
    read_diagnostic(text_of(data))


def upstream(data: bytes) -> None:
    found: list[Any] = []
    for read in (mailgun.read, postmark.read, sendgrid.read, _ses):
        try:
            found += read(data)
        except (Unreadable, Forged):
            continue
    for event in found:
        smtp.printable(event.address).encode()
        smtp.printable(event.text).encode()
        Tokens(SECRET, "return-path").read(event.token)


def _ses(data: bytes) -> Iterator[Any]:
    notification = msgspec.structs.replace(SNS, message=utf8(data))
    yield from ses.read(notification)
    ses.confirmation(msgspec.structs.replace(notification, subscribe_url=utf8(data), type="SubscriptionConfirmation"))
    yield from ses.read(ses.decode("arn:x", data))


SNS = ses.Notification(
    type="Notification", message_id="1", topic_arn="arn:x", message="", timestamp="", signature="", signing_cert_url=""
)


def upstream_signatures(data: bytes) -> None:
    first, _, rest = data.partition(b"\n")
    fields = CIMultiDict(
        {
            sendgrid.SIGNATURE: utf8(first).strip(),
            sendgrid.TIMESTAMP: utf8(rest[:20]).strip(),
            "Authorization": f"Basic {utf8(first)}",
        }
    )
    for check in (
        lambda: mailgun.check("key", data, NOW),
        lambda: postmark.check("a:b", fields, data),
        lambda: sendgrid.check(utf8(first), fields, rest, NOW),
        lambda: ses.check(msgspec.structs.replace(SNS, signature=utf8(rest)), data, NOW),
    ):
        try:
            check()
        except (Forged, Unreadable):
            continue
        raise AssertionError("a signature by nobody")


# ---- tokens


@cache
def _addresses() -> Addresses:
    return Addresses(config.Config(hostname="mail.example.com"), SECRET, lambda: NOW)


def tokens(data: bytes) -> None:
    text = text_of(data)
    made = Tokens(SECRET, "return-path")
    assert made.read(text) is None
    assert made.open(text) is None
    assert read_subscription(made, text) is None
    assert read_preferences(made, text) is None
    tracking = Tracking(SECRET)
    assert tracking.read_open(text) is None
    assert tracking.read_click(text) is None
    assert Srs(SECRET).reverse(text, NOW) is None
    _addresses().read(text)
    if is_target(text):
        location(text).encode("ascii")


def ids(data: bytes) -> None:
    parse_message_id(text_of(data))


def event_ids(data: bytes) -> None:
    parse_event_id(text_of(data))


def cursors(data: bytes) -> None:
    Cursors(SECRET).read(bodies.Search(), text_of(data))
    raise AssertionError("a cursor by nobody")


# ---- files


def contacts_csv(data: bytes) -> None:
    guess, byte_wise, short = EncodingGuess(), EncodingGuess(), EncodingGuess()
    guess.feed(data)
    short.feed(data[:CUT])
    for at in range(len(data[:CUT])):
        byte_wise.feed(data[at : at + 1])
    assert short.result() == byte_wise.result()
    encoding = guess.result()
    settings = Settings(format="csv")
    delimiter = find_delimiter(data, encoding, settings, whole=True)

    def read(data: bytes, size: int) -> tuple[list[Any], list[Any]]:
        reader = CsvReader(encoding, delimiter)
        rows, faults, consumed = [], [], 0
        for at in range(0, len(data), size):
            block = reader.feed(data[at : at + size])
            rows += block.rows
            faults += block.faults
            consumed += block.consumed
        block = reader.feed(b"", final=True)
        assert consumed + block.consumed == len(data)
        return rows + block.rows, faults + block.faults

    read(data, len(data) + 1)
    whole = read(data[:CUT], CUT)
    assert read(data[:CUT], 1) == whole
    assert read(data[:CUT], 5) == whole
    columns = Columns(first_record(data, encoding, delimiter, whole=True), settings)
    people = RowReader(columns.fields, TYPES, "update", names=columns.names)
    people.read(CsvReader(encoding, delimiter).feed(data, final=True))
    cell = text_of(data)
    assert meant(without_formula(cell)) == cell


def contacts_json(data: bytes) -> None:
    def read(data: bytes, size: int) -> list[Any]:
        reader = JsonLinesReader()
        rows = [row for at in range(0, len(data), size) for row in reader.feed(data[at : at + size]).rows]
        return rows + reader.feed(b"", final=True).rows

    assert read(data[:CUT], 1) == read(data[:CUT], CUT)
    RowReader((), TYPES, "update").read(JsonLinesReader().feed(data, final=True))


def cells(data: bytes) -> None:
    for type_ in ("number", "date", "boolean", "text", None):
        try:
            msgspec.json.encode(from_text(utf8(data), type_))
        except ValueError:
            continue
    parse_email(utf8(data))


def suppressions(data: bytes) -> None:
    rows = list(read_rows(io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")))
    good = [row for row in rows if isinstance(row, Row)]
    again = [row for row in read_rows(io.StringIO(write_rows(good), newline="")) if isinstance(row, Row)]
    assert [row.address for row in again] == [row.address for row in good]


def suppressed_address(data: bytes) -> None:
    entry = normalised_entry(text_of(data))
    assert normalised_entry(entry) == entry


def hits(data: bytes) -> None:
    found = records.decode(data)
    assert found.size <= len(data)
    again = records.decode(b"".join(map(records.encode, found.hits)))
    assert again.hits == found.hits


def journals(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        for content in (data, journal.boot_id() + data):
            file.seek(0)
            file.truncate()
            file.write(content)
            file.flush()
            for slot in journal.read(Path(file.name)) or []:
                assert slot[0]


def sink_lines(data: bytes) -> None:
    _time_of(data)


# ---- configuration


def configuration(data: bytes) -> None:
    config.parse(utf8(data), environ={})


def shaping(data: bytes) -> None:
    parse_shaping({"f": utf8(data)})


def verdicts(data: bytes) -> None:
    parse_verdicts({"f": utf8(data)})


def settings_words(data: bytes) -> None:
    text = utf8(data)
    for name in dir(config_values):
        if name.startswith("parse_"):
            try:
                getattr(config_values, name)(text)
            except ValueError:
                continue


# ---- DNS and the web


def sts(data: bytes) -> None:
    mta_sts.record_id([text_of(data)])
    mta_sts.parse_policy(utf8(data), "1", NOW)


def txt_records(data: bytes) -> None:
    text = data.decode("ascii", "backslashreplace")
    for destination in tls_report.parse_record([text, "v=TLSRPTv1;rua=mailto:" + text]):
        destination.target.encode("ascii")
    identity.compare(text, _key().private)
    for each in (text, "v=spf1 " + text):
        if spf.is_spf(each):
            try:
                record = spf.parse_record(each)
            except ValueError:
                continue
            assert len(record.mechanisms) <= len(each)


@cache
def _certificate() -> bytes:
    return Path(__file__).with_name("certificate.der").read_bytes()


def certificates(data: bytes) -> None:
    """Of a host, for DANE: parsed from whatever it sends."""
    records_ = [dane.Tlsa(usage, selector, 0, data[:64] or b"x") for usage in (2, 3) for selector in (0, 1)] + [
        dane.Tlsa(2, 0, 0, data),
        dane.Tlsa(2, 0, 0, _certificate()),
    ]
    dane.authenticate(records_, [data, _certificate()], ["mx.example.net"], NOW)
    dane.authenticate(records_, [_certificate(), data], ["mx.example.net"], NOW)


# ---- the API


LIMITS = Limits(max_message=1_000_000, max_recipients=50)


def email(data: bytes) -> None:
    prepared = prepare_email(problems.decode(data, bodies.Email), LIMITS)
    content = prepared.content
    assert smtp.line_problem(content) is None
    header, _ = message.split(content)
    assert message.header_problem(header) is None


def raw_email(data: bytes) -> None:
    body = msgspec.json.encode({"from": "a@b.example", "to": ["c@d.example"], "raw": data})
    content = prepare_raw(problems.decode(body, bodies.RawEmail), LIMITS).content
    assert smtp.line_problem(content) is None


def named(data: bytes) -> None:
    parse_named(utf8(data))


def segment(data: bytes) -> None:
    parse_conditions(msgspec.json.decode(data), TYPES)


def template(data: bytes) -> None:
    source = utf8(data)
    compiled = compile_template("Hello", source + '<a href="{{ unsubscribe_url }}">x</a>', "")
    Prepared(compiled)
    list(markup.read(source))


def tags(data: bytes) -> None:
    list(markup.read(utf8(data)))


def recurrences(data: bytes) -> None:
    rule = recurrence.checked(msgspec.json.decode(data, type=recurrence.Recurrence))
    later = recurrence.following(rule, NOW)
    assert later is None or later > NOW


def windows(data: bytes) -> None:
    timing.checked(msgspec.json.decode(data, type=timing.Timing))


def time_zones(data: bytes) -> None:
    zones.zone_of(zones.canonical_zone(text_of(data)))


def sandbox_subject(data: bytes) -> None:
    assert _subject(data).isprintable()


DSN = (
    b"From: MAILER-DAEMON@mx.example.net\r\nSubject: Undelivered\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/report; report-type=delivery-status; boundary="x"\r\n\r\n--x\r\n\r\nbounced\r\n--x\r\n'
    b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example.net\r\n\r\nFinal-Recipient: rfc822; "
    b"ann@example.net\r\nAction: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 unknown\r\n\r\n--x\r\n"
    b"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <a@b.example>\r\nSubject: =?utf-8?q?hi?=\r\n\r\n--x--\r\n"
)
ARF = DSN.replace(b"delivery-status", b"feedback-report").replace(b"Action: failed", b"Feedback-Type: abuse")
DMARC = (
    b'<?xml version="1.0"?><feedback><report_metadata><org_name>x</org_name><report_id>1</report_id><date_range>'
    b"<begin>1700000000</begin><end>1700086400</end></date_range></report_metadata><policy_published><domain>"
    b"example.com</domain><p>none</p></policy_published><record><row><source_ip>192.0.2.1</source_ip><count>3</count>"
    b"<policy_evaluated><disposition>none</disposition></policy_evaluated></row></record></feedback>"
)
TLS = (
    b'{"organization-name":"x","date-range":{"start-datetime":"2026-11-21T00:00:00Z","end-datetime":'
    b'"2026-11-21T23:59:59Z"},"report-id":"1","policies":[{"policy":{"policy-type":"sts","policy-domain":'
    b'"example.com"},"summary":{"total-successful-session-count":1,"total-failure-session-count":0}}]}'
)
HTML = b'<html><body><p class="a">Hi {{ contact.first_name | default("you") }}</p>{% if contact.age > 3 %}x{% endif %}'
EMAIL = (
    b'{"from":"Ann <a@b.example>","to":["c@d.example",{"email":"e@f.example","name":"\\u00e4"}],"subject":"x",'
    b'"text":"y","headers":{"X-A":"b"},"attachments":[{"filename":"a.txt","content":"YQ==","content_type":"text/plain"}]}'
)
CONDITION = (
    b'{"and":[{"field":"email","operator":"contains","value":"a"},{"not":{"field":"custom_fields.age","operator":'
    b'"greater_than","value":3}},{"engagement":"opened","at_least":2,"within_days":30}]}'
)
RULES = (
    b"hostname: mail.example.com\nlisteners:\n  - {bind: '127.0.0.1:25', kind: submission}\nretention: {events: 90d}\n"
)

TARGETS = (
    Target(
        "replies",
        replies,
        seeds=(b"250-mx\r\n250-SIZE 10\r\n250 LIMITS RCPTMAX=5\r\n", b"550 5.1.1 no\r\n"),
        per_kb=0.1,
    ),
    Target("mail_command", mail_command, (Refused,), (b"FROM:<a@b.example> SIZE=1 BODY=8BITMIME AUTH=<> ENVID=x+2B",)),
    Target("rcpt_command", rcpt_command, (Refused,), (b"TO:<a@b.example> NOTIFY=NEVER ORCPT=rfc822;a+40b.example",)),
    Target("data_content", data_content, seeds=(b"a\r\n.b\r\n..\r\n",)),
    Target("address", address, (ValueError,), (b"a.b@c.example", b'"a b"@[IPv6:::1]', "ä@ö.example".encode())),
    Target("headers", headers, seeds=(b"From: A <a@b.example>\r\nSubject : x\r\n y\r\nTo: g:;\r\n\r\nbody\r\n",)),
    Target("canonical", canonical, seeds=(b"a \t b \r\n\r\n\r\n",)),
    Target("words", words, seeds=(b"=?utf-8?q?a=20b?= =?koi8-r?B?YQ==?=",)),
    Target("html", html, seeds=(b"<p>a<table><tr><td>b</table>",), per_kb=0.05),
    Target("report", report, seeds=(DSN, ARF), per_kb=0.2),
    Target("aggregates", aggregates, seeds=(b"Content-Type: text/xml\r\n\r\n" + DMARC, TLS), per_kb=0.05),
    Target("dmarc", lambda data: parse_dmarc(data), (ValueError,), (DMARC,), per_kb=0.05),
    Target("tls_report", lambda data: tls_report.parse_json(data), (ValueError,), (TLS,)),
    Target("diagnostic", diagnostic, seeds=(b"smtp; 550 5.1.1 <a@b.example>: no such user (in reply to RCPT TO)",)),
    Target("upstream", upstream, seeds=(b'[{"event":"bounce","email":"a@b.example"}]', b'{"RecordType":"Bounce"}')),
    Target("upstream_signatures", upstream_signatures, seeds=(b"YQ==\n1700000000",)),
    Target("tokens", tokens, seeds=(b"b-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"SRS0=AAAAAA=AA=b.example=a@c.example")),
    Target("ids", ids, (ValueError,), (b"msg_0abcdefghijkl",)),
    Target("event_ids", event_ids, (ValueError,), (b"evt_0abcdefghijkl",)),
    Target("cursors", cursors, (ValueError,), (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",)),
    Target("contacts_csv", contacts_csv, (ColumnsError,), (b'email;age\r\n"a@b.example";"1\n2"\n',), per_kb=0.5),
    Target("contacts_json", contacts_json, seeds=(b'{"email":"a@b.example","custom_fields":{"age":1}}\n',), per_kb=0.1),
    Target("cells", cells, (ValueError,), (b"2026-11-22T10:00:00+01:00", b"1.234,5")),
    Target("suppressions", suppressions, (NotCsvError,), (b"email,reason\na@b.example,bounce\n",), per_kb=0.1),
    Target("suppressed_address", suppressed_address, (ValueError,), (b"@Example.com", b"A@b.example")),
    Target(
        "hits",
        hits,
        seeds=(records.encode(records.Hit(at=1, kind="opened", message_id=1, campaign_id=0, contact_id=0)),),
    ),
    Target("journals", journals, seeds=(journal.boot_id() + b"\1" * 24,)),
    Target("sink_lines", sink_lines, seeds=(b'{"created_at":"2026-11-22T09:30:00Z","type":"x"}',)),
    Target("configuration", configuration, (ConfigError,), (RULES,), per_kb=0.5),
    Target("shaping", shaping, (ConfigError,), (b"providers:\n  x: {domains: [x.example]}\n",), per_kb=0.5),
    Target("verdicts", verdicts, (ConfigError,), (b"rules:\n  - {match: 'x', class: policy}\n",), per_kb=0.5),
    Target("settings_words", settings_words, seeds=(b"10/s", b"1h30m", b"5MB", b"127.0.0.1:25", b"2026-11-22")),
    Target(
        "sts", sts, (ValueError,), (b"version: STSv1\nmode: enforce\nmx: *.x.example\nmax_age: 1\n", b"v=STSv1; id=1;")
    ),
    Target(
        "txt_records", txt_records, seeds=(b"v=spf1 a:%{d}.x.example/24 include:y.example -all", b"v=DKIM1; p=YQ==")
    ),
    Target("certificates", certificates, per_kb=0.1),
    Target("email", email, (problems.ProblemError,), (EMAIL,), per_kb=0.05),
    Target("raw_email", raw_email, (problems.ProblemError,), (b"From: a@b.example\n\nbody",)),
    Target("named", named, (ValueError,), (b'"A, \\"B" <a@b.example>',)),
    Target("segment", segment, (ConditionError, ValueError, RecursionError), (CONDITION,), per_kb=0.05),
    Target("template", template, (TemplateError, RenderError), (HTML, b"<mjml><mj-body></mj-body></mjml>"), per_kb=1.0),
    Target("tags", tags, seeds=(HTML, b"<!-- a --><script>x</script><a b='c'")),
    Target(
        "recurrences",
        recurrences,
        (ValueError,),
        (b'{"every":"month","at":"09:00","day":31,"time_zone":"Europe/Berlin"}',),
    ),
    Target("windows", windows, (ValueError,), (b'{"mode":"local"}',)),
    Target("time_zones", time_zones, (ValueError,), (b"Europe/Berlin",)),
    Target("report_text", lambda data: report_text(utf8(data)), seeds=(b"<p>a<br>b&amp;<style>c",), per_kb=0.05),
    Target("sandbox_subject", sandbox_subject, seeds=(b"Subject: =?utf-8?q?x?=\r\n\r\n",)),
)
