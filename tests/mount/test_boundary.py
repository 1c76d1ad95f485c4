# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The handlers without a mount: nothing but FUSEError leaves them, no timeouts, no cache."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
from pyfuse3 import FUSEError

from imafs.emulator import files
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.directory import ImaDirectory
from imafs.emulator.emulator import Emulator
from imafs.errors import FormatError, Refused, TpmError
from imafs.fuse.operations import DirectoryOperations
from imafs.fuse.refusals import Refusals
from imafs.tpm import open_device
from tests.support import ExpectedLogs


class Context:
    """What handlers use of a RequestContext."""

    pid = os.getpid()
    uid = 0
    gid = 0
    umask = 0


CTX: Any = Context()


async def start() -> Emulator:
    emulator = Emulator(EmulatorConfig(), open_device("none"))
    await emulator.start()
    return emulator


async def make() -> DirectoryOperations:
    return DirectoryOperations(ImaDirectory(await start(), "ima"))


async def code(call: Callable[[], Awaitable[object]]) -> int:
    """errno of the FUSEError; 0 for none; any other exception fails the test."""
    try:
        await call()
    except FUSEError as error:
        return error.errno
    return 0


async def entry(ops: DirectoryOperations, name: str) -> Any:
    return await ops.lookup(pyfuse3.ROOT_INODE, os.fsencode(name), CTX)


def handlers() -> list[str]:
    """The handlers that pyfuse3 calls and that are ours."""
    return sorted(
        name
        for name, member in {**vars(Refusals), **vars(DirectoryOperations)}.items()
        if inspect.iscoroutinefunction(inspect.unwrap(member)) and not name.startswith("_")
    )


def test_every_handler_is_inside_the_boundary() -> None:
    assert len(handlers()) >= 22
    for name in handlers():
        assert hasattr(getattr(DirectoryOperations, name), "__wrapped__"), name


async def test_a_bug_is_eio_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    ops = await make()
    inode = (await entry(ops, "ascii_runtime_measurements_sha1")).st_ino
    info = await ops.open(inode, os.O_RDONLY, CTX)

    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(files.ListHandle, "read", fail)
    expected_logs.expect("read failed: EIO for this call(.|\n)*Traceback(.|\n)*a bug")
    assert await code(lambda: ops.read(info.fh, 0, 4096)) == errno.EIO
    monkeypatch.undo()
    assert await ops.read(info.fh, 0, 4096)
    await ops.release(info.fh)


async def test_unknown_numbers_are_eio_not_the_end(expected_logs: ExpectedLogs) -> None:
    ops = await make()
    number: Any = 99_999
    expected_logs.expect("EIO for this call")
    # An inode may be of a kernel that is gone.
    assert await code(lambda: ops.getattr(number, CTX)) == errno.ENOENT
    assert await code(lambda: ops.read(number, 0, 1)) == errno.EIO
    assert await code(lambda: ops.release(number)) == errno.EIO


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Refused(errno.ESTALE, "x"), errno.ESTALE),
        (FormatError("x"), errno.EINVAL),
        (TpmError("x"), errno.EIO),
    ],
)
async def test_errors_of_ours_become_their_errno(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: int
) -> None:
    ops = await make()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(ops, "_attributes", fail)
    inode: Any = pyfuse3.ROOT_INODE
    assert await code(lambda: ops.getattr(inode, CTX)) == expected


async def test_no_timeouts_and_no_cache() -> None:
    ops = await make()
    for node in ops._tree.nodes.values():
        attr = ops._attributes(node)
        assert (attr.entry_timeout, attr.attr_timeout) == (0, 0)
    for name in (
        "ascii_runtime_measurements_sha1",
        "binary_runtime_measurements_sha1_staged",
        "runtime_measurements_count",
        "violations",
        "policy",
    ):
        inode = (await entry(ops, name)).st_ino
        info = await ops.open(inode, os.O_RDONLY, CTX)
        assert info.direct_io
        assert not info.keep_cache
        assert not info.nonseekable, "readers seek"
        await ops.release(info.fh)
    assert not ops.enable_writeback_cache


async def test_open_and_release_count_before_their_first_await() -> None:
    """Driven by hand: one step of the coroutine must end it."""
    emulator = await start()
    ops = DirectoryOperations(ImaDirectory(emulator, "ima"))
    inode = (await entry(ops, "ascii_runtime_measurements_sha1")).st_ino
    accounting = emulator.kernel.accounting
    opening: Any = ops.open(inode, os.O_RDONLY, CTX)
    with pytest.raises(StopIteration) as opened:
        opening.send(None)
    assert len(accounting.readers) == 1
    releasing: Any = ops.release(opened.value.value.fh)
    with pytest.raises(StopIteration):
        releasing.send(None)
    assert not accounting.readers


def test_no_poll_handler() -> None:
    """Closed list: poll answers as a kernel does when the daemon has none."""
    assert "poll" not in {*vars(Refusals), *vars(DirectoryOperations)}
