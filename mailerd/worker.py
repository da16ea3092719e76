"""A worker: one process, one event loop, the whole way of a message."""

import asyncio
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec
import structlog
import uvloop

from mailerd import failpoints, logs, metrics
from mailerd.assignment import Assignment, Control, read_assignment
from mailerd.campaigns.analytics.follower import CampaignFollower
from mailerd.campaigns.contacts.following import ContactFollower
from mailerd.campaigns.contacts.imports.importer import Importer
from mailerd.campaigns.desk import CampaignDesk
from mailerd.campaigns.queued import QueuedMail
from mailerd.campaigns.runner.service import CampaignSending
from mailerd.campaigns.templates.rendering import PreparedCache
from mailerd.campaigns.tracking.classifier import Classifier
from mailerd.campaigns.values import CHANNEL as CAMPAIGNS
from mailerd.clock import utc_now
from mailerd.config import Config
from mailerd.config.documents import Documents, parse_reloaded
from mailerd.config.shaping import ShapingRules
from mailerd.db import Pool, connect_pool
from mailerd.delivery import verdict
from mailerd.delivery.effects import CHANNEL as TRAFFIC
from mailerd.delivery.explain import ConfigText
from mailerd.delivery.https import Outside
from mailerd.delivery.identity import Identity
from mailerd.delivery.ledger import handed_on
from mailerd.delivery.verdict_book import VerdictBook
from mailerd.feedback.following import Following
from mailerd.feedback.inbound import build_inbound
from mailerd.feedback.sink_checks import check_sinks
from mailerd.feedback.sinks import Sinks
from mailerd.feedback.upstreams.receiving import Upstreams
from mailerd.feedback.webhooks.service import Webhooks
from mailerd.feedback.webhooks.store import CHANNEL as WEBHOOKS
from mailerd.intake.authenticator import Authenticator
from mailerd.intake.credentials import CredentialStore
from mailerd.intake.shares import Shares
from mailerd.intake.smtp_content import Memory
from mailerd.intake.smtp_listener import SmtpListener, server_context
from mailerd.intake.smtp_service import limits_of
from mailerd.processes import Ebb, give_back
from mailerd.queue.commit import LOST
from mailerd.queue.control import CHANNEL, UNBLOCK_ALL, ControlStore, Selection
from mailerd.queue.workers import BEAT_EVERY, Watch, WorkerStore
from mailerd.relay import Relay, pause_after

if TYPE_CHECKING:
    from mailerd.web.service import HttpService

log = structlog.get_logger()

SWEEP_EVERY = 15.0  # seconds between looks for expired and forgotten mail
LISTEN_AGAIN = 1.0
FOLLOWER_CONNECTIONS = 5
STOP_INTAKE = 10.0  # seconds for SMTP transactions under way
STOP_FOLLOWERS = 5.0
STOP_DELIVERY = 12.0  # seconds for attempts under way; those cut off are in doubt


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker works by: the configuration, and what was loaded for it."""

    config: Config
    text: ConfigText
    rules: ShapingRules
    verdicts: VerdictBook
    identity: Identity
    tls: ssl.SSLContext | None


def main() -> None:
    """Run the worker that standard input describes, until SIGTERM."""
    assignment = read_assignment()
    settings = load_settings(assignment, assignment.documents)
    logs.set_up(settings.config.log)
    uvloop.run(Worker(settings, assignment).run())


def load_settings(assignment: Assignment, documents: Documents) -> Settings:
    """Make all that can be wrong with a configuration. Raises `ConfigError`, and `OSError` for a bad certificate."""
    new = parse_reloaded(assignment.started, documents, os.environ)
    config = msgspec.structs.replace(
        new.config, hostname=new.config.hostname or _own_name(), data_dir=assignment.data_dir
    )
    text = ConfigText(documents.path, documents.text)
    identity = Identity(config, documents.keys)
    check_sinks(config.sinks, documents.path, documents.text)
    tls = server_context(config.tls, documents.keys)
    return Settings(config, text, new.rules, VerdictBook(new.verdicts), identity, tls)


@cache
def _own_name() -> str:
    """Asked once: it may take a name server, and should not change while we run."""
    return socket.getfqdn()


async def listen(
    url: str,
    hearing: Mapping[str, Callable[[str], None]],
    *,
    begun: Callable[[], Awaitable[None]],
    again: float = LISTEN_AGAIN,
) -> None:
    """Hand on what is told by NOTIFY on these channels, for ever; a lost connection is replaced after `again` seconds.

    `begun` is awaited whenever nothing is missed any more: what was told before that was told to nobody.
    """
    while True:
        lost = asyncio.Event()
        connection = None
        try:
            connection = await asyncpg.connect(url)
            connection.add_termination_listener(lambda _, lost=lost: lost.set())
            for channel, hear in hearing.items():
                await connection.add_listener(channel, lambda *heard, hear=hear: hear(str(heard[-1])))
            await begun()
            await lost.wait()
        except LOST as error:
            log.warning("recall.interrupted", error=str(error))
        except Exception:
            log.exception("recall.failed")
        finally:
            if connection is not None:
                connection.terminate()
        await asyncio.sleep(again)


def tame_collector() -> None:
    """What was built at the start stays for good, and messages hold no cycles: look for garbage seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


class Worker:
    """Builds everything from the configuration, runs it, and takes it down in order."""

    def __init__(self, settings: Settings, assignment: Assignment) -> None:
        self._settings = settings
        self._assignment = assignment
        self._workers = len(os.sched_getaffinity(0)) if settings.config.workers == "auto" else settings.config.workers
        self._stopping = asyncio.Event()
        self._sweep_now = asyncio.Event()
        self._last_beat = time.monotonic()
        self._http: HttpService | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        control = Control(self._assignment.control)
        async with control.held():
            await self._start()
            if failpoints.ON:
                failpoints.reached("start.listening")
            tame_collector()
            control.ready()
            orders = asyncio.create_task(control.follow(self._reload), name="reload")
            await self._stopping.wait()
            orders.cancel()
            await self._stop()

    async def _start(self) -> None:
        config = self._settings.config
        verdict.use(self._settings.verdicts)
        self._pool = await connect_pool(self._assignment.database_url, min=1, max=config.database.connections)
        self._leases = WorkerStore(self._pool, keep_bodies=config.retention.bodies > 0)
        self._credentials = CredentialStore(self._pool)
        self._number = await self._leases.register(self._assignment.node, os.getpid())
        if failpoints.ON:
            failpoints.reached("lease.taken")
        self._last_beat = time.monotonic()
        prepared = PreparedCache()
        self._sending = CampaignSending(
            config,
            self._pool,
            secret=await self._credentials.secret(),
            pause=lambda *which: self._campaigns.pause(*which),
            clock=utc_now,
            prepared=prepared,
        )
        self._relay = Relay(
            config,
            self._pool,
            self._number,
            workers=self._workers,
            slot=self._assignment.slot,
            node=self._assignment.node,
            rules=self._settings.rules,
            ledger=handed_on(self._assignment.ledger) if self._assignment.ledger >= 0 else None,
            silent_for=lambda: time.monotonic() - self._last_beat,
            secret=await self._credentials.secret(),
            renderer=self._sending.renderer,
        )
        self._relay.upkeep.seen(sorted({worker.node for worker in await self._leases.all()}))
        await self._relay.start()
        if failpoints.ON:
            failpoints.reached("start.relay")
        self._control = ControlStore(self._pool, keep_bodies=config.retention.bodies > 0)
        queued = QueuedMail(self._control, utc_now)
        self._campaigns = CampaignDesk(
            lambda: self._settings.config, self._pool, queue=queued, clock=utc_now, prepared=prepared
        )
        await self._sending.start(self._assignment.database_url, self._relay.submitter, self._relay.suppressions)
        await self._start_followers()
        self._memory = Memory(config.smtp.data_memory)
        self._background = [
            asyncio.create_task(work, name=name)
            for work, name in (
                (self._beat(), "beat"),
                (self._sweep(), "sweep"),
                (self._share_counts(), "metrics"),
                (self._listen(), "recall"),
                (self._relay.dispatcher.claims.run(), "dispatcher"),
            )
        ]
        await self._open_listeners()

    async def _start_followers(self) -> None:
        """One worker of a node is enough, and of all nodes one follows. They have connections of their own."""
        self._followers: Pool | None = None
        self._webhooks = Webhooks(self._settings.config, self._pool, utc_now)
        if self._assignment.slot != 0:
            return
        url = self._assignment.database_url
        self._followers = await connect_pool(url, min=0, max=FOLLOWER_CONNECTIONS, idle=60.0)
        self._following = Following(url, self._followers)
        self._sinks = Sinks(self._following, self._followers, self._settings.config.sinks)
        self._sinks.start()
        self._campaign_follower = CampaignFollower(self._following)
        self._campaign_follower.start()
        self._contact_follower = ContactFollower(self._following, self._relay.suppressions)
        self._contact_follower.start()
        self._webhooks.start_telling(url, self._followers)
        self._classifier = Classifier(self._followers, self._settings.config, utc_now)
        self._classifying = asyncio.create_task(self._classifier.run(), name="hits told")
        self._scheduling = asyncio.create_task(self._campaigns.scheduler.run(self._stopping), name="scheduler")
        importer = Importer(url, self._followers, self._relay.suppressions, await self._credentials.secret())
        self._importing = asyncio.create_task(importer.run(), name="importer")

    async def _stop_followers(self) -> None:
        """What they have not recorded by then comes again."""
        try:
            async with asyncio.timeout(STOP_FOLLOWERS):
                await asyncio.gather(self._webhooks.stop(), self._stop_sinks())
        except TimeoutError:
            log.warning("followers.cut_off")
        if self._followers is not None:
            self._followers.terminate()

    async def _stop_sinks(self) -> None:
        if self._followers is not None:
            self._classifying.cancel()
            self._scheduling.cancel()
            self._importing.cancel()
            await self._sinks.stop()
            await self._following.stop()

    async def _open_listeners(self) -> None:
        config = self._settings.config
        self._authenticator = Authenticator(self._credentials, failures=config.smtp.auth_failures)
        self._inbound = build_inbound(
            config,
            self._pool,
            submitter=self._relay.submitter,
            suppressions=self._relay.suppressions,
            provider_of=self._relay.traffic.provider_of,
            secret=await self._credentials.secret(),
            clock=utc_now,
        )
        outside = Outside(self._relay.resolver, allow_private=False)
        self._upstreams = Upstreams(config, self._inbound.recorder, await self._credentials.secret(), outside)
        shares = Shares(Path(config.data_dir) / "connections", self._assignment.slot, self._workers)
        self._listeners = [
            SmtpListener(
                config.listeners[index],
                socket.socket(fileno=descriptor),
                limits=limits_of(config.listeners[index], config),
                hostname=config.hostname,
                submitter=self._relay.submitter,
                authenticator=self._authenticator,
                memory=self._memory,
                inbound=self._inbound,
                tls=self._settings.tls,
                shares=shares,
            )
            for descriptor, index in self._assignment.listeners
        ]
        for listener in self._listeners:
            listener.start()
        if config.http is None:
            return
        from mailerd.web.service import HttpService  # at the start or never; 4 MB that a relay by SMTP alone is spared

        self._http = HttpService(
            lambda: self._settings.config,
            self._relay,
            self._pool,
            url=self._assignment.database_url,
            node=self._assignment.node,
            secret=await self._credentials.secret(),
            authenticator=self._authenticator,
            upstreams=self._upstreams,
            webhooks=self._webhooks.desk,
            campaigns=self._campaigns,
            control=self._control,
            text=lambda: self._settings.text,
            ping=self._leases.ping,
            stopping=self._stopping.is_set,
        )
        await self._http.start(self._assignment.http)

    # another configuration

    async def _reload(self, documents: Documents) -> None:
        """Take on another configuration, or raise and go on with the one we have. No connection is closed."""
        # What can fail does so before anything changes, and what takes long happens beside the mail.
        new, old = await asyncio.to_thread(load_settings, self._assignment, documents), self._settings
        if failpoints.ON:
            failpoints.reached("reload.loaded")
        try:
            self._take_on(new)
        except BaseException:
            self._take_on(old)
            raise
        self._settings = new
        if failpoints.ON:
            failpoints.reached("reload.taken_on")
        if self._followers is not None:
            await self._sinks.reconfigure(new.config.sinks)
        log.info("worker.reloaded", number=self._number)

    def _take_on(self, settings: Settings) -> None:
        config = settings.config
        verdict.use(settings.verdicts)
        self._relay.reconfigure(config, settings.identity, settings.rules)
        self._sending.reconfigure(config)
        self._authenticator.reconfigure(config.smtp.auth_failures)
        self._inbound.reconfigure(config)
        self._upstreams.reconfigure(config)
        self._webhooks.reconfigure(config)
        if self._followers is not None:
            self._classifier.reconfigure(config)
        self._memory.reconfigure(config.smtp.data_memory)
        if self._http is not None:
            self._http.reconfigure(config)
        for listener, (_, index) in zip(self._listeners, self._assignment.listeners, strict=True):
            bound = config.listeners[index]
            listener.reconfigure(bound, limits=limits_of(bound, config), hostname=config.hostname, tls=settings.tls)

    # in the background

    async def _beat(self) -> None:
        """Hold our lease, and take over from workers that no longer hold theirs."""
        watch = Watch()
        while True:
            await asyncio.sleep(BEAT_EVERY)
            begun = time.monotonic()
            try:
                if not await self._leases.beat(self._number):
                    log.error("worker.declared_dead", number=self._number)
                    os.kill(os.getpid(), signal.SIGKILL)  # others have our mail: send nothing more, settle nothing more
                self._last_beat = begun
                if failpoints.ON:
                    failpoints.reached("lease.renewed")
                asked = time.monotonic()
                living = await self._leases.all()
                answered = time.monotonic()
                self._relay.upkeep.seen(sorted({worker.node for worker in living}))
                for dead in watch.dead(living, asked, answered):
                    freed = await self._leases.release(dead.number, None)
                    log.warning("worker.taken_over", number=dead.number, node=dead.node, recipients=freed)
                    self._relay.dispatcher.claims.wake()
            except LOST as error:
                watch.blind()
                log.warning("beat.missed", error=str(error))
            except Exception:  # such as a full disk; without a beat this worker would never send again
                watch.blind()
                log.exception("beat.failed")

    async def _sweep(self) -> None:
        count_after = 0.0  # of the monotonic clock
        while True:
            try:
                self._sweep_now.clear()
                await self._relay.sweep()
                if self._assignment.slot == 0 and (begun := time.monotonic()) >= count_after:  # one of us is enough
                    metrics.waiting(await self._relay.store.depth())
                    count_after = time.monotonic() + pause_after(time.monotonic() - begun)
            except LOST as error:
                log.warning("sweep.interrupted", error=str(error))
            except Exception:
                log.exception("sweep.failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_EVERY):
                    await self._sweep_now.wait()

    async def _share_counts(self) -> None:
        ebb = Ebb()
        while True:
            await asyncio.sleep(1.0)
            metrics.memory(self._relay.dispatcher.recipients_in_hand, self._relay.dispatcher.bytes_in_hand)
            metrics.flush()
            if ebb.seen(self._relay.dispatcher.bytes_in_hand + self._memory.used):
                give_back()

    async def _listen(self) -> None:
        """Follow what operators tell all workers."""
        hearing: dict[str, Callable[[str], None]] = {
            CHANNEL: self._on_recall,
            TRAFFIC: lambda _: self._relay.upkeep.changed(),
            CAMPAIGNS: lambda _: self._sending.wake(),
            WEBHOOKS: self._webhooks.heard,
        }
        await listen(self._assignment.database_url, hearing, begun=self._catch_up)

    async def _catch_up(self) -> None:
        """Do what may have been told while nobody listened: above all, what was held is not sent."""
        self._recalled(self._relay.dispatcher.recall_these(await self._leases.held(self._number)))
        self._relay.upkeep.changed()
        self._sending.wake()
        self._relay.dispatcher.look_again()

    def _on_recall(self, payload: str) -> None:
        selection = msgspec.json.decode(payload, type=Selection)
        dispatcher = self._relay.dispatcher
        self._recalled(dispatcher.recall(selection))
        if selection == UNBLOCK_ALL:
            dispatcher.unblock()
        dispatcher.claims.wake()
        self._sweep_now.set()

    def _recalled(self, recipients: int) -> None:
        if recipients:
            log.info("mail.recalled", recipients=recipients)

    # the end

    async def _stop(self) -> None:
        """Take nothing more in, finish what is under way, put back the rest, give up the lease."""
        log.info("worker.stopping", number=self._number)
        followers = asyncio.create_task(self._stop_followers(), name="stop followers")  # no mail waits for them
        await asyncio.gather(
            *(listener.stop(STOP_INTAKE) for listener in self._listeners),
            *([self._http.stop_taking()] if self._http is not None else []),
        )
        if failpoints.ON:
            failpoints.reached("stop.intake")
        await self._sending.stop()
        await self._campaigns.steerer.stop()
        if self._http is not None:
            await self._http.stop()
        await self._relay.stop(STOP_DELIVERY)
        await asyncio.gather(followers, return_exceptions=True)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        # What was cut off is still ours, and the journal says which of it may have been sent.
        freed = await self._leases.release(self._number, self._relay.journal.read())
        if failpoints.ON:
            failpoints.reached("stop.released")
        self._relay.journal.remove()
        await self._pool.close()
        log.info("worker.stopped", number=self._number, released=freed)
