"""What is asked of TLS towards the hosts of a domain, and what came of it. Pure.

A policy is what the operator wrote into a route, else what the domain publishes: DANE (RFC 7672) before MTA-STS
(RFC 8461), else encryption if the host offers it (RFC 7435). The router finds it, the session enforces it, and what
came of it goes into the reports of RFC 8460.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Mode: TypeAlias = Literal["none", "opportunistic", "required", "verify", "implicit", "sts", "dane"]
PolicyType: TypeAlias = Literal["sts", "tlsa", "no-policy-found"]

SUCCESS = "success"
# RFC 8460 section 4.3, as far as a sender can tell them apart
STARTTLS_NOT_SUPPORTED = "starttls-not-supported"
CERTIFICATE_HOST_MISMATCH = "certificate-host-mismatch"
CERTIFICATE_EXPIRED = "certificate-expired"
CERTIFICATE_NOT_TRUSTED = "certificate-not-trusted"
VALIDATION_FAILURE = "validation-failure"  # of any other kind; `detail` says which
TLSA_INVALID = "tlsa-invalid"
DNSSEC_INVALID = "dnssec-invalid"
STS_POLICY_FETCH_ERROR = "sts-policy-fetch-error"
STS_POLICY_INVALID = "sts-policy-invalid"
STS_WEBPKI_INVALID = "sts-webpki-invalid"


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """What a session has to achieve. Equal policies ask for the same: sessions to a host may be shared among them.

    `mode`: `none`, `opportunistic`, `required` (any certificate), `verify`, `implicit` (as RouteRule.tls); `sts`: a
    certificate for a host name that one of the patterns `mx` allows, unless `testing`, which only reports; `dane`: what
    the TLSA records of the host say (Host.tlsa), and for hosts without any what `mx` says, else opportunistic.
    `minimum`: the oldest TLS, `TLSv1.2` or `TLSv1.3`. `named`: the hosts are those that the operator wrote, so that a
    certificate for one of them proves that it is the right one; what unsigned DNS names proves nothing.

    `domain` and `lines` are for reports only and make no difference: the domain (A-labels) that this policy was looked
    up for, "" where a route of ours decides, and the MTA-STS policy as its domain published it.
    """

    mode: Mode = "opportunistic"
    minimum: str = "TLSv1.2"
    mx: tuple[str, ...] = ()
    testing: bool = False
    named: bool = False
    domain: str = field(default="", compare=False)
    lines: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        sts = ("MTA-STS, testing" if self.testing else "MTA-STS") if self.mx else ""
        if self.mode == "dane":
            return f"DANE, {sts}" if sts else "DANE"
        return sts or self.mode

    def proves(self, name: str, *, signed: bool) -> bool:
        """Whether a certificate for the host `name`, or of its TLSA records (`signed`), shows that mail belongs there.

        That is what REQUIRETLS wants of the way to the name (RFC 8689 section 4.2.1).
        """
        return self.named or signed or (bool(self.mx) and self.allows_host(name))

    def allows_host(self, name: str) -> bool:
        """Whether MTA-STS lets mail go to the host `name` (RFC 8461 section 4.1); true without MTA-STS."""
        return not self.mx or any(matches_mx(name, pattern) for pattern in self.mx)


class TlsOutcome(NamedTuple):
    """What came of TLS in one session, or in the try to open one, for the report to `domain` (RFC 8460).

    `policy`: the lines of the policy that applied: those of the MTA-STS policy, or the TLSA records of the host
    (`3 1 1 0123…`), or none. `mx` is the host's name, "" when it went wrong before there was one; `mx_ip` likewise.
    `result`: `success` or a result type of section 4.3; `detail` says in words what went wrong.
    """

    domain: str
    policy_type: PolicyType
    policy: tuple[str, ...]
    mx: str
    mx_ip: str
    result: str
    detail: str = ""


def matches_mx(name: str, pattern: str) -> bool:
    """Whether a host name fits an `mx` pattern; `*.` stands for exactly one label (RFC 8461 section 4.1)."""
    name, pattern = name.lower().rstrip("."), pattern.lower().rstrip(".")
    if pattern.startswith("*."):
        label, _, rest = name.partition(".")
        return bool(label) and rest == pattern[2:]
    return name == pattern
