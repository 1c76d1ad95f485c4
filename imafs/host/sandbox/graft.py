# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""New directories in places where none can be made, such as sysfs.

The nearest directory that exists is covered by a tmpfs with the same entries (binds of its
directories and files, the same links) and the new one. Relative links go on leading to the
same places. Entries that the covered directory gets later are not seen.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from imafs.host import linux


def provide(path: str) -> None:
    """Makes ``path`` (absolute, without links) a directory, if it is none yet. Raises OSError."""
    missing = []
    nearest = path
    while not os.path.isdir(nearest):
        nearest, name = os.path.split(nearest)
        missing.append(name)
    if missing:
        cover(nearest)
        os.makedirs(path)


def cover(directory: str) -> None:
    """Puts a tmpfs with the same entries over ``directory``; there new ones can be made."""
    below = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Through the descriptor: the path will lead to the tmpfs.
        old = f"/proc/self/fd/{below}"
        with os.scandir(old) as entries:
            found = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
        linux.tmpfs(directory)
        for name, mode in found:
            _copy(os.path.join(old, name), os.path.join(directory, name), mode)
    finally:
        os.close(below)


def show_file(source: str, paths: Sequence[str], aside: str) -> None:
    """Shows the file ``source`` at those of ``paths`` where there is nothing. Raises OSError.

    The uppermost directory that must be changed is covered by one of links to what is in it: by
    binds each entry of /var/log would be a line of /proc/mounts. It stays reachable in ``aside``.
    """
    missing = [path for path in paths if _is_missing(path)]
    while missing:
        below = min((_nearest(path) for path in missing), key=len)
        covered = os.path.join(aside, below.strip("/").replace("/", "-"))
        os.mkdir(covered)
        linux.bind(below, covered)
        linux.tmpfs(below)
        for name in os.listdir(covered):
            os.symlink(os.path.join(covered, name), os.path.join(below, name))
        for path in [path for path in missing if _nearest(path) == below]:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            linux.bind(source, path)
            missing.remove(path)


def _is_missing(path: str) -> bool:
    """Whether nothing is there, and :func:`show_file` can change that.

    Where this user may not look there may be something, and a directory whose entries nobody can
    list cannot be covered by links to them (auditd's, which is root's alone). Nothing covers the
    root of this process: a container without /var has no place for logs. What is no directory on
    the way, a link to nowhere for one, stays as it is.
    """
    try:
        os.lstat(path)
    except PermissionError:
        return False
    except (FileNotFoundError, NotADirectoryError):
        below = _nearest(path)
        step = os.path.relpath(path, below).split("/")[0]
        return (
            not os.path.samefile(below, "/")
            and not os.path.lexists(os.path.join(below, step))
            and os.access(below, os.R_OK | os.X_OK)
        )
    return False


def _nearest(path: str) -> str:
    """The directory above ``path`` that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _copy(source: str, target: str, mode: int) -> None:
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    linux.bind(source, target)
