"""Golden samples: what each family of mail systems writes, in its own words, and what is read in it."""

# ruff: noqa: E501 - mails have long lines

from dataclasses import dataclass

import pytest

from mailerd.feedback.reading import Reported, ReportKind, read_report

ORIGINAL = """Return-Path: <b-tok123@bounces.sender.example>
Received: from out.sender.example (out.sender.example [192.0.2.10]) by mx.far.example; Mon, 2 Mar 2026 10:00:00 +0000
From: News <news@sender.example>
To: ann@far.example
Subject: March news
Message-ID: <20260302.1@sender.example>
MIME-Version: 1.0
"""


@dataclass(frozen=True)
class Sample:
    """A report and what must be read in it; `says` stands in the diagnostic or else in the words."""

    name: str
    text: str
    kind: ReportKind = ReportKind.BOUNCE
    addresses: tuple[str, ...] = ("ann@far.example",)
    code: int = 0
    status: str = ""
    says: str = ""
    returned: bool = False
    feedback_type: str = ""

    @property
    def content(self) -> bytes:
        return self.text.replace("\n", "\r\n").encode()


def plain(sender: str, subject: str, body: str, headers: str = "") -> str:
    return (
        f"Return-Path: <>\nFrom: {sender}\nTo: b-tok123@bounces.sender.example\nSubject: {subject}\n{headers}"
        f"Date: Mon, 2 Mar 2026 10:00:05 +0000\nMessage-ID: <r1@far.example>\n"
        f"Content-Type: text/plain; charset=utf-8\n\n{body}\n"
    )


def parts(sender: str, subject: str, kind: str, *bodies: str, headers: str = "") -> str:
    inner = "".join(f"--=_b1\n{body}\n" for body in bodies)
    return (
        f"Return-Path: <>\nFrom: {sender}\nTo: b-tok123@bounces.sender.example\nSubject: {subject}\n{headers}"
        f'MIME-Version: 1.0\nContent-Type: {kind}; boundary="=_b1"\n\n{inner}--=_b1--\n'
    )


def dsn(fields: str, human: str = "Your message could not be delivered.", subject: str = "Undelivered Mail") -> str:
    return parts(
        "Mail Delivery System <MAILER-DAEMON@mx.far.example>",
        subject,
        "multipart/report; report-type=delivery-status",
        f"Content-Type: text/plain; charset=utf-8\n\n{human}\n",
        f"Content-Type: message/delivery-status\n\nReporting-MTA: dns; mx.far.example\n\n{fields}\n",
        f"Content-Type: text/rfc822-headers\n\n{ORIGINAL}",
    )


def arf(fields: str, original: str = ORIGINAL, sender: str = "fbl@provider.example") -> str:
    return parts(
        sender,
        "FW: March news",
        "multipart/report; report-type=feedback-report",
        "Content-Type: text/plain\n\nThis is an email abuse report.\n",
        f"Content-Type: message/feedback-report\n\n{fields}",
        f"Content-Type: message/rfc822\n\n{original}\nHello\n",
    )


DAEMON = "Mail Delivery System <MAILER-DAEMON@mx.far.example>"
FAILED = "Final-Recipient: rfc822; ann@far.example\nAction: failed\n"

SAMPLES = [
    # ---- RFC 3464
    Sample(
        "postfix",
        dsn(
            FAILED + "Status: 5.1.1\nRemote-MTA: dns; mx2.far.example\nDiagnostic-Code: smtp; 550 5.1.1 <ann@far.example>:"
            "\n    Recipient address rejected: User unknown"
        ),
        code=550,
        status="5.1.1",
        says="Recipient address rejected: User unknown",
        returned=True,
    ),
    Sample(
        "exim with a reply of several lines",
        dsn(
            "Action: failed\nFinal-Recipient: rfc822;ann@far.example\nStatus: 5.0.0\nDiagnostic-Code: smtp; 550-5.1.1 The email"
            " account that you tried\n 550-5.1.1 to reach does not\n 550 5.1.1 exist. abc-123"
        ),
        code=550,
        status="5.1.1",
        says="550 5.1.1 The email account that you tried to reach does not exist. abc-123",
        returned=True,
    ),
    Sample(
        "sendmail with comments, odd case and no spaces",
        dsn("FINAL-RECIPIENT:RFC822;<ann@FAR.example>\nACTION:Failed (bad)\nSTATUS:5.1.1 (no mailbox)\nDIAGNOSTIC-CODE:SMTP;550 User unknown"),
        code=550,
        status="5.1.1",
        says="User unknown",
        returned=True,
    ),
    Sample("x-unix", dsn(FAILED + "Status: 5.2.2\nDiagnostic-Code: x-unix; Quota exceeded"), status="5.2.2", says="Quota exceeded", returned=True),
    Sample(
        "x-postfix with the host before its reply",
        dsn(FAILED + "Status: 5.0.0\nDiagnostic-Code: X-Postfix; host mx[192.0.2.9] said: 552 5.2.2 Mailbox full (in reply to RCPT TO)"),
        code=552,
        status="5.2.2",
        says="552 5.2.2 Mailbox full",
        returned=True,
    ),
    Sample("recipient without a type", dsn("Final-Recipient: ann@far.example\nAction: failed\nStatus: 5.1.1"), status="5.1.1", returned=True),
    Sample("recipient as mailto", dsn("Final-Recipient: rfc822;mailto:ann@far.example\nAction: failed\nStatus: 5.1.1"), status="5.1.1", returned=True),
    Sample(
        "X.400 recipient, original as xtext",
        dsn("Original-Recipient: rfc822;ann+2Btag@far.example\nFinal-Recipient: X400; /S=ann/\nAction: failed\nStatus: 5.1.1"),
        addresses=("ann+tag@far.example",),
        status="5.1.1",
        returned=True,
    ),
    Sample(
        "RFC 6533",
        dsn("Final-Recipient: utf-8; j\\x{F6}rg@far.example\nAction: failed\nStatus: 5.1.1").replace(
            "message/delivery-status", "message/global-delivery-status"
        ),
        addresses=("jörg@far.example",),
        status="5.1.1",
        returned=True,
    ),
    Sample("delayed", dsn("Final-Recipient: rfc822; ann@far.example\nAction: delayed\nStatus: 4.4.1"), ReportKind.DELAYED, status="4.4.1", returned=True),
    Sample("delivered", dsn("Final-Recipient: rfc822; ann@far.example\nAction: delivered\nStatus: 2.1.5"), ReportKind.DELIVERED, status="2.1.5", returned=True),
    Sample("relayed", dsn("Final-Recipient: rfc822; ann@far.example\nAction: relayed\nStatus: 2.1.9"), ReportKind.DELIVERED, status="2.1.9", returned=True),
    Sample("expanded", dsn("Final-Recipient: rfc822; ann@far.example\nAction: expanded\nStatus: 2.0.0"), ReportKind.DELIVERED, status="2.0.0", returned=True),
    Sample("expired, a failure of a transient class", dsn(FAILED + "Status: 4.4.7"), status="4.4.7", returned=True),
    Sample("no action", dsn("Final-Recipient: rfc822; ann@far.example\nStatus: 5.7.1"), status="5.7.1", returned=True),
    Sample(
        "several recipients without empty lines",
        dsn(FAILED + "Status: 5.1.1\nFinal-Recipient: rfc822; bob@far.example\nAction: failed\nStatus: 5.2.2"),
        addresses=("ann@far.example", "bob@far.example"),
        status="5.1.1",
        returned=True,
    ),
    Sample("labelled as text", dsn(FAILED + "Status: 5.1.1").replace("message/delivery-status", "text/plain"), status="5.1.1", returned=True),
    Sample(
        "no MIME at all",
        plain(DAEMON, "Returned mail", "Sorry.\n\nReporting-MTA: dns; mx.far.example\n\n" + FAILED + "Status: 5.1.1\n"),
        status="5.1.1",
    ),
    Sample(
        "exchange 2016 and 365",
        dsn(
            "Final-Recipient: rfc822;ann@far.example\nAction: failed\nStatus: 5.1.10\nDiagnostic-Code: smtp;550 5.1.10"
            " RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
            "Delivery has failed to these recipients or groups:\n\nann@far.example\nThe email address you entered couldn't be found.",
            "Undeliverable: March news",
        ),
        code=550,
        status="5.1.10",
        says="RecipientNotFound",
        returned=True,
    ),
    Sample(
        "google, full mailbox",
        dsn(FAILED + "Status: 4.2.2\nDiagnostic-Code: smtp; 452-4.2.2 The recipient's inbox is out of storage space.\n 452 4.2.2 See help - gsmtp"),
        code=452,
        status="4.2.2",
        says="out of storage space",
        returned=True,
    ),
    Sample(
        "wrapped by a gateway",
        "From: gate@far.example\nSubject: Fw\nContent-Type: message/rfc822\n\n" + dsn(FAILED + "Status: 5.1.1"),
        status="5.1.1",
        returned=True,
    ),
    # ---- bounces in prose
    Sample(
        "old postfix",
        plain(
            DAEMON,
            "Undelivered Mail Returned to Sender",
            "This is the Postfix program at host mx.far.example.\n\nFor further assistance, please send mail to <postmaster>\n\n"
            "<ann@far.example>: host mail.far.example[192.0.2.3] said: 550 5.1.1\n    <ann@far.example>: User unknown (in reply to RCPT TO command)",
        ),
        code=550,
        status="5.1.1",
        says="User unknown",
    ),
    Sample(
        "exim",
        plain(
            "Mail Delivery System <Mailer-Daemon@far.example>",
            "Mail delivery failed: returning message to sender",
            "This message was created automatically by mail delivery software.\n\nA message that you sent could not be delivered to one or"
            " more of its\nrecipients. This is a permanent error. The following address(es) failed:\n\n  ann@far.example\n    SMTP error from"
            " remote mail server after RCPT TO:<ann@far.example>:\n    host mx.far.example [192.0.2.4]: 550 No such user here\n\n"
            f"------ This is a copy of the message, including all the headers. ------\n\n{ORIGINAL}\nHello",
            "X-Failed-Recipients: ann@far.example\nAuto-Submitted: auto-replied\n",
        ),
        code=550,
        says="550 No such user here",
        returned=True,
    ),
    Sample(
        "exim, unrouteable",
        plain(
            "Mail Delivery System <Mailer-Daemon@far.example>",
            "Mail delivery failed: returning message to sender",
            "The following address(es) failed:\n\n  ann@far.example\n    Unrouteable address\n",
        ),
        says="Unrouteable address",
    ),
    Sample(
        "exim, delay",
        plain(
            "Mail Delivery System <Mailer-Daemon@far.example>",
            "Warning: message 1abc-0002-3d delayed 24 hours",
            "A message that you sent has not yet been delivered to one or more of its\nrecipients after more than 24 hours on the queue.\n\n"
            "The address to which the message has not yet been delivered is:\n\n  ann@far.example\n    Delay reason: mailbox is full\n\n"
            "No action is required on your part.",
        ),
        ReportKind.DELAYED,
        says="mailbox is full",
    ),
    Sample(
        "qmail",
        plain(
            "MAILER-DAEMON@far.example",
            "failure notice",
            "Hi. This is the qmail-send program at far.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\n"
            "This is a permanent error; I've given up. Sorry it didn't work out.\n\n<ann@far.example>:\n192.0.2.5 does not like recipient.\n"
            f"Remote host said: 550 5.1.1 unknown user\nGiving up on 192.0.2.5.\n\n--- Below this line is a copy of the message.\n\n{ORIGINAL}\nHello",
        ),
        code=550,
        status="5.1.1",
        says="550 5.1.1 unknown user",
        returned=True,
    ),
    Sample(
        "qmail without a reply",
        plain(
            "MAILER-DAEMON@far.example",
            "failure notice",
            "Hi. This is the qmail-send program at far.example.\n\n<ann@far.example>:\nSorry, no mailbox here by that name. (#5.1.1)",
        ),
        status="5.1.1",
        says="no mailbox here by that name",
    ),
    Sample(
        "sendmail",
        plain(
            "Mail Delivery Subsystem <MAILER-DAEMON@far.example>",
            "Returned mail: see transcript for details",
            "The original message was received at Mon, 2 Mar 2026 10:00:00 GMT\nfrom out.sender.example [192.0.2.10]\n\n"
            "   ----- The following addresses had permanent fatal errors -----\n<ann@far.example>\n    (reason: 550 5.1.1 User unknown)\n\n"
            "   ----- Transcript of session follows -----\n... while talking to mx.far.example.:\n>>> RCPT To:<ann@far.example>\n"
            "<<< 550 5.1.1 User unknown\n550 5.1.1 <ann@far.example>... User unknown",
        ),
        code=550,
        status="5.1.1",
        says="550 5.1.1 User unknown",
    ),
    Sample(
        "sendmail, delay",
        plain(
            "Mail Delivery Subsystem <MAILER-DAEMON@far.example>",
            "Warning: could not send message for past 4 hours",
            "    **********************************************\n    **      THIS IS A WARNING MESSAGE ONLY      **\n    **  YOU DO NOT NEED TO RESEND YOUR MESSAGE  **\n"
            "    **********************************************\n\n   ----- The following addresses had transient non-fatal errors -----\n<ann@far.example>\n",
        ),
        ReportKind.DELAYED,
    ),
    Sample(
        "exchange 5.5",
        plain(
            "System Administrator <postmaster@far.example>",
            "Undeliverable: March news",
            "Your message\n\n  To:      list@sender.example\n  Subject: March news\n  Sent:    Mon, 2 Mar 2026 10:00:00\n\n"
            "did not reach the following recipient(s):\n\nann@far.example on Mon, 2 Mar 2026 10:00:01\n    The recipient name is not recognized\n"
            "\tMSEXCH:IMS:Far:SITE:MX 0 (000C05A6) Unknown Recipient",
        ),
        says="The recipient name is not recognized",
    ),
    Sample(
        "exchange 2010",
        plain(
            "Microsoft Outlook <postmaster@far.example>",
            "Undeliverable: March news",
            "Delivery has failed to these recipients or distribution lists:\n\nann@far.example<mailto:ann@far.example>\nThe recipient's mailbox is full.\n\n"
            "Diagnostic information for administrators:\n\nGenerating server: mx.far.example\n\nann@far.example\n#550 5.2.2 mailbox full ##",
        ),
        code=550,
        status="5.2.2",
        says="5.2.2 mailbox full",
    ),
    Sample(
        "microsoft smtpsvc in HTML only",
        parts(
            "postmaster@far.example",
            "Delivery Status Notification (Failure)",
            "multipart/mixed",
            "Content-Type: text/html\n\n<html><head><style>p{}</style></head><body><p>Delivery to the following recipients failed.</p>"
            "<p>&nbsp;ann@far.example</p></body></html>",
        ),
        says="recipients failed",
    ),
    Sample(
        "domino",
        plain(
            "Postmaster@far.example",
            "DELIVERY FAILURE: User ann (ann@far.example) not listed in Domino Directory",
            "Your message\n\n  Subject: March news\n\nwas not delivered to:\n\n  ann@far.example\n\nbecause:\n\n"
            "  User ann (ann@far.example) not listed in Domino Directory",
        ),
        says="not listed in Domino Directory",
    ),
    Sample(
        "groupwise",
        plain(
            "Mailer-Daemon@far.example",
            "Message status - undeliverable",
            "The message that you sent was undeliverable to the following:\n\tann@far.example (user not found)\n\nPossibly truncated original message follows:\n",
        ),
        says="user not found",
    ),
    Sample(
        "google, old form",
        plain(
            "Mail Delivery Subsystem <mailer-daemon@googlemail.example>",
            "Delivery Status Notification (Failure)",
            "Delivery to the following recipient failed permanently:\n\n     ann@far.example\n\nTechnical details of permanent failure:\n"
            "Google tried to deliver your message, but it was rejected by the server for the recipient domain far.example by mx.far.example.\n\n"
            f"The error that the other server returned was:\n550 5.1.1 User unknown\n\n----- Original message -----\n\n{ORIGINAL}",
            "X-Failed-Recipients: ann@far.example\n",
        ),
        code=550,
        status="5.1.1",
        says="550 5.1.1 User unknown",
        returned=True,
    ),
    Sample(
        "google, address not found",
        plain(
            "Mail Delivery Subsystem <mailer-daemon@googlemail.example>",
            "Delivery Status Notification (Failure)",
            "** Address not found **\n\nYour message wasn't delivered to ann@far.example because the address couldn't be found, or is unable to receive mail.\n\n"
            "The response from the remote server was:\n550 5.1.1 The email account that you tried to reach does not exist.",
        ),
        code=550,
        status="5.1.1",
        says="does not exist",
    ),
    Sample(
        "yahoo",
        plain(
            "MAILER-DAEMON@yahoo.example",
            "Failure Notice",
            "Sorry, we were unable to deliver your message to the following address.\n\n<ann@far.example>:\n554: delivery error: dd This user doesn't have"
            f" a far.example account (ann@far.example) [0] - mta1.far.example\n\n--- Below this line is a copy of the message.\n\n{ORIGINAL}",
        ),
        code=554,
        says="doesn't have",
        returned=True,
    ),
    Sample(
        "aol",
        plain(
            "Mail Delivery Subsystem <MAILER-DAEMON@far.example>",
            "Returned mail: User unknown",
            "Your mail to the following recipients could not be delivered because they are not accepting mail from news@sender.example:\n\tann@far.example\n",
        ),
        says="not accepting mail",
    ),
    Sample(
        "zoho",
        plain(
            "mailer-daemon@mail.far.example",
            "Undelivered Mail Returned to Sender",
            "This message was created automatically by mail delivery software.\n A message that you sent could not be delivered to one or more of its"
            " recipients. This is a permanent error.\n\nann@far.example, ERROR CODE :550 - 5.1.1 User does not exist: ann@far.example\n",
        ),
        code=550,
        status="5.1.1",
        says="User does not exist",
    ),
    Sample(
        "yandex",
        plain(
            "mailer-daemon@yandex.example",
            "Недоставленное сообщение",
            "Это письмо отправлено почтовым сервером.\n\nК сожалению, мы вынуждены сообщить Вам о том, что Ваше письмо не может быть доставлено"
            " одному или нескольким адресатам.\n\n<ann@far.example>: host mx.far.example said: 550 5.7.1 No such user!",
        ),
        code=550,
        status="5.7.1",
        says="No such user",
    ),
    Sample(
        "mail.ru",
        plain(
            "mailer-daemon@corp.mail.example",
            "Mail failure.",
            "This message was created automatically by the mail system.\n\nA message that you sent could not be delivered to one or more of its recipients."
            " The following address(es) failed:\n\nann@far.example:\n  unknown user",
        ),
        says="unknown user",
    ),
    Sample(
        "qq and netease",
        plain(
            "PostMaster@qq.example",
            "系统退信",
            "抱歉，您的邮件被退回来了……\n原邮件信息：\n收件人：ann@far.example\n退信原因：收件人邮箱不存在 550 Mailbox not found",
        ),
        code=550,
        says="Mailbox not found",
    ),
    Sample(
        "gmx",
        plain(
            '"GMX Mailer Daemon" <mailer-daemon@gmx.example>',
            "Mail delivery failed: returning message to sender",
            "This message was created automatically by mail delivery software.\n\nA message that you sent could not be delivered to\none or more of its"
            " recipients. This is a permanent error.\n\nThe following address failed:\n\nann@far.example:\nSMTP error from remote server for RCPT TO command,"
            " host: mx.far.example (192.0.2.7) reason: 550 5.1.1 mailbox unavailable",
        ),
        code=550,
        status="5.1.1",
        says="mailbox unavailable",
    ),
    Sample(
        "t-online in German",
        plain("Mailer-Daemon@t-online.example", "Unzustellbare E-Mail", "|------------------------- Nachricht nicht zugestellt an:\n\nann@far.example: Postfach voll"),
        says="Postfach voll",
    ),
    Sample(
        "courier",
        plain(
            '"Courier mail server at far.example" <@>',
            "NOTICE: mail delivery status.",
            "This is a delivery status notification from far.example,\nrunning the Courier mail server.\n\nUNDELIVERABLE MAIL\n\nYour message to the following"
            " recipients cannot be delivered:\n\n<ann@far.example>:\n    mx.far.example [192.0.2.8]:\n >>> RCPT TO:<ann@far.example>\n <<< 550 User unknown.",
        ),
        code=550,
        says="User unknown",
    ),
    Sample(
        "mdaemon",
        plain(
            "MDaemon at far.example <MDaemon@far.example>",
            "MDaemon Notification -- Attachment Removed or Delivery Failure",
            "The attached message had PERMANENT fatal delivery errors!\n\nThe following addresses did NOT receive a copy of your message:\n\n> ann@far.example\n\n"
            "--- Session Transcript ---\n--> RCPT To:<ann@far.example>\n<-- 550 <ann@far.example>, Recipient unknown",
        ),
        code=550,
        says="Recipient unknown",
    ),
    Sample(
        "mailenable",
        plain(
            "Mail Delivery System <postmaster@far.example>",
            "Message Delivery Failure",
            "MailEnable: Message Delivery Failure.\n\nThe following recipient(s) could not be reached:\n\n\tRecipient: [SMTP:ann@far.example]\n\tReason: Remote SMTP"
            " Server Returned: 550 No such mailbox",
        ),
        code=550,
        says="550 No such mailbox",
    ),
    Sample(
        "hmailserver",
        plain(
            "mailer-daemon@far.example",
            "Message undeliverable: March news",
            "Your message did not reach some or all of the intended recipients.\n\n   Sent: Mon, 2 Mar 2026\n   Subject: March news\n\nThe following recipient(s)"
            " could not be reached:\n\nann@far.example\n   Error Type: SMTP\n   Remote server (192.0.2.9) issued an error.\n   hMailServer sent: RCPT TO:<ann@far.example>\n"
            "   Remote server replied: 550 5.1.1 unknown\n\nhMailServer",
        ),
        code=550,
        status="5.1.1",
        says="550 5.1.1 unknown",
    ),
    Sample(
        "smartermail",
        plain(
            "System Administrator <postmaster@far.example>",
            "Delivery Failure",
            "Could not deliver message to the following recipient(s):\n\nFailed Recipient: ann@far.example\nReason: Remote host said: 550 unknown user\n\n"
            "   -- The header and top 20 lines of the message follows --\n",
        ),
        code=550,
        says="550 unknown user",
    ),
    Sample("imail", plain("Postmaster <postmaster@far.example>", "Undeliverable Mail", "Unknown user: ann@far.example\n\nOriginal message follows.\n\n" + ORIGINAL, "X-Mailer: <SMTP32 v8.0>\n"), says="Unknown user", returned=True),
    Sample(
        "kerio and communigate",
        plain("MAILER-DAEMON@far.example", "Undeliverable mail: March news", "Failed to deliver to 'ann@far.example'\nLOCAL module(account ann) reports:\n account is full (quota exceeded)\n"),
        says="quota exceeded",
    ),
    Sample(
        "messagelabs",
        plain(
            "MAILER-DAEMON@messagelabs.example",
            "Mail Delivery Failure",
            "This is the mail delivery agent at messagelabs.example.\nI was unable to deliver your message to the following addresses:\n\nann@far.example\n\n"
            "Reason: 550 Invalid recipient <ann@far.example> (#5.1.1)",
        ),
        code=550,
        status="5.1.1",
        says="Invalid recipient",
    ),
    Sample(
        "opensmtpd",
        plain(
            "Mailer Daemon <MAILER-DAEMON@far.example>",
            "Delivery status notification: error",
            "    Hi!\n\n    This is the MAILER-DAEMON, please DO NOT REPLY to this email.\n\n    An error has occurred while attempting to deliver a message for\n"
            "    the following list of recipients:\n\nann@far.example: 550 Invalid recipient\n\n    Below is a copy of the original message:\n\n" + ORIGINAL,
        ),
        code=550,
        says="550 Invalid recipient",
        returned=True,
    ),
    Sample(
        "james",
        plain("postmaster@far.example", "[BOUNCE] March news", "Hi. This is the James mail server at far.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\n\nann@far.example\n\nError message: 550 no such user"),
        code=550,
        says="no such user",
    ),
    Sample(
        "docomo",
        plain(
            "Mail Administrator<Postmaster@docomo.example>",
            "Undeliverable Mail",
            "------TRANSCRIPT OF SESSION FOLLOWS------\n... while talking to mfsmax.docomo.example.:\n>>> RCPT To:<ann@far.example>\n<<< 550 Unknown user ann@far.example\n"
            "554 <ann@far.example>... Service unavailable",
        ),
        code=550,
        says="Unknown user",
    ),
    Sample(
        "au",
        plain(
            "Mail Delivery Subsystem <Postmaster@ezweb.example>",
            "Mail System Error - Returned Mail",
            "The user(s) account is disabled.\n\n<ann@far.example>\n\n: host lsean.ezweb.example said: 550 ann@far.example: User unknown",
        ),
        code=550,
        says="User unknown",
    ),
    Sample("softbank in Japanese", plain("MAILER-DAEMON@softbank.example", "配信不能", "次の宛先へのメールは配信できませんでした。\nann@far.exampleは存在しません。\n"), says="存在しません"),
    # ---- bounces in other languages
    Sample("french", plain("postmaster@far.example", "Non remis : March news", "Échec de la remise aux destinataires suivants :\n\nann@far.example\nAdresse introuvable #5.1.1"), status="5.1.1", says="Adresse introuvable"),
    Sample("spanish", plain("postmaster@far.example", "No se puede entregar: March news", "No se ha podido entregar el mensaje a:\n\nann@far.example\n\nEl buzón está lleno."), says="buzón está lleno"),
    Sample("italian", plain("postmaster@far.example", "Non recapitabile: March news", "Impossibile recapitare il messaggio a ann@far.example: la casella è piena"), says="piena"),
    Sample("portuguese", plain("postmaster@far.example", "Não é possível entregar: March news", "Falha na entrega a estes destinatários:\n\nann@far.example\nO endereço não existe."), says="não existe"),
    Sample("dutch", plain("postmaster@far.example", "Onbestelbaar: March news", "Het bericht kan niet worden bezorgd bij:\n\nann@far.example\nDe mailbox bestaat niet."), says="bestaat niet"),
    Sample("polish", plain("postmaster@far.example", "Niedostarczone: March news", "Nie można dostarczyć wiadomości do odbiorcy ann@far.example. Skrzynka jest pełna."), says="pełna"),
    Sample("russian", plain("postmaster@far.example", "Не удалось доставить: March news", "Сообщение не доставлено следующим получателям:\n\nann@far.example\nЯщик переполнен."), says="переполнен"),
    Sample("chinese", plain("postmaster@far.example", "无法投递", "您的邮件无法发送到以下收件人：\n\nann@far.example\n该地址不存在。"), says="不存在"),
    Sample("turkish", plain("postmaster@far.example", "Teslim edilemedi: March news", "İleti şu alıcılara teslim edilemedi:\n\nann@far.example\nKullanıcı bulunamadı."), says="bulunamadı"),
    Sample("swedish", plain("postmaster@far.example", "Det går inte att leverera: March news", "Kan inte leverera till:\n\nann@far.example\nAdressen finns inte."), says="finns inte"),
    Sample("nobody named", plain("MAILER-DAEMON@far.example", "Mail could not be delivered", "The mail could not be delivered. Exceeded maximum attempts."), addresses=("",)),
    # ---- complaints
    Sample(
        "ARF",
        arf("Feedback-Type: abuse\nUser-Agent: FBL/1\nVersion: 1\nOriginal-Rcpt-To: <ann@FAR.example>\nSource-IP: 192.0.2.10\n"),
        ReportKind.COMPLAINT,
        returned=True,
        feedback_type="abuse",
    ),
    Sample(
        "ARF, redacted",
        arf("Feedback-Type: abuse\nVersion: 1\n", ORIGINAL.replace("ann@far.example", "redacted@comcast.example")),
        ReportKind.COMPLAINT,
        addresses=("",),
        returned=True,
        feedback_type="abuse",
    ),
    Sample("ARF, fraud", arf("Feedback-Type: Fraud\nVersion: 1\n"), ReportKind.COMPLAINT, returned=True, feedback_type="fraud"),
    Sample("ARF, opt-out", arf("Feedback-Type: opt-out\nRemoval-Recipient: ann@far.example\n"), ReportKind.COMPLAINT, returned=True, feedback_type="opt-out"),
    Sample("ARF, not spam", arf("Feedback-Type: not-spam\n"), ReportKind.OTHER, returned=True, feedback_type="not-spam"),
    Sample("ARF, auth-failure", arf("Feedback-Type: auth-failure\nAuth-Failure: dmarc\n"), ReportKind.OTHER, returned=True, feedback_type="auth-failure"),
    Sample(
        "JMRP",
        parts(
            "staff@hotmail.example",
            "complaint about message from 192.0.2.10",
            "multipart/mixed",
            f"Content-Type: message/rfc822\n\nX-HmXmrOriginalRecipient: ann@far.example\n{ORIGINAL}\nHello\n",
        ),
        ReportKind.COMPLAINT,
        returned=True,
        feedback_type="",
    ),
    Sample(
        "complaint known by its subject",
        parts("abuse@provider.example", "Email Abuse Report", "multipart/mixed", "Content-Type: text/plain\n\nA user says that this is spam.\n", f"Content-Type: message/rfc822\n\n{ORIGINAL}\nHello\n"),
        ReportKind.COMPLAINT,
        returned=True,
        feedback_type="",
    ),
    # ---- not bounces
    Sample("out of office", plain("Ann <ann@far.example>", "Automatic reply: March news", "I am out of the office until Monday.", "Auto-Submitted: auto-replied\n"), ReportKind.AUTO_REPLY, ()),
    Sample("vacation without headers", plain("Ann <ann@far.example>", "Re: March news", "I am on vacation and my mailbox is full.", "In-Reply-To: <20260302.1@sender.example>\n"), ReportKind.AUTO_REPLY, (), returned=True),
    Sample("a colleague left", plain("Ann <ann@far.example>", "Re: March news", "Ann no longer works here. Please write to bob@far.example.", "Auto-Submitted: auto-replied\n"), ReportKind.AUTO_REPLY, ()),
    Sample("german", plain("Ann <ann@far.example>", "Abwesenheitsnotiz: März", "Ich bin bis Montag im Urlaub."), ReportKind.AUTO_REPLY, ()),
    Sample("japanese", plain("Ann <ann@far.example>", "自動返信：お知らせ", "ただいま不在です。"), ReportKind.AUTO_REPLY, ()),
    Sample(
        "MDN",
        parts(
            "Ann <ann@far.example>",
            "Read: March news",
            "multipart/report; report-type=disposition-notification",
            "Content-Type: text/plain\n\nYour message was read.\n",
            "Content-Type: message/disposition-notification\n\nFinal-Recipient: rfc822;ann@far.example\nDisposition: manual-action/MDN-sent-manually; displayed\n",
        ),
        ReportKind.AUTO_REPLY,
        (),
    ),
    Sample("boxbe", plain("Boxbe <noreply@boxbe.example>", "March news (Action Required)", "Ann uses Boxbe. Add yourself to my guest list."), ReportKind.CHALLENGE, ()),
    Sample("tmda", plain("Ann <ann-confirm@far.example>", "Please confirm your message", "Please confirm that you sent this message by replying to this mail."), ReportKind.CHALLENGE, ()),
    Sample(
        "DMARC",
        parts("noreply@dmarc.example", "Report domain: sender.example Submitter: far.example Report-ID: 17", "multipart/mixed", 'Content-Type: application/gzip; name="far.example!sender.example!1772409600!1772495999.xml.gz"\nContent-Transfer-Encoding: base64\n\nH4sI\n'),
        ReportKind.DMARC,
        (),
    ),
    Sample(
        "TLSRPT",
        parts("tls@far.example", "Report Domain: sender.example Submitter: far.example Report-ID: <2>", 'multipart/report; report-type="tlsrpt"', "Content-Type: text/plain\n\nTLS report\n", "Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64\n\nH4sI\n", headers="TLS-Report-Domain: sender.example\n"),
        ReportKind.TLS,
        (),
    ),
    Sample("a person", "From: Bob <bob@far.example>\nSubject: Re: March news\n\nThanks! Can you send me the old one as well? 550 words are enough.\n", ReportKind.OTHER, ()),
    Sample("a person who forwards a bounce", "From: Bob <bob@far.example>\nSubject: Fwd: Undelivered Mail\n\nLook what I got:\n\n<ann@far.example>: 550 5.1.1 User unknown\n", ReportKind.OTHER, ()),
]  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_what_a_system_writes_is_understood(sample: Sample) -> None:
    report = read_report(sample.content)
    first = report.recipients[0] if report.recipients else Reported("")

    assert report.kind is sample.kind
    assert tuple(reported.address for reported in report.recipients) == sample.addresses
    assert (first.code, first.status) == (sample.code, sample.status)
    assert sample.says in (first.diagnostic or first.words)
    assert report.feedback_type == sample.feedback_type
    assert (report.returned.message_id == "<20260302.1@sender.example>") is sample.returned


def test_there_is_a_sample_for_sixty_systems() -> None:
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES) >= 60
