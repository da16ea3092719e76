"""Who is calling: API keys as bearer tokens (RFC 6750)."""

import re
from ipaddress import ip_address

from mailerd.intake.credentials import Credential
from mailerd.web.operations import Call
from mailerd.web.problems import ProblemError

BEARER = re.compile(r"Bearer +([\x21-\x7e]{1,512})", re.IGNORECASE)
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")  # a proxy speaks for somebody who is elsewhere


async def authorize(call: Call, scope: str) -> Credential:
    """The owner of the request's API key; raises `ProblemError` 401 without a valid one, 403 without the scope."""
    match = BEARER.fullmatch(call.request.headers.get("Authorization", ""))
    authenticator = call.services.authenticator
    credential = await authenticator.token(match[1], call.peer) if match else None
    if credential is None:
        detail = "Send the header `Authorization: Bearer` with a valid API key."
        raise ProblemError(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="mailerd"'})
    if scope not in credential.scopes:
        raise ProblemError(403, "forbidden", f"This needs an API key with the scope {scope}.")
    return credential


def is_local(call: Call) -> bool:
    """True when the request was made on this very machine, and not by a proxy for somebody else."""
    try:
        local = ip_address(call.peer.partition("%")[0]).is_loopback
    except ValueError:
        return False
    return local and not any(name in call.request.headers for name in FORWARDED)
