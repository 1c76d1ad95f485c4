# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A look at every FUSE request before libfuse takes it.

Files of securityfs answer ``read`` and nothing else: ``stat`` shows no size, ``splice`` and
``lseek(SEEK_END)`` of a list are refused. A FUSE file can do the same, if its server knows two
things that pyfuse3 does not hand on:

* A READ for ``read(2)`` carries FUSE_READ_LOCKOWNER. A READ that fills the page cache, for
  splice, sendfile or a mapping, does not. Short answers are right for the first and lose data
  with success for the second, so the second is refused. No file is an exception: a PCR of
  sysfs, whose content is shorter than its size, came with NULs to the end of the page
  wherever somebody asked for the size meanwhile, and once more after it had changed (6.18).
* A GETATTR for ``lseek`` carries the handle (FUSE_GETATTR_FH), one for ``fstat`` does not.

And the size that ``stat`` shows need not be the size that the kernel keeps. splice looks at the
kept one and answers "end of file" at 0 without asking, so it must be large. lookup, readdir and
setattr tell a large one; before a GETATTR is answered with 0 its inode's attributes are declared
outdated. Linux then hands the answer to the caller of ``stat`` and keeps nothing of it: it began
before the newest word on the inode (``attr_version``).

The seam
    pyfuse3 waits with ``trio.lowlevel.wait_readable(descriptor)``, lets libfuse read the
    descriptor, and starts the handler; between the three no other task runs. pyfuse3 has a seam
    for another event loop, its module attribute ``trio``, and the relay is put there. Its
    wait reads the request itself. What it cannot answer it puts into a memfd, whose end is the
    end of the request, and moves the memfd over libfuse's descriptor by dup2; the first look of
    pyfuse3 at a handler moves the real one back. So libfuse reads the request from a file, and
    replies and notifications go to the kernel. What libfuse answers without a handler (an
    ioctl, an operation newer than it) is found behind the request and handed on.

What is answered here
    Reads of the page cache, and reads that need no waiting, in half the time. INTERRUPT is
    dropped: a server may, and handlers here end by themselves. In the reply to INIT readahead
    is 0, and O_TRUNC does not travel inside OPEN: there Linux would set the kept size to 0.

The relay knows nothing of IMA. :class:`Answers` is all that it asks. What pyfuse3 would need to
make it needless is in docs/pyfuse3.md.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import types
from typing import NamedTuple, Protocol, cast

import pyfuse3
import trio

from imafs.host.ratelimit import Ratelimit

_seldom = Ratelimit(logging.getLogger(__name__))

#: fuse_in_header (40 bytes: length, opcode, unique, inode, uid, gid, pid, extensions), then the
#: beginning of fuse_read_in: handle, offset, size, read_flags. GETATTR's own follows the header.
_IN = struct.Struct("=IIQQIIIIQQII")
_GETATTR_IN = struct.Struct("=IIQ")
_GETATTR_AT = 40
#: fuse_out_header: length, negative errno or a notification's code, unique.
_OUT = struct.Struct("=IiQ")
#: fuse_init_out behind its header, up to max_write.
_INIT_OUT = struct.Struct("=IIIIHHI")
#: fuse_notify_inval_inode_out: a negative offset is for attributes alone.
_INVALIDATE = struct.Struct("=Qqq")
_NOTIFY_INVAL_INODE = 2

_GETATTR, _READ, _INIT, _INTERRUPT = 3, 15, 26, 36
_READ_LOCKOWNER = 1 << 1
_GETATTR_FH = 1 << 0
_ATOMIC_O_TRUNC = 1 << 3

#: Linux reads requests into nothing smaller, and wants this much beside max_write.
_HEADROOM = 8192
#: Before INIT says more; libfuse's usual max_write.
_MAX_WRITE = 1 << 20
#: Where every request in the memfd ends, whatever its length. The file is sparse.
_END = 1 << 30


class Request(NamedTuple):
    """Who asks, and what pyfuse3 leaves out. ``pid`` is a thread id, 0 outside our namespace.

    ``by_handle``: a GETATTR on behalf of lseek.
    """

    opcode: int = 0
    pid: int = 0
    uid: int = 0
    by_handle: bool = False


class Answers(Protocol):
    """The file system behind a relay. No method waits, or raises."""

    def read_now(self, fh: int, offset: int, size: int) -> bytes | memoryview | int | None:
        """What a ``read(2)`` gives, or an errno; None where the handler must say it.

        The content is sent before anything else happens.
        """

    def tells_size(self, fh: int) -> bool:
        """Whether lseek may ask for the size; EINVAL where not."""

    def hides_size(self, inode: int) -> bool:
        """Whether the kernel must not keep the size that ``stat`` shows."""


class Relay:
    """The look at the requests of one mount; made before ``pyfuse3.init``."""

    def __init__(self) -> None:
        #: The request whose handler starts. A handler copies it before it first waits.
        self.request = Request()
        self._answers: Answers | None = None
        self._session = -1
        self._staged = False
        self._closing = False
        self._memfd = os.memfd_create("imafs-request")
        try:
            os.ftruncate(self._memfd, _END)
            # Kept for /dev/fuse: a descriptor may not be had later.
            self._real = os.dup(self._memfd)
        except OSError:
            os.close(self._memfd)
            raise
        self._buffer = memoryview(bytearray(_MAX_WRITE + _HEADROOM))

    def install(self, answers: Answers, operations: pyfuse3.Operations) -> pyfuse3.Operations:
        """Takes the place of pyfuse3's waiting; returns what pyfuse3 must be given."""
        self._answers = answers
        low = _Instead(trio.lowlevel, wait_readable=self._wait, notify_closing=self._notify_closing)
        pyfuse3.trio = _Instead(trio, lowlevel=low)  # type: ignore[attr-defined]
        return cast(pyfuse3.Operations, _Watched(self, operations))

    def close(self) -> None:
        """Gives libfuse its descriptor back for the end of the session."""
        pyfuse3.trio = trio  # type: ignore[attr-defined]
        self.restore()
        os.close(self._real)
        os.close(self._memfd)

    @property
    def staged(self) -> bool:
        """Whether a request lies before libfuse and no handler has begun."""
        return self._staged

    def restore(self) -> None:
        """Puts the real descriptor back, and hands on what libfuse answered meanwhile."""
        if not self._staged:
            return
        os.dup2(self._real, self._session, inheritable=False)
        self._staged = False
        if (end := os.lseek(self._memfd, 0, os.SEEK_CUR)) > _END:
            replies = bytearray(os.pread(self._memfd, end - _END, _END))
            os.ftruncate(self._memfd, _END)
            self._hand_on(replies)

    def _hand_on(self, replies: bytearray) -> None:
        """Each reply or notification by itself: Linux takes one per write."""
        at = 0
        while at < len(replies):
            length, error, _ = _OUT.unpack_from(replies, at)
            reply = replies[at : at + length]
            if self.request.opcode == _INIT and not error:
                self._temper(reply)
            self._send(reply)
            at += length

    def _temper(self, reply: bytearray) -> None:
        """The reply to INIT without readahead and atomic O_TRUNC."""
        if len(reply) < _OUT.size + _INIT_OUT.size:
            return  # a version that libfuse asks Linux to speak instead
        major, minor, _, flags, *background, max_write = _INIT_OUT.unpack_from(reply, _OUT.size)
        flags &= ~_ATOMIC_O_TRUNC
        _INIT_OUT.pack_into(reply, _OUT.size, major, minor, 0, flags, *background, max_write)
        if max_write + _HEADROOM > len(self._buffer):
            self._buffer = memoryview(bytearray(max_write + _HEADROOM))

    def _send(self, *parts: bytes | bytearray | memoryview) -> None:
        try:
            os.writev(self._real, parts)
        except OSError as error:
            # ENOENT: who asked is gone. Reading next says so where it is the mount.
            if error.errno != errno.ENOENT:
                line = "a reply to the kernel was refused: %s"
                _seldom.say("refused replies", logging.WARNING, line, error.strerror)

    def _answer(self, unique: int, answer: bytes | memoryview | int) -> None:
        if isinstance(answer, int):
            self._send(_OUT.pack(_OUT.size, -answer, unique))
        else:
            self._send(_OUT.pack(_OUT.size + len(answer), 0, unique), answer)

    def _notify_closing(self, descriptor: int) -> None:
        # Not only who waits must hear it: the next wait as well.
        self._closing = True
        trio.lowlevel.notify_closing(self._real if descriptor == self._session else descriptor)

    async def _wait(self, descriptor: int) -> None:
        """In place of pyfuse3's wait: returns when libfuse has something to read."""
        if self._session < 0:
            self._session = descriptor
            os.set_inheritable(descriptor, False)
            os.dup2(descriptor, self._real, inheritable=False)
            os.set_blocking(self._real, False)
        self.restore()
        while True:
            if self._closing:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._real)
            try:
                length = os.readv(self._real, [self._buffer])
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):
                    continue
                return  # the end of the mount: libfuse reads the same
            if not self._answered():
                self._stage(length)
                return

    def _answered(self) -> bool:
        """Whether the request in the buffer is settled; what its handler may ask is kept."""
        answers = self._answers
        assert answers is not None
        _, opcode, unique, inode, uid, _, pid, _, fh, offset, size, flags = _IN.unpack_from(
            self._buffer
        )
        by_handle = False
        if opcode == _READ:
            if flags & _READ_LOCKOWNER:
                content = answers.read_now(fh, offset, size)
                if content is not None:
                    self._answer(unique, content)
                    return True
            else:
                self._answer(unique, errno.EINVAL)
                return True
        elif opcode == _GETATTR:
            wanted, _, fh = _GETATTR_IN.unpack_from(self._buffer, _GETATTR_AT)
            by_handle = bool(wanted & _GETATTR_FH)
            if by_handle and not answers.tells_size(fh):
                self._answer(unique, errno.EINVAL)
                return True
            if not by_handle and answers.hides_size(inode):
                self._outdate(inode)
        elif opcode == _INTERRUPT:
            return True
        self.request = Request(opcode, pid, uid, by_handle)
        return False

    def _outdate(self, inode: int) -> None:
        """What the kernel knows of the inode's attributes is older than this moment.

        Pages stay: to drop them would wait for reads of pages that only we can answer.
        """
        length = _OUT.size + _INVALIDATE.size
        self._send(_OUT.pack(length, _NOTIFY_INVAL_INODE, 0), _INVALIDATE.pack(inode, -1, 0))

    def _stage(self, length: int) -> None:
        start = _END - length
        os.pwrite(self._memfd, self._buffer[:length], start)
        os.lseek(self._memfd, start, os.SEEK_SET)
        os.dup2(self._memfd, self._session, inheritable=False)
        self._staged = True


class _Watched:
    """Handlers whose first look-up puts the real descriptor back.

    Not that of INIT, which libfuse answers itself after it has asked for settings.
    """

    def __init__(self, relay: Relay, operations: pyfuse3.Operations) -> None:
        self._relay = relay
        self._operations = operations

    def __getattr__(self, name: str) -> object:
        if self._relay.request.opcode != _INIT:
            self._relay.restore()
        return getattr(self._operations, name)


class _Instead:
    """A module with a few names of ours in it."""

    def __init__(self, module: types.ModuleType, **ours: object) -> None:
        self.__dict__.update(ours)
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)
