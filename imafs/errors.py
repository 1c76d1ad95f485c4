# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The errors of imafs: each class carries an errno and a process exit code.

A user sees ``str(error)`` as one line and never a traceback; a client of the
control socket gets the name of the errno; a FUSE caller gets the errno.
Anything that is not an :class:`ImafsError` is a bug and is logged as one.

Exit codes (documented in the README): 1 unexpected or out of memory, 2 usage, 3 malformed
input, 4 TPM, 5 mount, 6 control socket, 7 refused as a kernel would, 8 a list that
does not lead to its PCRs (``imafs verify``, ``record``) or differs (``diff``), 9 not in
time (``imafs ctl wait``), and of ``imafs keep``: 10 a gap in what it keeps, 11 nothing can be
stored, 12 a store that is broken.
A file that was named and cannot be used is usage (2), a disk that is full unexpected (1).
"""

from __future__ import annotations

import errno as _errno
import os as _os
from collections.abc import Iterable

from imafs.text import shown


def nearest(name: str, known: Iterable[str]) -> str:
    """The text behind a name that is none: `` (did you mean X?)``, or nothing."""
    # Here: most commands never need it.
    from difflib import get_close_matches

    found = get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


#: Characters of a record's name in a message of one line.
_SHOWN = 60


class ImafsError(Exception):
    """Base of every error that imafs raises on purpose."""

    errno: int = _errno.EIO
    exit_code: int = 1

    @property
    def errno_name(self) -> str:
        """Symbolic name, for example ``ENOENT``."""
        return _errno.errorcode.get(self.errno, str(self.errno))

    def __reduce__(self) -> tuple[object, ...]:
        # Its text is made of other arguments than it was raised with: a process of a pool that
        # sends one must not end the pool.
        return _remade, (type(self), self.args, self.__dict__)


def _remade(
    kind: type[ImafsError], args: tuple[object, ...], attributes: dict[str, object]
) -> ImafsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(ImafsError):
    """Options or arguments that cannot work together, or name what is not there."""

    errno = _errno.EINVAL
    exit_code = 2


class NotThereError(UsageError):
    """A thing that was named by number or path is not there (any more)."""

    errno = _errno.ENOENT


class FileError(ImafsError):
    """A file that was named cannot be read or written; the errno is the failing call's.

    Its exit code is that of usage where another name would do, of a refusal where the kernel
    keeps the file for somebody else (EBUSY), and else 1: a full disk, an I/O error.
    """

    def __init__(self, path: str, error: OSError, *, option: str = "") -> None:
        self.errno = error.errno or _errno.EIO
        if self.errno in _NAMED_WRONGLY:
            self.exit_code = UsageError.exit_code
        elif self.errno == _errno.EBUSY:
            self.exit_code = Refused.exit_code
        why = error.strerror or _os.strerror(self.errno)
        super().__init__(f"{option} {path}: {why}".lstrip())


_NAMED_WRONGLY = frozenset(
    {
        *(_errno.ENOENT, _errno.ENOTDIR, _errno.EISDIR, _errno.EACCES, _errno.EPERM),
        *(_errno.ELOOP, _errno.ENAMETOOLONG, _errno.EROFS, _errno.EINVAL, _errno.ENXIO),
    }
)


class FormatError(ImafsError):
    """Malformed input: a list, a template, a digest.

    ``source`` (a file), ``line`` (1-based), ``record`` (0-based), ``offset`` (bytes) and
    ``name`` (the record's) say where, as far as there is a where.
    """

    errno = _errno.EINVAL
    exit_code = 3

    def __init__(
        self,
        reason: str,
        *,
        record: int | None = None,
        offset: int | None = None,
        source: str | None = None,
        line: int | None = None,
        name: bytes | None = None,
    ) -> None:
        self.reason = reason
        self.record = record
        self.offset = offset
        self.source = source
        self.line = line
        self.name = name
        where = [f"line {line}"] if line is not None else []
        where += [f"record {record}"] if record is not None else []
        where += [f"byte {offset}"] if offset is not None else []
        of = f" ({shown(name, _SHOWN)})" if name is not None else ""
        parts = [source, ", ".join(where) + of, reason]
        super().__init__(": ".join(part for part in parts if part))

    def at(self, source: str | None) -> FormatError:
        """The same in ``source``."""
        return FormatError(
            self.reason,
            record=self.record,
            offset=self.offset,
            source=source,
            line=self.line,
            name=self.name,
        )


class TpmError(ImafsError):
    """The TPM (or swtpm) cannot be reached, hangs or answers an error."""

    errno = _errno.EIO
    exit_code = 4


class MountError(ImafsError):
    """The mountpoint, /dev/fuse or fusermount3 stand in the way."""

    errno = _errno.EBUSY
    exit_code = 5


class ControlError(ImafsError):
    """The control socket is not there, not ours, or speaks nonsense."""

    errno = _errno.ECONNREFUSED
    exit_code = 6


class UntrustedError(ControlError):
    """Somebody else listens at a control socket: neither root nor this user."""

    errno = _errno.EPERM


class Refused(ImafsError):
    """The kernel would refuse the request; the errno is the kernel's."""

    exit_code = 7

    def __init__(self, errno: int, reason: str) -> None:
        self.errno = errno
        super().__init__(reason)


class MismatchError(ImafsError):
    """A list that does not lead to its PCRs, or differs from another."""

    errno = _errno.EINVAL
    exit_code = 8


class NotInTimeError(ImafsError):
    """The time that was given for a wait is over."""

    errno = _errno.ETIMEDOUT
    exit_code = 9


class GapError(ImafsError):
    """Records may be missing from what the keeper has: nobody can show that there are none."""

    errno = _errno.EIO
    exit_code = 10


class DegradedError(ImafsError):
    """The keeper cannot store: nothing is deleted, and the kernel keeps its records."""

    errno = _errno.ENOSPC
    exit_code = 11


class StoreBrokenError(ImafsError):
    """A store of the keeper whose chain does not hold: nothing of it is served."""

    errno = _errno.EUCLEAN
    exit_code = 12
