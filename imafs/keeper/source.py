# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kernel's IMA directory, as the keeper uses it.

One descriptor for writing, on a ``_staged`` file (or on the list itself, where there is none):
while it is open nobody else can open a list, so nobody else can delete records. To see the
current list beside it the same thread opens that for writing as well, and closes it at once:
the kernel counts writers per thread, and gets it wrong for good where another one closes.
So all calls come from one thread, and nobody forks meanwhile. Blocking.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from imafs.errors import FileError, FormatError, NotThereError, Refused, TpmError, UsageError
from imafs.formats.algorithms import by_name
from imafs.host import mounts
from imafs.keeper.facts import Clock, Mode, Modes, PcrValues
from imafs.keeper.records import mode_of, whole
from imafs.keeper.store import BankFile

_LIST = re.compile(r"binary_runtime_measurements_(?P<bank>(?!.*(?:staged|snap))[a-z0-9_-]+)")
_LINK = "binary_runtime_measurements"
_BINARY = "binary_runtime_measurements_sha1"
_STAGED = f"{_BINARY}_staged"
_COUNT = "runtime_measurements_count"
_VIOLATIONS = "violations"
_PIECE = 1 << 20
_SMALL = 4096
#: Bytes of a policy, and files of an IMA directory, at most: one that is served by a program may
#: go on for ever.
_POLICY = 1 << 20
_FILES = 4096
_NUMBER = re.compile(rb"[0-9]{1,19}\s*")
#: FUSE_SUPER_MAGIC as a policy has it.
_FUSE_MAGIC = "0x65735546"
#: Bytes of a list at most: more would be read for minutes, and fill the memory.
MOST = 256 << 20
#: What a kernel is told that has nothing of this.
NEEDED = "Linux 7.2 or newer is needed to delete records"
#: Opens that say EBUSY before it is believed.
_TRIES = 3
#: One read of a kernel's list.
_PAGE = 4095
_ALGORITHM = re.compile(r"tpm_alg_(?P<number>[0-9a-f]+)")
#: SHA-3 by TPM_ALG_ID: kernels have no name for these banks (drivers/char/tpm).
_SIZES = {0x27: 32, 0x28: 48, 0x29: 64}
T = TypeVar("T")


class Pcrs(Protocol):
    """Where PCR values come from. Blocking."""

    def read(self, banks: Iterable[str], pcrs: Iterable[int]) -> PcrValues | None:
        """The values in those of the banks that there are; None without a TPM.

        Raises :class:`TpmError`.
        """

    def clock(self) -> Clock | None:
        """Of the TPM; None where nobody tells it."""


class TooLongError(Refused):
    """A list that would fill the memory. Nothing of it is deleted."""

    def __init__(self) -> None:
        text = (
            f"a list has more than {MOST >> 20} MiB, which the keeper does not read at once: the "
            "kernel keeps it, and the view is refused until a reboot"
        )
        super().__init__(errno.EFBIG, text)


class NoPcrs:
    """No TPM, or one that is not to be asked."""

    def read(self, banks: Iterable[str], pcrs: Iterable[int]) -> PcrValues | None:
        """None."""
        return None

    def clock(self) -> Clock | None:
        """None."""
        return None


class SysfsPcrs:
    """A directory like /sys/class/tpm/tpm0: ``pcr-<bank>/<number>``."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, banks: Iterable[str], pcrs: Iterable[int]) -> PcrValues | None:
        """See :class:`Pcrs`."""
        found: dict[str, dict[int, bytes]] = {}
        for bank in banks:
            place = f"{self._path}/pcr-{bank}"
            if os.path.isdir(place):
                found[bank] = {pcr: self._one(f"{place}/{pcr}", bank) for pcr in pcrs if pcr < 24}
        if not found:
            raise TpmError(f"{self._path}: shows no PCR of the list's banks")
        return found

    def _one(self, path: str, bank: str) -> bytes:
        try:
            value = bytes.fromhex(_small(path).decode("ascii", "replace"))
        except OSError as error:
            raise TpmError(f"{path}: {error.strerror}") from None
        except ValueError:
            raise TpmError(f"{path}: is no PCR value") from None
        if len(value) != by_name(bank).digest_size:
            raise TpmError(f"{path}: is no PCR value")
        return value

    def clock(self) -> Clock | None:
        """Sysfs does not tell it."""
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kernel is: its IMA directory, its boot_id, its command line (or None).

    ``reach``: a path that leads to the directory where ``directory`` leads to a view over it.
    """

    directory: str
    boot_id: str = "/proc/sys/kernel/random/boot_id"
    cmdline: str | None = "/proc/cmdline"
    reach: str | None = None

    def reached(self, name: str = "") -> str:
        """The path by which a file of the directory is opened."""
        return os.path.join(self.reach or self.directory, name)


@dataclass(slots=True)
class Look:
    """What the directory offers. ``staging``: A and D on ``_staged`` files, beside which the
    lists can be opened; else N on the list itself, or where that takes no writes nothing that
    ``deletes``."""

    banks: tuple[BankFile, ...]
    staging: bool
    deletes: bool = True
    modes: dict[str, Mode] = field(default_factory=dict)


class Source:
    """One IMA directory. All calls from one thread."""

    def __init__(self, place: Place, pcrs: Pcrs) -> None:
        self._place = place
        self._pcrs = pcrs
        self._descriptor: int | None = None
        self._staging = self._writable = True
        self._banks: tuple[BankFile, ...] = ()
        #: Of a draft, read before its list was locked: it opens one file at a time.
        self._draft_modes: dict[str, Mode] | None = None

    @property
    def directory(self) -> str:
        """The IMA directory."""
        return self._place.directory

    # Without the lock

    def boot_id(self) -> str:
        """Of the kernel that runs. Raises :class:`FileError`."""
        path = self._place.boot_id
        try:
            found = _small(path).decode("ascii", "replace").strip()
        except OSError as error:
            raise FileError(path, error) from None
        if not found.isprintable() or not 0 < len(found) <= 64:
            raise NotThereError(f"{path}: is no boot_id")
        return found

    def flushes(self) -> bool | None:
        """Whether the kernel was booted with ima_flush_htable; None: not known."""
        if self._place.cmdline is None:
            return None
        try:
            return b"ima_flush_htable" in _small(self._place.cmdline).split()
        except OSError:
            return None

    def view_measured(self) -> str:
        """Whether IMA measures the view when root reads it: yes, no, or unknown to us."""
        try:
            return measures_view(_whole(self._place.reached("policy")).decode("utf-8", "replace"))
        except OSError:
            return "unknown"

    def look(self) -> Look:
        """Which files there are. Raises :class:`FileError`, :class:`UsageError`."""
        directory = self._place.directory
        try:
            with os.scandir(self._place.reached()) as entries:
                names = [entry.name for entry in islice(entries, _FILES + 1)]
        except OSError as error:
            raise FileError(directory, error, option="--source") from None
        if len(names) > _FILES:
            raise NotThereError(
                f"--source {directory}: is no IMA directory: it has more than {_FILES} files"
            )
        if _LINK in names and _BINARY not in names:
            raise NotThereError(f"--source {directory}: is of a kernel before 6.10; {NEEDED}")
        if _BINARY not in names or _COUNT not in names:
            raise NotThereError(f"--source {directory}: is no IMA directory")
        # readdir shows a kernel's files in the reverse order of their creation.
        found = [match["bank"] for name in reversed(names) if (match := _LIST.fullmatch(name))]
        banks = tuple(BankFile(bank, _width(bank)) for bank in found)
        self._staging = _STAGED in names
        self._banks, self._draft_modes = banks, None
        self._writable = self._is_writable()
        return Look(banks, self._staging, self._staging or self._writable)

    def _is_writable(self) -> bool:
        """Whether the list takes N by its mode: root may open any file for writing."""
        try:
            return bool(os.stat(self._place.reached(_BINARY)).st_mode & 0o222)
        except OSError as error:
            raise FileError(f"{self._place.directory}/{_BINARY}", error) from None

    def count(self) -> int:
        """runtime_measurements_count: of the current list, without any lock."""
        return self._number(_COUNT)

    def violations(self) -> int:
        """Of this boot; carried ones are not among them."""
        return self._number(_VIOLATIONS)

    def _number(self, name: str) -> int:
        path = f"{self._place.directory}/{name}"
        try:
            text = _small(self._place.reached(name))
        except OSError as error:
            raise FileError(path, error) from None
        if not _NUMBER.fullmatch(text):
            raise Refused(errno.EIO, f"{path}: is no number")
        return int(text)

    def pcrs(self, banks: Iterable[str], numbers: Iterable[int]) -> PcrValues | None:
        """See :class:`Pcrs`."""
        return self._pcrs.read(banks, numbers)

    def clock(self) -> Clock | None:
        """See :class:`Pcrs`."""
        return self._pcrs.clock()

    # The lock

    @property
    def held(self) -> bool:
        """Whether nobody else can open a list."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Opens the one descriptor; False: somebody else has a list open (EBUSY).

        Raises :class:`FileError`.
        """
        if self._descriptor is not None:
            return True
        name = _STAGED if self._staging else _BINARY
        path = f"{self._place.directory}/{name}"
        try:
            self._descriptor = os.open(self._place.reached(name), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise FileError(path, error) from None
        if self._staging and not self._opens_beside():
            return self._acquire_draft()
        return True

    @property
    def staging(self) -> bool:
        """Whether the lock is one beside which the lists can be opened; known once it is held."""
        return self._staging

    def _opens_beside(self) -> bool:
        """False where the same thread may not open the list too, though nobody else has it."""
        for _ in range(_TRIES):
            try:
                self._beside(_BINARY, lambda descriptor: None)
            except Refused as error:
                if error.errno != errno.EBUSY:
                    raise
            else:
                return True
        return False

    def _acquire_draft(self) -> bool:
        """The staging series before v6: one file at a time. v5 takes N on the list itself."""
        directory = self._place.directory
        staged = self.staged()
        self.release()
        if not self._writable:
            raise UsageError(f"--source {directory}: is of a draft of staging; {NEEDED}")
        if staged:
            raise Refused(
                errno.EEXIST,
                f"{directory}: records are staged, which this draft (v5) shows to nobody who "
                f"holds the list: delete them, or store them by hand, first",
            )
        try:
            self._draft_modes = self.modes(self._banks)
        except Refused as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        self._staging = False
        return self.acquire()

    def release(self) -> None:
        """Others may open lists again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _close(descriptor)

    def stage(self) -> int:
        """A: 0, or the kernel's errno. A barrier in every case: what is in the list is extended, or
        its extend has failed. EACCES: measuring has ended."""
        return self._write(self._own(), b"A\n")

    def delete(self) -> int:
        """D: 0, or the kernel's errno."""
        return self._write(self._own(), b"D\n")

    def delete_first(self, number: int) -> int:
        """N: 0, or the kernel's errno."""

        def write(descriptor: int) -> int:
            os.lseek(descriptor, 0, os.SEEK_SET)  # v5 looks at it
            return self._write(descriptor, b"%d\n" % number)

        return self._on_list(write)

    def staged(self) -> bytes:
        """The staged list: whole records. Raises :class:`Refused`."""
        if not self._staging:
            return b""
        return self._read(self._own(), None)

    def current(self, most: int | None = None, begin: int = 0) -> bytes:
        """The current list behind its first ``begin`` bytes: whole records. ``most``: the first of
        them, of about so many bytes, and one at least where there are any. Raises
        :class:`Refused`."""
        return self._on_list(lambda descriptor: self._read(descriptor, most, begin))

    def modes(self, banks: Iterable[BankFile], known: Modes | None = None) -> dict[str, Mode]:
        """The mode of every bank whose lists tell it; of others the one that is ``known`` of this
        kernel, or the usual one."""
        if not self._staging and self._draft_modes is not None:
            return dict(self._draft_modes)
        found = {}
        for bank in banks:
            if _ALGORITHM.fullmatch(bank.name):
                continue
            told = None
            if bank.name != "sha1":
                for end in ("_staged", "") if self._staging else ("",):
                    heads = self._head("sha1", end), self._head(bank.name, end)
                    told = told or mode_of(bank.name, *heads)
            found[bank.name] = (told or known or {}).get(bank.name, Mode.REAL)
        return found

    def _head(self, bank: str, end: str) -> bytes:
        name = f"binary_runtime_measurements_{bank}{end}"
        try:
            return self._beside(name, lambda descriptor: os.read(descriptor, 16 * _PAGE))
        except OSError as error:
            raise Refused(error.errno or errno.EIO, f"{name}: {error.strerror}") from None

    def _own(self) -> int:
        if self._descriptor is None:
            raise Refused(errno.EBADF, "the lists are not ours")
        return self._descriptor

    def _write(self, descriptor: int, request: bytes) -> int:
        try:
            os.write(descriptor, request)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _on_list(self, work: Callable[[int], T]) -> T:
        return self._beside(_BINARY, work) if self._staging else work(self._own())

    def _beside(self, name: str, work: Callable[[int], T]) -> T:
        """``work`` on another file, open for as long as that takes."""
        path = f"{self._place.directory}/{name}"
        try:
            descriptor = os.open(self._place.reached(name), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
        try:
            return work(descriptor)
        finally:
            _close(descriptor)

    def _read(self, descriptor: int, most: int | None, begin: int = 0) -> bytes:
        """As :meth:`current`. What is cut is never taken for all: nor, where the first record is
        longer than ``most``, for nothing. What was read before counts for what is too long."""
        data, room = bytearray(), MOST - begin
        limit = room if most is None else min(most, room)
        try:
            os.lseek(descriptor, begin, os.SEEK_SET)
            while True:
                while len(data) < limit and (piece := os.read(descriptor, _PIECE)):
                    data += piece
                if len(data) < limit:
                    return bytes(data)  # a list that ends within a record is no list: none is cut
                if most is not None and (found := whole(bytes(data))):
                    return found
                if limit >= room:
                    raise TooLongError
                limit = min(2 * limit, room)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, f"reading a list: {error.strerror}") from None


def _width(bank: str) -> int:
    """Of the digests in a bank's list. Raises :class:`UsageError` where it is not known."""
    other = _ALGORITHM.fullmatch(bank)
    try:
        if other is None:
            return by_name(bank).digest_size
        return _SIZES[int(other["number"], 16)]
    except (FormatError, KeyError):
        raise UsageError(f"a list of bank {bank!r}: this imafs does not know it") from None


def _close(descriptor: int) -> None:
    """Linux lets go of it whatever close(2) says: ENOTCONN where nobody serves it any more."""
    with suppress(OSError):
        os.close(descriptor)


def measures_view(policy: str) -> str:
    """``yes`` or ``no``: the first rule on files that matches a FUSE file of ours decides.

    ``unknown`` for an empty policy: not every kernel shows it.
    """
    rules = [line.split() for line in policy.splitlines() if line.strip()]
    for action, *words in rules:
        given = dict(word.partition("=")[::2] for word in words)
        if action not in ("measure", "dont_measure") or not _matches_view(given):
            continue
        # A rule for some readers alone does not free the others.
        if action == "measure":
            return "yes"
        if not given.keys() - {"func", "fsname", "fs_subtype", "fsmagic"}:
            return "no"
    return "no" if rules else "unknown"


def _matches_view(given: dict[str, str]) -> bool:
    return (
        given.get("func", "FILE_CHECK") in ("FILE_CHECK", "PATH_CHECK")
        and given.get("fsname", "fuse") == "fuse"
        and given.get("fs_subtype", mounts.SUBTYPE) == mounts.SUBTYPE
        and given.get("fsmagic", _FUSE_MAGIC).lower() == _FUSE_MAGIC
        and "fsuuid" not in given
    )


def _whole(path: str) -> bytes:
    """A file of the kernel's that has no size. Raises OSError; also EFBIG: it is no policy."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = b""
        while piece := os.read(descriptor, _SMALL):
            data += piece
            if len(data) > _POLICY:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return data
    finally:
        os.close(descriptor)


def _small(path: str) -> bytes:
    """A text of one page at most."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, _SMALL)
    finally:
        os.close(descriptor)
