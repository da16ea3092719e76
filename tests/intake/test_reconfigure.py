"""Listeners that take on other settings while clients are connected."""

from pathlib import Path

from mailerd import config
from mailerd.intake.authenticator import Failures
from mailerd.intake.smtp_listener import server_context
from tests.support.smtp_intake import Intake, make_certificate, trusting

MAIL = "MAIL FROM:<me@here.example>"


def settings(intake: Intake, **changes: object) -> config.Listener:
    plain = {"starttls": "off", "auth": "trusted", "trusted": ("127.0.0.0/8",)}
    return config.Listener(**{"bind": config.Endpoint(intake.host, intake.port), **plain, **changes})  # type: ignore[arg-type]


async def test_a_transaction_under_way_is_carried_out_and_the_next_one_meets_the_new_limits(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        for line in ("EHLO client.example", MAIL, "RCPT TO:<ann@there.example>"):
            assert (await client.say(line)).startswith("250")

        limits = config.Smtp(max_recipients=1)
        intake.listener.reconfigure(settings(intake), limits=limits, hostname="new.example.com", tls=None)

        assert (await client.say("DATA")).startswith("354")
        assert (await client.say("Subject: hi\r\n\r\nhi\r\n.")).startswith("250")
        assert (await client.say("EHLO client.example")).startswith("250-new.example.com")
        await client.say(MAIL)
        assert (await client.say("RCPT TO:<ann@there.example>")).startswith("250")
        assert (await client.say("RCPT TO:<bob@there.example>")).startswith("452 4.5.3")
    assert len(outbox.messages) == 1


async def test_who_is_trusted_no_longer_may_end_the_transaction_and_begin_no_other(outbox, lonely):
    async with Intake(outbox, lonely) as intake:
        client = await intake.connect()
        for line in ("EHLO client.example", MAIL, "RCPT TO:<ann@there.example>"):
            await client.say(line)

        stranger = settings(intake, trusted=("10.0.0.0/8",))
        intake.listener.reconfigure(stranger, limits=config.Smtp(), hostname="mail.example.com", tls=None)

        assert (await client.say("DATA")).startswith("354")
        assert (await client.say("Subject: hi\r\n\r\nhi\r\n.")).startswith("250")
        assert (await client.say(MAIL)).startswith("530 5.7.0")

        intake.listener.reconfigure(settings(intake), limits=config.Smtp(), hostname="mail.example.com", tls=None)
        assert (await client.say(MAIL)).startswith("250")
    assert [message.origin.credential.name for message in outbox.messages] == ["trusted"]


async def test_a_renewed_certificate_is_shown_to_those_who_come_and_the_others_go_on(
    outbox, lonely, tls, trust, tmp_path: Path
):
    async with Intake(outbox, lonely, tls=tls, listener={"kind": "submissions"}) as intake:
        before = await intake.connect(trust)
        renewed = make_certificate(tmp_path)
        context = server_context(config.Tls(certificate=renewed[0], key=renewed[1]))

        listener = settings(intake, kind="submissions")
        intake.listener.reconfigure(listener, limits=config.Smtp(), hostname="mail.example.com", tls=context)

        await intake.connect(trusting(renewed[0]))
        assert (await before.say("EHLO client.example")).startswith("250")


async def test_another_limit_of_failures_holds_for_the_periods_that_have_begun():
    failures = Failures(config.Rate(1, 60.0))
    failures.count("peer 192.0.2.1", 0.0)
    assert failures.exhausted("peer 192.0.2.1", 1.0)
    failures.limit = config.Rate(2, 60.0)
    assert not failures.exhausted("peer 192.0.2.1", 1.0)
