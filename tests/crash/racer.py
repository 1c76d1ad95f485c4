# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One of several processes that read, stage and delete at the same time; a script.

``racer.py DIR SEED SECONDS FILE``: everything that it deletes it has read before on the
same descriptor, and writes to FILE: bank, length, bytes. Prints its counts as JSON.
Nothing of imafs is imported: this is a client like any other.
"""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

BANKS = ("sha1", "sha256", "sha384", "sha512")
SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
COMMON = "runtime_measurements"


def head(data: bytes, number: int, digest: int) -> int:
    """Length of the first ``number`` records of a binary list; -1 when it has fewer.

    A record: PCR, digest, length and name of the template, length and template data
    (Documentation: Linux, ima_fs.c ima_measurements_show).
    """
    at = 0
    for _ in range(number):
        for skip in (4 + digest, 0):
            at += skip
            if at + 4 > len(data):
                return -1
            at += 4 + int(struct.unpack_from("<I", data, at)[0])
        if at > len(data):
            return -1
    return at


class Racer:
    """The operations, each by its name in ``counts``."""

    def __init__(self, directory: str, seed: int, file: BinaryIO) -> None:
        self.directory = directory
        self.chance = random.Random(seed)
        self.file = file
        self.counts: Counter[str] = Counter()

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        descriptor = os.open(os.path.join(self.directory, name), flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def rest(self, descriptor: int) -> bytes:
        size = self.chance.choice((4096, 10000, 65536, 1 << 20))
        pieces = []
        while piece := os.read(descriptor, size):
            pieces.append(piece)
        return b"".join(pieces)

    def keep(self, bank: str, data: bytes) -> None:
        self.file.write(struct.pack("<II", BANKS.index(bank), len(data)) + data)
        self.file.flush()

    def opening(self) -> None:
        with self.opened(self.chance.choice(("violations", f"{COMMON}_count")), os.O_RDONLY) as fd:
            int(os.read(fd, 100))

    def read(self) -> None:
        staged = self.chance.choice(("", "_staged"))
        form = self.chance.choice(("ascii", "binary"))
        bank = self.chance.choice(BANKS)
        with self.opened(f"{form}_{COMMON}_{bank}{staged}", os.O_RDONLY) as fd:
            data = os.read(fd, 1 << 20)
        assert form == "ascii" or not data or head(data, 1, SIZES[bank]) > 0, data[:200]

    def stage(self) -> None:
        with self.opened(f"binary_{COMMON}_staged", os.O_RDWR) as fd:
            os.write(fd, b"A\n")

    def delete(self, *, staging: bool = False) -> None:
        bank = self.chance.choice(BANKS)
        with self.opened(f"binary_{COMMON}_{bank}_staged", os.O_RDWR) as fd:
            if staging:
                try:
                    os.write(fd, b"A\n")
                except OSError as error:
                    if error.errno != errno.EEXIST:  # somebody's left-over
                        raise
                    self.counts["left-overs"] += 1
            os.lseek(fd, 0, os.SEEK_SET)
            data = self.rest(fd)
            os.write(fd, b"D\n")
            self.keep(bank, data)

    def stage_and_delete(self) -> None:
        self.delete(staging=True)

    def delete_number(self) -> None:
        bank = self.chance.choice(BANKS)
        number = self.chance.choice((1, 2, 17, 500))
        with self.opened(f"binary_{COMMON}_{bank}", os.O_RDWR) as fd:
            data = b""
            while (length := head(data, number, SIZES[bank])) < 0:
                piece = os.read(fd, 65536)
                if not piece:
                    self.counts["too few"] += 1
                    return
                data += piece
            os.write(fd, f"{number}\n".encode())
            self.keep(bank, data[:length])

    def mark(self, operation: Callable[[], None]) -> str:
        """A file that all racers share."""
        return os.path.join(os.path.dirname(self.file.name), f"did-{operation.__name__}")

    def came_about(self, operation: Callable[[], None]) -> bool:
        """Whether any racer has done it."""
        return os.path.exists(self.mark(operation))

    def run(self, seconds: float) -> None:
        operations = (
            *(self.opening, self.read, self.read, self.stage),
            *(self.delete, self.delete_number, self.delete_number, self.stage_and_delete),
        )
        end = time.monotonic() + seconds
        # On a busy machine the time is over before somebody has come to each of them.
        while time.monotonic() < end or not all(map(self.came_about, operations)):
            operation = self.chance.choice(operations)
            try:
                operation()
            except OSError as error:
                # EBUSY: open elsewhere; ENOENT: nothing to stage or delete; EEXIST: staged.
                if error.errno not in (errno.EBUSY, errno.ENOENT, errno.EEXIST):
                    raise
                self.counts[errno.errorcode[error.errno]] += 1
            else:
                self.counts[operation.__name__] += 1
                if self.counts[operation.__name__] == 1:
                    open(self.mark(operation), "w").close()


def main() -> None:
    directory, seed, seconds, path = sys.argv[1:]
    with open(path, "wb") as file:
        racer = Racer(directory, int(seed), file)
        racer.run(float(seconds))
    print(json.dumps(racer.counts))


if __name__ == "__main__":
    main()
