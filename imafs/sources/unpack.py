# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Archives and compressed files, read in a process of their own that can be killed.

with opened(descriptor) as found:
    found.entries     # what is in it; None for what is compressed and no archive
    found.read([0])   # the content of entries by their numbers, or of the one file ([0])

Blocking: call it in a thread.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from imafs.errors import FormatError
from imafs.host import programs
from imafs.sources import tarball, unpacker
from imafs.sources.tarball import Entry, Limits

#: Files in an archive.
MOST_ENTRIES = 4096
#: Bytes that may come out of a compressed file: so many, and so many times its own size.
#: Digests do not compress: recordings grow by 10 to 40.
_FREE, _RATIO = 32 << 20, 100
#: Bytes for a decompressor (``xz -9`` needs 65 MiB), and for its process.
_MEMORY, _SPACE = 128 << 20, 640 << 20
#: Seconds of processor time: so many, and one for so many bytes that come out, twice.
_SECONDS, _PER_SECOND = 20, 8 << 20
_LARGEST_ANSWER = 64 << 20


def is_packed(descriptor: int) -> bool:
    """Whether the file is compressed, or an archive, by its first bytes."""
    head = os.pread(descriptor, tarball.BLOCK, 0)
    return tarball.compression(head) is not None or tarball.is_archive(head)


class Archive:
    """The entries of a file, and their content; see :func:`opened`."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, seconds: int) -> None:
        self._process = process
        self._limits = limits
        self._seconds = seconds
        assert process.stdout is not None
        self._out = process.stdout
        line = self._out.readline(_LARGEST_ANSWER)
        if line.startswith(unpacker.FAILED) or not line.endswith(b"\n"):
            raise self._failure(line)
        rows = json.loads(line)
        self.entries = None if rows is None else [Entry(*row) for row in rows]

    def read(self, numbers: Sequence[int], most: int) -> list[bytes]:
        """The content of these entries, ``most`` bytes altogether; only once.

        Raises :class:`FormatError`.
        """
        wanted = sorted(set(numbers))
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.close()
        except BrokenPipeError:
            raise self._failure(b"") from None
        found: dict[int, bytes] = {}
        for number in wanted:
            found[number] = self._content(most)
            most -= len(found[number])
        return [found[number] for number in numbers]

    def _content(self, most: int) -> bytes:
        pieces: list[bytes] = []
        while True:
            head = self._out.read(5)
            kind, size = head[:1], int.from_bytes(head[1:], "big")
            if kind == unpacker.END:
                return b"".join(pieces)
            if kind != unpacker.DATA:
                raise self._failure(head)
            most -= size
            if most < 0:
                raise FormatError("it holds more than can be a list")
            pieces.append(self._out.read(size))

    def _failure(self, begun: bytes) -> FormatError:
        """The last words of the process, or how it ended."""
        if begun.startswith(unpacker.FAILED):
            said = (begun + self._out.read(1 << 16))[5:]
            return FormatError(said.decode(errors="replace").strip())
        code = self._process.wait()
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return FormatError(f"to unpack it takes more than {self._seconds} s, or it was killed")
        return FormatError(f"broken archive: the process that unpacks it ended with {code}")


@contextmanager
def opened(descriptor: int) -> Iterator[Archive]:
    """The archive, or the compressed file, that is open there, from its beginning.

    Raises :class:`FormatError` for what is none, is broken or takes too much, and OSError.
    """
    size = os.fstat(descriptor).st_size
    limits = Limits(MOST_ENTRIES, _FREE + _RATIO * size, _MEMORY)
    seconds = _SECONDS + 2 * limits.output // _PER_SECOND
    numbers = json.dumps([limits.entries, limits.output, limits.memory, _SPACE, seconds])
    process = subprocess.Popen(
        programs.python("imafs.sources.unpacker", str(descriptor), numbers),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        env=programs.environment(),
        cwd="/",
        start_new_session=True,
    )
    with process:
        try:
            yield Archive(process, limits, seconds)
        finally:
            # EPERM for a root without CAP_KILL, as it is nobody: it ends with its pipes.
            with suppress(PermissionError):
                process.kill()
