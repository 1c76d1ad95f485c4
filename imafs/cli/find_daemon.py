# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which daemon a command asks: by --control, by what is mounted, by who listens."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imafs.control import paths, peers
from imafs.errors import ControlError, FileError, UsageError
from imafs.text import quoted

if TYPE_CHECKING:
    from imafs.host.mounts import Mount


def chosen(control: str | None) -> Path:
    """``--control``, else $IMAFS_CONTROL, else the only living daemon of this user.

    Raises :class:`ControlError` where that is none or several; it names mounts of this user
    whose daemon is dead.
    """
    if control is not None:
        return Path(control)
    try:
        only = paths.the_socket(mount.path for mount in _own_mounts())
    except ControlError as error:
        for mount in _own_mounts():
            if (reason := _death(mount)) is not None:
                raise ControlError(f"{error}; {reason}") from None
        raise
    if paths.VARIABLE not in os.environ:
        _check_is_only(only)
    return only


def listener(args: argparse.Namespace) -> int | None:
    """``--uid``: whose daemon the command may ask beside root's and this user's.

    Raises :class:`UsageError` without --control: nobody's answer is taken for that of a mount.
    """
    uid: int | None = args.listener
    if uid is not None and args.control is None:
        raise UsageError("--uid names who listens at --control SOCKET: give both")
    return uid


def _check_is_only(socket: Path) -> None:
    """Raises :class:`ControlError` where another emulator of this user lives, with a socket of
    another name or none: what is asked for would be done to the wrong one."""
    mounts = list(_own_mounts())
    who = paths.listener(socket) if len(mounts) > 1 else None
    for mount in mounts:
        pid = _holder(mount)
        if pid is not None and who is not None and who.pid and pid != who.pid:
            places = paths.of_process(pid)
            where = f"; its socket is {places[0]}" if places else ""
            raise ControlError(
                f"{socket} is not the only imafs of this user: process {pid} serves "
                f"{mount.path}{where}. Choose with --control SOCKET, or with imafs status DIR"
            )


def of_mount(mount: Mount) -> Path:
    """The socket on which the daemon of ``mount`` listens.

    Where it was given one of another name (``--control``), that of the process which serves
    the mount. Raises :class:`ControlError` that says what to do where none is found: the
    daemon is dead, or of another namespace or user.
    """
    path = paths.of_mount(mount.path, mount.owner)
    who = closed = None
    try:
        who = paths.listener(path)
    except ControlError as error:
        closed = str(error)  # planted there by another user, perhaps
    if who is not None and peers.is_ours(who.uid):
        return path
    reason = _death(mount)
    if reason is None:
        served = _of_process(mount)
        if served is not None:
            return served
        if who is not None:
            return path  # whoever asks there is told whose it is
        nobody = f"the daemon does not listen at its default socket {path}"
        reason = f"{closed or nobody}; name it with --control"
        if (pid := _holder(mount)) is not None:
            reason += f"; where that is gone, end the daemon by: kill {pid}"
    raise ControlError(f"{mount.path}: {reason}")


def of_place(path: str) -> Path | None:
    """The socket of the emulator on whose mount ``path`` lies; None where it lies on none.

    Raises what :func:`of_mount` raises.
    """
    from imafs.host import mounts as mountinfo

    real = mountinfo.resolve(path)
    ours = [mount for mount in mountinfo.mounts() if mount.emulated]
    for mount in sorted(ours, key=lambda mount: len(mount.path), reverse=True):
        if real == mount.path or real.startswith(mount.path + os.sep):
            return of_mount(mount)
    return None


def tell_if_dead(path: str, error: OSError | FileError) -> None:
    """Raises :class:`ControlError` where ``error`` is so because ``path`` lies on the mount of a
    dead daemon; its bare errno says nothing to people."""
    if error.errno == errno.ENOTCONN:
        of_place(path)


def _holder(mount: Mount) -> int | None:
    from imafs.host import mounts as mountinfo

    return mountinfo.holder(mount)


def _of_process(mount: Mount) -> Path | None:
    pid = _holder(mount)
    if pid is None:
        return None
    return next((path for path in paths.of_process(pid) if _is_of(path, mount)), None)


def _is_of(path: Path, mount: Mount) -> bool:
    """Whether the daemon that listens there says that the mount is its own."""
    from imafs.verbs.client import ControlClient

    try:
        with ControlClient(path) as client:
            return client.hello().get("mountpoint") == mount.path
    except ControlError:
        return False


def _own_mounts() -> Iterator[Mount]:
    from imafs.host import mounts as mountinfo

    for mount in mountinfo.mounts():
        if mount.emulated and mount.owner == os.geteuid():
            yield mount


def _death(mount: Mount) -> str | None:
    """The complaint about a mount whose daemon is dead; None where it lives, or may: below
    another mount, a keeper's cover for one, nobody sees it."""
    from imafs.host import mounts as mountinfo

    covered = mountinfo.top(mount.path) not in (None, mount)
    if covered or mountinfo.probe(mount.path) != errno.ENOTCONN:
        return None
    named = quoted(mount.path)
    return f"the daemon of {named} is dead; clear its mount with: imafs umount {named}"
