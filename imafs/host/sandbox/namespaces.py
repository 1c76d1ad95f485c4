# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Leaving for a mount and a pid namespace, with a user namespace where we are not privileged."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from imafs.errors import MountError
from imafs.host import linux

#: Settings that keep ordinary users out of namespaces -> the value that does, who has it.
_SETTINGS = {
    "kernel.unprivileged_userns_clone": ("0", "1"),  # Debian before 11 and hardened kernels
    "user.max_user_namespaces": ("0", "15000"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),  # Ubuntu from 23.10 on
}


def enter() -> bool:
    """This process into a mount namespace of its own, its children into a pid namespace.

    As root directly; else (and as a root without CAP_SYS_ADMIN) in a user namespace in which
    this user is root. Returns whether it took one. Raises :class:`MountError` with the one
    thing to change.
    """
    spaces = linux.CLONE_NEWNS | linux.CLONE_NEWPID
    uid, gid = os.geteuid(), os.getegid()
    own_user = False
    try:
        if uid:
            raise PermissionError(errno.EPERM, "not root")
        linux.unshare(spaces)
    except PermissionError:
        own_user = True
        try:
            linux.unshare(spaces | linux.CLONE_NEWUSER)
            _map(uid, gid)
        except OSError as error:
            raise MountError(refusal(error, settings(), root=not uid)) from None
    try:
        # Nothing of ours shows outside, nothing that is mounted there later shows here.
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    except OSError as error:
        raise MountError(refusal(error, settings(), root=not uid)) from None
    return own_user


def _map(uid: int, gid: int) -> None:
    """root in the namespace is who we are outside (user_namespaces(7))."""
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    # Without this an unprivileged gid_map is refused; setgroups(2) is then gone inside.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def settings(root: str = "/proc/sys") -> dict[str, str]:
    """The values of those settings that this kernel has."""
    found = {}
    for name in _SETTINGS:
        path = Path(root, *name.split("."))
        if path.exists():
            found[name] = path.read_text().strip()
    return found


def refusal(error: OSError, values: Mapping[str, str], *, root: bool) -> str:
    """One line: what is missing for namespaces, and how one gets it."""
    for name, (bad, good) in _SETTINGS.items():
        if not root and values.get(name) == bad:
            return f"namespaces are refused to ordinary users here: as root, sysctl {name}={good}"
    if error.errno in (errno.EINVAL, errno.ENOSYS):
        return "this kernel has no user namespaces (CONFIG_USER_NS): run it as root"
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return "too many user namespaces: raise user.max_user_namespaces"
    missing = "CAP_SYS_ADMIN is missing" if root else "this user may not make a user namespace"
    return (
        f"{missing} ({error.filename}: {error.strerror}): run it as root with CAP_SYS_ADMIN; in a "
        "container --cap-add SYS_ADMIN, and --security-opt apparmor=unconfined where AppArmor rules"
    )
