# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Where control sockets are: one directory per user, one name per mountpoint.

``/run/imafs`` for root, else ``$XDG_RUNTIME_DIR/imafs``, or ``$IMAFS_SOCKET_DIR`` (inside
`imafs run`). Root of a user namespace to which /run does not belong counts as a plain user.
The name is the absolute mountpoint with ``-`` for ``/`` and ``%XX`` for what is
not a letter, a digit, ``.`` or ``_``, so that ``/mnt/ima`` is ``mnt-ima.sock``. A path that the
kernel's ``sun_path`` (108 bytes with the NUL, unix(7)) cannot hold keeps its tail, ``~`` and a
hash of the whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from imafs.control.peers import Peer, is_ours, peer_of
from imafs.errors import ControlError, FileError
from imafs.host import ownership

SUN_PATH_MAX = 107
#: Names the socket for ctl and status where no option does: set inside `imafs run`.
VARIABLE = "IMAFS_CONTROL"
#: Takes the place of the user's directory of sockets: likewise.
DIRECTORY_VARIABLE = "IMAFS_SOCKET_DIR"
_SUFFIX = ".sock"
#: __SO_ACCEPTCON (include/linux/net.h): in /proc/net/unix, who has called listen().
_ACCEPTS = 1 << 16
#: A row of /proc/net/unix: flags, inode and name.
_ROW = re.compile(
    rb"^[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +(\d+) (/.*)$",
    re.MULTILINE,
)
_ROOTS = Path("/run/imafs")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._")


@dataclass(frozen=True, slots=True)
class FoundSocket:
    """A socket on which somebody listens; ``mountpoint`` begins with ``...`` when cut."""

    path: Path
    mountpoint: str
    pid: int


def socket_directory() -> Path:
    """$IMAFS_SOCKET_DIR or the directory of this user's sockets; it need not exist."""
    chosen = os.environ.get(DIRECTORY_VARIABLE, "")
    if chosen.startswith("/"):
        return Path(chosen)
    if _is_roots():
        return _ROOTS
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise ControlError("XDG_RUNTIME_DIR is not set: name the socket with --control SOCKET")
    return Path(runtime, "imafs")


def _is_roots() -> bool:
    """Whether /run/imafs is, or can be, this user's.

    In a user namespace root's files are the overflow uid's (user_namespaces(7)): uid 0 alone
    says nothing.
    """
    if os.geteuid() != 0:
        return False
    try:
        return _ROOTS.lstat().st_uid == 0
    except FileNotFoundError:
        return _ROOTS.parent.stat().st_uid == 0


def default_socket(mountpoint: str | os.PathLike[str]) -> Path:
    """The socket of ``mountpoint``. Ask before mounting: resolving links looks at the place.

    Raises :class:`ControlError` when even a hashed name is too long for its directory.
    """
    return _named_in(socket_directory(), mountpoint)


def beside(mountpoint: str) -> Path:
    """The socket of a user's mount where XDG_RUNTIME_DIR is not set."""
    return Path(f"{mountpoint}{_SUFFIX}")


def of_mount(mountpoint: str, owner: int | None) -> Path:
    """The socket of the mount that ``owner`` (a uid) has there: the first that exists.

    Root finds the sockets of others too, where systemd-logind puts XDG_RUNTIME_DIR. Where
    there is none it is the default; raises :class:`ControlError` where that is none either.
    """
    places = [beside(mountpoint)]
    if owner is not None and owner != os.geteuid():
        directory = _ROOTS if owner == 0 else Path(f"/run/user/{owner}/imafs")
        places.insert(0, _named_in(directory, mountpoint))
    try:
        default = default_socket(mountpoint)
    except ControlError:
        existing = [path for path in places if _is_socket(path)]
        if not existing:
            raise
        return existing[0]
    return next((path for path in (default, *places) if _is_socket(path)), default)


def _is_socket(path: Path) -> bool:
    """Also False where this user may not look: it is somebody else's then."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _named_in(directory: Path, mountpoint: str | os.PathLike[str]) -> Path:
    real = os.fsencode(os.path.realpath(mountpoint))
    parts = _escape(real)
    room = SUN_PATH_MAX - len(os.fsencode(directory)) - 1 - len(_SUFFIX)
    if sum(map(len, parts)) > room:
        end = "~" + hashlib.sha256(real).hexdigest()[:16]
        room -= len(end)
        if room < 0:
            raise ControlError(f"{directory} is too long a name for a socket's directory")
        while sum(map(len, parts)) > room:  # whole escapes only
            del parts[0]
        parts.append(end)
    return directory / ("".join(parts) + _SUFFIX)


def _escape(real: bytes) -> list[str]:
    """Each byte of the path without its leading ``/``, escaped."""
    parts = []
    for index, byte in enumerate(real[1:] or b"/"):
        if byte == 0x2F:
            parts.append("-")
        elif byte in _PLAIN and not (index == 0 and byte == 0x2E):  # no hidden sockets
            parts.append(chr(byte))
        else:
            parts.append(f"%{byte:02x}")
    return parts


def mountpoint_of(name: str) -> str:
    """The mountpoint that a socket's file name stands for."""
    stem, cut, _ = name.removesuffix(_SUFFIX).partition("~")
    plain = os.fsdecode(unquote_to_bytes(stem.replace("-", "/")))
    if cut:
        return "..." + plain
    return "/" if plain == "/" else "/" + plain


def advice() -> str:
    """What a user can do about a place where no socket can be made."""
    runtime = "" if _is_roots() else " or set XDG_RUNTIME_DIR"
    return f"name another with --control SOCKET{runtime}"


def prepare_directory(directory: Path) -> None:
    """Make the default directory, or see that it is ours alone.

    A lax mode of our own directory is tightened (systemd's RuntimeDirectory= makes 0755): to
    0700, of root's to 0711, for a keeper's view may lie in it, which is for others too. Raises
    :class:`ControlError`.
    """
    closed = 0o066 if directory == _ROOTS else 0o077
    try:
        ownership.check(directory)
        directory.mkdir(mode=0o777 & ~closed, exist_ok=True)
        info = directory.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise ControlError(f"{directory}: not a directory of this user; {advice()}")
        if info.st_mode & closed:
            directory.chmod(stat.S_IMODE(info.st_mode) & 0o777 & ~closed)
    except OSError as error:
        raise ControlError(f"{directory}: {error.strerror}; {advice()}") from error
    except (ownership.ForeignError, FileError) as error:
        raise ControlError(f"{error}; {advice()}") from None


def check_socket(path: Path) -> None:
    """Whether a socket can be made at ``path``, asked before anything is mounted.

    Raises :class:`ControlError` that says why not, and what to do. It may still fail later,
    for what others do meanwhile.
    """
    problem = _problem(path)
    if problem is not None:
        raise ControlError(f"{path}: {problem}; {advice()}")


def _problem(path: Path) -> str | None:
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        return f"too long for a socket ({SUN_PATH_MAX} bytes at most)"
    directory = path.parent
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            return f"{directory} is not a directory"
    except OSError as error:
        return f"{directory}: {error.strerror}"
    try:
        ownership.check(path)
    except ownership.ForeignError as error:
        return str(error).removeprefix(f"{path}: ")
    except FileError as error:
        return str(error)
    # A read-only file system shows here as well.
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return f"no socket can be made in {directory}, which this user cannot read and write"
    try:
        who = listener(path)
    except ControlError as error:
        return str(error).removeprefix(f"{path}: ")
    return None if who is None else f"{who} listens there already"


def listener(path: Path) -> Peer | None:
    """Who listens on the socket at ``path``, None for nobody (stale or no file).

    A listener that does not accept counts as living: it may only be stopped. Raises
    :class:`ControlError` for a path that is no socket or cannot be asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a unix socket connects at once or not at all
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            if path.is_symlink() or (path.exists() and not path.is_socket()):
                raise ControlError(f"{path}: exists and is not a socket") from None
            return None
        except BlockingIOError:  # its backlog is full, so there is somebody
            return Peer(0, -1, -1)
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from error
        return peer_of(probe)


def _sockets(pid: int) -> set[int]:
    """The inodes of the sockets that a process has open. Raises OSError."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            link = os.readlink(entry)
            if link.startswith("socket:["):
                found.add(int(link[8:-1]))
    return found


def of_process(pid: int) -> list[Path]:
    """Named sockets on which a process listens (proc(5)): none where this user may not look.

    Anybody's socket may have line ends in its name, and so forge a row: who connects looks at
    who listens there.
    """
    try:
        held = _sockets(pid)
        table = Path(f"/proc/{pid}/net/unix").read_bytes()
    except OSError:
        return []
    return [
        Path(os.fsdecode(name))
        for flags, inode, name in _ROW.findall(table)
        if int(flags, 16) & _ACCEPTS and int(inode) in held
    ]


def find_sockets(directory: Path | None = None) -> list[FoundSocket]:
    """The sockets in ``directory`` (default: this user's) on which somebody listens, by name."""
    directory = socket_directory() if directory is None else directory
    try:
        names = sorted(p.name for p in directory.iterdir() if p.name.endswith(_SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ControlError(f"{directory}: {error.strerror}") from error
    found = []
    for name in names:
        path = directory / name
        if not path.is_socket():
            continue
        who = listener(path)
        if who is not None:
            found.append(FoundSocket(path, mountpoint_of(name), who.pid))
    return found


def find_beside(mountpoints: Iterable[str]) -> list[FoundSocket]:
    """The sockets beside these mounts (see :func:`beside`) on which somebody listens."""
    found = []
    for mountpoint in dict.fromkeys(mountpoints):
        path = beside(mountpoint)
        try:
            who = listener(path) if _is_socket(path) else None
        except ControlError:
            continue  # of another user, as a mount seen from a user namespace may be
        # Where others can write too.
        if who is not None and is_ours(who.uid):
            found.append(FoundSocket(path, mountpoint, who.pid))
    return found


def the_socket(mountpoints: Iterable[str] = ()) -> Path:
    """The socket in $IMAFS_CONTROL, else the one living socket of this user.

    ``mountpoints``: where else this user has mounts, whose sockets may lie beside them.
    Raises :class:`ControlError` when there is not exactly one.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    found: list[FoundSocket] = []
    try:
        directory = socket_directory()
    except ControlError:
        where = "beside a mount of this user (XDG_RUNTIME_DIR is not set)"
    else:
        where = f"in {directory}"
        found = find_sockets(directory)
    found += find_beside(mountpoints)
    if len(found) == 1:
        return found[0].path
    if not found:
        raise ControlError(
            f"no imafs listens {where}: is it mounted? (name its socket with --control SOCKET)"
        )
    places = ", ".join(f"{f.mountpoint} ({f.path})" for f in found)
    raise ControlError(f"{len(found)} imafs are mounted, choose with --control SOCKET: {places}")
