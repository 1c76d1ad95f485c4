# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask the emulator for what a kernel's policy would have measured, as probe.c tells it.

Speaks the control socket's JSON lines itself, many at a time: a script measures thousands.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from types import TracebackType
from typing import Self

#: The owner of the files that the recordings' policy measures.
OWNER = 1234
_DEADLINE = 60.0


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
        with self._ours, socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_DEADLINE)
            channel.connect(self._control)
            answers = channel.makefile("rb")
            rest = b""
            while piece := self._ours.recv(1 << 16):
                *lines, rest = (rest + piece).split(b"\n")
                channel.sendall(b"".join(self._request(os.fsdecode(line)) for line in lines))
                for _ in lines:
                    answer = json.loads(answers.readline() or b"{}")
                    if not answer.get("ok"):
                        self.wrong = str(answer)
                        return
                self._ours.sendall(bytes(len(lines)))

    def _request(self, line: str) -> bytes:
        """``measure NAME HEX`` or ``violation NAME``, as the control socket takes it."""
        verb, name, *rest = line.split(" ", 2)
        request: dict[str, object] = {"op": verb, "name": name}
        if verb == "measure":
            digest = hashlib.new(self._algorithm, bytes.fromhex(rest[0])).hexdigest()
            request |= {"digest": f"{self._algorithm}:{digest}", "fowner": OWNER}
        return json.dumps(request).encode() + b"\n"
