# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The verbs of the probe language that take a name, read whole files, or change who asks."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable

from tests.conformance import rawcalls
from tests.conformance.language import (
    BUFFER,
    Call,
    Player,
    errno_name,
    number,
    stat_answer,
    to_the_end,
)

Verb = Callable[[Player, Call], str]


# ---- calls on a name


def _stat(p: Player, c: Call) -> str:
    return stat_answer(os.stat(p.path(c.words[1])))


def _lstat(p: Player, c: Call) -> str:
    path = p.path(c.words[1])
    s = os.lstat(path)
    target = f" -> {os.readlink(path)}" if stat.S_ISLNK(s.st_mode) else ""
    return stat_answer(s) + target


def _readlink(p: Player, c: Call) -> str:
    return os.readlink(p.path(c.words[1]))


def _quiet(work: Callable[[Player, Call], object]) -> Verb:
    """A verb that prints 0 when its call succeeds."""

    def verb(p: Player, c: Call) -> str:
        work(p, c)
        return "0"

    return verb


def _access(p: Player, c: Call) -> str:
    rawcalls.access(p.path(c.words[1]), number(c.words[2]))
    return "0"


def _utime(p: Player, c: Call) -> str:
    seconds = number(c.words[2])
    os.utime(p.path(c.words[1]), (seconds, seconds))
    return "0"


def _setxattr(p: Player, c: Call) -> str:
    os.setxattr(p.path(c.words[1]), c.words[2], os.fsencode(c.words[3]))
    return "0 0"


def _getxattr(p: Player, c: Call) -> str:
    return f"{len(os.getxattr(p.path(c.words[1]), c.words[2]))} 0"


def _listxattr(p: Player, c: Call) -> str:
    names = os.listxattr(p.path(c.words[1]))
    return f"{sum(len(os.fsencode(name)) + 1 for name in names)} 0"


def _statfs(p: Player, c: Call) -> str:
    f = rawcalls.statfs(p.root)
    return f"0 type={f.magic:x} bsize={f.block_size} namelen={f.name_length}"


def _ls(p: Player, c: Call) -> str:
    names = [name for name, _ in rawcalls.directory_entries(p.root) if name[:1] != "."]
    return " ".join(sorted(names, key=os.fsencode)[:256])


def _lsorder(p: Player, c: Call) -> str:
    return " ".join(f"{name}:{kind}" for name, kind in rawcalls.directory_entries(p.root))


# ---- whole files


def _slurp(p: Player, file: str) -> tuple[bytes, str]:
    try:
        fd = os.open(p.path(file), os.O_RDONLY)
    except OSError as error:
        return b"", errno_name(error)
    pieces, name = to_the_end(fd, BUFFER)
    os.close(fd)
    return b"".join(pieces), name


def _count_file(file: str) -> Verb:
    def verb(p: Player, c: Call) -> str:
        data, name = _slurp(p, file)
        return f"{name} {os.fsdecode(data.removesuffix(bytes([10])).split(bytes(1))[0])}"

    return verb


def _lines(p: Player, c: Call) -> str:
    data, name = _slurp(p, c.words[1])
    lines = data.count(b"\n")
    return f"{name} {lines} lines {len(data)} bytes"


def _show(p: Player, c: Call) -> str:
    data, name = _slurp(p, c.words[1])
    return f"{name}\n{os.fsdecode(data.split(bytes(1))[0])}"


def _slab(p: Player, c: Call) -> str:
    with open("/proc/meminfo", encoding="ascii") as info:
        found = [line for line in info if line.startswith(("Slab:", "SUnreclaim:"))]
    return "".join(line.removesuffix("\n") + " " for line in found)


# ---- who asks


def _setuid(p: Player, c: Call) -> str:
    uid = number(c.words[1])
    os.setresuid(uid, uid, uid)
    return "0"


def _dropcap(p: Player, c: Call) -> str:
    cap_sys_admin = 21
    rawcalls.set_capabilities(~(1 << cap_sys_admin), only_these=False)
    return "0"


def _become(p: Player, c: Call) -> str:
    uid, gid = number(c.words[1]), number(c.words[2])
    keep = sum(1 << int(bit) for bit in c.words[3].split(",") if bit)
    rawcalls.keep_capabilities()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    rawcalls.set_capabilities(keep, only_these=True)
    return "0"


def _kill9(p: Player, c: Call) -> str:
    p.put("\n")
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


TABLE: dict[str, Verb] = {
    "stat": _stat,
    "lstat": _lstat,
    "readlink": _readlink,
    "access": _access,
    "utime": _utime,
    "truncate": _quiet(lambda p, c: os.truncate(p.path(c.words[1]), number(c.words[2]))),
    "unlink": _quiet(lambda p, c: os.unlink(p.path(c.words[1]))),
    "mkdir": _quiet(lambda p, c: os.mkdir(p.path(c.words[1]), 0o755)),
    "rmdir": _quiet(lambda p, c: os.rmdir(p.path(c.words[1]))),
    "mknod": _quiet(lambda p, c: os.mknod(p.path(c.words[1]), stat.S_IFREG | 0o600)),
    "rename": _quiet(lambda p, c: os.rename(p.path(c.words[1]), p.path(c.words[2]))),
    "link": _quiet(
        lambda p, c: os.link(p.path(c.words[1]), p.path(c.words[2]), follow_symlinks=False)
    ),
    "symlink": _quiet(lambda p, c: os.symlink(c.words[1], p.path(c.words[2]))),
    "chmod": _quiet(lambda p, c: os.chmod(p.path(c.words[1]), int(c.words[2], 8))),
    "chown": _quiet(
        lambda p, c: os.chown(p.path(c.words[1]), number(c.words[2]), number(c.words[3]))
    ),
    "lchown": _quiet(
        lambda p, c: os.lchown(p.path(c.words[1]), number(c.words[2]), number(c.words[3]))
    ),
    "setxattr": _setxattr,
    "getxattr": _getxattr,
    "listxattr": _listxattr,
    "statfs": _statfs,
    "ls": _ls,
    "lsorder": _lsorder,
    "count": _count_file("runtime_measurements_count"),
    "violations": _count_file("violations"),
    "lines": _lines,
    "show": _show,
    "slab": _slab,
    "setuid": _setuid,
    "dropcap": _dropcap,
    "become": _become,
    "kill9": _kill9,
}
