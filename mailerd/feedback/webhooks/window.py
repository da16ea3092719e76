"""What one endpoint is being told: what may be tried now, and what an answer changes. Pure.

Events come in order into a *track*: that of the endpoint itself, and one for a replay. An event leaves its track when
it was taken, or when it became a pending row; the track's position is behind the events that have left it without a
gap. For each subject only one request is under way, and none while an earlier one of it is pending.

An endpoint that is down is looked at now and then by one request; new events are not even held meanwhile, so they pile
up neither here nor in rows. One that takes most events and rejects some is not down: when too much is pending, what was
tried most often is given up.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from mailerd.events import Position
from mailerd.feedback.webhooks import schedule
from mailerd.feedback.webhooks.bodies import Item, key_of
from mailerd.feedback.webhooks.budget import Budget
from mailerd.feedback.webhooks.schedule import Health
from mailerd.feedback.webhooks.values import Attempt, Outcome, Pending, Replay, Result, Told, Webhook

MOST_PENDING = 1_000  # rows of one endpoint; what is under way may exceed it by its connections
MOST_UNRECORDED = 2_000  # attempts, while the database is away
WINDOW = 128  # events of a track in memory; batches have room for two for each connection
GONE = Outcome(0, error="the events are no longer kept")
GIVEN_UP = Outcome(0, error="too much is pending: this was tried most often")
LOOKS = 2  # at an endpoint that is down, with the same new event: it may be the event
TRIED_ENOUGH = 3  # attempts, before something is given up that may yet be taken


@dataclass(slots=True, eq=False)
class Entry:
    """An event in a track, from when it is read until it is recorded."""

    item: Item
    at: datetime  # when it came
    looks: int = 0  # attempts that failed, without it having become pending
    busy: bool = False
    done: bool = False


@dataclass(slots=True, eq=False)
class Track:
    """Events in order. `position`: all before and at it have left; `read`: behind the last one that came."""

    position: Position
    read: Position
    budget: Budget
    entries: deque[Entry] = field(default_factory=deque)
    replay: Replay | None = None
    told: int = 0  # of the replay

    def take(self, items: Iterable[Item], read: Position, now: datetime) -> None:
        for item in items:
            self.entries.append(Entry(item, now))
            self.budget.take(item)
        self.read = read

    def leave(self) -> Position:
        """Let go of what is done at the front; the position after that."""
        while self.entries and self.entries[0].done:
            item = self.entries.popleft().item
            self.budget.give(item)
            self.position = item.position
            self.told += 1
        if not self.entries:
            self.position = self.read
        return self.position

    def release(self, kept: int) -> bool:
        """Go back to before what was not tried yet, but for the first `kept`; whether there was any."""
        released = False
        while len(self.entries) > kept and not (self.entries[-1].busy or self.entries[-1].done):
            self.budget.give(self.entries.pop().item)
            released = True
        if released:
            self.read = self.entries[-1].item.position if self.entries else self.position
        return released


@dataclass(slots=True, eq=False)
class Pick:
    """One request to be made: of entries of a track, or of what is pending."""

    told: Told
    entries: list[Entry]
    pending: Pending | None = None

    @property
    def items(self) -> list[Item]:
        return [entry.item for entry in self.entries]


@dataclass(slots=True, kw_only=True)
class Changes:
    """What is to be recorded of one endpoint, in one transaction."""

    webhook_id: int
    attempts: list[Attempt]
    pending: dict[int, Pending | None]  # None: no longer
    position: Position
    replay: Replay | None
    failing_since: datetime | None
    disable: str  # why, "" to go on


class Window:
    """`ids` makes ids of pending rows that grow; `chance` is a random number of 0 … 1."""

    def __init__(
        self,
        webhook: Webhook,
        *,
        connections: int,
        budget: Budget | None = None,
        pending: Iterable[Pending] = (),
        ids: Callable[[], int],
        chance: Callable[[], float],
    ) -> None:
        self.webhook = webhook
        self.connections = connections
        self.health = Health(webhook.failing_since, schedule.DOWN_AFTER if webhook.failing_since else 0)
        self.budget = budget or Budget()
        self.main = Track(webhook.position, webhook.position, self.budget)
        self.replay: Track | None = None
        self.open = 0  # requests under way
        self.disable = ""
        self._pending: dict[int, Pending] = {}
        self._held: Counter[int] = Counter()  # subjects of what is pending
        self._busy: set[int] = set()  # subjects of what is under way
        self._trying: set[int] = set()  # pending ids under way
        self._attempts: list[Attempt] = []
        self._changed: dict[int, Pending | None] = {}
        self._failing_since = webhook.failing_since
        self._recorded = webhook.position
        self._replay_recorded = webhook.position
        self._new_first = False  # every second time, so that neither waits for the other
        self._ids = ids
        self._chance = chance
        self.add_pending(pending)

    # what comes

    @property
    def size(self) -> int:
        return max(WINDOW, 2 * self.connections * self.webhook.batch_events)

    def room(self, track: Track) -> int:
        """How many more events the track takes now."""
        track.leave()
        held = len(track.entries)
        if self.health.down or self._blocked:
            return 1 - held  # one is enough to look with
        return min(self.size - held, self.budget.room(held))

    def hungry(self, track: Track) -> bool:
        """Is there room enough that reading is worth while?"""
        return self.room(track) >= max(1, len(track.entries))

    def release(self) -> bool:
        """When the endpoint is down, hold nothing that was not tried but one event; whether its own track went back."""
        if not self.health.down:
            return False
        if self.replay is not None:
            self.replay.release(1)
        return self.main.release(1)

    def close(self) -> None:
        """Nothing of it is held any more."""
        for track in (self.main, self.replay):
            while track is not None and track.entries:
                self.budget.give(track.entries.pop().item)

    def add_pending(self, rows: Iterable[Pending]) -> None:
        """Rows of the database, also those that somebody wants tried again; what is known already is not new."""
        for row in rows:
            if row.id not in self._pending and row.id not in self._changed:
                self._pending[row.id] = row
                self._held.update(set(row.told.subjects))

    def begin_replay(self, replay: Replay) -> None:
        self.replay = Track(replay.position, replay.position, self.budget, replay=replay, told=replay.told)
        self._replay_recorded = replay.position

    @property
    def pending(self) -> int:
        return len(self._pending)

    def end_replay(self, now: datetime) -> None:
        """All of it is in the track."""
        if self.replay is not None and self.replay.replay is not None:
            self.replay.replay = replace(self.replay.replay, finished_at=now)

    @property
    def unrecorded(self) -> int:
        return len(self._attempts)

    @property
    def unwritten(self) -> bool:
        """Are there pending rows that the database does not know?"""
        return bool(self._changed)

    # what may be tried

    def pick(self, now: datetime) -> Pick | None:
        """The next request to make now, which is then under way until `settle()`."""
        if self.disable or self.health.paused(now) or self.open >= self._limit or self.unrecorded >= MOST_UNRECORDED:
            return None
        pick = self._pick_any_new(now) if self._new_first else None
        pick = pick or self._pick_pending(now) or self._pick_any_new(now)
        if pick is not None:
            self._new_first = not self._new_first
            self.open += 1
            self._busy.update(pick.told.subjects)
            for entry in pick.entries:
                entry.busy = True
            if pick.pending is not None:
                self._trying.add(pick.pending.id)
        return pick

    @property
    def _limit(self) -> int:
        return self.connections if self.health.failing_since is None else 1

    def _pick_pending(self, now: datetime) -> Pick | None:
        for pending in self._heads():
            if pending.hurried or pending.due_at <= now:
                return Pick(pending.told, [], pending)
        return None

    def _heads(self) -> Iterator[Pending]:
        """What is pending and waits behind nothing."""
        before: set[int] = set()
        for pending in self._pending.values():
            subjects = pending.told.subjects
            if pending.id not in self._trying and before.isdisjoint(subjects) and self._busy.isdisjoint(subjects):
                yield pending
            before.update(subjects)

    def _pick_any_new(self, now: datetime) -> Pick | None:
        for track in (self.main, self.replay):
            if track is not None and (pick := self._pick_new(track, now)) is not None:
                return pick
        return None

    def _pick_new(self, track: Track, now: datetime) -> Pick | None:
        self._put_behind(track, now)
        if self._blocked and not self.health.down:
            return None
        most = 1 if self.health.down else self.webhook.batch_events
        ready = []
        for entry in self._ready(track):
            ready.append(entry)
            if len(ready) >= most:
                break
        if not ready or (len(ready) < most and now < self._batch_due(ready[0])):
            return None
        return Pick(self._told([entry.item for entry in ready]), ready)

    def _ready(self, track: Track) -> Iterator[Entry]:
        """What waits for nothing, in order; of one subject more than one only for the same request."""
        before: set[int] = set()
        for entry in track.entries:
            subject = entry.item.subject
            if entry.done:
                continue
            if not entry.busy and subject not in before and subject not in self._busy and subject not in self._held:
                yield entry
                if self.webhook.batch_events > 1:
                    continue  # the next of this subject goes behind it in the same array
            before.add(subject)

    def _put_behind(self, track: Track, now: datetime) -> None:
        """What is about a subject of which something is pending becomes pending behind it."""
        before: set[int] = set()
        for entry in track.entries:
            subject = entry.item.subject
            if entry.done:
                continue
            waits = not entry.busy and subject in self._held and subject not in before and subject not in self._busy
            if waits and self._make_room(now, alive=not self.health.down):
                self._keep(
                    Pending(id=self._ids(), told=self._told([entry.item]), attempts=0, due_at=now, created_at=now)
                )
                entry.done = True
            else:
                before.add(subject)

    def _batch_due(self, first: Entry) -> datetime:
        return first.at + timedelta(milliseconds=self.webhook.batch_wait)

    def _told(self, items: Sequence[Item]) -> Told:
        return Told(
            key=key_of(items, batched=self.webhook.batch_events > 1),
            positions=tuple(item.position for item in items),
            types=tuple(item.type for item in items),
            subjects=tuple(dict.fromkeys(item.subject for item in items)),
        )

    # what an answer changes

    def settle(self, pick: Pick, outcome: Outcome, now: datetime) -> None:
        self.open -= 1
        self._busy.difference_update(pick.told.subjects)
        for entry in pick.entries:
            entry.busy = False
        if pick.pending is not None:
            self._trying.discard(pick.pending.id)
        if outcome is GONE:
            self._end(pick, outcome, Result.DEAD, now)
        elif outcome.good:
            if self.health.succeeded(now):
                self._hurry()
            self._end(pick, outcome, Result.DELIVERED, now)
        else:
            self.health.failed(now, outcome, new=pick.pending is None)
            self._try_again(pick, outcome, now)
            if outcome.gone:
                self.disable = "it answered 410: it is gone"
            elif self.health.hopeless(now):
                self.disable = f"nothing but failures for {schedule.DISABLE_AFTER.days} days"

    def abandon(self, pick: Pick) -> None:
        """Nothing is known of it: it is as if it had not been tried."""
        self.open -= 1
        self._busy.difference_update(pick.told.subjects)
        for entry in pick.entries:
            entry.busy = False
        if pick.pending is not None:
            self._trying.discard(pick.pending.id)

    def _hurry(self) -> None:
        for pending in self._pending.values():
            pending.hurried = True

    def _end(self, pick: Pick, outcome: Outcome, result: Result, now: datetime) -> None:
        number = 1
        for entry in pick.entries:
            entry.done = True
        if pick.pending is not None:
            number = pick.pending.attempts + 1
            self._drop(pick.pending)
        self._log(pick, number, result, outcome, now)

    def _try_again(self, pick: Pick, outcome: Outcome, now: datetime) -> None:
        pending = pick.pending
        if pending is None and self._looked(pick, outcome):
            self._log(pick, 1, Result.FAILED, outcome, now, self.health.paused_until)  # it stays in its track
            return
        if pending is None:
            pending = Pending(id=self._ids(), told=pick.told, attempts=0, due_at=now, created_at=now)
            for entry in pick.entries:
                entry.done = True
            self._make_room(now, alive=outcome.rejects or not self.health.down)
        pending.rejected = outcome.rejects
        if now < pending.due_at:  # tried because the endpoint seemed to be back
            pending.hurried = False
            self._log(pick, pending.attempts, Result.FAILED, outcome, now, pending.due_at)
            return
        attempts = pending.attempts + 1
        due = schedule.next_attempt(attempts, now, outcome, self._chance())
        if due is None:
            self._end(pick, outcome, Result.DEAD, now)
            return
        pending.attempts, pending.due_at, pending.hurried = attempts, due, False
        self._keep(pending)
        self._log(pick, attempts, Result.FAILED, outcome, now, due)

    def _looked(self, pick: Pick, outcome: Outcome) -> bool:
        """Was this no more than a look at an endpoint that is down?"""
        if not self.health.down or outcome.gone or outcome.rejects:
            return False
        for entry in pick.entries:
            entry.looks += 1
        return all(entry.looks < LOOKS for entry in pick.entries)

    # too much

    @property
    def _full(self) -> bool:
        return len(self._pending) >= MOST_PENDING

    @property
    def _blocked(self) -> bool:
        """Is too much pending, none of which can be given up yet?"""
        return self._full and self._most_tried() is None

    def _make_room(self, now: datetime, *, alive: bool) -> bool:
        """See that one more may be pending; whether it may. Nothing is given up because of an outage."""
        if not self._full:
            return True
        pending = self._most_tried() if alive else None
        if pending is not None:
            self._drop(pending)
            self._log(Pick(pending.told, [], pending), pending.attempts, Result.DEAD, GIVEN_UP, now)
        return pending is not None

    def _most_tried(self) -> Pending | None:
        """Of what may be given up the one with the most attempts; the oldest of those."""
        found = None
        for pending in self._pending.values():
            enough = pending.attempts >= (1 if pending.rejected else TRIED_ENOUGH)
            if enough and pending.id not in self._trying and (found is None or pending.attempts > found.attempts):
                found = pending
        return found

    def _keep(self, pending: Pending) -> None:
        if pending.id not in self._pending:
            self._held.update(set(pending.told.subjects))
        self._pending[pending.id] = pending
        self._changed[pending.id] = pending

    def _drop(self, pending: Pending) -> None:
        del self._pending[pending.id]
        self._changed[pending.id] = None
        self._held.subtract(set(pending.told.subjects))
        self._held += Counter()  # forgets what is at nought

    def _log(
        self, pick: Pick, number: int, result: Result, outcome: Outcome, now: datetime, next_at: datetime | None = None
    ) -> None:
        self._attempts.append(
            Attempt(at=now, told=pick.told, number=number, result=result, outcome=outcome, next_at=next_at)
        )

    # what is to be recorded, and when to look again

    def changes(self, now: datetime, *, idle: bool) -> Changes | None:
        """What is not recorded yet, which the caller then records; None when that is nothing.

        `idle`: also that it has come further without anything to tell.
        """
        position = self.main.leave()
        replay = self._replayed(now)
        same = replay is None and self.health.failing_since == self._failing_since
        same = same and not (self._attempts or self._changed or self.disable)
        if same and (not idle or position == self._recorded):
            return None
        made = Changes(
            webhook_id=self.webhook.id,
            attempts=self._attempts,
            pending=self._changed,
            position=position,
            replay=replay,
            failing_since=self.health.failing_since,
            disable=self.disable,
        )
        self._attempts, self._changed = [], {}
        self._failing_since, self._recorded = self.health.failing_since, position
        return made

    def _replayed(self, now: datetime) -> Replay | None:
        track = self.replay
        if track is None or track.replay is None:
            return None
        old, position = track.replay, track.leave()
        finished = old.finished_at is not None and not track.entries
        if position == self._replay_recorded and not finished:
            return None
        self._replay_recorded = position
        if finished:
            self.replay = None
        return replace(old, position=position, told=track.told, finished_at=now if finished else None)

    def lag(self, now: datetime) -> float:
        """Seconds since the oldest event that was neither told nor became pending; 0 without one."""
        first = next((entry.item.created_at for entry in self.main.entries), now)
        return max(0.0, (now - first).total_seconds())

    def next_due(self, now: datetime) -> datetime | None:
        """When `pick()` may give something that it does not give now, if nothing else happens; None: never."""
        if self.disable or self.open >= self._limit:
            return None
        if self.health.paused(now):
            return self.health.paused_until
        times = [pending.due_at for pending in self._heads()]
        if not self._blocked or self.health.down:
            tracks = [track for track in (self.main, self.replay) if track is not None]
            firsts = [next(self._ready(track), None) for track in tracks]
            times += [self._batch_due(first) for first in firsts if first is not None]
        return min(times, default=None)
