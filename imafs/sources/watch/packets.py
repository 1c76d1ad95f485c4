# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One end of the socket between watcher and listener: packets of any size, never blocking.

A SOCK_SEQPACKET message is limited by the send buffer (net.core.wmem_default is 208 KiB, and
may be 4 KiB): what is longer goes as a descriptor of memory, whole and in its turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

from imafs.errors import FormatError

#: Larger packets are passed as memory, bytes.
INLINE = 1 << 15
#: No message is longer: the largest policy file in hexadecimal digits is half of it.
MOST = 1 << 28
#: Stands for a packet whose bytes are in the memory that comes with it; JSON begins otherwise.
_PASSED = b"+"
_DESCRIPTOR = struct.Struct("i")


class Channel:
    """Wraps one end of a SOCK_SEQPACKET pair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def fileno(self) -> int:
        """For poll()."""
        return self._socket.fileno()

    def close(self) -> None:
        """The other end reads its end."""
        self._socket.close()

    def send(self, packet: bytes) -> bool:
        """Whether there was room for it.

        Raises ConnectionError where the other end is gone, OSError where nothing can be sent.
        """
        if len(packet) <= INLINE:
            try:
                return self._put([packet], [])
            except OSError as error:
                # The send buffers of this machine are tiny.
                if error.errno != errno.EMSGSIZE:
                    raise
        return self._pass(packet)

    def _pass(self, packet: bytes) -> bool:
        memory = os.memfd_create("imafs", os.MFD_CLOEXEC)
        try:
            view = memoryview(packet)
            while view:
                view = view[os.write(memory, view) :]
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(memory))
            return self._put([_PASSED], [rights])
        finally:
            os.close(memory)

    def _put(self, data: list[bytes], ancillary: list[tuple[int, int, bytes]]) -> bool:
        try:
            self._socket.sendmsg(data, ancillary)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """The next packet; None: there is none yet, empty: the other end is gone.

        Raises :class:`FormatError`, and OSError (ConnectionResetError: the other end was
        killed with packets unread).
        """
        space = socket.CMSG_SPACE(_DESCRIPTOR.size)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(INLINE, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        with contextlib.ExitStack() as stack:
            descriptors = [_DESCRIPTOR.unpack(value)[0] for _, _, value in ancillary]
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise FormatError("a packet was cut off: no descriptor is left for it")
            if data != _PASSED:
                return data
            return _content(descriptors)


def _content(descriptors: list[int]) -> bytes:
    if len(descriptors) != 1:
        raise FormatError("a packet without its content")
    size = os.fstat(descriptors[0]).st_size
    if size > MOST:
        raise FormatError(f"a packet of {size} bytes")
    pieces, at = [], 0
    while piece := os.pread(descriptors[0], size - at, at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)
