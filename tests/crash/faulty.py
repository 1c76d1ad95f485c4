# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A swtpm behind a proxy that is slow, or that answers errors instead of it."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support import wait_for

#: TPM_RC_FAILURE and TPM_RC_HIERARCHY: errors that no repetition heals (TPM 2.0 part 2, 6.6.3).
FAILURE, HIERARCHY = 0x101, 0x085
_PCR_EXTEND = 0x182
_HEADER = struct.Struct(">HII")


class FaultyTpm:
    """Passes commands on to a swtpm of its own, as its knobs say; ``tcti`` is its TCTI string.

    ``delay``: seconds that every extend takes longer. ``code``: every extend is answered so
    and never reaches the TPM; 0 passes it on. ``extends`` counts what was passed on.
    """

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.delay = 0.0
        self.code = 0
        self.extends = 0
        self._behind = base / "behind"
        self._front = base / "front"
        self._let_go = threading.Event()
        (base / "state").mkdir()
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={base / 'state'}"),
                *("--server", f"type=unixio,path={self._behind}"),
                *("--ctrl", f"type=unixio,path={self._behind}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ]
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_for(Path(f"{self._behind}.ctrl").exists, 60, "swtpm listens")
        # Control needs no proxy: a second name does.
        Path(f"{self._front}.ctrl").symlink_to(f"{self._behind}.ctrl")
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(self._front))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        stack.callback(self._thread.join)
        stack.callback(self._end)
        self.tcti = f"swtpm:path={self._front}"

    def _end(self) -> None:
        self._let_go.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        """One connection after the other, as swtpm itself has them."""
        while not self._let_go.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as tpm:
                tpm.connect(str(self._behind))
                with contextlib.suppress(ConnectionError):
                    while (command := _message(client)) is not None:
                        client.sendall(self._answer(tpm, command))

    def _answer(self, tpm: socket.socket, command: bytes) -> bytes:
        if _HEADER.unpack_from(command)[2] == _PCR_EXTEND:
            self._let_go.wait(self.delay)
            if self.code:
                return _HEADER.pack(0x8001, _HEADER.size, self.code)
            self.extends += 1
        tpm.sendall(command)
        answer = _message(tpm)
        assert answer is not None
        return answer


def _message(sock: socket.socket) -> bytes | None:
    """A TPM command or answer; None where the other side has hung up."""
    message = b""
    wanted = _HEADER.size
    while len(message) < wanted:
        piece = sock.recv(wanted - len(message))
        if not piece:
            return None
        message += piece
        if len(message) == _HEADER.size:
            wanted = int(_HEADER.unpack(message)[1])
    return message


@contextmanager
def faulty_tpm(base: Path) -> Iterator[FaultyTpm]:
    """A TPM in ``base`` that does what its knobs say; gone at the end."""
    with ExitStack() as stack:
        yield FaultyTpm(base, stack)
