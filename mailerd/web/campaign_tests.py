"""The mail of a campaign, sent to a few addresses that want to see it: it counts for nothing."""

from collections.abc import Sequence

import msgspec
from aiohttp import web

from mailerd.campaigns.compliance import Sample
from mailerd.campaigns.values import Campaign
from mailerd.errors import Refused
from mailerd.intake.envelope import Origin, Receipt
from mailerd.queue.ids import format_message_id
from mailerd.web import problems
from mailerd.web.bodies import Email, NamedAddress
from mailerd.web.campaign_bodies import TestedMail, TestResult
from mailerd.web.composing import TEST_MARK, Prepared, prepare_email
from mailerd.web.idempotency import earlier, key_of
from mailerd.web.operations import JSON, Call
from mailerd.web.problems import ProblemError
from mailerd.web.services import Result


async def send_test(call: Call, body: bytes, campaign: Campaign, sample: Sample, to: Sequence[str]) -> web.Response:
    """Send the sample to these addresses, as the campaign's sender; 202 when one of them was taken."""
    mails = [_mail(call, campaign, sample, address, n) for n, address in enumerate(to)]

    def respond(results: Sequence[Result]) -> bytes:
        data = [_told(address, result) for address, result in zip(to, results, strict=True)]
        return problems.encode(
            TestResult(campaign_id=campaign.name_outside, subject=TEST_MARK + sample.subject, data=data)
        )

    outcome = await call.services.submitter.submit_batch(
        [(mail.envelope, mail.content) for mail in mails],
        Origin(protocol="http", peer=call.peer, helo="", tls="", credential=call.caller),
        key_of(call, body),
        202,
        respond,
    )
    if not isinstance(outcome, tuple):
        return earlier(call, outcome)
    results, response = outcome
    refused = [result for result in results if isinstance(result, Refused)]
    if len(refused) == len(results):
        raise problems.of_refusal(refused[0])
    return web.Response(status=202, body=response, content_type=JSON)


def _mail(call: Call, campaign: Campaign, sample: Sample, to: str, n: int) -> Prepared:
    moved = {"/from": "/sender_email", "/from/email": "/sender_email", "/from/name": "/sender_name"}
    try:
        return prepare_email(
            Email(
                from_=NamedAddress(email=campaign.sender_email, name=campaign.sender_name),
                to=[to],
                reply_to=campaign.reply_to or [],
                subject=TEST_MARK + sample.subject,
                html=sample.html,
                text=sample.text,
                stream=campaign.options.stream,
                pool=campaign.options.pool,
                unsubscribe=False,
            ),
            call.services.limits,
        )
    except ProblemError as problem:
        faults = [
            msgspec.structs.replace(
                each, pointer=f"/to/{n}" if each.pointer.startswith("/to") else moved.get(each.pointer, "")
            )
            for each in problem.errors
        ]
        raise problems.invalid(faults) if faults else problem from None


def _told(to: str, result: Result) -> TestedMail:
    if not isinstance(result, Receipt):
        return TestedMail(to=to, email_id=None, detail=result.text)
    if not result.recipients:
        return TestedMail(to=to, email_id=None, detail="It is suppressed.")
    return TestedMail(to=to, email_id=format_message_id(result.message_id), detail="")
