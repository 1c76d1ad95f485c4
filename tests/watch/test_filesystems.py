# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Looking at paths of which some are on file systems that do not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imafs.errors import Refused
from imafs.sources.watch.daemon import filesystems
from imafs.sources.watch.daemon.filesystems import THREADS, Surveyor
from tests.unit.emulator_fake import DEADLINE


class Dead:
    """Looks at names that begin with ``hangs`` hang until ``answers`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hangs = "dead"
        self.answers = threading.Event()
        self.looks: list[str] = []
        look, resolve = filesystems.look_at, filesystems.resolve

        def hanging_look(point: bytes) -> filesystems.Point:
            self._look(point.decode())
            return look(point)

        def hanging_resolve(path: str, leave: bytes) -> bytes:
            self._look(path)
            return resolve(path, leave)

        monkeypatch.setattr(filesystems, "look_at", hanging_look)
        monkeypatch.setattr(filesystems, "resolve", hanging_resolve)

    def _look(self, path: str) -> None:
        if Path(path).name.startswith(self.hangs):
            self.looks.append(path)
            assert self.answers.wait(DEADLINE)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dead]:
    # More than a look takes on a busy machine at a file system that does answer.
    monkeypatch.setattr(filesystems, "LOOK", 1.0)
    monkeypatch.setattr(filesystems, "LOOK_ON", 1.0)
    made = Dead(monkeypatch)
    yield made
    made.answers.set()


@pytest.fixture
def paths(tmp_path: Path) -> list[bytes]:
    """A file, some that hang, a directory at last."""
    (tmp_path / "file").touch()
    names = ["file", "dead", "directory"]
    for name in names[1:]:
        (tmp_path / name).mkdir()
    return [bytes(tmp_path / name) for name in names]


async def test_others_are_found(dead: Dead, paths: list[bytes]) -> None:
    again = trio.Event()
    looking = Surveyor(b"/nowhere", again.set, trio.CapacityLimiter(1))
    file, hung, directory = paths
    for _ in range(3):
        found = await looking.survey(paths)
        assert found.points == (file, directory)
        # What is not known to be a directory is none.
        assert found.files == (file, hung)
        assert found.silent == (hung,)
        assert "does not answer" in str(found.left_out[hung])
    # One thread hangs there, whatever is asked meanwhile.
    assert len(dead.looks) == 1
    with pytest.raises(Refused, match="dead: its file system does not answer"):
        await looking.resolve(hung.decode())
    assert not again.is_set()
    dead.answers.set()
    with trio.fail_after(DEADLINE):
        await again.wait()
    found = await looking.survey(paths)
    assert found.points == tuple(paths)
    assert (found.files, found.silent, found.left_out) == ((file,), (), {})


async def test_all_threads_hang(
    dead: Dead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes then is told at once, and nobody else's threads are taken."""
    monkeypatch.setattr(filesystems, "LOOK_ON", 0.05)  # all of them hang
    looking = Surveyor(b"/nowhere", lambda: None, trio.CapacityLimiter(1))
    hung = [bytes(tmp_path / f"dead{i}") for i in range(THREADS + 2)]
    for path in hung:
        Path(path.decode()).mkdir()
    found = await looking.survey(hung)
    assert len(dead.looks) == THREADS
    assert len(found.silent) == len(found.left_out) == len(hung)
    text = f"{tmp_path} is not looked at: {THREADS} file systems do not answer .*/dead0, "
    with trio.fail_after(DEADLINE), pytest.raises(Refused, match=text):
        await looking.resolve(str(tmp_path))
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_what_was_known(dead: Dead, tmp_path: Path) -> None:
    """A file system that hangs now may be marked: what is known of it is still true, also
    when it is no more concerned, and nobody may touch it."""
    looking = Surveyor(b"/nowhere", lambda: None, trio.CapacityLimiter(1))
    directory, other = bytes(tmp_path / "directory"), bytes(tmp_path)
    (tmp_path / "directory").mkdir()
    before = await looking.survey([directory, other])
    dead.hangs = "directory"
    found = await looking.survey([directory, other], before)
    assert (found.points, found.silent) == ((other,), (directory,))
    assert (found.files, found.file_systems) == ((), before.file_systems)
    for _ in range(2):
        found = await looking.survey([other], found)
        assert (found.points, found.silent, found.left_out) == ((other,), (directory,), {})
    dead.answers.set()
    with trio.fail_after(DEADLINE):
        while found.silent:
            found = await looking.survey([other], found)
    assert found == await looking.survey([other])


async def test_whoever_asked_goes_away(dead: Dead, tmp_path: Path) -> None:
    """The thread counts as well, until it has come back."""
    again = trio.Event()
    looking = Surveyor(b"/nowhere", again.set, trio.CapacityLimiter(1))
    path = str(tmp_path / "dead")
    (tmp_path / "dead").mkdir()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(looking.resolve, path)
        with trio.fail_after(DEADLINE):
            while not dead.looks:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    with pytest.raises(Refused, match="does not answer"):
        await looking.resolve(path)
    dead.answers.set()
    with trio.fail_after(DEADLINE):
        await again.wait()
    assert await looking.resolve(path) == path.encode()
