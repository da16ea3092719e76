"""What an explanation says: values for people and programs, whoever asked for them."""

from datetime import datetime

from msgspec import Struct

from mailerd.delivery.effects import Effect
from mailerd.queue.suppression import Suppression
from mailerd.queue.views import QueueView
from mailerd.queue.waiting import WaitingView


class Explained(Struct, frozen=True, kw_only=True):
    """Base: frozen, built by keyword. `place` is `file:line`, or a key of the configuration that has its default."""


class Waiting(Explained, frozen=True, kw_only=True):
    """Not now. `until` None: nobody can tell, such as until a connection is freed."""

    reason: str
    until: datetime | None


class Limit(Explained, frozen=True, kw_only=True):
    """What one limit allows, what is used of it, and until when it makes the next message wait."""

    name: str
    allows: str
    used: str
    place: str
    waits_until: datetime | None = None


class EffectView(Explained, frozen=True, kw_only=True):
    """A brake on what fits `source`, `provider`, `site`, `tenant` and `campaign`; "" fits any.

    `kind`: `pause`; `slow` to `value` messages a second; `connections`, `value` at most; `avoid` the source as long as
    its pool has others. `rule` is the place of the rule that made it, or who did.
    """

    id: int
    kind: str
    source: str
    provider: str
    site: str
    tenant: str
    campaign: str
    value: float
    reason: str
    rule: str
    since: datetime
    until: datetime


class PathView(Explained, frozen=True, kw_only=True):
    """One source at one site, as this node sees it. `source` "": the system chooses the address.

    `state`: `ok`; `failing`, out of its pools; `elsewhere`, its address is another node's. `connections` are open now,
    `lately` is how many messages a second were accepted. `waits`: what the next message waits for, or why none is sent
    at all; None: it may leave.
    """

    source: str
    address: str | None
    site: str
    provider: str
    provider_place: str
    state: str
    reason: str
    connections: int
    lately: float
    limits: list[Limit]
    effects: list[EffectView]
    waits: Waiting | None


class Rule(Explained, frozen=True, kw_only=True):
    """A route of the configuration; `number` is counted from 0."""

    number: int
    place: str


class Target(Explained, frozen=True, kw_only=True):
    name: str
    address: str
    port: int


class Refusal(Explained, frozen=True, kw_only=True):
    """What a recipient would get instead of an attempt."""

    outcome: str
    kind: str
    reply: str


class SuppressedView(Explained, frozen=True, kw_only=True):
    """Why `recipient` must not be mailed: the entry `id`, of that `address` or (`@example.net`) of its whole domain.

    It binds mail of `tenant`, `stream` and `topic`; "" any. `source` is who or what added it, `until` None: for good.
    `told`: the sentence that the sender gets.
    """

    recipient: str
    id: int
    address: str
    tenant: str
    stream: str
    topic: str
    reason: str
    source: str
    detail: str
    since: datetime
    until: datetime | None
    told: str


class WaitingQueue(Explained, frozen=True, kw_only=True):
    """What waits for the domain; `waits`: what all of the queue waits for beside the limits of its paths."""

    queue: QueueView
    waits: Waiting | None


class Destination(Explained, frozen=True, kw_only=True):
    """Where mail for a domain goes, and what it meets there.

    `tls`: what is asked of TLS, `tls_by`: who says so. `hosts` in the order to try; none with a `refusal`. `paths` in
    the order in which their sources would be chosen; `limits` bind only mail like this (its domain, tenant, campaign,
    credential). `next`: what would happen to the next message.
    """

    domain: str
    sender: str
    stream: str
    pool: str
    tenant: str = ""
    campaign: str = ""
    rule: Rule | None = None
    site: str = ""
    provider: str = ""
    provider_place: str = ""
    tls: str = ""
    tls_by: str = ""
    hosts: list[Target] = []
    refusal: Refusal | None = None
    paths: list[PathView] = []
    limits: list[Limit] = []
    queues: list[WaitingQueue] = []
    next: str = ""
    next_at: datetime | None = None  # None: now, or nobody can tell


class Explanation(Explained, frozen=True, kw_only=True):
    """All that was asked for. `suppressed`: the address, or those recipients of the message, that must not be mailed.

    `waiting`: recipients of a message that have no final state, those due first first.

    `destinations`: of an address one, of a message one for each domain that it waits for. `paths`: when paths were
    asked for. `unknown`: what could not be seen from here.
    """

    asked: str
    destinations: list[Destination] = []
    waiting: list[WaitingView] = []
    suppressed: list[SuppressedView] = []
    paths: list[PathView] = []
    unknown: list[str] = []


def effect_view(effect: Effect) -> EffectView:
    return EffectView(
        id=effect.id,
        kind=effect.kind,
        source=effect.source,
        provider=effect.provider,
        site=effect.site,
        tenant=effect.tenant,
        campaign=effect.campaign,
        value=effect.value,
        reason=effect.reason,
        rule=effect.rule,
        since=effect.since,
        until=effect.until,
    )


def suppressed_view(recipient: str, tenant: str, entry: Suppression) -> SuppressedView:
    """The entry that stops mail of that tenant to `recipient`."""
    return SuppressedView(
        recipient=recipient,
        id=entry.id,
        address=entry.address,
        tenant=entry.tenant,
        stream=entry.stream,
        topic=entry.topic,
        reason=entry.reason,
        source=entry.source,
        detail=entry.detail,
        since=entry.created_at,
        until=entry.expires_at,
        told=entry.told_to(tenant),
    )
