# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Real files and policy files under the emulator's policy."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from imafs import disk
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.formats.fields import Measurement
from imafs.host import bounded_thread
from imafs.kernel.policy.match import UNCONDITIONAL, Access, Decision, Policy
from imafs.kernel.policy.rules import MAY_READ
from imafs.sources import file_attributes, local_files

#: Bytes of a policy file.
MOST_POLICY = 64 << 20


@dataclass(frozen=True, slots=True)
class Judged:
    """One use of a file; ``measurement`` None: it is not measured."""

    decision: Decision
    measurement: Measurement | None


class Judge:
    """Judges and measures the uses of a moment: it has the policy, and knows how to hash.

    Blocking: use it in a thread. Facts, content and digest are of one open file each.
    """

    def __init__(self, policy: Policy | None, config: EmulatorConfig) -> None:
        self._policy = policy
        self._config = config

    def use(
        self,
        path: str,
        access: Callable[[file_attributes.Facts], Access],
        name: bytes | None = None,
    ) -> Judged:
        """One use of ``path``, the access that its facts make. Raises :class:`Refused`."""
        try:
            with disk.opened(path) as descriptor:
                decision = self._decide(descriptor, access)
                named = os.fsencode(path) if name is None else name
                return self._measured(decision, descriptor, named)
        except OSError as error:
            raise _refused(path, error) from None

    def policy_file(self, path: bytes) -> tuple[bytes, Judged]:
        """A file of rules and the use that reading it is. Raises :class:`Refused`.

        As in ``ima_post_read_file`` the digest is of the very bytes that were read.
        """
        name = os.fsdecode(path)
        try:
            with disk.opened(path) as descriptor:
                content = disk.content(descriptor, MOST_POLICY, bounded_thread.going_on)
                if not content:
                    raise Refused(errno.EINVAL, f"{name} is empty")
                if self._policy is None:
                    return content, Judged(UNCONDITIONAL, None)
                decision = self._decide(descriptor, _root_policy)
                return content, self._measured(decision, descriptor, _opened(descriptor), content)
        except OSError as error:
            raise _refused(name, error) from None

    def _decide(
        self, descriptor: int, access: Callable[[file_attributes.Facts], Access]
    ) -> Decision:
        # Nothing of the file is looked at while no policy is active.
        if self._policy is None:
            return UNCONDITIONAL
        return self._policy.decide(access(file_attributes.of_descriptor(descriptor)))

    def _measured(
        self, decision: Decision, descriptor: int, name: bytes, content: bytes | None = None
    ) -> Judged:
        if not decision.measure:
            return Judged(decision, None)
        want_sha1 = (decision.template or self._config.template).has("d")
        measurement = local_files.describe(
            descriptor,
            name,
            self._config.algorithm,
            want_sha1=want_sha1,
            content=content,
            going_on=bounded_thread.going_on,
        )
        return Judged(decision, measurement)


def root_read(found: file_attributes.Facts) -> Access:
    """Root opens the file for reading."""
    return file_attributes.access("FILE_CHECK", MAY_READ, file_attributes.User.of(), found)


def _root_policy(found: file_attributes.Facts) -> Access:
    return file_attributes.access("POLICY_CHECK", MAY_READ, file_attributes.User.of(), found)


def _opened(descriptor: int) -> bytes:
    """The path that was opened, through links, as ``ima_d_path`` tells it."""
    name = os.readlink(os.fsencode(f"/proc/self/fd/{descriptor}"))
    # Only d_path says so, not d_absolute_path, which a kernel takes here.
    return name if os.fstat(descriptor).st_nlink else name.removesuffix(b" (deleted)")


async def judge(
    emulator: Emulator,
    path: str,
    access: Callable[[file_attributes.Facts], Access],
    name: bytes | None = None,
) -> Judged:
    """One use of ``path`` under the policy of this moment. Raises :class:`Refused`."""
    use = partial(Judge(emulator.kernel.policy, emulator.kernel.config).use, path, access, name)
    return await bounded_thread.run(use, silence=bounded_thread.SILENCE)


async def read_policy(emulator: Emulator, path: bytes) -> bytes:
    """A policy file as ``kernel_read_file_from_path`` reads it, in the daemon's own root.

    It is measured where the policy has POLICY_CHECK. Raises :class:`Refused`: the open's
    errno, EINVAL for what is no regular file or empty, EFBIG above :data:`MOST_POLICY`,
    EAGAIN where its file system does not answer (the writer could not even be killed), ENODEV
    where another kernel runs when it has been read.
    """
    boot = emulator.kernel
    read = partial(Judge(emulator.kernel.policy, emulator.kernel.config).policy_file, path)
    content, judged = await bounded_thread.run(read, silence=bounded_thread.SILENCE)
    if emulator.kernel is not boot:
        raise Refused(errno.ENODEV, "the kernel that read the policy file is gone")
    if judged.measurement is not None:
        decision = judged.decision
        record = emulator.kernel.record(judged.measurement, decision.template, decision.pcr)
        emulator.append(record)
    return content


def _refused(path: str, error: OSError) -> Refused:
    code = error.errno or errno.EIO
    return Refused(code, f"{path}: {error.strerror or os.strerror(code)}")
