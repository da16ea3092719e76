"""TLS contexts for the connections that we open: made once, shared, with session resumption."""

import functools
import ssl
from typing import Any, Literal

MAX_SESSIONS = 10_000  # remembered for resumption, of each context; about 3 KB each
MINIMUM = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


class ResumingContext(ssl.SSLContext):
    """Offers the peer the TLS session of the last connection to the same host name (RFC 8446 2.2, RFC 5077).

    asyncio and uvloop make their SSL object by `wrap_bio` and hand no session over, hence the override.
    """

    _sessions: dict[str, ssl.SSLSession]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if session is None and isinstance(server_hostname, str):
            session = self._sessions.get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def remember(self, server_hostname: str, session: ssl.SSLSession | None) -> None:
        """Keep `session` for the next connection. Call it after data came: TLS 1.3 sends tickets then."""
        if session is None or not session.has_ticket:
            return
        self._sessions.pop(server_hostname, None)  # so that the order is by age
        self._sessions[server_hostname] = session
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]


@functools.cache
def client_context(
    check: Literal["", "names", "dane"], minimum: str = "TLSv1.2", trust: str | None = None
) -> ResumingContext:
    """The context for STARTTLS and implicit TLS, one object for each combination, so that sessions never mix.

    `check`: `names`: the certificate must be valid for the host name, by the CAs of the PEM file `trust`, or the
    system's; `dane`: whoever uses it looks at `peer_chain` after the handshake; else any certificate will do (RFC 7435:
    some protection most of the time). `minimum`: `TLSv1.2` or `TLSv1.3`.
    """
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context._sessions = {}
    context.minimum_version = MINIMUM[minimum]
    if check != "names":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif trust is not None:
        context.load_verify_locations(cafile=trust)
    else:
        context.load_default_certs()
    return context


@functools.cache
def web_context(trust: str | None = None) -> ssl.SSLContext:
    """The context for HTTPS: valid certificates by the CAs of the PEM file `trust`, or the system's.

    `ssl.create_default_context` is not used, because it refuses more CAs from Python 3.13 on than before.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust is not None:
        context.load_verify_locations(cafile=trust)
    else:
        context.load_default_certs()
    return context


def describe(ssl_object: Any) -> str:
    """`TLSv1.3 TLS_AES_256_GCM_SHA384`, or "" for a connection in clear."""
    if ssl_object is None:
        return ""
    cipher = ssl_object.cipher()
    return f"{ssl_object.version()} {cipher[0] if cipher else '?'}"


def peer_chain(ssl_object: ssl.SSLObject) -> list[bytes]:
    """The certificates that the peer presented, in DER, its own first; nobody has checked them.

    Empty for a resumed session: OpenSSL does not keep them.
    """
    if hasattr(ssl_object, "get_unverified_chain"):  # Python 3.13
        return list(ssl_object.get_unverified_chain())
    chain = ssl_object._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]
