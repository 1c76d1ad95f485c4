# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The mounts of this machine, and cleaning up after a daemon that died.

After kill -9 the mount stays and answers ENOTCONN; a new one would stack on it
(measured). Only a mount that is ours by type and source, and dead, is ever unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

from imafs import disk
from imafs.errors import MountError
from imafs.host import caller, mount_table, programs

FSNAME = "securityfs"
#: What a keeper's view says in its place.
KEPT = "imafs-keeper"
SUBTYPE = "imafs"
_MNT_DETACH = 2
_OWNER = re.compile(rb"(?:^|,)user_id=(\d+)")
#: As many links as the kernel follows (MAXSYMLINKS).
_LINKS = 40
#: Seconds that a mount of ours gets to answer before it counts as hung.
_ANSWER = 2.0


class OutOfReachError(MountError):
    """A mount is not what its path leads to (any more): covered, gone, or renamed."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo; ``owner``: uid of who made a FUSE mount; ``root``: what of
    its file system is mounted; ``options``: of the file system."""

    number: int
    path: str
    fstype: str
    source: str
    minor: int
    owner: int | None = None
    root: str = "/"
    options: bytes = field(default=b"", compare=False)  # a remount changes them

    @property
    def ours(self) -> bool:
        """Made by an imafs."""
        return self.fstype == f"fuse.{SUBTYPE}" and self.source in (FSNAME, KEPT)

    @property
    def emulated(self) -> bool:
        """An emulator's: not a keeper's view."""
        return self.ours and self.source == FSNAME

    @property
    def kept(self) -> bool:
        """A keeper's view."""
        return self.ours and self.source == KEPT


def mounts() -> list[Mount]:
    """All mounts, in order: of several at one place the last is on top.

    This thread's: it may have a namespace of its own (:mod:`imafs.host.covers`).
    """
    return of_table(Path("/proc/thread-self/mountinfo").read_bytes())


def of_table(table: bytes) -> list[Mount]:
    """The mounts of a table, as of another process. Raises :class:`FormatError`."""
    found = []
    for row in mount_table.rows(table):
        owner = _OWNER.search(row.options)
        found.append(
            Mount(
                row.number,
                os.fsdecode(row.point),
                row.kind,
                os.fsdecode(row.source),
                int(row.device.partition(b":")[2]),
                int(owner[1]) if owner else None,
                os.fsdecode(row.root),
                row.options,
            )
        )
    return found


def above(path: str | os.PathLike[str]) -> Mount | None:
    """The mount on which ``path`` lies by its name: of several at one place the top one. Asks no
    file system, as :func:`resolve`; None where the table is empty."""
    real = f"{resolve(path)}/"
    found = [mount for mount in mounts() if real.startswith(f"{mount.path.rstrip('/')}/")]
    return max(reversed(found), key=lambda mount: len(mount.path), default=None)


def beneath(path: str) -> Mount | None:
    """The mount that what ``path`` leads to is on; None where the table does not have it.

    By its number: a path may run below a mount that another one covers. Asks no file system.
    Raises OSError.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        number = disk.mount_number(descriptor)
        return next((mount for mount in mounts() if mount.number == number), None)
    finally:
        os.close(descriptor)


def resolve(path: str | os.PathLike[str]) -> str:
    """Absolute path with links resolved, without a look into the place itself.

    That of a mount would be a request to its daemon; readlink(2) is none: what kind of file
    a mount's root is the kernel knows by itself.
    """
    here = os.path.abspath(path)
    for _ in range(_LINKS):
        parent, name = os.path.split(here)
        parent = os.path.realpath(parent)
        here = os.path.join(parent, name)
        try:
            target = os.readlink(here)
        except OSError:
            break
        here = os.path.normpath(os.path.join(parent, target))
    return here


def top(path: str) -> Mount | None:
    """The topmost mount on exactly ``path``; None where there is none."""
    here = [mount for mount in mounts() if mount.path == path]
    return here[-1] if here else None


def probe(path: str) -> int | None:
    """errno of a stat of ``path``: 0 where it answers, None where it hangs.

    In a thread of its own: a stat of a hung FUSE mount waits for ever.
    """
    result: list[int] = []

    def stat() -> None:
        try:
            os.stat(path)
            result.append(0)
        except OSError as error:
            result.append(error.errno or errno.EIO)

    thread = threading.Thread(target=stat, daemon=True, name="probe")
    thread.start()
    thread.join(_ANSWER)
    return result[0] if result else None


def detach(mount: Mount) -> None:
    """Lazy unmount of ``mount`` and of nothing else, whatever its path leads to by now.

    Raises :class:`MountError`.
    """
    if caller.can_mount():
        _detach_itself(mount)
        return
    command = programs.find("fusermount3")
    if command is None:
        raise MountError(
            f"{mount.path}: cannot be unmounted: fusermount3 is missing (package fuse3)"
        )
    words = [command, "-u", "-z", mount.path]
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", check=False, cwd="/"
    )
    if done.returncode:
        raise MountError(f"{mount.path}: cannot be unmounted: {done.stderr.strip()}")


def _detach_itself(mount: Mount) -> None:
    """By a descriptor of the mount's root: the owner of a directory above may have put a
    symbolic link in its place. O_PATH asks no daemon, so that a dead one is no obstacle; while
    the descriptor is open the number is nobody else's."""
    try:
        descriptor = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OutOfReachError(f"{mount.path}: cannot be unmounted: {error.strerror}") from None
    try:
        if disk.mount_number(descriptor) != mount.number or mount not in mounts():
            raise OutOfReachError(f"{mount.path}: cannot be unmounted: it is covered or gone")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(b"/proc/self/fd/%d" % descriptor, _MNT_DETACH):
            code = ctypes.get_errno()
            # EINVAL: locked, a mount of a more privileged namespace.
            kind = OutOfReachError if code == errno.EINVAL else MountError
            raise kind(f"{mount.path}: cannot be unmounted: {os.strerror(code)}")
    finally:
        os.close(descriptor)


def check_owner(mount: Mount) -> None:
    """Raises :class:`MountError` where this user may not unmount it."""
    if mount.owner is not None and os.geteuid() not in (0, mount.owner):
        raise MountError(
            f"{mount.path}: belongs to uid {mount.owner}; only its owner or root can unmount it"
        )


def clean(path: str) -> int:
    """Unmounts dead mounts of ours on ``path``, layer by layer; returns how many.

    Raises :class:`MountError` where a living imafs or anybody else's mount is there.
    """
    cleaned = 0
    while (mount := top(path)) is not None:
        if not mount.ours:
            if _is_plain_root(mount, path):
                break
            raise MountError(
                f"{path}: {mount.source} ({mount.fstype}) is mounted here; choose another directory"
            )
        answer = probe(path)
        if answer == 0 or answer is None:
            state = "is mounted here" if answer == 0 else "is mounted here and does not answer"
            who = "a keeper's view" if mount.kept else "another imafs"
            end = "end that keeper" if mount.kept else f"end it with: imafs umount {path}"
            raise MountError(f"{path}: {who} {state}{_held_by(mount)}; {end}")
        if answer != errno.ENOTCONN:
            raise MountError(f"{path}: {os.strerror(answer)}")
        detach(mount)
        cleaned += 1
    return cleaned


def _held_by(mount: Mount) -> str:
    pid = holder(mount)
    return "" if pid is None else f", held by process {pid}"


def holder(mount: Mount) -> int | None:
    """Process that serves a FUSE mount; None where that cannot be seen.

    By the connection's number in fdinfo (seen on Linux 6.18), else by a command line
    that names the place.
    """
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) != "/dev/fuse":
                continue
            process = link.parent.parent
            info = (process / "fdinfo" / link.name).read_text()
            words = (process / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(process / "cwd")
        except OSError:
            continue  # another user's, or gone meanwhile
        number = re.search(r"^fuse_connection:\s*(\d+)$", info, re.MULTILINE)
        if number is not None:
            serves = int(number[1]) == mount.minor
        else:
            # No look at the places themselves: one of them may be on a mount that hangs.
            places = (os.path.join(here, os.fsdecode(word)) for word in words if word)
            serves = mount.path in map(os.path.normpath, places)
        if serves:
            return int(process.name)
    return None


def _is_plain_root(mount: Mount, path: str) -> bool:
    """A file system that was mounted there to mount upon: an empty directory is free to use."""
    return not mount.fstype.startswith("fuse") and path != "/" and not any(Path(path).iterdir())


def check_mountpoint(path: str) -> None:
    """Raises :class:`MountError` where ``path`` is not an empty directory."""
    place = Path(path)
    try:
        if not place.is_dir():
            reason = "is not a directory" if place.exists() else "does not exist; make it first"
            raise MountError(f"{path}: {reason}")
        first = next((entry.name for entry in place.iterdir()), None)
        if first is not None:
            raise MountError(
                f"{path}: is not empty ({first!r} is there); mount on an empty directory. "
                "A file of the emulator's names was written while nothing was mounted: remove it"
                if "_measurements" in first
                else f"{path}: is not empty ({first!r} is there); mount on an empty directory"
            )
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from None


def check_fuse() -> None:
    """Raises :class:`MountError` where /dev/fuse cannot be opened, and says what to do."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(
            "/dev/fuse is not there: load the module fuse, or give the container --device /dev/fuse"
        ) from None
    except OSError as error:
        raise MountError(f"/dev/fuse: {error.strerror}: not allowed to use FUSE here") from None
    if not caller.can_mount() and programs.find("fusermount3") is None:
        raise MountError("fusermount3 is missing (package fuse3): only root can mount without it")
