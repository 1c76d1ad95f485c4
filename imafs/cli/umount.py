# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs umount DIR``: ends the daemon of a mount, or clears what dead ones left."""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from imafs.cli import answers, find_daemon, options
from imafs.control import paths
from imafs.errors import ControlError, MountError, Refused, UntrustedError, UsageError
from imafs.text import quoted
from imafs.verbs.client import ControlClient

if TYPE_CHECKING:
    from imafs.host.mounts import Mount

#: Seconds that a daemon gets to unmount after it was told to stop.
_DEADLINE = 15.0
#: Seconds in which the threads of an ended process are gone too, where nothing holds them.
_THREADS_GONE = 2.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "umount",
        help="unmount an emulator and end its daemon",
        description="Tells the daemon that mounted DIR to stop and waits until it has. Files that "
        "are open do not hold it up: it names who has them open, and their next read or write is "
        "ENOTCONN; what they have read is theirs. Plain `umount DIR` is EBUSY instead. A mount "
        "whose daemon is dead is unmounted; nobody else's is touched. Of a keeper that has ended "
        "the view goes, and nothing below it.",
    )
    parser.add_argument("dir", metavar="DIR", nargs="?")
    parser.add_argument(
        "--control", metavar="SOCKET", help="its control socket (found by itself otherwise)"
    )
    options.add_listener(parser)
    parser.add_argument(
        "--stale",
        action="store_true",
        help="instead of DIR: remove the mounts, sockets, logs and temporary TPM states of all "
        "dead daemons of this user on this machine, a line for each",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if args.stale:
        if args.dir is not None or args.control is not None or args.listener is not None:
            raise UsageError("--stale takes no DIR, no --control and no --uid")
        return _stale()
    if args.dir is None:
        raise UsageError("what is to be unmounted? name DIR, or --stale for all that are dead")
    return _umount(args)


def _stale() -> int:
    from imafs.cli import leftovers

    for path in chain(leftovers.remove_dead_sockets(), leftovers.remove_dead_states()):
        print(f"imafs: removed {quoted(path)}")
    for mountpoint in leftovers.unmount_dead():
        print(f"imafs: unmounted {quoted(mountpoint)}")
    return 0


def _umount(args: argparse.Namespace) -> int:
    from imafs.host import mounts

    uid = find_daemon.listener(args)
    path = mounts.resolve(args.dir)
    mount = mounts.top(path)
    if mount is None:
        raise MountError(f"{path}: nothing is mounted here")
    if not mount.ours:
        raise MountError(f"{path}: {mount.source} ({mount.fstype}) is not a mount of imafs")
    mounts.check_owner(mount)
    if mount.kept:
        return _take_view_away(mount)
    holders: list[str] = []
    process: int | None = None
    try:
        socket = args.control or find_daemon.of_mount(mount)
        with ControlClient(socket, uid=uid) as client:
            _check_is_of(client, path, socket)
            with suppress(Refused):  # it ends all the same
                holders = _holders(client.status())
            process = _process(client)
            client.stop()
    except ControlError as error:
        # No daemon to ask: its mount must be dead, else it listens somewhere else.
        answer = mounts.probe(path)
        if isinstance(error, UntrustedError) and answer != errno.ENOTCONN:
            raise  # root may not even look at a user's mount
        if answer == 0:
            if args.control is None:
                raise MountError(str(error)) from None
            raise MountError(
                f"{path}: the daemon is alive but not at {args.control}; leave --control out, or "
                "name its socket"
            ) from None
        mounts.detach(mount)
        _forget(mount, args.control)
    deadline = time.monotonic() + _DEADLINE
    while (now := mounts.top(path)) is not None and now.ours:
        if time.monotonic() > deadline:
            raise MountError(f"{path}: still mounted after {_DEADLINE:g} s")
        time.sleep(0.02)
    if process is not None:
        _await_end(process, path, deadline)
    if holders:
        names = ", ".join(holders)
        print(f"imafs: {quoted(path)}: was open in {names}: ENOTCONN there from now on")
    return 0


def _take_view_away(mount: Mount) -> int:
    """A view that a keeper left, and nothing below it. Raises :class:`MountError`."""
    from imafs.host import covers, mounts

    if mounts.probe(mount.path) != errno.ENOTCONN:
        pid = mounts.holder(mount)
        keeper = "a keeper" if pid is None else f"a keeper (process {pid})"
        raise MountError(f"{mount.path}: {keeper} shows its view here; end the keeper first")
    below = covers.beneath(mount.path)
    mounts.detach(mount)
    words = f"imafs: {quoted(mount.path)}: the view that a keeper left is gone"
    if below is not None and below.emulated:
        print(f"{words}; the emulator below goes on")
    elif below is not None:
        print(
            f"{words}: what the keeper deleted is missing in the kernel's own list until a reboot"
        )
    return 0


def _forget(mount: Mount, control: str | None) -> None:
    """Removes the socket of a dead daemon, and its TPM's state with those of others that died;
    its log may say why it died, and stays."""
    from imafs.cli import leftovers

    for _ in leftovers.remove_dead_states():
        continue

    with suppress(ControlError):  # it had none that this user could have
        socket = paths.of_mount(mount.path, mount.owner) if control is None else Path(control)
        leftovers.remove_dead_socket(socket)


def _process(client: ControlClient) -> int | None:
    """A descriptor that tells the end of who listens there; None where that cannot be seen."""
    if client.peer.pid:  # 0: in another pid namespace
        with suppress(ProcessLookupError):
            return os.pidfd_open(client.peer.pid)
    return None


def _await_end(process: int, path: str, deadline: float) -> None:
    """Until the daemon, unmounted, has ended too: its TPM, its socket and its log are free.

    A thread that is inside a file system which never answers cannot be ended by anybody.
    """
    zombie = time.monotonic()
    try:
        while not select.select([process], [], [], 0.1)[0]:
            now = time.monotonic()
            if not _has_exited(process):
                zombie = now
            elif now - zombie > _THREADS_GONE:
                left = "has ended, but for threads inside a file system that does not answer"
                print(f"imafs: {quoted(path)}: its daemon {left}", file=sys.stderr)
                return
            if now > deadline:
                raise MountError(f"{path}: unmounted, but its daemon has not ended yet")
    finally:
        os.close(process)


def _has_exited(process: int) -> bool:
    """Whether the process is a zombie, its other threads perhaps not gone yet."""
    with open(f"/proc/self/fdinfo/{process}") as info:
        pid = next((line.split()[1] for line in info if line.startswith("Pid:")), "-1")
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"Z"
    except OSError:
        return False  # gone, as the descriptor tells next


def _check_is_of(client: ControlClient, path: str, socket: object) -> None:
    """Raises :class:`UsageError` where the daemon is that of another mount."""
    mountpoint = client.hello().get("mountpoint")
    if mountpoint != path:
        raise UsageError(
            f"{path}: at {socket} listens the daemon of {mountpoint}: nothing was stopped; "
            "leave --control out, or name this mount's own socket"
        )


def _holders(status: Mapping[str, object]) -> list[str]:
    """``name[pid]`` of every process that has a file open, each once."""
    readers = status.get("readers")
    items = [*(readers if isinstance(readers, list) else []), status.get("writer")]
    return list(dict.fromkeys(answers.process(item) for item in items if isinstance(item, dict)))
