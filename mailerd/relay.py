"""The relay put together: everything between a submission and its delivery, for one worker."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

from mailerd.campaigns.analytics.retention import RetentionStore
from mailerd.campaigns.tracking.marking import Marking
from mailerd.clock import utc_now
from mailerd.config import Config
from mailerd.config.shaping import BUILTIN_NAME, ShapingRules, builtin_shaping, parse_shaping
from mailerd.db import Pool
from mailerd.delivery.attempt import Attempts
from mailerd.delivery.dispatcher import Dispatcher
from mailerd.delivery.effects import Effect, Effects, EffectStore
from mailerd.delivery.explain import ConfigText, Explainer
from mailerd.delivery.grants import Grants, GrantStore
from mailerd.delivery.identity import Identity
from mailerd.delivery.ledger import Ledger
from mailerd.delivery.mta_sts import StsPolicies, StsStore
from mailerd.delivery.notices import Notices
from mailerd.delivery.personal import Personal
from mailerd.delivery.rendering import NoRenderer, Renderer
from mailerd.delivery.resolver import Resolver
from mailerd.delivery.routing import Router
from mailerd.delivery.settler import Settler
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.source_watch import SourceStates, SourceStore, SourceWatch
from mailerd.delivery.sources import Sources
from mailerd.delivery.tls_policy import TlsOutcome
from mailerd.delivery.tls_reports import TlsReports, TlsResultStore
from mailerd.delivery.traffic import Traffic
from mailerd.delivery.upkeep import Upkeep
from mailerd.delivery.warmup_budgets import WarmUps, WarmUpStore
from mailerd.feedback.aggregates import AggregateStore
from mailerd.intake.idempotency import IdempotencyStore
from mailerd.intake.submission import Submitter
from mailerd.queue import journal
from mailerd.queue.commit import GroupCommit
from mailerd.queue.ids import IdMaker, first_id_at
from mailerd.queue.screening import Suppressions
from mailerd.queue.store import QueueStore
from mailerd.queue.suppression import SuppressionStore
from mailerd.queue.workers import WorkerStore


def pause_after(seconds: float) -> float:
    """How long not to read whole tables again after it took so long: a backlog must not cost more than 1 %."""
    return seconds * 100 if seconds > 0.1 else 0.0


def journal_path(data_dir: str, worker: int) -> Path:
    return Path(data_dir) / "journal" / str(worker)


def ledger_path(data_dir: str) -> Path:
    return Path(data_dir) / "ledger"


def builtin_rules() -> ShapingRules:
    """The shaping rules that ship with mailerd."""
    return parse_shaping({BUILTIN_NAME: builtin_shaping()})


class Relay:
    """`submitter` takes mail in, `dispatcher` sends it; `worker` numbers the lease that owns what is in memory.

    `slot` is which of the node's `workers` this one is, from 0; `node` the installation among those that share the
    database; `rules` the shaping rules; `ledger` where the node counts, when not in its data directory; `secret` is
    that of the installation (CredentialStore.secret); `renderer` makes the content of mail that has none.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        worker: int,
        *,
        workers: int = 1,
        slot: int = 0,
        node: str = "",
        rules: ShapingRules | None = None,
        ledger: Path | None = None,
        clock: Callable[[], datetime] = utc_now,
        silent_for: Callable[[], float] = lambda: 0.0,
        secret: bytes,
        renderer: Renderer | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._forget_after = 0.0  # of the monotonic clock
        self._pool = pool
        self._node = node
        self._rules = rules or builtin_rules()
        book = RuleBook(self._rules, config.delivery)
        self._first = slot == 0
        self._ledger_path = ledger or ledger_path(config.data_dir)
        self.ledger = Ledger(self._ledger_path, slot, workers)
        self.journal = journal.Journal(journal_path(config.data_dir, worker))
        self.suppressions = SuppressionStore(pool, config.suppression)
        self._screening = Suppressions(self.suppressions, clock)
        self.store = QueueStore(pool, keep_bodies=config.retention.bodies > 0, suppressions=self.suppressions)
        self.idempotency = IdempotencyStore(pool)
        self.resolver = Resolver(config.resolver)
        self._settler = Settler(
            self.store,
            self.journal,
            worker=worker,
            settled=lambda recipients: self.dispatcher.release(recipients),
            claimed=lambda: self.dispatcher.claims.claimed(),
            taken_again=lambda recipient: self.dispatcher.taken_again(recipient),
        )
        ids = IdMaker(worker, lambda: int(time.time() * 1000))
        # As many event loops as cores: signing in them costs least. Fewer: a thread uses the core that is left.
        self._signers = ThreadPoolExecutor(1, "dkim") if workers < len(os.sched_getaffinity(0)) else None
        self.identity = Identity(config)
        self._notices = Notices(config, ids.next)
        self._personal = Personal(config, secret)
        self._marking = Marking(config, secret)
        self._attempts = Attempts(
            config,
            store=self.store,
            identity=self.identity,
            settler=self._settler,
            notices=self._notices,
            journal=self.journal,
            clock=clock,
            personal=self._personal,
            renderer=renderer or NoRenderer(),
            suppressions=self._screening,
            signers=self._signers,
        )
        self.effects = Effects(EffectStore(pool), clock)
        self._warmups = WarmUps(config, WarmUpStore(pool), clock)
        self.states = SourceStates(config, SourceStore(pool), node)
        self._watch = SourceWatch(config, SourceStore(pool), self.resolver, node, clock=clock)
        self._reports = TlsReports(
            config, TlsResultStore(pool), resolver=self.resolver, submit=self._report, clock=clock
        )
        self._policies = StsPolicies(
            StsStore(pool),
            self.resolver,
            clock=clock,
            note=self._note_tls,
            allow_private=config.delivery.allow_private,
        )
        self._router = Router(config, self.resolver, sts=self._policies, note=self._note_tls)
        self._sources = Sources(config, lambda: self.states.failing)
        grants = Grants(GrantStore(pool), self.ledger, node)
        self.traffic = Traffic(
            config,
            book,
            ledger=self.ledger,
            effects=self.effects,
            warmups=self._warmups,
            grants=grants,
            clock=clock,
            brake=self._brake,
        )
        self.dispatcher = Dispatcher(
            config,
            router=self._router,
            sources=self._sources,
            traffic=self.traffic,
            tls_outcome=self._reports.note,
            store=self.store,
            leases=WorkerStore(pool),
            journal=self.journal,
            attempts=self._attempts,
            settler=self._settler,
            worker=worker,
            clock=clock,
            silent_for=silent_for,
            withdrawn=lambda: self._commit.withdrawn,
        )
        self.upkeep = Upkeep(
            effects=self.effects,
            states=self.states,
            watch=self._watch,
            grants=grants,
            warmups=self._warmups,
            policies=self._policies,
            reports=self._reports,
            dispatcher=self.dispatcher,
            store=self.store,
            first=self._first,
        )
        self._commit = GroupCommit(
            self.store,
            worker=worker,
            keep=self.dispatcher.keep,
            kept=self.dispatcher.offer,
            left=self.dispatcher.left,
            dropped=self.dispatcher.drop,
            clock=clock,
        )
        self.submitter = Submitter(
            config,
            commit=self._commit,
            store=self.store,
            suppressions=self._screening,
            notices=self._notices,
            wake=self.dispatcher.claims.wake,
            worker=worker,
            memory=self.dispatcher,
            mark=self._marking,
            idempotency=self.idempotency,
            ids=ids,
            clock=clock,
            workers=workers,
        )

    def reconfigure(self, config: Config, identity: Identity, rules: ShapingRules) -> None:
        """Work by these from now on; `identity` is that of `config`. What is in hand and what was counted stays."""
        self._config = config
        self._rules = rules
        self.identity = identity
        self.suppressions.reconfigure(config.suppression)
        self._notices.reconfigure(config)
        self._personal.reconfigure(config)
        self._marking.reconfigure(config)
        self._attempts.reconfigure(config, identity)
        self._router.reconfigure(config)
        self._sources.reconfigure(config)
        self.states.reconfigure(config)
        self._watch.reconfigure(config)
        self._warmups.reconfigure(config)
        self._reports.reconfigure(config)
        self._policies.reconfigure(allow_private=config.delivery.allow_private)
        self.traffic.reconfigure(config, RuleBook(rules, config.delivery))
        self.dispatcher.reconfigure(config)
        self.upkeep.reconfigured()
        self.submitter.reconfigure(config)

    async def start(self) -> None:
        """Look at what holds (sources, brakes, budgets), and go on looking."""
        await self.upkeep.start()

    def explainer(self, text: ConfigText) -> Explainer:
        """Says why mail waits, as of now; `text` is that of the configuration in force."""
        return Explainer(
            self._config,
            self._rules,
            self._pool,
            self._router,
            ledger=self._ledger_path,
            node=self._node,
            text=text,
            clock=self._clock,
        )

    def _brake(self, effect: Effect) -> None:
        self.upkeep.brake(effect)

    def _note_tls(self, outcome: TlsOutcome) -> None:
        self._reports.note(outcome, "")

    async def _report(self, sender: str, recipient: str, content: bytes) -> None:
        await self.submitter.submit_report(sender, recipient, content)

    async def sweep(self) -> None:
        """Expire what is over, mend and forget what accumulates; to be called every now and then.

        What reads whole tables is done by the first worker of the node.
        """
        now = self._clock()
        retention = self._config.retention
        await self.dispatcher.claims.expire()
        self.dispatcher.forget_unblocked()
        if not self._first:
            return
        await self.store.mend_queues(now)
        await self.upkeep.sweep()
        if (begun := time.monotonic()) < self._forget_after:
            return
        bodies_before = int((now - timedelta(seconds=retention.bodies)).timestamp() * 1000)
        await self.store.forget(now=now, bodies_before=first_id_at(bodies_before) if retention.bodies else None)
        await self.suppressions.forget(now)
        await AggregateStore(self._pool).forget(now - timedelta(seconds=retention.events))
        await RetentionStore(self._pool).forget(now - timedelta(seconds=retention.events))
        await self.idempotency.forget(now - timedelta(seconds=retention.idempotency_keys))
        self._forget_after = time.monotonic() + pause_after(time.monotonic() - begun)

    async def drained(self) -> None:
        """Wait until what was submitted is committed and every result so far is recorded."""
        await self._commit.drained()
        await self._settler.drained()

    async def stop(self, seconds: float = 10.0) -> None:
        """Let what is under way end, for so long; put back the rest."""
        await self._commit.drained()
        await self.dispatcher.stop(seconds)
        await self.upkeep.stop()
        await self.resolver.close()
        self.ledger.close()
        if self._signers is not None:
            self._signers.shutdown(wait=False)
