# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Messages between watcher and listener: one per packet, JSON.

A :class:`~imafs.sources.watch.packets.Channel` keeps the bounds of messages and their order;
whichever end dies, the other reads its end. Bytes travel as hexadecimal digits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from imafs.errors import FormatError
from imafs.kernel.audit import Task

#: Send buffer asked for: many messages may wait while the other end is busy.
BUFFER = 4 << 20
#: Stands for CONFIG_IMA_MEASURE_PCR_IDX, which only the daemon knows.
DEFAULT_PCR = -1


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The facts of a file system that rules ask for: fsmagic=, fsname=, fs_subtype=, fsuuid=."""

    device: int
    magic: int
    name: str
    subtype: str
    uuid: bytes
    #: Name of the super block (``s_id``), which audit records show.
    id: bytes = b""


# The watcher says


@dataclass(frozen=True, slots=True)
class Settings:
    """First of all. ``excused``: processes whose opens are allowed at once, each with when it
    began (:func:`imafs.sources.watch.child.task.began`): its number outlives it.
    ``template_fmt`` is that of the command line, which rules may name; empty: none."""

    algorithm: str
    want_sha1: bool
    excused: tuple[tuple[int, int], ...]
    template_fmt: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The active policy (:meth:`imafs.kernel.policy.match.Policy.source`), or ``more`` rules
    behind those that were told before."""

    text: bytes
    more: bool = False


@dataclass(frozen=True, slots=True)
class Watch:
    """These paths are watched from now on, and no other; answered by :class:`Watching`.

    ``points`` are directories on every file system that is concerned, paths first. ``files``
    are paths that are not known to be directories: the listener must not look at them, nor
    touch a ``silent`` point, whose file system does not answer: its mark stays. Without a mark
    on each of the ``required`` paths nothing is changed; any other that cannot be marked is
    left out.
    """

    number: int
    paths: tuple[bytes, ...]
    points: tuple[bytes, ...]
    file_systems: tuple[FileSystem, ...]
    files: tuple[bytes, ...] = ()
    silent: tuple[bytes, ...] = ()
    required: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The openers of use or violation ``number`` may go on. ``measured`` False: the queue
    has refused it, so the next use is another try."""

    number: int
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Forget:
    """A boot: nothing was measured yet."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for :class:`Counters` now."""


# The listener says


@dataclass(frozen=True, slots=True)
class Watching:
    """The answer to a :class:`Watch`: ``errno`` 0, or why a required path cannot be watched
    (then nothing has changed). ``left_out`` are points that cannot be, each with its errno."""

    number: int
    errno: int
    left_out: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Use:
    """A file whose use rules measure: into which PCRs (:data:`DEFAULT_PCR`), each with the name
    of its template (empty: the default one); its owner, digests and signatures (empty: none)."""

    number: int
    name: bytes
    pcrs: tuple[tuple[int, str], ...]
    uid: int
    gid: int
    mode: int
    digest: bytes
    sha1: bytes
    signature: bytes
    evm_signature: bytes


@dataclass(frozen=True, slots=True)
class Violation:
    """``cause`` is the kernel's word: open_writers or ToMToU; ``task`` has opened the file,
    ``dev`` and ``ino`` tell which one it is in an audit log."""

    number: int
    name: bytes
    cause: str
    task: Task | None = None
    dev: bytes = b""
    ino: int = 0


@dataclass(frozen=True, slots=True)
class Missed:
    """``count`` uses were not measured that should have been, for the same reason; ``name`` is
    that of the last one, ``uid`` who opened it, -1: unknown or several."""

    count: int
    name: bytes
    why: str
    uid: int


@dataclass(slots=True)
class Counters:
    """Since the listener's start, who counts in one of these. ``events`` came; ``watched`` of
    them were about watched files; ``hashed`` files were read; ``late`` openers went on at the
    deadline and ``unasked`` without waiting, because the daemon had not answered before;
    ``lost`` uses never reached it; of ``hidden`` ones the open's flags could not be seen;
    ``overflows`` of the kernel's queue; ``errors``: events that could not be judged, the last
    one for ``trouble``; ``unmeasured`` uses that a rule wanted measured, whatever the reason.
    ``ignoring``: directories elsewhere are left out."""

    events: int = 0
    watched: int = 0
    hashed: int = 0
    late: int = 0
    unasked: int = 0
    lost: int = 0
    hidden: int = 0
    overflows: int = 0
    errors: int = 0
    unmeasured: int = 0
    pid: int = 0
    ignoring: bool = True
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Mounted:
    """The table of mounts has changed: there may be another file system below a path."""


ToListener = Settings | Rules | Watch | Done | Forget | Ask
ToWatcher = Watching | Use | Violation | Missed | Counters | Mounted
Message = ToListener | ToWatcher

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(Settings, Rules, Watch, Done, Forget, Ask),
        *(Watching, Use, Violation, Missed, Counters, Mounted),
    )
}
_PARTS: dict[str, Any] = {kind.__name__: kind for kind in (FileSystem, Task)}
_NAMES = {
    kind: tuple(f.name for f in fields(kind)) for kind in (*_KINDS.values(), *_PARTS.values())
}


def encode(message: Message) -> bytes:
    """The packet."""
    kind = type(message)
    values = [_plain(getattr(message, name)) for name in _NAMES[kind]]
    return json.dumps([kind.__name__, *values], separators=(",", ":")).encode()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, FileSystem | Task):
        kind = type(value)
        return {kind.__name__: [_plain(getattr(value, name)) for name in _NAMES[kind]]}
    return value


def decode(packet: bytes) -> Message:
    """The message. Raises :class:`FormatError`."""
    try:
        name, *values = json.loads(packet)
        message: Message = _KINDS[name](*map(_rich, values))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"a packet that is no message: {error!r}") from None
    return message


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_rich(item) for item in value)
    if isinstance(value, dict):
        [(name, content)] = value.items()
        return bytes.fromhex(content) if name == "hex" else _PARTS[name](*map(_rich, content))
    return value
