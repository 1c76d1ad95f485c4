# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Places where nobody else can put another file under our hands.

Root (or any user) that opens a path of which another user can change a part opens whatever
that user likes: a symbolic link to /etc/shadow, a file in /etc/cron.d. So a path is walked step
by step before anything is made, and refused where a directory on it, or a link, belongs to
somebody else than root and ourselves, or can be written by others. A directory with the sticky
bit (/tmp) will do: others make entries in it, but they neither remove nor replace ours.

What is made then is made in the very directory that was looked at (by its descriptor), and is
new (O_EXCL) or known to be ours.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from imafs import disk
from imafs.errors import FileError, UsageError

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: As many links as the kernel follows (MAXSYMLINKS).
_LINKS = 40
#: What this process has open already has no place.
_OPEN_ALREADY = re.compile(r"/dev/(?:(stdin|stdout|stderr)|fd/(\d+))|/proc/self/fd/(\d+)")
_STANDARD = ("stdin", "stdout", "stderr")
_USER_ID = re.compile(rb"(?:^|,)user_id=(\d+)")
ADVICE = "choose a directory of your own, or /tmp"


class ForeignError(UsageError):
    """A place that other users can change."""

    errno = errno.EACCES


@contextmanager
def parent(path: str | bytes | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The directory in which ``path`` lies, as a descriptor, and the name in it.

    Raises :class:`ForeignError` where another user can change what is there, and OSError.
    """
    directory, name = _walk(os.fsencode(path), follow=False)
    try:
        yield directory, name
    finally:
        os.close(directory)


def check(path: str | bytes | os.PathLike[str], option: str = "") -> None:
    """Whether something may be made at ``path``.

    Raises :class:`ForeignError`, and :class:`FileError` where that cannot be found out.
    """
    try:
        with parent(path):
            pass
    except ForeignError as error:
        raise ForeignError(f"{option} {os.fsdecode(path)}: {error}".lstrip()) from None
    except OSError as error:
        raise FileError(os.fsdecode(path), error, option=option) from None


def check_own(path: str, option: str = "") -> None:
    """Whether ``path`` is a directory in which we alone write, and all in it is ours.

    Raises as :func:`check`.
    """
    try:
        directory, _ = _walk(os.fsencode(os.path.join(path, ".")), follow=False)
        try:
            _check_alone(directory, path)
        finally:
            os.close(directory)
    except ForeignError as error:
        raise ForeignError(f"{option} {path}: {error}".lstrip()) from None
    except OSError as error:
        raise FileError(path, error, option=option) from None


def _check_alone(directory: int, path: str) -> None:
    info = os.fstat(directory)
    if info.st_uid != os.geteuid():
        raise ForeignError(f"it belongs to uid {info.st_uid}; name a directory of your own")
    if _writers(info):
        raise ForeignError(f"{_writers(info)} can write in it; make it yours alone: chmod 700")
    for name in os.listdir(path):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if found.st_uid != info.st_uid:
            raise ForeignError(f"{name} in it belongs to uid {found.st_uid}")
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            raise ForeignError(f"{name} in it has another name elsewhere (a hard link)")


def log_file(path: str, option: str, mode: int = 0o666) -> int:
    """A descriptor that appends to a log. Raises :class:`UsageError`, which names ``option``."""
    try:
        return appending(path, mode)
    except ForeignError as error:
        raise ForeignError(f"{option} {path}: {error}") from None
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None


def open_already(path: str) -> int | None:
    """The descriptor of this process that a path such as /dev/stdout means, None: none."""
    found = _OPEN_ALREADY.fullmatch(path)
    if found is None:
        return None
    name = found[1]
    return _STANDARD.index(name) if name else int(found[2] or found[3])


def appending(path: str, mode: int = 0o666) -> int:
    """A descriptor that appends to a file of ours, or to a new one; devices are taken too.

    Raises :class:`ForeignError` and OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    if open_already(path) is not None:
        return os.open(path, flags & ~os.O_NONBLOCK)
    directory, name = _walk(os.fsencode(path), follow=True)
    try:
        while True:
            try:
                new = flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                return os.open(name, new, mode, dir_fd=directory)
            except FileExistsError:
                pass
            try:
                check_file(_information(directory, name))
                found = os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
            except FileNotFoundError:
                continue  # gone meanwhile
            try:
                check_file(os.fstat(found))
            except BaseException:
                os.close(found)
                raise
            os.set_blocking(found, True)
            return found
    finally:
        os.close(directory)


def check_file(info: os.stat_result) -> None:
    """Whether what exists may be written or replaced. Raises :class:`ForeignError`, OSError."""
    if info.st_uid not in trusted():
        raise ForeignError(f"it belongs to uid {info.st_uid}")
    if stat.S_ISREG(info.st_mode):
        if info.st_nlink > 1:
            raise ForeignError("it has another name elsewhere (a hard link)")
    elif not stat.S_ISCHR(info.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")


def check_replaceable(directory: int, name: bytes) -> None:
    """Whether a file of that name there, if any, is ours to replace. Raises as above."""
    try:
        info = _information(directory, name)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if info.st_uid not in trusted():
        raise ForeignError(f"it belongs to uid {info.st_uid}")


def check_directory(info: os.stat_result, shown: str) -> None:
    """Whether nobody else can take away what lies in a directory.

    Raises :class:`ForeignError`.
    """
    if info.st_uid not in trusted():
        raise ForeignError(f"{shown} belongs to uid {info.st_uid}; {ADVICE}")
    if not info.st_mode & stat.S_ISVTX and (who := _writers(info)):
        raise ForeignError(f"{who} can write in {shown}, which has no sticky bit; {ADVICE}")


def temporary() -> str:
    """Where temporary files go ($TMPDIR, else /tmp). Raises as :func:`check`."""
    place = tempfile.gettempdir()
    check(os.path.join(place, "x"), "TMPDIR")
    return place


def trusted() -> frozenset[int]:
    """Users whose files are as good as ours: root and ourselves.

    In a user namespace root outside shows as the overflow uid, and so do all others who are
    not in it: they cannot be told apart.
    """
    found = {0, os.geteuid()}
    with open("/proc/self/uid_map", encoding="ascii") as table:
        if [line.split() for line in table] != [["0", "0", "4294967295"]]:
            with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
                found.add(int(file.read()))
    return frozenset(found)


def _writers(info: os.stat_result) -> str | None:
    """The others beside owner and root who may write there."""
    if info.st_mode & stat.S_IWOTH:
        return "everybody"
    if info.st_mode & stat.S_IWGRP and info.st_gid and not _is_private(info):
        return f"the group {info.st_gid}"
    return None


def _is_private(info: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as distributions make one for every user."""
    import grp
    import pwd

    try:
        owner = pwd.getpwuid(info.st_uid)
        group = grp.getgrgid(info.st_gid)
    except KeyError:
        return False
    same = owner.pw_gid == info.st_gid and group.gr_name == owner.pw_name
    return same and set(group.gr_mem) <= {owner.pw_name}


def _walk(path: bytes, *, follow: bool) -> tuple[int, bytes]:
    """The directory of the last part of ``path``, open, and that part."""
    todo = [part for part in os.path.join(os.getcwdb(), path).split(b"/") if part]
    shown: list[bytes] = []
    links = 0
    here = _root()
    try:
        while True:
            if not todo:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            check_directory(os.fstat(here), os.fsdecode(b"/" + b"/".join(shown)))
            part = todo.pop(0)
            if not todo and (not follow or not _is_link(here, part)):
                return here, part
            if part == b".":
                continue
            inner = _looked_at(here, part)
            info = os.fstat(inner)
            if stat.S_ISLNK(info.st_mode):
                target = _target(inner, info, part)
                os.close(inner)
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                todo[:0] = [step for step in target.split(b"/") if step]
                if not target.startswith(b"/"):
                    continue
                inner, shown = _root(), []
            elif part == b"..":
                shown = shown[:-1]
            else:
                shown.append(part)
            os.close(here)
            here = inner
            if not stat.S_ISDIR(os.fstat(here).st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except BaseException:
        os.close(here)
        raise


def _looked_at(directory: int, name: bytes) -> int:
    """An O_PATH descriptor of ``name``; if a file system is mounted there, nobody else serves it.

    A FUSE with allow_other says of its files, and of whose they are, what its user likes. It is
    asked nothing. Raises :class:`ForeignError` and OSError.
    """
    found = os.open(name, _LOOK, dir_fd=directory)
    try:
        number = disk.mount_number(found)
        if number != disk.mount_number(directory):
            user = _server(number)
            if user is not None and user not in trusted():
                what = f"uid {user} serves the file system at {os.fsdecode(name)}"
                raise ForeignError(f"{what}; {ADVICE}")
    except BaseException:
        os.close(found)
        raise
    return found


def _server(number: int | None) -> int | None:
    """Whose process serves the file system of a mount, if any (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo", "rb") as table:
        for row in table:
            if row.split(b" ", 1)[0] == b"%d" % (number or 0):
                found = _USER_ID.search(row.rstrip(b"\n").rpartition(b" ")[2])
                return int(found[1]) if found else None
    return None


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _information(directory: int, name: bytes) -> os.stat_result:
    """Of what is there itself, and not behind a link. Raises as :func:`_looked_at`."""
    found = _looked_at(directory, name)
    try:
        return os.fstat(found)
    finally:
        os.close(found)


def _is_link(directory: int, name: bytes) -> bool:
    try:
        return stat.S_ISLNK(_information(directory, name).st_mode)
    except FileNotFoundError:
        return False


def _target(link: int, info: os.stat_result, name: bytes) -> bytes:
    """Where a link leads, which nobody else may have made."""
    try:
        if info.st_uid not in trusted():
            raise ForeignError(f"the link {os.fsdecode(name)} on its way belongs to {info.st_uid}")
        return os.readlink(b"", dir_fd=link)
    except BaseException:
        os.close(link)
        raise
