# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper's directory: one keeper at a time, and the lives that it has seen.

``store.json`` says which format it is, ``lock`` is held while a keeper runs, ``lives/`` has a
directory per life: ``000042-`` and the boot_id of its first kernel. A life's directory and its
``life.json`` are durable before the kernel is asked to stage anything of it. A store may come
from another machine: nothing in it is trusted. Blocking: called in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from imafs.errors import DegradedError, FileError, FormatError, Refused, StoreBrokenError
from imafs.formats.algorithms import by_name
from imafs.host import ownership
from imafs.keeper import archive as archives
from imafs.keeper import files as files_
from imafs.keeper.archive import Archive
from imafs.keeper.book import JOURNAL
from imafs.keeper.facts import Clock, LifeFacts, Mode
from imafs.keeper.files import BadPlaceError, CutError, Disk, Files, failed
from imafs.keeper.reading import FORMAT, STORE, Reading, check_format, json_object

log = logging.getLogger(__name__)

_LIVES = "lives"
_LIFE = "life.json"
_NAME = re.compile(r"(?P<number>[0-9]{6,12})-[0-9a-zA-Z-]{1,64}")
_BANK = re.compile(r"[a-z0-9_-]{1,32}")
_ALGORITHM = re.compile(r"tpm_alg_[0-9a-f]{1,4}")
_ORDERS = ("little", "big")


class CutFileError(StoreBrokenError):
    """A file of the store ends at the byte ``good``."""

    def __init__(self, text: str, good: int) -> None:
        super().__init__(text)
        self.good = good


class BadSectorError(DegradedError):
    """The disk does not give the byte ``good`` of a file; those before it it does."""

    errno = errno.EIO

    def __init__(self, text: str, good: int) -> None:
        super().__init__(text)
        self.good = good


@dataclass(frozen=True, slots=True)
class BankFile:
    """A bank that has list files: its name in them, and the width of its digests."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Life:
    """A life and its archive, which is open. ``banks``: in the order of the kernel's files."""

    facts: LifeFacts
    banks: tuple[BankFile, ...]
    archive: Archive


class Store:
    """A store that is locked for us; see :func:`open_store`."""

    def __init__(self, files: Files, path: str, lock: int | None = None) -> None:
        self._files = files
        self.path = path
        self._lock = lock
        self._damaged: dict[str, str] = {}  # by path: what a check has found
        self._lost: set[str] = set()  # those of them that a start has found

    def prepare(self) -> None:
        """Makes what is not there yet. Raises :class:`DegradedError`, :class:`StoreBrokenError`."""
        try:
            names = self._files.names("")
            if _LIVES not in names:
                self._files.make_directory(_LIVES)
                self._files.sync_directory("")
            if STORE not in names:
                text = json.dumps({"format": FORMAT}).encode() + b"\n"
                files_.replace(self._files, "", STORE, text)
        except OSError as error:
            raise failed(self.path, error) from None
        check_format(self._files, self.path)

    def close(self) -> None:
        """Another keeper may use it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def room(self, size: int, keep_free: float) -> str | None:
        """Why ``size`` bytes more and a segment are not to be stored; None: they are."""
        try:
            free, whole = self._files.free("")
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        wanted = size + archives.SEGMENT_SIZE + int(whole * keep_free)
        if free >= wanted:
            return None
        return (
            f"{self.path}: {free >> 20} MiB are free, {wanted >> 20} are needed: [store] keep_free,"
            f" and a segment of {archives.SEGMENT_SIZE >> 20} MiB"
        )

    def read_at(self, path: str, at: int, size: int) -> bytes:
        """Bytes of a file of the store. Raises :class:`StoreBrokenError` where it has them no more,
        :class:`DegradedError` where the disk does not give them."""
        said = f"{self.path}/{path}"
        if (why := self._damaged.get(path)) is not None:
            raise StoreBrokenError(why)
        try:
            return self._files.read_at(path, at, size)
        except CutError as error:
            raise CutFileError(f"{said}: {error.strerror}", error.left) from None
        except BadPlaceError as error:
            raise BadSectorError(f"{said}: {error.strerror}", error.at) from None
        except FileNotFoundError as error:
            raise StoreBrokenError(f"{said}: {error.strerror}") from None
        except OSError as error:
            raise failed(said, error) from None

    def check(self, path: str, size: int, sha256: bytes) -> None:
        """Reads the first bytes of a file again. Where they are others nobody reads any of them,
        until they are right again; what a start has found to be lost until the next start, which
        reads where its records are. Raises as :meth:`read_at`."""
        said = f"{self.path}/{path}"
        found, left = hashlib.sha256(), size
        try:
            for piece in self._files.pieces(path):
                found.update(piece[:left])
                left = max(0, left - len(piece))
        except BadPlaceError as error:
            raise BadSectorError(f"{said}: {error.strerror}", error.at) from None
        except FileNotFoundError as error:
            raise StoreBrokenError(f"{said}: {error.strerror}") from None
        except OSError as error:
            raise failed(said, error) from None
        if left:
            raise StoreBrokenError(f"{said}: somebody cut it: {size} bytes were there")
        if found.digest() == sha256 and path in self._lost:
            raise StoreBrokenError(f"{said}: is there again: the next start reads it")
        if found.digest() == sha256:
            self._damaged.pop(path, None)
            return
        self._damaged[path] = f"{said}: the bytes are not those that were stored"
        raise StoreBrokenError(self._damaged[path])

    def lives(self) -> list[str]:
        """Directories of the lives, oldest first. Raises :class:`DegradedError`."""
        try:
            names = [name for name in self._files.names(_LIVES) if _NAME.fullmatch(name)]
        except OSError as error:
            raise failed(f"{self.path}/{_LIVES}", error) from None
        return sorted(names, key=_number)

    def has_deleted(self) -> bool:
        """Whether a kernel has deleted records that are stored: its list is short since then, and
        so is what a kexec carries of it. Raises :class:`ImafsError`."""
        names = self.lives()
        if any(map(self._has_deleted, names[-1:])):
            return True
        try:
            return any(map(self._has_deleted, reversed(names[:-1])))
        except StoreBrokenError as error:
            # A damaged journal of an older life keeps no keeper from its newest one.
            log.warning("%s", error)
            return True

    def _has_deleted(self, name: str) -> bool:
        return self._is_whole(name) and Reading(self.path, name).ledger.done >= 0

    def newest(self) -> Life | None:
        """The newest life, recovered; None: there is none yet."""
        for name in reversed(self.lives()):
            if self._is_whole(name):
                life = self.open(name)
                if not _is_half_forked(life):
                    return life
                life.archive.close()
        return None

    def _is_whole(self, name: str) -> bool:
        """False for a directory of a crash while the life was begun: nothing counts it."""
        try:
            inside = self._files.names(f"{_LIVES}/{name}")
        except OSError as error:
            raise failed(f"{self.path}/{_LIVES}/{name}", error) from None
        if _LIFE in inside and JOURNAL in inside:
            return True
        if any(file.endswith(".bin") for file in inside):
            raise StoreBrokenError(f"{self.path}/{_LIVES}/{name}: records without a journal")
        return False

    def open(self, name: str) -> Life:
        """One life, recovered. Raises :class:`StoreBrokenError` and :class:`DegradedError`."""
        facts, banks = told_of(self._files, self.path, name)
        archive = archives.recover(self._files, f"{_LIVES}/{name}")
        for path, why in archive.lost.items():
            self._damaged[path] = f"{self.path}/{why}"
        self._lost.update(archive.lost)
        return Life(facts, banks, archive)

    def begin(self, facts: LifeFacts, banks: Sequence[BankFile]) -> Life:
        """A new life, durable behind this; the facts' number is given here."""
        lives = self.lives()
        number = _number(lives[-1]) + 1 if lives else 1
        boot = re.sub(r"[^0-9a-zA-Z-]", "", facts.boot)[:64] or "unknown"
        directory = f"{_LIVES}/{number:06d}-{boot}"
        body = _life_body(facts, banks)
        try:
            self._files.make_directory(directory)
            files_.replace(self._files, directory, _LIFE, json.dumps(body).encode() + b"\n")
            archive = archives.begin(self._files, directory)
            self._files.sync_directory(_LIVES)
        except OSError as error:
            raise failed(f"{self.path}/{directory}", error) from None
        checked, files = _life(body, number, f"{self.path}/{directory}/{_LIFE}")
        return Life(checked, files, archive)


def told_of(files: Files, store: str, life: str) -> tuple[LifeFacts, tuple[BankFile, ...]]:
    """What ``life.json`` of a life says. Raises :class:`StoreBrokenError` and
    :class:`DegradedError`."""
    path = f"{_LIVES}/{life}/{_LIFE}"
    return _life(json_object(files, store, path), _number(life), f"{store}/{path}")


def open_store(path: str) -> Store:
    """The store in a directory, made if need be, and locked.

    Raises :class:`FileError`, :class:`UsageError` (other users could change what is in it),
    :class:`Refused` (EBUSY: another keeper has it), :class:`DegradedError`,
    :class:`StoreBrokenError`.
    """
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    _check_place(path, there)
    try:
        os.makedirs(path, 0o750, exist_ok=True)
        _make_durable(os.path.realpath(path))
        lock = os.open(
            os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
        )
    except OSError as error:
        raise FileError(path, error, option="--store") from None
    try:
        _check_ours(path, lock)
    except BaseException:
        os.close(lock)
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Refused(errno.EBUSY, f"{path}: another keeper uses this store") from None
    store = Store(Disk(path), path, lock)
    try:
        store.prepare()
    except BaseException:
        store.close()
        raise
    return store


def _make_durable(path: str) -> None:
    """The names of the directories that lead to a store, as far as its file system goes: who has
    made them (tmpfiles, mkdir) has synced nothing. Raises OSError."""
    device = os.stat(path).st_dev
    while (above := os.path.dirname(path)) != path and os.stat(above).st_dev == device:
        try:
            descriptor = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:  # in it we have made nothing
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path = above


def _is_half_forked(life: Life) -> bool:
    """Whether a crash came while a life was made of another one, which has all its records."""
    if life.facts.forked is None:
        return False
    index, ledger = life.facts.forked[1], life.archive.ledger
    return ledger.end < index or (ledger.end == index and not ledger.confirmed)


def _check_place(path: str, there: str) -> None:
    """Whether nobody else can change what lies in the directory ``there``, on the way to a store.

    Raises :class:`UsageError`, :class:`FileError`.
    """
    try:
        with ownership.parent(os.path.join(there, "lock")):
            pass
    except ownership.ForeignError as error:
        raise ownership.ForeignError(f"--store {path}: {error}") from None
    except OSError as error:
        raise FileError(path, error, option="--store") from None


def _check_ours(path: str, lock: int) -> None:
    """Whether nobody else made, or can change, what is in a store: root would follow their links,
    and show their records. Raises :class:`UsageError`, :class:`FileError`."""
    _check_place(path, path)
    trusted = ownership.trusted()
    for name in ("lock", STORE, _LIVES):
        place = os.path.join(path, name)
        try:
            found = os.fstat(lock) if name == "lock" else os.lstat(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FileError(place, error, option="--store") from None
        if stat.S_ISLNK(found.st_mode) or found.st_uid not in trusted:
            who = "is a link" if stat.S_ISLNK(found.st_mode) else f"belongs to uid {found.st_uid}"
            raise ownership.ForeignError(f"--store {place}: {who}; {ownership.ADVICE}")


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _life_body(facts: LifeFacts, banks: Sequence[BankFile]) -> dict[str, Any]:
    return {
        "boot": facts.boot,
        "banks": [[bank.name, bank.size] for bank in banks],
        "modes": {bank: mode.value for bank, mode in facts.modes.items()},
        "byteorder": facts.byteorder,
        "clock": None if facts.clock is None else list(astuple(facts.clock)),
        "whole": facts.whole,
        "deciding": list(facts.deciding),
        "forked": None if facts.forked is None else list(facts.forked),
    }


def _life(body: dict[str, Any], number: int, path: str) -> tuple[LifeFacts, tuple[BankFile, ...]]:
    """What life.json says. Raises :class:`StoreBrokenError`."""
    try:
        clock, forked = body["clock"], body["forked"]
        facts = LifeFacts(
            number,
            _text(body["boot"]),
            {_bank(bank): Mode(mode) for bank, mode in body["modes"].items()},
            _among(body["byteorder"], _ORDERS),
            None if clock is None else _clock(clock),
            whole=_flag(body["whole"]),
            deciding=tuple(map(_whole, body["deciding"])),
            forked=None if forked is None else (_whole(forked[0]), _whole(forked[1])),
        )
        banks = tuple(_bank_file(name, size) for name, size in body["banks"])
        if len({bank.name for bank in banks}) != len(banks):
            raise ValueError("a bank is there twice")
    except (FormatError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise StoreBrokenError(f"{path}: is not what a keeper writes: {error}") from None
    if not banks:
        raise StoreBrokenError(f"{path}: names no bank")
    return facts, banks


def _bank_file(name: object, size: object) -> BankFile:
    """A bank whose lists can be rendered: one by its TPM_ALG_ID, or one of a hash we know."""
    found = BankFile(_bank(name), _width(size))
    if not _ALGORITHM.fullmatch(found.name) and by_name(found.name).digest_size != found.size:
        raise ValueError(f"bank {found.name} of {found.size} bytes")
    return found


def _clock(value: Sequence[object]) -> Clock:
    time, clock, reset, restart = map(_whole, value[:4])
    return Clock(time, clock, reset, restart, bool(value[4]))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise ValueError("a text is not to be understood")
    return value


def _bank(value: object) -> str:
    if not isinstance(value, str) or not _BANK.fullmatch(value):
        raise ValueError(f"{value!r} is no bank")
    return value


def _among(value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no number")
    return value


def _width(value: object) -> int:
    if not 20 <= _whole(value) <= 64:
        raise ValueError(f"{value!r} is no width of a digest")
    return _whole(value)
