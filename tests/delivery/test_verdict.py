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

# stage, what the host said, outcome, kind, blame
REPLIES = """
dot      | 250 2.0.0 OK 1700000000 a1-2b.3 - gsmtp                                         | delivered | delivered |
rcpt     | 550 5.1.1 <ann@example.com>: Recipient address rejected: User unknown in local recipient table | bounced | invalid_recipient | recipient
rcpt     | 550-5.1.1 The email account that you tried to reach does not exist. Please try   | bounced | invalid_recipient | recipient
rcpt     | 550 5.4.1 Recipient address rejected: Access denied. [AM0EUR02.prod.outlook.com]  | bounced | invalid_recipient | recipient
rcpt     | 550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).           | bounced | invalid_recipient | recipient
rcpt     | 550 Requested action not taken: mailbox unavailable                                | bounced | invalid_recipient | recipient
rcpt     | 552 no such user                                                                   | bounced | invalid_recipient | recipient
rcpt     | 554 delivery error: dd This user doesn't have a yahoo.com account (ann@yahoo.com) [-5] | bounced | invalid_recipient | recipient
rcpt     | 553 5.3.0 <ann@example.com>... Addressee unknown, relay=[192.0.2.1]                 | bounced | invalid_recipient | recipient
rcpt     | 550 5.7.1 No such user here                                                        | bounced | invalid_recipient | recipient
rcpt     | 450 4.1.1 <ann@example.com>: Recipient address rejected: unverified address          | deferred | invalid_recipient | recipient
rcpt     | 550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup | bounced | invalid_recipient | recipient
rcpt     | 550 5.2.1 The email account that you tried to reach is inactive                     | bounced | inactive | recipient
rcpt     | 554 30 Sorry, your message cannot be delivered. This mailbox is disabled (554.30).   | bounced | inactive | recipient
rcpt     | 525 5.7.13 user gone                                                               | bounced | inactive | recipient
rcpt     | 550 5.2.2 out                                                                      | bounced | mailbox_full | recipient
rcpt     | 552 5.2.2 The email account that you tried to reach is over quota                   | bounced | mailbox_full | recipient
rcpt     | 452 4.2.2 The recipient's inbox is out of storage space                             | deferred | mailbox_full | recipient
dot      | 554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException            | bounced | mailbox_full | recipient
rcpt     | 552 Requested mail action aborted: exceeded storage allocation                      | bounced | mailbox_full | recipient
rcpt     | 552-OverQuotaPerm                                                                  | bounced | mailbox_full | recipient
rcpt     | 452 4.5.3 Too many recipients                                                      | deferred | too_many_recipients | remote
rcpt     | 452 please fewer                                                                   | deferred | too_many_recipients | remote
rcpt     | 552 please fewer                                                                   | deferred | too_many_recipients | remote
rcpt     | 550 5.5.3 Too many recipients                                                      | deferred | too_many_recipients | remote
rcpt     | 452 4.3.1 Insufficient system storage                                              | deferred | other | remote
rcpt     | 451 4.7.1 Greylisting in action, please come back in 00:05:00                        | deferred | greylisted | remote
rcpt     | 450 4.2.0 <ann@example.com>: Recipient address rejected: Greylisted, see http://postgrey.example/ | deferred | greylisted | remote
rcpt     | 550 5.7.1 You have been graylisted, try again later                                 | deferred | greylisted | remote
mail     | 421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints | deferred | rate_limited | source
rcpt     | 450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents | deferred | rate_limited | source
dot      | 421 4.7.28 Our system has detected an unusual amount                                | deferred | rate_limited | source
greeting | 421 4.7.0 Too many concurrent SMTP connections from this IP address                  | deferred | rate_limited | source
dot      | 550 5.4.5 Daily user sending limit exceeded                                         | deferred | rate_limited | source
rcpt     | 550 5.7.1 Service unavailable; client [192.0.2.1] blocked using zen.spamhaus.org      | bounced | spam_block | source
mail     | 550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. part of their network is on our block list (S3140) | bounced | spam_block | source
greeting | 554 5.7.1 Your IP has a poor reputation                                             | bounced | spam_block | source
greeting | 554 go away                                                                         | bounced | spam_block | source
dot      | 550 5.7.1 [192.0.2.1] Our system has detected that this message is likely unsolicited mail. | bounced | content | content
dot      | 554 5.7.1 Spam message rejected                                                     | bounced | content | content
dot      | 550 5.7.0 Message contains a virus                                                  | bounced | content | content
dot      | 552-5.7.0 This message was blocked because its content presents a potential          | bounced | content | content
dot      | 550 5.6.0 malformed header                                                          | bounced | content | content
dot      | 550 5.7.26 Unauthenticated email from x.example is not accepted due to domain's DMARC policy. | bounced | auth_failure | sender
dot      | 550 5.7.26 no                                                                      | bounced | auth_failure | sender
rcpt     | 550 5.7.23 no                                                                      | bounced | auth_failure | sender
rcpt     | 450 4.7.25 Client host rejected: cannot find your reverse hostname                   | deferred | auth_failure | sender
rcpt     | 550 Administrative prohibition - envelope blocked                                  | bounced | policy | remote
rcpt     | 550 5.7.1 no                                                                       | bounced | policy | remote
rcpt     | 554 5.7.1 <ann@example.com>: Relay access denied                                    | bounced | relay_denied | remote
rcpt     | 550 5.1.8 Sender address rejected: Domain not found                                 | bounced | invalid_sender | sender
rcpt     | 550 5.7.27 null mx                                                                 | bounced | invalid_sender | sender
mail     | 550 user unknown                                                                   | bounced | invalid_sender | sender
mail     | 553 nonsense                                                                       | bounced | invalid_sender | sender
mail     | 552 5.3.4 Message size exceeds fixed limit                                          | bounced | too_large | content
mail     | 552 too big                                                                        | bounced | too_large | content
rcpt     | 552 5.3.4 Message too big for system                                               | bounced | too_large | content
dot      | 552 5.2.3 no                                                                       | bounced | too_large | content
mail     | 530 5.7.0 Must issue a STARTTLS command first                                       | bounced | tls | remote
mail     | 530 5.7.1 Client was not authenticated                                              | bounced | auth_failure | sender
mail     | 530 5.7.0 Authentication required                                                  | bounced | auth_failure | sender
auth     | 535 5.7.8 Username and Password not accepted                                        | deferred | auth_failure | source
auth     | 454 4.7.0 Temporary authentication failure                                          | deferred | policy | source
starttls | 454 4.7.0 TLS not available due to local problem                                    | deferred | tls | remote
starttls | 554 5.7.3 no                                                                       | deferred | tls | remote
ehlo     | 550 unknown user                                                                   | bounced | policy | source
ehlo     | 502 what?                                                                          | bounced | protocol | remote
greeting | 521 example.com does not accept mail                                                | bounced | bad_domain | recipient
rcpt     | 556 5.1.10 Recipient address has null MX                                            | bounced | bad_domain | recipient
rcpt     | 421 closing                                                                        | deferred | other | remote
dot      | 451 4.3.0 Error: queue file write error                                             | deferred | other | remote
dot      | 554 5.4.6 Hop count exceeded                                                       | bounced | routing | remote
data     | 503 5.5.1 RCPT first                                                               | bounced | protocol | remote
data     | 250 huh                                                                            | deferred | protocol | remote
rcpt     | 999 huh                                                                            | deferred | protocol | remote
"""


def parse(text: str) -> Reply:
    return Reply(int(text[:3]), (text[4:],))


@pytest.mark.parametrize("row", REPLIES.strip().splitlines())
def test_a_reply_gets_its_class(row):
    stage, text, outcome, kind, blame = (cell.strip() for cell in row.split("|"))
    verdict = classify(parse(text), stage)
    assert (verdict.outcome, verdict.kind, verdict.blame) == (outcome, kind, blame)
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
    kinds = {
        classify(parse(row.split("|")[1].strip()), row.split("|")[0].strip()).kind
        for row in REPLIES.strip().splitlines()
    }
    assert kinds >= {kind for kind, _ in TEXT_RULES}


@pytest.mark.parametrize(
    "piece", ["user ", "exceed a ", "message size is ", "mailbox is ", "ip ", "too many a ", " " * 9]
)
def test_a_hostile_text_stays_cheap(piece):
    reply = Reply(550, (piece * 5_000,))
    started = time.process_time()
    classify(reply, "rcpt")
    assert time.process_time() - started < 0.05
