"""Why mail waits: the route, the sources, every limit and brake of its paths, and what would happen next.

Nothing is taken, sent or written. Whoever asks, a command beside the daemon or one of its workers, sees the same: the
counts of this node are read from its ledger, effects, budgets, sources and queues from the database, the rest is made
of the configuration and the shaping rules.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path as FilePath

from msgspec.structs import replace

from mailerd.config import Config
from mailerd.config.places import exact_line_in
from mailerd.config.shaping import DEFAULT, ShapingRules
from mailerd.db import Pool
from mailerd.delivery.control import Pace
from mailerd.delivery.destination import PATIENCE
from mailerd.delivery.effects import Effects, EffectStore
from mailerd.delivery.explained import (
    Destination,
    Explanation,
    Limit,
    PathView,
    Refusal,
    Rule,
    SuppressedView,
    Target,
    Waiting,
    WaitingQueue,
    effect_view,
    suppressed_view,
)
from mailerd.delivery.grants import Grants, GrantStore
from mailerd.delivery.ledger import Ledger, Record
from mailerd.delivery.paths import Constraint, Path, Wait, of_meter
from mailerd.delivery.routing import Host, NoRoute, Route, Router
from mailerd.delivery.shaping import RuleBook
from mailerd.delivery.source_watch import SourceStates, SourceStore
from mailerd.delivery.sources import Source, Sources
from mailerd.delivery.traffic import Traffic
from mailerd.delivery.verdict import Outcome
from mailerd.delivery.warmup_budgets import WarmUps, WarmUpStore
from mailerd.queue.control import Selection
from mailerd.queue.ids import names_campaign
from mailerd.queue.mail import Queue
from mailerd.queue.suppression import CAMPAIGNS, SuppressionStore, Wanted
from mailerd.queue.trace import TraceStore
from mailerd.queue.views import QueueView
from mailerd.queue.waiting import WaitingStore, WaitingView
from mailerd.wire.address import domain_to_ascii

MOST_RECIPIENTS = 1_000  # of a message that are shown
MOST_DOMAINS = 20  # of a message that are explained: each may have to ask DNS
MOST_QUEUES = 20
TENANT = "default"  # whose mail is meant when nobody says
REFUSED = "it would be refused: {told}"
GIVEN_UP = "no attempt, it would be given up when it is due: {told}"
LATELY = 60.0  # seconds since the last message in which the rate of a path says something
BY_DOMAIN = "providers that are told by the recipient's domain: ask for an address instead of a path"
NOT_HERE = "what this node has open and has sent lately is unknown: {reason}"
GONE = "there is no pool {pool} any more"
WHAT_TO_DO = "{why}; put it back into the configuration, or give its mail up: mailerd queue bounce --pool {pool}"
SITE = re.compile(r"\((?P<heads>[^()]*)\)(?P<optional>\?)?(?:\.(?P<common>.*))?")


@dataclass(frozen=True, slots=True)
class ConfigText:
    """The configuration file, to say in which line something stands."""

    path: str
    text: str

    def place(self, key: str) -> str:
        """`file:line` of a key that is set; the key itself where its default holds, or for what is no key of ours."""
        line = exact_line_in(self.text, key)
        return f"{self.path}:{line}" if line else key


@dataclass(frozen=True, slots=True)
class Mail:
    """Whose mail is asked for; "" of nobody in particular. `message_id` 0: no message in particular.

    `recipient`: the address, or `@example.net`, that may be suppressed for it; "" is not looked up.
    """

    sender: str = ""
    stream: str = "transactional"
    pool: str = ""
    tenant: str = ""
    campaign: str = ""
    credential: str = ""
    require_tls: bool | None = None
    message_id: int = 0
    recipient: str = ""


class Explainer:
    """Answers from what is in force at this moment; made anew for each question.

    `node` is the installation whose counts are looked at, `router` may be that of a worker at work.
    """

    def __init__(
        self,
        config: Config,
        rules: ShapingRules,
        pool: Pool,
        router: Router,
        *,
        ledger: FilePath,
        node: str,
        text: ConfigText,
        clock: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._book = RuleBook(rules, config.delivery)
        self._pool = pool
        self._router = router
        self._ledger = ledger
        self._node = node
        self._text = text
        self._clock = clock

    async def domain(self, domain: str, mail: Mail) -> Explanation:
        """What mail for a domain (A-labels, or an address literal) would meet, and what of it waits already.

        Raises ValueError for a stream or pool that there is not.
        """
        _check("stream", mail.stream, self._config.streams)
        _check("pool", mail.pool, self._config.pools)
        wanted = Wanted(mail.recipient, mail.tenant or TENANT, mail.stream)
        suppressed = await self._suppressed([wanted] if mail.recipient else [])
        scene = await self._look()
        try:
            destination = await scene.destination(domain, mail, await self._queues_of(domain))
        finally:
            scene.close()
        for each in suppressed.values():
            destination = replace(destination, next=REFUSED.format(told=each.told), next_at=None)
        return Explanation(
            asked=domain, destinations=[destination], suppressed=list(suppressed.values()), unknown=scene.unknown
        )

    def check_names(self, *, source: str, provider: str) -> None:
        """Raises ValueError for a source or provider that there is not; "" is any."""
        _check("source", source, self._config.sources)
        _check("provider", provider, (DEFAULT, *self._book.providers))

    async def message(self, message_id: int, tenant: str | None = None) -> Explanation:
        """What the recipients of a message wait for; `tenant` None: whoever's it is. Nothing when none of it waits."""
        selection = Selection(message=message_id, tenant=tenant)
        waiting = await WaitingStore(self._pool).list(selection, queue=None, limit=MOST_RECIPIENTS)
        suppressed = await self._suppressed([_wanted_of(view) for view in waiting])
        scene = await self._look()
        try:
            found: dict[str, Destination] = {}
            for view in sorted(waiting, key=lambda view: view.address in suppressed):  # first those that are tried
                if view.domain not in found and len(found) < MOST_DOMAINS:
                    found[view.domain] = await scene.destination(view.domain, _mail_of(view), (), view)
                    if (why := suppressed.get(view.address)) is not None:
                        found[view.domain] = replace(found[view.domain], next=GIVEN_UP.format(told=why.told))
        finally:
            scene.close()
        return Explanation(
            asked=str(message_id),
            destinations=list(found.values()),
            waiting=[self._as_it_is(view) for view in waiting],
            suppressed=list(suppressed.values()),
            unknown=scene.unknown,
        )

    async def _suppressed(self, all_wanted: Sequence[Wanted]) -> dict[str, SuppressedView]:
        """By address, those of them that must not be mailed."""
        if not all_wanted:
            return {}
        entries = await SuppressionStore(self._pool).check(all_wanted, self._clock())
        return {
            wanted.address: suppressed_view(wanted.address, wanted.tenant, entry)
            for wanted, entry in zip(all_wanted, entries, strict=True)
            if entry is not None
        }

    def _as_it_is(self, view: WaitingView) -> WaitingView:
        """What a recipient waited for when its pool was still there says nothing now."""
        return view if view.pool in self._config.pools else replace(view, reason=GONE.format(pool=view.pool))

    async def path(self, source: str | None, site: str) -> Explanation:
        """The path from a source to a site, or (None) those from all sources that were used for it or may be.

        Raises LookupError for a source or site that there is not.
        """
        scene = await self._look()
        try:
            await scene.check_path(source, site)
            names = [source] if source is not None else scene.sources_at(site)
            paths = [await scene.path(name, site, scene.provider_of_site(site)) for name in names]
        finally:
            scene.close()
        asked = site if source is None else f"{source}>{site}"
        return Explanation(asked=asked, paths=paths, unknown=self._unknown(scene))

    async def paths(self, *, source: str | None = None, site: str | None = None, limit: int = 100) -> Explanation:
        """The paths that this node used lately, those with the most open connections first."""
        scene = await self._look()
        try:
            used = [
                (name, at)
                for name, at in scene.paths_used()
                if (source is None or name == source) and (site is None or at == site)
            ]
            paths = [await scene.path(name, at, scene.provider_of_site(at)) for name, at in used[:limit]]
        finally:
            scene.close()
        return Explanation(asked="", paths=paths, unknown=self._unknown(scene))

    def _unknown(self, scene: "_Scene") -> list[str]:
        """Of a path nobody can say for which domains it is."""
        by_domain = any(provider.match.domain for provider in self._book.providers.values())
        return [*scene.unknown, *([BY_DOMAIN] if by_domain else [])]

    async def knows_site(self, site: str) -> bool:
        """Was anything sent to a site of that name by this node lately?"""
        scene = await self._look()
        scene.close()
        return any(at == site for _, at in scene.paths_used())

    async def _look(self) -> "_Scene":
        effects = Effects(EffectStore(self._pool), self._clock)
        states = SourceStates(self._config, SourceStore(self._pool), self._node)
        await effects.refresh()
        await states.refresh()
        holders = await SourceStore(self._pool).holders()
        unknown = []
        try:
            ledger = await asyncio.to_thread(Ledger.look, self._ledger)
        except (OSError, ValueError) as error:
            reason = f"{self._ledger}: {error.strerror}" if isinstance(error, OSError) else str(error)
            unknown.append(NOT_HERE.format(reason=reason))
            ledger = Ledger.look(None)
        return _Scene(
            config=self._config,
            book=self._book,
            router=self._router,
            text=self._text,
            clock=self._clock,
            node=self._node,
            ledger=ledger,
            effects=effects,
            states=states,
            holders=holders,
            warmups=WarmUps(self._config, WarmUpStore(self._pool), self._clock),
            grants=Grants(GrantStore(self._pool), ledger, self._node),
            unknown=unknown,
        )

    async def _queues_of(self, domain: str) -> list[QueueView]:
        return await TraceStore(self._pool).queues(domain, MOST_QUEUES)


class _Scene:
    """Everything as it stood at one moment."""

    def __init__(
        self,
        *,
        config: Config,
        book: RuleBook,
        router: Router,
        text: ConfigText,
        clock: Callable[[], datetime],
        node: str,
        ledger: Ledger,
        effects: Effects,
        states: SourceStates,
        holders: dict[str, str],
        warmups: WarmUps,
        grants: Grants,
        unknown: list[str],
    ) -> None:
        self._config = config
        self._book = book
        self._router = router
        self._text = text
        self._clock = clock
        self._node = node
        self._ledger = ledger
        self._records: Sequence[Record] = ledger.records()
        self._effects = effects
        self._states = states
        self._holders = holders
        self._warmups = warmups
        self._sources = Sources(config, lambda: states.failing)
        # Of its own, on a copy of the counts: what it takes is taken from nobody.
        self._traffic = Traffic(
            config,
            book,
            ledger=ledger,
            effects=effects,
            warmups=warmups,
            grants=grants,
            clock=clock,
            brake=lambda effect: None,
        )
        self._looked: set[str] = set()  # whose warm-up was read
        self.unknown = unknown

    def close(self) -> None:
        self._ledger.close()

    # destinations

    async def destination(
        self, domain: str, mail: Mail, queues: Sequence[QueueView], waiting: WaitingView | None = None
    ) -> Destination:
        pool = mail.pool or self._config.streams[mail.stream].pool
        number = self._router.rule(domain, sender=mail.sender, stream=mail.stream, pool=pool)
        route = await self._router.route(
            domain, sender=mail.sender, stream=mail.stream, pool=pool, ignore_policy=mail.require_tls is False
        )
        place = "" if number is None else self._text.place(f"routes[{number}]")
        made = Destination(
            domain=domain,
            sender=mail.sender,
            stream=mail.stream,
            pool=pool,
            tenant=mail.tenant,
            campaign=mail.campaign,
            rule=None if number is None else Rule(number=number, place=place),
            queues=[self._queue(view) for view in queues],
        )
        if pool not in self._config.pools:
            return replace(made, next=f"nothing: {WHAT_TO_DO.format(why=GONE.format(pool=pool), pool=pool)}")
        if isinstance(route, NoRoute):
            return _refused(made, route)
        hosts = [host.name for host in route.hosts]
        provider = self._book.provider_of(domain, hosts)
        paths = [
            await self.path(source.name, route.site, provider)
            for source in await self._in_order(pool, mail.message_id, route, provider)
        ]
        limits = [self._limit(each) for each in self._own_limits(paths, domain, mail)]
        next_, next_at = self._next(made, pool, route, paths, limits, waiting)
        return replace(
            made,
            site=route.site,
            provider=provider,
            provider_place=self._book.place(provider, "match", ""),
            tls=str(route.tls),
            tls_by=self._tls_by(route, place, ignored=mail.require_tls is False),
            hosts=[Target(name=host.name, address=host.address, port=host.port) for host in route.hosts],
            paths=paths,
            limits=limits,
            next=next_,
            next_at=next_at,
        )

    async def _in_order(self, pool: str, message_id: int, route: Route, provider: str) -> list[Source]:
        """All sources of the pool: those that may be used as they would be chosen, then the others."""
        usable = self._sources.choose(
            pool,
            message_id,
            route.hosts,
            lambda source: self._traffic.avoided(source.name, provider, route.site),
        )
        every = Sources(self._config).of(pool)
        return [*usable, *(source for source in every if source not in usable)]

    def _own_limits(self, paths: Sequence[PathView], domain: str, mail: Mail) -> list[Constraint]:
        if not paths:
            return []
        path = self._traffic.path(paths[0].source, paths[0].site, paths[0].provider)
        return self._traffic.constraints_of_mail(
            path, tenant=mail.tenant, campaign=mail.campaign, credential=mail.credential, domain=domain
        )

    def _next(
        self,
        made: Destination,
        pool: str,
        route: Route,
        paths: Sequence[PathView],
        limits: Sequence[Limit],
        waiting: WaitingView | None,
    ) -> tuple[str, datetime | None]:
        """What would happen to the next message, and when."""
        usable = [path for path in paths if path.state == "ok"]
        if not usable:
            return self._sources.why_not(pool), None
        now = self._clock()
        if waiting is not None and waiting.state == "held":
            return f"nothing, until it is released: {waiting.reason}", None
        if waiting is not None and waiting.due_at > now:
            return self._next_when_due(usable, waiting, now)
        blocks = [each.queue for each in made.queues if each.queue.stream == made.stream and each.queue.pool == pool]
        blocked = next((view for view in blocks if view.blocked_until is not None and view.blocked_until > now), None)
        if blocked is not None:
            return f"an attempt, when its queue is looked at again: {blocked.reason}", blocked.blocked_until
        own = max(
            ((limit.waits_until, limit) for limit in limits if limit.waits_until), default=None, key=itemgetter(0)
        )
        if own is not None:
            return f"an attempt; until then: {own[1].name} ({own[1].place})", own[0]
        chosen = self._chosen(usable, 0.0)
        if chosen.waits is not None:
            return f"an attempt from {_name(chosen.source)}; until then: {chosen.waits.reason}", chosen.waits.until
        host = self._first_host(chosen, route)
        return f"an attempt at once from {_name(chosen.source)} to {host.name} [{host.address}]:{host.port}", None

    def _next_when_due(
        self, usable: Sequence[PathView], waiting: WaitingView, now: datetime
    ) -> tuple[str, datetime | None]:
        """What would happen to a recipient that was put off: at its time, or later if all paths wait longer."""
        due = waiting.due_at
        chosen = self._chosen(usable, (due - now).total_seconds())
        waits = chosen.waits
        if waits is not None and waits.until is not None and waits.until > due + timedelta(seconds=PATIENCE):
            return f"an attempt from {_name(chosen.source)}; until then: {waits.reason}", waits.until
        reason = waiting.reason or "it is not due"
        return f"an attempt from {_name(chosen.source)}; put off until then: {reason}", due

    def _chosen(self, usable: Sequence[PathView], after: float) -> PathView:
        """The path that the dispatcher would take in so many seconds.

        The first one that does not wait by then, or that waits least; mail that may not go on to the sources after one
        whose warm-up is used up waits for that.
        """
        soonest, least = usable[0], math.inf
        for view in usable:
            path = self._traffic.path(view.source, view.site, view.provider)
            wait = self._traffic.wait_of(path)
            if wait is None or wait.seconds <= after + PATIENCE:
                return view
            if wait.seconds < least:
                soonest, least = view, wait.seconds
            if self._traffic.warming(path, 1) is not None and not self._traffic.overflows(view.source):
                break
        return soonest

    def _first_host(self, path: PathView, route: Route) -> Host:
        fitting = (h for h in route.hosts if path.address is None or (":" in path.address) == (":" in h.address))
        return next(fitting, route.hosts[0])

    def _tls_by(self, route: Route, rule: str, *, ignored: bool) -> str:
        """Who wants the TLS that is asked for."""
        tls = route.tls
        if ignored:
            return 'its sender: "TLS-Required: No"'
        if not tls.domain and tls.mode != "dane" and rule:
            return rule
        if tls.mode == "dane":
            return "TLSA records of its hosts, signed" + (f", and the policy of {tls.domain}" if tls.mx else "")
        if tls.mx:
            return f"the policy of {tls.domain}"
        return "nothing is published about it"

    def _queue(self, view: QueueView) -> WaitingQueue:
        if view.pool not in self._config.pools:
            gone = Waiting(reason=GONE.format(pool=view.pool), until=None)
            return WaitingQueue(queue=replace(view, blocked_until=None, reason=""), waits=gone)
        flow = view.name.split("/", 3)[2] if view.name.count("/") >= 3 else ""
        wait = self._traffic.wait_of_queue(Queue(view.name, 0, flow, view.pool))
        return WaitingQueue(queue=view, waits=self._waiting(wait))

    # paths

    async def check_path(self, source: str | None, site: str) -> None:
        """Raises LookupError for a source or site that there is not."""
        used = self.paths_used()
        if source and source not in self._config.sources and (source, site) not in used:
            raise LookupError(f"there is no source {source!r}, only {', '.join(self._config.sources) or 'none'}")
        # What the ledger does not say, nobody knows.
        if self.unknown or any(at == site for _, at in used) or site in self._fixed_sites():
            return
        place = await self._site_of(site)
        if place != site:
            where = f"{site} is at {place}" if place else "nothing was sent to one of that name from here lately"
            raise LookupError(f"there is no site {site!r}; {where}")

    def _fixed_sites(self) -> set[str]:
        """The sites that the configuration or a brake names."""
        fixed = {effect.site for effect in self._effects.active}
        for rule in self._config.routes:
            site = ",".join(str(host).removesuffix(":25") for host in rule.hosts)
            fixed.add(f"{rule.auth.username}@{site}" if rule.auth else site)
        return fixed

    async def _site_of(self, domain: str) -> str:
        """The site of a domain; "" for what is none, or has none."""
        try:
            name = domain if domain.startswith("[") else domain_to_ascii(domain)
        except ValueError:
            return ""
        stream, settings = next(iter(self._config.streams.items()))
        route = await self._router.route(name, sender="", stream=stream, pool=settings.pool)
        return route.site if isinstance(route, Route) else ""

    async def path(self, source: str, site: str, provider: str) -> PathView:
        path = self._traffic.path(source, site, provider)
        if path.book not in self._looked:
            self._looked.add(path.book)
            await self._warmups.look(path.book)
        settings = self._config.sources.get(source)
        address = str(settings.address) if settings and settings.address is not None else None
        reason = self._states.failing.get(source, "")
        if source and settings is None:
            reason = "no source of the configuration has this name"
        elsewhere = address is not None and self._holders.get(address) not in (None, self._node)
        now = time.monotonic()
        pace = Pace.unpack(path.meter.state(), now)
        limits = [self._limit(each) for each in self._traffic.constraints(path)]
        return PathView(
            source=source,
            address=address,
            site=site,
            provider=provider,
            provider_place=self._book.place(provider, "match", ""),
            state="elsewhere" if elsewhere else "failing" if reason else "ok",
            reason=reason,
            connections=path.meter.held,
            lately=round(pace.flow, 3) if now - pace.touched < LATELY else 0.0,
            limits=limits + self._further(path, {limit.name for limit in limits}),
            effects=[effect_view(effect) for effect in self._effects.of_path(source, provider, site)],
            waits=self._waiting(Wait(0.0, f"it sends nothing: {reason}") if reason else self._wait_of(path)),
        )

    def _wait_of(self, path: Path) -> Wait | None:
        wait = self._traffic.wait_of(path)
        if wait is not None:
            return wait
        taken = self._traffic.connect(path)
        if isinstance(taken, Wait):
            why = f"{taken.why}; what is sent goes over the connections that are open"
            return taken._replace(why=why) if taken.seconds else Wait(0.0, f"a free connection: {taken.why}")
        self._traffic.disconnect(taken)
        return None

    def _further(self, path: Path, known: Collection[str]) -> list[Limit]:
        """The limits within one connection, and those of the path that a stricter one stands before."""
        settings = path.limits.per_path
        values: dict[str, tuple[str, str]] = {}
        if settings.connections is not None:
            values["connections"] = (f"{settings.connections} connections", f"{path.meter.held} open")
        if settings.message_rate is not None:
            values["message_rate"] = (str(settings.message_rate), "")
        for key in ("messages_per_connection", "recipients_per_transaction"):
            if (value := getattr(settings, key)) is not None:
                values[key] = (str(value), "")
        named = {key: f"{path}: {key.replace('_', ' ')}" for key in values}
        places = {key: self._book.place(path.provider, "per_path", key) for key in values}
        return [
            Limit(name=named[key], allows=allows, used=used, place=self._text.place(places[key]))
            for key, (allows, used) in values.items()
            if named[key] not in known
        ]

    def paths_used(self) -> list[tuple[str, str]]:
        """Source and site of all paths in the ledger, those with the most open connections first."""
        used = [
            (record.held, record.touched, *path)
            for record in self._records
            if (path := of_meter(record.name)) is not None
        ]
        return [(source, site) for _, _, source, site in sorted(used, reverse=True)]

    def sources_at(self, site: str) -> list[str]:
        """The sources whose paths to a site were used, or else all."""
        used = [source for source, at in self.paths_used() if at == site]
        return used or list(self._config.sources) or [""]

    def provider_of_site(self, site: str) -> str:
        return self._book.provider_of("", hosts_of(site))

    def _limit(self, constraint: Constraint) -> Limit:
        return Limit(
            name=constraint.name,
            allows=constraint.allows,
            used=constraint.used,
            place=self._text.place(constraint.place),
            waits_until=self._clock() + timedelta(seconds=constraint.waits) if constraint.waits else None,
        )

    def _waiting(self, wait: Wait | None) -> Waiting | None:
        if wait is None:
            return None
        until = self._clock() + timedelta(seconds=wait.seconds) if wait.seconds else None
        return Waiting(reason=wait.why, until=until)


def hosts_of(site: str) -> list[str]:
    """The hosts behind a site's name, as far as the name tells; the other way round: `routing.site_name`."""
    match = SITE.fullmatch(site.partition("~")[0])
    if match is None:
        return [_without_port(each.rpartition("@")[2]) for each in site.split(",")]
    heads, common = match["heads"].split("|"), match["common"]
    if common is None:
        return heads
    return [*([common] if match["optional"] else []), *(f"{head}.{common}" for head in heads)]


def _without_port(endpoint: str) -> str:
    host, colon, port = endpoint.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() and (":" not in host or host.startswith("[")) else endpoint


def _check(what: str, name: str, known: Collection[str]) -> None:
    if name and name not in known:
        raise ValueError(f"there is no {what} {name!r}, only {', '.join(known) or 'none'}")


def _mail_of(view: WaitingView) -> Mail:
    return Mail(
        sender=view.sender,
        stream=view.stream,
        pool=view.pool,
        tenant=view.tenant,
        campaign=view.campaign,
        credential=view.credential,
        require_tls=view.require_tls,
        message_id=view.message_id,
    )


def _wanted_of(view: WaitingView) -> Wanted:
    beside = CAMPAIGNS if names_campaign(view.campaign) else ""
    return Wanted(view.address, view.tenant, view.stream, view.topic, beside)


def _refused(made: Destination, route: NoRoute) -> Destination:
    verdict = route.verdict
    refusal = Refusal(outcome=verdict.outcome, kind=verdict.kind, reply=str(verdict))
    done = "it would be returned" if verdict.outcome is Outcome.BOUNCED else "it would wait and be tried again"
    return replace(made, refusal=refusal, next=f"{done}: {verdict}")


def _name(source: str) -> str:
    return source or "this host"
