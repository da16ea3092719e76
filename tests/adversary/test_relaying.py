"""Nobody relays through us whom we do not know: the list that every open-relay tester has, on each listener."""

import pytest

from mailerd.intake.authenticator import Authenticator
from tests.intake.test_inbound import Letterbox
from tests.support.smtp_intake import Intake, Outbox

VICTIM = "victim@outside.example"
RECIPIENTS = [
    f"<{VICTIM}>",
    VICTIM,
    "<victim%outside.example>",
    "<victim%outside.example@example.com>",
    "<victim%outside.example@[127.0.0.1]>",
    "<victim%outside.example@localhost>",
    '<"victim@outside.example">',
    '<"victim@outside.example"@example.com>',
    '<"victim%outside.example"@example.com>',
    "<outside.example!victim>",
    "<outside.example!victim@example.com>",
    "<outside.example!victim@[127.0.0.1]>",
    "<@example.com:victim@outside.example>",
    "<@[127.0.0.1]:victim@outside.example>",
    "<@example.com,@localhost:victim@outside.example>",
    "<victim@outside.example@example.com>",
    "<victim@outside.example.>",
    "<victim@OUTSIDE.example>",
    "<victim+tag@outside.example>",
    "<victim@[192.0.2.1]>",
    "<victim@[IPv6:2001:db8::1]>",
    "<victim@localhost>",
    "<victim@outside.example> AUTH=<>",
    "<victim@outside.example> NOTIFY=NEVER",
    "<postmaster%outside.example@mail.example.com>",
]
SENDERS = ["<>", "<a@example.com>", "<a@localhost>", "<a@[127.0.0.1]>", "<a>", "<a@example.com> AUTH=a@example.com"]


async def refused(intake: Intake, sender: str, recipient: str) -> bool:
    replies = await intake.session(f"MAIL FROM:{sender}", f"RCPT TO:{recipient}", "DATA")
    return replies[-1][:1] in ("5", "") and not replies[1].startswith("250")


@pytest.mark.parametrize("auth", ["required", "trusted"])
async def test_a_stranger_relays_in_no_spelling_to_a_submission_listener(
    auth: str,
    outbox: Outbox,
    lonely: Authenticator,
) -> None:
    listener = {"auth": auth, "trusted": ("192.0.2.0/24",)}
    async with Intake(outbox, lonely, listener=listener, limits={"max_connections_per_ip": 1000}) as intake:
        for sender in SENDERS:
            for recipient in RECIPIENTS:
                assert await refused(intake, sender, recipient), (sender, recipient)
    assert outbox.messages == []


async def test_nobody_relays_in_any_spelling_to_an_inbound_listener(
    outbox: Outbox,
    lonely: Authenticator,
) -> None:
    box = Letterbox()
    listener = {"kind": "inbound", "auth": "none"}
    async with Intake(
        outbox, lonely, listener=listener, inbound=box, limits={"max_connections_per_ip": 1000}
    ) as intake:
        for sender in SENDERS:
            for recipient in RECIPIENTS:
                assert await refused(intake, sender, recipient), (sender, recipient)
    assert box.arrived == []


@pytest.mark.parametrize(
    "command", ["XCLIENT ADDR=127.0.0.1", "XFORWARD ADDR=127.0.0.1", "PROXY TCP4 127.0.0.1 127.0.0.1 1 2"]
)
async def test_nobody_says_who_he_is_instead_of_his_socket(
    command: str,
    outbox: Outbox,
    lonely: Authenticator,
) -> None:
    async with Intake(outbox, lonely, listener={"auth": "trusted", "trusted": ("192.0.2.0/24",)}) as intake:
        replies = await intake.session(command, "MAIL FROM:<a@example.com>", f"RCPT TO:<{VICTIM}>")
    assert replies[0].startswith("500")
    assert not replies[2].startswith("250")
