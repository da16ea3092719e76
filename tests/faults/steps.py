"""How a process of a laboratory under load is brought to each named step, and killed there."""

import random
import signal
from collections.abc import Awaitable, Callable

from tests.faults.laboratory import Laboratory, kill

Provoke = Callable[[Laboratory], Awaitable[None]]
FREQUENT = 25  # a step that every message takes is passed up to so often before the kill


async def go_on(_lab: Laboratory) -> None:
    """The load alone leads there."""


async def defer(lab: Laboratory) -> None:
    """Mail that has to wait is claimed afterwards."""
    await lab.mx.tell("close rcpt 30")


async def kill_worker(lab: Laboratory) -> None:
    """Its work is freed, and another is started."""
    if workers := lab.daemon.workers():
        kill(random.choice(workers))


async def kill_workers(lab: Laboratory) -> None:
    """At least one of them has registered, so there is something to free."""
    for pid in lab.daemon.workers():
        kill(pid)


async def reload(lab: Laboratory) -> None:
    kill(lab.daemon.process.pid, signal.SIGHUP)


async def terminate(lab: Laboratory) -> None:
    kill(lab.daemon.process.pid, signal.SIGTERM)


async def restart(lab: Laboratory) -> None:
    await lab.daemon.kill()
    await lab.daemon.launch()


OF_MESSAGES = {
    **dict.fromkeys(("accepted.before_commit", "accepted.after_commit", "accepted.answered"), go_on),
    **dict.fromkeys(("attempt.begun", "attempt.before_data", "journal.written"), go_on),
    **dict.fromkeys(("attempt.after_dot", "attempt.after_reply"), go_on),
    **dict.fromkeys(("settle.before", "settle.after", "settle.closed"), go_on),
}
OF_WORKERS = {
    **OF_MESSAGES,
    **dict.fromkeys(("claim.before_commit", "claim.after"), defer),
    **dict.fromkeys(("lease.taken", "start.relay", "start.listening"), kill_worker),
    **dict.fromkeys(("reload.loaded", "reload.taken_on"), reload),
    "lease.renewed": go_on,
}
OF_ENDS = dict.fromkeys(("stop.intake", "stop.released"), terminate)  # the daemon ends with its workers
OF_MAIN = {
    **dict.fromkeys(("release.before", "release.after"), kill_workers),
    **dict.fromkeys(("start.locked", "start.database", "start.migrated", "start.released", "start.workers"), restart),
    "reload.read": reload,
}
# The tests of campaigns, webhooks and sinks arm these; nobody does those of reports yet.
OF_CAMPAIGNS = ("hand_over.before_commit", "hand_over.after_commit", "follower.before_commit")
OF_FOLLOWERS = ("webhook.after_reply", "webhook.recorded", "follower.after_read")
OF_REPORTS = ("bounce.before_commit", "bounce.after_commit")
ELSEWHERE = (*OF_CAMPAIGNS, *OF_FOLLOWERS, *OF_REPORTS)
STEPS: dict[str, Provoke] = {**OF_WORKERS, **OF_ENDS, **OF_MAIN}


async def kill_at(lab: Laboratory, step: str) -> None:
    """kill -9 of whoever comes to the step next, or a little later. The daemon runs again when this returns."""
    passings = FREQUENT if step in OF_MESSAGES else 1
    lab.daemon.arm(f"{step}=kill@{random.randint(1, passings)}")
    await STEPS[step](lab)
    await lab.daemon.fired()
    if step in OF_ENDS or step in OF_MAIN:
        await lab.daemon.process.wait()
        await lab.daemon.start()
