# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which daemon a command asks: by --control, by what is mounted, by who listens."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imafs.control import paths
from imafs.errors import ControlError

if TYPE_CHECKING:
    from imafs.fuse.mountinfo import Mount


def chosen(control: str | None) -> Path:
    """``--control``, else $IMAFS_CONTROL, else the only living daemon of this user.

    Raises :class:`ControlError` where that is none or several; it names mounts of this user
    whose daemon is dead.
    """
    if control is not None:
        return Path(control)
    try:
        return paths.the_socket(_own_mounts())
    except ControlError as error:
        for path in _own_mounts():
            if (reason := _death(path)) is not None:
                raise ControlError(f"{error}; {reason}") from None
        raise


def of_mount(mount: Mount) -> Path:
    """The socket on which the daemon of ``mount`` listens.

    Raises :class:`ControlError` that says what to do where that is not found: the daemon is
    dead, or was given a socket of another name.
    """
    path = paths.of_mount(mount.path, mount.owner)
    if paths.listener(path) is not None:
        return path
    reason = _death(mount.path)
    if reason is None:
        reason = f"the daemon does not listen at its default socket {path}; name it with --control"
    raise ControlError(f"{mount.path}: {reason}")


def _own_mounts() -> Iterator[str]:
    from imafs.fuse import mountinfo

    for mount in mountinfo.mounts():
        if mount.ours and mount.owner == os.geteuid():
            yield mount.path


def _death(path: str) -> str | None:
    """What to say of a mount whose daemon is dead; None where it lives, or may."""
    from imafs.fuse import mountinfo

    if mountinfo.probe(path) != errno.ENOTCONN:
        return None
    quoted = shlex.quote(path)
    return f"the daemon of {quoted} is dead; clear its mount with: imafs umount {quoted}"
