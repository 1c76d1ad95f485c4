# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations that end a kernel: suspend, kexec, reboot, reset."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from imafs import disk
from imafs.control.ops import Options
from imafs.control.server import ProgressCallback
from imafs.emulator.emulator import Emulator
from imafs.emulator.restart import Lifecycle
from imafs.errors import FileError, Refused, UsageError
from imafs.host import bounded_thread, ownership
from imafs.interface import profiles
from imafs.interface.profiles import Profile
from imafs.kernel.kexec import Crossing
from imafs.verbs.answers import Buffer, Crossed, KexecLoaded, Nothing, Rebooted


class Restarting:
    """Handlers over one emulator.

    ``bulk`` is held by whoever adds many records in turns: nothing here happens between
    two of them. ``booted`` is called after a boot, not after a kexec.
    """

    def __init__(self, emulator: Emulator, bulk: trio.Lock, booted: Callable[[], object]) -> None:
        self._emulator = emulator
        self._lifecycle = Lifecycle(emulator)
        self._bulk = bulk
        self._booted = booted

    async def suspend(self, options: Options, progress: ProgressCallback) -> Nothing:
        """As the reboot notifier does: no new records, A EACCES, D and N ESTALE."""
        async with self._bulk:
            self._emulator.queue.suspended = True
        return {}

    async def resume(self, options: Options, progress: ProgressCallback) -> Nothing:
        """Back from suspend, which a kernel never does; not out of a kexec."""
        async with self._bulk:
            if self._lifecycle.held is not None:
                raise Refused(errno.EBUSY, "a kexec is held: end it with kexec-finish")
            self._emulator.queue.suspended = False
        return {}

    async def kexec_load(self, options: Options, progress: ProgressCallback) -> KexecLoaded:
        """The segment that was reserved."""
        async with self._bulk:
            cmdline = options.raw("cmdline") if "cmdline" in options else b""
            return {"segment_size": self._lifecycle.load(cmdline).segment_size}

    async def kexec_execute(self, options: Options, progress: ProgressCallback) -> Crossed:
        """What became of the list, or that the kexec is held."""
        profile = _profile(options)
        async with self._bulk:
            found = await self._lifecycle.execute(
                profile,
                carry_over=not options.flag("no_carry"),
                whole=options.flag("whole"),
                hold=options.flag("hold"),
            )
        return {"held": True} if found is None else self._crossed(found)

    async def kexec_finish(self, options: Options, progress: ProgressCallback) -> Crossed:
        """What became of the list."""
        async with self._bulk:
            return self._crossed(await self._lifecycle.finish())

    def _crossed(self, found: Crossing) -> Crossed:
        return {
            "held": False,
            "profile": self._emulator.kernel.config.profile.name,
            "records": found.records,
            "carried": found.carried,
            "lost": found.lost,
            "why": found.why,
        }

    async def kexec_buffer(self, options: Options, progress: ProgressCallback) -> Buffer:
        """The file is written whole or not at all."""
        path = options.text("file")
        data, records = self._lifecycle.buffer()
        await bounded_thread.run(partial(_write, path, data), silence=bounded_thread.SILENCE)
        return {"file": path, "bytes": len(data), "records": records}

    async def reboot(self, options: Options, progress: ProgressCallback) -> Rebooted:
        """Down through suspend, then list and TPM as after a boot."""
        profile = _profile(options)
        async with self._bulk:
            await self._lifecycle.reboot(profile)
            self._booted()
        return {"profile": self._emulator.kernel.config.profile.name}

    async def reset(self, options: Options, progress: ProgressCallback) -> Nothing:
        """List and TPM as after a boot."""
        async with self._bulk:
            await self._emulator.reset()
            self._booted()
        return {}


def _profile(options: Options) -> Profile | None:
    name = options.maybe_text("profile")
    return None if name is None else profiles.lookup(name)


def _write(path: str, data: bytes) -> None:
    try:
        with ownership.parent(path) as (directory, name):
            _check_replaceable(directory, name, path)
            with disk.replacing(name, 0o600, directory=directory) as descriptor:
                disk.fill(descriptor, (data,))
                bounded_thread.going_on()  # nothing is replaced once nobody waits
    except ownership.ForeignError as error:
        raise ownership.ForeignError(f"{path}: {error}") from None
    except OSError as error:
        raise FileError(path, error) from None


def _check_replaceable(directory: int, name: bytes, path: str) -> None:
    """Raises :class:`UsageError` where renaming would take the place of a device or a directory,
    or of another user's file."""
    ownership.check_replaceable(directory, name)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise UsageError(f"{path}: is no regular file")
