"""Named steps at which a process of ours can be killed, stopped or made to fail: for the fault laboratory only.

    MAILERD_FAILPOINTS='attempt.after_dot=kill@37'    kill -9 of itself at the 37th passing, counted per process
    MAILERD_FAILPOINTS='settle.before=pause:2s,claim.after=error'
    MAILERD_FAILPOINTS=@/run/failpoints               the same words in a file

`kill` is SIGKILL, `pause:2s` (also `ms`) stops the whole process as a frozen machine does, and `error` raises
`FailpointError`, an `OSError`, as if the database had gone: at the steps of `ASKING` alone. Without `@` it is the first
passing. Words in the environment hold for every process that inherits them, each with a count of its own. A file may
come to be, change and go while processes run, and holds for one passing of one process: whoever gets there first
renames it to `FILE.taken`, so that its absence says that it has happened. What is wrong with it while they run is
logged, and it says nothing then.

Without the variable nothing is called at all: a step is written

    if failpoints.ON:
        failpoints.reached("attempt.after_dot")
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from mailerd.errors import ConfigError, ConfigProblem

log = structlog.get_logger()

VARIABLE = "MAILERD_FAILPOINTS"
ON = bool(os.environ.get(VARIABLE))
STEPS = {
    "accepted.before_commit": "messages were taken in, and their commit is about to be asked for",
    "accepted.after_commit": "they are durable, and nobody was answered",
    "accepted.answered": "250 was written, and this worker has not yet begun to send them",
    "claim.before_commit": "recipients were claimed, in a transaction that is still open",
    "claim.after": "they are ours, and not in memory",
    "attempt.begun": "mail is about to be offered over a session",
    "attempt.before_data": "MAIL, RCPT and DATA, or the last alone, are about to be written",
    "journal.written": "the journal says that the final dot is about to go out",
    "attempt.after_dot": "the content and the final dot were written as far as the socket took them",
    "attempt.after_reply": "the host has answered, and we have not noted what",
    "settle.before": "results are about to be recorded, the journal knowing of those delivered",
    "settle.after": "they are durable, and the journal still holds them",
    "settle.closed": "the journal does not hold them any more",
    "hand_over.before_commit": "mail of a campaign was written in a transaction that is still open",
    "hand_over.after_commit": "it is durable, and not yet on its way",
    "lease.taken": "a worker has registered and owns nothing",
    "lease.renewed": "a worker has said that it lives",
    "release.before": "the main process is about to free what a dead worker owned",
    "release.after": "it is free, and the journal of the dead worker still there",
    "follower.before_commit": "a follower has written, and its position moved, in a transaction that is still open",
    "follower.after_read": "a follower has told others of events, and its position has not moved",
    "bounce.before_commit": "what a report says was written in a transaction that is still open",
    "bounce.after_commit": "it is durable, and the reporter not answered",
    "webhook.after_reply": "an endpoint has answered, and it is not noted",
    "webhook.recorded": "what endpoints answered is durable, and this process has not moved on",
    "reload.read": "the main process has read another configuration and told nobody",
    "reload.loaded": "a worker has loaded it, and works by the old one",
    "reload.taken_on": "a worker works by it, and has not said so",
    "start.locked": "the main process holds the data directory",
    "start.database": "its database runs",
    "start.migrated": "the schema is current",
    "start.released": "the workers of the life before own nothing any more",
    "start.workers": "all workers serve, and the readiness line is not written",
    "start.relay": "a worker can deliver and takes nothing in yet",
    "start.listening": "a worker listens and has not said that it is ready",
    "stop.intake": "a worker takes nothing in any more",
    "stop.released": "a worker has given up its lease, and its journal is still there",
}
# Where the database is asked, so that a connection may be lost there. `…after_commit`, `claim.after`: with its answer.
ASKING = {
    "accepted.before_commit",
    "accepted.after_commit",
    "claim.before_commit",
    "claim.after",
    "settle.before",
    "hand_over.before_commit",
    "follower.before_commit",
    "follower.after_read",
    "bounce.before_commit",
}

_WORD = re.compile(r"(?P<step>[^=]*)=(?P<what>kill|error|pause:(?P<number>\d+)(?P<unit>ms|s))(?:@(?P<at>[1-9]\d*))?")


class FailpointError(OSError):
    """What a step with `error` raises."""


@dataclass(frozen=True, slots=True)
class Failpoint:
    """What to do at the `at`th passing of the step, counted from 1."""

    what: str
    seconds: float = 0.0
    at: int = 1


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigError` when the variable says what cannot be followed. A file that is not there says nothing."""
    value = environ.get(VARIABLE, "")
    if not value.startswith("@"):
        parse(value)
    elif Path(value[1:]).exists():
        parse(Path(value[1:]).read_text())


def parse(text: str) -> dict[str, Failpoint]:
    """The failpoints by step. Raises `ConfigError` that names what is wrong, and what is allowed."""
    found = {}
    problems = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        match = _WORD.fullmatch(word)
        if match is None:
            problems.append(f"{word!r} is not STEP=kill, STEP=error or STEP=pause:2s, perhaps with @COUNT behind it")
        elif match["step"] not in STEPS:
            problems.append(f"there is no step {match['step']!r}; there are {', '.join(STEPS)}")
        elif match["what"] == "error" and match["step"] not in ASKING:
            problems.append(f"{match['step']} cannot fail; {', '.join(sorted(ASKING))} can")
        else:
            seconds = int(match["number"] or 0) / (1 if match["unit"] == "s" else 1_000)
            found[match["step"]] = Failpoint(match["what"].partition(":")[0], seconds, int(match["at"] or 1))
    if problems:
        raise ConfigError([ConfigProblem("environment", 0, VARIABLE, problem) for problem in problems])
    return found


class _Armed:
    """The failpoints of this process."""

    def __init__(self, value: str) -> None:
        self._file = Path(value[1:]) if value.startswith("@") else None
        self._points = {} if self._file else parse(value)
        self._version: tuple[int, int] | None = None  # of the file: inode, time
        self._passed: Counter[str] = Counter()
        self._problem = ""  # with the file, that was logged

    def passed(self, step: str) -> Failpoint | None:
        """Count a passing; what is to be done, if anything is."""
        if self._file is not None:
            self._read(self._file)
        point = self._points.get(step)
        if point is None:
            return None
        self._passed[step] += 1
        if self._passed[step] != point.at or (self._file is not None and not self._take(self._file)):
            return None
        return point

    def _read(self, file: Path) -> None:
        try:
            there = file.stat()
            if self._version == (there.st_ino, there.st_mtime_ns):
                return
            text = file.read_text()
            self._version = there.st_ino, there.st_mtime_ns
            self._points = parse(text)
            self._passed.clear()
        except FileNotFoundError:
            self._points = {}
            self._version = None
        except (OSError, UnicodeError, ConfigError) as error:
            self._points = {}
            self._ignore(error)

    def _take(self, file: Path) -> bool:
        """Is it ours to do? Of several processes that get here at once one is told so."""
        try:
            file.rename(file.with_name(file.name + ".taken"))
        except FileNotFoundError:
            return False
        except OSError as error:
            self._ignore(error)
            return False
        return True

    def _ignore(self, error: Exception) -> None:
        if self._problem != str(error):
            self._problem = str(error)
            log.error("failpoints.ignored", error=self._problem)


_armed: _Armed | None = None


def reached(step: str) -> None:
    """Do what is to be done at this step, if anything is."""
    global _armed
    assert step in STEPS, step
    if _armed is None:
        _armed = _Armed(os.environ.get(VARIABLE, ""))
    point = _armed.passed(step)
    if point is None:
        return
    if point.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.what == "error":
        raise FailpointError(f"failpoint {step}")
    else:
        time.sleep(point.seconds)
