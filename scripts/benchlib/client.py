# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The program that reads and writes the files: one JSON request per line, one answer each.

A process of its own, so that nothing of the server or of the measuring runs in it. All
times are in nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

# Page aligned: of a megabyte elsewhere FUSE asks for a megabyte less the place in its page,
# which differs from run to run, and with it what a server may make of the request.
_memory = memoryview(mmap.mmap(-1, 1 << 20))


def compare(paths: list[str], buffer: int, turn: int) -> dict[str, object]:
    """Reads whole files in turns of about ``turn`` bytes, ``buffer`` asked for at a time.

    Per file: the time from its open to its end of file without the others' turns, its
    bytes and the number of reads.
    """
    readings = [Reading(path, buffer) for path in paths]
    going = readings
    while going:
        going = [reading for reading in going if reading.go_on(turn)]
    return {
        "ns": [reading.ns for reading in readings],
        "bytes": [reading.bytes for reading in readings],
        "requests": [reading.requests for reading in readings],
    }


class Reading:
    """One file on its way; opened by the first turn."""

    def __init__(self, path: str, buffer: int) -> None:
        self._path = path
        self._buffers = [_memory[:buffer]]
        self._descriptor = -1
        self.ns = self.bytes = self.requests = 0

    def go_on(self, turn: int) -> bool:
        """Reads about ``turn`` bytes more; False at the end of file."""
        end = self.bytes + turn
        buffers, total, requests = self._buffers, self.bytes, self.requests
        more = True
        begin = perf_counter_ns()
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        descriptor = self._descriptor
        while more and total < end:
            count = os.readv(descriptor, buffers)
            total += count
            requests += 1
            more = count > 0
        self.ns += perf_counter_ns() - begin
        self.bytes, self.requests = total, requests
        if not more:
            os.close(descriptor)
        return more


def capture(path: str, buffer: int, data: str, lengths: str) -> dict[str, object]:
    """Copies the file to ``data`` and what each read gave to ``lengths`` (packed u32)."""
    parts = array("I")
    crc = 0
    descriptor = os.open(path, os.O_RDONLY)
    with open(data, "wb") as copy:
        while count := os.readv(descriptor, [_memory[:buffer]]):
            copy.write(_memory[:count])
            parts.append(count)
            crc = zlib.crc32(_memory[:count], crc)
    os.close(descriptor)
    Path(lengths).write_bytes(parts.tobytes())
    return {"crc": crc, "bytes": sum(parts), "requests": len(parts)}


def checksum(path: str, buffer: int) -> dict[str, object]:
    """CRC and bytes of the whole file: the yardstick must serve the same."""
    crc = total = 0
    descriptor = os.open(path, os.O_RDONLY)
    while count := os.readv(descriptor, [_memory[:buffer]]):
        crc = zlib.crc32(_memory[:count], crc)
        total += count
    os.close(descriptor)
    return {"crc": crc, "bytes": total}


def tail(path: str, size: int, end: int) -> dict[str, object]:
    """The last ``size`` of ``end`` bytes: the first read of a newly opened file."""
    descriptor = os.open(path, os.O_RDONLY)
    want = min(size, end)
    begin = perf_counter_ns()
    data = os.pread(descriptor, want, end - want)
    took = perf_counter_ns() - begin
    os.close(descriptor)
    return {"ns": took, "bytes": len(data)}


def write(path: str, requests: list[str]) -> dict[str, object]:
    """Writes ``requests`` one after the other to one open file."""
    descriptor = os.open(path, os.O_WRONLY)
    times = []
    for request in requests:
        data = request.encode()
        begin = perf_counter_ns()
        os.write(descriptor, data)
        times.append(perf_counter_ns() - begin)
    os.close(descriptor)
    return {"ns": times}


def opens(path: str, count: int) -> dict[str, object]:
    """Opens and closes a file again and again: how long opens take, the median and of 99 in 100."""
    times = []
    for _ in range(count):
        begin = perf_counter_ns()
        descriptor = os.open(path, os.O_RDONLY)
        times.append(perf_counter_ns() - begin)
        os.close(descriptor)
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def drop(directory: str) -> dict[str, object]:
    """The pages of all files below are no longer in memory, where they are on a disk."""
    count = 0
    for file in Path(directory).rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
            count += 1
    return {"files": count}


class Prober(threading.Thread):
    """Opens, reads and closes a small file again and again, and keeps the times."""

    def __init__(self, path: str) -> None:
        super().__init__(name="prober", daemon=True)
        self._path = path
        self._end = threading.Event()
        self.times: list[int] = []
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            while not self._end.is_set():
                begin = perf_counter_ns()
                descriptor = os.open(self._path, os.O_RDONLY)
                os.read(descriptor, 64)
                os.close(descriptor)
                self.times.append(perf_counter_ns() - begin)
        except OSError as error:
            self.error = error

    def finish(self) -> list[int]:
        """The times so far; raises what a read raised."""
        self._end.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.times


_probers: list[Prober] = []


def probe_start(path: str) -> dict[str, object]:
    """Starts a prober on ``path``."""
    prober = Prober(path)
    prober.start()
    _probers.append(prober)
    return {}


def probe_stop() -> dict[str, object]:
    """Ends it: longest and median time, number of reads."""
    times = sorted(_probers.pop().finish())
    return {"max": times[-1], "median": times[len(times) // 2], "count": len(times)}


COMMANDS: dict[str, Callable[..., dict[str, object]]] = {
    command.__name__: command
    for command in (
        *(compare, capture, checksum, tail, write, opens, drop),
        *(probe_start, probe_stop),
    )
}


def main() -> None:
    """Serves requests until end of file."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer = COMMANDS[request.pop("do")](**request)
        except OSError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
