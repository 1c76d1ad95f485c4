# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Around a client's call: what is told, in which order, and what scenarios do of it."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import pytest
import trio
import trio.testing
from trio.testing import MockClock, assert_no_checkpoints

from imafs.control.ops import Options
from imafs.control.server import Handler, ProgressCallback
from imafs.errors import Refused
from imafs.interface.grammar import Operation
from imafs.scenarios.faults import Rule
from imafs.scenarios.gate import Trouble
from imafs.scenarios.runner import LONGEST, MOST_ERRORS, MOST_LATER, Director
from imafs.scenarios.script import Told, parse
from imafs.verbs.table import TABLE
from tests.support import ExpectedLogs

T = TypeVar("T")

NAMES = ["file", "link"]


class Ear:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def happened(
        self, event: str, names: Sequence[str], *, writing: bool | None = None
    ) -> None:
        assert event == "after close" or names == NAMES
        self.heard.append(event if writing is None else f"{event} {writing}")

    def added(self, total: int) -> None:
        self.heard.append(f"{total} records")


def done(result: T) -> Callable[[], Awaitable[T]]:
    """An act that returns ``result`` without giving a turn away."""

    async def act() -> T:
        return result

    return act


def listened() -> tuple[Trouble, Ear]:
    trouble, ear = Trouble(), Ear()
    assert not trouble.active
    trouble.listener = ear
    assert trouble.active
    return trouble, ear


async def test_events_around_a_call() -> None:
    trouble, ear = listened()

    async def act() -> bytes:
        ear.heard.append("act")
        return b"data"

    assert await trouble.around("read", NAMES, act) == b"data"
    assert ear.heard == ["before read", "act", "after read"]
    ear.heard.clear()
    assert await trouble.around("read", NAMES, done(b"")) == b""
    assert ear.heard == ["before read", "after read", "after end"]
    ear.heard.clear()
    assert await trouble.around("write", NAMES, done(2), request=Operation.STAGE) == 2
    assert ear.heard == ["before write", "before stage", "after write", "after stage"]
    ear.heard.clear()
    await trouble.around("open", NAMES, done(1), writing=True)
    assert ear.heard == ["before open True", "after open True"]
    ear.heard.clear()
    await trouble.closed(["any"])
    assert ear.heard == ["after close"]


async def test_a_call_that_fails_by_itself_or_by_a_fault() -> None:
    trouble, ear = listened()

    async def fail() -> int:
        raise Refused(errno.ENOENT, "nothing is staged")

    with pytest.raises(Refused, match="nothing is staged"):
        await trouble.around("write", NAMES, fail, request=Operation.DELETE_STAGED)
    assert ear.heard == ["before write", "before delete", "refused write", "refused delete"]
    ear.heard.clear()
    trouble.faults.add(Rule("write", errno.EIO, next=1))
    with pytest.raises(Refused, match="asked for"):
        await trouble.around("write", NAMES, fail, request=Operation.DELETE_STAGED)
    assert ear.heard[-1] == "refused delete"


async def test_nothing_due_gives_no_turn_away() -> None:
    """Else opens and releases would change the counts in another order than they came."""
    trouble = Trouble()
    director = Director(trouble, TABLE, lambda: {})
    await director.begin(parse(STEPS, "quiet", TABLE.validate))
    with assert_no_checkpoints():
        await trouble.around("open", NAMES, done(1), writing=False)
        await trouble.closed(NAMES)


STEPS = """
[[step]]
when = "before write"
do = [{ op = "repeat" }, { op = "violation", name = "/v" }]
[[step]]
when = "records"
records = 3
seconds = 7
do = [{ op = "suspend" }]
"""


class Stage:
    """Handlers that write down what they are asked, and fail or hang where told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.failing = self.hanging = ""

    def handlers(self) -> dict[str, Handler]:
        return {name: self._handler(name) for name in ("repeat", "violation", "suspend")}

    def _handler(self, name: str) -> Handler:
        async def handle(options: Options, progress: ProgressCallback) -> Mapping[str, object]:
            self.asked.append((name, dict(options)))
            if name == self.failing:
                raise Refused(errno.ENOENT, "no record")
            if name == self.hanging:
                await trio.sleep_forever()
            return {}

        return handle


def steps(director: Director) -> list[Told]:
    told = director.describe()
    assert told is not None
    return told["steps"]


async def test_steps_are_done_in_order_and_told() -> None:
    stage = Stage()
    director = Director(Trouble(), TABLE, stage.handlers)
    assert director.describe() is None
    await director.begin(parse(STEPS, "mine", TABLE.validate))
    assert steps(director)[0]["due"] == 0
    await director.happened("before write", NAMES)
    assert stage.asked == [("repeat", {}), ("violation", {"name": "/v"})]
    assert steps(director)[0] == {
        **{"when": "before write", "do": ["repeat", "violation"]},
        **{"due": 1, "done": 1, "failed": 0, "errors": []},
    }
    await director.happened("before write", NAMES)
    assert len(stage.asked) == 2


async def test_a_step_ends_at_what_is_refused(expected_logs: ExpectedLogs) -> None:
    expected_logs.expect("scenario mine, step 1: repeat: ENOENT: no record")
    stage = Stage()
    stage.failing = "repeat"
    director = Director(Trouble(), TABLE, stage.handlers)
    await director.begin(parse(STEPS, "mine", TABLE.validate))
    await director.happened("before write", NAMES)
    assert stage.asked == [("repeat", {})]
    assert steps(director)[0]["errors"] == ["repeat: ENOENT: no record"]
    assert steps(director)[0]["done"] == 0


async def test_a_client_waits_so_long_and_not_longer(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect("violation: not done within 20 s")
    stage = Stage()
    stage.hanging = "violation"
    director = Director(Trouble(), TABLE, stage.handlers)
    await director.begin(parse(STEPS, "mine", TABLE.validate))
    begin = trio.current_time()
    await director.happened("before write", NAMES)
    assert trio.current_time() - begin == pytest.approx(LONGEST)


async def test_steps_by_records_and_time_are_done_in_the_background(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    trouble = Trouble()
    director = Director(trouble, TABLE, stage.handlers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(director.run)
        await director.begin(parse(STEPS, "mine", TABLE.validate))
        for total in (1, 2, 3, 4):
            director.added(total)
        await trio.sleep(6.9)
        assert stage.asked == []
        await trio.sleep(0.2)
        assert stage.asked == [("suspend", {})]
        # Of a scenario that has ended nothing is due any more.
        await director.begin(parse(STEPS, "again", TABLE.validate))
        director.added(3)
        await director.scenario_end(Options(), lambda done, total: None)
        assert not trouble.active
        await trio.sleep(10)
        assert len(stage.asked) == 1
        nursery.cancel_scope.cancel()


async def test_a_bug_in_an_operation_is_told(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    """In the background too, where nothing else would keep it from the daemon."""

    async def repeat(options: Options, progress: ProgressCallback) -> Mapping[str, object]:
        raise RecursionError("planted")

    expected_logs.expect("operation repeat failed")
    expected_logs.expect("repeat: internal error, see the daemon's log")
    director = Director(Trouble(), TABLE, lambda: {"repeat": repeat})
    step = '[[step]]\nwhen = "start"\nseconds = 0.01\ndo = [{ op = "repeat" }]\n'
    async with trio.open_nursery() as nursery:
        nursery.start_soon(director.run)
        await director.begin(parse(step, "mine", TABLE.validate))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert steps(director)[0]["errors"] == ["repeat: internal error, see the daemon's log"]


async def test_only_the_first_errors_are_told(expected_logs: ExpectedLogs) -> None:
    expected_logs.expect("repeat: ENOENT: no record")
    stage = Stage()
    stage.failing = "repeat"
    director = Director(Trouble(), TABLE, stage.handlers)
    always = STEPS.replace('write"', 'write"\nevery = 1')
    await director.begin(parse(always, "mine", TABLE.validate))
    for _ in range(3 * MOST_ERRORS):
        await director.happened("before write", NAMES)
    told = steps(director)[0]
    assert told["errors"] == MOST_ERRORS * ["repeat: ENOENT: no record"]
    assert told["failed"] == 3 * MOST_ERRORS


async def test_steps_that_wait_are_bounded_and_end_with_their_scenario(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    director = Director(Trouble(), TABLE, stage.handlers)
    step = '[[step]]\nwhen = "after open"\nevery = 1\nseconds = 3000\ndo = [{op = "repeat"}]\n'
    async with trio.open_nursery() as nursery:
        nursery.start_soon(director.run)
        for begun in range(2):
            await director.begin(parse(step, "mine", TABLE.validate))
            for _ in range(MOST_LATER + 5):
                await director.happened("after open", NAMES)
            await trio.testing.wait_all_tasks_blocked()
            assert steps(director)[0]["failed"] == 5, begun
            assert trio.lowlevel.current_statistics().tasks_living > MOST_LATER
            await director.scenario_end(Options(), lambda done, total: None)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living < 20
        nursery.cancel_scope.cancel()
    assert stage.asked == []


async def test_records_that_are_there_when_a_scenario_begins() -> None:
    stage = Stage()
    director = Director(Trouble(), TABLE, stage.handlers, lambda: 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(director.run)
        for records, due in ((4, 0), (3, 1), (2, 1)):
            step = f'[[step]]\nwhen = "records"\nrecords = {records}\ndo = [{{op = "repeat"}}]\n'
            await director.begin(parse(step, "mine", TABLE.validate))
            await trio.testing.wait_all_tasks_blocked()
            assert steps(director)[0]["due"] == steps(director)[0]["done"] == due
        nursery.cancel_scope.cancel()


async def test_another_scenario_begins_while_a_step_is_done() -> None:
    """Of the first one no further step is done, and none is put down to the second."""
    begun = trio.Event()
    go_on = trio.Event()
    done: list[str] = []

    async def repeat(options: Options, progress: ProgressCallback) -> Mapping[str, object]:
        done.append("repeat")
        begun.set()
        await go_on.wait()
        return {}

    director = Director(Trouble(), TABLE, lambda: {"repeat": repeat})
    step = '[[step]]\nwhen = "after open"\ndo = [{ op = "repeat" }]\n'
    await director.begin(parse(2 * step, "first", TABLE.validate))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(director.happened, "after open", NAMES)
        await begun.wait()
        await director.begin(parse(step, "second", TABLE.validate))
        go_on.set()
    assert done == ["repeat"]
    assert steps(director)[0]["due"] == 0
