# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""An agent that stages, reads, deletes and keeps records as the kernel's document says."""

from __future__ import annotations

import errno
import os
from collections import Counter
from types import TracebackType

from tests.crash.collected import Piece, records
from tests.mount.daemon import BINARY, Daemon, read_to_end

STAGED = f"{BINARY}_staged"
#: What tells an agent that the kernel ends or has ended: keep nothing of the present stage.
LOST = (errno.ESTALE, errno.EACCES, errno.ENODEV)


class Agent:
    """One descriptor for A, read and D. ``kept``: what it would have on its disk."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._descriptor = -1
        self._read = b""
        self.kept: Piece = []
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Agent:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Opens the staged list, the only writer."""
        self._descriptor = os.open(self._daemon.path(STAGED), os.O_RDWR)

    def close(self) -> None:
        """Lets go; what was not deleted was not kept."""
        os.close(self._descriptor)
        self._read = b""

    def stage(self) -> None:
        """A."""
        os.write(self._descriptor, b"A\n")

    def read(self) -> bytes:
        """All that is staged."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._read = read_to_end(self._descriptor)
        return self._read

    def delete(self) -> None:
        """D; only then what was read counts as kept (a copy on disk would be renamed now)."""
        os.write(self._descriptor, b"D\n")
        self.kept += records(self._read, "sha1")
        self._read = b""

    def error(self, step: str) -> int:
        """The errno of a step that must fail."""
        try:
            getattr(self, step)()
        except OSError as error:
            return error.errno or 0
        raise AssertionError(f"{step} did not fail")

    def cycle(self) -> None:
        """A, read, D as often as it comes; whatever a kernel's end does to it is counted."""
        self.open()
        try:
            try:
                self.stage()
            except OSError as error:
                if error.errno != errno.EEXIST:  # left over from a cycle that was cut off
                    raise
            self.read()
            self.delete()
            self.counts["cycles"] += 1
        except OSError as error:
            if error.errno not in (*LOST, errno.ENOENT):
                raise
            self.counts[errno.errorcode[error.errno]] += 1
        finally:
            self.close()

    def all(self) -> Piece:
        """What was kept and what the kernel still has: everything since boot, in order."""
        rest = [self._daemon.read(name) for name in (STAGED, BINARY)]
        return [*self.kept, *(one for data in rest for one in records(data, "sha1"))]
