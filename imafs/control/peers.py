# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The other end of a connection: who it is, and whether it may be trusted with one's data.

A name such as ``DIR.sock`` lies where others can write: whoever was first listens there.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imafs.errors import UntrustedError
from imafs.text import quoted

#: uids and gids that there can be: 2**32 - 1 is none (INVALID_UID).
_ALL = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, as SO_PEERCRED gives it (unix(7))."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        # 0 is a process of another PID namespace, and an unknown one.
        return f"process {self.pid} of uid {self.uid}" if self.pid else "another process"


class _WithOptions(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_of(connection: _WithOptions) -> Peer:
    """Who connected, or for a client who called listen()."""
    size = struct.calcsize("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return Peer(*struct.unpack("iII", raw))


def is_ours(uid: int) -> bool:
    """Whether ``uid``, as SO_PEERCRED shows it, is root or this process's own user.

    In a user namespace everybody without a number there has the overflow uid
    (user_namespaces(7)), perhaps this process too: then it is nobody's.
    """
    return uid == 0 or (uid == os.geteuid() and not is_anybody(uid))


def is_anybody(uid: int) -> bool:
    """Whether ``uid`` stands for all users who have no number in this user namespace."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        rows = Path("/proc/self/uid_map").read_text().splitlines()
    except (OSError, ValueError):
        return uid == 65534  # DEFAULT_OVERFLOWUID: nothing is known of this namespace
    return uid == overflow and sum(int(row.split()[2]) for row in rows) < _ALL


def check_listener(path: str, peer: Peer, uid: int | None) -> None:
    """Raises :class:`UntrustedError` where a client should not ask who listens at ``path``.

    Root asks root alone, a user itself or root, and whoever names a ``uid`` that one.
    """
    if uid is not None:
        if peer.uid != uid:
            raise UntrustedError(f"{path}: uid {peer.uid} listens there, not uid {uid}: not asked")
        return
    if is_ours(peer.uid):
        return
    who = f"uid {peer.uid}"
    if is_anybody(peer.uid):
        who += " (somebody outside of this user namespace)"
    wanted = "root" if os.geteuid() == 0 else "this user or root"
    raise UntrustedError(
        f"{path}: {who} listens there, not {wanted}: not asked; where that is whom you mean, add "
        f"--control {quoted(path)} --uid {peer.uid}"
    )
