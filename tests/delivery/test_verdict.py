"""What replies mean: real replies of real hosts as a table, and the rules that hold for every reply."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.config.verdicts import parse_verdicts
from mailerd.delivery import verdict as verdicts
from mailerd.delivery.verdict import (
    NETWORK_KINDS,
    Action,
    Blame,
    Kind,
    Outcome,
    classify,
    complaint,
    expired,
    in_force,
    local_verdict,
    network_verdict,
    of_report,
    use,
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
auth     | deferred auth_failure source | 454 4.7.0 Temporary authentication failure
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
rcpt     | deferred bad_domain recipient | 450 4.1.2 <ann@example.com>: Recipient address rejected: Domain not found
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


def table(name):
    """The rows of a file beside this one."""
    lines = (Path(__file__).parent / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("row", table("replies.txt"))
def test_a_reply_of_a_real_system_gets_its_class_and_what_is_done(row):
    stage, expected, text = (cell.strip() for cell in row.split("|", 2))
    kind, *action = expected.split()
    verdict = classify(parse(text), stage)
    assert verdict.kind == kind
    if verdict.outcome is Outcome.BOUNCED and action:
        assert verdict.action == action[0]
    if verdict.outcome is Outcome.DEFERRED:
        assert verdict.action in (Action.RETRY, Action.SLOW, Action.OTHER_SOURCE)


@pytest.mark.parametrize("row", table("reports.txt"))
def test_what_a_bounce_says_gets_its_class_and_what_is_done(row):
    action, status, diagnostic, words, expected = (cell.strip() for cell in row.split("|"))
    verdict = of_report(action, status, 0, diagnostic, words)
    assert f"{verdict.kind} {verdict.action or 'nothing'}" == expected
    outcomes = {"failed": Outcome.BOUNCED, "delayed": Outcome.DEFERRED}
    assert verdict.outcome is outcomes.get(action, Outcome.DELIVERED)


def test_every_class_has_its_line_and_every_class_of_a_rule_is_seen_in_the_tables():
    assert set(in_force().classes) == set(Kind)
    seen = {row.split("|")[1].split()[0] for row in table("replies.txt")}
    assert seen >= {rule.kind for rule in in_force().rules} - {Kind.EXPIRED}


@given(
    st.integers(400, 499), st.sampled_from(["user unknown", "account closed", "no such user", "null MX", "5.1.1 no"])
)
def test_a_4yz_never_suppresses_or_counts(code, text):
    assert classify(Reply(code, (text,)), "rcpt").action in (Action.RETRY, Action.SLOW, Action.OTHER_SOURCE)
    assert of_report("failed", "", 0, f"smtp; {code} {text}", "").action != Action.SUPPRESS


@pytest.mark.parametrize(
    "text",
    [
        "550 5.2.1 Mailbox temporarily disabled",
        "550 5.7.1 Account suspended",
        "554 5.7.1 Relay access denied",
        "550 5.7.1 rejected by policy",
        "550 Access denied",
        "550 5.4.4 Host or domain name not found. Name service error for name=example.com type=MX: Host not found",
        "550 5.4.3 DNS lookup failed",
        "550 5.7.1 Service unavailable; client [192.0.2.1] blocked using zen.spamhaus.org",
        "550 5.7.25 [192.0.2.1] The IP address sending this message does not have a PTR record setup",
        "550 5.7.1 your IP address is unknown to us",
        "550 no",
        "554 5.0.0 rejected",
        "552 5.2.2 Mailbox full",
    ],
)
def test_what_may_pass_never_suppresses_at_once(text):
    for stage in STAGES:
        assert classify(parse(text), stage).action is not Action.SUPPRESS
    assert of_report("failed", "", 0, f"smtp; {text}", "").action is not Action.SUPPRESS


# Blocks, faults and rules that speak of users, addresses and mailboxes without saying that there is none.
def test_a_block_in_the_words_of_an_unknown_user_never_suppresses():
    suppressed = []
    for text in table("blocks.txt"):
        told = [classify(parse(text), "rcpt"), of_report("failed", "", 0, f"smtp; {text}", "")]
        told.append(of_report("failed", "", 0, "", f"{EXIM} ann@example.com {text[4:]}"))
        suppressed += [text for verdict in told if verdict.action is Action.SUPPRESS]
    assert suppressed == []


EXIM = "A message that you sent could not be delivered to one or more of its recipients. This is a permanent error."


def test_a_reply_that_says_both_permanent_and_transient_only_counts():
    assert classify(Reply(550, ("4.2.1 mailbox disabled",)), "rcpt").action is Action.COUNT


@pytest.mark.parametrize(
    "words",
    [
        EXIM,
        "I'm afraid I wasn't able to deliver your message to the following addresses. This is a permanent error; "
        "I've given up. Sorry it didn't work out. <ann@example.com>:",
        "Created automatically by mail delivery software. The following address(es) failed: ann@example.com",
    ],
)
def test_what_systems_write_whatever_the_reason_is_says_nothing(words):
    assert of_report("failed", "", 0, "", words).kind == "other"


def test_what_follows_the_recipient_speaks_before_what_stands_above():
    words = f"{EXIM} Our filter looks for spam. The following address failed: ann@example.com: mailbox is full"
    assert of_report("failed", "", 0, "", words).kind == "mailbox_full"


def test_a_code_of_the_way_there_gives_way_to_what_people_read():
    assert of_report("failed", "5.4.4", 0, "", "ann@example.test Illegal host/domain name found").kind == "bad_domain"
    assert of_report("failed", "4.4.1", 0, "", "ann@example.test has been in the queue too long").kind == "network"


def test_what_only_a_greeting_means_is_not_read_into_a_report_that_names_no_stage():
    assert of_report("failed", "", 0, "smtp; 554 nothing to say", "").kind == "other"


@given(st.integers(200, 599), st.text(max_size=80), st.sampled_from(STAGES))
def test_only_what_is_about_the_recipient_suppresses_or_counts(code, text, stage):
    verdict = classify(Reply(code, (text,)), stage)
    if verdict.action in (Action.SUPPRESS, Action.COUNT):
        assert verdict.outcome is Outcome.BOUNCED
        assert verdict.blame == Blame.RECIPIENT


REPORT_TEXT = st.text(max_size=400) | st.from_regex(
    r"(smtp; )?[245]\d\d[ -]([245]\.\d\.\d{1,3} )?.{0,80}", fullmatch=True
)


@settings(deadline=200)
@given(
    st.sampled_from(["failed", "delayed", "delivered", "relayed", "expanded", "", "x"]),
    st.sampled_from(["", "5.1.1", "4.4.7", "5.0.0", "9.9.9", "5", "nonsense"]),
    st.sampled_from([0, 250, 450, 550, 999]),
    REPORT_TEXT,
    REPORT_TEXT,
)
def test_every_report_has_a_verdict(action, status, code, diagnostic, words):
    verdict = of_report(action, status, code, diagnostic, words)
    assert verdict.kind in set(Kind)
    assert len(verdict.text) <= 1_000
    verdict.text.encode()


def test_a_null_mx_and_an_unknown_domain_suppress_and_a_domain_without_hosts_counts():
    assert local_verdict(Kind.BAD_DOMAIN, 556, "5.1.10", "null MX").action is Action.SUPPRESS
    assert local_verdict(Kind.BAD_DOMAIN, 550, "5.1.2", "does not exist").action is Action.SUPPRESS
    assert local_verdict(Kind.BAD_DOMAIN, 550, "5.4.4", "no address").action is Action.COUNT


def test_an_expiry_counts_only_when_the_last_answer_was_about_the_recipient():
    assert expired("452 4.2.2 mailbox full").action is Action.COUNT
    for last in ("", "451 4.7.1 greylisted", "421 4.4.1 connection refused", "421 4.7.0 [TSS04] deferred"):
        assert expired(last).action is Action.TELL


@pytest.mark.parametrize(
    ("feedback_type", "action"),
    [
        ("abuse", Action.SUPPRESS),
        ("fraud", Action.SUPPRESS),
        ("opt-out", Action.SUPPRESS),
        ("", Action.SUPPRESS),
        ("Not-Spam", Action.NOTHING),
        ("auth-failure", Action.TELL),
    ],
)
def test_a_complaint_suppresses_unless_it_says_the_contrary(feedback_type, action):
    told = complaint(feedback_type)
    assert (told.kind, told.outcome, told.action) == (Kind.COMPLAINT, Outcome.DELIVERED, action)


MINE = """\
classes: {invalid_recipient: {action: count}}
rules:
  - {id: mine, class: policy, match: ["no such user"], samples: [550 no such user]}
"""


def test_other_rules_can_be_in_force():
    before = in_force()
    try:
        use(parse_verdicts({"builtin": Path("mailerd/verdicts.yaml").read_text("utf-8"), "mine.yaml": MINE}))
        mine = classify(Reply(550, ("5.1.1 no such user",)), "rcpt")
        assert (mine.kind, mine.rule) == ("policy", "mine")
        assert classify(Reply(550, ("5.1.1 user unknown",)), "rcpt").action is Action.COUNT
    finally:
        verdicts.use(before)
    assert classify(Reply(550, ("5.1.1 no such user",)), "rcpt").kind == "invalid_recipient"


@pytest.mark.parametrize(
    "piece", ["user ", "exceed a ", "message size is ", "mailbox is ", "ip ", "too many a ", " " * 9]
)
def test_a_hostile_text_stays_cheap(piece):
    reply = Reply(550, (piece * 5_000,))
    started = time.process_time()
    classify(reply, "rcpt")
    assert time.process_time() - started < 0.05
