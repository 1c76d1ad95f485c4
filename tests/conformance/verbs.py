# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The verbs of the probe language that open a file or take a descriptor.

Each is one system call (or a few) and its answer.

A verb returns the text after ``->``; an OSError becomes the verb's way to print an
errno (:func:`tests.conformance.language.failure`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable
from itertools import groupby

from tests.conformance import rawcalls
from tests.conformance.language import (
    BUFFER,
    Call,
    Player,
    errno_name,
    fnv1a,
    number,
    open_flags,
    stat_answer,
    to_the_end,
)

Verb = Callable[[Player, Call], str]


def _size(text: str) -> int:
    size = number(text)
    return size if 0 <= size <= BUFFER else BUFFER


def _real(fd: int) -> int:
    """``fd``, or EBADF: several Python functions raise ValueError for -1."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return fd


def _here(p: Player, c: Call) -> int:
    return p.fd(c.words[1])


def _in_thread(work: Callable[[], int | bytes]) -> int | bytes:
    """Run one call in another thread, which ends before the answer is printed."""
    results: list[int | bytes | OSError] = []

    def body() -> None:
        try:
            results.append(work())
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise results[0]
    return results[0]


def _count(work: Callable[[], int | bytes]) -> int:
    result = _in_thread(work)
    return result if isinstance(result, int) else len(result)


# ---- opening and closing


def _open(p: Player, c: Call) -> str:
    path, flags = p.path(c.words[2]), open_flags(c.words[3])
    return p.keep(c.words[1], lambda: os.open(path, flags, 0o600))


def _thread_open(p: Player, c: Call) -> str:
    path, flags = p.path(c.words[2]), open_flags(c.words[3])
    return p.keep(c.words[1], lambda: _count(lambda: os.open(path, flags, 0o600)))


def _thread_close(p: Player, c: Call) -> str:
    def work() -> int:
        os.close(_here(p, c))
        return 0

    _in_thread(work)
    return "0"


def _thread_write(p: Player, c: Call) -> str:
    return f"{_count(lambda: os.write(_here(p, c), c.text))} 0"


def _thread_read(p: Player, c: Call) -> str:
    data = _in_thread(lambda: os.read(_here(p, c), _size(c.words[2])))
    assert isinstance(data, bytes)
    return _read_answer(data)


def _reopen(p: Player, c: Call) -> str:
    path, flags = f"/proc/self/fd/{p.fd(c.words[2])}", open_flags(c.words[3])
    return p.keep(c.words[1], lambda: os.open(path, flags))


def _openmany(p: Player, c: Call) -> str:
    path, flags, wanted = p.path(c.words[1]), open_flags(c.words[2]), min(number(c.words[3]), 1024)
    opened: list[int] = []
    name = "0"
    try:
        while len(opened) < wanted:
            opened.append(os.open(path, flags))
    except OSError as error:
        name = errno_name(error)
    for fd in opened:
        os.close(fd)
    return f"{len(opened)} {name}"


def _close(p: Player, c: Call) -> str:
    os.close(_here(p, c))
    return "0"


def _dup(p: Player, c: Call) -> str:
    return p.keep(c.words[2], lambda: os.dup(_here(p, c)))


# ---- writing and reading


def _write(p: Player, c: Call) -> str:
    return f"{os.write(_here(p, c), c.text)} 0"


def _pwrite(p: Player, c: Call) -> str:
    return f"{os.pwrite(_here(p, c), c.text, number(c.words[2]))} 0"


def _writev(p: Player, c: Call) -> str:
    return f"{os.writev(_here(p, c), c.texts[:4])} 0"


def _badwrite(p: Player, c: Call) -> str:
    return f"{rawcalls.bad_write(_here(p, c), number(c.words[2]))} 0"


def _badread(p: Player, c: Call) -> str:
    return f"{rawcalls.bad_read(_here(p, c), number(c.words[2]))} 0"


def _read_answer(data: bytes) -> str:
    return f"{len(data)} 0 fnv={fnv1a(data) if data else 0:08x}"


def _read(p: Player, c: Call) -> str:
    return _read_answer(os.read(_here(p, c), _size(c.words[2])))


def _pread(p: Player, c: Call) -> str:
    return _read_answer(os.pread(_here(p, c), _size(c.words[3]), number(c.words[2])))


def _readv(p: Player, c: Call) -> str:
    parts = [bytearray(_size(word) // 2) for word in c.words[2:4]]
    return f"{os.readv(_here(p, c), parts)} 0"


def _escaped(data: bytes) -> str:
    out = []
    for byte in data:
        if byte == 10:
            out.append("\\n")
        elif 32 <= byte <= 126 and byte not in b'"\\':
            out.append(chr(byte))
        else:
            out.append(f"\\x{byte:02x}")
    return "".join(out)


def _text(p: Player, c: Call) -> str:
    data = os.read(_here(p, c), _size(c.words[2]))
    return f'{len(data)} 0 "{_escaped(data)}"'


def _readall(p: Player, c: Call) -> str:
    pieces, name = to_the_end(_here(p, c), BUFFER)
    data = b"".join(pieces)
    lines = data.count(b"\n")
    return f"{len(data)} {name} lines={lines} fnv={fnv1a(data):08x}"


def _chunks(p: Player, c: Call) -> str:
    pieces, name = to_the_end(_here(p, c), _size(c.words[2]))
    data = b"".join(pieces)
    runs = [(size, len(list(same))) for size, same in groupby(len(piece) for piece in pieces)]
    sizes = ",".join(f"{size}x{times}" if times > 1 else str(size) for size, times in runs)
    summary = f"calls={len(pieces)} total={len(data)} {name} fnv={fnv1a(data):08x}"
    return f"sizes={sizes} {summary}"


def _lseek(p: Player, c: Call) -> str:
    whence = {"end": 2, "cur": 1, "data": 3, "hole": 4, "bad": 77}.get(c.words[3], 0)
    return f"{os.lseek(_here(p, c), number(c.words[2]), whence)} 0"


def _sendfile(p: Player, c: Call) -> str:
    return f"{rawcalls.sendfile(_here(p, c), p.fd(c.words[2]), number(c.words[3]))} 0"


def _splice(p: Player, c: Call) -> str:
    reading, writing = os.pipe()
    try:
        return f"{rawcalls.splice(_here(p, c), writing, number(c.words[2]))} 0"
    finally:
        os.close(reading)
        os.close(writing)


def _copyrange(p: Player, c: Call) -> str:
    return f"{rawcalls.copy_file_range(_here(p, c), p.fd(c.words[2]), number(c.words[3]))} 0"


# ---- other calls on a descriptor


def _fstat(p: Player, c: Call) -> str:
    return stat_answer(os.fstat(_here(p, c)))


def _ftruncate(p: Player, c: Call) -> str:
    os.ftruncate(_here(p, c), number(c.words[2]))
    return "0"


def _fsync(p: Player, c: Call) -> str:
    os.fsync(_real(_here(p, c)))
    return "0"


def _fdatasync(p: Player, c: Call) -> str:
    os.fdatasync(_real(_here(p, c)))
    return "0"


def _fallocate(p: Player, c: Call) -> str:
    rawcalls.fallocate(_here(p, c), number(c.words[2]))
    return "0"


def _poll(p: Player, c: Call) -> str:
    fd = _here(p, c)
    if fd < 0:  # poll(2) ignores it, Python's poll does not take it
        return "0 revents=0"
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    ready = poll.poll(0)
    return f"{len(ready)} revents={ready[0][1] if ready else 0:x}"


def _epoll(p: Player, c: Call) -> str:
    with select.epoll() as epoll:
        epoll.register(_real(_here(p, c)), select.EPOLLIN)
    return "0"


def _mmap(p: Player, c: Call) -> str:
    rawcalls.map_page(_here(p, c), shared=c.words[2] == "shared")
    return "ok"


def _fionread(p: Player, c: Call) -> str:
    return f"0 {rawcalls.fionread(_real(_here(p, c)))}"


def _tcgets(p: Player, c: Call) -> str:
    rawcalls.tcgets(_real(_here(p, c)))
    return "tty"


def _flock(p: Player, c: Call) -> str:
    kind = fcntl.LOCK_EX if c.words[2] == "ex" else fcntl.LOCK_SH
    fcntl.flock(_real(_here(p, c)), kind | fcntl.LOCK_NB)
    return "0"


def _setlk(p: Player, c: Call) -> str:
    kind = fcntl.F_WRLCK if c.words[2] == "ex" else fcntl.F_RDLCK
    whole_file = struct.pack("hhqqi4x", kind, 0, 0, 0, 0)
    fcntl.fcntl(_real(_here(p, c)), fcntl.F_SETLK, whole_file)
    return "0"


def _getfl(p: Player, c: Call) -> str:
    return f"{fcntl.fcntl(_real(_here(p, c)), fcntl.F_GETFL):o}"


TABLE: dict[str, Verb] = {
    "open": _open,
    "thread-open": _thread_open,
    "thread-close": _thread_close,
    "thread-write": _thread_write,
    "thread-read": _thread_read,
    "reopen": _reopen,
    "openmany": _openmany,
    "close": _close,
    "dup": _dup,
    "write": _write,
    "pwrite": _pwrite,
    "writev": _writev,
    "badwrite": _badwrite,
    "badread": _badread,
    "read": _read,
    "pread": _pread,
    "readv": _readv,
    "text": _text,
    "readall": _readall,
    "chunks": _chunks,
    "lseek": _lseek,
    "sendfile": _sendfile,
    "splice": _splice,
    "copyrange": _copyrange,
    "fstat": _fstat,
    "ftruncate": _ftruncate,
    "fsync": _fsync,
    "fdatasync": _fdatasync,
    "fallocate": _fallocate,
    "poll": _poll,
    "epoll": _epoll,
    "mmap": _mmap,
    "fionread": _fionread,
    "tcgets": _tcgets,
    "flock": _flock,
    "setlk": _setlk,
    "getfl": _getfl,
    "echo": lambda p, c: "",
}
