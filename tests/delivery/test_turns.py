"""Slots in turn: who asks for much waits for his own."""

import asyncio
from collections.abc import Callable

import pytest

from mailerd.delivery.turns import Starts, Turns, party_of


class Work:
    """Work in slots, ended one by one; `begun` in the order in which it got them."""

    def __init__(self, slots: int, each: int) -> None:
        self.turns = Turns(slots, each=each)
        self.begun: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, *names: str) -> None:
        """Each name is a party and a number, such as `a1`."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks.append(asyncio.create_task(self._do(name), name=name))
        await self._settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._settle()

    async def give_up(self, name: str) -> None:
        next(task for task in self.tasks if task.get_name() == name).cancel()
        await self._settle()

    async def _do(self, name: str) -> None:
        async with self.turns.slot(name[0]):
            self.begun.append(name)
            await self._ends[name].wait()

    async def _settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_party_that_comes_last_does_not_wait_for_all_that_another_asked_before():
    work = Work(2, each=2)
    await work.ask("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1")
    assert work.begun == ["a1", "a2"]
    for name in ("a1", "a2", "b1", "c1", "a3"):
        await work.end(name)
    assert work.begun == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_party_holds_no_more_than_its_part():
    work = Work(3, each=2)
    await work.ask("a1", "a2", "a3", "a4")
    assert work.begun == ["a1", "a2"]
    await work.ask("b1", "b2")
    assert work.begun == ["a1", "a2", "b1"]
    await work.end("a1")
    assert work.begun[3:] == ["b2"]
    await work.end("b1")
    assert work.begun[4:] == ["a3"]


async def test_the_slot_of_one_who_gives_up_is_not_lost():
    work = Work(1, each=1)
    await work.ask("a1", "b1", "c1", "d1")
    await work.give_up("b1")
    await work.end("a1")
    assert work.begun == ["a1", "c1"]
    await work.give_up("c1")
    assert work.begun == ["a1", "c1", "d1"]
    await work.end("d1")
    await work.ask("a2")
    assert work.begun[3:] == ["a2"]


async def test_a_slot_given_to_one_who_gives_up_at_that_moment_goes_on():
    work = Work(1, each=1)
    await work.ask("a1", "b1", "c1")
    work._ends["a1"].set()
    await asyncio.sleep(0)  # b1 has the slot and does not know it yet
    await work.give_up("b1")
    assert "c1" in work.begun


@pytest.mark.parametrize(
    ("name", "party"),
    [
        ("mx.a.example.com", "example.com"),
        ("mx.example.co.uk", "example.co.uk"),
        ("example.co.uk", "example.co.uk"),
        ("a.b.c.example.com.au", "example.com.au"),
        ("mx.ab.de", "ab.de"),
        ("co.uk", "co.uk"),
        ("com", "com"),
        ("", ""),
    ],
)
def test_names_of_one_registered_domain_are_one_party(name, party):
    assert party_of(name) == party


# -- beginnings --


async def begun(starts: Starts, *, first: bool = False) -> "asyncio.Task[Callable[[], None]]":
    task = asyncio.create_task(starts.begin(first=first))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_so_much_begins_at_once_and_the_next_at_an_end():
    starts = Starts(2, slow=60.0)
    one, two, three, four = [await begun(starts) for _ in range(4)]
    assert [task.done() for task in (one, two, three, four)] == [True, True, False, False]
    one.result()()
    one.result()()  # once more counts for nothing
    await three
    assert not four.done()
    two.result()()
    await four


async def test_what_goes_first_begins_before_others_that_wait_longer():
    starts = Starts(1, slow=60.0)
    running, waiting = await begun(starts), await begun(starts)
    urgent, later = await begun(starts, first=True), await begun(starts, first=True)
    running.result()()
    await urgent
    assert [waiting.done(), later.done()] == [False, False]
    urgent.result()()
    await later
    assert not waiting.done()
    later.result()()
    await waiting


async def test_work_that_waits_for_others_holds_up_nobody():
    starts = Starts(1, slow=0.02)
    await begun(starts)  # and never ends
    async with asyncio.timeout(5):
        await (await begun(starts))
        await (await begun(starts))


async def test_who_gives_up_while_he_waits_leaves_his_turn_to_others():
    starts = Starts(1, slow=60.0)
    running, waiting, other = [await begun(starts) for _ in range(3)]
    waiting.cancel()
    running.result()()
    async with asyncio.timeout(5):
        await other
