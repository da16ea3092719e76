"""TLS between a protocol of asyncio and its transport, for the load and the sink."""

import asyncio
import ssl
from contextlib import suppress

PIECE = 65_536  # bytes; a record of TLS has 16 KB at most


class Channel:
    """One end of TLS after STARTTLS. It has no task and no buffer of its own: asyncio's layer would cost twice as much,
    and both ends of it stand in every figure.

    A handshake that fails is an ssl.SSLError of `take`.
    """

    def __init__(self, context: ssl.SSLContext, transport: asyncio.Transport, *, server_side: bool) -> None:
        self._transport = transport
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._coming, self._going, server_side=server_side)
        self.ready = False
        self._shake_hands()

    def take(self, data: bytes) -> bytes:
        """What the peer's bytes say; nothing before the handshake is over."""
        self._coming.write(data)
        if not self.ready:
            self._shake_hands()
        parts = []
        if self.ready:
            with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while part := self._ssl.read(PIECE):
                    parts.append(part)
            self._flush()
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        self._ssl.write(data)
        self._flush()

    def _shake_hands(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._ssl.do_handshake()
            self.ready = True
        self._flush()

    def _flush(self) -> None:
        if self._going.pending:
            self._transport.write(self._going.read())


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def client_context() -> ssl.SSLContext:
    """Believes any certificate, as most mail does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
