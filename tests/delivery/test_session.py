import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from mailerd.config import RouteAuth
from mailerd.delivery.routing import Host
from mailerd.delivery.session import Session, SessionError
from mailerd.delivery.tls_policy import TlsPolicy
from mailerd.delivery.transaction import Timeouts, Transaction, dsn_parameters
from mailerd.delivery.verdict import Kind, Outcome
from mailerd.errors import LocalProtocolError
from tests.support.scripted_mx import CLOSE, DEAF, EXTENSIONS, RESET, SILENCE, Pause, ScriptedMx

CONTENT = b"From: bob@y.example\r\nTo: ann@x.example\r\nSubject: hi\r\n\r\n.one dot\r\n..two\r\nbody\r\n"
PATIENT = Timeouts(quit=1)
HASTY = Timeouts(*[0.15] * 11)
NO_PIPELINING = tuple(extension for extension in EXTENSIONS if extension != "PIPELINING")


@pytest.fixture(params=["pipelined", "one by one"])
async def mx(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedMx]:
    """A host with and without PIPELINING: what comes out has to be the same."""
    extensions = EXTENSIONS if request.param == "pipelined" else NO_PIPELINING
    async with ScriptedMx(extensions=extensions) as mx:
        yield mx


def host_of(mx: ScriptedMx) -> Host:
    return Host(mx.name, mx.address, mx.port)


async def open_to(mx: ScriptedMx, **options: object) -> Session:
    options = {"ehlo": "out.example", "timeouts": PATIENT, **options}
    options["tls"] = TlsPolicy(options.get("tls", "opportunistic"))  # type: ignore[arg-type]
    return await Session.open(host_of(mx), **options)  # type: ignore[arg-type]


async def refusal_of(mx: ScriptedMx, **options: object) -> SessionError:
    with pytest.raises(SessionError) as caught:
        await open_to(mx, **options)
    return caught.value


async def send(session: Session, *recipients: str, content: bytes = CONTENT, **options: object) -> Transaction:
    return await session.transact("bob@y.example", list(recipients), content, **options)  # type: ignore[arg-type]


def outcomes(transaction: Transaction) -> list[tuple[str, int, str]]:
    return [(str(result.verdict.outcome), result.verdict.code, result.stage) for result in transaction.results]


# ---- the good way


async def test_a_message_arrives_as_it_was_for_every_recipient(mx: ScriptedMx) -> None:
    session = await open_to(mx)

    transaction = await send(session, "ann@x.example", "eve@x.example")
    await session.quit()

    assert outcomes(transaction) == [("delivered", 250, "dot")] * 2
    assert transaction.usable
    assert mx.delivered == [
        ("ann@x.example", CONTENT, "bob@y.example"),
        ("eve@x.example", CONTENT, "bob@y.example"),
    ]
    assert mx.commands[-1] == "QUIT"


async def test_a_session_carries_one_transaction_after_another(mx: ScriptedMx) -> None:
    session = await open_to(mx)

    for number in range(5):
        assert (await send(session, f"{number}@x.example")).usable

    assert (mx.connections, mx.transactions, session.sent, session.alive) == (1, 5, 5, True)


async def test_the_envelope_leaves_in_one_write_when_the_host_pipelines() -> None:
    segments: list[bytes] = []
    replies = [b"250-mx\r\n250 PIPELINING\r\n", b"250 ok\r\n250 ok\r\n354 go\r\n", b"250 ok\r\n"]
    async with listener(segments, [b"220 mx\r\n", *replies]) as host:
        session = await Session.open(host, ehlo="out.example")
        await send(session, "ann@x.example")
        session.close()

    assert segments[1] == b"MAIL FROM:<bob@y.example>\r\nRCPT TO:<ann@x.example>\r\nDATA\r\n"
    assert segments[2].endswith(b"\r\n..one dot\r\n...two\r\nbody\r\n.\r\n")


@pytest.mark.parametrize(
    "content", [b"", b".", b"no line end", b"\r\n", b"a\r\n.\r\nMAIL FROM:<x>\r\n", b"x" * 2_000_000]
)
async def test_any_content_arrives_and_the_next_message_too(mx: ScriptedMx, content: bytes) -> None:
    session = await open_to(mx)

    await send(session, "ann@x.example", content=content)
    await send(session, "eve@x.example")

    ending = b"" if content.endswith(b"\r\n") or not content else b"\r\n"
    assert [delivery.content for delivery in mx.delivered] == [content + ending, CONTENT]


async def test_fields_of_ours_stand_before_the_content_and_count_for_its_size(mx: ScriptedMx) -> None:
    session = await open_to(mx)

    await send(session, "ann@x.example", content=b".a: b\r\n\r\n.\r\n", head=b"Ours: 1\r\n")

    assert mx.commands[1] == f"MAIL FROM:<bob@y.example> SIZE={9 + 12}"
    assert mx.delivered[0].content == b"Ours: 1\r\n.a: b\r\n\r\n.\r\n"


async def test_the_null_sender_and_parameters_are_written_as_the_host_offers_them(mx: ScriptedMx) -> None:
    session = await open_to(mx)

    await session.transact(
        "",
        ["ann@x.example"],
        CONTENT,
        eight_bit=True,
        ret="HDRS",
        envid="a+b c",
        rcpt_params=[dsn_parameters("FAILURE,DELAY", "rfc822;a=b@x.example")],
    )

    assert mx.commands[1] == f"MAIL FROM:<> SIZE={len(CONTENT)} BODY=8BITMIME RET=HDRS ENVID=a+2Bb+20c"
    assert mx.commands[2] == "RCPT TO:<ann@x.example> NOTIFY=FAILURE,DELAY ORCPT=rfc822;a+3Db@x.example"


async def test_a_host_without_extensions_gets_no_parameters() -> None:
    async with ScriptedMx() as mx:
        mx.on("EHLO", "502 5.5.1 what?")
        session = await open_to(mx)

        transaction = await send(
            session, "ann@x.example", ret="FULL", envid="e", smtputf8=True, rcpt_params=["NOTIFY=NEVER"]
        )

    assert session.extensions == {}
    assert mx.commands == [
        "EHLO out.example",
        "HELO out.example",
        "MAIL FROM:<bob@y.example>",
        "RCPT TO:<ann@x.example>",
        "DATA",
    ]
    assert outcomes(transaction) == [("delivered", 250, "dot")]


async def test_the_limits_of_the_host_are_numbers() -> None:
    async with ScriptedMx(extensions=("SIZE 1000", "LIMITS RCPTMAX=20 MAILMAX=2")) as mx:
        session = await open_to(mx)
        await send(session, "ann@x.example")
        assert session.alive
        last = await send(session, "ann@x.example")

    assert (session.features.max_size, session.features.rcpt_max, session.features.mail_max) == (1000, 20, 2)
    assert not last.usable


@pytest.mark.parametrize("offered", ["SIZE", "SIZE 0", "SIZE lots", "SIZE ²"])
async def test_a_size_without_a_number_is_no_limit(offered: str) -> None:
    async with ScriptedMx(extensions=(offered,)) as mx:
        assert (await open_to(mx)).features.max_size is None


async def test_the_connection_comes_from_the_source_address() -> None:
    async with ScriptedMx() as mx:
        await open_to(mx, source="127.0.0.77")

    assert mx.peers == ["127.0.0.77"]


async def test_the_trace_holds_every_reply(mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<eve", "550 5.1.1 who?")
    session = await open_to(mx)
    transaction = await send(session, "ann@x.example", "eve@x.example")

    assert [(step.stage, step.reply.code if step.reply else 0) for step in session.steps] == [
        ("greeting", 220),
        ("ehlo", 250),
    ]
    assert [(step.stage, str(step.reply)) for step in transaction.steps] == [
        ("mail", "250 2.1.0 ok"),
        ("rcpt", "250 2.1.5 ok"),
        ("rcpt", "550 5.1.1 who?"),
        ("data", "354 go ahead"),
        ("dot", "250 2.0.0 queued"),
    ]
    assert all(step.milliseconds > 0 for step in transaction.steps)


# ---- refused


async def test_some_refused_recipients_do_not_stop_the_others(mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<b@", "550 5.1.1 no such user")
    mx.on("RCPT TO:<c@", "452 4.2.2 mailbox full")
    session = await open_to(mx)

    transaction = await send(session, "a@x.example", "b@x.example", "c@x.example", "d@x.example")

    assert outcomes(transaction) == [
        ("delivered", 250, "dot"),
        ("bounced", 550, "rcpt"),
        ("deferred", 452, "rcpt"),
        ("delivered", 250, "dot"),
    ]
    assert transaction.usable
    assert [delivery.recipient for delivery in mx.delivered] == ["a@x.example", "d@x.example"]


REFUSALS = [
    ("MAIL", "550 5.7.1 not you", [("bounced", 550, "mail")] * 2),
    ("MAIL", "451 4.3.0 later", [("deferred", 451, "mail")] * 2),
    ("RCPT", "550 5.1.1 no such user", [("bounced", 550, "rcpt")] * 2),
    ("RCPT", "450 4.2.0 greylisted", [("deferred", 450, "rcpt")] * 2),
    ("DATA", "554 5.7.1 no", [("bounced", 554, "data")] * 2),
    ("DATA", "451 4.3.0 later", [("deferred", 451, "data")] * 2),
    ("DOT", "554 5.6.0 spam", [("bounced", 554, "dot")] * 2),
    ("DOT", "452 4.3.1 disk full", [("deferred", 452, "dot")] * 2),
]


@pytest.mark.parametrize(("stage", "reply", "expected"), REFUSALS)
async def test_a_refusal_counts_for_both_and_the_session_goes_on(
    mx: ScriptedMx, stage: str, reply: str, expected: list[tuple[str, int, str]]
) -> None:
    mx.on(stage, reply)
    session = await open_to(mx)
    transaction = await send(session, "ann@x.example", "eve@x.example")
    assert outcomes(transaction) == expected
    assert transaction.usable
    assert mx.delivered == []

    mx.on(stage, {"DATA": "354 go"}.get(stage, "250 ok"))
    assert outcomes(await send(session, "ann@x.example")) == [("delivered", 250, "dot")]
    assert mx.delivered == [("ann@x.example", CONTENT, "bob@y.example")]


async def test_no_content_is_sent_when_all_are_refused_though_the_host_asks_for_it() -> None:
    async with ScriptedMx() as mx:
        mx.on("RCPT", "550 5.1.1 no such user", then="250 ok")
        mx.on("DATA", "354 go ahead anyway")
        session = await open_to(mx)
        opened: list[str] = []

        refused = await send(session, "ann@x.example", on_dot=lambda: opened.append("refused"))
        taken = await send(session, "ann@x.example", on_dot=lambda: opened.append("taken"))

    assert outcomes(refused) == [("bounced", 550, "rcpt")]
    assert refused.usable
    assert outcomes(taken) == [("delivered", 250, "dot")]
    assert opened == ["taken"]
    assert len(mx.delivered) == 1


async def test_a_message_larger_than_the_host_takes_bounces_unsent() -> None:
    async with ScriptedMx(extensions=("SIZE 60",)) as mx:
        session = await open_to(mx)
        transaction = await send(session, "ann@x.example")

    assert outcomes(transaction) == [("bounced", 552, "mail")]
    assert (transaction.results[0].verdict.kind, transaction.results[0].verdict.enhanced) == (Kind.TOO_LARGE, "5.3.4")
    assert transaction.usable
    assert mx.commands == ["EHLO out.example"]


async def test_8_bit_content_bounces_where_it_is_not_taken() -> None:
    async with ScriptedMx(extensions=("PIPELINING",)) as mx:
        session = await open_to(mx)
        transaction = await send(session, "ann@x.example", content=b"Subject: x\r\n\r\n\xe4\r\n", eight_bit=True)

    assert not session.supports_8bit
    assert [result.verdict.enhanced for result in transaction.results] == ["5.6.3"]
    assert mx.commands == ["EHLO out.example"]


async def test_only_recipients_that_need_smtputf8_bounce_without_it(mx: ScriptedMx) -> None:
    async with ScriptedMx(extensions=("PIPELINING", "8BITMIME")) as mx:
        session = await open_to(mx)
        transaction = await send(session, "jürgen@x.example", "ann@x.example", smtputf8=True)
        by_sender = await session.transact("jürgen@y.example", ["ann@x.example"], CONTENT, smtputf8=True)
        by_header = await send(
            session, "ann@x.example", content="Subject: für\r\n\r\n".encode(), smtputf8=True, eight_bit=True
        )

    assert outcomes(transaction) == [("bounced", 554, "mail"), ("delivered", 250, "dot")]
    assert outcomes(by_sender) == outcomes(by_header) == [("bounced", 554, "mail")]
    assert by_header.results[0].verdict.enhanced == "5.6.7"
    assert mx.commands[1] == "MAIL FROM:<bob@y.example>"


async def test_smtputf8_addresses_are_written_in_utf_8(mx: ScriptedMx) -> None:
    session = await open_to(mx)

    transaction = await send(session, "jürgen@x.example", smtputf8=True)

    assert outcomes(transaction) == [("delivered", 250, "dot")]
    assert mx.commands[1:3] == [
        f"MAIL FROM:<bob@y.example> SIZE={len(CONTENT)} SMTPUTF8",
        "RCPT TO:<jürgen@x.example>",
    ]


@pytest.mark.parametrize(
    "address",
    ["a\r\nRSET\r\n@x", "a\n@x", "a\0@x", "a> NOTIFY=NEVER <b@x", "a b@x", "a\x7f@x", '"a\r\n"@x', "\udcff@x", '"a@x'],
)
async def test_no_address_can_add_a_command_or_a_parameter(mx: ScriptedMx, address: str) -> None:
    session = await open_to(mx)

    with pytest.raises(LocalProtocolError):
        await send(session, "ann@x.example", address)
    with pytest.raises(LocalProtocolError):
        await session.transact(address, ["ann@x.example"], CONTENT)
    with pytest.raises(LocalProtocolError):
        await send(session, "ann@x.example", rcpt_params=["NOTIFY=NEVER\r\nRSET"])

    assert mx.commands == ["EHLO out.example"]
    assert outcomes(await send(session, '"odd <one> \\" here"@x.example')) == [("delivered", 250, "dot")]


# ---- a peer that misbehaves while the session is opened

GREETINGS = [
    ("554 5.7.1 go away", Outcome.BOUNCED, 554),
    ("421 4.3.2 too busy", Outcome.DEFERRED, 421),
    ("250 hello", Outcome.DEFERRED, 451),
    (b"garbage\r\n", Outcome.DEFERRED, 451),
    (b"\x16\x03\x01\x00\xff\xfe\r\n", Outcome.DEFERRED, 451),
    (b"x" * 4_000_000, Outcome.DEFERRED, 451),
    (b"220-" + b"y" * 4_000_000 + b"\r\n", Outcome.DEFERRED, 451),
    (b"220-a\r\n" * 100_000, Outcome.DEFERRED, 451),
    (SILENCE, Outcome.DEFERRED, 421),
    (b"220 half", Outcome.DEFERRED, 421),
    ([b"220 half", CLOSE], Outcome.DEFERRED, 421),
    (CLOSE, Outcome.DEFERRED, 421),
    (RESET, Outcome.DEFERRED, 421),
]


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO"])
@pytest.mark.parametrize(("said", "outcome", "code"), GREETINGS, ids=lambda value: repr(value)[:24])
async def test_every_bad_opening_ends_as_a_verdict(stage: str, said: object, outcome: Outcome, code: int) -> None:
    if stage == "EHLO" and said == "250 hello":
        pytest.skip("a good answer to EHLO")
    async with ScriptedMx() as mx:
        mx.on(stage, said)  # type: ignore[arg-type]
        mx.on("HELO", "554 5.7.1 go away")

        error = await refusal_of(mx, timeouts=replace(HASTY, connect=5))

        assert (error.verdict.outcome, error.verdict.code) == (outcome, code)
        assert error.stage == ("greeting" if stage == "CONNECT" else "ehlo")
        await until(lambda: mx.open == 0)


async def test_a_closed_port_is_a_refused_connection() -> None:
    error = await refusal_of(ScriptedMx(port=closed_port()))

    assert (error.stage, error.verdict.kind, error.verdict.retry_other_host) == ("connect", Kind.NETWORK, True)


async def test_a_host_that_does_not_accept_times_out() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)  # the queue is full: the next SYN gets no answer
            with pytest.raises(SessionError) as caught:
                await Session.open(Host("mx", *address), ehlo="out.example", timeouts=HASTY)

    assert caught.value.verdict.kind == Kind.NETWORK


async def test_a_foreign_source_address_is_a_verdict() -> None:
    async with ScriptedMx() as mx:
        error = await refusal_of(mx, source="192.0.2.1")

    assert (error.stage, error.verdict.outcome) == ("connect", Outcome.DEFERRED)


# ---- a peer that misbehaves within a transaction

MISBEHAVIOUR = [
    SILENCE,
    CLOSE,
    RESET,
    b"garbage\r\n",
    b"x" * 4_000_000,
    [b"250 ha", CLOSE],
    "421 4.3.2 closing",
    "199 ?",
]


@pytest.mark.parametrize("stage", ["MAIL", "RCPT TO:<b@", "DATA", "DOT"])
@pytest.mark.parametrize("said", MISBEHAVIOUR, ids=lambda said: repr(said)[:20])
async def test_whatever_happens_in_a_transaction_defers_and_ends_the_session(
    mx: ScriptedMx, stage: str, said: object
) -> None:
    mx.on("RCPT TO:<a@", "550 5.1.1 no such user")
    mx.on(stage, said)  # type: ignore[arg-type]
    session = await open_to(mx, timeouts=replace(HASTY, connect=5, greeting=5, ehlo=5))

    transaction = await send(session, "a@x.example", "b@x.example", "c@x.example")

    assert not transaction.usable
    assert not transaction.stale
    assert not session.alive
    assert [result.verdict.outcome for result in transaction.results[1:]] == [Outcome.DEFERRED] * 2
    said_nothing = said != "421 4.3.2 closing"
    assert [result.in_doubt for result in transaction.results] == [False, *[stage == "DOT" and said_nothing] * 2]
    assert mx.delivered == []
    if stage == "DOT" or said is CLOSE:
        expected = Outcome.DEFERRED if stage == "MAIL" else Outcome.BOUNCED
        assert transaction.results[0].verdict.outcome == expected
    again = await send(session, "a@x.example")
    assert [result.verdict.outcome for result in again.results] == [Outcome.DEFERRED]
    await until(lambda: mx.open == 0)


async def test_a_421_keeps_the_refusals_before_it(mx: ScriptedMx) -> None:
    mx.on("RCPT TO:<a@", "550 5.1.1 no such user")
    mx.on("RCPT TO:<c@", ["421 4.7.0 enough", CLOSE])
    session = await open_to(mx)

    transaction = await send(session, "a@x.example", "b@x.example", "c@x.example", "d@x.example")

    assert outcomes(transaction) == [
        ("bounced", 550, "rcpt"),
        ("deferred", 421, "rcpt"),
        ("deferred", 421, "rcpt"),
        ("deferred", 421, "rcpt"),
    ]
    assert not transaction.usable


@pytest.mark.parametrize("stage", ["MAIL", "RCPT TO:<a@", "RCPT TO:<b@", "DATA"])
async def test_a_reply_too_many_never_becomes_the_verdict_of_another(mx: ScriptedMx, stage: str) -> None:
    usual = "354 go" if stage == "DATA" else "250 ok"
    mx.on("RCPT TO:<b@", "550 5.1.1 no such user")
    mx.on(stage, f"{usual}\n250 and another one")
    session = await open_to(mx)

    transaction = await send(session, "a@x.example", "b@x.example", "c@x.example")

    assert not transaction.usable
    assert [result.verdict.kind for result in transaction.results] == [Kind.PROTOCOL] * 3
    assert mx.delivered == []


async def test_replies_out_of_step_are_noticed_though_the_last_is_late() -> None:
    async with ScriptedMx() as mx:
        mx.on("MAIL", "250 ok\n250 ok")
        mx.on("RCPT TO:<b@", "550 5.1.1 no such user")
        mx.on("DATA", [Pause(0.1), "354 go"])
        session = await open_to(mx)

        transaction = await send(session, "a@x.example", "b@x.example")  # seen: 250, 250, 250 and 550

    assert not transaction.usable
    assert [result.verdict.kind for result in transaction.results] == [Kind.PROTOCOL] * 2
    assert mx.delivered == []


async def test_a_second_reply_to_the_content_ends_the_session_but_not_the_delivery(mx: ScriptedMx) -> None:
    mx.on("DOT", "250 queued\n250 really")
    session = await open_to(mx)

    transaction = await send(session, "ann@x.example")

    assert outcomes(transaction) == [("delivered", 250, "dot")]
    assert not transaction.usable


@pytest.mark.parametrize("rest", [b"garbage\r\n", b"25"])
async def test_garbage_behind_the_final_reply_does_not_undo_it(mx: ScriptedMx, rest: bytes) -> None:
    mx.on("DOT", b"250 queued\r\n" + rest)
    session = await open_to(mx)

    transaction = await send(session, "ann@x.example")

    assert outcomes(transaction) == [("delivered", 250, "dot")]
    assert not transaction.usable


@pytest.mark.parametrize("said", [CLOSE, RESET, ["421 4.4.2 idle too long", CLOSE], b"250 hello?\r\n"])
async def test_a_kept_session_notices_what_comes_while_it_is_idle(mx: ScriptedMx, said: object) -> None:
    mx.on("DOT", ["250 ok", Pause(0.05), *(said if isinstance(said, list) else [said])])  # type: ignore[list-item]
    session = await open_to(mx)
    assert (await send(session, "ann@x.example")).usable

    await until(lambda: not session.alive)
    transaction = await send(session, "ann@x.example")

    assert [result.verdict.outcome for result in transaction.results] == [Outcome.DEFERRED]
    assert not transaction.usable


@pytest.mark.parametrize("said", [CLOSE, RESET, ["421 4.4.2 idle too long", CLOSE]])
async def test_a_kept_connection_that_has_gone_is_stale(mx: ScriptedMx, said: object) -> None:
    mx.on("MAIL", "250 ok", said)  # type: ignore[arg-type]
    session = await open_to(mx)
    await send(session, "ann@x.example")

    transaction = await send(session, "ann@x.example")

    assert (transaction.stale, transaction.usable) == (True, False)


async def test_slow_replies_are_waited_for_one_by_one(mx: ScriptedMx) -> None:
    mx.on("MAIL", [Pause(0.2), "250 ok"])
    mx.on("RCPT", [Pause(0.2), "250 ok"])
    mx.on("DATA", [Pause(0.2), "354 go"])
    session = await open_to(mx, timeouts=replace(PATIENT, mail=0.35, rcpt=0.35, data=0.35))

    assert outcomes(await send(session, "a@x.example")) == [("delivered", 250, "dot")]


async def test_a_peer_that_stops_reading_is_given_up_and_cannot_have_taken_the_message(mx: ScriptedMx) -> None:
    mx.on("CONTENT", DEAF)
    session = await open_to(mx, timeouts=replace(PATIENT, block=0.1, dot=60))
    begun = time.monotonic()

    transaction = await send(session, "ann@x.example", content=b"x" * 30_000_000)

    assert time.monotonic() - begun < 5
    assert outcomes(transaction) == [("deferred", 421, "dot")]
    assert not transaction.results[0].in_doubt


async def test_a_slow_reader_is_not_given_up_while_it_reads() -> None:
    async with ScriptedMx() as mx:
        mx.on("CONTENT", [Pause(0.3)])
        session = await open_to(mx, timeouts=replace(PATIENT, block=0.2, dot=5))

        transaction = await send(session, "ann@x.example", content=b"x" * 100_000)

    assert outcomes(transaction) == [("delivered", 250, "dot")]


async def test_a_refusal_in_the_middle_of_the_content_counts_and_ends_the_session(mx: ScriptedMx) -> None:
    mx.on("CONTENT", [DEAF, Pause(0.05), "552 5.3.4 too much"])
    session = await open_to(mx)

    transaction = await send(session, "ann@x.example", content=b"x" * 30_000_000)

    assert outcomes(transaction) == [("bounced", 552, "dot")]
    assert not transaction.usable


async def test_a_cancelled_transaction_cuts_the_connection(mx: ScriptedMx) -> None:
    mx.on("DOT", SILENCE)
    session = await open_to(mx)
    written = asyncio.Event()
    task = asyncio.create_task(send(session, "ann@x.example", on_dot=written.set))
    await written.wait()

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert not session.alive
    await until(lambda: mx.open == 0)
    assert mx.delivered == []


async def test_quit_does_not_wait_for_a_silent_host(mx: ScriptedMx) -> None:
    mx.on("QUIT", SILENCE)
    session = await open_to(mx, timeouts=replace(PATIENT, quit=0.1))

    await session.quit()

    assert not session.alive
    await until(lambda: mx.open == 0)


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_replies_in_small_pieces_are_the_same_replies(mx: ScriptedMx, size: int) -> None:
    reply = b"250-2.1.5 first\r\n250 2.1.5 second\r\n"
    pieces = [reply[start : start + size] for start in range(0, len(reply), size)]
    mx.on("RCPT", [part for piece in pieces for part in (piece, Pause(0.001))])
    session = await open_to(mx)

    transaction = await send(session, "ann@x.example")

    assert outcomes(transaction) == [("delivered", 250, "dot")]
    assert str(transaction.steps[1].reply) == "250 2.1.5 first second"


# ---- TLS


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
async def test_the_session_is_encrypted_where_the_host_offers_it(tls: str) -> None:
    async with ScriptedMx(tls="starttls") as mx:
        session = await open_to(mx, tls=tls)
        transaction = await send(session, "ann@x.example")
        await session.quit()

    assert session.tls.startswith("TLSv1.3 TLS_")
    assert outcomes(transaction) == [("delivered", 250, "dot")]
    assert [step.stage for step in session.steps] == ["greeting", "ehlo", "starttls", "ehlo"]


async def test_tls_sessions_are_resumed() -> None:
    async with ScriptedMx(tls="starttls", name="resumed.example") as mx:
        resumed = []
        for _ in range(3):
            session = await open_to(mx)
            await send(session, "ann@x.example")
            await session.quit()
            resumed.append(session.tls_resumed)

    assert resumed == [False, True, True]


async def test_tls_none_stays_in_clear() -> None:
    async with ScriptedMx(tls="starttls") as mx:
        session = await open_to(mx, tls="none")

    assert session.tls == ""
    assert mx.tls_connections == 0


async def test_tls_required_fails_where_it_is_not_offered() -> None:
    async with ScriptedMx() as mx:
        error = await refusal_of(mx, tls="required")

    assert (error.stage, error.verdict.kind, error.verdict.outcome) == ("starttls", Kind.TLS, Outcome.DEFERRED)


BAD_HANDSHAKES = [b"220 go\r\n" + b"not tls" * 100, ["220 go", CLOSE], ["220 go", Pause(1)], "454 4.7.0 not now"]


@pytest.mark.parametrize("said", BAD_HANDSHAKES, ids=lambda said: repr(said)[:30])
async def test_a_failed_handshake_falls_back_to_clear_only_when_opportunistic(said: object) -> None:
    timeouts = replace(PATIENT, starttls=0.2)
    async with ScriptedMx(tls="") as mx:
        mx.extensions = (*EXTENSIONS, "STARTTLS")
        mx.on("STARTTLS", said)  # type: ignore[arg-type]
        session = await open_to(mx, timeouts=timeouts)
        assert session.tls == ""
        assert session.tls_failure
        assert outcomes(await send(session, "ann@x.example")) == [("delivered", 250, "dot")]

        for tls in ("required", "verify"):
            error = await refusal_of(mx, tls=tls, timeouts=timeouts)
            assert (error.stage, error.verdict.outcome) == ("starttls", Outcome.DEFERRED)
        assert len(mx.delivered) == 1


async def test_tls_verify_wants_a_certificate_for_the_name() -> None:
    async with ScriptedMx(tls="starttls", name="good.example") as mx:
        session = await open_to(mx, tls="verify", trust=mx.certificate)
        assert session.tls

        untrusted = await refusal_of(mx, tls="verify")
        mx.name, trust = "other.example", mx.certificate
        misnamed = await refusal_of(mx, tls="verify", trust=trust)

    assert untrusted.verdict.kind == misnamed.verdict.kind == Kind.TLS
    assert "self-signed" in untrusted.verdict.text


async def test_implicit_tls_speaks_it_from_the_start_and_verifies() -> None:
    async with ScriptedMx(tls="implicit", name="good.example") as mx:
        session = await open_to(mx, tls="implicit", trust=mx.certificate)
        transaction = await send(session, "ann@x.example")
        error = await refusal_of(mx, tls="implicit")

    assert session.tls
    assert outcomes(transaction) == [("delivered", 250, "dot")]
    assert error.verdict.kind == Kind.TLS


async def test_replies_injected_before_the_handshake_are_not_believed() -> None:
    async with ScriptedMx(tls="starttls") as mx:
        mx.on("STARTTLS", b"220 go\r\n250-injected\r\n250 SIZE 1\r\n")
        mx.extensions = ("PIPELINING",)
        session = await open_to(mx, tls="opportunistic")

    assert "SIZE" not in session.extensions


# ---- AUTH


@pytest.mark.parametrize(
    ("offered", "used"),
    [("PLAIN LOGIN CRAM-MD5", "PLAIN"), ("LOGIN", "LOGIN"), ("CRAM-MD5 DIGEST-MD5", "CRAM-MD5")],
)
async def test_a_smart_host_gets_the_credentials(offered: str, used: str) -> None:
    async with ScriptedMx(tls="starttls", users={"bob": "sécret"}) as mx:
        mx.extensions = (*EXTENSIONS, f"AUTH {offered}")
        session = await open_to(mx, auth=RouteAuth(username="bob", password="sécret"))
        transaction = await send(session, "ann@x.example")

    assert mx.logins == [f"{used} bob"]
    assert outcomes(transaction) == [("delivered", 250, "dot")]


async def test_a_password_may_come_from_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "password").write_text("secret\n")
    async with ScriptedMx(extensions=(*EXTENSIONS, "AUTH PLAIN"), users={"bob": "secret"}) as mx:
        auth = RouteAuth(username="bob", password_file=str(tmp_path / "password"))
        await open_to(mx, tls="none", auth=auth)

    assert mx.logins == ["PLAIN bob"]


async def test_a_wrong_password_is_tried_once_and_defers() -> None:
    async with ScriptedMx(tls="starttls", extensions=("AUTH PLAIN LOGIN CRAM-MD5",), users={"bob": "right"}) as mx:
        error = await refusal_of(mx, auth=RouteAuth(username="bob", password="wrong"))

    assert (error.stage, error.verdict.outcome, error.verdict.code) == ("auth", Outcome.DEFERRED, 535)
    assert len([command for command in mx.commands if command.startswith("AUTH")]) == 1
    assert "wrong" not in str(error).replace("5.7.8 wrong", "")


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
async def test_a_password_never_goes_in_clear_unasked(tls: str) -> None:
    async with ScriptedMx(extensions=(*EXTENSIONS, "AUTH PLAIN"), users={"bob": "secret"}) as mx:
        error = await refusal_of(mx, tls=tls, auth=RouteAuth(username="bob", password="secret"))
        mx.extensions = (*mx.extensions, "STARTTLS")
        mx.on("STARTTLS", ["220 go", CLOSE])
        broken = await refusal_of(mx, tls=tls, auth=RouteAuth(username="bob", password="secret"))

    assert error.verdict.kind == broken.verdict.kind == Kind.TLS
    assert not [command for command in mx.commands if command.startswith("AUTH")]


@pytest.mark.parametrize("offered", [("AUTH GSSAPI",), ()])
async def test_a_host_without_a_mechanism_of_ours_defers(offered: tuple[str, ...]) -> None:
    async with ScriptedMx(tls="starttls", extensions=(*EXTENSIONS, *offered)) as mx:
        error = await refusal_of(mx, auth=RouteAuth(username="bob", password="secret"))

    assert (error.stage, error.verdict.outcome) == ("auth", Outcome.DEFERRED)


# ---- helpers


class listener:  # noqa: N801 - used as a function
    """A host that answers the n-th segment it receives with the n-th reply, and notes the segments."""

    def __init__(self, segments: list[bytes], replies: list[bytes]) -> None:
        self._segments = segments
        self._replies = replies

    async def __aenter__(self) -> Host:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return Host("mx.example", *self._server.sockets[0].getsockname())

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in self._replies:
            writer.write(reply)
            self._segments.append(await reader.read(100_000))
        writer.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the other end, which lives in the same loop, to have noticed."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
