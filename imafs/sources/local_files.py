# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files of this machine as IMA would measure them.

Blocking: call it in a thread. Source of the fields: Linux 7.3
ima_template_lib.c (signature and xattrs from ``security.ima``/``security.evm``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from imafs.errors import Refused
from imafs.formats.algorithms import SHA1, HashAlgorithm
from imafs.formats.fields import Measurement

_CHUNK = 1 << 20
#: First bytes of security.ima that mark a signature (integrity.h: EVM_IMA_XATTR_DIGSIG,
#: IMA_VERITY_DIGSIG).
_SIGNATURES = (b"\x03", b"\x06")
_EVM_PORTABLE = 0x05


def describe(
    descriptor: int,
    name: bytes,
    algorithm: HashAlgorithm,
    *,
    want_sha1: bool = False,
    content: bytes | None = None,
    going_on: Callable[[], object] = lambda: None,
) -> Measurement:
    """Hashes an open file from where its descriptor stands, or ``content`` that was read of it.

    ``going_on`` is called between two chunks; what it raises ends the work.

    Also collects what templates may ask for. Raises :class:`Refused` (EINVAL) for what is no
    regular file, as IMA measures no other, and OSError.
    """
    steps = describing(descriptor, name, algorithm, want_sha1=want_sha1, content=content)
    while True:
        try:
            next(steps)
            going_on()
        except StopIteration as stop:
            made: Measurement = stop.value
            return made


def describing(
    descriptor: int,
    name: bytes,
    algorithm: HashAlgorithm,
    *,
    want_sha1: bool = False,
    content: bytes | None = None,
) -> Generator[None, None, Measurement]:
    """:func:`describe`, a piece at a time: the caller may stop, or let others go first."""
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        raise Refused(errno.EINVAL, f"{os.fsdecode(name)} is not a regular file")
    main = algorithm.constructor()()
    sha1 = SHA1.constructor()() if want_sha1 and algorithm is not SHA1 else None
    chunks = iter(lambda: os.read(descriptor, _CHUNK), b"") if content is None else (content,)
    for chunk in chunks:
        main.update(chunk)
        if sha1 is not None:
            sha1.update(chunk)
        yield
    signature = _xattr(descriptor, "security.ima")
    evm = _xattr(descriptor, "security.evm")
    return Measurement(
        name=name,
        algorithm=algorithm,
        digest=main.digest(),
        sha1=sha1.digest() if sha1 is not None else None,
        signature=signature if signature[:1] in _SIGNATURES else b"",
        evm_signature=evm if evm[:1] == bytes((_EVM_PORTABLE,)) else b"",
        uid=info.st_uid,
        gid=info.st_gid,
        mode=info.st_mode & 0xFFFF,
    )


def _xattr(descriptor: int, name: str) -> bytes:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return b""  # no such attribute: the field stays empty, as in the kernel
        raise


def walk(paths: list[str], going_on: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Regular files of ``paths``; directories are walked, sorted, links not followed.

    ``going_on`` is called for each directory and file; what it raises ends the walk.

    Raises :class:`Refused` (ENOENT ...) for a path that is not there.
    """
    for text in paths:
        path = Path(text)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            code = error.errno or errno.EIO
            raise Refused(code, f"{text}: {os.strerror(code)}") from None
        if not stat.S_ISDIR(mode):
            yield text
            continue
        for folder, subfolders, files in os.walk(text):
            subfolders.sort()
            going_on()
            for file in sorted(files):
                going_on()
                full = Path(folder) / file
                if full.is_file() and not full.is_symlink():
                    yield str(full)
