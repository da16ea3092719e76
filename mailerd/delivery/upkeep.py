"""What goes on beside the mail: looking at brakes and sources again, sharing limits with other nodes, drawing budgets.

Every worker reads; what one of a node is enough for (checks of sources, grants, policies ahead of their end, reports)
is done by the first one.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine

import structlog

from mailerd.delivery.dispatcher import Dispatcher
from mailerd.delivery.effects import Effect, Effects
from mailerd.delivery.grants import Grants
from mailerd.delivery.mta_sts import StsPolicies
from mailerd.delivery.source_watch import SourceStates, SourceWatch
from mailerd.delivery.tls_reports import TlsReports
from mailerd.delivery.warmup_budgets import WarmUps
from mailerd.queue.commit import LOST
from mailerd.queue.store import QueueStore

log = structlog.get_logger()

EVERY = 1.0  # seconds
EXCHANGE_EVERY = 2.0
READ_AGAIN = 5.0  # seconds: what was notified while nobody listened
ONCE_MORE = (2.0, 10.0)  # seconds after a reason has gone: what was being put off for it meanwhile
# Reasons of due times that a limit gave, which may be another one by now: never those of replies.
OF_LIMITS = (
    r"^warm-up of ",
    r"^(message|byte) rate of ",
    r"^(connections|rate) learnt from its replies \(",
    r"^(\S+|this host|all sources) to .+: [a-z ]+ \(.+\)$",
)
REPORTS = "TLS reports"  # name of a task
STOP = 2.0  # seconds for what has to be written down at the end


class Upkeep:
    """The background work of one worker; `first` does what one of a node is enough for."""

    def __init__(
        self,
        *,
        effects: Effects,
        states: SourceStates,
        watch: SourceWatch,
        grants: Grants,
        warmups: WarmUps,
        policies: StsPolicies,
        reports: TlsReports,
        dispatcher: Dispatcher,
        store: QueueStore,
        first: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._effects = effects
        self._states = states
        self._watch = watch
        self._grants = grants
        self._warmups = warmups
        self._policies = policies
        self._reports = reports
        self._dispatcher = dispatcher
        self._store = store
        self._first = first
        self._now = monotonic
        self._joined = monotonic()
        self._exchanged = monotonic()
        self._known_pools: list[str] = []
        self._nodes: list[str] = []
        self._gone: set[int] = set()  # effects that ended early, which nobody was told yet
        self._released = False  # a source may be used again, which nobody was told yet
        self._widely = False  # also what waits for effects that hold
        self._anew = False  # mail may wait for a limit or source that a reload took away
        # When mail is to be let go, that waits for which effects, or anew; at the start, for what was cancelled before.
        self._free_at: list[tuple[float, set[int], bool]] = [(-math.inf, set(), True)]
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._braking: dict[tuple[str, str, str, str], asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Look once, and go on looking until `stop()`."""
        work: list[tuple[Coroutine[object, object, None], str]] = [
            (self._look_again(), "traffic"),
            (self._warmups.run(), "warm-ups"),
            (self._reports.run(), REPORTS),
        ]
        if self._first:
            await self._guarded(self._watch.look_at_addresses)
            work += [(self._watch.run(), "sources"), (self._policies.run(), "MTA-STS")]
        await self._guarded(self._grants.begin)
        await self._guarded(self._read)
        self._tasks = [asyncio.create_task(coroutine, name=name) for coroutine, name in work]

    def seen(self, nodes: list[str]) -> None:
        """These nodes are alive, as of the last beat."""
        self._nodes = nodes
        self._grants.seen(nodes)

    def changed(self) -> None:
        """Somebody says that effects or sources are others now."""
        self._changed.set()

    def reconfigured(self) -> None:
        """Limits and sources may be others now: whatever waits for one is looked at again."""
        self._anew = True
        self._changed.set()

    def brake(self, effect: Effect) -> None:
        """Let an effect hold; the same one is not asked for twice at the same time."""
        key = (effect.rule, effect.source, effect.provider, effect.site)
        if key not in self._braking:
            task = asyncio.create_task(self._brake(effect), name="brake")
            self._braking[key] = task
            task.add_done_callback(lambda _: self._braking.pop(key, None))

    async def stop(self) -> None:
        """Write down what is only in memory, and end."""
        # The reports end by themselves; the books of the warm-ups are closed when nobody draws any more.
        reports = [task for task in self._tasks if task.get_name() == REPORTS]
        await _cancelled([task for task in [*self._tasks, *self._braking.values()] if task not in reports])
        try:
            async with asyncio.timeout(STOP):
                await self._warmups.stop()
                await self._reports.stop()
                await asyncio.gather(*reports, return_exceptions=True)
        except TimeoutError:
            log.warning("upkeep.cut_off")
        except LOST as error:
            log.warning("upkeep.interrupted", error=str(error))
        await _cancelled(reports)
        self._tasks = []
        await self._policies.close()

    async def _brake(self, effect: Effect) -> None:
        try:
            added = await self._effects.add(effect)
        except LOST as error:
            log.warning("effect.lost", rule=effect.rule, error=str(error))
            return
        log.warning(
            "effect.made",
            id=added.id,
            kind=added.kind,
            source=added.source,
            provider=added.provider,
            site=added.site,
            until=added.until.isoformat(),
            reason=added.reason,
            rule=added.rule,
        )

    async def _look_again(self) -> None:
        read_at = self._now()
        while True:
            try:
                async with asyncio.timeout(EVERY):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._grants.look()
            if self._changed.is_set() or self._now() - read_at > READ_AGAIN:
                self._changed.clear()
                read_at = self._now()
                await self._guarded(self._read)
            await self._guarded(self._let_go)
            if self._first and self._now() - self._exchanged >= EXCHANGE_EVERY:
                self._exchanged = self._now()
                await self._guarded(self._exchange)

    async def sweep(self) -> None:
        """Give mail of pools that nothing can be sent for a reason, forget old effects; to be called now and then."""
        known, idle = self._dispatcher.idle_pools()
        if self._first and (idle or known != self._known_pools):  # it reads all queues
            await self._store.give_reasons((known, idle))
            self._known_pools = known
        if self._first:
            await self._effects.forget()

    async def _read(self) -> None:
        self._gone |= {effect.id for effect in await self._effects.refresh()}
        failing = self._states.failing
        if await self._states.refresh():
            self._dispatcher.leave_sources(self._states.failing)
            self._released |= any(name not in self._states.failing for name in failing)

    async def _let_go(self) -> None:
        """What was held back for a reason that is gone may leave. Should the database go away here, next time."""
        if self._gone or self._released or self._anew:
            self._dispatcher.look_again()
            gone, anew = self._gone, self._anew
            self._widely |= anew or self._released
            self._gone, self._released, self._anew = set(), False, False
            self._free_at += [(self._now() + seconds, gone, anew) for seconds in (0.0, *ONCE_MORE)]
        if due := [each for each in self._free_at if each[0] <= self._now()]:
            if self._first:
                await self._free(set().union(*(gone for _, gone, _ in due)), anew=any(anew for _, _, anew in due))
            self._free_at = [each for each in self._free_at if each not in due]
            self._dispatcher.claims.wake()

    async def _free(self, gone: set[int], *, anew: bool) -> None:
        """Let go in the database what waits for these effects, or, `anew`, for any effect or limit that is no more."""
        reasons = [f"^effect {id_}:" for id_ in sorted(gone)]
        if anew:
            await self._dispatcher.hasten(
                [*OF_LIMITS, *reasons], effects=[effect.id for effect in self._effects.active]
            )
        elif reasons:
            await self._dispatcher.hasten(reasons)
        # What waits for an effect that holds would only be put off again, a million queues for nothing; unless other
        # sources or rules may let it go elsewhere.
        await self._store.unblock(but_for=[] if self._widely else [effect.id for effect in self._effects.active])
        self._widely = False

    async def _exchange(self) -> None:
        await self._grants.exchange(self._nodes, joined=self._joined)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except LOST as error:
            log.warning("upkeep.interrupted", error=str(error))
        except Exception:
            log.exception("upkeep.failed")


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
