"""Who made a hit: a person, or a machine on the way. Pure; the rules have a version, which stands in each event.

Nothing is dropped: machines are counted beside people. How long after the sending a click comes says next to nothing
(of 836 bursts of scanners half came after 43 s), so what counts is what a hit says of itself, and what else is done
with the same mail at the same time. That is known when a `group` of hits has ended: some seconds after the first.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

from msgspec.structs import replace

from mailerd.campaigns.tracking import agents
from mailerd.campaigns.tracking.folding import network_of
from mailerd.campaigns.tracking.records import Hit

RULES = 1  # to be put up with every change of what these rules say
SECOND = 1_000_000  # microseconds, as all times here
GAP = 2 * SECOND  # hits of one mail with less between them belong together
SETTLED = 5 * SECOND  # since the first of them
LONGEST = 15 * SECOND  # of a group: somebody who never pauses is not waited for
LATE = 3 * SECOND  # for a hit to be stored
BURST = 3  # different links of one mail
BURST_WITHIN = 2 * SECOND
SAME_WITHIN = SECOND  # the same hit again, taken by another worker

Network = IPv4Network | IPv6Network


class Actor(StrEnum):
    HUMAN = "human"
    MACHINE_OPEN = "machine_open"  # pictures loaded for nobody: Apple's privacy protection
    PREFETCH = "prefetch"  # Gmail, before it shows the mail
    SCANNER = "scanner"
    UNKNOWN = "unknown"  # says nothing of itself


class Fold(NamedTuple):
    """A hit, and the places of all that are the same."""

    hit: Hit
    places: list[int]


class Judged(NamedTuple):
    """`reasons`: the rules that spoke, none for a person who looks like one."""

    actor: Actor
    reasons: tuple[str, ...]


HUMAN = Judged(Actor.HUMAN, ())


def groups(times: Sequence[int], now: int, *, cut: bool = False) -> list[slice]:
    """The groups of hits of one mail that have ended by `now`; `times` are theirs, in order.

    `cut`: there are more than these, so no more is waited for.
    """
    found: list[slice] = []
    begin = 0
    for index, time in enumerate(times):
        end = index + 1
        last = end == len(times)
        if not last and times[end] - time <= GAP and times[end] - times[begin] <= LONGEST:
            continue
        settled = times[begin] <= now - SETTLED and time <= now - LATE
        if not (settled or (last and (cut or times[begin] <= now - LONGEST - LATE))):
            break
        found.append(slice(begin, end))
        begin = end
    return found


def folded(hits: Sequence[Hit]) -> list[Fold]:
    """The hits of a group, the same ones within a second as one."""
    latest: dict[tuple[object, ...], int] = {}
    folds: list[Fold] = []
    for place, hit in enumerate(hits):
        key = (hit.kind, hit.link, hit.method, network_of(hit.ip), hit.user_agent)
        known = latest.get(key)
        if known is None or hit.at - folds[known].hit.at >= SAME_WITHIN:
            latest[key] = len(folds)
            folds.append(Fold(hit, [place]))
        else:
            first, places = folds[known]
            folds[known] = Fold(replace(first, times=first.times + hit.times), [*places, place])
    return folds


def judge(hits: Sequence[Hit], *, links: int = 0, scanners: Sequence[Network] = ()) -> list[Judged]:
    """Who made each hit of a group, in order. `links`: how many the mail has, 0 when nobody knows."""
    alone = [_by_itself(hit, scanners) for hit in hits]
    burst = _burst(hits)
    if not burst and _all_links(hits, alone, links):
        return [
            _also(each, "all_links") if hit.kind == "clicked" else each for hit, each in zip(hits, alone, strict=True)
        ]
    return [_also(each, "burst") if index in burst else each for index, each in enumerate(alone)]


def _by_itself(hit: Hit, scanners: Sequence[Network]) -> Judged:
    """What a hit says of itself: the worst first."""
    agent = hit.user_agent
    if hit.method != "GET":
        return Judged(Actor.SCANNER, ("head",))
    if agents.GMAIL_PREFETCH in agent:
        return Judged(Actor.PREFETCH, ("gmail_prefetch",))
    if agent == agents.BARE:
        return Judged(Actor.MACHINE_OPEN if hit.kind == "opened" else Actor.SCANNER, ("bare_agent",))
    if any(proxy in agent for proxy in agents.IMAGE_PROXIES):
        return Judged(Actor.HUMAN, ("image_proxy",))
    if program := agents.automation(agent):
        return Judged(Actor.SCANNER, (f"automation:{program}",))
    # Opens from such networks may be people's: Outlook on the web fetches pictures for them.
    if hit.kind == "clicked" and _within(hit.ip, scanners):
        return Judged(Actor.SCANNER, ("scanner_network",))
    return HUMAN if agent else Judged(Actor.UNKNOWN, ("no_agent",))


def _within(ip: str, networks: Sequence[Network]) -> bool:
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in networks)


def _burst(hits: Sequence[Hit]) -> set[int]:
    """The places of hits of whoever follows many links at once, from whatever address.

    No person clicks three links within two seconds. All else belongs to it that comes from the same network and agent:
    further clicks, and the pixel.
    """
    clicks = [(index, hit) for index, hit in enumerate(hits) if hit.kind == "clicked"]
    found: set[int] = set()
    for begin, (_, first) in enumerate(clicks):
        within = list(_until(clicks[begin:], first.at + BURST_WITHIN))
        if len({hit.link for _, hit in within}) >= BURST:
            found.update(index for index, _ in within)
    who = {_who(hits[index]) for index in found}
    return found | {index for index, hit in enumerate(hits) if who and _who(hit) in who}


def _until(clicks: Sequence[tuple[int, Hit]], end: int) -> Iterator[tuple[int, Hit]]:
    for click in clicks:
        if click[1].at > end:
            return
        yield click


def _who(hit: Hit) -> tuple[str, str]:
    return network_of(hit.ip), hit.user_agent


def _all_links(hits: Sequence[Hit], alone: Sequence[Judged], links: int) -> bool:
    """Every link of the mail was followed, at one time, by somebody who did not look at it."""
    opened = any(hit.kind == "opened" and each.actor is Actor.HUMAN for hit, each in zip(hits, alone, strict=True))
    clicked = {hit.link for hit in hits if hit.kind == "clicked"}
    return not opened and links >= 2 and len(clicked) >= links


def _also(judged: Judged, reason: str) -> Judged:
    """A scanner by what was done, whatever it says of itself."""
    return Judged(Actor.SCANNER, (reason, *judged.reasons))
