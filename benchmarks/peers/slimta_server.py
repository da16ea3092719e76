"""A relay of python-slimta, run by its own interpreter: `slimta_server.py PORT SINK [TLS_SINK CERTIFICATE KEY]`."""
# mypy: ignore-errors

import ssl
import sys

import gevent
from slimta.edge.smtp import SmtpEdge
from slimta.queue import Queue
from slimta.queue.dict import DictStorage
from slimta.relay import Relay
from slimta.relay.smtp.static import StaticSmtpRelay

PROCESSES = 2
CONNECTIONS = 20  # to the sink, each process; kept while there is mail


class ToSink(Relay):
    """By the recipient's domain: one port of the sink in clear, one with STARTTLS."""

    def __init__(self, clear, encrypted):
        super().__init__()
        self._clear, self._encrypted = clear, encrypted

    def attempt(self, envelope, attempts):
        encrypted = envelope.recipients[0].endswith("@tls.example")
        return (self._encrypted if encrypted else self._clear).attempt(envelope, attempts)


def relay(port):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    settings = {"ehlo_as": "bench.localhost", "idle_timeout": 5.0, "context": context}
    return StaticSmtpRelay("127.0.0.1", port, pool_size=CONNECTIONS, **settings)


def main(port, sink, tls_sink=None, certificate=None, key=None):
    listener = gevent.socket.socket()
    listener.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen(1000)
    for _ in range(PROCESSES - 1):
        if not gevent.os.fork():
            break
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    queue = Queue(
        DictStorage(), ToSink(relay(int(sink)), relay(int(tls_sink or sink))), backoff=lambda envelope, attempts: 5.0
    )
    queue.start()
    edge = SmtpEdge(listener, queue, max_size=52_428_800, context=context, hostname="bench.localhost")
    edge.start()
    edge.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
