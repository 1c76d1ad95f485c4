# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The process that reads an archive: killed when it takes too much, without harm to anybody.

``python -m imafs.sources.unpacker FD LIMITS`` says in one line of JSON what is in the file,
is told in one line which entries are wanted, and sends these as frames (see ``imafs.sources.
archive``, which starts it).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import BinaryIO

from imafs.host import linux
from imafs.sources import tarball
from imafs.sources.tarball import BrokenError, Limits, Stream

#: Kinds of frames, each followed by the length of what it holds: a piece, the end of an entry,
#: the reason why there is no more.
DATA, END, FAILED = b"D", b"E", b"F"
#: Of the overflow user and group, which own nothing.
_NOBODY = 65534


def main(descriptor: int, limits: Limits, memory: int, seconds: int) -> None:
    """Serves one archive on stdin and stdout."""
    out = sys.stdout.buffer
    try:
        tarball.prepare(descriptor)
        _confine(memory, seconds)
        out.write(json.dumps(_contents(descriptor, limits)).encode() + b"\n")
        out.flush()
        wanted = json.loads(sys.stdin.buffer.readline(1 << 20) or b"[]")
        _send(descriptor, limits, set(wanted), out)
    except (BrokenError, MemoryError, *tarball.ERRORS) as error:
        if isinstance(error, BrokenPipeError):
            return  # nobody wants it any more
        why = reason(error, limits).encode()
        out.write(FAILED + len(why).to_bytes(4, "big") + why)
        out.flush()


def _confine(memory: int, seconds: int) -> None:
    """Confines this process: a broken decompressor can use what is open here, no more."""
    _drop_privileges()
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        # Opens, forks and connects no more.
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))


def _drop_privileges() -> None:
    """Root becomes nobody; no program can give more rights to any user."""
    linux.no_new_privileges()
    if os.geteuid() != 0:
        return
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except OSError as error:
        # EPERM: a root without CAP_SETUID; EINVAL: of a user namespace that has no nobody.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise


def reason(error: BaseException, limits: Limits) -> str:
    """Why an archive cannot be read, for people."""
    if isinstance(error, BrokenError):
        return str(error)
    if isinstance(error, MemoryError) or "emory usage limit" in str(error):
        return f"to unpack it takes more memory than {limits.memory >> 20} MiB"
    return f"broken archive: {error}"


def _contents(descriptor: int, limits: Limits) -> list[list[object]] | None:
    """Name, kind, size and target of every entry; None for a file that is no archive."""
    if not _is_archive(descriptor, limits):
        return None
    walked = tarball.walk(Stream(descriptor, limits))
    return [[e.name, e.kind, e.size, e.target] for e, _ in walked]


def _is_archive(descriptor: int, limits: Limits) -> bool:
    return tarball.is_archive(Stream(descriptor, limits).read(tarball.BLOCK))


def _send(descriptor: int, limits: Limits, wanted: set[int], out: BinaryIO) -> None:
    archive = _is_archive(descriptor, limits)
    stream = Stream(descriptor, limits)
    if not archive:
        _frames(iter(lambda: stream.some(1 << 18), b""), out)
        return
    for number, (_, content) in enumerate(tarball.walk(stream)):
        if number in wanted:
            _frames(content.pieces(), out)
            wanted.remove(number)
        if not wanted:
            break


def _frames(pieces: Iterator[bytes], out: BinaryIO) -> None:
    for piece in pieces:
        out.write(DATA + len(piece).to_bytes(4, "big"))
        out.write(piece)
    out.write(END + bytes(4))
    out.flush()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    main(int(sys.argv[1]), Limits(*given[:3]), *given[3:])
    os._exit(0)  # what is left in buffers was sent, or nobody wants it
