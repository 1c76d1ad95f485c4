# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The calls of the suite ``fileops`` on one file: what is no read, write or open."""

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
