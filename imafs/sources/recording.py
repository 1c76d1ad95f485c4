# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recordings: an IMA directory and its PCRs, taken at one moment, as one tar archive.

``<name>/`` holds every file of the directory verbatim, ``pcrs.txt`` (``bank index VALUE``
per line), ``ls-la.txt`` and ``meta.json``. A recording goes into bug reports and is played
by ``imafs mount --load``.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from imafs import disk
from imafs.attest.verify import Verdict, verify
from imafs.errors import (
    FileError,
    FormatError,
    MismatchError,
    NotThereError,
    UsageError,
)
from imafs.formats.algorithms import by_name
from imafs.host import ownership
from imafs.lists.replay import PcrValues
from imafs.sources import truncate, unpack
from imafs.sources.tarball import Entry
from imafs.sources.truncate import ShorterError
from imafs.text import shown

CURRENT = "binary_runtime_measurements"
#: What was taken out of it: staged, and in the prototype of November 2025 a snapshot.
STAGED = ("binary_runtime_measurements_staged", "binary_runtime_measurements_snap")
COUNT = "runtime_measurements_count"
#: Bytes of a list that is loaded.
MOST = 1 << 30
#: Bytes of all files of a directory that is recorded: every list is there once for each bank.
_MOST_TOGETHER = 4 * MOST
#: Characters of names in an error.
_MOST_NAMES = 2000
#: What a recording holds beside the directory's files.
_OWN = frozenset({"pcrs.txt", "ls-la.txt", "meta.json"})
#: Endings of a recording's name -> tarfile's mode.
KINDS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".txz": "w:xz"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files by name, links by name, and the PCRs that the lists lead to.

    ``later`` records were read beyond those that the PCRs knew of, and are left out.
    """

    files: Mapping[str, bytes]
    links: Mapping[str, str]
    modes: Mapping[str, int]
    pcrs: PcrValues
    verdict: Verdict | None
    later: int = 0


def take(
    directory: str,
    read_pcrs: Callable[[], PcrValues],
    *,
    padded: tuple[str, ...] = (),
    tries: int = 20,
    check: bool = True,
) -> Snapshot:
    """Reads PCRs, then lists, until those lead to these, at most ``tries`` times.

    While it reads, an open descriptor keeps writers out (A, D and N are EBUSY). Of a machine
    that goes on measuring, what came after the PCRs were read is left out of every list.
    Raises :class:`FileError` where a file cannot be read (EBUSY: a writer has it),
    :class:`FormatError` where a list is malformed and :class:`MismatchError` where list and
    PCRs never agree, at once where neither of them moves; ``check`` False takes the
    first pair as it is. Without any PCR (no TPM) the lists are checked by themselves:
    the verdict has no match.
    """
    before: tuple[bytes, PcrValues] | None = None
    verdict: Verdict | None = None
    for _ in range(tries):
        pcrs = read_pcrs()
        try:
            with _open_in(directory, _target(directory, CURRENT)):
                files, links, modes = _files(directory)
        except OSError as error:
            _look_below(directory, error)
            raise FileError(error.filename, error) from None
        staged = next((files[_real(n, links)] for n in STAGED if _real(n, links) in files), b"")
        current = files[_real(CURRENT, links)]
        if not check:
            return Snapshot(files, links, modes, pcrs, None)
        verdict = verify(staged + current, pcrs, padded=padded)
        now = staged + current, pcrs
        if pcrs and now == before and verdict.matched != verdict.records:
            raise MismatchError(f"{directory}: {_why(verdict)} --no-check records them as they are")
        # Only where both move is the rest of the list known to be newer, and not lost.
        going_on = before is not None and before[0] != now[0] and before[1] != pcrs
        known = verdict.matched if pcrs else verdict.records
        if known is not None and (known == verdict.records or going_on):
            with suppress(ShorterError):
                kept = _cut(files, staged, current, known, verdict)
                return Snapshot(kept, links, modes, pcrs, verdict, verdict.records - known)
        before = now
    why = "list and PCRs did not agree: were records deleted again and again?"
    if verdict is not None and verdict.matched is not None:
        why = _why(verdict)
    raise MismatchError(f"{directory}: {why} ({tries} tries) --no-check records them as they are")


def _look_below(directory: str, error: OSError) -> None:
    """Raises :class:`NotThereError` where ``directory`` is securityfs, and not its ``ima``."""
    below = os.path.join(directory, "ima")
    if error.errno == errno.ENOENT and os.path.lexists(os.path.join(below, CURRENT)):
        raise NotThereError(f"{directory}: there is no {CURRENT} in it; did you mean {below}?")


def _why(verdict: Verdict) -> str:
    if verdict.matched is None and verdict.padded:
        banks = ",".join(verdict.padded)
        return f"the PCRs of {banks} are those of zero-padded SHA-1: --padded-banks {banks}."
    if verdict.matched is None:
        return (
            f"these PCRs are not of this list: no part of its {verdict.records} records leads to "
            "them. Were records deleted, or are the PCRs another machine's?"
        )
    return (
        f"the PCRs are those after record {verdict.matched} of {verdict.records}: are they "
        "older than the list, or is the TPM behind?"
    )


def _cut(
    files: Mapping[str, bytes], staged: bytes, current: bytes, records: int, verdict: Verdict
) -> dict[str, bytes]:
    """The files with the first ``records`` of the staged and the current list."""
    width = by_name(verdict.bank).digest_size
    staged_records = truncate.count(staged, width)
    first = min(records, staged_records)
    parts = {
        True: truncate.cut(staged, width, first),
        False: truncate.cut(current, width, records - first),
    }
    kept = dict(files)
    for name, content in files.items():
        part = parts["_staged" in name or "_snap" in name]
        if name.startswith("binary_"):
            kept[name] = part.binary(content)
        elif name.startswith("ascii_"):
            kept[name] = part.ascii(content)
    if COUNT in kept and records < verdict.records:
        if not kept[COUNT].strip().isdigit():
            raise FormatError(f"{COUNT} holds no number")
        # Read right after the current list, whose last records are left out.
        out = verdict.records - staged_records - (records - first)
        kept[COUNT] = b"%d\n" % (int(kept[COUNT]) - out)
    return kept


def _real(name: str, links: Mapping[str, str]) -> str:
    return links.get(name, name)


def _target(directory: str, name: str) -> str:
    """The file that is called so there, where it is a link the one beside it; kernels make no
    others. Raises OSError."""
    path = os.path.join(directory, name)
    target = os.readlink(path) if os.path.islink(path) else name
    if "/" in target:
        raise OSError(errno.EINVAL, "is a link that leads out of its directory", path)
    return target


def _open_in(directory: str, name: str) -> AbstractContextManager[int]:
    """Nobody who owns the directory makes it another file, or one that never answers."""
    return disk.opened(os.path.join(directory, name), follow=False)


def _files(directory: str) -> tuple[dict[str, bytes], dict[str, str], dict[str, int]]:
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    modes: dict[str, int] = {}
    # The list that the others are cut by comes first, the count right behind it.
    order = [*(_target(directory, name) for name in (*STAGED, CURRENT)), COUNT]
    first = {name: place for place, name in enumerate(order)}
    room = _MOST_TOGETHER
    for entry in sorted(Path(directory).iterdir(), key=lambda e: (first.get(e.name, 9), e.name)):
        if entry.name in _OWN:  # of an unpacked recording: this one gets its own
            continue
        mode = entry.lstat().st_mode
        modes[entry.name] = mode
        if stat.S_ISLNK(mode):
            links[entry.name] = str(entry.readlink())
        elif stat.S_ISREG(mode):
            content = _content(entry, min(room, MOST))
            if content is not None:
                files[entry.name] = content
                room -= len(content)
    current = order[len(STAGED)]
    if current not in files:
        path = os.path.join(directory, current)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return files, links, modes


def _content(entry: Path, most: int) -> bytes | None:
    """None where a kernel lets nobody read it: what takes requests only, and its policy."""
    is_list = entry.name.startswith(("ascii_", "binary_"))
    try:
        with _open_in(str(entry.parent), entry.name) as descriptor:
            return disk.content(descriptor, most)
    except PermissionError:
        if entry.name == "policy":
            return None
        raise
    except OSError as error:
        if error.errno == errno.EINVAL and not is_list:
            return None
        # Some drafts say so of an empty list: the open was well, the read was not.
        if error.errno == errno.ENOENT and is_list and entry.exists():
            return b""
        raise OSError(error.errno, error.strerror, str(entry)) from None


def ending_of(path: str) -> str:
    """The ending that says how ``path`` is compressed. Raises :class:`UsageError`."""
    ending = next((ending for ending in KINDS if path.endswith(ending)), None)
    if ending is None:
        raise UsageError(f"{path}: the name of a recording ends in {', '.join(KINDS)}")
    return ending


def check_place(path: str) -> None:
    """Whether a recording can be written to ``path``, before one is taken.

    Raises :class:`UsageError` for a wrong ending or a directory that is not there, and
    :class:`FileError` for one in which nothing can be made.
    """
    ending_of(path)
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        raise UsageError(f"{path}: there is no directory {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FileError(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    ownership.check(path)


def write(snapshot: Snapshot, path: str, about: Mapping[str, object]) -> None:
    """Writes the archive; compressed as the suffix says (:data:`KINDS`; UsageError for another).

    It appears under its name only when it is whole, and for its owner alone: a kernel does not
    show names of files to everybody either. Raises :class:`FileError`.
    """
    ending = ending_of(path)
    name, kind = Path(path).name.removesuffix(ending) or "recording", KINDS[ending]
    try:
        # tarfile's modes are literals to the type checker.
        with (
            ownership.parent(path) as (directory, place),
            _new(directory, place) as descriptor,
            open(descriptor, "wb", closefd=False) as file,
            tarfile.open(mode=kind, fileobj=file) as tar,  # type: ignore[call-overload]
        ):
            for entry, content in snapshot.files.items():
                _add(tar, f"{name}/{entry}", content, snapshot.modes[entry])
            for link, where in snapshot.links.items():
                info = tarfile.TarInfo(f"{name}/{link}")
                info.type, info.linkname = tarfile.SYMTYPE, where
                tar.addfile(info)
            _add(tar, f"{name}/pcrs.txt", _pcr_lines(snapshot.pcrs))
            _add(tar, f"{name}/ls-la.txt", _listing(snapshot))
            _add(tar, f"{name}/meta.json", json.dumps(about, indent=2).encode() + b"\n")
    except ownership.ForeignError as error:
        raise ownership.ForeignError(f"{path}: {error}") from None
    except OSError as error:
        raise FileError(path, error) from None


def _new(directory: int, place: bytes) -> AbstractContextManager[int]:
    ownership.check_replaceable(directory, place)
    return disk.replacing(place, 0o600, directory=directory)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = stat.S_IMODE(mode)
    info.mtime = int(time.time())
    tar.addfile(info, io.BytesIO(content))


def _pcr_lines(pcrs: PcrValues) -> bytes:
    lines = [
        f"{bank} {pcr} {value.hex().upper()}\n"
        for bank, values in pcrs.items()
        for pcr, value in sorted(values.items())
    ]
    return "".join(lines).encode()


def _listing(snapshot: Snapshot) -> bytes:
    lines = []
    for name, mode in snapshot.modes.items():
        link = f" -> {snapshot.links[name]}" if name in snapshot.links else ""
        lines.append(f"{stat.filemode(mode)} {name}{link}\n")
    return "".join(lines).encode()


def lists_of(path: str, moment: str | None = None) -> tuple[bytes, bytes]:
    """(staged, current) lists of a recording or an IMA directory; any other file is a current one.

    ``moment`` is the directory of the lists that are meant, where a recording has several.
    Raises :class:`FormatError` for an archive without a list, or with several,
    :class:`NotThereError` for a directory above one and a moment that is none, and OSError.
    """
    with disk.opened(path) as descriptor:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            try:
                return _lists_in(path)
            except OSError as error:
                _look_below(path, error)
                raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        try:
            return _lists_of_file(descriptor, moment)
        except FormatError as error:
            raise error.at(path) from None


def lists_of_bytes(data: bytes, moment: str | None = None) -> tuple[bytes, bytes]:
    """As :func:`lists_of`, of a file's content that came through a pipe."""
    descriptor = os.memfd_create("imafs-list", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.seek(0)
        return _lists_of_file(descriptor, moment)


def _lists_of_file(descriptor: int, moment: str | None) -> tuple[bytes, bytes]:
    if not unpack.is_packed(descriptor):
        return b"", disk.content(descriptor, MOST)
    with unpack.opened(descriptor) as packed:
        return _lists_of(packed, moment)


def _lists_in(directory: str) -> tuple[bytes, bytes]:
    # Open, the current list keeps writers out.
    with disk.opened(os.path.join(directory, CURRENT)) as current:
        for name in STAGED:
            try:
                with disk.opened(os.path.join(directory, name)) as descriptor:
                    return disk.content(descriptor, MOST), disk.content(current, MOST)
            except FileNotFoundError:  # a kernel without staging, or with nothing staged
                continue
        return b"", disk.content(current, MOST)


def _lists_of(packed: unpack.Archive, moment: str | None) -> tuple[bytes, bytes]:
    if packed.entries is None:  # a list, compressed
        return b"", packed.read([0], MOST)[0]
    entries: dict[PurePath, int] = {}
    twice = set()
    for number, entry in enumerate(packed.entries):
        place = PurePath(entry.name)
        if place in entries:
            twice.add(place)
        entries[place] = number
    places = [place for place in entries if place.name == CURRENT]
    if not places:
        raise FormatError(f"there is no {CURRENT} in it")
    # The maker of the archive chose them: 4 MiB perhaps.
    names = shown(", ".join(str(place.parent) for place in places), _MOST_NAMES)
    if moment is not None:
        places = [place for place in places if is_called(place.parent, moment)]
        if not places:
            raise NotThereError(f"there is no moment {moment!r} in it; there are: {names}")
    if len(places) > 1:
        raise FormatError(
            f"{len(places)} moments in it: name one with --moment (imafs mount: --load-moment): "
            f"{names}"
        )
    staged = [places[0].with_name(name) for name in STAGED]
    wanted = [*[place for place in staged if place in entries][:1], places[0]]
    numbers = [_file(packed.entries, entries, twice, place) for place in wanted]
    if sum(packed.entries[number].size for number in numbers) > MOST:
        raise FormatError(f"{places[0]} is larger than {MOST >> 20} MiB")
    lists = packed.read(numbers, MOST)
    return (b"" if len(lists) == 1 else lists[0]), lists[-1]


def is_called(directory: str | PurePath, moment: str) -> bool:
    """Whether ``moment`` names it: whole, or by the end of its path."""
    wanted = PurePath(moment).parts
    return bool(wanted) and PurePath(directory).parts[-len(wanted) :] == wanted


def _file(
    entries: Sequence[Entry],
    numbers: Mapping[PurePath, int],
    twice: Set[PurePath],
    place: PurePath,
) -> int:
    """The file there, or the one which the link points to: once, as in a kernel."""
    entry = entries[numbers[place]]
    target = place
    if entry.kind == "link":
        target = PurePath(os.path.normpath(place.parent / entry.target))
    elif entry.kind == "hardlink":
        target = PurePath(os.path.normpath(entry.target))
    number = numbers.get(target, -1)
    if number < 0 or entries[number].kind != "file":
        raise FormatError(f"{place} is no file, and no link to one in it")
    if not twice.isdisjoint((place, target)):
        raise FormatError(f"{place} is in it twice")
    return number
