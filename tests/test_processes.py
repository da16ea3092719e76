"""What a process holds of memory, and when it gives back what it does not need."""

import subprocess
import sys

import pytest

from mailerd.processes import MUCH, Ebb

FREEING = """
from mailerd.processes import give_back

def held():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))

contents = [bytes(100_000) + b"x" for _ in range(500)]
between = [bytes(1_000) for _ in range(500)]
full = held()
del contents
give_back()
print(full - held())
"""


@pytest.mark.parametrize(
    ("held", "times"),
    [
        ([0, 0, 0], [False, False, False]),
        ([MUCH - 1, 0], [False, False]),  # not worth it
        ([MUCH, 0, 0], [False, True, False]),  # once
        ([MUCH, MUCH // 2, MUCH // 4, 0], [False, False, True, False]),
        ([8 * MUCH, 2 * MUCH, 0], [False, True, True]),  # what is held then is much again
        ([MUCH, 0, MUCH, 0], [False, True, False, True]),
        ([MUCH, 2 * MUCH, 3 * MUCH], [False, False, False]),
    ],
)
def test_memory_is_given_back_when_most_of_it_is_not_held_any_more(held, times):
    ebb = Ebb()
    assert [ebb.seen(size) for size in held] == times


def test_what_was_freed_is_given_back_to_the_system():
    found = subprocess.run([sys.executable, "-c", FREEING], check=True, stdout=subprocess.PIPE, timeout=30)
    assert int(found.stdout) > 40_000  # KB of 50,000
