# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Leftovers of this user's dead daemons: found and removed; the living are never touched.

Root is a user like the others here: the name of a FUSE file system is anybody's choice.

After kill -9 three things stay: a mount that answers ENOTCONN, a control socket on which
nobody listens, and the temporary state of a swtpm, whose lock the kernel freed with its
last holder (see ``imafs.tpm.swtpm``).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imafs import disk
from imafs.control import paths
from imafs.errors import ControlError, FileError, MountError
from imafs.host import covers, locks, mounts, ownership
from imafs.text import quoted

_STATES = "imafs-tpm-"
_STATE_LOCK = "imafs.lock"
#: Made by swtpm, that is: after the daemon had taken the lock.
_STATE_USED = "swtpm.log"
#: Seconds after which a state directory that no swtpm ever used is nobody's.
_NEVER_USED = 60.0


def unmount_dead() -> Iterator[str]:
    """Unmounts dead mounts of this user's, all layers of each; yields the path of every layer.

    The cover of a keeper over a kernel's directory stays (``imafs umount DIR`` takes it away).

    Raises :class:`imafs.errors.MountError` for the first that cannot be unmounted, after all
    the others.
    """
    refusal: MountError | None = None
    for path in dict.fromkeys(mount.path for mount in mounts.mounts() if _own(mount)):
        while (mount := mounts.top(path)) is not None and _own(mount):
            # A stopped daemon hangs the probe: it lives.
            if mounts.probe(path) != errno.ENOTCONN or _hides_a_kernel(mount):
                break
            try:
                mounts.detach(mount)
            except MountError as error:
                refusal = refusal or error
                break
            yield path
    if refusal is not None:
        raise refusal


def _hides_a_kernel(mount: mounts.Mount) -> bool:
    """Whether it is a keeper's cover: without it a kernel shows a list that was trimmed."""
    below = covers.beneath(mount.path) if mount.kept else None
    return below is not None and not below.emulated


def _own(mount: mounts.Mount) -> bool:
    return mount.ours and mount.owner == os.geteuid()


def remove_dead_sockets() -> Iterator[Path]:
    """Removes this user's sockets on which nobody listens, and their logs; yields each.

    Those in the directory of sockets, its logs that no daemon has open, and the sockets that
    lie beside mounts.
    """
    try:
        directory = paths.socket_directory()
    except ControlError:
        pass  # this user has none
    else:
        yield from _clear(directory)
    beside: defaultdict[Path, set[Path]] = defaultdict(set)
    for mount in mounts.mounts():
        if _own(mount):
            socket = paths.beside(mount.path)
            beside[socket.parent].add(socket)
    for directory, sockets in beside.items():
        with _locked(directory) as there:
            for path in sorted(sockets) if there else ():
                yield from _remove_if_dead(path)


def _clear(directory: Path) -> Iterator[Path]:
    with _locked(directory) as there:
        if not there:
            return
        for path in sorted(directory.glob("*.sock")):
            yield from _remove_if_dead(path)
        for log in sorted(directory.glob("*.log")):
            # A daemon that starts anew has its log before it has its socket.
            if (
                not os.path.lexists(log.with_suffix(".sock"))
                and log.is_file()
                and not _open_somewhere(log)
            ):
                log.unlink()
                yield log


def remove_dead_socket(path: Path) -> list[Path]:
    """Removes it where nobody listens on it; what it has removed."""
    with _locked(path.parent) as there:
        return list(_remove_if_dead(path)) if there else []


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Inside, no daemon makes its socket there: one that is bound and does not listen yet
    would look dead. False where there is no such directory, or none that this user may read;
    also, said in a line, where other users can put another in its place, and where the lock is
    somebody else's."""
    try:
        ownership.check(directory / "any")
    except ownership.ForeignError as error:
        print(f"imafs: {quoted(directory)}: dead sockets stay there: {error}", file=sys.stderr)
        yield False
        return
    except FileError:
        yield False
        return
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        yield False
        return
    try:
        locked = _taken(held)
        if not locked:
            what = f"{quoted(directory)}: locked by another process"
            print(f"imafs: {what}: dead sockets stay there", file=sys.stderr)
        yield locked
    finally:
        os.close(held)


def _taken(held: int) -> bool:
    deadline = time.monotonic() + locks.SECONDS
    while not locks.taken(held):
        if time.monotonic() > deadline:
            return False
        time.sleep(locks.PAUSE)
    return True


def _remove_if_dead(path: Path) -> Iterator[Path]:
    try:
        info = path.lstat()
        # In a directory like /tmp others have theirs, and they may vanish.
        ours = stat.S_ISSOCK(info.st_mode) and info.st_uid in ownership.trusted()
        dead = ours and paths.listener(path) is None
    except (ControlError, FileNotFoundError):
        return  # another user's, as a mount seen from a user namespace may be
    if dead:
        path.unlink()
        yield path


def _open_somewhere(path: Path) -> bool:
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if os.readlink(entry) == str(path):
                return True
    return False


def remove_dead_states() -> Iterator[Path]:
    """Removes temporary swtpm states of this user whose lock nobody holds; yields each.

    Where others can change the directory of temporary files, a line says that they stay.
    """
    try:
        place = ownership.temporary()
    except (ownership.ForeignError, FileError) as error:
        print(f"imafs: dead TPM states stay: {error}", file=sys.stderr)
        return
    with disk.opened(place) as directory:
        for name in sorted(os.listdir(directory)):
            if not name.startswith(_STATES):
                continue
            path = Path(place, name)
            try:
                removed = _remove_state(directory, name)
            except FileNotFoundError:  # its own daemon or another cleaner was first
                continue
            except OSError as error:
                print(f"imafs: {quoted(path)} stays: {error.strerror}", file=sys.stderr)
                continue
            if removed:
                yield path


def _remove_state(directory: int, name: str) -> bool:
    state = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        # Another user's mount says EACCES to root (fuse(4)), claims any owner, or never answers:
        # it is not asked. O_PATH has not asked it either.
        if disk.mount_number(state) != disk.mount_number(directory):
            return False
        info = os.fstat(state)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            return False
        if _is_in_use(state, info):
            return False
        with _lock_of(state) as dead:
            if dead:
                shutil.rmtree(name, dir_fd=directory)
            return dead
    finally:
        os.close(state)


def _is_in_use(state: int, info: os.stat_result) -> bool:
    """Whether a daemon may be starting this moment that has not locked its state yet."""
    used = _STATE_USED in os.listdir(f"/proc/self/fd/{state}")
    return not used and time.time() - info.st_mtime < _NEVER_USED


@contextmanager
def _lock_of(state: int) -> Iterator[bool]:
    """Whether nobody holds the lock of a state; inside nobody takes it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(_STATE_LOCK, flags, 0o600, dir_fd=state)
    try:
        yield locks.taken(lock)
    finally:
        os.close(lock)
