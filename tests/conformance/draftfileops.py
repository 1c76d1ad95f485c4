# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The calls of the suites ``fileops`` and ``reads`` on one file."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.conformance import rawcalls

_BIG = 1 << 40
#: fcntl.h: F_OFD_SETLK, F_SETLEASE.
_F_OFD_SETLK = 37


def _answer(call: Callable[[], object]) -> str:
    """The number that a call returns (bytes: how many; None: 0), or the errno's name."""
    try:
        value = call()
    except OSError as error:
        # One number, two names.
        return errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")
    if isinstance(value, bytes):
        return str(len(value))
    return str(value if isinstance(value, int) else 0)


def on_path(path: Path) -> dict[str, object]:
    """Calls that take a name."""
    found: dict[str, object] = {
        "truncate0": _answer(lambda: os.truncate(path, 0)),
        "truncate10": _answer(lambda: os.truncate(path, 10)),
        "size_after_truncate10": str(path.stat().st_size),
        "truncate_back": _answer(lambda: os.truncate(path, 0)),
        "utimens": _answer(lambda: os.utime(path)),
        "access_w": _answer(lambda: rawcalls.access(str(path), os.W_OK)),
        "access_x": _answer(lambda: rawcalls.access(str(path), os.X_OK)),
        "listxattr": _answer(lambda: len(os.listxattr(path))),
        "getxattr_ima": _answer(lambda: os.getxattr(path, "security.ima")),
        "setxattr_user": _answer(lambda: os.setxattr(path, "user.x", b"x")),
        "setxattr_trusted": _answer(lambda: os.setxattr(path, "trusted.x", b"x")),
        "link": _answer(lambda: os.link(path, f"{path}.link", follow_symlinks=False)),
    }
    return found


def on_descriptor(path: Path) -> dict[str, object]:
    """Calls on a descriptor that is open for reading."""
    held = os.open(path, os.O_RDONLY)
    out, into = os.pipe()
    try:
        with tempfile.TemporaryFile() as file:
            return {"open_rd": "0", **_calls(held, into, file.fileno())}
    finally:
        for descriptor in (held, out, into):
            os.close(descriptor)


def _calls(held: int, pipe: int, file: int) -> dict[str, object]:
    poll = select.poll()
    poll.register(held, select.POLLIN | select.POLLOUT)
    events = poll.poll(0)
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)

    def seek(offset: int, whence: int) -> str:
        return _answer(lambda: os.lseek(held, offset, whence))

    found: dict[str, object] = {
        "fstat_size": str(os.fstat(held).st_size),
        "mmap": _answer(lambda: rawcalls.map_page(held, shared=True)),
        "ioctl_fionread": str(rawcalls.fionread(held)),
        "fsync": _answer(lambda: os.fsync(held)),
        "ftruncate": _answer(lambda: os.ftruncate(held, 0)),
        "fallocate": _answer(lambda: rawcalls.fallocate(held, 10)),
        "flock": _answer(lambda: fcntl.flock(held, fcntl.LOCK_SH)),
        "poll": str(len(events)),
        "poll_revents": events[0][1],
        "write_rdonly_fd": _answer(lambda: os.write(held, b"A\n")),
        "read0": _answer(lambda: os.read(held, 0)),
        "read_null": _answer(lambda: rawcalls.bad_read(held, 10)),
        "posix_fadvise": _answer(lambda: os.posix_fadvise(held, 0, 0, os.POSIX_FADV_SEQUENTIAL)),
        "splice": _answer(lambda: rawcalls.splice(held, pipe, 10)),
        "sendfile": _answer(lambda: os.sendfile(file, held, 0, 10)),
        "copy_file_range": _answer(lambda: rawcalls.copy_file_range(held, file, 10)),
        "lseek_end": seek(0, os.SEEK_END),
        "lseek_hole": seek(0, os.SEEK_HOLE),
        "lseek_neg": seek(-1, os.SEEK_SET),
        "lseek_big": seek(_BIG, os.SEEK_SET),
    }
    found["read_after_big"] = _answer(lambda: os.read(held, 100))
    found["lseek_cur0"] = seek(0, os.SEEK_CUR)
    found["pread_neg"] = _answer(lambda: os.pread(held, 10, -1))
    found["ofd_lock"] = _answer(lambda: fcntl.fcntl(held, _F_OFD_SETLK, lock) and 0)
    found["setlease"] = _answer(lambda: fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK))
    return found


def in_directory(directory: Path, name: str) -> dict[str, object]:
    """What securityfs refuses in a directory."""
    new = directory / "new"

    def opened(path: Path, flags: int) -> str:
        return _answer(lambda: os.close(os.open(path, flags, 0o600)))

    return {
        "creat": opened(new, os.O_CREAT | os.O_WRONLY),
        "mkdir": _answer(lambda: os.mkdir(new)),
        "symlink": _answer(lambda: os.symlink("x", new)),
        "mknod": _answer(lambda: os.mknod(new)),
        "rename": _answer(lambda: os.rename(directory / name, new)),
        "open_nonexistent": opened(new, os.O_RDONLY),
        "open_dir_rd": opened(directory, os.O_RDONLY),
        "open_dir_wr": opened(directory, os.O_WRONLY),
        "rmdir": _answer(lambda: os.rmdir(directory / name)),
        "tmpfile": opened(directory, os.O_TMPFILE | os.O_WRONLY),
    }


def modes(path: Path) -> dict[str, object]:
    """chmod and chown of root, and back."""
    before = path.stat().st_mode & 0o7777
    found: dict[str, object] = {"chmod444": _answer(lambda: os.chmod(path, 0o444))}
    found["mode_after"] = f"{path.stat().st_mode:o}"
    found["chmod_back"] = _answer(lambda: os.chmod(path, before))
    found["chown"] = _answer(lambda: os.chown(path, 1, 1))
    found["chown_back"] = _answer(lambda: os.chown(path, 0, 0))
    return found


#: Sizes of reads that must all give the same bytes.
SIZES = (1, 7, 16, 100, 511, 4095, 4096, 4097, 65536, 1 << 20)


def _whole(descriptor: int, size: int = 65536) -> bytes:
    pieces = []
    while piece := os.read(descriptor, size):
        pieces.append(piece)
    return b"".join(pieces)


def reads(path: Path, add: Callable[[], None] | None) -> dict[str, object]:
    """Reads of all sizes, at positions, after seeks; ``add`` adds a record to the list."""
    held = os.open(path, os.O_RDONLY)
    try:
        return _reads(held, path, add)
    finally:
        os.close(held)


def _reads(held: int, path: Path, add: Callable[[], None] | None) -> dict[str, object]:
    whole = _whole(held)
    size = len(whole)

    def seek(offset: int, whence: int = os.SEEK_SET) -> str:
        return _answer(lambda: os.lseek(held, offset, whence))

    def again(pieces: int) -> str:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return "same" if _whole(descriptor, pieces) == whole else "different"
        finally:
            os.close(descriptor)

    found: dict[str, object] = {"same_for_bs": {str(each): again(each) for each in SIZES}}
    offsets = {0, 1, 3, 10, size // 2, size - 1}
    found["pread_ok"] = int(all(os.pread(held, 20, at) == whole[at : at + 20] for at in offsets))
    found["pread_at_eof"] = str(len(os.pread(held, 10, size)))
    found["pread_past_eof"] = str(len(os.pread(held, 10, size + 100)))
    os.lseek(held, 2, os.SEEK_SET)
    found["lseek_set_ok"] = int(_whole(held) == whole[2:])
    os.lseek(held, 4, os.SEEK_SET)
    os.read(held, 2)
    found["tell_after_4+2"] = seek(0, os.SEEK_CUR)
    found["lseek_cur+3"] = seek(3, os.SEEK_CUR)
    found["lseek_end"] = seek(0, os.SEEK_END)
    found["lseek_end-4"] = seek(-4, os.SEEK_END)
    found["lseek_past_eof"] = "n+100" if seek(size + 100) == str(size + 100) else "no"
    found["read_past_eof"] = str(len(os.read(held, 10)))
    found["tell_past_eof"] = "n+100" if seek(0, os.SEEK_CUR) == str(size + 100) else "no"
    os.lseek(held, 0, os.SEEK_SET)
    found["rewind_ok"] = int(_whole(held) == whole)
    os.lseek(held, 0, os.SEEK_SET)
    buffers = [bytearray(3), bytearray(5)]
    taken = os.readv(held, buffers)
    found["readv_3_5"] = str(taken)
    found["readv_ok"] = int(b"".join(buffers)[:taken] == whole[:8])
    if add is not None:
        os.lseek(held, 0, os.SEEK_SET)
        _whole(held)
        add()
        found["eof_then_append_visible"] = int(len(os.read(held, 4096)) > 0)
    return found
