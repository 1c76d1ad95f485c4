# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Real files and policy files under the emulator's policy."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

import trio

from imafs.engine.emulator import Emulator
from imafs.errors import Refused
from imafs.formats.fields import Measurement
from imafs.kernel.policy.match import UNCONDITIONAL, Access, Decision
from imafs.kernel.policy.rules import MAY_READ
from imafs.sources import facts, files


async def judge(emulator: Emulator, path: str, access: Callable[[facts.Facts], Access]) -> Decision:
    """What the policy says about one use of ``path``, the access that its facts make.

    Nothing of the file is looked at while no policy is active. Raises :class:`Refused`.
    """
    if emulator.policy is None:
        return UNCONDITIONAL
    return emulator.judge(access(await trio.to_thread.run_sync(facts.of_path, path)))


def root_read(found: facts.Facts) -> Access:
    """Root opens the file for reading."""
    return facts.access("FILE_CHECK", MAY_READ, facts.User(), found)


def _root_policy(found: facts.Facts) -> Access:
    return facts.access("POLICY_CHECK", MAY_READ, facts.User(), found)


async def examine(
    emulator: Emulator, path: str, decision: Decision, name: bytes | None = None
) -> Measurement:
    """Hashes ``path`` for the template that ``decision`` asks for. Raises :class:`Refused`."""
    config = emulator.config
    template = decision.template or config.template
    return await trio.to_thread.run_sync(
        partial(files.examine, path, config.algorithm, name=name, want_sha1=template.has("d"))
    )


async def read_policy(emulator: Emulator, path: bytes) -> bytes:
    """A policy file as ``kernel_read_file_from_path`` reads it, in the daemon's own root.

    It is measured where the policy has POLICY_CHECK. Raises :class:`Refused`: the open's
    errno, EINVAL for what is no regular file or empty.
    """
    content = await trio.to_thread.run_sync(_read, path, abandon_on_cancel=True)
    if emulator.policy is not None:
        real = await trio.to_thread.run_sync(os.path.realpath, os.fsdecode(path))
        decision = await judge(emulator, real, _root_policy)
        if decision.measure:
            measurement = await examine(emulator, real, decision)
            emulator.append(emulator.record(measurement, decision.template, decision.pcr))
    return content


def _read(path: bytes) -> bytes:
    name = os.fsdecode(path)
    try:
        # O_NONBLOCK: a kernel waits for a fifo's writer, and with it who wrote the path.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refused(errno.EINVAL, f"{name} is not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{name}: {os.strerror(code)}") from None
    if not content:
        raise Refused(errno.EINVAL, f"{name} is empty")
    return content
