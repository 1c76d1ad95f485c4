# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A view over the directory that it is made of, and a way to that directory below.

A mount hides what lies beneath from every path. The directory below is reached through a clone
of its mount, which a thread takes in a mount namespace of its own, where nothing covers it. A
view that died stays: it answers ENOTCONN, and the next one is moved beneath it before it goes
(Linux 6.5), so that at no moment the files below show. Blocking.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from imafs.errors import MountError
from imafs.host import caller, linux, mounts
from imafs.host.mounts import Mount

T = TypeVar("T")

_SECURITYFS = "securityfs"
_POLICY = "policy"
#: Dead views that lie one above the other, at most: a keeper leaves one.
_LAYERS = 16


@dataclass(frozen=True, slots=True)
class Ground:
    """A directory that may be covered. ``path`` leads to whatever is on top; ``reach``, in this
    process alone, always to the directory itself, and ``root`` to that of its mount.
    ``policy``: its file of that name as a mount that is nowhere yet."""

    path: str
    root: str
    reach: str
    emulated: bool
    policy: int | None


def _view(path: str) -> Mount | None:
    mount = mounts.top(path)
    return mount if mount is not None and mount.kept else None


def is_covered(path: str) -> bool:
    """Whether a view lies there, dead or alive."""
    return _view(path) is not None


def beneath(path: str) -> Mount | None:
    """What shows lists below a view at ``path``: a kernel's securityfs, or an emulator's; None
    where the view has a place of its own."""
    below = _below(path)
    return below if below.fstype == _SECURITYFS or below.emulated else None


def ground(directory: str) -> Ground:
    """What :func:`lay` can cover; open until the process ends. Raises :class:`MountError`."""
    path = mounts.resolve(directory)
    _check_top(path)
    below = _below(path)
    if beneath(path) is None:
        raise MountError(
            f"--cover: {path} is on {below.fstype}: neither a kernel's securityfs nor an "
            "emulator's; show the list elsewhere with --mount DIR"
        )
    try:
        descriptor, policy = _in_thread(partial(_beneath, path, below.path))
    except OSError as error:
        why = error.strerror
        raise MountError(
            f"--cover: {path}: no way below a view ({why}): CAP_SYS_ADMIN is needed"
        ) from None
    root = f"/proc/self/fd/{descriptor}"
    reach = os.path.normpath(os.path.join(root, os.path.relpath(path, below.path)))
    return Ground(path, root, reach, below.emulated, policy)


def _check_top(path: str) -> None:
    """Nothing on the very place but what is to be covered, and views that died there."""
    mount = mounts.top(path)
    if mount is None or mount.emulated or mount.fstype == _SECURITYFS:
        return
    if not mount.kept:
        raise MountError(f"--cover: {path}: {mount.source} ({mount.fstype}) is mounted over it")
    answer = mounts.probe(path)
    if answer != errno.ENOTCONN:
        state = "is there and does not answer" if answer is None else "covers it"
        raise MountError(f"--cover: {path}: another keeper's view {state}; end that first")


def _below(path: str) -> Mount:
    """The mount that ``path`` is on, but for views over it."""
    found = [
        mount
        for mount in mounts.mounts()
        if (path == mount.path and not mount.kept)
        or path.startswith(f"{mount.path}/".replace("//", "/"))
    ]
    return max(enumerate(found), key=lambda row: (len(row[1].path), row[0]))[1]


def _beneath(path: str, root: str) -> tuple[int, int | None]:
    """Clones of the mount on ``root``, without what lies over ``path``, and of the policy there.

    No path leads to them once a view covers it. In a thread of its own: that leaves the mount
    namespace alone. Unmounting in the new one changes no other, and clones outlive it.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    for _ in range(_LAYERS):
        if not is_covered(path):
            break
        linux.umount(path)
    return linux.clone_of_mount(root, below=False), policy_of(path)


def _in_thread(work: Callable[[], T]) -> T:
    """``work`` in a thread of its own, which ends with it."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="beneath") as thread:
        return thread.submit(work).result()


def can_be_replaced(path: str) -> bool:
    """Whether a dead view, and nothing of ours below it, lies on ``path``: :func:`lay` can put
    another in its place. That takes CAP_SYS_ADMIN."""
    layers = [mount for mount in mounts.mounts() if mount.path == path]
    if not caller.can_mount() or not layers or not layers[-1].kept:
        return False
    return not any(mount.ours for mount in layers[:-1]) and mounts.probe(path) == errno.ENOTCONN


def lay(made: str, path: str, *, bare: bool = False) -> Mount:
    """The mount on ``made`` covers ``path``, and is on ``made`` no more; the cover.

    A dead view goes once the new one lies beneath it; with ``bare``, which is for a place where
    nothing is hidden, before that on kernels that cannot. Raises :class:`MountError`.
    """
    dead = _view(path)
    flags = linux.MOVE_MOUNT_BENEATH if dead is not None else 0
    try:
        clone = linux.clone_of_mount(made)
        try:
            linux.move_mount(clone, path, flags)
        except OSError as error:
            if not bare or dead is None or error.errno != errno.EINVAL:
                raise
            mounts.detach(dead)
            dead = None
            linux.move_mount(clone, path)
        finally:
            os.close(clone)
    except OSError as error:
        why = error.strerror
        if dead is not None and error.errno == errno.EINVAL:
            why = (
                "nothing can be put beneath a dead view before Linux 6.5: unmount it "
                "(the files below show meanwhile)"
            )
        raise MountError(f"{path}: the view cannot be laid there: {why}") from None
    if dead is not None:
        mounts.detach(dead)
    take_away(made)
    cover = _view(path)
    if cover is None:
        raise MountError(f"{path}: something else was mounted there meanwhile")
    return cover


def set_apart(made: str) -> None:
    """What is unmounted on ``made`` stays in its clones: of a shared mount they are peers.

    Raises :class:`MountError`.
    """
    try:
        linux.mount("none", made, flags=linux.MS_PRIVATE)
    except OSError as error:
        raise MountError(f"{made}: cannot be made private: {error.strerror}") from None


def take_away(made: str) -> None:
    """Unmounts the view on ``made``, if there is one. Raises :class:`MountError`."""
    mount = _view(made)
    if mount is not None:
        mounts.detach(mount)


def lies(cover: Mount) -> bool:
    """Whether the cover is what its path leads to."""
    return mounts.top(cover.path) == cover


def policy_of(directory: str) -> int | None:
    """The policy file of a directory as a mount that is nowhere yet; None where there is none:
    a kernel that takes one policy only removes it then. Raises OSError."""
    try:
        return linux.clone_of_mount(os.path.join(directory, _POLICY), below=False)
    except FileNotFoundError:
        return None


def show_policy(policy: int, view: str) -> None:
    """What :func:`policy_of` gave, on the file of that name in ``view``. Raises OSError."""
    try:
        linux.move_mount(policy, os.path.join(view, _POLICY))
    finally:
        os.close(policy)


def shown_policy(view: str) -> Mount | None:
    """What :func:`show_policy` has made."""
    return mounts.top(os.path.join(view, _POLICY))
