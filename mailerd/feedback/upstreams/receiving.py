"""What upstream services post to us becomes the same claims as mail that comes back, and is acted upon in the same way.

A service is believed for its own mail only as far as the token or Message-ID in its event goes: an event that leads to
no mail of ours changes nothing but a counter.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog

from mailerd import metrics
from mailerd.clock import utc_now
from mailerd.config import Config, Upstream
from mailerd.delivery.https import Outside
from mailerd.delivery.personal import RETURN_PATH
from mailerd.errors import Unavailable
from mailerd.feedback.consequences import Found
from mailerd.feedback.joining import Trail
from mailerd.feedback.reading import Reported
from mailerd.feedback.recording import Claim, Recorder, Said
from mailerd.feedback.upstreams import mailgun, postmark, sendgrid, ses
from mailerd.feedback.upstreams.values import Forged, Happened, Headers, UpstreamEvent
from mailerd.wire.smtp import printable
from mailerd.wire.tokens import Tokens

log = structlog.get_logger()

SAID = {
    Happened.BOUNCED: Said.BOUNCED,
    Happened.COMPLAINED: Said.COMPLAINED,
    Happened.UNSUBSCRIBED: Said.UNSUBSCRIBED,
}
MAX_EVENTS = 5_000  # of one request
MAX_WORDS = 1_000  # characters
FETCH = 10.0  # seconds for a certificate or a confirmation
MAX_CERTIFICATE = 16_384  # bytes
MAX_CERTIFICATES = 20
MAX_SEEN = 100_000  # requests
REMEMBERED = 2 * mailgun.RECENT  # a request may come from a clock that is ahead, and again when that time has passed


class Received(NamedTuple):
    """Of how many recipients something was said, and for how many something followed."""

    events: int
    followed: int


class Upstreams:
    """Takes requests of the services in the configuration. Certificates of Amazon are fetched by `outside`.

    The time of the world outside counts.
    """

    def __init__(
        self,
        config: Config,
        recorder: Recorder,
        secret: bytes,
        outside: Outside,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._recorder = recorder
        self._tokens = Tokens(secret, RETURN_PATH)
        self._outside = outside
        self._clock = clock
        self._certificates: dict[str, bytes] = {}
        self._seen: dict[tuple[str, str], datetime] = {}  # requests of Mailgun, in the order they came
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Who is listened to from now on. Raises OSError for a key file that cannot be read."""
        self._upstreams = {name: (upstream, _key(upstream)) for name, upstream in config.upstreams.items()}

    def knows(self, name: str) -> bool:
        return name in self._upstreams

    async def receive(self, name: str, headers: Headers, body: bytes) -> Received:
        """Act on a request to a service that is known; durable when this returns.

        A request of Mailgun that this process has acted upon changes nothing when it comes again. Raises Forged,
        Unreadable, Unavailable; then nothing has changed.
        """
        upstream, key = self._upstreams[name]
        match upstream.kind:
            case "ses":
                return await self._record(name, await self._of_amazon(key, body))
            case "sendgrid":
                sendgrid.check(key, headers, body, self._clock())
                return await self._record(name, sendgrid.read(body))
            case "postmark":
                postmark.check(key, headers, body)
                return await self._record(name, postmark.read(body))
            case _:
                return await self._once(name, mailgun.check(key, body, self._clock()), mailgun.read(body))

    async def _once(self, name: str, token: str, events: Iterator[UpstreamEvent]) -> Received:
        """Mailgun signs its token, not what it says: who has seen a request could say anything with it."""
        now = self._clock()
        while self._seen and (len(self._seen) >= MAX_SEEN or now - next(iter(self._seen.values())) > REMEMBERED):
            del self._seen[next(iter(self._seen))]
        if (name, token) in self._seen:
            log.info("upstream.repeated", upstream=name)
            return Received(0, 0)
        self._seen[name, token] = now
        try:
            return await self._record(name, events)
        except BaseException:
            self._seen.pop((name, token), None)
            raise

    async def _record(self, name: str, events: Iterator[UpstreamEvent]) -> Received:
        told = list(_first(events))
        claims = [claim for event in told if (claim := self._claim(event, name)) is not None]
        recorded = await self._recorder.record(claims)
        effects = [outcome.consequences.what for outcome in recorded.outcomes]
        for event in told:
            metrics.report_received(f"upstream_{event.happened}", "token" if event.token else "message_id")
        for effect in effects:
            metrics.report_followed(effect)
        log.info("upstream.received", upstream=name, events=len(told), claims=len(claims), effects=effects[:20])
        return Received(len(told), len(effects))

    async def _of_amazon(self, topic: str, body: bytes) -> Iterator[UpstreamEvent]:
        notification = ses.decode(topic, body)
        ses.check(notification, await self._certificate(notification.signing_cert_url), self._clock())
        if url := ses.confirmation(notification):
            await self._fetch(url, 64 * 1024)
            log.info("upstream.confirmed", topic=topic)
        return ses.read(notification)

    async def _certificate(self, url: str) -> bytes:
        if url not in self._certificates:
            if len(self._certificates) >= MAX_CERTIFICATES:
                self._certificates.clear()
            self._certificates[url] = await self._fetch(url, MAX_CERTIFICATE)
        return self._certificates[url]

    async def _fetch(self, url: str, most: int) -> bytes:
        try:
            return await self._outside.get(url, content_type=None, most=most, timeout=FETCH)
        except ValueError as error:
            raise Forged(str(error)) from None
        except Exception as error:  # whatever the network does: they come again
            log.warning("upstream.unreachable", url=url, error=repr(error))
            raise Unavailable("Amazon could not be asked") from None

    def _claim(self, event: UpstreamEvent, name: str) -> Claim | None:
        said = SAID.get(event.happened)
        if said is None:  # a delay is theirs to retry, a delivery we have counted when they took the mail
            return None
        token = self._tokens.read(event.token)
        trail = Trail("token", (token,)) if token else Trail("message_id", message_id=event.message_id, vouched=True)
        words = printable(event.text)[:MAX_WORDS]
        reported = Reported(
            printable(event.address)[:320],
            action="failed" if said is Said.BOUNCED else "",
            status=_status(event),
            code=event.code,
            diagnostic=words,
        )
        return Claim(said, trail, (reported,), Found(name, f"upstream:{name}"), event.feedback_type)


def _status(event: UpstreamEvent) -> str:
    """Theirs; where they say nothing else, at least whether it is for good."""
    if event.happened is not Happened.BOUNCED:
        return ""
    if event.permanent is False and event.status.startswith("5"):
        return "4" + event.status[1:]
    return event.status or ("5.0.0" if event.permanent else "4.0.0")


def _first(events: Iterable[UpstreamEvent]) -> Iterator[UpstreamEvent]:
    for number, event in enumerate(events):
        if number == MAX_EVENTS:
            log.warning("upstream.too_many", most=MAX_EVENTS)
            return
        yield event


def _key(upstream: Upstream) -> str:
    return upstream.key if upstream.key is not None else Path(str(upstream.key_file)).read_text("utf-8").strip()
