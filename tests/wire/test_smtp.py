import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.errors import Refused, RemoteProtocolError
from mailerd.wire.address import Mailbox
from mailerd.wire.smtp import (
    MAX_KEPT,
    MAX_LINE,
    MAX_LINES,
    MAX_TEXT,
    MailCommand,
    RcptCommand,
    Reply,
    ReplyReader,
    dot_stuff,
    dot_unstuff,
    line_problem,
    orcpt_encode,
    parse_ehlo,
    parse_mail,
    parse_rcpt,
    printable,
    xtext_decode,
    xtext_encode,
)

CHUNKS = (1, 2, 3, 1000)


def read(data: bytes, chunk: int) -> tuple[list[Reply], str]:
    """The replies in `data` and what broke, "" when nothing did."""
    reader = ReplyReader()
    replies: list[Reply] = []
    try:
        for start in range(0, len(data), chunk):
            replies += reader.feed(data[start : start + chunk])
        reader.feed(b"")
    except RemoteProtocolError as error:
        return replies, str(error)
    return replies, ""


# ---- replies


def test_what_was_said_before_is_read_as_the_first_time() -> None:
    data = b"250-first\r\n250 2.1.0 ok\r\n250 2.1.0 ok\r\n250 2.1.0 ok\r\nno reply\r\n"
    expected = [Reply(250, ("first", "2.1.0 ok")), Reply(250, ("2.1.0 ok",)), Reply(250, ("2.1.0 ok",))]
    for _ in range(2):
        replies, problem = read(data, 1000)
        assert replies == expected
        assert problem == "not a reply line: b'no reply\\r'"


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"250 2.1.5 ok\r\n", [(250, "2.1.5 ok")]),
        (b"250\r\n", [(250, "")]),
        (b"250 \r\n", [(250, "")]),
        (b"250-\r\n250\r\n", [(250, "", "")]),
        (b"250 ok\n", [(250, "ok")]),
        (b"250 ok\r\r\n", [(250, "ok")]),
        (b"250-a\n250 b\r\n354 go\r\n", [(250, "a", "b"), (354, "go")]),
        (b"550-5.1.1 no\r\n550 5.1.1 such user\r\n", [(550, "5.1.1 no", "5.1.1 such user")]),
        (b"250-first\r\n451 last\r\n", [(451, "first", "last")]),
        (b"550 caf\xe9 \x00\r\n", [(550, "caf\udce9 \x00")]),
        ("550 schön\r\n".encode(), [(550, "schön")]),
        (b"250 ok\r\n250 unfinished", [(250, "ok")]),
        (b"250 " + b"x" * (MAX_LINE - 4) + b"\n", [(250, "x" * (MAX_LINE - 4))]),
        (b"250-a\r\n" * (MAX_LINES - 1) + b"250 b\r\n", [(250, *["a"] * (MAX_LINES - 1), "b")]),
    ],
)
def test_replies_are_the_same_in_any_chunks_and_keep_every_byte(data, expected, chunk):
    assert read(data, chunk) == ([Reply(code, tuple(lines)) for code, *lines in expected], "")


def test_of_a_reply_that_will_not_end_only_the_beginning_is_kept():
    line = b"451-" + b"\xff" * (MAX_LINE - 4) + b"\n"
    [reply] = ReplyReader().feed(line * (MAX_LINES - 1) + b"451 4.2.0 end\n")
    assert (reply.code, len(reply.lines)) == (451, MAX_LINES)
    assert sum(map(len, reply.lines)) <= MAX_KEPT
    assert len(reply.text) == 4 * MAX_TEXT


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello\r\n", "not a reply line"),
        (b"\r\n", "not a reply line"),
        (b"25 ok\r\n", "not a reply line"),
        (b"250ok\r\n", "not a reply line"),
        (b"2500 ok\r\n", "not a reply line"),
        (b"150 ok\r\n", "not a reply line"),
        (b"650 ok\r\n", "not a reply line"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not a reply line"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "not a reply line"),
        ("２５０ ok\r\n".encode(), "not a reply line"),
        (b"250 " + b"x" * (MAX_LINE - 3) + b"\r\n", "longer than"),
        (b"250 " + b"x" * 2 * MAX_LINE, "longer than"),
        (b"250-a\r\n" * MAX_LINES + b"250 b\r\n", "lines"),
    ],
)
def test_what_is_no_reply_breaks_the_reader_after_the_replies_before_it(data, words, chunk):
    replies, broken = read(b"220 mx\r\n250 ok\r\n" + data, chunk)
    assert replies == [Reply(220, ("mx",)), Reply(250, ("ok",))]
    assert words in broken


def test_a_broken_reader_stays_broken():
    reader = ReplyReader()
    for data in (b"what?\r\n", b"250 ok\r\n", b""):
        with pytest.raises(RemoteProtocolError, match="what"):
            reader.feed(data)


def test_a_line_of_four_megabytes_is_refused_early():
    reader = ReplyReader()
    chunk = b"250 " + b"x" * 65532
    before = time.perf_counter()
    with pytest.raises(RemoteProtocolError, match="longer than"):
        reader.feed(chunk)
    with pytest.raises(RemoteProtocolError, match="longer than"):
        ReplyReader().feed(b"250 " + b"x" * 4_000_000 + b"\r\n")
    assert time.perf_counter() - before < 0.5


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b"250", b"-", b" ", b"\r\n", b"\n", b"ok", b"\xff"])).map(b"".join)
)
def test_any_bytes_give_the_same_replies_or_the_same_error_in_any_chunks(data):
    whole = read(data, 1000)
    assert all(read(data, chunk) == whole for chunk in (1, 2, 3))


@pytest.mark.parametrize(
    ("code", "lines", "enhanced", "text"),
    [
        (250, ["2.1.5 ok"], "2.1.5", "ok"),
        (250, ["2.1.5"], "2.1.5", ""),
        (250, ["ok"], "", "ok"),
        (250, [""], "", ""),
        (550, ["5.1.1 no", "5.1.1 such user"], "5.1.1", "no such user"),
        (550, ["sorry", "5.1.1 no such user"], "5.1.1", "sorry no such user"),
        (550, ["4.1.1 no such user"], "", "4.1.1 no such user"),
        (451, ["5.7.1 refused"], "", "5.7.1 refused"),
        (354, ["3.0.0 go"], "", "3.0.0 go"),
        (550, ["#5.1.0 Address rejected"], "5.1.0", "Address rejected"),
        (550, ["5.7.1: refused"], "5.7.1", "refused"),
        (550, ["5.1.1.2 is listed"], "", "5.1.1.2 is listed"),
        (550, ["5.1.1000 no"], "", "5.1.1000 no"),
        (554, ["5.7.1", "", "5.7.1 blocked"], "5.7.1", "blocked"),
    ],
)
def test_the_enhanced_code_counts_when_its_class_is_that_of_the_code(code, lines, enhanced, text):
    reply = Reply(code, tuple(lines))
    assert (reply.enhanced, reply.text) == (enhanced, text)
    assert str(reply) == " ".join(part for part in (str(code), enhanced, text) if part)


def test_text_for_rows_and_logs_is_one_line_that_any_encoder_takes():
    reply = Reply(550, ("caf\udce9 \x00\x1b[2J", "schön\u2028 "))
    assert reply.text == r"caf\xe9   [2J schön"
    assert printable("a\r\nb") == "a  b"
    str(reply).encode()


@pytest.mark.parametrize(
    ("code", "kind"), [(220, "positive"), (354, "positive"), (421, "transient"), (550, "permanent")]
)
def test_the_first_digit_says_what_a_reply_is(code, kind):
    reply = Reply(code, ("",))
    assert [name for name in ("positive", "transient", "permanent") if getattr(reply, name)] == [kind]


def test_ehlo_gives_keywords_with_their_parameters():
    (reply,) = ReplyReader().feed(
        b"250-mx.b.example greets SIZE\r\n250-size 1000\r\n250-PIPELINING \r\n250-AUTH PLAIN LOGIN\r\n"
        b"250-AUTH=LOGIN\r\n250-\r\n250-LIMITS RCPTMAX=10  MAILMAX=5\r\n250 8BITMIME\r\n"
    )
    assert parse_ehlo(reply) == {
        "SIZE": "1000",
        "PIPELINING": "",
        "AUTH": "PLAIN LOGIN LOGIN",
        "LIMITS": "RCPTMAX=10  MAILMAX=5",
        "8BITMIME": "",
    }
    assert parse_ehlo(Reply(250, ("mx",))) == {}


# ---- MAIL and RCPT


@pytest.mark.parametrize(
    ("arg", "command"),
    [
        ("FROM:<ann@B.example>", MailCommand("ann@b.example")),
        ("from: <ann@b.example>", MailCommand("ann@b.example")),
        ("FROM:<ann@b.example> ", MailCommand("ann@b.example")),
        ("FROM:<>", MailCommand("")),
        ("FROM: <> size=0", MailCommand("", size=0)),
        ("FROM:<a@b.example>  SIZE=100  body=8bitmime", MailCommand("a@b.example", size=100, body="8BITMIME")),
        ("FROM:<a@b.example> BODY=7BIT", MailCommand("a@b.example")),
        ("FROM:<@x.example,@y.example:a@b.example>", MailCommand("a@b.example")),
        ('FROM:<"a> b"@b.example> SIZE=1', MailCommand('"a> b"@b.example', size=1)),
        ('FROM:<@x.example:"@y:a"@b.example>', MailCommand('"@y:a"@b.example')),
        ("FROM:<ü@b.example> SMTPUTF8", MailCommand("ü@b.example", smtputf8=True)),
        ("FROM:<ann@bücher.example> smtputf8", MailCommand("ann@xn--bcher-kva.example", smtputf8=True)),
        (
            "FROM:<a@b.example> RET=hdrs ENVID=QQ+20314+2B159",
            MailCommand("a@b.example", ret="HDRS", envid="QQ 314+159"),
        ),
        ("FROM:<a@b.example> ENVID=" + "x" * 100, MailCommand("a@b.example", envid="x" * 100)),
        ("FROM:<a@b.example> RequireTLS", MailCommand("a@b.example", require_tls=True)),
        ("FROM:<a@b.example> AUTH=<>", MailCommand("a@b.example", auth="")),
        ("FROM:<a@b.example> AUTH=e+3Dmc2@b.example", MailCommand("a@b.example", auth="e=mc2@b.example")),
    ],
)
def test_a_mail_command_is_read_with_its_parameters(arg, command):
    assert parse_mail(arg) == command


@pytest.mark.parametrize(
    ("arg", "code", "enhanced"),
    [
        ("", 501, "5.5.2"),
        ("<a@b.example>", 501, "5.5.2"),
        ("FROM <a@b.example>", 501, "5.5.2"),
        ("FROM:a@b.example", 501, "5.5.2"),
        ("FROM:  <a@b.example>", 501, "5.5.2"),
        ("FROM:<a@b.example", 501, "5.5.2"),
        ("FROM:<a@b.example>SIZE=1", 501, "5.5.2"),
        ("FROM:<<a@b.example>>", 501, "5.5.2"),
        ("FROM:<a@b.example>\nSIZE=1", 501, "5.5.2"),
        ('FROM:<"a@b.example> SIZE=1', 501, "5.5.2"),
        ("TO:<a@b.example>", 501, "5.5.2"),
        ("FROM:<a>", 501, "5.1.7"),
        ("FROM:<postmaster>", 501, "5.1.7"),
        ("FROM:<a@>", 501, "5.1.7"),
        ("FROM:<@x.example:>", 501, "5.1.7"),
        ("FROM:<a@b..example>", 501, "5.1.7"),
        ("FROM:<a@b.example> NONSENSE", 555, "5.5.4"),
        ("FROM:<a@b.example> NONSENSE=1 SIZE=1", 555, "5.5.4"),
        ("FROM:<a@b.example> \x00\x1b=1", 555, "5.5.4"),
        ("FROM:<a@b.example> =1", 555, "5.5.4"),
        ("FROM:<a@b.example> NOTIFY=NEVER", 555, "5.5.4"),
        ("FROM:<a@b.example> SIZE", 501, "5.5.4"),
        ("FROM:<a@b.example> SIZE=", 501, "5.5.4"),
        ("FROM:<a@b.example> SIZE=-1", 501, "5.5.4"),
        ("FROM:<a@b.example> SIZE=1e3", 501, "5.5.4"),
        ("FROM:<a@b.example> SIZE=" + "9" * 21, 501, "5.5.4"),
        ("FROM:<a@b.example> SIZE=" + "9" * 1_000_000, 501, "5.5.4"),
        ("FROM:<a@b.example> SMTPUTF8 SIZE=١", 501, "5.5.4"),
        ("FROM:<a@b.example> SIZE=1 size=2", 501, "5.5.4"),
        ("FROM:<a@b.example> BODY=BINARYMIME", 501, "5.5.4"),
        ("FROM:<a@b.example> BODY", 501, "5.5.4"),
        ("FROM:<a@b.example> SMTPUTF8=yes", 501, "5.5.4"),
        ("FROM:<a@b.example> RET=ALL", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=a+0D+0ASubject:+20x", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=a+2", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=a+2b", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=a=b", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=+FF", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=+C3+BC", 501, "5.5.4"),
        ("FROM:<a@b.example> ENVID=" + "x" * 101, 501, "5.5.4"),
        ("FROM:<a@b.example> REQUIRETLS=yes", 501, "5.5.4"),
        ("FROM:<a@b.example> REQUIRETLS REQUIRETLS", 501, "5.5.4"),
        ("FROM:<a@b.example> AUTH=", 501, "5.5.4"),
        ("FROM:<a@b.example> AUTH=a+0Ab", 501, "5.5.4"),
        ("FROM:<ü@b.example>", 553, "5.6.7"),
        ("FROM:<ann@bücher.example> SIZE=1", 553, "5.6.7"),
        ("FROM:<ann\udcff@b.example> SMTPUTF8", 501, "5.1.7"),
    ],
)
def test_a_wrong_mail_command_is_refused_with_a_code_and_words(arg, code, enhanced):
    with pytest.raises(Refused) as refusal:
        parse_mail(arg)
    assert (refusal.value.code, refusal.value.enhanced) == (code, enhanced)
    assert refusal.value.name
    assert refusal.value.text.isascii()
    assert refusal.value.text.isprintable()
    assert 10 < len(refusal.value.text) < 200


ANN = Mailbox("ann@b.example", "ann", "b.example")


@pytest.mark.parametrize(
    ("arg", "command"),
    [
        ("TO:<ann@B.example>", RcptCommand(ANN)),
        ("to: <ann@b.example>", RcptCommand(ANN)),
        ("TO:<@x.example:ann@b.example>", RcptCommand(ANN)),
        ("TO:<postmaster>", RcptCommand(Mailbox("postmaster", "postmaster", ""))),
        ("TO:<PostMaster> NOTIFY=NEVER", RcptCommand(Mailbox("PostMaster", "PostMaster", ""), "NEVER")),
        ("TO:<ann@b.example> notify=success,Delay", RcptCommand(ANN, "SUCCESS,DELAY")),
        ("TO:<ann@b.example> NOTIFY=FAILURE,FAILURE", RcptCommand(ANN, "FAILURE")),
        ("TO:<ann@b.example> ORCPT=RFC822;Bob+2Bx@c.example", RcptCommand(ANN, orcpt="rfc822;Bob+x@c.example")),
        ("TO:<ann@b.example> ORCPT=rfc822;a;b", RcptCommand(ANN, orcpt="rfc822;a;b")),
        ("TO:<ann@b.example> ORCPT=utf-8;\\x{7528}\\x{6237}@c.example", RcptCommand(ANN, orcpt="utf-8;用户@c.example")),
        ("TO:<ann@b.example> ORCPT=utf-8;用户@\\x{1F600}.example", RcptCommand(ANN, orcpt="utf-8;用户@😀.example")),
        ("TO:<用户@b.example>", RcptCommand(Mailbox("用户@b.example", "用户", "b.example"))),
    ],
)
def test_a_rcpt_command_is_read_with_its_parameters(arg, command):
    assert parse_rcpt(arg, smtputf8=True) == command


@pytest.mark.parametrize(
    ("arg", "code", "enhanced"),
    [
        ("FROM:<ann@b.example>", 501, "5.5.2"),
        ("TO:ann@b.example", 501, "5.5.2"),
        ("TO:<ann@b.example> ORCPT", 501, "5.5.4"),
        ("TO:<>", 501, "5.1.3"),
        ("TO:<ann>", 501, "5.1.3"),
        ("TO:<ann@b.example@c.example>", 501, "5.1.3"),
        ("TO:<@:ann@b.example>", 501, "5.1.3"),
        ("TO:<ann@b.example> NOTIFY=NEVER,FAILURE", 501, "5.5.4"),
        ("TO:<ann@b.example> NOTIFY=", 501, "5.5.4"),
        ("TO:<ann@b.example> NOTIFY=SOMETIMES", 501, "5.5.4"),
        ("TO:<ann@b.example> NOTIFY=FAILURE,", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=ann@b.example", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=rfc822;", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=;ann@b.example", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=rfc822;ann+0D+0Ax", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=rfc822;" + "x" * 501, 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=utf-8;a\\x{0A}b", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=utf-8;a\\x{D800}b", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=utf-8;a\\x{FFFFFF}b", 501, "5.5.4"),
        ("TO:<ann@b.example> ORCPT=utf-8;a+41b", 501, "5.5.4"),
        ("TO:<ann@b.example> SIZE=1", 555, "5.5.4"),
        ("TO:<用户@b.example>", 553, "5.6.7"),
        ("TO:<ann@bücher.example>", 553, "5.6.7"),
    ],
)
def test_a_wrong_rcpt_command_is_refused_with_a_code_and_words(arg, code, enhanced):
    with pytest.raises(Refused) as refusal:
        parse_rcpt(arg)
    assert (refusal.value.code, refusal.value.enhanced) == (code, enhanced)
    assert refusal.value.text.isascii()
    assert refusal.value.text.isprintable()


PIECES = [
    *'FROMTO:<>@"\\., =+;ab1ü',
    "SIZE=",
    "ORCPT=rfc822;",
    "ORCPT=utf-8;",
    "NOTIFY=",
    "SMTPUTF8",
    "\r",
    "\n",
    "\udcff",
]
ARGS = st.lists(st.sampled_from(PIECES)).map("".join)


@given(st.text() | ARGS | ARGS.map("FROM:<{}>".format) | ARGS.map("TO:<{}>".format) | ARGS.map("TO:<a@b> {}".format))
def test_any_argument_is_a_command_or_a_refusal_in_one_ascii_line(arg):
    for parse in (parse_mail, parse_rcpt):
        try:
            parse(arg)
        except Refused as error:
            refusal = error
        else:
            continue
        assert refusal.text.isascii()
        assert refusal.text.isprintable()
        assert refusal.code >= 500


@pytest.mark.parametrize(
    "arg",
    [
        "FROM:<" + "@a," * 100_000 + ">",
        "FROM:<@a" + ",@a" * 100_000 + ">",
        'FROM:<"' + "\\a" * 100_000,
        "FROM:<" + '""' * 100_000,
        "FROM:<" + "a." * 100_000 + "@",
        "FROM:<a@" + "b-" * 100_000 + ">",
        "FROM:<a@b>" + " " * 200_000 + "\n",
        "FROM:<a@b> ENVID=" + "+4" * 100_000,
        "FROM:<a@" + "\u0f84" * 1000 + "> SMTPUTF8",
    ],
)
def test_no_argument_makes_the_parser_slow(arg):
    before = time.perf_counter()
    with pytest.raises(Refused):
        parse_mail(arg)
    assert time.perf_counter() - before < 1


# ---- xtext


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_xtext_gives_back_what_went_in(text):
    encoded = xtext_encode(text)
    assert encoded.isascii()
    assert not set(encoded) & set(" =\r\n\0")
    assert xtext_decode(encoded) == text


@given(st.text(min_size=1).filter(str.isprintable), st.sampled_from(["rfc822", "utf-8"]))
def test_an_orcpt_can_be_said_again_in_ascii(address, kind):
    orcpt = f"{kind};{address[:30]}"
    encoded = orcpt_encode(orcpt)
    assert encoded.isascii()
    assert parse_rcpt(f"TO:<ann@b.example> ORCPT={encoded}").orcpt == orcpt


@pytest.mark.parametrize("text", ["a b", "a=b", "+", "+4", "+4g", "+ff", "ü", "a\n", "+FF"])
def test_what_is_no_xtext_is_a_value_error(text):
    with pytest.raises(ValueError):
        xtext_decode(text)


# ---- content


@pytest.mark.parametrize(
    ("content", "stuffed"),
    [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b".a\r\n..b\r\nc.\r\n", b"..a\r\n...b\r\nc.\r\n.\r\n"),
        (b"a\r\n.\r\n.\r\nb\r\n", b"a\r\n..\r\n..\r\nb\r\n.\r\n"),
        (b"\r\n", b"\r\n.\r\n"),
        (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
    ],
)
def test_dots_at_the_start_of_a_line_are_doubled_and_undone(content, stuffed):
    whole = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
    assert dot_stuff(content) == stuffed
    assert dot_stuff(content, head=b"A: b\r\n") == b"A: b\r\n" + stuffed
    assert dot_unstuff(stuffed) == whole
    assert dot_unstuff(stuffed.removesuffix(b".\r\n")) == whole


@given(st.lists(st.binary(max_size=5).map(lambda line: line.translate(None, b"\r\n\0")) | st.just(b"."), max_size=8))
def test_any_lines_come_back_from_stuffing_and_end_only_at_the_end(lines):
    content = b"".join(line + b"\r\n" for line in lines)
    stuffed = dot_stuff(content)
    assert dot_unstuff(stuffed) == content
    assert (b"\r\n" + stuffed).index(b"\r\n.\r\n") == len(stuffed) - 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", None),
        (b"no end", None),
        (b"a\r\nb\r\n\r\n", None),
        (b"a\nb\r\n", "a bare LF in line 1"),
        (b"a\r\nb\n.\r\n", "a bare LF in line 2"),
        (b"\r\n\n", "a bare LF in line 2"),
        (b"a\r\n\rb\r\n", "a bare CR in line 2"),
        (b"a\r\r\n", "a bare CR in line 1"),
        (b"a\r", "a bare CR in line 1"),
        (b"a\rb\nc", "a bare CR in line 1"),
        (b"\n\r", "a bare LF in line 1"),
        (b"a\r\nb\0\r\n", "a NUL byte in line 2"),
        (b"a\r\0\n", "a bare CR in line 1"),
    ],
)
def test_a_line_that_does_not_end_in_crlf_and_a_nul_are_named(content, problem):
    assert line_problem(content) == problem


@given(st.text(alphabet="\r\n\0a.").map(str.encode))
def test_content_without_problem_is_what_crlf_lines_alone_make(content):
    rest = content.replace(b"\r\n", b"")
    assert (line_problem(content) is None) == (not set(rest) & set(b"\r\n\0"))
