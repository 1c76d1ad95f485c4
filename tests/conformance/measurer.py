# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask the emulator for what a kernel's policy would have measured, as probe.c tells it."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from types import TracebackType
from typing import Self

from imafs.errors import ImafsError
from imafs.verbs.client import ControlClient

#: The owner of the files that the recordings' policy measures.
OWNER = 1234


class Measurer:
    """A socket whose other end is served by a thread: a line is measured, a byte comes back.

    ``wrong`` is what the emulator refused; the prober's end is closed by then.
    """

    def __init__(self, control: str, algorithm: str) -> None:
        self._control = control
        self._algorithm = algorithm
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self.wrong = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._theirs.close()
        self._thread.join()

    def fileno(self) -> int:
        """The prober's end."""
        return self._theirs.fileno()

    def _serve(self) -> None:
        client = ControlClient(self._control)
        with client, self._ours, self._ours.makefile("rb") as lines:
            try:
                for line in lines:
                    op, options = self._request(os.fsdecode(line.removesuffix(b"\n")))
                    client.call(op, options, deadline=60)
                    self._ours.sendall(b"\0")
            except ImafsError as error:
                self.wrong = str(error)

    def _request(self, line: str) -> tuple[str, dict[str, object]]:
        """``measure NAME HEX`` or ``violation NAME``."""
        verb, name, *rest = line.split(" ", 2)
        if verb == "violation":
            return "violation", {"name": name}
        content = bytes.fromhex(rest[0])
        digest = hashlib.new(self._algorithm, content).hexdigest()
        return "measure", {
            "digest": f"{self._algorithm}:{digest}",
            "name": name,
            "fowner": OWNER,
        }
