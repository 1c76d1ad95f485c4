# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask the emulator for what a kernel's policy would have measured.

Speaks the control socket's JSON lines itself, not through imafs.control: the driver is
to see the emulator from outside only.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Sequence

#: The owner of the files that the recordings' policy measures.
OWNER = 1234
_AT_ONCE = 256
_DEADLINE_SECONDS = 60.0

Request = dict[str, object]


class Measurer:
    """One connection per question, so that a fork never shares one."""

    def __init__(self, path: str, algorithm: str) -> None:
        self._path = path
        self._algorithm = algorithm

    def request_for(self, name: str, content: bytes) -> Request:
        """The request that measures ``content`` as the file ``name``."""
        digest = hashlib.new(self._algorithm, content).hexdigest()
        request: Request = {"op": "measure", "digest": f"{self._algorithm}:{digest}", "name": name}
        return request | {"fowner": OWNER}

    def ask(self, requests: Sequence[Request]) -> None:
        """Send the requests, some hundred at a time, and insist on every answer being ok.

        Raises SystemExit with the emulator's words when it refuses.
        """
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_DEADLINE_SECONDS)
            channel.connect(self._path)
            answers = _lines(channel)
            for start in range(0, len(requests), _AT_ONCE):
                batch = requests[start : start + _AT_ONCE]
                channel.sendall(b"".join(json.dumps(r).encode() + b"\n" for r in batch))
                for request in batch:
                    answer = json.loads(next(answers))
                    if not answer.get("ok"):
                        raise SystemExit(f"probe: {request} was answered {answer}")

    def direct(self, words: str) -> None:
        """A line ``#emulator: ...`` of a script: what a kernel does without being asked.

        ``violation NAME`` or ``measure NAME TEXT``.
        """
        verb, _, rest = words.partition(" ")
        name, _, text = rest.partition(" ")
        if verb == "violation":
            self.ask([{"op": "violation", "name": name}])
        elif verb == "measure":
            content = text.encode("ascii").decode("unicode_escape").encode("latin-1")
            self.ask([self.request_for(name, content)])
        else:
            raise SystemExit(f"probe: unknown direction {words!r}")


def _lines(channel: socket.socket) -> Iterator[bytes]:
    rest = b""
    while True:
        line, found, after = rest.partition(b"\n")
        if found:
            rest = after
            yield line
            continue
        piece = channel.recv(65536)
        if not piece:
            raise SystemExit("probe: the emulator closed the control connection")
        rest += piece
