# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A way to send commands to a TPM, and the one over swtpm's own TCP socket.

swtpm serves one connection at a time: its holder makes every other client wait.
So the connection is held for a burst only and given back; waiting clients are ahead
of our next connect. Pipelining hangs swtpm 0.7.1: one command, one response.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from imafs.errors import TpmError

# Seconds for one try to connect; on the loopback it succeeds at once or not at all.
_CONNECT_FIRST = 0.005
_CONNECT_LAST = 0.1


class Link(Protocol):
    """One connection object; used by one thread, except for :meth:`drop`."""

    def transact(self, command: bytes | bytearray) -> bytes:
        """Send one command, return its response; :class:`TpmError` on any I/O error."""

    def hold(self) -> AbstractContextManager[None]:
        """Keep the connection for the commands inside, where there is one to keep."""

    def drop(self) -> None:
        """Give up from any thread, also while another one hangs in :meth:`transact`.

        That one sends nothing more and raises as soon as it wakes.
        """


class SocketLink:
    """Raw command bytes over TCP to 127.0.0.1.

    ``verify(seconds)`` is called after each connect, and with some patience after an error;
    it raises :class:`TpmError` when the listener is not the swtpm that we started.
    ``timeout``: seconds for each send or receive, None for ever (the caller abandons).
    """

    def __init__(
        self, port: int, verify: Callable[[float], None], *, timeout: float | None = None
    ) -> None:
        self._port = port
        self._verify = verify
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._dropped = False
        self._held = False
        # Orders close() and shutdown() of two threads; neither blocks.
        self._guard = threading.Lock()

    def _refuse_dropped(self) -> None:
        if self._dropped:
            raise TpmError("the connection to swtpm was given up")

    def _connect(self) -> socket.socket:
        # swtpm's backlog is one: with two clients waiting the kernel ignores our SYN, and would
        # send it again only after 1, 3, 7 s. A new socket begins anew and earlier.
        end = None if self._timeout is None else time.monotonic() + self._timeout
        patience = _CONNECT_FIRST
        while True:
            self._socket = sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(patience)
            try:
                sock.connect(("127.0.0.1", self._port))
            except TimeoutError:
                self._disconnect()
                self._refuse_dropped()
                if end is not None and time.monotonic() > end:
                    raise
                patience = min(2 * patience, _CONNECT_LAST)
                continue
            # A drop() until now found nothing to shut down; from here on it does.
            self._refuse_dropped()
            self._verify(0)
            sock.settimeout(self._timeout)
            return sock

    def _disconnect(self) -> None:
        with self._guard:
            sock, self._socket = self._socket, None
            if sock is not None:
                sock.close()

    def transact(self, command: bytes | bytearray) -> bytes:
        """See :class:`Link`."""
        self._refuse_dropped()
        done = False
        try:
            sock = self._socket or self._connect()
            sock.sendall(command)
            response = sock.recv(4096)
            # swtpm writes a response at once, but TCP promises nothing.
            while len(response) < 10 or len(response) < int.from_bytes(response[2:6], "big"):
                more = sock.recv(4096)
                if not more:
                    raise ConnectionResetError("closed before the response was whole")
                response += more
            done = True
        except OSError as error:
            self._refuse_dropped()
            # A dying process closes its sockets a moment before it can be waited for.
            self._verify(0.2)
            raise TpmError(f"swtpm: {error}") from error
        finally:
            if not (done and self._held):
                self._disconnect()
        return response

    @contextmanager
    def _holding(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._disconnect()

    def hold(self) -> AbstractContextManager[None]:
        """See :class:`Link`; other clients wait meanwhile, so keep it short."""
        return self._holding()

    def drop(self) -> None:
        """See :class:`Link`."""
        self._dropped = True
        with self._guard:
            if self._socket is not None:
                # Wakes a thread in connect() or recv(), which then closes it. ENOTCONN:
                # nobody waits in it.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
