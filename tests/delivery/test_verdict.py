"""What replies mean: real replies of real hosts as a table, and the rules that hold for every reply."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailerd.delivery.verdict import (
    BLAME,
    NETWORK_KINDS,
    TEXT_RULES,
    Kind,
    Outcome,
    classify,
    expired,
    local_verdict,
    network_verdict,
)
from mailerd.wire.smtp import Reply

STAGES = ("connect", "greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot")

# stage | outcome, kind and blame | what the host said
REPLIES = """
dot      | delivered delivered | 250 2.0.0 OK 1700000000 a1-2b.3 - gsmtp
rcpt     | bounced invalid_recipient recipient | 550 5.1.1 <ann@example.com>: Recipient address rejected: User unknown in local recipient table
rcpt     | bounced invalid_recipient recipient | 550-5.1.1 The email account that you tried to reach does not exist. Please try
rcpt     | bounced invalid_recipient recipient | 550 5.4.1 Recipient address rejected: Access denied. [AM0EUR02.prod.outlook.com]
rcpt     | bounced invalid_recipient recipient | 550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).
rcpt     | bounced invalid_recipient recipient | 550 Requested action not taken: mailbox unavailable
rcpt     | bounced invalid_recipient recipient | 552 no such user
rcpt     | bounced invalid_recipient recipient | 554 delivery error: dd This user doesn't have a yahoo.com account (ann@yahoo.com) [-5]
rcpt     | bounced invalid_recipient recipient | 553 5.3.0 <ann@example.com>... Addressee unknown, relay=[192.0.2.1]
rcpt     | bounced invalid_recipient recipient | 550 5.7.1 No such user here
rcpt     | deferred invalid_recipient recipient | 450 4.1.1 <ann@example.com>: Recipient address rejected: unverified address
rcpt     | bounced invalid_recipient recipient | 550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup
rcpt     | bounced inactive recipient | 550 5.2.1 The email account that you tried to reach is inactive
rcpt     | bounced inactive recipient | 554 30 Sorry, your message cannot be delivered. This mailbox is disabled (554.30).
rcpt     | bounced inactive recipient | 525 5.7.13 user gone
rcpt     | bounced mailbox_full recipient | 550 5.2.2 out
rcpt     | bounced mailbox_full recipient | 552 5.2.2 The email account that you tried to reach is over quota
rcpt     | deferred mailbox_full recipient | 452 4.2.2 The recipient's inbox is out of storage space
dot      | bounced mailbox_full recipient | 554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException
rcpt     | bounced mailbox_full recipient | 552 Requested mail action aborted: exceeded storage allocation
rcpt     | bounced mailbox_full recipient | 552-OverQuotaPerm
rcpt     | deferred too_many_recipients remote | 452 4.5.3 Too many recipients
rcpt     | deferred too_many_recipients remote | 452 please fewer
rcpt     | deferred too_many_recipients remote | 552 please fewer
rcpt     | deferred too_many_recipients remote | 550 5.5.3 Too many recipients
rcpt     | deferred other remote | 452 4.3.1 Insufficient system storage
rcpt     | deferred greylisted remote | 451 4.7.1 Greylisting in action, please come back in 00:05:00
rcpt     | deferred greylisted remote | 450 4.2.0 <ann@example.com>: Recipient address rejected: Greylisted, see http://postgrey.example/
rcpt     | deferred greylisted remote | 550 5.7.1 You have been graylisted, try again later
mail     | deferred rate_limited source | 421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints
rcpt     | deferred rate_limited source | 450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents
dot      | deferred rate_limited source | 421 4.7.28 Our system has detected an unusual amount
greeting | deferred rate_limited source | 421 4.7.0 Too many concurrent SMTP connections from this IP address
dot      | deferred rate_limited source | 550 5.4.5 Daily user sending limit exceeded
rcpt     | bounced spam_block source | 550 5.7.1 Service unavailable; client [192.0.2.1] blocked using zen.spamhaus.org
mail     | bounced spam_block source | 550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. part of their network is on our block list (S3140)
greeting | bounced spam_block source | 554 5.7.1 Your IP has a poor reputation
greeting | bounced spam_block source | 554 go away
dot      | bounced content content | 550 5.7.1 [192.0.2.1] Our system has detected that this message is likely unsolicited mail.
dot      | bounced content content | 554 5.7.1 Spam message rejected
dot      | bounced content content | 550 5.7.0 Message contains a virus
dot      | bounced content content | 552-5.7.0 This message was blocked because its content presents a potential
dot      | bounced content content | 550 5.6.0 malformed header
dot      | bounced auth_failure sender | 550 5.7.26 Unauthenticated email from x.example is not accepted due to domain's DMARC policy.
dot      | bounced auth_failure sender | 550 5.7.26 no
rcpt     | bounced auth_failure sender | 550 5.7.23 no
rcpt     | deferred auth_failure sender | 450 4.7.25 Client host rejected: cannot find your reverse hostname
rcpt     | bounced policy remote | 550 Administrative prohibition - envelope blocked
rcpt     | bounced policy remote | 550 5.7.1 no
rcpt     | bounced relay_denied remote | 554 5.7.1 <ann@example.com>: Relay access denied
rcpt     | bounced invalid_sender sender | 550 5.1.8 Sender address rejected: Domain not found
rcpt     | bounced invalid_sender sender | 550 5.7.27 null mx
mail     | bounced invalid_sender sender | 550 user unknown
mail     | bounced invalid_sender sender | 553 nonsense
mail     | bounced too_large content | 552 5.3.4 Message size exceeds fixed limit
mail     | bounced too_large content | 552 too big
rcpt     | bounced too_large content | 552 5.3.4 Message too big for system
dot      | bounced too_large content | 552 5.2.3 no
mail     | bounced tls remote | 530 5.7.0 Must issue a STARTTLS command first
mail     | bounced auth_failure sender | 530 5.7.1 Client was not authenticated
mail     | bounced auth_failure sender | 530 5.7.0 Authentication required
auth     | deferred auth_failure source | 535 5.7.8 Username and Password not accepted
auth     | deferred policy source | 454 4.7.0 Temporary authentication failure
starttls | deferred tls remote | 454 4.7.0 TLS not available due to local problem
starttls | deferred tls remote | 554 5.7.3 no
ehlo     | bounced policy source | 550 unknown user
ehlo     | bounced protocol remote | 502 what?
greeting | bounced bad_domain recipient | 521 example.com does not accept mail
rcpt     | bounced bad_domain recipient | 556 5.1.10 Recipient address has null MX
rcpt     | deferred other remote | 421 closing
dot      | deferred other remote | 451 4.3.0 Error: queue file write error
dot      | bounced routing remote | 554 5.4.6 Hop count exceeded
data     | bounced protocol remote | 503 5.5.1 RCPT first
data     | deferred protocol remote | 250 huh
rcpt     | deferred protocol remote | 999 huh
dot      | bounced auth_failure sender | 550 5.7.509 Access denied, sending domain ours.example does not pass DMARC verification
rcpt     | bounced spam_block source | 550 5.7.606 Access denied, banned sending IP [192.0.2.1]
rcpt     | deferred rate_limited source | 451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation
dot      | bounced content content | 550 5.7.1 Message rejected due to content restrictions
dot      | bounced content content | 554 5.7.1 [P4] Message blocked due to spam content in the message.
dot      | bounced content content | 554 5.7.1 matches a profile the Internet community may consider spam
rcpt     | bounced spam_block source | 554 5.7.1 Client host [192.0.2.1] blocked using cbl.example; this IP is sending spam
rcpt     | bounced invalid_recipient recipient | 550 #5.1.0 Address rejected.
mail     | bounced invalid_sender sender | 550 5.1.0 Address rejected.
rcpt     | deferred auth_failure sender | 450 4.7.1 Client host rejected: cannot find your hostname
rcpt     | bounced relay_denied remote | 553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)
rcpt     | deferred invalid_recipient recipient | 450 4.1.2 <ann@example.com>: Recipient address rejected: Domain not found
rcpt     | bounced invalid_sender sender | 550 Sender address <me@ours.example> does not exist
rcpt     | bounced spam_block source | 550 5.0.0 Blocked
rcpt     | bounced invalid_recipient recipient | 550 5.1.1 User unknown, see https://example.com/spam/why
dot      | bounced policy remote | 550 5.7.1 Your message was rejected for policy reasons
rcpt     | bounced bad_domain recipient | 554 5.1.2 Host unknown
rcpt     | deferred other remote | 451 Temporary local problem - please try later
rcpt     | deferred other remote | 450 Requested action not taken: mailbox unavailable
"""  # noqa: E501


def parse(text: str) -> Reply:
    return Reply(int(text[:3]), (text[4:],))


@pytest.mark.parametrize("row", REPLIES.strip().splitlines())
def test_a_reply_gets_its_class(row):
    stage, expected, text = (cell.strip() for cell in row.split("|"))
    verdict = classify(parse(text), stage)
    assert f"{verdict.outcome} {verdict.kind} {verdict.blame}".strip() == expected
    assert verdict.code == int(text[:3])


@given(st.integers(200, 599), st.text(max_size=80), st.sampled_from(STAGES))
def test_every_reply_has_a_verdict_and_only_2yz_delivers_and_only_5yz_bounces(code, text, stage):
    verdict = classify(Reply(code, (text,)), stage)
    if verdict.outcome is Outcome.DELIVERED:
        assert code < 300
        assert stage == "dot"
    if verdict.outcome is Outcome.BOUNCED:
        assert code >= 500
    assert verdict.kind in set(Kind)


@given(st.integers(400, 499), st.sampled_from(["5.1.1 user unknown", "over quota", "spamhaus", "5.7.1 relay denied"]))
def test_a_4yz_is_deferred_whatever_else_it_says(code, text):
    assert classify(Reply(code, (text,)), "rcpt").outcome is Outcome.DEFERRED


@pytest.mark.parametrize("stage", ["connect", "greeting", "ehlo", "starttls"])
@pytest.mark.parametrize("code", [421, 450, 550, 554])
def test_another_host_may_be_tried_when_this_one_would_not_talk(stage, code):
    assert classify(Reply(code, ("no",)), stage).retry_other_host


@pytest.mark.parametrize(("code", "stage"), [(550, "rcpt"), (450, "rcpt"), (552, "dot"), (550, "mail"), (535, "auth")])
def test_no_other_host_is_tried_after_an_answer_about_the_mail(code, stage):
    assert not classify(Reply(code, ("no",)), stage).retry_other_host


@pytest.mark.parametrize("stage", STAGES)
def test_421_means_deferred_and_closing_at_every_step(stage):
    verdict = classify(Reply(421, ("4.3.2 shutting down",)), stage)
    assert verdict.outcome is Outcome.DEFERRED
    assert verdict.closing
    assert verdict.retry_other_host


@pytest.mark.parametrize("error", sorted(NETWORK_KINDS))
def test_a_network_error_is_deferred_and_never_the_recipients_fault(error):
    verdict = network_verdict(error, "text")
    assert verdict.outcome is Outcome.DEFERRED
    assert verdict.blame in ("network", "remote")
    assert verdict.enhanced.startswith("4.")
    assert verdict.retry_other_host == (verdict.kind != "dns")


def test_after_the_dot_a_lost_connection_sends_nobody_to_another_host():
    assert not network_verdict("closed", "closed after the final dot", in_doubt=True).retry_other_host


def test_an_expiry_is_a_bounce_that_tells_the_last_answer():
    verdict = expired("451 4.7.1 come back later")
    assert verdict.outcome is Outcome.BOUNCED
    assert str(verdict) == "554 5.4.7 delivery time expired; the last answer was: 451 4.7.1 come back later"


def test_a_verdict_of_our_own_bounces_or_defers_by_its_code():
    assert local_verdict("bad_domain", 556, "5.1.10", "null MX").outcome is Outcome.BOUNCED
    assert local_verdict("routing", 451, "4.4.4", "later").outcome is Outcome.DEFERRED


def test_every_kind_has_somebody_to_blame_and_every_rule_is_reachable():
    assert set(BLAME) == set(Kind)
    rows = [[cell.strip() for cell in row.split("|")] for row in REPLIES.strip().splitlines()]
    kinds = {classify(parse(text), stage).kind for stage, _, text in rows}
    assert kinds >= {kind for kind, _ in TEXT_RULES}


@pytest.mark.parametrize(
    "piece", ["user ", "exceed a ", "message size is ", "mailbox is ", "ip ", "too many a ", " " * 9]
)
def test_a_hostile_text_stays_cheap(piece):
    reply = Reply(550, (piece * 5_000,))
    started = time.process_time()
    classify(reply, "rcpt")
    assert time.process_time() - started < 0.05
