# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Work in processes: results, refusals, children that die, and threads beside."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from imafs.attest import parallel
from imafs.attest.parallel import WORTH, Beside, Progress, in_processes
from imafs.errors import FormatError


def silent(done: int, total: int) -> None:
    return None


def process(name: str, progress: Progress) -> tuple[str, int]:
    return name, os.getpid()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Children by their process ids, although pytest may have threads of its own."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    found: list[int] = []
    fork = parallel._fork

    def noting() -> int:
        pid = fork()
        found.append(pid)
        return pid

    monkeypatch.setattr(parallel, "_fork", noting)
    return found


def test_every_other_work_has_a_process_of_its_own(forked: list[int]) -> None:
    found = in_processes(process, ["a", "b", "c"], silent, WORTH)
    assert [name for name, _ in found] == ["a", "b", "c"]
    assert found[0][1] == os.getpid()
    assert [pid for _, pid in found[1:]] == forked
    assert len({pid for _, pid in found}) == 3


def test_small_work_has_none() -> None:
    assert {pid for _, pid in in_processes(process, ["a", "b"], silent, WORTH - 1)} == {os.getpid()}


def test_a_process_with_threads_is_not_copied() -> None:
    """Another thread may hold a lock, which no one would ever release in the copy."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        found = in_processes(process, ["a", "b"], silent, WORTH)
    finally:
        go.set()
        thread.join()
    assert {pid for _, pid in found} == {os.getpid()}


@pytest.mark.parametrize("at", ["a", "b", "c"])
def test_a_refusal_of_any(forked: list[int], at: str) -> None:
    def work(name: str, progress: Progress) -> str:
        if name == at:
            raise FormatError("no", record=3, offset=7)
        return name

    with pytest.raises(FormatError) as caught:
        in_processes(work, ["a", "b", "c"], silent, WORTH)
    assert (caught.value.reason, caught.value.record, caught.value.offset) == ("no", 3, 7)
    assert len(forked) == 2
    for child in forked:
        with pytest.raises(ChildProcessError):  # nobody is left behind
            os.waitpid(child, os.WNOHANG)


def test_work_of_a_child_that_died_is_done_again(forked: list[int]) -> None:
    here = os.getpid()

    def work(name: str, progress: Progress) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    assert in_processes(work, ["a", "b"], silent, WORTH) == [here, here]
    assert len(forked) == 1


def test_a_bug_in_a_child_is_seen_here(
    forked: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    def work(name: str, progress: Progress) -> str:
        if name == "b":
            raise ZeroDivisionError
        return name

    with pytest.raises(ZeroDivisionError):
        in_processes(work, ["a", "b"], silent, WORTH)
    assert len(forked) == 1
    assert capfd.readouterr() == ("", "")


def test_no_room_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(11, "no")

    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(os, "fork", fork)
    assert {pid for _, pid in in_processes(process, ["a", "b"], silent, WORTH)} == {os.getpid()}


def test_results_of_a_fork_come_in_order_while_it_goes_on(forked: list[int]) -> None:
    large = "x" * (1 << 18)  # more than a pipe takes
    beside = Beside(lambda name: (name + large, os.getpid()), ["a", "b", "c"])
    found = list(beside.results())
    beside.end()
    assert [text for text, _ in found] == ["a" + large, "b" + large, "c" + large]
    assert [pid for _, pid in found] == forked * 3
    with pytest.raises(ChildProcessError):
        os.waitpid(forked[0], os.WNOHANG)


def test_a_fork_beside_that_refuses_dies_or_is_not_there(
    forked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.getpid()

    def refuses(name: str) -> str:
        if name == "b":
            raise FormatError("no", record=3)
        return name

    beside = Beside(refuses, ["a", "b", "c"])
    results = beside.results()
    assert next(results) == "a"
    with pytest.raises(FormatError, match="no"):
        next(results)
    beside.end()

    def dies(name: str) -> int:
        if os.getpid() != here and name == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    other = Beside(dies, ["a", "b", "c"])
    assert list(other.results()) == [forked[1], here, here]

    def fork() -> int:
        raise OSError(11, "no")

    monkeypatch.setattr(parallel, "_fork", fork)
    other = Beside(dies, ["a", "b"])
    assert list(other.results()) == [here, here]
    other.end()
