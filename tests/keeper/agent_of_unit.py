# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""An agent, run in a machine as a service: reads the list again and again, tells what it finds.

``agent_of_unit.py LIST LOG FEW``. A line of LOG for each change: ``ok RECORDS``, the name of an
errno, or what must never be (``BAD ...``): a list that does not begin with the one before, a file
that is not the view's though it was once, a list of fewer than FEW records. The last line counts.
Standard library only: it is run by a bare Python.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
import threading
import time

#: Looks at the place of the list for each reading of it, and seconds between two looks.
_LOOKS = 10
_PAUSE = 0.05


class Agent:
    """What was read so far."""

    def __init__(self, path: str, log: str, few: int) -> None:
        self._path, self._log, self._few = path, log, few
        self._kernel = os.stat("/sys/kernel/security").st_dev
        self._before = b""
        self._records = 0
        self._said = ""
        self._covered = False
        self.ended = threading.Event()
        self._counts = {"polls": 0, "errors": 0, "bad": 0}

    def poll(self) -> None:
        """Reads the list once."""
        self._counts["polls"] += 1
        try:
            for _ in range(_LOOKS):
                self.ended.wait(_PAUSE)
                self._look(os.stat(self._path).st_dev)
            with open(self._path, "rb", buffering=0) as file:
                device = os.fstat(file.fileno()).st_dev
                pieces = []
                while piece := file.read(1 << 17):
                    pieces.append(piece)
        except OSError as error:
            self.ended.wait(_PAUSE)
            self._counts["errors"] += 1
            self._say(errno.errorcode[error.errno or 0])
            return
        self._look(device)
        self._judge(b"".join(pieces))

    def _look(self, device: int) -> None:
        if device != self._kernel:
            self._covered = True
        elif self._covered:
            self._bad("the kernel's own files are there again")

    def _judge(self, data: bytes) -> None:
        if not data.startswith(self._before):
            self._bad(f"{len(data)} bytes do not begin with the {len(self._before)} before")
            return
        self._records += _records(data[len(self._before) :])
        self._before = data
        if self._records < self._few:
            self._bad(f"only {self._records} records")
        elif not self._said.startswith("ok"):
            self._say(f"ok {self._records}")

    def _bad(self, text: str) -> None:
        self._counts["bad"] += 1
        self._say(f"BAD {text}")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.write(text)

    def write(self, text: str) -> None:
        """Adds a line to the log."""
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(f"{time.clock_gettime(time.CLOCK_MONOTONIC):.3f} {text}\n")

    def end(self) -> None:
        """Tells the counts."""
        counts = " ".join(f"{name} {count}" for name, count in self._counts.items())
        self.write(f"end records {self._records} {counts}")


def _records(data: bytes) -> int:
    """How many whole records of the binary form (SHA-1 bank, any template but ``ima``)."""
    at = count = 0
    while at < len(data):
        (name,) = struct.unpack_from("<I", data, at + 24)
        (body,) = struct.unpack_from("<I", data, at + 28 + name)
        at += 32 + name + body
        count += 1
    if at != len(data):
        raise ValueError("a record is cut")
    return count


def main() -> None:
    """Until SIGTERM."""
    path, log, few = sys.argv[1:]
    agent = Agent(path, log, int(few))
    signal.signal(signal.SIGTERM, lambda *_: agent.ended.set())
    agent.write("start")
    while not agent.ended.is_set():
        agent.poll()
    agent.end()


if __name__ == "__main__":
    main()
